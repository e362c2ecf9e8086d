"""Training configs: the shipped ones are valid, and what a run cannot do is refused at once."""

import numpy as np
import pytest

from research.sparse import load_sparse_config
from srstream.errors import ConfigError, UsageError
from tests.support.paths import REPOSITORY
from tests.support.training import KNOB, TINY_RUN, config_of, generator_config
from trainer.config import NetworkSection, PixelSection, TrainConfig, load_config
from trainer.loop.train import rate_factor, resumed_config
from trainer.networks import spec_of
from trainer.run import start_run


def test_a_resumed_run_may_be_longer_and_keeps_its_length_by_default():
    begun = config_of(100)
    assert resumed_config(config_of(200), begun).pixel.iterations == 200
    unsaid = begun.model_copy(update={"pixel": begun.pixel.model_copy(update={"iterations": None})})
    assert resumed_config(unsaid, begun) == begun


def test_a_knob_without_damage_or_without_another_end_is_refused(tmp_path, pictures):
    with pytest.raises(ValueError, match="needs a"):
        TrainConfig(model="fast", pixel=PixelSection(iterations=1, sample_knob=True))
    path = tmp_path / "knob.toml"
    path.write_text(TINY_RUN.format(iterations=1).replace("[run]", KNOB + "[run]"))
    with pytest.raises(UsageError, match="use --base"):
        start_run(load_config(path), pictures, tmp_path / "run")


def test_a_generator_cannot_be_flat(tmp_path, pictures):
    config = generator_config(1)
    config = config.model_copy(update={"network": NetworkSection(num_blocks=1, flat=True)})
    with pytest.raises(ConfigError, match="has no anchor"):
        start_run(config, pictures, tmp_path / "run")


def test_without_a_length_no_run_starts(tmp_path, pictures):
    with pytest.raises(UsageError, match="--hours"):
        start_run(TrainConfig(model="fast", pixel=PixelSection()), pictures, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_rises_and_falls_once():
    stage = config_of(1).pixel
    rates = [stage.learning_rate * rate_factor(done, stage) for done in np.linspace(0, 1, 1001)]
    peak = int(np.argmax(rates))
    assert peak == pytest.approx(1000 * stage.warmup, abs=1)
    assert rates[peak] == pytest.approx(stage.learning_rate)
    assert rates[-1] == pytest.approx(stage.final_learning_rate)
    assert all(np.diff(rates[:peak]) > 0)
    assert all(np.diff(rates[peak:]) <= 0)


TRAINING_CONFIGS = sorted(
    path for path in (REPOSITORY / "configs").rglob("*.toml") if path.stem != "srstream"
)


@pytest.mark.parametrize("path", TRAINING_CONFIGS, ids=lambda path: path.stem)
def test_shipped_training_configs_are_valid(path):
    if path.stem == "sparse":
        load_sparse_config(path)
    else:
        spec_of(load_config(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 'fast'\nmodle = 1\n[pixel]", "modle: Extra inputs"),
        ("model = 'fast'\n[data]\npatch_size = 1", "data.patch_size: .*greater than or equal to 8"),
        ("model = 'fast'\n[pixel]\nhours = 1\niterations = 1", "hours or iterations, not both"),
        ("model = ", "not valid TOML"),
    ],
)
def test_a_wrong_config_is_refused_by_field(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
