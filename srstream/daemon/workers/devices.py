"""The environment in which an engine worker sees its own GPU and no other."""

from __future__ import annotations

from collections.abc import Mapping

ORDER, VISIBLE = "CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"


def device_variables(device: str, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of a worker for a device such as `cpu` or `cuda:1`.

    Numbers count the GPUs in the order of the bus, as `nvidia-smi` does; by default CUDA counts the
    fastest first. Where the daemon's own environment (`outer`) hides GPUs, they count those that it
    shows, and `cuda:N` beyond these shows none.
    """
    if not device.startswith("cuda:"):
        return {}
    number, order = int(device.removeprefix("cuda:")), outer.get(ORDER, "PCI_BUS_ID")
    if VISIBLE not in outer:
        return {ORDER: order, VISIBLE: str(number)}
    shown = [name.strip() for name in outer[VISIBLE].split(",") if name.strip()]
    return {ORDER: order, VISIBLE: shown[number] if number < len(shown) else ""}
