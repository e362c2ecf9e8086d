"""A GPU for which PyTorch has no kernels is not chosen, and is named where it is asked for."""

from __future__ import annotations

import pytest
import torch

from srstream.config import EngineConfig, ModelConfig
from srstream.engines import table
from srstream.engines.cuda.availability import has_kernels
from srstream.engines.table import can_run, open_engine
from srstream.errors import EngineError
from srstream.models.table import model_spec

# Of the kind that `torch.cuda.get_arch_list` returns.
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), False),
        ((7, 0), False),
        ((7, 5), True),
        ((8, 0), True),
        ((8, 9), True),  # sm_86 and sm_80 are of the same major version
        ((9, 0), True),
        ((10, 3), True),
        ((11, 0), False),
        ((12, 1), True),
        ((13, 0), True),  # by the driver, from compute_120
    ],
)
def test_pytorch_s_kernels_run_on_these_devices(capability, expected):
    assert has_kernels(capability, ARCHITECTURES) is expected


def test_odd_names_are_passed_over():
    assert has_kernels((9, 0), ["gfx90a", "sm_90a", ""])
    assert not has_kernels((9, 0), [])


def test_an_old_gpu_is_left_alone_by_auto_and_named_when_asked_for(monkeypatch):
    monkeypatch.setattr(table, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ARCHITECTURES)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GeForce GTX 1060")
    assert not can_run("cuda")
    with pytest.raises(EngineError, match=r"no kernels for GeForce GTX 1060 .*capability 6\.1"):
        open_engine("cuda", EngineConfig(), ModelConfig(name="fast"), model_spec("fast"))
