"""The model card, and the listing of the pictures that weights were trained on."""

import hashlib
from collections import Counter
from pathlib import Path

from srstream.errors import UsageError
from srstream.models.checkpoint import Weights
from srstream.models.table import ModelSpec, Stack, WeightSet, weights_stem
from trainer.config import TrainConfig
from trainer.judge.evaluate import Score

LICENCES_NAME = "LICENSES.md"


def picture_listing(data_dir: Path, pictures: list[str]) -> str:
    """Return the SHA-256 and path of every picture in the format of `sha256sum`."""
    lines = []
    for name in sources(pictures):
        path = data_dir / name
        if not path.is_file():
            raise UsageError(f"{path}: the run was trained on it, but it isn't there; check --data")
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n")
    return "".join(lines)


def data_groups(data_dir: Path, pictures: list[str]) -> list[tuple[str, int, str, str]]:
    """Return (group, number of pictures, source, license) for each first-level folder trained on.

    Source and license come from the table in the data folder's `LICENSES.md`, if it has one with
    the columns group, source and license.
    """
    stated = {}
    licences_path = data_dir / LICENCES_NAME
    text = licences_path.read_text() if licences_path.is_file() else ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) >= 3:
            stated[cells[0]] = (cells[1], cells[2])
    counts = Counter(name.split("/")[0] if "/" in name else "." for name in pictures)
    return [
        (group, count, *stated.get(group, ("not stated", "not stated")))
        for group, count in sorted(counts.items())
    ]


def model_card(
    weights: Weights,
    weight_set: WeightSet,
    config: TrainConfig,
    data_dir: Path,
    pictures: list[str],
    scores: dict[str, tuple[Score, Score]],
    hashes: dict[str, str],
    note: str = "",
) -> str:
    """Return Markdown: what the weights are, how they were made, from what, and their scores."""
    stem = weights_stem(weights.spec.name, weight_set)
    groups = [
        [group, str(count), source, licence]
        for group, count, source, licence in data_groups(data_dir, sources(pictures))
    ]
    head = ["set", "pictures", "PSNR (dB)", "SSIM", "bicubic PSNR (dB)", "bicubic SSIM"]
    has_chroma = weights.spec.color_form != "luma"
    if has_chroma:
        head += ["chroma PSNR (dB)", "bicubic chroma PSNR (dB)"]
    rows = [
        [name, *figures(*pair), *(chroma_figures(*pair) if has_chroma else [])]
        for name, pair in scores.items()
    ]
    paragraphs = [
        f"# {stem}",
        _WHAT_FOR[weight_set],
        _what_it_is(weights.spec),
        "## Recipe",
        _how_it_was_made(weights, config),
        "## Quality",
        _how_it_was_measured(weights.spec),
        _table(head, rows),
        *(["## Note", note] if note else []),
        "## Training pictures",
        f"{len(sources(pictures))} pictures, each with its hash in `{stem}.pictures.txt`.",
        _table(["group", "pictures", "source", "licence"], groups),
        "## Files",
        _table(["file", "SHA-256"], [[file, f"`{digest}`"] for file, digest in hashes.items()]),
    ]
    return "\n\n".join(paragraphs) + "\n"


_WHAT_FOR: dict[WeightSet, str] = {
    "faithful": "Faithful weights: fitted to the originals of clean low-resolution pictures.",
    "restore": "Restore weights, one end of `--restore`: fitted to the originals of low-resolution "
    "video that codecs have damaged, starting from the faithful weights.",
    "crisp": "Crisp weights, one end of `--detail`: trained against a discriminator, starting from "
    "the faithful weights.",
}


def _what_it_is(spec: ModelSpec) -> str:
    planes = {
        "luma": "luma",
        "yuv420": "native 4:2:0 (Y, and U and V upsampled to its grid, in; Y at 4x and U and V at "
        "half of that out)",
        "rgb": "RGB",
    }[spec.color_form]
    size = (
        f"{spec.kmac_per_pixel:.1f} kMAC per input pixel, receptive-field radius {spec.halo} pixels"
    )
    network = spec.network
    if isinstance(network, Stack):
        return (
            f"{spec.scale}x on {planes}: {len(network.widths) + 1} convolutions 3x3 of "
            f"{max(network.widths)} channels with PReLU, nearest-neighbor anchor, PixelShuffle; "
            f"{size}. Trained as edge-oriented re-parameterized blocks (ECBSR, Zhang et al., ACM "
            "MM 2021) and folded. Input and output are code values / 255 in the video's own range."
        )
    given = "[-1, 1]" if network.signed_input else "[0, 1]"
    return (
        f"{spec.scale}x on {planes}: the SRGAN generator (Ledig et al., CVPR 2017) of "
        f"{network.num_blocks} residual blocks and {network.channels} channels, its BN folded; "
        f"{size}. The network is given {given}, its tanh is mapped to [0, 1]; stored as float16."
    )


def _how_it_was_made(weights: Weights, config: TrainConfig) -> str:
    recipe = weights.recipe[0].upper() + weights.recipe[1:]
    return (
        f"{recipe}; on {config.run.num_threads} CPU threads. Clean low resolution is the "
        "original's antialiased bicubic "
        f"(MATLAB's `imresize`) at 1/{weights.spec.scale}, in RGB, rounded to 8 bits; luma is "
        "BT.601, limited range."
    )


def _how_it_was_measured(spec: ModelSpec) -> str:
    return (
        "PSNR and SSIM on luma, output rounded to 8 bits, the ONNX file in OpenVINO at float32, "
        f"{spec.scale} pixels shaved off each side. No picture of these sets was trained on, and "
        "none decided when to stop. A clip is its own original: its frames at a quarter of the "
        "size, encoded by x264 `medium` at the CRF named and decoded."
    )


def figures(reached: Score, baseline: Score) -> list[str]:
    """Return a table row: number of pictures, PSNR and SSIM, and those of bicubic."""
    both = [cell for s in (reached, baseline) for cell in (f"{s.psnr_db:.2f}", f"{s.ssim:.4f}")]
    return [str(reached.num_pictures), *both]


def chroma_figures(reached: Score, baseline: Score) -> list[str]:
    """Return the mean PSNR of U and V, and bicubic's."""
    return [f"{reached.chroma_psnr_db:.2f}", f"{baseline.chroma_psnr_db:.2f}"]


def sources(pictures: list[str]) -> list[str]:
    """Return the files behind the names of pairs; an `@` separates pairs of the same file."""
    return sorted({name.split("@")[0] for name in pictures})


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
