"""What each request of the control protocol does; `supervisor.py` is what it is done to."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from srstream.config import JobConfig
from srstream.daemon.settings import ServiceSettings
from srstream.errors import JobError, RefusedError, UsageError
from srstream.models.registry import find_model, registered_models
from srstream.models.table import MODELS, available_models
from srstream.protocol import control as p

if TYPE_CHECKING:
    from srstream.daemon.supervisor import Supervisor

CONTAINERS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm"})
"""Endings that an output keeps; others become .mkv."""

_ADD_SECONDS = 120.0
_FIXED = ("sockets", "workers", "ready_file")
"""Settings that, with `jobs.state_dir`, count from the next start on."""


@dataclass(frozen=True)
class Peer:
    """Who asks: `local` over ipc, over TCP the name of the key. `address` is for logs."""

    name: str
    address: str = ""


async def answer(daemon: Supervisor, request: p.Request, peer: Peer) -> dict[str, Any]:
    """The result of a request.

    Raises:
        SrstreamError: why there is none.
    """
    match request:
        case p.Submit():
            return submit(daemon, request, peer)
        case p.Status():
            return _shown(daemon, request.job)
        case p.List():
            jobs = daemon.queue.jobs(request.states, limit=request.limit, before=request.before)
            return {"jobs": [daemon.info(job).model_dump() for job in jobs]}
        case p.Cancel():
            return cancel(daemon, request.job)
        case p.Pause():
            return pause(daemon, request.job)
        case p.Resume():
            return resume(daemon, request.job)
        case p.SetPriority():
            daemon.queue.get(request.job)
            daemon.queue.update(request.job, priority=request.priority)
            daemon.weigh_job(request.job, request.priority)
            return _shown(daemon, request.job)
        case p.ModelsList():
            return models(daemon)
        case p.ModelsAdd():
            return await add_model(daemon, request)
        case p.ModelsUse():
            return use_model(daemon, request)
        case p.Reload():
            return {"needs_restart": daemon.reload()}
        case p.Health():
            return daemon.health().model_dump()
        case p.Watch():
            raise UsageError("watches are the control socket's own business.")


def submit(daemon: Supervisor, request: p.Submit, peer: Peer) -> dict[str, Any]:
    """Take a job, after everything that can be said without opening the file was said."""
    # Before anything else: its output may exist by now, its input be gone.
    if request.key is not None and (first := daemon.queue.with_key(request.key)) is not None:
        return daemon.info(first).model_dump()
    source = Path(request.input)
    output = default_output(source) if request.output is None else Path(request.output)
    config = job_config(daemon.settings, request.config)
    names_model = "name" in _section(request.config, "model")
    if not names_model:
        config = with_model(config, daemon.default_model)
    check_model(config.model.name)
    os.close(daemon.roots.open_source(source))
    folder = daemon.roots.open_folder(output.parent)
    try:
        if not request.overwrite and _is_taken(output.name, folder):
            raise RefusedError(
                f"{output}: exists already and was not touched. Submit with overwrite to replace "
                "it, or choose another output."
            )
    finally:
        os.close(folder)
    job, event = daemon.queue.add(
        source,
        output,
        config,
        names_model=names_model,
        overwrite=request.overwrite,
        priority=request.priority,
        submitter=peer.name,
        key=request.key,
        max_queued=daemon.settings.jobs.max_queued,
    )
    daemon.publish(event)
    return daemon.info(job).model_dump()


def default_output(source: Path) -> Path:
    """`INPUT_4x` beside the input, in a container that takes everything if its own takes less."""
    suffix = source.suffix if source.suffix.lower() in CONTAINERS else ".mkv"
    return source.with_name(f"{source.stem}_4x{suffix}")


def job_config(settings: ServiceSettings, changes: dict[str, Any]) -> JobConfig:
    """The daemon's defaults with a client's changes.

    Raises:
        UsageError: a change makes no sense, or names a file.
    """
    merged = settings.defaults.model_dump()
    for section, values in changes.items():
        if isinstance(values, dict) and isinstance(merged.get(section), dict):
            merged[section] = {**merged[section], **values}
        else:
            merged[section] = values
    if _section(changes, "model").get("weights") is not None:
        raise UsageError(
            "config.model.weights: files of a client's are not read; register them with "
            "models.add and name the model."
        )
    try:
        return JobConfig.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"config.{where}: {first['msg'].lower()}.") from None


def with_model(config: JobConfig, name: str) -> JobConfig:
    """The same with another model."""
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def check_model(name: str) -> None:
    """`UsageError` unless there are weights of this name."""
    if name not in available_models() and find_model(name) is None:
        raise UsageError(f"model {name!r}: there are no such weights; models.list says which.")


def cancel(daemon: Supervisor, job_id: str) -> dict[str, Any]:
    """End a job for good."""
    job = daemon.queue.get(job_id)
    if job.is_final and job.state == "done":
        raise UsageError(f"{job_id}: this job is done; there is nothing to cancel.")
    if daemon.stop_job(job_id, now=True):
        daemon.queue.update(job_id, wanted="cancel")
    elif job.state != "cancelled":
        daemon.publish(daemon.queue.change(job_id, "cancelled"))
        daemon.forget_work(job_id)
    return _shown(daemon, job_id)


def pause(daemon: Supervisor, job_id: str) -> dict[str, Any]:
    """Stop a job where nothing is lost."""
    job = daemon.queue.get(job_id)
    if job.is_final:
        raise UsageError(f"{job_id}: this job has ended ({job.state}).")
    if daemon.stop_job(job_id, now=False):
        daemon.queue.update(job_id, wanted="pause")
    elif job.state == "queued":
        daemon.publish(daemon.queue.change(job_id, "paused"))
    return _shown(daemon, job_id)


def resume(daemon: Supervisor, job_id: str) -> dict[str, Any]:
    """Let a job go on, or try a failed one again."""
    job = daemon.queue.get(job_id)
    if job.state in ("done", "cancelled"):
        raise UsageError(f"{job_id}: this job is {job.state}; submit it again.")
    if job.state == "running":
        daemon.queue.update(job_id, wanted=None)
    elif job.state != "queued" or job.retry_at is not None:
        daemon.publish(
            daemon.queue.change(
                job_id,
                "queued",
                retry_at=None,
                ended=None,
                error=None,
                attempts=0,
                failures=0,
                crashes=0,
            )
        )
    return _shown(daemon, job_id)


def models(daemon: Supervisor) -> dict[str, Any]:
    """Every model that a job may name."""
    shipped = [{"name": name, "network": name, "ships": True} for name in available_models()]
    own = [
        {"name": model.name, "network": model.network, "ships": False, "sha256": model.sha256}
        for model in registered_models()
    ]
    return {"default": daemon.default_model, "models": [*shipped, *own]}


async def add_model(daemon: Supervisor, request: p.ModelsAdd) -> dict[str, Any]:
    """Register weights, in a process of their own: they are a client's file."""
    source = Path(request.weights)
    descriptor = daemon.roots.open_source(source)
    name = source.stem.lower() if request.name is None else request.name
    if name in MODELS:
        os.close(descriptor)
        raise UsageError(f"{name!r} is a model that ships with srstream; use another name.")
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "srstream",
            "models",
            "add",
            f"/proc/self/fd/{descriptor}",
            "--name",
            name,
            *(["--replace"] if request.replace else []),
            pass_fds=[descriptor],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(descriptor)
    try:
        _, said = await asyncio.wait_for(process.communicate(), _ADD_SECONDS)
    except TimeoutError as error:
        process.kill()
        raise JobError(f"{source}: reading it took longer than {_ADD_SECONDS:.0f} s.") from error
    if process.returncode != 0:
        text = said.decode(errors="replace").strip().removeprefix("srstream: ")
        raise UsageError(text.replace(f"/proc/self/fd/{descriptor}", str(source)))
    return {"name": name}


