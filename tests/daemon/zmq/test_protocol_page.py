"""docs/protocol.md is right: its example runs, and its tables are complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

from srstream.protocol import control as protocol
from tests.support.paths import REPOSITORY
from tests.support.service import control
from tests.support.service.control_clients import Connection

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()
REQUESTS = get_args(get_args(protocol.Request)[0])


def test_the_example_runs_as_it_stands(tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    with control.daemon(tmp_path / "run") as daemon, Connection(daemon.address) as client:
        process = subprocess.Popen(
            [sys.executable, example, daemon.address, "/videos/in.mkv"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        assert process.stdout is not None
        job = process.stdout.readline().split()[1]
        client.ask("resume", job=job)
        said, problems = process.communicate(timeout=60)
    assert process.returncode == 0, problems
    lines = said.splitlines()
    assert "state {'state': 'running'}" in lines
    assert [line for line in lines if line.startswith("segment")] == [
        f"segment {{'index': {index}}}" for index in range(20)
    ]
    assert lines[-1] == "done /videos/in.mkv_4x "


def test_the_page_names_every_request_and_its_fields() -> None:
    rows = dict(re.findall(r"^\| `([a-z.]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    for request in REQUESTS:
        row = rows[request.model_fields["op"].default]
        fields = request.model_fields.keys() - {"op", "version", "id"}
        assert all(f"`{field}`" in row for field in fields), (request, row)


def test_the_page_names_what_a_job_and_an_event_hold() -> None:
    for name in protocol.JobInfo.model_fields:
        assert f"`{name}`" in PAGE
    for state in get_args(protocol.JobState):
        assert f"`{state}`" in PAGE
    for kind in get_args(protocol.Event.model_fields["kind"].annotation):
        assert f"| `{kind}` |" in PAGE
    assert f"{protocol.MAX_MESSAGE_BYTES:,} bytes" in PAGE
