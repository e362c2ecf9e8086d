"""The options of a job on the command line: what each is, and the `JobConfig` that they come to.

A command takes them by one parameter, `options: JobOptions`, and the decorator `with_job_options`.
"""

from __future__ import annotations

import functools
import inspect
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer
from pydantic import ValidationError

from srstream.config import DecoderName, EngineName, JobConfig, Precision
from srstream.errors import UsageError

_T = TypeVar("_T")

Sources = Annotated[
    list[Path],
    # Whether each can be read is found out when its turn comes: a failure stops no other.
    typer.Argument(
        help="Videos, pictures, folders, and quoted patterns, in any mix.",
        metavar="FILES",
        readable=False,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Say which engine, encoder and settings are used."),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", help="Look into the folders of a folder too.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="NAME",
        help="Name of the result. [dim]default: INPUT_4x beside it[/]",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output, at the very end.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on standard output.")]


def complete_model(begun: str) -> list[str]:
    """Return the models whose names begin so: those that ship, and the user's own."""
    from srstream.models.registry import registered_models
    from srstream.models.table import available_models

    names = [*available_models(), *(model.name for model in registered_models())]
    return [name for name in names if name.startswith(begun)]


def complete_codec(begun: str) -> list[str]:
    """Return the common codecs whose names begin so."""
    names = ("auto", "h264", "hevc", "av1", "vp9", "ffv1", "prores")
    return [name for name in names if name.startswith(begun)]


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


def parse_time(option: str, text: str | None) -> float | None:
    """Return seconds for `90`, `90.5`, `1:30` or `0:01:30.5`.

    Raises:
        UsageError: it is none of these.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?)", text.strip())
    if found is None or (found[2] is not None and float(found[3]) >= 60):
        raise UsageError(
            f"{option} {text}: write seconds, such as 90.5, or a time, such as 0:01:30."
        )
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def parse_box(text: str | None) -> str | None:
    """Return a size such as `1920x1080` as the settings spell it.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    box = text.strip().lower().replace("×", "x")
    if re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", box) is None:
        raise UsageError(f"--fit {text}: write the columns and rows of a box, such as 1920x1080.")
    return box


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


@dataclass(frozen=True, slots=True)
class _JobOption:
    setting: str
    """What it sets of `JobConfig`, and has its default from."""
    kind: Any
    """The type of its value. A bool is a flag: off unless given, whatever the setting's default."""
    help: str
    min: float | None = None
    max: float | None = None
    read: Callable[[Any], Any] = lambda value: value
    """Makes the setting of the option's value."""
    metavar: str | None = None
    """What --help calls the value."""
    complete: Callable[[str], list[str]] | None = None
    """Returns the values that begin with a text, for the shell's completion."""
    is_rare: bool = False
    """Whether --help lists it apart, among those that few people need."""

    def parameter(self, name: str) -> inspect.Parameter:
        """What Typer makes the option of."""
        default = False if self.kind is bool else operator.attrgetter(self.setting)(JobConfig())
        info = typer.Option(
            _flag(name),
            min=self.min,
            max=self.max,
            help=self.help,
            metavar=self.metavar,
            autocompletion=self.complete,
            rich_help_panel="Rarely needed" if self.is_rare else None,
        )
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[self.kind, info],
        )


JOB_OPTIONS = {
    "model": _JobOption(
        "model.name",
        str,
        "Network, from fast to best: fast, balanced, srgan; or one of your own.",
        metavar="NAME",
        complete=complete_model,
    ),
    "restore": _JobOption(
        "model.restore",
        str,
        "Mend what a codec has damaged: 0 to 1, or auto by the source.",
        read=parse_restore,
        metavar="NUMBER",
    ),
    "detail": _JobOption(
        "model.detail", float, "From faithful (0) to crisp (1).", min=0, max=1, metavar="NUMBER"
    ),
    "scale": _JobOption(
        "scaling.scale",
        float | None,
        "Factor on the input's size, instead of the model's own.",
        metavar="FACTOR",
    ),
    "height": _JobOption(
        "scaling.height", int | None, "Rows of the output, such as 1080.", metavar="ROWS"
    ),
    "width": _JobOption(
        "scaling.width", int | None, "Columns of the output, such as 1920.", metavar="COLUMNS"
    ),
    "fit": _JobOption(
        "scaling.fit",
        str | None,
        "Box that the output fills, such as 1920x1080.",
        read=parse_box,
        metavar="WxH",
    ),
    "codec": _JobOption(
        "encode.codec",
        str,
        "Video codec: auto, h264, hevc, av1, vp9, ffv1, prores ...",
        metavar="NAME",
        complete=complete_codec,
    ),
    "crf": _JobOption(
        "encode.crf", float | None, "Quality; lower is better and larger.", metavar="NUMBER"
    ),
    "preset": _JobOption(
        "encode.preset",
        str | None,
        "The encoder's speed preset, such as slow.",
        metavar="NAME",
        is_rare=True,
    ),
    "chroma": _JobOption(
        "encode.chroma",
        Literal["auto", "keep"],
        "Resolution of color: auto makes 4:2:0, which devices play; keep keeps the source's.",
        is_rare=True,
    ),
    "start": _JobOption(
        "source.start_seconds",
        str | None,
        "Begin here: seconds, or 0:01:30, from the first video frame.",
        read=lambda text: parse_time("--start", text),
        metavar="TIME",
    ),
    "end": _JobOption(
        "source.end_seconds",
        str | None,
        "End here: seconds, or 0:01:30, from the first video frame.",
        read=lambda text: parse_time("--end", text),
        metavar="TIME",
    ),
    "other_video": _JobOption(
        "streams.other_video",
        Literal["keep", "drop"],
        "What becomes of further videos in the file: kept behind the enhanced one, or left out.",
    ),
    "keep_start": _JobOption(
        "source.keep_start",
        bool,
        "Begin when the source's clock does instead of at zero.",
        is_rare=True,
    ),
    "decoder": _JobOption("source.decoder", DecoderName, "What decodes the source.", is_rare=True),
    "engine": _JobOption(
        "engine.name",
        EngineName,
        f"Where the network runs: {', '.join(get_args(EngineName))}.",
        metavar="NAME",
        is_rare=True,
    ),
    "precision": _JobOption(
        "engine.precision",
        Precision,
        f"{', '.join(get_args(Precision))}: float32 is exact, the others are faster; GPUs take "
        "float16 instead of float32.",
        metavar="NAME",
        is_rare=True,
    ),
    "threads": _JobOption(
        "engine.threads", int, "CPU threads; 0 takes all cores.", min=0, metavar="NUMBER"
    ),
    "max_memory": _JobOption(
        "engine.max_memory_bytes",
        str | None,
        "Memory the job may use, such as 800M or 2G.",
        read=parse_bytes,
        metavar="SIZE",
    ),
    "no_reuse": _JobOption(
        "reuse.enabled",
        bool,
        "Compute also what is the same as in the last frame.",
        read=operator.not_,
        is_rare=True,
    ),
    "reuse_threshold": _JobOption(
        "reuse.threshold",
        int,
        "Levels of 255 that count as the same; above 0 the result is no longer exact.",
        min=0,
        max=64,
        metavar="NUMBER",
        is_rare=True,
    ),
    "salvage": _JobOption(
        "source.salvage", bool, "Deliver the good part of a broken input (exit code 4)."
    ),
    "deterministic": _JobOption(
        "deterministic", bool, "Byte-reproducible result; a little slower.", is_rare=True
    ),
}
"""Every option by its name, in the order in which --help lists them."""


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What was written on the command line, by the names of `JOB_OPTIONS`, and no defaults."""

    given: dict[str, Any]

    def sections(self) -> dict[str, Any]:
        """Settings in the sections of `JobConfig`, not checked yet.

        Raises:
            UsageError: a value cannot be read.
        """
        sections: dict[str, Any] = {}
        for name, value in self.given.items():
            option = JOB_OPTIONS[name]
            section, _, setting = option.setting.rpartition(".")
            place = sections.setdefault(section, {}) if section else sections
            place[setting] = option.read(value)
        return sections

    def config(self) -> JobConfig:
        """The checked settings, with the defaults of `JobConfig`.

        Raises:
            UsageError: an option is wrong, and which one.
        """
        try:
            return JobConfig.model_validate(self.sections())
        except ValidationError as error:
            first = error.errors()[0]
            setting = ".".join(map(str, first["loc"]))
            wrong = next(n for n in self.given if setting.startswith(JOB_OPTIONS[n].setting))
            raise UsageError(f"{_flag(wrong)} {first['input']}: {first['msg'].lower()}.") from error


def with_job_options(
    names: Collection[str] = tuple(JOB_OPTIONS),
) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Give a command these options in place of its parameter `options: JobOptions`."""
    own = [option.parameter(name) for name, option in JOB_OPTIONS.items() if name in names]
    context_of = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )

    def decorate(command: Callable[..., _T]) -> Callable[..., _T]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [context_of]
        for parameter in signature.parameters.values():
            parameters += own if parameter.name == "options" else [parameter]

        @functools.wraps(command)
        def with_options(context: typer.Context, **values: Any) -> _T:
            job = {option.name: values.pop(option.name) for option in own}
            given = {name: value for name, value in job.items() if _is_given(context, name)}
            return command(**values, options=JobOptions(given))

        # Typer reads the options off the signature.
        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return with_options

    return decorate


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