def use_model(daemon: Supervisor, request: p.ModelsUse) -> dict[str, Any]:
    """Make a model the default; with `running`, for the jobs under way too."""
    check_model(request.name)
    daemon.use_model(request.name)
    changed = []
    if request.running:
        for job in daemon.queue.jobs(("running",)):
            if not job.names_model and job.config.model.name != request.name:
                config = with_model(job.config, request.name)
                daemon.queue.update(job.id, config=config.model_dump_json(), changes_weights=1)
                daemon.stop_job(job.id, now=False)
                changed.append(job.id)
    return {"default": request.name, "jobs": changed}


def needing_restart(running: ServiceSettings, wanted: ServiceSettings) -> list[str]:
    """Names of settings that differ and count only from the next start on."""
    names = [name for name in _FIXED if getattr(running, name) != getattr(wanted, name)]
    if running.jobs.state_dir != wanted.jobs.state_dir:
        names.append("jobs.state_dir")
    return names


def until_restart(running: ServiceSettings, wanted: ServiceSettings) -> ServiceSettings:
    """What is wanted, with those of the running daemon that only a restart changes."""
    fixed = {name: getattr(running, name) for name in _FIXED}
    jobs = wanted.jobs.model_copy(update={"state_dir": running.jobs.state_dir})
    return wanted.model_copy(update={**fixed, "jobs": jobs})


def _section(changes: dict[str, Any], name: str) -> dict[str, Any]:
    section = changes.get(name)
    return section if isinstance(section, dict) else {}


def _is_taken(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _shown(daemon: Supervisor, job_id: str) -> dict[str, Any]:
    return daemon.info(daemon.queue.get(job_id)).model_dump()
