"""The report of a fine-tuning: one HTML file that opens without a server or network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import jinja2
import numpy as np

from trainer.data.planes import Picture
from trainer.judge.comparison import Method, Row
from trainer.judge.evaluate import TestPicture
from trainer.judge.perceptual import PerceptualDistance
from trainer.state import write_atomically

CROP = 128
"""Side of a crop, in high-resolution pixels; shown at twice that."""

MAX_PICTURES = 4

CURVE_SIZE = (640, 220)
"""(width, height) of the plot's inside."""


@dataclass(frozen=True)
class Report:
    """The contents of the report."""

    title: str
    verdict: str
    is_better: bool
    facts: list[tuple[str, str]]
    rows: list[Row]
    methods: list[Method]
    pictures: list[TestPicture]
    log_path: Path


@dataclass(frozen=True)
class Curve:
    """A line of the plot, in the plot's coordinates, with the range of its values."""

    points: str
    low: float
    high: float
    minutes: float
    start_y: float


def write_report(report: Report, path: Path) -> None:
    """Render the report, atomically replacing an older one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        report=report,
        judge=PerceptualDistance.name,
        crops=[_crops(picture, report.methods) for picture in report.pictures[:MAX_PICTURES]],
        score=curve(report.log_path, "validate", "psnr_db"),
        loss=curve(report.log_path, "train", "pixel"),
        size=CURVE_SIZE,
    )
    write_atomically(path, text.encode())


def curve(log_path: Path, event: str, name: str) -> Curve | None:
    """Return one figure of a run's log over time; None with fewer than two points."""
    points = []
    for line in log_path.read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] == event and name in entry:
            points.append((entry["elapsed_seconds"] / 60, float(entry[name])))
    if len(points) < 2:
        return None
    minutes, values = (np.array(column) for column in zip(*points, strict=True))
    low, high = float(values.min()), float(values.max())
    width, height = CURVE_SIZE
    x = width * minutes / max(minutes.max(), 1e-9)
    y = height * (1.0 - (values - low) / max(high - low, 1e-9))
    drawn = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return Curve(drawn, low, high, float(minutes.max()), float(y[0]))


def _crops(picture: TestPicture, methods: Sequence[Method]) -> tuple[str, list[tuple[str, str]]]:
    """Return the frame's name, and the same window of every version of it, as data URLs."""
    height, width = picture.hr_HW3.shape[:2]
    nearest = cv2.resize(picture.lr.rgb_HW3, (width, height), interpolation=cv2.INTER_NEAREST)
    made = [(method.name, method.upscale(picture.lr).rgb_HW3()) for method in methods]
    top, left = _place_of_difference(made[-1][1], made[0][1])
    versions = [
        ("low resolution", np.asarray(nearest, np.uint8)), *made, ("original", picture.hr_HW3),
    ]  # fmt: skip
    urls = [
        (name, _data_url(whole[top : top + CROP, left : left + CROP])) for name, whole in versions
    ]
    return picture.name, urls


def _place_of_difference(a_HW3: Picture, b_HW3: Picture) -> tuple[int, int]:
    """Return where two versions differ most, which is the most telling window."""
    difference = np.abs(a_HW3.astype(np.float32) - b_HW3).mean(axis=2)
    mean = cv2.boxFilter(difference, -1, (CROP, CROP), anchor=(0, 0))
    rows, columns = (max(side - CROP, 0) + 1 for side in difference.shape)
    top, left = np.unravel_index(mean[:rows, :columns].argmax(), (rows, columns))
    return int(top), int(left)


def _data_url(rgb_HW3: Picture) -> str:
    _, content = cv2.imencode(".png", cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()
