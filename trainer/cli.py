"""`srtrain`: parses arguments, calls the trainer and prints results."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.logging import RichHandler
from rich.table import Table

from srstream.config import Precision
from srstream.errors import InterruptedJobError, SrstreamError, UsageError
from srstream.models.table import WeightSet
from srstream.terminal import plain_console, run_app, show, tell, visible
from trainer.config import load_config
from trainer.console import CONSOLE, reporting
from trainer.research import research_module

if TYPE_CHECKING:
    from trainer.judge.evaluate import Score
    from trainer.judge.perceptual import Judge

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
        typer.Option(min=1e-4, help="training time, split evenly among the config's stages"),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="safetensors weights of the same model to start from")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="folder of pictures to validate on, for example Set5")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="stop after so long, with a checkpoint; --resume continues"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue from the checkpoint in RUN-DIR")] = False,
) -> None:
    """Train a model; SIGTERM or Ctrl-C saves a checkpoint and stops, --resume continues."""
    until = None if minutes is None else time.monotonic() + 60 * minutes
    from trainer.memory import bound_memory
    from trainer.run import start_run

    loaded = load_config(config)
    if hours is not None:
        loaded = loaded.with_hours(hours)
    bound_memory()
    with reporting() as reporter:
        start_run(
            loaded,
            data,
            run_dir,
            base=base,
            validation_dir=validation,
            resume=resume,
            until=until,
            reporter=reporter,
        )


@app.command()
def coco(
    folder: Annotated[Path, typer.Argument(help="pictures, for example COCO's own folder")],
    run_dir: Annotated[Path, typer.Option(help="where the checkpoint and the log go")] = Path(
        "srgan_article"
    ),
    pictures: Annotated[
        int, typer.Option(min=0, help="how many of the folder's, evenly spaced; 0: all")
    ] = 800,
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=1024, help="crops of 384; 64 with a GPU, else 1")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="VGG-19's weights, if they are not found by themselves")
    ] = None,
    hours: Annotated[
        float | None, typer.Option(min=1e-4, help="length by the clock, not 3,000 iterations")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="folder of pictures to validate on, for example Set5")
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue from the checkpoint in RUN-DIR")] = False,
) -> None:
    """Train SRGAN in the Keras article's settings on a folder of pictures."""
    from trainer.coco import train_on_coco

    with reporting() as reporter:
        train_on_coco(
            folder,
            run_dir,
            num_pictures=pictures,
            batch_size=batch_size,
            features=features,
            hours=hours,
            validation_dir=validation,
            resume=resume,
            reporter=reporter,
        )


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="model names, run folders, .onnx, .safetensors, .npz, `bicubic`"),
    ],
    test_sets: Annotated[
        list[Path] | None,
        typer.Option("--test-set", help="folder of originals; may be given repeatedly"),
    ] = None,
    clips: Annotated[
        list[Path] | None,
        typer.Option("--clip", help="video that is its own original; may be given repeatedly"),
    ] = None,
    crf: Annotated[
        list[float] | None,
        typer.Option(min=0, max=51, help="x264's CRF for the clips; repeatable; none: not encoded"),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="frames of each clip")] = 24,
    restore: Annotated[
        str, typer.Option(help="0 to 1, or auto: what `srstream enhance` would choose for a clip")
    ] = "0",
    detail: Annotated[float, typer.Option(min=0, max=1, help="as in `srstream enhance`")] = 0.0,
    precision: Annotated[
        Precision, typer.Option(help="for models given by name, as in `srstream enhance`")
    ] = "float32",
    subsampled: Annotated[
        bool, typer.Option("--subsampled", help="pass pictures through 4:2:0, as video does")
    ] = False,
    judge: Annotated[bool, typer.Option(help="also measure the perceptual distance")] = True,
    lpips: Annotated[
        Path | None,
        typer.Option(help="measure LPIPS: torchvision's vgg16-397923af.pth; with --lpips-heads"),
    ] = None,
    lpips_heads: Annotated[
        Path | None, typer.Option(help="weights/v0.1/vgg.pth from PyPI's lpips")
    ] = None,
    save: Annotated[
        list[Path] | None, typer.Option(help="where to save the table: .md or .json; repeatable")
    ] = None,
) -> None:
    """Measure models, runs and baselines on test sets and compressed clips, next to bicubic."""
    from trainer.run import compare

    comparison = compare(
        models,
        test_sets or [],
        clips or [],
        tuple(crf or [None]),
        num_frames=frames,
        restore=_restore(restore),
        detail=detail,
        precision=precision,
        subsampled=subsampled,
        judge=_judge(lpips, lpips_heads) if judge else None,
    )
    show(*comparison.markdown().rstrip("\n").split("\n"))
    for path in save or []:
        comparison.save(path)


