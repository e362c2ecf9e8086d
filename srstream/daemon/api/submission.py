"""Checks a job before it is accepted: everything that can be known without opening its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from srstream.config import EncodeConfig, JobConfig, StreamsConfig
from srstream.daemon.settings import ServiceSettings
from srstream.engines.table import check_engine
from srstream.errors import UsageError
from srstream.jobs.events import printable
from srstream.media.output_checks import OutputTables
from srstream.models.blend import check_knobs
from srstream.models.registry import find_model, resolved
from srstream.models.table import available_models, model_spec
from srstream.naming import check_length, unopened_output
from srstream.pictures.stills import check_still_output

_VIDEO_SETTINGS = {
    "encode": EncodeConfig.model_fields,
    "streams": StreamsConfig.model_fields,
    "source": ("start_seconds", "end_seconds", "keep_start", "salvage", "decoder"),
}
"""The settings that mean nothing for a picture, by section."""


def job_config(settings: ServiceSettings, changes: dict[str, Any]) -> JobConfig:
    """The daemon's defaults with a client's changes.

    Raises:
        UsageError: a change is invalid, or names a file of weights.
    """
    merged = settings.defaults.model_dump()
    for section, values in changes.items():
        if isinstance(values, dict) and isinstance(merged.get(section), dict):
            merged[section] = {**merged[section], **values}
        else:
            merged[section] = values
    if section_of(changes, "model").get("weights") is not None:
        raise UsageError(
            "config.model.weights: files of a client's are not read; register them with "
            "models.add and name the model."
        )
    try:
        return JobConfig.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"config.{where}: {first['msg'].lower()}.") from None


def section_of(changes: dict[str, Any], name: str) -> dict[str, Any]:
    """One section of a client's changes; empty if there is none."""
    section = changes.get(name)
    return section if isinstance(section, dict) else {}


def output_of(
    source: Path, config: JobConfig, settings: ServiceSettings, *, is_still: bool
) -> Path:
    """The output of a job that names none: in the configured folder, or else beside the source.

    Where nothing may be written beside it, the only write root takes the output.
    """
    beside = unopened_output(source, config.scaling, is_still=is_still)
    if settings.jobs.output_dir is not None:
        return settings.jobs.output_dir / beside.name
    roots = settings.security.write_roots
    places = (*roots, *(entry.output for entry in settings.watch))
    if len(roots) != 1 or any(map(beside.is_relative_to, places)):
        return beside
    return roots[0] / beside.name


def check_model(name: str) -> None:
    """Check that there are weights of this name.

    Raises:
        UsageError: there are none.
    """
    if name not in available_models() and find_model(name) is None:
        raise UsageError(f"model {name!r}: there are no such weights; models.list says which.")


def check_picture_settings(source: Path, changes: dict[str, Any]) -> None:
    """Check that a client has changed nothing that means something for videos only.

    Raises:
        UsageError: it has.
    """
    for section, names in _VIDEO_SETTINGS.items():
        standard = getattr(JobConfig(), section)
        for name, value in section_of(changes, section).items():
            if name in names and value != getattr(standard, name):
                raise UsageError(
                    f"config.{section}.{name}: {printable(source)} is a picture, for which this "
                    "setting means nothing; leave it out."
                )


def check_job(
    source: Path,
    output: Path,
    config: JobConfig,
    tables: OutputTables | None,
    *,
    is_still: bool,
) -> None:
    """Check the names and the settings of a job.

    Args:
        tables: what can be written; None while no worker has said so.
        is_still: whether the source is a picture that becomes a picture.

    Raises:
        SrstreamError: the job would be refused for it, whatever its source holds.
    """
    if source == output:
        raise UsageError(f"{printable(source)}: the output would be the input; name another.")
    check_model(config.model.name)
    check_length(output)
    if is_still:
        check_still_output(source, output)
    elif tables is not None:
        tables.check(output, config.encode, source)
    model = resolved(config.model)
    check_knobs(model, model_spec(model.name))
    if config.engine.name != "auto":
        check_engine(config.engine.name, config.engine)
    given = [name for name, value in config.scaling if value is not None]
    if len(given) > 1:
        raise UsageError(f"config.scaling: {' and '.join(given)} exclude each other; give one.")
    start, end = config.source.start_seconds, config.source.end_seconds
    if end is not None and end <= (start or 0):
        raise UsageError(f"config.source: the end at {end:g} s is not after {start or 0:g} s.")
