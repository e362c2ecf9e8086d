"""How much memory there is, also within a control group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srstream.memory import available_bytes


def group(folder: Path, limit: str, used: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 7\n")
    return folder


@pytest.mark.parametrize(
    ("used", "cached", "free"),
    [(600, 0, 400), (1000, 700, 700), (1000, 0, 0), (1200, 100, 0)],
)
def test_a_control_group_limits_and_its_cached_files_count_as_free(
    tmp_path: Path, used: int, cached: int, free: int
) -> None:
    mebi = 1 << 20
    folder = group(tmp_path, str(1000 * mebi), used * mebi, cached * mebi)
    assert available_bytes(folder) == free * mebi


def test_without_a_limit_it_is_the_machine_s(tmp_path: Path) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in (tmp_path, group(tmp_path, "max", 5, 5)):
        found = available_bytes(folder)
        assert found is not None and physical / 100 < found < 4 * physical
