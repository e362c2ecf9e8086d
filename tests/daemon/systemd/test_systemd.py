"""The daemon runs under its systemd units, from the documented install to its uninstall.

Each test takes a real systemd, started as PID 1 of namespaces (`systemd.sh`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srstream.sandbox.confine import landlock_abi
from tests.support import clips
from tests.support.paths import REPOSITORY
from tests.support.service.systemd import (
    SYSTEM_PYTHON,
    boot,
    can_make_an_environment,
    install_units,
    skip_without_systemd,
)

DRIVER = """
systemd-sysusers
systemd-tmpfiles --create /etc/tmpfiles.d/srstream.conf
cat >/tmp/job.py <<'END'
import json, sys, time, zmq
socket = zmq.Context().socket(zmq.REQ)
socket.connect("ipc:///run/srstream/control.sock")
def ask(**request):
    socket.send(json.dumps(request).encode())
    assert socket.poll(30_000), "no reply"
    return json.loads(socket.recv())
deadline = time.monotonic() + 60
while not ask(op="health")["result"]["ok"] and time.monotonic() < deadline:
    time.sleep(0.2)
reply = ask(op="submit", input="/srv/video/input.mp4", output=sys.argv[1],
            config={"source": {"end_seconds": 0.5}})
assert reply["ok"], reply
job = reply["result"]
while job["state"] not in ("done", "failed", "quarantined") and time.monotonic() < deadline:
    time.sleep(0.2)
    job = ask(op="status", job=job["id"])["result"]
print(job["state"], job["error"])
END
cat >/tmp/confined.py <<'END'
import os
from srstream.sandbox.confine import confine, seal
source = os.open("/srv/video/input.mp4", os.O_RDONLY)
print(*confine(readable=[source], memory_bytes=None), *seal(), sep="; ")
END
echo "confined: $(cd PACKAGES && PYTHON /tmp/confined.py)" >>/results/found
mkdir -p /srv/video/{new,done,failed} /run/systemd/system/srstream.service.d
cp /srv/video/input.mp4 /srv/video/new/clip.mp4
echo 'no video' >/srv/video/new/broken.mp4
chown -R srstream:srstream /srv/video
printf '[Service]\nWatchdogSec=15\n' >/run/systemd/system/srstream.service.d/watchdog.conf
systemctl daemon-reload
systemctl start srstream.service; note start $?
note status "$(about StatusText)"
pid=$(about MainPID)
note capabilities "$(awk '/^CapBnd/ {print $2}' /proc/$pid/status)"
note privileges "$(awk '/^NoNewPrivs/ {print $2}' /proc/$pid/status)"
note user "$(stat -c %U /proc/$pid)"
note socket "$(stat -c '%a %U %G' /run/srstream/control.sock)"
note job "$(PYTHON /tmp/job.py /srv/video/one.mp4)"
note size "$(stat -c %s /srv/video/one.mp4)"
note outside "$(PYTHON /tmp/job.py /root/one.mp4 2>&1 | grep -o RefusedError)"
systemctl reload srstream.service; reloaded=$?
while [ "$(about ActiveState)" = reloading ]; do sleep 0.1; done
note reload "$reloaded $(about ActiveState)"
# A daemon that dies is started again, and clients wait meanwhile.
systemctl kill -s KILL --kill-whom=main srstream.service
note 'job after a kill' "$(PYTHON /tmp/job.py /srv/video/two.mp4)"
note restarts "$(about NRestarts)"
# A file in the watched folder.
wait_for /srv/video/failed/broken.mp4; note quarantine "$(ls /srv/video/failed | xargs)"
wait_for /srv/video/done/clip_4x.mp4.receipt.json; note watched "$(ls /srv/video/done | xargs)"
# A daemon that hangs is killed by the watchdog.
before=$(about NRestarts)
systemctl kill -s STOP --kill-whom=main srstream.service
for _ in $(seq 120); do [ "$(about NRestarts)" = "$before" ] || break; sleep 0.5; done
note 'result of hanging' "$(journalctl --no-pager -o cat -u srstream | grep -o "result 'watchdog'")"
note 'job after hanging' "$(PYTHON /tmp/job.py /srv/video/four.mp4)"
systemctl stop srstream.service; note stop "$? $(about Result) $(about ExecMainStatus)"
# The socket is systemd's: it stays, and the next client starts the daemon.
note 'socket of a stopped daemon' "$(stat -c %a /run/srstream/control.sock)"
note 'job that starts the daemon' "$(PYTHON /tmp/job.py /srv/video/three.mp4)"
systemctl stop srstream.service srstream.socket
note 'socket after all' "$(ls /run/srstream/control.sock 2>&1 | grep -o 'No such file')"
echo 'nonsense = 1' >>/etc/srstream/srstream.toml
systemctl start srstream.service; note 'bad configuration' "$(about ExecMainStatus)"
sleep 3; note 'restarts of it' "$(about NRestarts)"
journalctl --no-pager -o json -u srstream.service >/results/journal
"""


def home_folders() -> list[Path]:
    """Folders that this environment needs and that the service cannot see."""
    wanted = {Path(sys.prefix), Path(sys.base_prefix), REPOSITORY}
    return [path for path in wanted if path.parts[1] in ("home", "root", "tmp")]


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_daemon_runs_under_a_real_systemd(
    tmp_path: Path, sample_clip: Path, profile: str
) -> None:
    skip_without_systemd()
    layer, results = tmp_path / "layer", tmp_path / "results"
    units = install_units(layer, profile)
    binds = home_folders()
    (units / "srstream.service.d/folders.conf").write_text(
        "[Service]\nReadWritePaths=/srv/video\n"
        + "".join(f"BindReadOnlyPaths={path}\n" for path in binds)
    )
    (layer / "etc/srstream/srstream.toml").write_text(
        """
