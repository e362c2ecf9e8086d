"""Plots the scores of training runs over their hours, and saves the figures behind the plot.

    pip install matplotlib
    python benchmarks/curves.py LABEL=RUN/log.jsonl[+RUN2/log.jsonl ...] ... --svg FILE --json FILE

The runs of a label follow each other: each starts from the weights of the one before it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("svg")

Curve = list[tuple[float, float]]
"""(hours, dB) of each validation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("curves", nargs="+", metavar="LABEL=LOG[+LOG]")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hours", default="hours on a core", help="unit of the hours")
    arguments = parser.parse_args()
    curves = {}
    for argument in arguments.curves:
        label, _, logs = argument.partition("=")
        curves[label] = read(list(map(Path, logs.split("+"))))
    for label, curve in curves.items():
        best = max(score for _, score in curve)
        print(f"{label:30} {curve[-1][0]:6.2f} h  last {curve[-1][1]:6.2f} dB  best {best:6.2f} dB")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(curves) + "\n")
    if arguments.svg is not None:
        draw(curves, arguments.hours, arguments.svg)


def read(logs: list[Path]) -> Curve:
    """Return the validations of consecutive runs."""
    curve, before = Curve(), 0.0
    for log in logs:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        curve += [
            (round(before + line["elapsed_seconds"] / 3600, 4), line["score"])
            for line in lines
            # The previous run has already recorded the start of a later one.
            if line["event"] == "validate" and (not before or line["iteration"])
        ]
        before += lines[-1]["elapsed_seconds"] / 3600
    return curve


def draw(curves: dict[str, Curve], hours: str, path: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "srstream"  # makes the file reproducible
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=label, linewidth=1.3)
    axes.set_xlabel(hours)
    axes.set_ylabel("PSNR on Set5, luma (dB)")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend()
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
