"""`srtrain coco`: SRGAN in the Keras article's settings on a folder of pictures, as one command.

What the machine cannot do as the article has it is changed, and said.
"""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config import (
    AdversarialSection,
    DataSection,
    NetworkSection,
    RunSection,
    TrainConfig,
)
from trainer.console import Reporter
from trainer.judge.features import PUBLISHED
from trainer.memory import bound_memory
from trainer.run import start_run
from trainer.state import CHECKPOINT_NAME, Progress, load_state

VGG_FILE = Path(PUBLISHED["vgg19"]).name

COCO_PART = "train2017"
"""In COCO's own folder: the pictures to train on, beside those to validate and test on."""

BATCH_ON_A_CPU = 1
"""Crops of 384 per iteration; 64 of them take more memory than a computer without a GPU has."""

ARTICLE = TrainConfig(
    model="srgan",
    seed=1,
    network=NetworkSection(signed_input=True),
    data=DataSection(patch_size=96, batch_size=64, num_pictures=800),
    adversarial=AdversarialSection(
        iterations=3000,
        final_learning_rate=1e-4,
        warmup=0,
        clip_norm=0,
        discriminator_crop=384,
        perceptual="vgg19",
        perceptual_layers=("conv5_4",),
        perceptual_weights=Path(VGG_FILE),
        ema=0.0,
    ),
    run=RunSection(precision="16-mixed", memory_mib=512),
)
"""The same as configs/srgan_article.toml, which says more of it."""


def train_on_coco(
    folder: Path,
    run_dir: Path,
    *,
    num_pictures: int,
    batch_size: int | None,
    features: Path | None,
    hours: float | None,
    validation_dir: Path | None,
    resume: bool,
    reporter: Reporter,
) -> Progress:
    """Begin the article's run, or go on with the one in `run_dir`; see `trainer.run.start_run`.

    Args:
        num_pictures: so many of the folder's, evenly spaced by name; 0: all of them.
        batch_size: None: the article's with a GPU, else what fits into 4 GB.
        features: VGG-19's weights; None: they are looked for.
    """
    data_dir = folder / COCO_PART if (folder / COCO_PART).is_dir() else folder
    checkpoint = run_dir / CHECKPOINT_NAME
    if resume and checkpoint.exists():
        config = TrainConfig.model_validate(load_state(checkpoint)[1]["config"])
    else:
        config, notes = fitted(
            has_gpu=torch.cuda.is_available(),
            batch_size=batch_size,
            features=features or find_vgg(data_dir),
            num_pictures=num_pictures,
        )
        for note in notes:
            reporter.say(f"note: {note}")
    if hours is not None:
        config = config.with_hours(hours)
    bound_memory()
    return start_run(
        config, data_dir, run_dir, validation_dir=validation_dir, resume=resume, reporter=reporter
    )


def fitted(
    *, has_gpu: bool, batch_size: int | None, features: Path | None, num_pictures: int
) -> tuple[TrainConfig, list[str]]:
    """The article's config as far as the machine goes, and a sentence for each thing changed."""
    notes = []
    data = ARTICLE.data.model_copy(update={"num_pictures": num_pictures or None})
    stage, run = ARTICLE.adversarial, ARTICLE.run
    assert stage is not None
    if batch_size is not None:
        data = data.model_copy(update={"batch_size": batch_size})
    if not has_gpu:
        if batch_size is None:
            data = data.model_copy(update={"batch_size": BATCH_ON_A_CPU})
        run = run.model_copy(update={"precision": "auto"})
        stage = stage.model_copy(update={"discriminator_crop": None})
        notes.append(
            f"there is no GPU here, so each iteration sees {data.batch_size} of the article's "
            f"{ARTICLE.data.batch_size} crops of 384 pixels (--batch-size), and the discriminator "
            "averages its features before its dense layer, which alone would take 5 GB"
        )
    if features is not None:
        stage = stage.model_copy(update={"perceptual_weights": features})
    else:
        changes = {"perceptual": "efficientnet_lite2", "perceptual_form": "unit"}
        stage = stage.model_copy(update={**changes, "perceptual_weights": None})
        notes.append(
            f"{VGG_FILE} is not here, so the content loss compares the features of EfficientNet-"
            f"lite2, which is installed; for the article's own download {PUBLISHED['vgg19']} and "
            "give --features"
        )
    config = ARTICLE.model_copy(update={"data": data, "adversarial": stage, "run": run})
    return config, notes


def find_vgg(data_dir: Path) -> Path | None:
    """VGG-19's weights: here, beside the pictures, or where PyTorch keeps what it downloads."""
    places = [Path(), data_dir, data_dir.parent, Path(torch.hub.get_dir()) / "checkpoints"]
    return next((place / VGG_FILE for place in places if (place / VGG_FILE).is_file()), None)