[security]
read_roots = ["/srv/video"]
write_roots = ["/srv/video"]
[[watch]]
folder = "/srv/video/new"
output = "/srv/video/done"
quarantine = "/srv/video/failed"
settle_seconds = 1
[watch.config.source]
end_seconds = 0.5
"""
    )
    (layer / "srv/video").mkdir(parents=True)
    shutil.copy(sample_clip, layer / "srv/video/input.mp4")
    driver = DRIVER.replace("PYTHON", sys.executable).replace("PACKAGES", str(REPOSITORY))
    found, log = boot(layer, results, driver, *binds)
    journal = [json.loads(line) for line in (results / "journal").read_text().splitlines()]
    text = "\n".join(str(entry["MESSAGE"]) for entry in journal)
    names = ["no_new_privs", "rlimits", "seccomp", "sealed"]
    names += [f"landlock {landlock_abi()}"] if landlock_abi() else []
    assert set(names) <= set(found.pop("confined").split("; "))
    assert int(found.pop("size")) > 10_000
    assert int(found.pop("restarts")) >= 1
    assert re.match(r"\d running, \d queued", found.pop("status"))
    assert found == {
        "start": "0",
        "capabilities": "0000000000000000",
        "privileges": "1",
        "user": "srstream",
        "socket": "660 srstream srstream",
        "job": "done None",
        "outside": "RefusedError",
        "reload": "0 active",
        "job after a kill": "done None",
        "quarantine": "broken.mp4 broken.mp4.reason.txt",
        "watched": "clip_4x.mp4 clip_4x.mp4.receipt.json",
        "result of hanging": "result 'watchdog'",
        "job after hanging": "done None",
        "stop": "0 success 0",
        "socket of a stopped daemon": "660",
        "job that starts the daemon": "done None",
        "socket after all": "No such file",
        "bad configuration": "2",
        "restarts of it": "0",
    }, log + text
    # Priorities arrive, and every line is JSON.
    lines = [e for e in journal if str(e["MESSAGE"]).startswith("{")]
    assert {"6"} <= {entry["PRIORITY"] for entry in lines}
    assert any(json.loads(entry["MESSAGE"]).get("job") for entry in lines)


SOURCES = (
    *("pyproject.toml", "README.md", "LICENSE", "Makefile"),
    *("srstream", "trainer", "systemd", "configs"),
)

INSTALL_DRIVER = r"""
export HOME=/root
srstream=/opt/srstream/bin/srstream
second='--address ipc:///run/srstream-worker/1/control.sock'
over_tcp='--address tcp://127.0.0.1:7711 --client-key /home/ann/ann.key'
units=/etc/systemd/system
as() { runuser -u "$1" -- "${@:2}" 2>&1; }
state() { systemctl show --value -p ActiveState,SubState,UnitFileState "$1" | xargs; }
files() { find /etc /opt /usr /var -xdev -path /var/log -prune -o -print | sort; }
install() { (umask 077; make install PYTHON=SYSTEM_PYTHON); note "$1" $?; }
job() { # OUTPUT, OPTION...
    as ann $srstream submit /srv/video/input.mp4 -o /srv/video/out/$1 --wait "${@:2}" >/tmp/said
    echo "$? $(grep -o 'done, .*' /tmp/said)"
    cat /tmp/said >&2
}
num_jobs() { as ann $srstream jobs "$@" | grep -c done; }
may_write() { # UNIT
    mkdir -p $units/$1.d
    printf '[Service]\nReadWritePaths=/srv/video/out\n' >$units/$1.d/override.conf
    systemctl daemon-reload
}
useradd --create-home ann; useradd bob
mkdir -p /srv/video/out
cd /root/source
files >/tmp/before

