"""LPIPS where its files are given: against the formula written out, and the CLI's refusals."""

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from srstream.errors import WeightsError
from trainer.cli import app
from trainer.judge.perceptual import Lpips

CHANNELS = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]


def torchvision_vgg16():
    """Its `features`, numbered as torchvision's are, with random weights."""
    torch.manual_seed(0)
    layers, num_in = [], 3
    for block in CHANNELS:
        for num_out in block:
            layers += [nn.Conv2d(num_in, num_out, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            num_in = num_out
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    features = torchvision_vgg16()
    torch.save({f"features.{n}": t for n, t in features.state_dict().items()}, folder / "vgg16.pth")
    heads = {
        f"lin{depth}.model.1.weight": torch.rand(1, block[-1], 1, 1)
        for depth, block in enumerate(CHANNELS)
    }
    torch.save(heads, folder / "heads.pth")
    return features, list(heads.values()), folder


def written_out(features, heads, a_HW3, b_HW3):
    """As the reference does it: [-1, 1], its scaling layer, five taps, the heads, a sum."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    taps = [3, 8, 15, 22, 29]
    x = torch.from_numpy(np.stack([a_HW3, b_HW3])).permute(0, 3, 1, 2) / 127.5 - 1
    x = (x - shift) / scale
    total = 0.0
    for number, layer in enumerate(features):
        x = layer(x)
        if number in taps:
            unit = x / x.norm(dim=1, keepdim=True)
            difference = (unit[0] - unit[1]).square()
            total += float((difference * heads[taps.index(number)][0]).sum(0).mean())
    return total


@pytest.mark.parametrize("size", [(64, 48), (37, 51)])
def test_lpips_is_the_formula(files, size):
    features, heads, folder = files
    random = np.random.default_rng(1)
    a, b = (random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in "ab")
    judge = Lpips(folder / "vgg16.pth", folder / "heads.pth")
    # The scaling layer's constants are ImageNet's mean and deviation, rounded.
    assert judge(a, b) == pytest.approx(written_out(features, heads, a, b), rel=5e-3)
    assert judge(b, a) == pytest.approx(judge(a, b), rel=1e-5)
    assert judge(a, a) == 0.0


def test_other_files_are_refused(files, tmp_path):
    _, _, folder = files
    backbone, heads = folder / "vgg16.pth", folder / "heads.pth"
    with pytest.raises(WeightsError, match="no such file"):
        Lpips(tmp_path / "none.pth", heads)
    with pytest.raises(WeightsError, match="lin0"):
        Lpips(backbone, backbone)
    (tmp_path / "vgg16.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match="torchvision"):
        Lpips(tmp_path / "vgg16.npz", heads)


def test_one_file_alone_is_refused(files, tmp_path):
    _, _, folder = files
    arguments = ["evaluate", "bicubic", "--test-set", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--lpips", str(folder / "vgg16.pth")])
    assert result.exit_code != 0
    assert "--lpips-heads" in str(result.exception)
