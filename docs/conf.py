"""Sphinx's settings for the site that `make docs` builds: the pages of docs/ and the API."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "srstream"
author = "the srstream contributors"
release = version_of("srstream")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]

# Headings get anchors as on a repository's page, so that one link works in both places.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# The reference is made where PyTorch and Fabric are not installed.
autodoc_mock_imports = ["torch", "lightning_fabric", "lightning", "sklearn", "onnx", "jinja2"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "separated"
# Names from modules that are imported under TYPE_CHECKING only cannot be evaluated here.
suppress_warnings = ["sphinx_autodoc_typehints", "misc.highlighting_failure"]

html_theme = "furo"
html_title = "srstream"
