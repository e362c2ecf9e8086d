"""Compares methods on test sets and on compressed clips, next to published figures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from srstream.quality import luma_bt601, static_flicker, warping_error
from trainer.console import Reporter, Task
from trainer.judge.evaluate import TestPicture, Upscaler, as_codes, score_picture
from trainer.judge.perceptual import Judge, PerceptualDistance, color_shift, grid_energy

Figures = tuple[float, float, float]
"""Of a picture: PSNR and SSIM on luma, PSNR on chroma."""


@dataclass(frozen=True)
class Method:
    """An upscaling method and its cost."""

    name: str
    upscale: Upscaler
    num_parameters: int | None = None
    kmac_per_pixel: float | None = None
    """Thousands of multiply-accumulates per low-resolution pixel."""
    how: str = ""
    """How its weights were made."""


@dataclass(frozen=True)
class Row:
    """A method's results on a set or a clip: means over pictures."""

    method: str
    material: str
    num_pictures: int
    psnr_db: float
    """PSNR on luma, with the output rounded to 8 bits; SSIM likewise."""
    ssim: float
    chroma_psnr_db: float
    distance: float | None
    """The judge's distance; None without a judge."""
    colour_shift: float
    """The largest over the pictures, in levels."""
    grid: float
    seconds_per_mpixel: float
    """Seconds per megapixel of output on this machine, one picture at a time."""
    flicker: float | None = None
    """The warping error; only for clips."""
    warping_error: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The whole table."""

    methods: list[Method]
    rows: list[Row] = field(default_factory=list)
    judge_name: str = PerceptualDistance.name
    by_picture: dict[tuple[str, str], list[list[Figures]]] = field(default_factory=dict)
    """By method and material: the figures of each picture of each sequence."""

    def row(self, method: str, material: str) -> Row:
        """Return the row of a method on a material, or raise `KeyError`."""
        for row in self.rows:
            if (row.method, row.material) == (method, material):
                return row
        raise KeyError((method, material))

    def add(
        self,
        material: str,
        pictures: Sequence[TestPicture],
        scale: int,
        judge: Judge | None,
        *,
        is_clip: bool = False,
    ) -> None:
        """Measure every method on a set of pictures, or on a clip's frames in order."""
        sequences = [pictures] if is_clip else [[picture] for picture in pictures]
        self.add_sequences(material, sequences, scale, judge)

    def add_sequences(
        self,
        material: str,
        sequences: Sequence[Sequence[TestPicture]],
        scale: int,
        judge: Judge | None,
        *,
        reporter: Reporter | None = None,
    ) -> None:
        """Measure every method on several clips together; single pictures have no motion."""
        reporter = reporter or Reporter(is_silent=True)
        total = sum(map(len, sequences))
        for method in self.methods:
            with reporter.task(f"measuring {method.name} on {material}", total) as task:
                row, figures = _measure(method, material, sequences, scale, judge, task)
            self.rows.append(row)
            self.by_picture[method.name, material] = figures

    def markdown(self) -> str:
        """Return a table for each material, the methods' costs, and any published figures."""
        parts = [_cost_table(self.methods)] if len(self.methods) > 1 else []
        for material in dict.fromkeys(row.material for row in self.rows):
            rows = [row for row in self.rows if row.material == material]
            parts.append(f"### {material}")
            parts.append(_quality_table(rows, self.judge_name))
            published = [p for p in PUBLISHED if p.material == material]
            if published:
                parts.append(_published_table(published))
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> str:
        """Return the same as JSON."""
        methods = [
            {
                "name": m.name, "num_parameters": m.num_parameters,
                "kmac_per_pixel": m.kmac_per_pixel, "how": m.how,
            }
            for m in self.methods
        ]  # fmt: skip
        content = {
            "judge": self.judge_name,
            "methods": methods,
            "rows": [asdict(row) for row in self.rows],
            "published": [asdict(p) for p in PUBLISHED],
        }
        return json.dumps(content, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the table as Markdown, or as JSON for `.json`."""
        path.write_text(self.as_json() if path.suffix == ".json" else self.markdown())


def _measure(
    method: Method,
    material: str,
    sequences: Sequence[Sequence[TestPicture]],
    scale: int,
    judge: Judge | None,
    task: Task,
) -> tuple[Row, list[list[Figures]]]:
    by_sequence: list[list[Figures]] = []
    distances, shifts, grids = [], [], []
    flickers, warpings = [], []
    seconds, num_pixels = 0.0, 0
    for pictures in sequences:
        made_luma, true_luma = [], []
        figures: list[Figures] = []
        by_sequence.append(figures)
        for picture in pictures:
            began = time.perf_counter()
            made = method.upscale(picture.lr)
            seconds += time.perf_counter() - began
            num_pixels += made.y_HW.size
            figures.append(score_picture(made, picture.hr_HW3, scale))
            true_luma.append(luma_bt601(picture.hr_HW3))
            made_luma.append(as_codes(made.y_HW))
            grids.append(grid_energy(made.y_HW, true_luma[-1], scale))
            rgb_HW3 = made.rgb_HW3()
            shifts.append(color_shift(rgb_HW3, picture.hr_HW3))
            if judge is not None:
                distances.append(judge(rgb_HW3, picture.hr_HW3))
            task.advance()
        if len(pictures) > 1:
            flickers.append(static_flicker(made_luma, true_luma))
            warpings.append(warping_error(made_luma, true_luma))
    means = np.mean([figures for sequence in by_sequence for figures in sequence], axis=0)
    psnr_db, ssim, chroma_psnr_db = (round(float(mean), 4) for mean in means)
    row = Row(
        method.name,
        material,
        sum(map(len, by_sequence)),
        psnr_db,
        ssim,
        chroma_psnr_db,
        distance=round(float(np.mean(distances)), 4) if distances else None,
        colour_shift=round(max(shifts), 3),
        grid=round(float(np.mean(grids)), 4),
        seconds_per_mpixel=round(seconds / num_pixels * 1e6, 4),
        flicker=_mean_of_known(flickers),
        warping_error=_mean_of_known(warpings),
    )
    return row, by_sequence


def _mean_of_known(values: Sequence[float]) -> float | None:
    """Return the mean without NaN, which stands for nothing to measure; None if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return round(float(np.mean(known)), 4) if known else None


def _cost_table(methods: Sequence[Method]) -> str:
    lines = [
        "| method | parameters | kMAC per input pixel | weights |",
        "| --- | --- | --- | --- |",
    ]
    for m in methods:
        parameters = "" if m.num_parameters is None else f"{m.num_parameters:,}"
        kmac = "" if m.kmac_per_pixel is None else f"{m.kmac_per_pixel:,.1f}"
        lines.append(f"| {m.name} | {parameters} | {kmac} | {m.how} |")
    return "\n".join(lines)


def _quality_table(rows: Sequence[Row], judge_name: str) -> str:
    has_distance = any(row.distance is not None for row in rows)
    has_motion = any(row.warping_error is not None for row in rows)
    head = ["method", "PSNR (dB)", "SSIM", "chroma PSNR (dB)"]
    head += [judge_name] if has_distance else []
    head += ["color shift", "grid", "s / Mpixel"]
    head += ["flicker", "warping error"] if has_motion else []
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [
            row.method, f"{row.psnr_db:.2f}", f"{row.ssim:.4f}", f"{row.chroma_psnr_db:.2f}",
            *([f"{row.distance:.3f}"] if row.distance is not None else []),
            f"{row.colour_shift:.2f}", f"{row.grid:.2f}", f"{row.seconds_per_mpixel:.3f}",
        ]  # fmt: skip
        if has_motion:
            cells += ["-" if n is None else f"{n:.2f}" for n in (row.flicker, row.warping_error)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Published:
    """A published figure, on luma at 4x."""

    method: str
    material: str
    psnr_db: float
    ssim: float
    source: str


SRGAN_PAPER = "Ledig et al., CVPR 2017, table 2 (SSIM is daala's, PSNR on its own Y channel)"
VDSR_PAPER = "Kim et al., CVPR 2016, table 2"

PUBLISHED = (
    Published("bicubic", "Set5", 28.42, 0.8104, VDSR_PAPER),
    Published("A+", "Set5", 30.28, 0.8603, VDSR_PAPER),
    Published("SRCNN", "Set5", 30.48, 0.8628, VDSR_PAPER),
    Published("VDSR", "Set5", 31.35, 0.8838, VDSR_PAPER),
    Published("SRResNet", "Set5", 32.05, 0.9019, SRGAN_PAPER),
    Published("SRGAN", "Set5", 29.40, 0.8472, SRGAN_PAPER),
    Published("bicubic", "Set14", 26.00, 0.7027, VDSR_PAPER),
    Published("A+", "Set14", 27.32, 0.7491, VDSR_PAPER),
    Published("SRCNN", "Set14", 27.49, 0.7503, VDSR_PAPER),
    Published("VDSR", "Set14", 28.01, 0.7674, VDSR_PAPER),
    Published("SRResNet", "Set14", 28.49, 0.8184, SRGAN_PAPER),
    Published("SRGAN", "Set14", 26.02, 0.7397, SRGAN_PAPER),
    Published("bicubic", "BSD100", 25.96, 0.6675, VDSR_PAPER),
    Published("A+", "BSD100", 26.82, 0.7087, VDSR_PAPER),
    Published("SRCNN", "BSD100", 26.90, 0.7101, VDSR_PAPER),
    Published("VDSR", "BSD100", 27.29, 0.7251, VDSR_PAPER),
    Published("SRResNet", "BSD100", 27.58, 0.7620, SRGAN_PAPER),
    Published("SRGAN", "BSD100", 25.16, 0.6688, SRGAN_PAPER),
)


def _published_table(published: Sequence[Published]) -> str:
    lines = ["| published | PSNR (dB) | SSIM | source |", "| --- | --- | --- | --- |"]
    lines += [f"| {p.method} | {p.psnr_db:.2f} | {p.ssim:.4f} | {p.source} |" for p in published]
    return "\n".join(lines)
