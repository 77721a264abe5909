"""What a worker takes away from itself before it loads a recipe.

A recipe is installed and pinned, so it is trusted to compute; the fence is for its mistakes and for what its
libraries do unasked. (1) Python's own audit events refuse sockets, programs, signals and changes outside the
worker's folder; they name what was tried. (2) On Linux with x86-64 or aarch64 the kernel refuses the same
calls, so that native code meets the fence, too: it makes threads but no process, and reaches no other one of
the node's user, neither by signals nor by memory, keys, queues or attributes of files. (3) With Landlock
(Linux 5.13 and later) it opens no file but the system's, Python's and those of its own folder: not the node's
keys, nor its datasets. (4) Limits of time, memory and sizes of files; no core files; nobody may trace it.
(5) It ends when its party's end of the pipe does.

`LAYERS` are (1) to (3); which of them hold depends on the system, and a worker says so.
"""

import ctypes
import errno
import importlib.abc
import importlib.machinery
import importlib.util
import os
import platform
import resource
import select
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from protocols.errors import StateConflict

EVENTS: Final = "audit-hook"
CALLS: Final = "seccomp"
FILES: Final = "landlock"
LAYERS: Final = (EVENTS, FILES, CALLS)
"""What a fence is made of, where the system has all of it."""

MAX_FILE_BYTES: Final = 64 << 20
"""Longest file that a worker may write, in its own folder."""

OWN: Final = ("minshu", "protocols", "policies", "audit", "node")
"""The packages that a worker's program may import of this project, wherever they lie."""

# ---------------------------------------------------------------- Python's events

