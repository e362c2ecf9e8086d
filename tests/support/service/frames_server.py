"""A data socket over the shipped `fast` weights, in a process of its own; answers on stdin.

    python -m tests.support.service.frames_server RUNTIME_DIR [IDLE_SECONDS] [MAX_SESSIONS]

Prints `ready`, then for each line read a line of JSON about the process; ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from srstream.config import EngineConfig, ModelConfig, ReuseConfig
from srstream.daemon.frames.server import FrameLimits, FramesServer
from srstream.daemon.settings import SocketSettings
from srstream.engines.openvino.engine import OpenVinoEngine
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.stage import Stage
from srstream.models.table import model_spec, weights_path
from srstream.protocol.frames import Hello


def condition(server: FramesServer) -> dict[str, float]:
    """What a test wants to know of this process."""
    status = server.status
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "num_sessions": status.num_sessions,
        "num_frames": status.num_frames,
        "reserved_bytes": status.reserved_bytes,
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "num_descriptors": len(os.listdir("/proc/self/fd")),
        "num_threads": threading.active_count(),
    }


def open_engine() -> OpenVinoEngine:
    """The one that the tests compare with, too."""
    config = ModelConfig(weights=str(weights_path("fast")))
    return OpenVinoEngine(EngineConfig(threads=1), config, model_spec("fast"))


def main() -> None:
    folder, idle_seconds, max_sessions = sys.argv[1:4]
    engine = open_engine()

    def open_stage(hello: Hello) -> Stage:
        return Enhancer(engine, hello.form, hello.form.scaled(4), reuse=ReuseConfig())

    limits = FrameLimits(
        max_sessions=int(max_sessions),
        max_pixels=1024 * 1024,
        max_bytes=256 << 20,
        idle_seconds=float(idle_seconds),
    )
    server = FramesServer(
        SocketSettings(runtime_dir=Path(folder)), open_stage=open_stage, limits=limits
    )
    server.bind()
    thread = threading.Thread(target=server.run)
    thread.start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(condition(server)), flush=True)
    server.close()
    thread.join()
    print("closed", flush=True)


if __name__ == "__main__":
    main()
