"""`srtrain`: parse, call, print."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from srstream.errors import SrstreamError
from srstream.models.table import WeightSet
from trainer.card import figures
from trainer.config import load_config
from trainer.evaluate import Score

app = typer.Typer(
    help="Trains, evaluates and exports srstream's networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

TestSets = Annotated[
    list[Path], typer.Option("--test-set", help="folder of originals; may be given repeatedly")
]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file that describes the run")],
    data: Annotated[Path, typer.Option(help="folder of pictures to train on")],
    run_dir: Annotated[Path, typer.Option(help="where the checkpoint and the log go")],
    hours: Annotated[
        float | None,
        typer.Option(min=1e-4, help="length by the clock, shared evenly by the config's stages"),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="safetensors weights to go on from, of the same model")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="folder of pictures to validate on, for example Set5")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in RUN-DIR")] = False,
) -> None:
    """Train a model; SIGTERM or Ctrl-C stops it with a checkpoint, --resume goes on."""
    from trainer.run import start_run

    loaded = load_config(config)
    if hours is not None:
        loaded = loaded.with_hours(hours)
    start_run(loaded, data, run_dir, base=base, validation_dir=validation, resume=resume)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a model's name, an ONNX file or a run's folder")],
    test_sets: TestSets,
) -> None:
    """Measure shipped or exported weights on test sets, beside bicubic."""
    from trainer.run import measure

    print_scores(Path(model).stem, measure(model, test_sets))


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="the training run's folder")],
    data: Annotated[Path, typer.Option(help="folder of pictures that the run was trained on")],
    output: Annotated[Path, typer.Option(help="where the weights and the model card go")],
    test_sets: TestSets,
    weight_set: Annotated[
        WeightSet, typer.Option("--set", help="which of the model's sets of weights these are")
    ] = "faithful",
) -> None:
    """Write a run's averaged weights as ONNX and safetensors, with a measured model card."""
    from trainer.export import export as export_run

    print_scores(run_dir.name, export_run(run_dir, data, test_sets, output, weight_set))


def print_scores(title: str, scores: dict[str, tuple[Score, Score]]) -> None:
    table = Table("set", "pictures", "PSNR (dB)", "SSIM", "bicubic PSNR", "bicubic SSIM")
    for name, (reached, baseline) in scores.items():
        table.add_row(name, *figures(reached, baseline))
    Console().print(f"{title}, on luma", table)


def main() -> None:
    """The console script."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler()])
    try:
        app()
    except SrstreamError as error:
        typer.echo(f"srtrain: {error}", err=True)
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