_REFUSED: Final = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.killpg",
        "os.link",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.symlink",
        "os.system",
        "pty.spawn",
        "resource.prlimit",
        "resource.setrlimit",
        "subprocess.Popen",
    }
)
_CHANGES: Final[Mapping[str, tuple[tuple[int, int | None], ...]]] = {
    "os.chflags": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.removexattr": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.rmdir": ((0, 1),),
    "os.setxattr": ((0, None),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
}
"""Event → where its paths stand among its arguments, and the open folder that each is relative to."""

# ---------------------------------------------------------------- calls of the kernel

_PR_SET_DUMPABLE: Final = 4
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine → its column below, and its name in linux/audit.h."""

CALLS_REFUSED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # Sockets, other programs.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # Other processes: signals, memory, open files, limits, priorities. See CALLS_BOUNDED, too.
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    # Away from its session, or to other views of the machine.
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    # What Landlock does not see: owners, modes, times and attributes of files; handles; watching; in its
    # first two versions lengths.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "truncate": (76, 45),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "open_by_handle_at": (304, 265),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    # What outlives a process, or is shared by all of a user: keys, memory, semaphores, queues.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    # The kernel itself, if the node runs as root against all advice; ways around a filter.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
}
"""Call → its number on x86-64 and on aarch64 (the kernel's syscall_64.tbl, scripts/syscall.tbl)."""

CALLS_ABSENT: Final[Mapping[str, tuple[int, int]]] = {"clone3": (435, 435), "openat2": (437, 437)}
"""Their flags lie in memory, where no filter sees them. As if the kernel did not know them: glibc then makes
threads by `clone`."""

CALLS_BOUNDED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "clone": (56, 220),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "fcntl": (72, 25),
    "open": (2, None),
    "openat": (257, 56),
}
"""Calls that are refused by what they are given; `_bounds` says how."""

_LAST_KNOWN: Final = 469
"""Of both machines. What came later is as absent; so are x32's calls, which have other numbers."""

_CLONE_THREAD: Final = 0x100 | 0x800 | 0x10000  # CLONE_VM, CLONE_SIGHAND, CLONE_THREAD
_CLONE_NEW: Final = 0x7E020000  # namespaces of its own
_F_SETOWN: Final = 8
_F_SETOWN_EX: Final = 15
_O_ACCMODE: Final = 3
_O_TRUNC: Final = 0o1000

_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000
_KILL: Final = 0x80000000

# ---------------------------------------------------------------- Landlock

# linux/landlock.h; these calls have the same numbers everywhere.
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_FOLDER: Final = 1 << 3
_REMOVE: Final = 1 << 4 | 1 << 5  # folders, files
_MAKE: Final = 1 << 7 | 1 << 8  # folders, files; no devices, sockets, pipes, links
_FIRST_VERSION: Final = (1 << 13) - 1  # what there is to refuse; later versions know of more
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEVICE: Final = 1 << 15
_TCP: Final = 1 << 0 | 1 << 1  # bind, connect
_SCOPE: Final = 1 << 0 | 1 << 1  # abstract sockets, signals

_FOLDERS: Final = ("/usr", "/lib", "/lib64", "/proc/self", "/sys/devices/system", "/sys/fs/cgroup")
_SINGLE: Final = (
    # The loader, time; OpenSSL's settings, without which `ssl` is not imported.
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/os-release",
    "/etc/mime.types",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/crypto-policies/back-ends/opensslcnf.config",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/version",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Forbidden(PermissionError):
    """A worker tried what it may not; the name of the event, nothing else."""


def limit(cpu_s: int, memory_mb: int, niceness: int) -> None:
    """Bound this process: processor seconds, address space in MiB (0 for none); no core files, no tracing.

    Threads are not bounded: the kernel counts them over all processes of a user.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    longest = MAX_FILE_BYTES if most == resource.RLIM_INFINITY else min(most, MAX_FILE_BYTES)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
    if cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    if niceness:
        os.nice(niceness)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_with(pipe: int) -> None:
    """End this process when the other end of `pipe` is closed, also in the middle of a computation.

    Not by the parent-death signal: that follows the thread that started the worker, which may end earlier.
    """

    def watch() -> None:
        hung_up = select.poll()
        hung_up.register(pipe, 0)
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=watch, name="party", daemon=True).start()


def erect(folder: Path, private: Sequence[Path] = ()) -> tuple[str, ...]:
    """Put up all layers, for good; return those that hold. For a process of one thread, after `limit`.

    Args:
        folder: the worker's own.
        private: the node's home and datasets.

    Raises:
        StateConflict: `fence-too-wide`: one of them lies where Python or the system is read. Then nothing
            but the kernel's refusal of calls holds.
    """
    calls = refuse_calls()
    files = refuse_files(folder, private)
    refuse_events(folder)
    return tuple(name for name, holds in ((EVENTS, True), (FILES, files), (CALLS, calls)) if holds)


def refuse_events(folder: Path) -> None:
    """Refuse sockets, programs, signals and changes outside `folder`, for good, at Python's audit events."""
    inside, me = os.path.realpath(folder) + os.sep, os.getpid()

    def outside(path: Any, beside: Any = None) -> bool:
        if isinstance(path, int):
            place = f"/proc/self/fd/{path}"
        elif isinstance(beside, int) and beside >= 0:
            place = str(Path(f"/proc/self/fd/{beside}", os.fsdecode(path)))
        else:
            place = os.fsdecode(path)
        return not (os.path.realpath(place) + os.sep).startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _REFUSED or event.startswith("socket."):
            raise Forbidden(event)
        if event == "open":
            path, mode, flags = arguments
            writes = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                if flags
                else "r" not in (mode or "r")
            )
            # A descriptor that is given a file object was opened before.
            given = path is None or isinstance(path, int)
            if writes and not given and path != os.devnull and outside(path):
                raise Forbidden(event)
        elif event == "os.kill":
            if arguments[0] != me:
                raise Forbidden(event)
        elif event == "os.truncate" and isinstance(arguments[0], int):
            return  # opened for writing, and so looked at, before
        elif event in _CHANGES and any(
            outside(arguments[at], None if beside is None else arguments[beside])
            for at, beside in _CHANGES[event]
        ):
            raise Forbidden(event)

    sys.addaudithook(hook)


def refuse_calls() -> bool:
    """Have the kernel refuse what `CALLS_REFUSED` and its like name; return whether it does.

    Threads that run already keep what they may: call this first.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return False
    program = _program(platform.machine(), os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: u16 count, padding, pointer.
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return not libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0)


def refuse_files(folder: Path, private: Sequence[Path] = ()) -> bool:
    """Have the kernel refuse files but the system's, Python's and those of `folder`; return whether it does.

    What else the node's user may read is no longer to be read, and other processes of that user are not to
    be looked into. Names, sizes and times of files stay to be seen where the path is known.

    Raises:
        StateConflict: see `erect`.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    libraries, packages = readable(sys.path)
    folders = [*map(Path, _FOLDERS), *libraries, *packages.values()]
    check_apart(folders, private)
    newer = ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE))
    handled = _FIRST_VERSION | sum(right for since, right in newer if version >= since)
    own = _READ_FILE | _READ_FOLDER | _WRITE_FILE | _REMOVE | _MAKE | handled & (_REFER | _TRUNCATE)
    # struct landlock_ruleset_attr: u64 of what is refused on files, from 4 on ports, from 6 on processes.
    described = struct.pack("Q", handled) + (struct.pack("Q", _TCP) if version >= 4 else b"")
    described += struct.pack("Q", _SCOPE) if version >= 6 else b""
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, described, len(described), 0)
    if rules < 0:
        return False
    allowed = [(each, _READ_FILE | _READ_FOLDER) for each in folders]
    allowed += [(Path(each), _READ_FILE) for each in _SINGLE]
    allowed += [(Path(each), _READ_FILE | _WRITE_FILE) for each in _DEVICES]
    allowed += [(folder, own)]
    try:
        for path, access in allowed:
            if not _add(libc, rules, path, access):
                return False
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0):
            return False
    finally:
        os.close(rules)
    sys.meta_path.append(_Packages(packages))
    return True


