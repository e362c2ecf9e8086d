"""The table of models, as data. It imports neither PyTorch nor an engine."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from srstream.errors import UsageError, WeightsError

WEIGHTS_DIR = Path(__file__).parent / "weights"

ColorFormName = Literal["luma", "yuv420", "rgb"]

WeightSet = Literal["faithful", "restore", "crisp"]
"""The sets of a model's weights. They are trained with a pixel loss on clean low resolution, with a
pixel loss on compressed low resolution, and adversarially. All have the same shapes, and the
second and third are tuned from the first, so that blends of them work too."""


@dataclass(frozen=True)
class PlaneGroup:
    """Planes that a network outputs at one size."""

    num_planes: int
    scale: int
    """Output samples per input sample, along each axis."""

    @property
    def num_channels(self) -> int:
        """Return the number of channels before the group's PixelShuffle."""
        return self.num_planes * self.scale**2


@dataclass(frozen=True)
class ColorForm:
    """The input and output planes of a network, in order."""

    num_input_planes: int
    """All have the size of the luma plane; chroma is resampled to it."""
    outputs: tuple[PlaneGroup, ...]

    @property
    def anchor_planes(self) -> list[int]:
        """Return the input plane that each channel before the PixelShuffle refines."""
        planes, first = [], 0
        for group in self.outputs:
            for plane in range(first, first + group.num_planes):
                planes += [plane] * group.scale**2
            first += group.num_planes
        return planes


COLOR_FORMS: dict[ColorFormName, ColorForm] = {
    "luma": ColorForm(1, (PlaneGroup(1, 4),)),
    # U and V come out at half of Y's size, as in 4:2:0, sited in the middle of four luma samples:
    # the only siting that flips and rotations preserve.
    "yuv420": ColorForm(3, (PlaneGroup(1, 4), PlaneGroup(2, 2))),
    "rgb": ColorForm(3, (PlaneGroup(3, 4),)),
}


@dataclass(frozen=True)
class Stack:
    """Plain 3x3 convolutions with PReLU between them, a nearest-neighbor anchor, a PixelShuffle."""

    widths: tuple[int, ...]
    """Channels of the hidden layers. There is one more convolution than layers."""

    @property
    def halo(self) -> int:
        return len(self.widths) + 1

    @property
    def activation_channels(self) -> int:
        """Return the channels of the largest feature map, relative to the input's size."""
        return max(self.widths)

    def layer_channels(self, form: ColorForm) -> list[tuple[int, int]]:
        """Return the channels (in, out) of every 3x3 convolution, in order."""
        num_out = sum(group.num_channels for group in form.outputs)
        widths = (form.num_input_planes, *self.widths, num_out)
        return list(pairwise(widths))

    def macs_per_pixel(self, form: ColorForm) -> int:
        return sum(9 * num_in * num_out for num_in, num_out in self.layer_channels(form))


@dataclass(frozen=True)
class ResidualGenerator:
    """The generator of SRGAN (Ledig et al., CVPR 2017, figure 4), 4x by two PixelShuffle(2)."""

    channels: int
    num_blocks: int
    signed_input: bool = True
    """Whether the input is in [-1, 1], as in the Keras article, or in [0, 1] as in the paper."""

    @property
    def halo(self) -> int:
        """Return 4 for the 9x9 input, 2 per block, 2 for two more 3x3, 0.5 + 1 for upsampling."""
        return 4 + 2 * self.num_blocks + 2 + 2

    @property
    def activation_channels(self) -> int:
        """Return channels before the second PixelShuffle: four times as many, twice the size."""
        return 16 * self.channels

    def macs_per_pixel(self, form: ColorForm) -> int:
        """Return multiply-accumulates in the paper's order: the last 9x9 sees 16x the pixels."""
        wide = self.channels**2
        ends = 81 * self.channels * form.num_input_planes * (1 + 16)
        return ends + 9 * wide * (2 * self.num_blocks + 1 + 4 + 4 * 4)


@dataclass(frozen=True)
class ModelSpec:
    """The properties of a network that engines, tiles and the trainer need before they load it."""

    name: str
    color_form: ColorFormName
    """`luma`: the network enlarges luma alone. `yuv420`: it takes Y, U, V and returns Y at 4x and
    U, V at 2x. `rgb`: it takes and returns R, G, B in full range."""
    network: Stack | ResidualGenerator
    scale: int = 4
    """Output luma samples (or pixels) per input one, along each axis."""

    @property
    def form(self) -> ColorForm:
        return COLOR_FORMS[self.color_form]

    @property
    def halo(self) -> int:
        """Radius of the receptive field in input pixels; an output depends on nothing beyond it."""
        return self.network.halo

    @property
    def kmac_per_pixel(self) -> float:
        """Thousands of multiply-accumulates per input pixel."""
        return self.network.macs_per_pixel(self.form) / 1000


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in [
        ModelSpec("fast", "luma", Stack((16,) * 7)),
        ModelSpec("balanced", "yuv420", Stack((40,) * 7)),
        ModelSpec("srgan", "rgb", ResidualGenerator(channels=64, num_blocks=16)),
    ]
}


def model_spec(name: str) -> ModelSpec:
    """Return the table's entry, or raise `UsageError` with the names of all models."""
    if name not in MODELS:
        raise UsageError(f"no model is called {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def weights_stem(name: str, weight_set: WeightSet = "faithful") -> str:
    """Return the name of a set's files without their suffix."""
    return name if weight_set == "faithful" else f"{name}.{weight_set}"


def available_models() -> list[str]:
    """Return the names of the models whose ONNX weights are installed, in the table's order."""
    return [name for name in MODELS if (WEIGHTS_DIR / f"{name}.onnx").is_file()]


def available_sets(name: str) -> list[WeightSet]:
    """Return the sets of a model's weights that are installed."""
    sets: tuple[WeightSet, ...] = get_args(WeightSet)
    return [s for s in sets if (WEIGHTS_DIR / f"{weights_stem(name, s)}.onnx").is_file()]


def weights_path(name: str, suffix: str = ".onnx", weight_set: WeightSet = "faithful") -> Path:
    """Return the path of a shipped weight file (`.onnx` or `.safetensors`).

    Raises:
        WeightsError: it is not installed.
    """
    path = WEIGHTS_DIR / f"{weights_stem(name, weight_set)}{suffix}"
    if name in MODELS and path.is_file():
        return path
    if name in available_models():
        sets = ", ".join(available_sets(name))
        raise WeightsError(
            f"no {weight_set} weights ({suffix}) are installed for model {name!r}, only: {sets}"
        )
    available = ", ".join(available_models()) or "none"
    raise WeightsError(
        f"no {suffix} weights are installed for model {name!r}; models with weights: {available}"
    )
