"""Opens the stages of clients' sessions, which share engines with the daemon's jobs by turns."""

from __future__ import annotations

from contextlib import ExitStack

from srstream.config import JobConfig, ModelConfig
from srstream.daemon.frames.session import OpenStage
from srstream.engines.pool import EnginePool
from srstream.enhancer.enhancer import Enhancer
from srstream.enhancer.fair_queue import Round, WaitingStage
from srstream.enhancer.stage import Stage
from srstream.models.registry import resolved
from srstream.models.table import model_spec
from srstream.protocol.frames import Hello


def stage_opener(pool: EnginePool, round_: Round, defaults: JobConfig) -> OpenStage:
    """Make the function that opens a session's stage: model and knobs from HELLO, defaults else.

    That function raises an SrstreamError if the model is unknown or cannot take such frames.
    """

    def open_stage(hello: Hello) -> Stage:
        asked = ModelConfig(name=hello.model, restore=hello.restore, detail=hello.detail)
        model = resolved(asked)
        held = ExitStack()
        try:
            lease = held.enter_context(pool.lease())
            engine, _ = lease.open(defaults.engine, model, model_spec(model.name))
            member = round_.join(0)
            held.callback(member.close)
            enhancer = Enhancer(
                engine,
                hello.form,
                hello.form.scaled(engine.capabilities.scale),
                max_memory_bytes=defaults.engine.max_memory_bytes,
                reuse=defaults.reuse,
            )
            return WaitingStage(enhancer, member.turn, on_close=held.close)
        except BaseException:
            held.close()
            raise

    return open_stage
