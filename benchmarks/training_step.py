"""The cost of an iteration of the 16-block generator's pixel stage, setting by setting.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/training_step.py [--threads 1] [--batch 16]

Times forward, backward and Adam on a batch of random patches, 24x24 in low resolution; reports
the median of `--repeats` after one warm-up iteration.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from srstream.models.networks import Generator, training_network
from srstream.models.table import model_spec

SIDE, SCALE = 24, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'arithmetic':12}{'BN':6}{'layout':16}{'order':12}{'s / iteration':>14}")
    for precision in ("float32", "bfloat16"):
        for batch_norm in (True, False):
            for layout in ("contiguous", "channels last"):
                for order in ("as drawn", "rewritten"):
                    seconds = step_seconds(precision, batch_norm, layout, order, arguments)
                    bn = "yes" if batch_norm else "no"
                    row = f"{precision:12}{bn:6}{layout:16}{order:12}{seconds:14.2f}"
                    print(row, flush=True)


def step_seconds(
    precision: str, batch_norm: bool, layout: str, order: str, arguments: argparse.Namespace
) -> float:
    torch.manual_seed(0)
    network = training_network(model_spec("srgan"), batch_norm=batch_norm)
    assert isinstance(network, Generator)
    forward: Callable[[Tensor], tuple[Tensor, ...]] = (
        network.forward_as_drawn if order == "as drawn" else network.forward
    )
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    lr = torch.rand(arguments.batch, 3, SIDE, SIDE).contiguous(memory_format=memory_format)
    hr = torch.rand(arguments.batch, 3, SCALE * SIDE, SCALE * SIDE)
    optimizer = torch.optim.Adam(network.parameters(), 1e-5)
    seconds = []
    for _ in range(arguments.repeats + 1):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            (sr,) = forward(lr)
        loss = (sr.float() - hr).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