# Everything is in place, and nothing runs.
install install
note loaded "$(systemctl show -p LoadState --value srstream.{service,socket} srstream-worker@1 |
    xargs)"
note installed "$(state srstream.service), $(state srstream.socket)"
note folders "$(stat -c '%a %U' /run/srstream /etc/srstream /etc/srstream/keys | xargs)"

# Step by step as in docs/operations.md.
chown srstream:srstream /srv/video/out
sed -i 's#^read_roots.*#read_roots = ["/srv/video"]#
    s#^write_roots.*#write_roots = ["/srv/video/out"]#' /etc/srstream/srstream.toml
may_write srstream.service
systemctl enable --now srstream.socket srstream.service; note enable $?
usermod -aG srstream ann
note enabled "$(state srstream.service), $(state srstream.socket)"
note socket "$(stat -c '%a %U %G' /run/srstream/control.sock)"
note health "$(as ann $srstream health | xargs)"
note 'health asked by a stranger' "$(as bob $srstream health)"
note job "$(job one.mp4)"
as ann $srstream verify /srv/video/input.mp4 /srv/video/out/one.mp4 >/results/receipt
note verify $?
systemctl reload srstream; reloaded=$?
while [ "$(about ActiveState)" = reloading ]; do sleep 0.1; done
note reload "$reloaded $(about ActiveState)"

# A key, and access over the network.
(cd /; as srstream $srstream keys new ann -o /var/lib/srstream/ann.key)
note keys "$(cd /etc/srstream/keys && stat -c '%a %U %n' server.toml clients/* | xargs)"
mv /var/lib/srstream/ann.key /home/ann; chown ann: /home/ann/ann.key
sed -i 's/^#control_tcp.*/control_tcp = "tcp:\/\/127.0.0.1:7711"/' /etc/srstream/srstream.toml
printf '%s\n' PrivateNetwork=no 'RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6' \
    IPAddressAllow=127.0.0.0/8 >>$units/srstream.service.d/override.conf
systemctl daemon-reload; systemctl restart srstream; note restart $?
note 'health over TCP' "$(as ann $srstream health $over_tcp | xargs)"

# One more daemon.
sed '/^control_tcp/d' /etc/srstream/srstream.toml >/etc/srstream/worker-1.toml
may_write srstream-worker@.service
# Without a GPU it would not start: the unit asks for one.
printf '%s\n' "Environment='SRSTREAM_WORKERS__DEVICES=[\"cpu\"]'" \
    >>$units/srstream-worker@.service.d/override.conf
systemctl enable --now srstream-worker@1; note 'enable a second' $?
note 'the second' "$(state srstream-worker@1)"
note 'device of the second' "$(as ann $srstream health $second | grep -o 'on .*')"
note 'socket of the second' "$(stat -c '%a %U %G' /run/srstream-worker/1/control.sock)"
note 'job of the second' "$(job two.mp4 $second)"
note 'jobs of each' "$(num_jobs) $(num_jobs $second)"
note 'state of each' "$(stat -c '%a %U' /var/lib/srstream /var/lib/srstream-worker/1 | xargs)"

# A newer version, while the daemon runs.
sed -i 's/^version = .*/version = "99.0"/' pyproject.toml
configured=$(sha256sum /etc/srstream/srstream.toml) pid=$(about MainPID)
install upgrade
note version "$($srstream --version)"
[ "$configured" = "$(sha256sum /etc/srstream/srstream.toml)" ] && note configuration kept
[ "$pid" = "$(about MainPID)" ] && note daemon 'runs on'
note 'job of the old daemon' "$(job three.mp4)"
systemctl restart srstream 'srstream-worker@*'; note 'restart after an upgrade' $?
note 'job of the new one' "$(job four.mp4)"
note 'jobs of all' "$(num_jobs)"

