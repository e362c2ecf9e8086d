"""Workers for several GPUs see one each, counted as `nvidia-smi` counts them."""

from __future__ import annotations

import pytest

from srstream.daemon.workers.devices import device_variables


@pytest.mark.parametrize(
    ("device", "outer", "visible"),
    [
        ("cuda:0", {}, "0"),
        ("cuda:3", {}, "3"),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": "2,3"}, "2"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "2, 3"}, "3"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-8932f937,GPU-1f22a253"}, "GPU-1f22a253"),
        ("cuda:2", {"CUDA_VISIBLE_DEVICES": "2,3"}, ""),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_a_worker_sees_its_own_gpu_among_those_that_the_daemon_sees(device, outer, visible):
    assert device_variables(device, outer) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": visible,
    }


def test_the_operator_s_order_is_kept():
    outer = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert device_variables("cuda:1", outer)["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_other_devices_change_nothing(device):
    assert device_variables(device, {"CUDA_VISIBLE_DEVICES": "1"}) == {}
