"""The commands: parse, call, print."""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from srstream.cli import daemon as service
from srstream.cli.options import (
    JobOptions,
    Json,
    Output,
    Overwrite,
    Recursive,
    Sources,
    Verbose,
    parse_time,
    with_job_options,
)
from srstream.errors import (
    InterruptedJobError,
    SrstreamError,
    StalledError,
    UsageError,
    error_to_wire,
)
from srstream.terminal import plain_console, run_app, show, show_json, tell

app = typer.Typer(
    name="srstream",
    help="Small, old or compressed video in; the same video at four times the size out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
@with_job_options()
def enhance(
    sources: Sources,
    *,
    output: Output = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing/--no-skip-existing",
            help="Of several inputs, leave those alone that have a result already.",
        ),
    ] = True,
    options: JobOptions,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an unfinished job of this output.")
    ] = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Enhance videos and pictures: files, folders, or quoted patterns.

    Killed or interrupted, the same command resumes where it was.

    Exit codes: 0 done, 1 failed, 2 usage, 3 an unfinished job that does not match, 4 done in part
    (--salvage), 130 interrupted.
    """
    from srstream.cli.enhance import enhance as enhance_all

    raise typer.Exit(
        enhance_all(
            sources,
            output,
            options.config(),
            is_recursive=recursive,
            overwrite=overwrite,
            restart=restart,
            skips_existing=skip_existing,
            as_json=as_json,
            is_verbose=verbose,
        )
    )


@app.command()
@with_job_options()
def plan(
    sources: Sources,
    *,
    output: Output = None,
    recursive: Recursive = False,
    options: JobOptions,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Predict the speed of a GPU, on paper: h100, l4, t4 ..."),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Say what enhancing would do, take and lose, without doing it."""
    from srstream.cli.enhance import plan as plan_all

    raise typer.Exit(
        plan_all(
            sources,
            output,
            options.config(),
            is_recursive=recursive,
            device=device,
            as_json=as_json,
            is_verbose=verbose,
        )
    )


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(help="The original.")],
    output: Annotated[Path, typer.Argument(help="What was made of it.")],
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Compare the pixels of so many frames, not of all."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="TIME", help="Where the excerpt begins, as it was made."),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--end", metavar="TIME", help="Where the excerpt ends, as it was made."),
    ] = None,
) -> None:
    """Compare an output with its source and print the fidelity receipt as JSON.

    Exit code 0 if everything of the source is there, 1 if not.
    """
    from srstream.cli.stage_bar import StageBar
    from srstream.jobs.excerpt import verify_excerpt

    start_seconds, end_seconds = parse_time("--start", start), parse_time("--end", end)
    with StageBar(plain_console(stderr=True)) as bar:
        bar.show("verifying", 0, None, "")
        receipt = verify_excerpt(
            source, output, start_seconds=start_seconds, end_seconds=end_seconds, sample=sample
        )
    show_json(receipt.model_dump_json(by_alias=True, indent=2))
    if start is None and end is None and receipt.num_frames_out < receipt.num_frames_in:
        tell("note: If the output is an excerpt, give the --start and --end that it was made with.")
    raise typer.Exit(0 if receipt.ok else 1)