make uninstall; note uninstall $?
note units "$(systemctl list-units --all --plain --no-legend 'srstream*' | xargs)"
note processes "$(pgrep -u srstream)"
note runtime "$(ls -d /run/srstream* 2>/dev/null)"
note user "$(id -nG ann)"
note outputs "$(ls /srv/video/out | xargs)"
note queue "$(cd /var/lib/srstream && ls *.sqlite | xargs)"
files | comm -13 /tmp/before - >/results/left
make uninstall; note 'uninstall again' $?
journalctl --no-pager -o cat >>/results/driver.log
"""

KEPT = r"""
    (/var/cache/srstream | /var/lib/srstream-worker) (/.*)?
    | /etc/srstream | /etc/srstream/(srstream|worker-1)\.toml
    | /etc/srstream/keys (/server\.toml | /clients (/ann\.toml)?)?
    | /etc/systemd/system/srstream(-worker@)?\.service\.d (/override\.conf)?
    | /etc/(sysusers|tmpfiles)\.d | /etc/systemd/system/(multi-user|sockets)\.target\.wants
"""


def skip_without_packages(folder: Path) -> None:
    """Ask pip for the build requirements, as `make install` does."""
    subprocess.run([SYSTEM_PYTHON, "-m", "venv", str(folder)], check=True)
    done = subprocess.run(
        [folder / "bin/pip", "download", "--no-deps", "-d", str(folder), "hatchling"],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("pip reaches no index of packages")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_documented_steps_from_install_to_uninstall(tmp_path: Path) -> None:
    skip_without_systemd()
    if not Path(SYSTEM_PYTHON).exists() or not can_make_an_environment():
        pytest.skip(f"{SYSTEM_PYTHON} is no Python 3.11 that can make environments")
    skip_without_packages(tmp_path / "probe")
    layer, results = tmp_path / "layer", tmp_path / "results"
    (layer / "srv/video").mkdir(parents=True)
    clips.cfr(layer / "srv/video/input.mp4", frames=20)
    source = layer / "root/source"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(REPOSITORY / name, source)
    given = [(name, value) for name, value in os.environ.items() if name.startswith("PIP_")]
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in given)
    driver = exports + INSTALL_DRIVER.replace("SYSTEM_PYTHON", SYSTEM_PYTHON)
    found, log = boot(layer, results, driver)
    well = "well: 0 jobs run, 0 wait, 0 paused engine-0 on auto: ready"
    done = "0 done, /srv/video/out"
    assert found == {
        "install": "0",
        "loaded": "loaded loaded loaded",
        "installed": "inactive dead disabled, inactive dead disabled",
        "folders": "755 srstream 755 root 700 srstream",
        "enable": "0",
        "enabled": "active running enabled, active running enabled",
        "socket": "660 srstream srstream",
        "health": well,
        "health asked by a stranger": "srstream: /run/srstream/control.sock: Permission denied.",
        "job": f"{done}/one.mp4",
        "verify": "0",
        "reload": "0 active",
        "keys": "600 srstream server.toml 600 srstream clients/ann.toml",
        "restart": "0",
        "health over TCP": well,
        "enable a second": "0",
        "the second": "active running enabled",
        "device of the second": "on cpu: ready",
        "socket of the second": "660 srstream srstream",
        "job of the second": f"{done}/two.mp4",
        "jobs of each": "1 1",
        "state of each": "700 srstream 700 srstream",
        "upgrade": "0",
        "version": "99.0",
        "configuration": "kept",
        "daemon": "runs on",
        "job of the old daemon": f"{done}/three.mp4",
        "restart after an upgrade": "0",
        "job of the new one": f"{done}/four.mp4",
        "jobs of all": "3",
        "uninstall": "0",
        "units": "",
        "processes": "",
        "runtime": "",
        "user": "ann srstream",
        "outputs": "four.mp4 one.mp4 three.mp4 two.mp4",
        "queue": "jobs.sqlite watch.sqlite",
        "uninstall again": "0",
    }, log
    receipt = json.loads((results / "receipt").read_text())
    assert (receipt["num_frames_in"], receipt["num_frames_out"]) == (20, 20)
    left = (results / "left").read_text().splitlines()
    assert "/var/lib/srstream-worker/1/jobs.sqlite" in left
    assert [path for path in left if not re.fullmatch(KEPT, path, re.VERBOSE)] == []
