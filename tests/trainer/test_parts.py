"""Files that travel in parts come back whole, or are refused by the part that is at fault."""

import pytest

from srstream.errors import UsageError
from trainer.parts import read_parts, write_parts


@pytest.mark.parametrize("num_bytes", [0, 1, 99, 100, 101, 1000])
def test_parts_join_to_the_whole_and_none_is_too_large(tmp_path, num_bytes):
    content = bytes(n * 7 % 251 for n in range(num_bytes))
    *parts, manifest = write_parts(content, tmp_path, "state", part_bytes=100)
    assert len(parts) == -(-num_bytes // 100)
    assert all(part.stat().st_size <= 100 for part in parts)
    assert b"".join(part.read_bytes() for part in parts) == content
    assert manifest.name == "state.json"
    assert read_parts(tmp_path, "state") == content


def test_fewer_parts_replace_more(tmp_path):
    write_parts(bytes(1000), tmp_path, "state", part_bytes=100)
    write_parts(b"short", tmp_path, "state", part_bytes=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.0", "state.json"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "state.1").unlink(), r"state\.1: missing, one of the 3 parts"),
        (lambda folder: (folder / "state.2").write_bytes(b"x" * 50), r"state\.2: damaged: 50 byt"),
        (lambda folder: (folder / "state.0").write_bytes(b"x"), r"not the 100 written"),
        (lambda folder: (folder / "state.json").write_text("{"), r"state\.json: cannot be read"),
        (lambda folder: (folder / "state.json").unlink(), r"state\.json: cannot be read"),
    ],
)
def test_a_missing_or_broken_part_is_named_with_what_to_do(tmp_path, damage, message):
    write_parts(bytes(range(250)), tmp_path, "state", part_bytes=100)
    damage(tmp_path)
    with pytest.raises(UsageError, match=f"{message}.*bring it once more"):
        read_parts(tmp_path, "state")
