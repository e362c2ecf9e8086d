"""The shipped configuration loads, has the defaults, and names every setting."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from srstream.config import JobConfig
from srstream.daemon import settings
from srstream.daemon.settings import InboxFolder, ServiceSettings, load_settings
from srstream.errors import ConfigError
from tests.support.paths import REPOSITORY

SHIPPED = REPOSITORY / "configs" / "srstream.toml"
WATCH = "[[watch]]\nfolder = '/a'\noutput = '/b'\nquarantine = '/c'"
TO_BE_CHOSEN = {"security.read_roots", "security.write_roots"}


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """The shipped file with every setting uncommented."""
    path = tmp_path / "everything.toml"
    path.write_text(re.sub(r"^#(?=[a-z_]+ = |\[)", "", SHIPPED.read_text(), flags=re.MULTILINE))
    return path


def names_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from names_of(kind, f"{prefix}{name}.")
        elif name == "watch":
            yield from (f"watch.{one}" for one in InboxFolder.model_fields)
        else:
            yield prefix + name


def said_in(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict) and f"{prefix}{name}" != "watch.config":
            yield from said_in(value, f"{prefix}{name}.")
        elif name == "watch":
            yield from said_in(value[0], "watch.")
        else:
            yield prefix + name


def test_the_shipped_configuration_says_the_defaults() -> None:
    loaded, default = load_settings(SHIPPED), ServiceSettings()
    security = {"read_roots", "write_roots"}
    assert loaded.model_dump(exclude={"security": security}) == default.model_dump(
        exclude={"security": security}
    )
    assert loaded.security.read_roots == (Path("/srv/srstream/in"),)
    assert loaded.security.write_roots == (Path("/srv/srstream/out"),)


def test_no_setting_is_missing(everything: Path) -> None:
    said = list(said_in(tomllib.loads(everything.read_text())))
    assert sorted(said) == sorted(names_of(ServiceSettings))


def test_what_is_commented_out_would_be_taken(everything: Path) -> None:
    loaded = load_settings(everything)
    assert loaded.watch[0].config is not None
    assert loaded.watch[0].config.model.name == "balanced"
    assert loaded.sockets.control_tcp == "tcp://192.0.2.1:7711"
    assert loaded.metrics.port == 9711
    shipped = InboxFolder.model_fields
    for name in ("settle_seconds", "patterns", "priority"):
        assert getattr(loaded.watch[0], name) == shipped[name].default
    assert loaded.defaults.model_copy(update={"model": JobConfig().model}) != JobConfig()


def test_the_environment_stands_above_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRSTREAM_JOBS__MAX_RUNNING", "5")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/srstream:/var/lib/more")
    loaded = load_settings(SHIPPED)
    assert loaded.jobs.max_running == 5
    assert loaded.jobs.max_queued == 10_000
    assert loaded.jobs.state_dir == Path("/var/lib/srstream")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1", "nonsense"),
        ("[jobs]\nmax_running = 0", "jobs.max_running"),
        ("[workers]\ndevices = ['cuda']", "workers.devices.0"),
        ("[jobs", "not valid TOML"),
        ("[security]\nread_roots = ['in']", "not an absolute path"),
        (WATCH.replace("/a", "a"), "not an absolute path"),
        ("[sockets]\ncontrol_tcp = 'udp://a:1'", "sockets.control_tcp"),
        (
            f"security = {{read_roots = {[f'/{n}' for n in range(64)]}}}\n{WATCH}",
            "more than 64 folders",
        ),
    ],
)
def test_a_wrong_one_is_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "srstream.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_the_system_configuration_is_for_those_who_have_no_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "etc/srstream.toml"
    monkeypatch.setattr(settings, "SYSTEM_CONFIG", system)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path / "own"))
    assert settings.system_config() is None
    system.parent.mkdir()
    system.touch()
    assert settings.system_config() == system
    (tmp_path / "own/keys").mkdir(parents=True)
    assert settings.system_config() is None
