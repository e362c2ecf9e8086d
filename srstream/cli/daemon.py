"""The commands that talk to a running daemon, and those that manage its keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srstream.cli.job_view import JobBar, details, event_line, sentence, table
from srstream.cli.options import JobOptions, Json, Output, Overwrite, with_job_options
from srstream.errors import InterruptedJobError, UsageError
from srstream.terminal import show, show_json, tell

if TYPE_CHECKING:
    from srstream.client.jobs import Client
    from srstream.protocol.control import JobInfo
    from srstream.protocol.keys import KeyRing

app = typer.Typer(pretty_exceptions_enable=False)
keys_app = typer.Typer(
    help="Keys of clients that reach the daemon over TCP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def add_to(parent: typer.Typer) -> None:
    """Add these commands to `srstream`."""
    parent.add_typer(app)
    parent.add_typer(keys_app, name="keys")


Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="SRSTREAM_ADDRESS",
        help="Where the daemon listens: ipc://PATH, tcp://HOST:PORT. "
        "[dim]default: that of this machine[/]",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        "--client-key", envvar="SRSTREAM_CLIENT_KEY", help="Over TCP: the file of `keys new`."
    ),
]
OfService = Annotated[
    bool, typer.Option("--service", help="Ask the daemon instead of this machine.")
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, which submit prints.")
]
PriorityArgument = Annotated[
    int, typer.Argument(metavar="N", min=-10, max=10, help="Higher ones go first.")
]


@app.command()
@with_job_options()
def submit(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="The video or picture to enhance.")
    ],
    *,
    output: Output = None,
    overwrite: Overwrite = False,
    options: JobOptions,
    priority: Annotated[
        int, typer.Option("--priority", min=-10, max=10, help="Higher ones go first.")
    ] = 0,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", help="A key that you choose; submitting with it again adds no second job."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """Give a video or a picture to the daemon, and print the job's id.

    Options that are not given come from the daemon's configuration. With --wait the exit code is
    the job's: 0 done, 1 failed, 4 done in part.
    """
    options.config()  # refuse wrong options before the daemon is asked
    with _client(address, client_key) as client:
        job = client.submit(
            source,
            output,
            config=options.sections(),
            overwrite=overwrite,
            priority=priority,
            key=key,
        )
        if not wait:
            _print_model(job, as_json, job.id)
            return
        if not as_json:
            show(job.id)
        try:
            with JobBar() as bar:
                job = client.wait(job.id, on_info=bar)
        except KeyboardInterrupt:
            tell(f"srstream: the job goes on; srstream watch {job.id} follows it, cancel ends it.")
            raise typer.Exit(InterruptedJobError.exit_code) from None
    _print_model(job, as_json, sentence(job))
    raise typer.Exit(_exit_code(job))


@app.command()
def jobs(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="One job. [dim]default: all[/]")
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", help="Only jobs of this state; can be given several times."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Largest number of jobs to list.")
    ] = 100,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """List the daemon's jobs, newest first, or show one in full."""
    with _client(address, client_key) as client:
        if job is not None:
            info = client.status(job)
            _print_model(info, as_json, *details(info))
            return
        found = client.list(*_checked_states(state or ()), limit=limit)
    if as_json:
        show_json(json.dumps([info.model_dump(mode="json") for info in found], indent=2))
    else:
        show(*table(found))


@app.command()
def watch(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Only this job, until it has ended.")
    ] = None,
    after: Annotated[
        int, typer.Option("--after", min=-1, help="Begin after this event; -1: now.")
    ] = -1,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """Print events of jobs as they happen, one on a line."""
    from srstream.protocol.control import FINAL_STATES

    with _client(address, client_key) as client:
        if job is not None and after < 0 and client.status(job).state in FINAL_STATES:
            return
        for event in client.watch(job, after=after):
            _print_model(event, as_json, event_line(event), indent=None)
            if job is not None and event.data.get("state") in FINAL_STATES:
                return


