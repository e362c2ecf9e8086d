"""Fine-tuning on one's own footage: what is chosen of it, what is held out, and the verdict."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from srstream.errors import UsageError
from srstream.models.checkpoint import Weights, load_weights, safetensors_bytes
from srstream.models.networks import fold, network_tensors, training_network
from srstream.models.registry import REGISTRY_VARIABLE
from srstream.models.table import MODELS, weights_path
from tests.support.paths import REPOSITORY
from trainer.cli import app
from trainer.data.clips import decoded_frames, frame_to_rgb
from trainer.data.footage import MOMENT_FRAMES, Moment, _split, frames_of, paired_frames, survey
from trainer.finetune import (
    FineTuning,
    Material,
    NoGainError,
    config_of,
    finetune,
    has_stopped_improving,
    load_base,
    prepare,
    typical_settings,
)

SIDE = (160, 192)


def texture(seed, height=260, width=400):
    """Black and white bars in random directions: sharper than any base makes them."""
    random = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 128, np.uint8)
    for _ in range(60):
        ends = random.integers(0, (width, height), (2, 2))
        colour = tuple(int(c) for c in random.integers(0, 255, 3))
        cv2.line(picture, ends[0].tolist(), ends[1].tolist(), colour, int(random.integers(2, 9)))
    return cv2.GaussianBlur(picture, (0, 0), 0.8)


def write_video(path, scenes, frames_per_scene=32, *, scale=1, crf="20"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": crf})
        stream.height, stream.width = (side // scale for side in SIDE)
        stream.pix_fmt = "yuv420p"
        for seed in scenes:
            whole = texture(seed)
            for n in range(frames_per_scene):
                rgb = whole[n : n + SIDE[0], 2 * n : 2 * n + SIDE[1]]
                if scale > 1:
                    rgb = cv2.resize(rgb, None, fx=1 / scale, fy=1 / scale, interpolation=3)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "cam1.mp4", range(5))


def task(video, folder, **changes):
    changes = {"base": "fast", "hours": 0.004, "num_threads": 1} | changes
    return FineTuning((video,), output=folder / "own.safetensors", **changes)


def emptied_fast(path):
    """`fast` without its last layer: whatever is learnt in however little time is a gain."""
    weights = load_weights(weights_path("fast", ".safetensors"))
    last = f"convolutions.{len(weights.spec.network.widths)}."
    tensors = {
        name: np.zeros_like(tensor) if name.startswith(last) else tensor
        for name, tensor in weights.tensors.items()
    }
    path.write_bytes(safetensors_bytes(Weights(weights.spec, tensors, "made")))
    return str(path)


def test_the_last_scenes_are_held_out_and_cuts_are_seen(video):
    footage = survey([video])
    assert footage.num_scenes == 5
    assert footage.min_side == 160
    assert {moment.scene for moment in footage.held_out} == {4}
    assert {moment.scene for moment in footage.train} == {0, 1, 2, 3}
    for moment in (*footage.train, *footage.held_out):
        first, last = moment.first_frame, moment.first_frame + MOMENT_FRAMES - 1
        assert first // 32 == last // 32 == moment.scene  # never across a cut
    ((codec, quantizer),) = footage.compression
    assert codec == "h264"
    assert 14 < quantizer < 28


def test_the_degradation_matches_the_video_s_own(tmp_path):
    crfs = []
    for crf in ("18", "36"):
        footage = survey([write_video(tmp_path / f"{crf}.mp4", range(3), crf=crf)])
        section = footage.degradation(256)
        assert section.codecs == ("libx264",)
        crfs.append(typical_settings(section).crf)
    assert crfs[1] - crfs[0] > 10
    assert abs(crfs[1] - 36) < 7


def moments_of(video, scenes):
    return [
        Moment(video, 8 * n, scene, 0.3 * n, 1.0, np.zeros((18, 32), np.float32))
        for n, scene in enumerate(scenes)
    ]


def test_of_a_single_scene_the_end_is_held_out_with_a_gap(video):
    train, held_out = _split(moments_of(video, [0] * 10))
    assert [m.first_frame // 8 for m in train] == list(range(7))
    assert [m.first_frame // 8 for m in held_out] == [8, 9]
    train, held_out = _split(moments_of(video, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]))
    assert {m.scene for m in held_out} == {3}
    assert {m.scene for m in train} == {0, 1, 2}
    train, held_out = _split(moments_of(video, [0] + [1] * 9))  # the last scene is nearly all
    assert len(held_out) == 2
    assert _split([]) == ([], [])


def test_a_moment_s_frames_are_the_video_s(video):
    footage = survey([video], num_train=3, num_held_out=1)
    assert len(footage.train) == 3
    frames = [frame_to_rgb(frame) for frame in decoded_frames(video)]
    seen = 0
    for moment, pictures in frames_of([*footage.held_out, *footage.train], 96):
        assert len(pictures) == MOMENT_FRAMES
        places = set()
        for n, picture in enumerate(pictures):
            assert picture.shape == (96, 96, 3)
            whole = frames[moment.first_frame + n]
            found = cv2.matchTemplate(whole, picture, cv2.TM_SQDIFF)
            assert found.min() < 0.1 * picture.size  # equal, but for how it is summed up
            places.add(np.unravel_index(found.argmin(), found.shape))
        assert len(places) == 1  # one window for all, so that motion stays motion
        seen += 1
    assert seen == 4


def test_originals_are_paired_frame_by_frame(tmp_path):
    low = write_video(tmp_path / "low.mp4", range(4), scale=4, crf="10")
    high = write_video(tmp_path / "high.mp4", range(4), crf="10")
    material = prepare(
        FineTuning((low,), "fast", tmp_path / "x.safetensors", 0.01, originals=(high,)),
        load_base("fast").spec,
    )
    assert material.patch_size == 40
    assert len(material.pairs) > 10
    for pair in material.pairs:
        ((_, lr),) = pair.lr
        assert lr.shape == (1, 40, 48)
        small = cv2.resize(pair.hr[0][0], (48, 40), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - lr[0]).mean() < 6
    assert all(len(sequence) == MOMENT_FRAMES for sequence in material.held_out)
    footage = survey([low])
    with pytest.raises(UsageError, match="is not 4 times"):
        list(paired_frames(footage.train, {low: low}))
    short = write_video(tmp_path / "short.mp4", [0], frames_per_scene=4)
    with pytest.raises(UsageError, match=r"short.mp4: ends after 4 frames"):
        list(paired_frames(footage.train, {low: short}))


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


@pytest.mark.long
def test_a_tuned_model_is_better_on_held_out_scenes_and_can_be_used(video, tmp_path, monkeypatch):
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "registry"))
    outcome = finetune(task(video, tmp_path))
    assert outcome.gain_db > 0.02
    assert outcome.tuned.psnr_db > outcome.base.psnr_db > outcome.bicubic.psnr_db - 3
    tuned, base = (load_weights(p) for p in (outcome.weights, weights_path("fast", ".safetensors")))
    assert "cam1.mp4" in tuned.recipe
    assert base.recipe in tuned.recipe
    assert any(not np.array_equal(tuned.tensors[n], base.tensors[n]) for n in base.tensors)

    text = outcome.report.read_text()
    page = Links()
    page.feed(text)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)  # no server
    assert len(page.links) == 5 * min(4, text.count("<h3>cam1.mp4"))
    assert page.tags.count("svg") == 2
    assert f"{outcome.gain_db:.2f} dB better than fast" in text
    assert "held out" in text

    from srstream.cli.main import app as srstream_app

    arguments = ["models", "add", str(outcome.weights), "--name", "cam1"]
    assert CliRunner().invoke(srstream_app, arguments).exit_code == 0
    assert load_base("cam1").recipe == tuned.recipe


@pytest.mark.long
def test_footage_that_cannot_help_is_rolled_back(tmp_path):
    """The held-out scene has nothing to do with the others: noise to train on, bars to judge by."""
    path = tmp_path / "noise.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *SIDE, "yuv420p"
        whole = texture(9)
        for n in range(96):
            if n < 72:
                rgb = random.integers(0, 255, (*SIDE, 3), dtype=np.uint8)
            else:
                rgb = np.ascontiguousarray(whole[n : n + SIDE[0], n : n + SIDE[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    asked = task(path, tmp_path, hours=0.003)
    with pytest.raises(NoGainError, match=r"Rolled back: .* keep using fast\. No weights were"):
        finetune(asked)
    assert not asked.output.exists()
    assert "Rolled back" in asked.report_path.read_text()


@pytest.mark.long
def test_a_run_is_gone_on_with_and_a_second_one_is_refused(video, tmp_path):
    base = emptied_fast(tmp_path / "emptied.safetensors")
    asked = task(video, tmp_path, base=base, hours=0.002)
    finetune(asked)
    with pytest.raises(UsageError, match="go on with --resume"):
        finetune(asked)
    again = finetune(task(video, tmp_path, base=base, hours=0.003, resume=True))
    events = [json.loads(line) for line in (again.weights.with_suffix(".run") / "log.jsonl").open()]
    iterations = [event["iteration"] for event in events]
    assert all(b >= a for a, b in pairwise(iterations))
    assert [event["event"] for event in events].count("start") == 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_stopped_run_compares_a_few_frames_and_says_so(video, tmp_path):
    """Ctrl-C in a long run: the comparison is short, shown, and judged like any other."""
    output = tmp_path / "own.safetensors"
    arguments = ["finetune", "--video", str(video), "--hours", "10", "-o", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *arguments], cwd=REPOSITORY, stderr=subprocess.PIPE
    )
    said = ""
    for line in process.stderr:
        said += line.decode()
        if "iteration" in said.rpartition("validation at iteration 0")[2].partition("\n")[2]:
            break
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=400)[1].decode()
    assert "stopping after this iteration" in said
    held_out = len(prepare(task(video, tmp_path), load_base("fast").spec).held_out)
    assert f"comparing on {2 * held_out} held-out frames only, since the run was stopped" in said
    assert process.returncode == (0 if output.exists() else 1), said
    assert (
        f"over {2 * held_out} frames of {held_out} moments"
        in output.with_suffix(".html").read_text()
    )
    assert "Traceback" not in said


def test_what_is_flat_by_construction_stays_so(video, tmp_path):
    spec, material = MODELS["fast"], Material([], [], survey([video]), 16, "made")
    for flat in (False, True):
        network = fold(training_network(spec, flat=flat))
        base = Weights(spec, network_tensors(network), "made")
        assert config_of(task(video, tmp_path), base, material).network.flat is flat


def test_a_run_ends_where_nothing_improves():
    def history(*scores):
        return [{"score": score} for score in scores]

    assert not has_stopped_improving(history(1, 2, 3, 4, 5, 6))
    assert not has_stopped_improving(history(1, 9, 3, 4, 5))
    assert has_stopped_improving(history(1, 9, 3, 4, 5, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "nothing"], "--base nothing: neither a model"),
        (["--base", "fast.none"], "neither a model"),
        (["--hr", "a.mp4", "--hr", "b.mp4"], "each video needs its own"),
        (["--output", "own.onnx"], r"ends in .safetensors"),
        (["--video", "missing.mp4"], "missing.mp4"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(video, tmp_path, arguments, message):
    given = [*(["--video", str(video)] if "--video" not in arguments else []), *arguments]
    if "--output" not in arguments:
        given += ["--output", str(tmp_path / "own.safetensors")]
    result = CliRunner().invoke(app, ["finetune", "--hours", "0.01", *given])
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "own.safetensors").exists()


def test_too_little_and_too_small_footage_is_refused(tmp_path):
    short = write_video(tmp_path / "short.mp4", [0], frames_per_scene=20)
    with pytest.raises(UsageError, match="too little to learn from"):
        survey([short])
    small = write_video(tmp_path / "small.mp4", range(4), scale=4)
    with pytest.raises(UsageError, match="too small to learn 4x from"):
        prepare(task(small, tmp_path), load_base("fast").spec)
