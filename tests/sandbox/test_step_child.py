"""Steps on an untrusted file: the process that asks for one reads nothing of the file itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from srstream.config import JobConfig, SourceConfig
from srstream.errors import RefusedError, SrstreamError
from srstream.jobs.planning.plan import make_plan
from srstream.media.read.demux import nvdec_fault
from srstream.sandbox.confine import landlock_abi
from srstream.sandbox.media_steps import MEDIA_CHILD, Probe, TryNvdec
from srstream.sandbox.steps import InChild
from tests.support import clips

MEMORY_BYTES = 2 << 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = clips.cfr(tmp_path / "in.mp4")
    if nvdec_fault(path, 1 << 28, 100) is None:
        pytest.skip("NVDEC works here")
    return path


@pytest.fixture
def media(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InChild]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a source was opened in the process that asks")

    folder = tmp_path / "work"
    folder.mkdir()
    descriptor = os.open(source, os.O_RDONLY)
    child = InChild(MEDIA_CHILD, source, descriptor, folder, memory_bytes=MEMORY_BYTES)
    monkeypatch.setattr(av, "open", refuse)
    yield child
    child.close()
    os.close(descriptor)


def test_a_gpu_decoder_is_tried_in_a_child(source: Path, media: InChild) -> None:
    config = JobConfig(source=SourceConfig(decoder="nvdec"))
    with pytest.raises(RefusedError, match=r"in\.mp4: NVDEC cannot be opened on this machine"):
        make_plan(source, None, config, media=media)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_a_decoder_for_gpus_is_asked_for(tmp_path: Path, codec: str) -> None:
    """Of AV1 the usual decoder, dav1d, has none; then libav's own is taken."""
    path = clips.write_clip(tmp_path / "in.mp4", 2, width=128, height=128, codec=codec)
    fault = nvdec_fault(path, 1 << 28, 100)
    assert fault in (None, "NVDEC cannot be opened on this machine (no NVIDIA driver or no GPU)")


def test_a_codec_without_a_decoder_for_gpus_is_named(tmp_path: Path) -> None:
    path = clips.write_clip(tmp_path / "in.mkv", 2, codec="ffv1")
    assert nvdec_fault(path, 1 << 28, 100) == (
        "NVDEC does not decode this video (there is no decoder of ffv1 for GPUs)"
    )


def test_garbage_for_a_gpu_decoder_is_read_in_the_child(source: Path, media: InChild) -> None:
    os.truncate(source, 0)
    source.write_bytes(b"\0\0\0\x18ftypisom" + os.urandom(5000))
    config = JobConfig(source=SourceConfig(decoder="nvdec"))
    with pytest.raises(SrstreamError, match=r"in\.mp4"):
        make_plan(source, None, config, media=media)


@pytest.mark.skipif(not landlock_abi(), reason="the kernel has no Landlock")
def test_only_the_step_that_needs_a_gpu_sees_files(
    source: Path, media: InChild, tmp_path: Path
) -> None:
    limits = SourceConfig()
    probe = Probe(config=limits)
    for step in (
        probe,
        TryNvdec(max_pixels=limits.max_pixels, max_streams=limits.max_streams),
        probe,
    ):
        media.do(step, source)
    lines = (tmp_path / "work" / "media.log").read_text().splitlines()
    confined = [line for line in lines if "confined: " in line]
    assert ["without files" in line for line in confined] == [False, True, False]
    assert all("seccomp" in line and "sealed" in line for line in confined)
