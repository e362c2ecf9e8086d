"""The options of a job on the command line: their types, and the `JobConfig` that they come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from srstream.config import DecoderName, EngineName, JobConfig, Precision
from srstream.errors import UsageError

Source = Annotated[Path, typer.Argument(help="The video, picture, folder or pattern to enhance.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="Name of the result. [dim]default: INPUT_4x beside it[/]"),
]
Model = Annotated[str, typer.Option("--model", help="Network: speed against quality.")]
Restore = Annotated[
    str,
    typer.Option("--restore", help="Mend what a codec has damaged: 0 to 1, or auto by the source."),
]
Detail = Annotated[
    float, typer.Option("--detail", min=0, max=1, help="From faithful (0) to crisp (1).")
]
Scale = Annotated[
    float | None, typer.Option("--scale", help="Factor on the input's size, at most the model's 4.")
]
Height = Annotated[int | None, typer.Option("--height", help="Rows of the output.")]
Codec = Annotated[
    str, typer.Option("--codec", help="Video encoder: auto, libx264, libx265, libsvtav1, ffv1 ...")
]
Crf = Annotated[float | None, typer.Option("--crf", help="Quality; lower is better and larger.")]
Preset = Annotated[str | None, typer.Option("--preset", help="The encoder's speed preset.")]
Start = Annotated[
    float | None, typer.Option("--start", help="Begin here; seconds from the first video frame.")
]
End = Annotated[
    float | None, typer.Option("--end", help="End here; seconds from the first video frame.")
]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Where the network runs.")]
DecoderOption = Annotated[DecoderName, typer.Option("--decoder", help="What decodes the source.")]
PrecisionOption = Annotated[
    Precision, typer.Option("--precision", help="float32 is exact, the others are faster.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 takes all cores.")]
MaxMemory = Annotated[
    str | None, typer.Option("--max-memory", help="Memory the job may use, such as 800M or 2G.")
]
NoReuse = Annotated[
    bool, typer.Option("--no-reuse", help="Compute also what is the same as in the last frame.")
]
ReuseThreshold = Annotated[
    int,
    typer.Option(
        "--reuse-threshold",
        min=0,
        max=64,
        help="Levels of 255 that count as the same; above 0 the result is no longer exact.",
    ),
]
Salvage = Annotated[
    bool, typer.Option("--salvage", help="Deliver the good part of a broken input (exit code 4).")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]


_FIELDS: dict[str, tuple[str, str]] = {
    "model": ("model", "name"),
    "restore": ("model", "restore"),
    "detail": ("model", "detail"),
    "engine": ("engine", "name"),
    "precision": ("engine", "precision"),
    "threads": ("engine", "threads"),
    "max_memory": ("engine", "max_memory_bytes"),
    "no_reuse": ("reuse", "enabled"),
    "reuse_threshold": ("reuse", "threshold"),
    "scale": ("scaling", "scale"),
    "height": ("scaling", "height"),
    "codec": ("encode", "codec"),
    "crf": ("encode", "crf"),
    "preset": ("encode", "preset"),
    "start": ("source", "start_seconds"),
    "end": ("source", "end_seconds"),
    "salvage": ("source", "salvage"),
    "decoder": ("source", "decoder"),
}
"""Section and name of the setting that an option is."""


def config_sections(options: dict[str, Any]) -> dict[str, Any]:
    """Settings in the sections of `JobConfig`, not checked yet, from values of options.

    Raises:
        UsageError: a value cannot be read.
    """
    read = {
        "restore": parse_restore,
        "max_memory": parse_bytes,
        "no_reuse": lambda no_reuse: not no_reuse,
    }
    sections: dict[str, Any] = {}
    for option, value in options.items():
        value = read[option](value) if option in read else value
        if option == "deterministic":
            sections[option] = value
        else:
            section, name = _FIELDS[option]
            sections.setdefault(section, {})[name] = value
    return sections


def job_config(**options: Any) -> JobConfig:
    """The checked settings of a job, from values of options.

    Raises:
        UsageError: an option is wrong, and which one.
    """
    try:
        return JobConfig.model_validate(config_sections(options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).removesuffix("_seconds").removesuffix("_bytes")
        option = "--" + name.replace("_", "-")
        raise UsageError(f"{option} {first['input']}: {first['msg'].lower()}.") from error


def parse_bytes(text: str | None) -> int | None:
    """800M, 2G or plain bytes as a number of bytes.

    Raises:
        UsageError: it is none of these.
    """
    if text is None:
        return None
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units.get(text[-1:].upper())) if text[-1:].isalpha() else (text, 1)
    try:
        if unit is None:
            raise ValueError(text)
        return int(float(number) * unit)
    except ValueError as error:
        raise UsageError(
            f"--max-memory {text}: write a number with K, M or G, such as 2G."
        ) from error


def parse_restore(text: str) -> float | str:
    """`auto`, or a number from 0 to 1.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--restore {text}: write a number from 0 to 1, or auto.")
    return value
