"""`srtrain`: parse, call, print."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from srstream.errors import SrstreamError, UsageError
from srstream.models.table import weights_path
from trainer.card import figures
from trainer.config import load_config
from trainer.evaluate import Score, bicubic_upscaler, load_test_set, score

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
        float | None, typer.Option(min=1e-4, help="length by the clock; overrides the config")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="folder of pictures to validate on, for example Set5")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the checkpoint in RUN-DIR")] = False,
) -> None:
    """Train a model; SIGTERM or Ctrl-C stops it with a checkpoint, --resume goes on."""
    from trainer.train import train as run_training

    loaded = load_config(config)
    if hours is not None:
        length = {"hours": hours, "iterations": None}
        loaded = loaded.model_copy(update={"pixel": loaded.pixel.model_copy(update=length)})
    run_training(loaded, data, run_dir, validation_dir=validation, resume=resume)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="a model's name, or an ONNX file")],
    test_sets: TestSets,
) -> None:
    """Measure shipped or exported weights on test sets, beside bicubic."""
    from srstream.models.onnx_graph import onnx_metadata
    from trainer.export import openvino_upscaler

    path = Path(model) if model.endswith(".onnx") else weights_path(model)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    content = path.read_bytes()
    scale = int(onnx_metadata(content, str(path))["scale"])
    upscale = openvino_upscaler(content)
    scores = {}
    for folder in test_sets:
        pictures = load_test_set(folder, scale)
        baseline = score(bicubic_upscaler(scale), pictures, scale)
        scores[folder.name] = (score(upscale, pictures, scale), baseline)
    print_scores(path.stem, scores)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="the training run's folder")],
    data: Annotated[Path, typer.Option(help="folder of pictures that the run was trained on")],
    output: Annotated[Path, typer.Option(help="where the weights and the model card go")],
    test_sets: TestSets,
) -> None:
    """Write a run's averaged weights as ONNX and safetensors, with a measured model card."""
    from trainer.export import export as export_run

    print_scores(run_dir.name, export_run(run_dir, data, test_sets, output))


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