def _add(libc: ctypes.CDLL, rules: int, path: Path, access: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # not on this system, or not to be read anyway
    try:
        if not _is_folder(path):
            access &= _READ_FILE | _WRITE_FILE
        # struct landlock_path_beneath_attr, packed: u64 access, s32 descriptor.
        rule = struct.pack("=Qi", access, place)
        return not libc.syscall(_LANDLOCK_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(place)


def readable(path: Sequence[str]) -> tuple[list[Path], dict[str, Path]]:
    """Return where Python is read: folders of libraries, and this project's packages outside of them by name.

    A folder on `path` is one of libraries if it is Python's, or an installer has put distributions there; of
    another, such as a checkout in which the project was installed as editable, packages are read alone.
    """
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    libraries = [Path(prefix, name) for prefix in dict.fromkeys(prefixes) for name in ("lib", "lib64")]
    libraries += map(Path, filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))
    for each in map(Path, filter(None, path)):
        if _is_folder(each) and next(each.glob("*.dist-info"), None) is not None:
            libraries.append(each)
    libraries = [each for each in dict.fromkeys(libraries) if _is_folder(each)]
    packages = {}
    for name in OWN:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            if not any(_within(Path(place), library) for library in libraries):
                packages[name] = Path(place)
    return libraries, packages


def check_apart(folders: Sequence[Path], private: Sequence[Path]) -> None:
    """Check that nothing private lies in any of these folders.

    Raises:
        StateConflict: something does.
    """
    if any(_within(each, folder) for each in private for folder in folders):
        raise StateConflict(
            "the node's folder, or one of its datasets, lies where a worker has to read Python's packages",
            code=TOO_WIDE,
            hint=HINTS[TOO_WIDE],
        )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # below one that this account may not enter
        return False


def _within(path: Path, folder: Path) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


class _Packages(importlib.abc.MetaPathFinder):
    """Finds packages whose folders are to be read, in a folder that is not to be listed any more."""

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self._packages = packages

    def find_spec(  # the interface has more than is needed here
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        place = self._packages.get(fullname)
        if place is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, place / "__init__.py", submodule_search_locations=[str(place)]
        )


# ---------------------------------------------------------------- what a node requires of a fence

MISSING: Final = "fence-missing"
TOO_WIDE: Final = "fence-too-wide"

HINTS: Final = {
    MISSING: (
        "a recipe from elsewhere needs Linux 5.13 or later on x86-64 or aarch64 with seccomp and Landlock, "
        f"and this is {platform.system()} {platform.release()} on {platform.machine()}: run the node on "
        "such a kernel (landlock among those in /sys/kernel/security/lsm), or set unfenced in [trainer]"
    ),
    TOO_WIDE: (
        "move the node's folder and its datasets out of /usr and of the folders in which Python and its "
        "packages are installed, and keep neither in LD_LIBRARY_PATH"
    ),
}


def check_level(layers: Sequence[str], unfenced: str, *, own: bool) -> None:
    """Check that a recipe may run behind these layers.

    Args:
        layers: those that hold.
        unfenced: what may run without all of them: `none`, `built-in` or `all` recipes.
        own: whether the recipe is one of Minshu's own.

    Raises:
        StateConflict: `fence-missing`.
    """
    if set(LAYERS) <= set(layers) or unfenced == "all" or (own and unfenced == "built-in"):
        return
    lacking = ", ".join(name for name in LAYERS if name not in layers)
    raise StateConflict(
        f"a worker's fence without {lacking}, and a recipe that needs it", code=MISSING, hint=HINTS[MISSING]
    )


# ---------------------------------------------------------------- the filter


def _bounds(me: int) -> dict[str, tuple[Sequence[tuple[int, int, int]], Sequence[tuple[int, int, int]]]]:
    """Return call → what must hold of its arguments, and what must not: (where, mask, value) of 32 bits each.

    Threads alone; signals to itself alone; limits only read, of itself; processors of itself; no descriptor
    that sends signals to another process; no file made shorter that is opened for reading.
    """
    shorter = [(_O_ACCMODE | _O_TRUNC, _O_TRUNC)]
    return {
        "clone": ([(_argument(0), _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)], []),
        "kill": ([(_argument(0), _ALL, me)], []),
        "tgkill": ([(_argument(0), _ALL, me)], []),
        "prlimit64": ([(at, _ALL, 0) for at in (_argument(0), _argument(2), _argument(2) + 4)], []),
        "sched_setaffinity": ([(_argument(0), _ALL, 0)], []),
        "fcntl": ([], [(_argument(1), _ALL, _F_SETOWN), (_argument(1), _ALL, _F_SETOWN_EX)]),
        "open": ([], [(_argument(1), *each) for each in shorter]),
        "openat": ([], [(_argument(2), *each) for each in shorter]),
    }


_ALL: Final = 0xFFFFFFFF


def _argument(number: int) -> int:
    """Return where the lower half of an argument stands in struct seccomp_data; the upper is 4 later."""
    return 16 + 8 * number


def _program(machine: str, me: int) -> bytes:
    """Return classic BPF over struct seccomp_data: u32 number at 0, u32 architecture at 4, u64 arguments."""
    column, architecture = _MACHINES[machine]
    lines = [
        _line(_LOAD, 4),
        _line(_EQUAL, architecture, yes=1),
        _line(_GIVE, _KILL),
        _line(_LOAD, 0),
        _line(_ABOVE, _LAST_KNOWN, no=1),
        _line(_GIVE, _REFUSE | errno.ENOSYS),
    ]
    bounds = _bounds(me)
    for calls, answer in ((CALLS_REFUSED, errno.EPERM), (CALLS_ABSENT, errno.ENOSYS)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                lines += [_line(_EQUAL, number, no=1), _line(_GIVE, _REFUSE | answer)]
    for name, numbers in CALLS_BOUNDED.items():
        if (number := numbers[column]) is not None:
            checks = _checks(*bounds[name])
            lines += [_line(_EQUAL, number, no=len(checks)), *checks]
    return b"".join([*lines, _line(_GIVE, _ALLOW)])


def _checks(must: Sequence[tuple[int, int, int]], never: Sequence[tuple[int, int, int]]) -> list[bytes]:
    """Return lines that end with one answer or the other; what comes after them they never reach."""
    left = 3 * (len(must) + len(never))
    lines = []
    for holds, checks in ((True, must), (False, never)):
        for at, mask, value in checks:
            left -= 3
            refused = left + 1  # past what is left, and past the line that allows
            jumps = {"no": refused} if holds else {"yes": refused}
            lines += [_line(_LOAD, at), _line(_AND, mask), _line(_EQUAL, value, **jumps)]
    return [*lines, _line(_GIVE, _ALLOW), _line(_GIVE, _REFUSE | errno.EPERM)]


_LOAD: Final = 0x20
_AND: Final = 0x54
_EQUAL: Final = 0x15
_ABOVE: Final = 0x25
_GIVE: Final = 0x06


def _line(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """Return one instruction; `yes` and `no` are how many to skip."""
    return struct.pack("HBBI", code, yes, no, value)