@app.command()
def cancel(
    job: JobArgument, address: Address = None, client_key: Key = None, as_json: Json = False
) -> None:
    """End a job for good."""
    with _client(address, client_key) as client:
        info = client.cancel(job)
    _print_model(info, as_json, sentence(info))


@app.command()
def pause(
    job: JobArgument, address: Address = None, client_key: Key = None, as_json: Json = False
) -> None:
    """Stop a job at the end of the segment under way."""
    with _client(address, client_key) as client:
        info = client.pause(job)
    _print_model(info, as_json, sentence(info))


@app.command()
def resume(
    job: JobArgument, address: Address = None, client_key: Key = None, as_json: Json = False
) -> None:
    """Let a paused job continue; try a failed one again."""
    with _client(address, client_key) as client:
        info = client.resume(job)
    _print_model(info, as_json, sentence(info))


@app.command(context_settings={"ignore_unknown_options": True})  # so that -3 is a number
def priority(
    job: JobArgument,
    number: PriorityArgument,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """Change a job's priority, from -10 to 10."""
    with _client(address, client_key) as client:
        info = client.set_priority(job, number)
    _print_model(info, as_json, f"{info.id}: priority {info.priority}")


@app.command()
def health(
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")
    ] = 10.0,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the daemon's condition. Exit code 0 if it is well, 1 if not, 5 if there is no answer."""
    with _client(address, client_key, timeout) as client:
        info = client.health()
    well = "well" if info.ok else "not well"
    lines = [
        f"{well}: {info.num_running} jobs run, {info.num_queued} wait, {info.num_paused} paused"
    ]
    lines += [f"{worker.name} on {worker.device}: {worker.state}" for worker in info.workers]
    lines += [f"problem: {problem}" for problem in info.problems]
    lines += [f"note: {note}" for note in info.notes]
    _print_model(info, as_json, *lines)
    raise typer.Exit(0 if info.ok else 1)


@app.command()
def reload(address: Address = None, client_key: Key = None, as_json: Json = False) -> None:
    """Have the daemon read its configuration and its keys again."""
    with _client(address, client_key) as client:
        result = client.reload()
    later = ", ".join(result.get("needs_restart") or ())
    text = "reloaded" + (f"; {later}: from the next start on" if later else "")
    _print(result, as_json, text)


def list_models(address: str | None, client_key: Path | None, as_json: bool) -> None:
    """Do `srstream models list --service`."""
    with _client(address, client_key) as client:
        result = client.models()
    if as_json:
        show_json(json.dumps(result, indent=2))
        return
    for model in result["models"]:
        show(model["name"] + (" (default)" if model["name"] == result["default"] else ""))


def add_model(
    weights: Path, name: str | None, replace: bool, address: str | None, client_key: Path | None
) -> str:
    """Do `srstream models add --service`; returns the model's name."""
    with _client(address, client_key) as client:
        return str(client.add_model(weights, name, replace=replace)["name"])


def remove_model(name: str, address: str | None, client_key: Path | None) -> str:
    """Do `srstream models remove --service`; returns the model's name."""
    with _client(address, client_key) as client:
        return str(client.remove_model(name)["name"])


def use_model(
    name: Annotated[
        str, typer.Argument(help="The model's name, as `models list --service` shows it.")
    ],
    running: Annotated[
        bool,
        typer.Option("--running", help="Also change jobs that have begun with the former default."),
    ] = False,
    address: Address = None,
    client_key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a model the daemon's default."""
    with _client(address, client_key) as client:
        result = client.use_model(name, running=running)
    _print(result, as_json, f"{name}: the default from now on")


KeysDir = Annotated[
    Path | None,
    typer.Option(
        "--keys-dir", help="Folder of the daemon's keys. [dim]default: as its configuration says[/]"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The daemon's configuration, to find its keys. "
        "[dim]default: this user's; if there is none, the system service's[/]",
    ),
]
IsAdmin = Annotated[
    bool, typer.Option("--admin", help="The client may also change the jobs of others.")
]
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="The client's name.")]


