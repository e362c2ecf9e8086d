"""Confines a process before it parses hostile media.

It uses resource limits, Landlock (files, TCP, signals) and a seccomp filter (other system calls);
none replaces another. A measure that the kernel or machine lacks is skipped, and its name is not
returned. Landlock and libseccomp are called directly: both interfaces are small and frozen, and
their Python bindings are young or unmaintained.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_MAX_DESCRIPTORS, _MAX_DESCRIPTORS_WITH_DEVICES = 128, 1024
_MAX_LOG_BYTES = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def confine(
    *,
    readable: Sequence[int],
    writable: Sequence[int] = (),
    memory_bytes: int | None,
    network: bool = False,
    devices: bool = False,
) -> tuple[str, ...]:
    """Permanently give up what decoding does not need; return the names of the measures in force.

    Call it after all imports, before media is read and before other threads start: Landlock applies
    only to threads that start afterwards, and its name counts those that already run. The names:
    "no_new_privs", "rlimits", "capabilities", "landlock N" with the kernel's ABI, "seccomp".

    Args:
        readable: descriptors of files and folders that may be read, a folder with its content.
        writable: descriptors of folders in which files may be read, written, made and removed.
        memory_bytes: address space beyond what is mapped now, threads' stacks included. With
            `devices`, writable memory instead: CUDA reserves more addresses than a device holds.
        network: whether internet sockets may be opened.
        devices: file access is not restricted, since a GPU's driver needs many files that
            nobody lists; the name is then "landlock N without files".
    """
    names = []
    num_free = len(os.listdir("/proc/self/task")) - 1
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        names.append("no_new_privs")
    _limit_resources(memory_bytes, may_write=bool(writable) or devices, devices=devices)
    names.append("rlimits")
    if _drop_capabilities():
        names.append("capabilities")
    abi = _restrict_with_landlock(readable, writable, network=network, files=not devices)
    if abi:
        but = " without files" if devices else ""
        but += f" (not for {num_free} threads that ran already)" if num_free else ""
        names.append(f"landlock {abi}{but}")
    if _filter_calls(network=network):
        names.append("seccomp")
    return tuple(names)


def seal() -> tuple[str, ...]:
    """Refuse all new sockets and connections from now on, in every thread of this process.

    Landlock does not prevent a connection to a socket file that the user may write to (the session
    bus, another daemon). Call this once the process's own socket is connected. Returns ("sealed",),
    or an empty tuple without libseccomp.
    """
    return ("sealed",) if _load_filter([(name, ()) for name in _SOCKET_CALLS]) else ()


# Resource limits


def _limit_resources(memory_bytes: int | None, *, may_write: bool, devices: bool) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _MAX_DESCRIPTORS_WITH_DEVICES if devices else _MAX_DESCRIPTORS)
    if not may_write:
        # Standard error goes to a file, and hostile media could fill the disk with it.
        _lower(resource.RLIMIT_FSIZE, _MAX_LOG_BYTES)
    if memory_bytes is not None:
        limit, column = (resource.RLIMIT_DATA, 5) if devices else (resource.RLIMIT_AS, 0)
        num_pages = int(Path("/proc/self/statm").read_text().split()[column])
        _lower(limit, num_pages * resource.getpagesize() + memory_bytes)


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(limit, (value, value))


# Capabilities, which only root has

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_READ_SEARCH = 2


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    """capset(2): the lower 32 of each set, then the upper."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
        ("upper", ctypes.c_uint32 * 3),
    )


def _drop_capabilities() -> bool:
    """Drop all capabilities except reading files regardless of their owner."""
    header, found = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), _CapabilitySets()
    if _libc.capget(ctypes.byref(header), ctypes.byref(found)) != 0:
        return False
    kept = found.permitted & (1 << _CAP_DAC_READ_SEARCH)
    wanted = _CapabilitySets(effective=kept, permitted=kept)
    return bool(_libc.capset(ctypes.byref(header), ctypes.byref(wanted)) == 0)


# Landlock (linux/landlock.h); its calls have the same numbers on every architecture

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_FOR_ABI = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE, _MAKE, _MOVE, _TRUNCATE, _IOCTL = 3 << 4, 3 << 7, 1 << 13, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_WRITE = _READ | _WRITE_FILE | _REMOVE | _MAKE | _MOVE | _TRUNCATE
"""_REMOVE and _MAKE: folders and files, no links, pipes, sockets or devices."""
_ON_FILES = _READ_FILE | _WRITE_FILE | _TRUNCATE
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: _MOVE, 3: _TRUNCATE, 5: _IOCTL}
"""The rights that each ABI adds. Every right that the kernel knows needs a rule that grants it."""
_TCP_RIGHTS, _TCP_SINCE = 0b11, 4
_SCOPES, _SCOPES_SINCE = 0b11, 6
"""Abstract unix sockets and signals: allowed only within the same confinement."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def landlock_abi() -> int:
    """Return the kernel's Landlock version; 0 if it has none or Landlock is disabled."""
    return max(0, _call(_CREATE_RULESET, None, 0, _ASK_FOR_ABI))


def _call(number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(_libc.syscall(ctypes.c_long(number), *wide))


def _restrict_with_landlock(
    readable: Sequence[int], writable: Sequence[int], *, network: bool, files: bool
) -> int:
    """Restrict this thread and those that it starts; return the ABI, or 0 if that fails."""
    abi = landlock_abi()
    if not abi:
        return 0
    rights = sum(bits for since, bits in _FILE_RIGHTS.items() if since <= abi) if files else 0
    ruleset = _Ruleset(
        handled_access_fs=rights,
        handled_access_net=_TCP_RIGHTS if abi >= _TCP_SINCE and not network else 0,
        scoped=_SCOPES if abi >= _SCOPES_SINCE else 0,
    )
    descriptor = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.sizeof(ruleset), 0)
    if descriptor < 0:
        return 0
    try:
        if files:
            _grant_all(descriptor, readable, writable, rights)
        return abi if _call(_RESTRICT_SELF, descriptor, 0) == 0 else 0
    finally:
        os.close(descriptor)


