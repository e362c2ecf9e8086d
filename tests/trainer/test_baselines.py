"""SRCNN and VDSR: their papers' sizes, and the bicubic layer that they stand on."""

import numpy as np
import pytest
import torch

from research.baselines import BASELINES, BicubicEnlargement, baseline_network
from trainer.data.degrade import bicubic_resize


@pytest.mark.parametrize("shape", [(12, 17), (5, 5), (2, 9), (1, 1)])
def test_the_bicubic_layer_is_matlab_s(shape):
    lr_HW = np.random.default_rng(0).random(shape)
    lr_11HW = torch.from_numpy(lr_HW).float()[None, None]
    made = BicubicEnlargement(4)(lr_11HW)[0, 0].numpy()
    expected = bicubic_resize(lr_HW, 4 * shape[0], 4 * shape[1])
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "num_weights"), [("srcnn", 8_032), ("vdsr", 664_704)])
def test_the_papers_number_of_weights(name, num_weights):
    """The papers count weights without biases: 8,032 for 9-1-5 (table 1), 665 K for VDSR."""
    network = baseline_network(name)
    counted = sum(value.numel() for value in network.parameters())
    assert BASELINES[name].num_parameters == counted
    biases = sum(value.numel() for value in network.parameters() if value.ndim == 1)
    assert counted - biases == num_weights
    assert BASELINES[name].kmac_per_pixel == pytest.approx(16 * num_weights / 1000)


@pytest.mark.parametrize(("name", "radius"), [("srcnn", 6), ("vdsr", 20)])
def test_the_receptive_field_on_the_enlarged_picture(name, radius):
    network = baseline_network(name).double()
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(0.1 if value.ndim > 1 else 0.0)  # so that every tap counts
        network.enlarge = torch.nn.Identity()
        sr_B1HW = torch.zeros(1, 1, 51, 51, dtype=torch.float64)
        sr_B1HW[0, 0, 25, 25] = 1.0
        rows, columns = torch.nonzero(network(sr_B1HW)[0][0, 0], as_tuple=True)
    for positions in (rows, columns):
        assert (int(positions.min()), int(positions.max())) == (25 - radius, 25 + radius)


def test_a_new_vdsr_is_bicubic():
    lr_B1HW = torch.rand(1, 1, 9, 11)
    network = baseline_network("vdsr")
    torch.testing.assert_close(network(lr_B1HW)[0], network.enlarge(lr_B1HW))
