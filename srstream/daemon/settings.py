"""The settings of the daemon: one class for each table of `srstream.toml`.

The environment (`SRSTREAM_JOBS__MAX_RUNNING=3`) overrides the file. Default folders are those that
systemd names (`STATE_DIRECTORY`, `RUNTIME_DIRECTORY`, `CONFIGURATION_DIRECTORY`), else the user's.
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
from srstream.naming import PICTURE_SUFFIXES
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
    """The sockets on which clients reach the daemon."""

    runtime_dir: Path = Field(
        default_factory=default_runtime_dir,
        description="folder of the sockets: control.sock, frames.sock",
    )
    mode: int = Field(0o660, ge=0, le=0o777, description="file mode of the ipc sockets")
    group: str | None = Field(
        None, description="group that owns the ipc sockets; None: the daemon's own"
    )
    control_tcp: TcpAddress | None = Field(
        None,
        description="control over TCP, such as tcp://192.0.2.1:7711; CURVE only",
    )
    frames_tcp: TcpAddress | None = Field(None, description="frames over TCP; CURVE only")
    max_clients: int = Field(256, ge=1, le=65536, description="connections at a time")

    @property
    def control_path(self) -> Path:
        return self.runtime_dir / CONTROL_NAME

    @property
    def frames_path(self) -> Path:
        return self.runtime_dir / FRAMES_NAME


class SecuritySettings(Section):
    """Which folders a job may use, and how large its input may be."""

    read_roots: tuple[Path, ...] = Field(
        (),
        max_length=MAX_ROOTS,
        description="folders that hold inputs; without one no job is accepted",
    )
    write_roots: tuple[Path, ...] = Field(
        (), max_length=MAX_ROOTS, description="folders that take outputs"
    )
    admin_users: tuple[str, ...] = Field(
        (),
        description="names or ids of local users who, beside root and the daemon's own user, may "
        "change the jobs of others",
    )
    keys_dir: Path | None = Field(
        None, description="CURVE keys, see `srstream keys`; None: keys/ beside the configuration"
    )
    max_pixels: int = Field(
        8192 * 8192, ge=1, description="largest width x height of an input that is decoded"
    )
    max_duration_seconds: float = Field(
        24 * 3600.0, gt=0, description="longest input, by its header"
    )
    max_streams: int = Field(100, ge=1, description="streams in one input")
    decoder_memory_bytes: int = Field(
        2 << 30, ge=256 << 20, description="address space of a decoder process, without its code"
    )


class JobSettings(Section):
    """The queue and how often a job is tried."""

    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="folder of the queue, unfinished work and pinned weights",
    )
    output_dir: Path | None = Field(
        None,
        description="folder of outputs that no submit names, beneath a write root; None: the "
        "input's own if it is beneath one, otherwise the only write root",
    )
    max_running: int = Field(2, ge=1, le=64, description="jobs at a time on one device")
    max_queued: int = Field(
        10_000, ge=1, description="unfinished jobs in the queue; more are refused"
    )
    max_queued_per_client: int = Field(
        5_000, ge=1, description="unfinished jobs of one client; more are refused"
    )
    max_running_per_client: int | None = Field(
        None, ge=1, description="jobs of one client that run at a time; None: as many as there are"
    )
    max_attempts: int = Field(
        8,
        ge=1,
        le=1000,
        description="attempts at a job whose failure may pass; a full disk never counts",
    )
    retry_seconds: float = Field(
        2.0, gt=0, description="pause before the second attempt; it doubles each time"
    )
    max_retry_seconds: float = Field(300.0, gt=0, description="longest pause between attempts")
    keep_days: float = Field(
        30.0,
        gt=0,
        description="how long ended jobs, and files that have left a watch folder, are remembered",
    )
    low_space_bytes: int = Field(
        1 << 30,
        ge=0,
        description="less free space, if it is under a twentieth of the disk too, is a problem",
    )
    max_frame_sessions: int = Field(
        8, ge=0, le=256, description="clients that push raw frames at a time"
    )


class WorkerSettings(Section):
    """The engine workers."""

    devices: tuple[Annotated[str, Field(pattern=r"^(auto|cpu|cuda:\d{1,2})$")], ...] = Field(
        ("auto",), min_length=1, max_length=16, description="auto, cpu, cuda:0 ...; one worker each"
    )
    stall_seconds: float = Field(
        120.0, gt=0, description="time without progress after which a worker is replaced"
    )
    heartbeat_seconds: float = Field(
        20.0, gt=0, description="silence after which a worker is replaced"
    )
    max_restarts: int = Field(
        5, ge=1, description="deaths in a row, without progress, after which the daemon ends"
    )


class InboxFolder(Section):
    """A watch folder: every file in it that has stopped growing becomes a job."""

    folder: AbsolutePath
    output: AbsolutePath
    quarantine: AbsolutePath
    settle_seconds: float = Field(
        5.0, gt=0, le=3600, description="a file that has not changed for so long is whole"
    )
    patterns: tuple[str, ...] = Field(
        (
            *("*.mp4", "*.mkv", "*.mov", "*.avi", "*.webm", "*.ts", "*.m4v", "*.mpg", "*.mpeg"),
            *(f"*{suffix}" for suffix in sorted(PICTURE_SUFFIXES)),
        ),
        min_length=1,
        max_length=64,
        description="patterns of the names that are taken, in upper or lower case",
    )
    priority: int = Field(0, ge=-10, le=10)
    config: JobConfig | None = Field(None, description="job settings; None: [defaults]")


class MetricsSettings(Section):
    """Where Prometheus reads metrics: nowhere unless `port` or `path` is given."""

    address: str = Field("127.0.0.1", description="address to listen on")
    port: int | None = Field(None, ge=1, le=65535)
    path: Path | None = Field(None, description="a unix socket instead of a port")


class LogSettings(Section):
    """Which log lines are written, and in which form."""

    level: LogLevel = "info"
    form: LogForm = Field(
        "auto", description="auto: readable text on a terminal, otherwise JSON lines"
    )


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
    defaults: JobConfig = Field(JobConfig(), description="job settings that a client leaves out")
    drain_seconds: float = Field(
        60.0, ge=0, description="on SIGTERM: how long segments under way may take to end"
    )
    ready_file: Path | None = Field(
        None, description="file that exists while the daemon takes jobs"
    )

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
        default, outputs = self.jobs.output_dir, [entry.output for entry in self.watch]
        if default and not any(map(default.is_relative_to, (*roots[1], *outputs))):
            raise ValueError(f"jobs.output_dir: {default} is beneath none of the write_roots")
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
        """The environment overrides the file, whose values are the arguments."""
        return env_settings, init_settings


def load_settings(path: Path | None) -> ServiceSettings:
    """Read and check the configuration; without a `path`, the default file if it exists.

    Raises:
        ConfigError: it cannot be read, or has a mistake, which the message names.
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
    """The system service's configuration; None without one, or where this user has a daemon."""
    own = default_config_dir()
    has_own = any((own / name).exists() for name in (CONFIG_NAME, "keys"))
    return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() and not has_own else None


def with_model(config: JobConfig, name: str) -> JobConfig:
    """The job's settings with another model."""
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def keys_dir(settings: ServiceSettings, path: Path | None) -> Path:
    """The folder of the keys: the configured one, or `keys` beside the configuration at `path`."""
    if settings.security.keys_dir is not None:
        return settings.security.keys_dir
    return (default_config_dir() if path is None else path.absolute().parent) / "keys"
