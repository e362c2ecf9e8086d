"""The models srstream knows, as data. Imports neither PyTorch nor an engine."""

from dataclasses import dataclass
from pathlib import Path

from srstream.errors import UsageError, WeightsError

WEIGHTS_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelSpec:
    """What an engine, a tiler and a trainer must know of a network before they load it."""

    name: str
    scale: int
    """Output pixels per input pixel, along each axis."""
    colour: str
    """`luma`: one plane in, one plane out; chroma is not the network's business."""
    channels: int
    """Width of the hidden layers."""
    layers: int
    """Number of 3x3 convolutions, first and last included."""
    halo: int
    """Receptive-field radius in input pixels: an output pixel depends on nothing farther away."""
    kmac_per_pixel: float
    """Thousands of multiply-accumulates per input pixel."""

    @property
    def num_input_planes(self) -> int:
        return 1

    @property
    def num_output_channels(self) -> int:
        """Channels before the PixelShuffle."""
        return self.num_input_planes * self.scale**2

    def layer_channels(self) -> list[tuple[int, int]]:
        """(in, out) of every 3x3 convolution, in order."""
        widths = [self.num_input_planes, *[self.channels] * (self.layers - 1)]
        return list(zip(widths, [*widths[1:], self.num_output_channels], strict=True))


def plain_convolutions(
    name: str, *, channels: int, layers: int, scale: int = 4, colour: str = "luma"
) -> ModelSpec:
    """A stack of 3x3 convolutions; halo and cost follow from its width and depth."""
    unmeasured = ModelSpec(name, scale, colour, channels, layers, halo=layers, kmac_per_pixel=0.0)
    num_macs = sum(9 * num_in * num_out for num_in, num_out in unmeasured.layer_channels())
    return ModelSpec(name, scale, colour, channels, layers, layers, num_macs / 1000)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in [
        plain_convolutions("fast", channels=16, layers=8),
    ]
}


def model_spec(name: str) -> ModelSpec:
    """The table's entry, or `UsageError` naming the models there are."""
    if name not in MODELS:
        raise UsageError(f"no model is called {name!r}; there are: {', '.join(MODELS)}")
    return MODELS[name]


def available_models() -> list[str]:
    """Names of the models whose ONNX weights are installed, in the table's order."""
    return [name for name in MODELS if (WEIGHTS_DIR / f"{name}.onnx").is_file()]


def weights_path(name: str, suffix: str = ".onnx") -> Path:
    """The shipped weight file of a model (`.onnx` or `.safetensors`), or `WeightsError`."""
    path = WEIGHTS_DIR / f"{name}{suffix}"
    if name in MODELS and path.is_file():
        return path
    available = ", ".join(available_models()) or "none"
    raise WeightsError(
        f"no {suffix} weights are installed for model {name!r}; models with weights: {available}"
    )
