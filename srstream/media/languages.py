"""Codes of languages, which containers spell differently."""

from __future__ import annotations

QUICKTIME_LANGUAGES = frozenset(
    {
        "eng", "fra", "ger", "ita", "dut", "sve", "spa", "dan", "por", "nor", "heb", "jpn", "ara",
        "fin", "gre", "ice", "mlt", "tur", "chi", "urd", "hin", "tha", "kor", "lit", "pol", "hun",
        "est", "lav", "rus", "iri", "alb", "ron", "ces", "slk", "slv", "yid", "mac", "bul", "ukr",
        "bel", "uzb",
    }
)  # fmt: skip
"""The languages that libavformat can write into a MOV, in its spelling."""

_LANGUAGE_SPELLINGS = {
    "deu": "ger", "fre": "fra", "nld": "dut", "swe": "sve", "ell": "gre", "isl": "ice",
    "zho": "chi", "gle": "iri", "sqi": "alb", "rum": "ron", "cze": "ces", "slo": "slk",
    "mkd": "mac",
}  # fmt: skip
"""ISO 639-2 has two codes for some languages; QuickTime knows one, and a few of its own."""


def spelled_language(language: str | None) -> str:
    """One spelling for each language; `und` where there is none."""
    code = (language or "und").lower()
    return _LANGUAGE_SPELLINGS.get(code, code)
