"""Every setting of the daemon, one class per table of `srstream.toml`.

Read from the file, then from the environment (`SRSTREAM_JOBS__MAX_RUNNING=3`). Folders that systemd
hands over (`STATE_DIRECTORY`, `RUNTIME_DIRECTORY`, `CONFIGURATION_DIRECTORY`) are the defaults.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from srstream.config import JobConfig, Section
from srstream.errors import ConfigError
from srstream.protocol.addresses import (
    CONTROL_NAME,
    FRAMES_NAME,
    default_runtime_dir,
    folder_of_service,
)

CONFIG_NAME = "srstream.toml"
SYSTEM_CONFIG = Path("/etc/srstream") / CONFIG_NAME

LogLevel = Literal["debug", "info", "warning", "error"]
LogForm = Literal["auto", "json", "console"]
AbsolutePath = Annotated[Path, Field(description="absolute path")]
MAX_ROOTS = 64
TcpAddress = Annotated[str, Field(pattern=r"^tcp://[^/\s]+:\d{1,5}$")]


def default_state_dir() -> Path:
    return folder_of_service("STATE_DIRECTORY", platformdirs.user_state_dir)


def default_config_dir() -> Path:
    return folder_of_service("CONFIGURATION_DIRECTORY", platformdirs.user_config_dir)


class SocketSettings(Section):
    """Where clients reach the daemon."""

    runtime_dir: Path = Field(
        default_factory=default_runtime_dir,
        description="folder of the sockets: control.sock, frames.sock",
    )
    mode: int = Field(0o660, ge=0, le=0o777, description="of the ipc sockets")
    group: str | None = Field(None, description="that owns the ipc sockets; None: the daemon's own")
    control_tcp: TcpAddress | None = Field(
        None, description="control over TCP as well, such as tcp://192.0.2.1:7711; CURVE only"
    )
    frames_tcp: TcpAddress | None = Field(None, description="frames over TCP as well; CURVE only")
    max_clients: int = Field(256, ge=1, le=65536, description="connections that are told apart")

    @property
    def control_path(self) -> Path:
        return self.runtime_dir / CONTROL_NAME

    @property
    def frames_path(self) -> Path:
        return self.runtime_dir / FRAMES_NAME


class SecuritySettings(Section):
    """What a job may touch, and how large it may be."""

    read_roots: tuple[Path, ...] = Field(
        (),
        max_length=MAX_ROOTS,
        description="folders beneath which inputs lie; none: no job is accepted",
    )
    write_roots: tuple[Path, ...] = Field(
        (), max_length=MAX_ROOTS, description="folders beneath which outputs go"
    )
    keys_dir: Path | None = Field(
        None, description="CURVE keys, see `srstream keys`; None: keys/ beside the configuration"
    )
    max_pixels: int = Field(
        8192 * 8192, ge=1, description="largest width x height of an input that is decoded"
    )
    max_duration_seconds: float = Field(
        24 * 3600.0, gt=0, description="longest input by its header"
    )
    max_streams: int = Field(100, ge=1, description="streams of one input")
    decoder_memory_bytes: int = Field(
        2 << 30, ge=256 << 20, description="address space of a decoder process beyond its code"
    )


class JobSettings(Section):
    """The queue."""

    state_dir: Path = Field(
        default_factory=default_state_dir, description="queue, unfinished work, pinned weights"
    )
    max_running: int = Field(2, ge=1, le=64, description="jobs at once on one device")
    max_queued: int = Field(10_000, ge=1, description="more are refused")
    max_attempts: int = Field(
        8, ge=1, le=1000, description="of a job whose failure may pass; a full disk never counts"
    )
    retry_seconds: float = Field(2.0, gt=0, description="before the second attempt; then doubled")
    max_retry_seconds: float = Field(300.0, gt=0, description="longest pause between attempts")
    keep_days: float = Field(
        30.0,
        gt=0,
        description="how long ended jobs and what has left a watch folder are remembered",
    )
    max_frame_sessions: int = Field(8, ge=0, le=256, description="clients that push raw frames")


class WorkerSettings(Section):
    """The engine workers."""

    devices: tuple[Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d{1,2})$")], ...] = Field(
        ("auto",), min_length=1, max_length=16, description="auto, cpu, cuda:0 ...; one worker each"
    )
    stall_seconds: float = Field(
        120.0, gt=0, description="a worker whose jobs do not advance for so long is replaced"
    )
    heartbeat_seconds: float = Field(20.0, gt=0, description="silence after which it is replaced")
    max_restarts: int = Field(
        5, ge=1, description="deaths in a row without a job advancing; then the daemon ends"
    )


class InboxFolder(Section):
    """A folder in which every file that has stopped growing becomes a job."""

    folder: AbsolutePath
    output: AbsolutePath
    quarantine: AbsolutePath
    settle_seconds: float = Field(5.0, gt=0, le=3600, description="without a change: it is whole")
    patterns: tuple[str, ...] = Field(
        ("*.mp4", "*.mkv", "*.mov", "*.avi", "*.webm", "*.ts", "*.m4v", "*.mpg", "*.mpeg"),
        min_length=1,
        max_length=64,
        description="names that are taken, whatever their case",
    )
    priority: int = Field(0, ge=-10, le=10)
    config: JobConfig | None = Field(None, description="None: [defaults]")


class MetricsSettings(Section):
    """Prometheus; off unless one of the two is given."""

    address: str = Field("127.0.0.1", description="to listen on")
    port: int | None = Field(None, ge=1, le=65535)
    path: Path | None = Field(None, description="a unix socket instead of a port")


class LogSettings(Section):
    """What is told, and how."""

    level: LogLevel = "info"
    form: LogForm = Field("auto", description="auto: for people on a terminal, else JSON lines")


class ServiceSettings(BaseSettings):
    """The whole configuration of `srstream serve`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="SRSTREAM_", env_nested_delimiter="__"
    )

    sockets: SocketSettings = Field(default_factory=SocketSettings)
    security: SecuritySettings = SecuritySettings()
    jobs: JobSettings = Field(default_factory=JobSettings)
    workers: WorkerSettings = WorkerSettings()
    watch: tuple[InboxFolder, ...] = ()
    metrics: MetricsSettings = MetricsSettings()
    logs: LogSettings = LogSettings()
    defaults: JobConfig = Field(JobConfig(), description="what a job is that says nothing else")
    drain_seconds: float = Field(
        60.0, ge=0, description="on SIGTERM: how long segments under way may take to finish"
    )
    ready_file: Path | None = Field(None, description="exists while the daemon takes jobs")

    @model_validator(mode="after")
    def _needs_roots_for_watching(self) -> Self:
        for entry in self.watch:
            for folder in (entry.folder, entry.output, entry.quarantine):
                if not folder.is_absolute():
                    raise ValueError(f"watch: {folder} is not an absolute path")
        roots = self.security.read_roots, self.security.write_roots
        if max(map(len, roots)) + len(self.watch) > MAX_ROOTS:
            raise ValueError(f"security and watch: more than {MAX_ROOTS} folders")
        for root in (*roots[0], *roots[1]):
            if not root.is_absolute():
                raise ValueError(f"security: {root} is not an absolute path")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment stands above the file, which comes in as arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None) -> ServiceSettings:
    """The checked configuration; `path` None takes the usual file, if there is one.

    Raises:
        ConfigError: it cannot be read, or what in it is wrong, in one sentence.
    """
    if path is None:
        usual = default_config_dir() / CONFIG_NAME
        path = usual if usual.exists() else None
    values: dict[str, Any] = {}
    name = "the environment" if path is None else str(path)
    try:
        if path is not None:
            values = tomllib.loads(path.read_text())
        return ServiceSettings(**values)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}"
            for item in error.errors(include_url=False)
        )
        raise ConfigError(f"{name}: {problems}.") from error


def system_config() -> Path | None:
    """The system service's configuration; None if there is none, or this user has a daemon too."""
    own = default_config_dir()
    has_own = any((own / name).exists() for name in (CONFIG_NAME, "keys"))
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() and not has_own else None


def with_model(config: JobConfig, name: str) -> JobConfig:
    """The job's settings with another model."""
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def keys_dir(settings: ServiceSettings, path: Path | None) -> Path:
    """Where the keys are: as configured, else `keys` beside the configuration at `path`."""
    if settings.security.keys_dir is not None:
        return settings.security.keys_dir
    return (default_config_dir() if path is None else path.absolute().parent) / "keys"
