"""ncnn next to OpenVINO, float32, one thread: `python benchmarks/ncnn_compare.py [--srgan FILE]`.

The engines take turns; the network alone is timed, on a 320x180 tile of noise, and the median is
reported. Pass the `.safetensors` file of a generator as `--srgan` to measure that too. Pin the
process to an idle core: `taskset -c 1`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from srstream.config import EngineConfig, ModelConfig
from srstream.engines.contract import TileFormat
from srstream.engines.table import open_engine
from srstream.models.checkpoint import load_weights
from srstream.models.onnx_graph import onnx_model
from srstream.models.table import available_models, model_spec

SHAPE = (180, 320)
ENGINES = ("openvino", "ncnn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--srgan", type=Path, help="weights of a generator (.safetensors)")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    for name in available_models():
        compare(ModelConfig(name=name), arguments.repeats)
    if arguments.srgan is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "srgan.onnx"
            path.write_bytes(onnx_model(load_weights(arguments.srgan)).SerializeToString())
            path.with_suffix(".safetensors").write_bytes(arguments.srgan.read_bytes())
            compare(ModelConfig(name="srgan", weights=str(path)), arguments.repeats)


def compare(model: ModelConfig, repeats: int) -> None:
    """Print both engines' milliseconds per frame and how far their codes differ."""
    spec = model_spec(model.name)
    random = np.random.default_rng(0)
    tile = [random.integers(0, 256, SHAPE, np.uint8) for _ in range(spec.form.num_input_planes)]
    tile_format = TileFormat(SHAPE, 8, 1 if spec.color_form == "rgb" else None)
    engines = [open_engine(name, EngineConfig(threads=1), model, spec) for name in ENGINES]
    sessions = [engine.open_session(tile_format) for engine in engines]
    first = [session.result(session.submit(tile)) for session in sessions]
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(repeats):
        for session, taken in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.result(session.submit(tile))
            taken.append(time.perf_counter() - start)
    openvino, ncnn = (1000 * statistics.median(taken) for taken in seconds)
    apart = np.concatenate([np.abs(a.astype(int) - b).ravel() for a, b in zip(*first, strict=True)])
    print(
        f"{model.name:10} openvino {openvino:7.1f} ms   ncnn {ncnn:7.1f} ms   "
        f"{openvino / ncnn:.2f} times as fast; codes apart: {apart.max()} at most, "
        f"{(apart > 0).mean():.6f} of them",
        flush=True,
    )
    for session, engine in zip(sessions, engines, strict=True):
        session.close()
        engine.close()


if __name__ == "__main__":
    main()