@app.command()
def calibrate(
    weights: Annotated[Path, typer.Argument(help="a .safetensors file with its .onnx beside it")],
    data: Annotated[Path, typer.Option(help="folder of pictures, ideally the training pictures")],
) -> None:
    """Measure the ranges that a network needs to run in int8 (`srstream enhance --precision`)."""
    from trainer.ship.calibrate import calibrate as write_ranges

    show(str(write_ranges(weights, data)))


@app.command()
def finetune(
    videos: Annotated[
        list[Path], typer.Option("--video", help="your own video; may be given repeatedly")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .safetensors file to write")],
    hours: Annotated[float, typer.Option(min=1e-4, help="maximum training time")],
    base: Annotated[
        str, typer.Option(help="a model's name, one of its sets (fast.restore), or .safetensors")
    ] = "fast",
    originals: Annotated[
        list[Path] | None,
        typer.Option("--hr", help="the videos at 4 times the size, in the same order, if any"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the patches and the degradation")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="threads PyTorch computes with")] = 2,
    resume: Annotated[bool, typer.Option(help="continue the run next to the output")] = False,
) -> None:
    """Fine-tune a model on your own video, and verify it on held-out scenes.

    Exits with code 1, and writes no weights, if the model did not improve.
    """
    from trainer.finetune import FineTuning
    from trainer.finetune import finetune as run_finetune
    from trainer.memory import bound_memory, memory_in_words

    task = FineTuning(
        tuple(videos), base, output, hours, tuple(originals or ()), seed, threads, resume
    )
    bound_memory()
    with reporting() as reporter, memory_in_words("Close other programs, or give shorter videos"):
        outcome = run_finetune(task, reporter)
    show(
        f"{outcome.weights}: {outcome.gain_db:+.2f} dB over {base} on held-out frames (noise: "
        f"±{outcome.psnr.noise:.2f} dB); the report "
        f"is {outcome.report}. Use it: srstream models add {outcome.weights}"
    )


@app.command()
def sparse(
    config: Annotated[Path, typer.Argument(help="TOML file, such as configs/sparse.toml")],
    data: Annotated[Path, typer.Option(help="folder of pictures to learn from")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .npz file to write")],
) -> None:
    """Learn the dictionaries of the sparse-coding baseline."""
    research = research_module("sparse", "sparse coding")
    dictionaries = research.learn_dictionaries(research.load_sparse_config(config), data)
    research.save_dictionaries(dictionaries, output)
    show(f"{output}: {dictionaries.recipe}")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="the training run's folder")],
    data: Annotated[Path, typer.Option(help="folder of pictures that the run was trained on")],
    output: Annotated[Path, typer.Option(help="where the weights and the model card go")],
    test_sets: TestSets,
    weight_set: Annotated[
        WeightSet, typer.Option("--set", help="which of the model's sets of weights these are")
    ] = "faithful",
    clips: Annotated[
        list[Path] | None,
        typer.Option("--clip", help="video to measure on at four CRFs; may be given repeatedly"),
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(help="safetensors weights to mix in; with --mix-share")
    ] = None,
    mix_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="their share of the result")
    ] = None,
    note: Annotated[str, typer.Option(help="a paragraph for the card")] = "",
) -> None:
    """Write a run's averaged weights as ONNX and safetensors, with a measured model card."""
    from trainer.ship.export import export as export_run

    if (mix is None) != (mix_share is None):
        raise UsageError("--mix and --mix-share go together: which weights, and how much of them")
    scores = export_run(
        run_dir,
        data,
        test_sets,
        output,
        weight_set,
        clips=clips or [],
        mix=mix,
        mix_share=mix_share or 0.0,
        note=note,
    )
    print_scores(run_dir.name, scores)


def _restore(value: str) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise UsageError(f"--restore {value}: takes 0 to 1, or auto")
    return number


def _judge(lpips: Path | None, heads: Path | None) -> Judge:
    from trainer.judge.perceptual import Lpips, PerceptualDistance

    if lpips is None and heads is None:
        return PerceptualDistance()
    if lpips is None or heads is None:
        raise UsageError("LPIPS needs both of its files: --lpips and --lpips-heads")
    return Lpips(lpips, heads)


def print_scores(title: str, scores: dict[str, tuple[Score, Score]]) -> None:
    from trainer.ship.card import figures

    table = Table("set", "pictures", "PSNR (dB)", "SSIM", "bicubic PSNR", "bicubic SSIM")
    for name, (reached, baseline) in scores.items():
        table.add_row(name, *figures(reached, baseline))
    console = plain_console(width=100)
    console.print(f"{title}, on luma")
    console.print(table)


def _spell_out(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), ()
    return True


def main() -> None:
    """Run the console script."""
    handler = RichHandler(console=CONSOLE, show_time=False, show_path=False)
    handler.addFilter(_spell_out)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        run_app(app)
    except SrstreamError as error:
        tell(f"srtrain: {error}")
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        tell("srtrain: interrupted; a training goes on with the same command and --resume")
        raise SystemExit(InterruptedJobError.exit_code) from None


if __name__ == "__main__":
    main()
