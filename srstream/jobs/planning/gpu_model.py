"""A paper model of a GPU: frames per second from published figures, and what limits them.

Nothing here was measured on the devices. The assumptions are somewhat optimistic:

- compute: convolutions of so few channels reach `COMPUTE_EFFICIENCY` of the dense FP16 peak;
- memory: every layer's feature map is written and read once in FP16 (no fusion across
  convolutions), and `PASSES` times each sample of the output in float32 by the work around the
  network, at `MEMORY_EFFICIENCY` of the published bandwidth;
- kernels: each starts `START_SECONDS` after the one before it, in a CUDA graph;
- bus: the planes are uploaded and downloaded at `BUS_EFFICIENCY` of the link's rate, both at once;
- copies: one thread of this machine copies the planes in and out, at the speed measured on it;
- encoder: a device without NVENC leaves encoding to the CPU, at the speed measured on this machine;
  what NVENC itself can do is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from srstream.errors import UsageError
from srstream.models.table import ColorFormName, ModelSpec, Stack

COMPUTE_EFFICIENCY = 0.3
MEMORY_EFFICIENCY = 0.7
BUS_EFFICIENCY = 0.8
START_SECONDS = 1.5e-6
PASSES = 8
KERNELS_AROUND: dict[ColorFormName, int] = {"luma": 19, "yuv420": 52, "rgb": 54}
"""Operations of a whole 4:2:0 frame around the network, each of which is a kernel."""


@dataclass(frozen=True)
class DeviceSpec:
    """Published figures of a GPU."""

    name: str
    fp16_tflops: float
    """Dense, tensor cores, FP32 accumulation."""
    memory_gbps: float
    """Gigabytes per second."""
    bus_gbps: float
    """Gigabytes per second in each direction."""
    has_nvenc: bool
    source: str


DEVICES: dict[str, DeviceSpec] = {
    "h100": DeviceSpec(
        "H100 SXM", 989.4, 3350.0, 64.0, False, "NVIDIA H100 datasheet, 2023; it has no NVENC"
    ),
    "h200": DeviceSpec(
        "H200 SXM", 989.4, 4800.0, 64.0, False, "NVIDIA H200 datasheet, 2023; it has no NVENC"
    ),
    "a100": DeviceSpec(
        "A100 SXM 80 GB", 312.0, 2039.0, 32.0, False, "NVIDIA A100 datasheet, 2021; it has no NVENC"
    ),
    "l4": DeviceSpec("L4", 121.0, 300.0, 32.0, True, "NVIDIA L4 datasheet, 2023"),
    "t4": DeviceSpec("T4", 65.0, 320.0, 16.0, True, "NVIDIA T4 datasheet, 2018"),
    "rtx4090": DeviceSpec(
        "GeForce RTX 4090", 165.2, 1008.0, 32.0, True, "NVIDIA Ada whitepaper, 2022"
    ),
}


@dataclass(frozen=True)
class Prediction:
    """Frames per second that each part alone would allow."""

    device: str
    limits: dict[str, float]
    source: str

    @property
    def bottleneck(self) -> str:
        return min(self.limits, key=lambda name: self.limits[name])

    @property
    def fps(self) -> float:
        return self.limits[self.bottleneck]

    def sentence(self) -> str:
        """Return the prediction as a sentence that names the limits, the tightest first."""
        ordered = sorted(self.limits.items(), key=lambda item: item[1])
        parts = ", ".join(f"{name} {fps:,.0f}" for name, fps in ordered)
        return (
            f"{self.device}, on paper: about {self.fps:,.0f} frames per second, limited by "
            f"{self.bottleneck} ({parts}). Nothing of it was measured on such a device; figures: "
            f"{self.source}."
        )


def device_spec(name: str) -> DeviceSpec:
    """Return the entry of that name, or raise `UsageError` that lists all names."""
    if name not in DEVICES:
        raise UsageError(f"--device {name}: not known; there are: {', '.join(DEVICES)}.")
    return DEVICES[name]


def predict(
    device: DeviceSpec,
    model: ModelSpec,
    size: tuple[int, int],
    output_size: tuple[int, int],
    cpu_encode_fps: float,
    cpu_copy_gbps: float,
) -> Prediction:
    """Predict the speed for 8-bit 4:2:0 frames; sizes are (width, height).

    Args:
        cpu_encode_fps: the speed of this machine's encoder alone; a limit without NVENC.
        cpu_copy_gbps: gigabytes per second that one of its threads copies.
    """
    pixels, pixels_out = size[0] * size[1], output_size[0] * output_size[1]
    operations = 2e3 * model.kmac_per_pixel * pixels
    peak = device.fp16_tflops * 1e12 * COMPUTE_EFFICIENCY
    traffic = 4.0 * activation_samples(model) * pixels  # FP16, written and read
    traffic += 8.0 * PASSES * 1.5 * pixels_out
    bandwidth = device.memory_gbps * 1e9 * MEMORY_EFFICIENCY
    bus = device.bus_gbps * 1e9 * BUS_EFFICIENCY
    kernels = num_layers(model) + KERNELS_AROUND[model.color_form]
    limits = {
        "compute": peak / operations,
        "memory bandwidth": bandwidth / traffic,
        "starting kernels": 1.0 / (kernels * START_SECONDS),
        "the bus": bus / (1.5 * max(pixels, pixels_out)),
        "copies on this CPU": cpu_copy_gbps * 1e9 / (1.5 * (pixels + pixels_out)),
    }
    if not device.has_nvenc:
        limits["encoding on this CPU"] = cpu_encode_fps
    return Prediction(device.name, limits, device.source)


def num_layers(model: ModelSpec) -> int:
    """Return the kernels of the network per frame: convolutions, with what follows each fused."""
    network = model.network
    if isinstance(network, Stack):
        return len(network.widths) + 1
    return 2 * network.num_blocks + 5


def activation_samples(model: ModelSpec) -> int:
    """Return the samples of all feature maps per input pixel."""
    network = model.network
    if isinstance(network, Stack):
        return sum(network.widths) + sum(group.num_channels for group in model.form.outputs)
    # Body at the input's size, then 4 x 4 and 16 x 4 times its channels, and the picture.
    wide = network.channels
    return wide * (2 * network.num_blocks + 2) + 4 * wide + 16 * wide + 16 * 3