@app.command()
@with_job_options({"model", "decoder", "engine", "threads"})
def bench(
    source: Annotated[
        Path | None, typer.Argument(help="A video. [dim]default: one is made, 320x180[/]")
    ] = None,
    *,
    options: JobOptions,
    frames: Annotated[int, typer.Option(min=2, help="Frames a stage is measured on.")] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each stage.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="Length of the clip that is made.")
    ] = 10.0,
    command: Annotated[
        bool, typer.Option("--command/--no-command", help="Measure the whole command too.")
    ] = True,
    networks: Annotated[
        bool, typer.Option("--networks/--no-networks", help="Measure every model and engine.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure what this machine can do, and say what would make it faster."""
    from srstream.cli.bench import as_text
    from srstream.cli.bench import bench as measure

    # A bar that moves would take part of what is measured.
    tell("measuring; this takes minutes (--no-networks leaves out the longest part)")
    report = measure(
        source,
        options.config(),
        num_frames=frames,
        repeats=repeats,
        seconds=seconds,
        with_command=command,
        with_networks=networks,
    )
    if as_json:
        show_json(json.dumps(report.as_json(), indent=2))
    else:
        show(*as_text(report).split("\n"))


service.add_to(app)

models_app = typer.Typer(
    help="The models that ship, and those of one's own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(models_app, name="models")

ModelName = Annotated[str, typer.Argument(help="Its name, as `srstream models list` has it.")]


@models_app.command("list")
def list_models(
    as_json: Json = False,
    of_service: service.OfService = False,
    address: service.Address = None,
    client_key: service.Key = None,
) -> None:
    """Every model that --model may name."""
    if of_service:
        service.list_models(address, client_key, as_json)
        return
    from srstream.cli.models import as_table, model_entries

    entries = model_entries()
    if as_json:
        show_json(json.dumps(entries, indent=2))
    else:
        show(*as_table(entries).split("\n"))


@models_app.command("show")
def show_model(name: ModelName, as_json: Json = False) -> None:
    """What is known of a model: its network, its recipe, its card."""
    from srstream.cli.models import describe, model_entry

    entry = model_entry(name)
    if as_json:
        show_json(json.dumps(entry, indent=2))
    else:
        show(*describe(entry).split("\n"))


@models_app.command("add")
def add_model(
    weights: Annotated[Path, typer.Argument(help="The .safetensors file of `srtrain finetune`.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it. [dim]default: the file's name[/]")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace one of this name.")] = False,
    of_service: service.OfService = False,
    address: service.Address = None,
    client_key: service.Key = None,
) -> None:
    """Make weights of one's own available as --model NAME."""
    if of_service:
        show(f"{service.add_model(weights, name, replace, address, client_key)}: registered")
        return
    from srstream.models import registry

    model = registry.add_model(weights, name, replace=replace)
    show(f"{model.name}: weights for {model.network}; use them with --model {model.name}")


models_app.command("use")(service.use_model)


@models_app.command("remove")
def remove_model(
    name: ModelName,
    of_service: service.OfService = False,
    address: service.Address = None,
    client_key: service.Key = None,
) -> None:
    """Forget a model of one's own and delete its files."""
    if of_service:
        show(f"{service.remove_model(name, address, client_key)}: removed")
        return
    from srstream.models import registry

    show(f"{registry.remove_model(name).name}: removed")


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="The daemon's srstream.toml.")
    ] = None,
) -> None:
    """Run the daemon: take jobs on ZeroMQ sockets until told to stop."""
    from srstream.daemon.supervisor import serve as run_daemon

    raise typer.Exit(run_daemon(config))


def _version(value: bool) -> None:
    if value:
        from srstream.installing import own_version

        show(own_version())
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every way out is an exit code and at most one sentence."""
    from srstream.cli.console import print_error

    try:
        _refuse_bare_file(sys.argv[1:])
        run_app(app)
    except (StalledError, InterruptedJobError) as error:
        print_error(str(error))
        sys.stdout.flush()
        # What hangs in a library, or computes for long, would keep Python from ending.
        os._exit(error.exit_code)
    except SrstreamError as error:
        if "--json" in sys.argv and "enhance" not in sys.argv[1:2]:
            # `enhance` has told it as an event.
            kind, text = error_to_wire(error)
            show_json(json.dumps({"error": {"kind": kind, "text": text}}))
        print_error(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print_error("interrupted.")
        sys.exit(InterruptedJobError.exit_code)
    except BrokenPipeError:
        # Whoever read our output is gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A name that is too long, a full /dev/full behind standard output, and the like.
        print_error(f"{error.filename or 'output'}: {error.strerror or error}.")
        sys.exit(2 if error.errno == errno.ENAMETOOLONG else 1)
    except Exception as error:
        print_error(_internal_error(error))
        sys.exit(1)


def _refuse_bare_file(arguments: list[str]) -> None:
    """Raise `UsageError` where a file stands in place of a command."""
    first = arguments[0] if arguments else ""
    if Path(first).suffix and Path(first).exists():
        raise UsageError(
            f"{first}: a command comes first, such as: srstream enhance {shlex.quote(first)}"
        )


def _internal_error(error: Exception) -> str:
    descriptor, name = tempfile.mkstemp(prefix="srstream-error-", suffix=".txt")
    with os.fdopen(descriptor, "w") as file:
        traceback.print_exception(error, file=file)
    return (
        f"an error inside srstream ({type(error).__name__}: {error}); nothing of yours was "
        f"touched. Please report it with {name}."
    )


if __name__ == "__main__":
    main()