def _grant_all(ruleset: int, readable: Sequence[int], writable: Sequence[int], rights: int) -> None:
    for descriptor in readable:
        _grant(ruleset, descriptor, _READ & rights)
    for descriptor in writable:
        _grant(ruleset, descriptor, _WRITE & rights)
    for path, wanted in _needed_by_python():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        _grant(ruleset, descriptor, wanted & rights)
        os.close(descriptor)


def _grant(ruleset: int, descriptor: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights &= _ON_FILES
    rule = _PathBeneath(allowed_access=rights, parent_fd=descriptor)
    if _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock takes no rule for descriptor {descriptor}")


def _needed_by_python() -> list[tuple[str, int]]:
    """Return the paths of what Python loads late (modules, shared objects), with their rights."""
    own = str(Path(__file__).resolve().parents[1])
    library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # A .pth file may have added the packages of another environment.
    library += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    system = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"]
    return [
        *((folder, _READ) for folder in dict.fromkeys([own, *library, *system]) if folder),
        ("/etc/ld.so.cache", _READ_FILE),
        ("/dev/null", _READ_FILE | _WRITE_FILE),
        ("/dev/urandom", _READ_FILE),
    ]


# seccomp, through libseccomp, which knows the system call numbers of every architecture

_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_ATTRIBUTE_TSYNC = 4
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_CLONE_THREAD = 0x10000
_AF_UNIX = 1

_SOCKET_CALLS = ("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4")
_REFUSED_CALLS = (
    # other programs and processes
    *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    *("tkill", "kcmp", "process_madvise", "setpriority", "ioprio_set"),
    # rings, whose operations bypass the filter
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    # administration of the kernel
    *("bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key", "syslog"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot"),
    *("swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "iopl", "ioperm", "personality"),
    *("settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "sethostname"),
    *("setdomainname", "vhangup", "lookup_dcookie", "fanotify_init"),
    # namespaces and mounts
    *("unshare", "setns", "chroot", "pivot_root", "mount", "umount", "umount2", "open_tree"),
    *("move_mount", "mount_setattr", "fsopen", "fsconfig", "fsmount", "fspick"),
    # file operations that Landlock does not cover
    *("open_by_handle_at", "name_to_handle_at", "mknod", "mknodat"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr"),
    *("setxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat"),
    # other users
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid"),
    *("setfsgid", "setgroups", "capset"),
)

_Condition = tuple[int, int, int, int]
"""Number of the argument, comparison, value and second value, as in `struct scmp_arg_cmp`."""
_Rule = tuple[str, tuple[_Condition, ...]]


class _ArgumentCompared(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("comparison", ctypes.c_int),
        ("value", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _filter_calls(*, network: bool) -> bool:
    own = os.getpid()
    rules: list[_Rule] = [(name, ()) for name in _REFUSED_CALLS]
    rules += [
        ("clone", ((0, _MASKED_EQUAL, _CLONE_THREAD, 0),)),  # a process, not a thread
        ("kill", ((0, _NOT_EQUAL, own, 0),)),
        ("tgkill", ((0, _NOT_EQUAL, own, 0),)),
        ("prlimit64", ((0, _NOT_EQUAL, 0, 0),)),
        ("ioctl", ((1, _MASKED_EQUAL, 0xFFFFFFFF, 0x5412),)),  # TIOCSTI types into a terminal
    ]
    if not network:
        rules.append(("socket", ((0, _NOT_EQUAL, _AF_UNIX, 0),)))
    # clone3 hides its flags behind a pointer; if it is missing, the C library calls clone.
    return _load_filter(rules, unknown=("clone3",))


def _load_filter(rules: Sequence[_Rule], unknown: Sequence[str] = ()) -> bool:
    """Refuse the calls in `rules` in all threads, and report those in `unknown` as missing.

    Returns False, and changes nothing, if the filter cannot be loaded.
    """
    library = _libseccomp()
    context = None if library is None else library.seccomp_init(_ALLOW)
    if library is None or not context:
        return False
    refused = [(name, conditions, errno.EPERM) for name, conditions in rules]
    refused += [(name, (), errno.ENOSYS) for name in unknown]
    try:
        if library.seccomp_attr_set(context, _ATTRIBUTE_TSYNC, 1) != 0:
            return False
        for name, conditions, number in refused:
            if not _refuse(library, context, name, conditions, number):
                return False
        return bool(library.seccomp_load(context) == 0)
    finally:
        library.seccomp_release(context)


def _refuse(
    library: ctypes.CDLL, context: int, name: str, conditions: tuple[_Condition, ...], number: int
) -> bool:
    call = library.seccomp_syscall_resolve_name(name.encode())
    if call < 0:
        return True  # not on this architecture, or newer than the library
    compared = (_ArgumentCompared * len(conditions))(*(_ArgumentCompared(*c) for c in conditions))
    action = _ERROR | number
    done = library.seccomp_rule_add_array(context, action, call, len(conditions), compared)
    return bool(done == 0)


def _libseccomp() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    context = ctypes.c_void_p
    library.seccomp_init.restype = context
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [context, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        context,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_ArgumentCompared),
    ]
    library.seccomp_load.argtypes = [context]
    library.seccomp_release.argtypes = [context]
    return library