@keys_app.command("new")
def new_key(
    name: KeyName,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File for the client. [dim]default: NAME.key[/]"),
    ] = None,
    admin: IsAdmin = False,
    keys_dir: KeysDir = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a client's key, allow it, and write the file that the client needs."""
    from srstream.protocol.keys import write_client_key

    ring = _ring(keys_dir, config)
    path = Path(f"{name}.key") if output is None else output
    if path.exists():
        raise UsageError(f"{path}: exists already and was not touched; choose another --output.")
    key = ring.new(name, "admin" if admin else "client")
    try:
        write_client_key(key, path)
    except BaseException:
        ring.revoke(name)
        raise
    told = {"name": name, "public": key.public, "file": str(path)}
    text = f"{name}: allowed; give {path} to the client, by a way that nobody else can read"
    _print(told, as_json, text)


# One key in 85 begins with a dash.
@keys_app.command("allow", context_settings={"ignore_unknown_options": True})
def allow_key(
    key: Annotated[str, typer.Argument(metavar="FILE_OR_KEY", help="A client's public key.")],
    name: Annotated[
        str | None,
        typer.Option("--name", help="The client's name. [dim]default: the file's name[/]"),
    ] = None,
    admin: IsAdmin = False,
    keys_dir: KeysDir = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Allow a client's key, and print the server's public key, which the client needs."""
    from srstream.protocol.keys import public_key_of

    found, public = public_key_of(key)
    name = name or found
    if name is None:
        raise UsageError("a key by itself has no name; give it one with --name.")
    ring = _ring(keys_dir, config)
    ring.allow(name, public, "admin" if admin else "client")
    told = {"name": name, "public": public, "server": ring.public}
    _print(told, as_json, f"{name}: allowed; the server's key is {ring.public}")


@keys_app.command("revoke")
def revoke_key(
    name: KeyName, keys_dir: KeysDir = None, config: ConfigFile = None, as_json: Json = False
) -> None:
    """Remove a client's key; a running daemon notices at once."""
    _ring(keys_dir, config).revoke(name)
    _print({"name": name, "revoked": True}, as_json, f"{name}: revoked")


@keys_app.command("list")
def list_keys(keys_dir: KeysDir = None, config: ConfigFile = None, as_json: Json = False) -> None:
    """List the clients that may connect, and the server's public key."""
    ring = _ring(keys_dir, config)
    if as_json:
        told = {"server": ring.public, "clients": ring.names(), "admins": ring.admins()}
        show_json(json.dumps(told, indent=2))
        return
    show(f"{ring.public}  (the server)")
    for name, public in ring.names().items():
        show(f"{public}  {name}{' (admin)' if name in ring.admins() else ''}")


def _client(address: str | None, client_key: Path | None, timeout: float = 10.0) -> Client:
    from srstream.client.jobs import Client

    return Client(address, key=client_key, timeout_seconds=timeout)


def _ring(folder: Path | None, config: Path | None) -> KeyRing:
    from srstream.daemon.settings import keys_dir, load_settings, system_config
    from srstream.protocol.keys import KeyRing

    if folder is None:
        config = config or system_config()
        folder = keys_dir(load_settings(config), config)
    return KeyRing(folder)


def _checked_states(states: Iterable[str]) -> Any:
    from typing import get_args

    from srstream.protocol.control import JobState

    known = get_args(JobState)
    for state in states:
        if state not in known:
            raise UsageError(f"--state {state}: there are {', '.join(known)}.")
    return states


def _print_model(model: Any, as_json: bool, *lines: str, indent: int | None = 2) -> None:
    if as_json:
        show_json(model.model_dump_json(indent=indent))
    else:
        show(*lines)


def _print(data: Any, as_json: bool, text: str) -> None:
    if as_json:
        show_json(json.dumps(data))
    else:
        show(text)


def _exit_code(job: JobInfo) -> int:
    if job.state != "done":
        return 1
    return int((job.result or {}).get("exit_code") or 0)
