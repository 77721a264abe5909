"""The fence of a worker: what the kernel and Python refuse, and what a node requires of it."""

import ctypes
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

from simulator import World
from trainer_case import amounts, install, logistic, program, settings_of

from node.config import Config
from node.home import Home
from node.logs import Log
from node.trainer import fence, process, recipes
from node.trainer.process import Folder, Limits, WorkerProcess, sweep
from node.workers import Workers, private
from protocols.errors import StateConflict
from protocols.ids import NodeName
from protocols.training.work import LEAD, Begin, Pin, Ready, RecipeFailed

ROOT = Path(__file__).resolve().parents[3]
LINUX = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else 0
calls_only = pytest.mark.skipif(not LINUX, reason="the kernel's filter is for Linux on these two machines")
files_only = pytest.mark.skipif(LANDLOCK < 1, reason="the kernel has no Landlock")

CHILD = """
import ctypes, errno, json, os, platform, signal, sys, threading
from pathlib import Path
from node.trainer import fence
os.chdir(sys.argv[1])
libc, found = ctypes.CDLL(None, use_errno=True), {}
fence.limit(0, 0, 0)
layers = fence.erect(Path.cwd())
column = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
numbers = {**fence.CALLS_REFUSED, **fence.CALLS_ABSENT, **fence.CALLS_BOUNDED}
def call(name, *given):
    ctypes.set_errno(0)
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in given]
    if libc.syscall(numbers[name][column], *given) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]
def tried(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"
"""


def fenced(code: str, folder: Path, *more: object) -> dict[str, str]:
    """What `found` is after this code has run behind a fence in a process of its own."""
    text = CHILD + code + "\nprint(json.dumps(found))"
    command = [sys.executable, "-I", "-c", text, str(folder), *map(str, more)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


# ---------------------------------------------------------------- calls


@calls_only
def test_native_code_reaches_no_other_process_of_its_user(tmp_path):
    code = """
victim = int(sys.argv[2])
found["kill"] = call("kill", victim, signal.SIGKILL)
found["kill session"] = call("kill", -victim, signal.SIGKILL)
found["kill all"] = call("kill", -1, 0)
found["tkill"] = call("tkill", victim, signal.SIGKILL)
found["tgkill"] = call("tgkill", victim, victim, signal.SIGKILL)
found["pidfd_open"] = call("pidfd_open", victim, 0)
found["prlimit64"] = call("prlimit64", victim, 7, None, ctypes.create_string_buffer(16))
found["setpriority"] = call("setpriority", 0, victim, 19)
found["sched_setaffinity"] = call("sched_setaffinity", victim, 8, ctypes.create_string_buffer(b"\\1" * 8))
found["F_SETOWN"] = call("fcntl", os.pipe()[0], 8, victim)
found["F_SETOWN_EX"] = call("fcntl", os.pipe()[0], 15, ctypes.create_string_buffer(16))
"""
    with subprocess.Popen(["sleep", "60"]) as victim:
        found = fenced(code, tmp_path, victim.pid)
        assert victim.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        victim.kill()
    assert set(found.values()) == {"EPERM"}, found


@calls_only
def test_native_code_makes_threads_and_no_process(tmp_path):
    code = """
found["fork"] = errno.errorcode[ctypes.get_errno()] if libc.fork() < 0 else "done"
found["clone"] = call("clone", signal.SIGCHLD, 0, 0, 0, 0)
found["namespace"] = call("clone", 0x10000 | 0x800 | 0x100 | 0x10000000, 0, 0, 0, 0)
found["clone3"] = call("clone3", ctypes.create_string_buffer(88), 88)
found["setsid"] = call("setsid")
thread = threading.Thread(target=lambda: found.update(thread="ran"))
thread.start(); thread.join()
import numpy
found["numpy"] = str(int((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum()))
os.kill(os.getpid(), 0)
found["own limits"] = call("prlimit64", 0, 7, None, ctypes.create_string_buffer(16))
found["higher limits"] = call("prlimit64", 0, 1, ctypes.create_string_buffer(b"\\xff" * 16), None)
"""
    assert fenced(code, tmp_path) == {
        "fork": "EPERM",
        "clone": "EPERM",
        "namespace": "EPERM",
        "clone3": "ENOSYS",
        "setsid": "EPERM",
        "thread": "ran",
        "numpy": str(300**3),
        "own limits": "done",
        "higher limits": "EPERM",
    }


@calls_only
def test_native_code_changes_no_mode_time_or_attribute_and_leaves_nothing_with_the_kernel(tmp_path):
    inside = tmp_path / "own"
    inside.mkdir()
    secret = tmp_path / "key"
    secret.write_text("KEY")
    secret.chmod(0o600)
    os.utime(secret, (1, 1))
    code = """
secret, here = sys.argv[2].encode(), -100
own = os.open("kept", os.O_RDWR | os.O_CREAT); os.write(own, b"kept")
found["fchmodat"] = call("fchmodat", here, secret, 0o666)
found["fchmodat2"] = call("fchmodat2", here, secret, 0o666, 0)
found["fchownat"] = call("fchownat", here, secret, 0, 0, 0)
found["utimensat"] = call("utimensat", here, secret, None, 0)
found["setxattr"] = call("setxattr", secret, b"user.a", b"b", 1, 0)
found["setxattrat"] = call("setxattrat", here, secret, 0, b"user.a", ctypes.create_string_buffer(16), 16)
found["truncate"] = call("truncate", secret, 0)
found["shorter"] = call("openat", here, b"kept", os.O_RDONLY | os.O_TRUNC)
found["linkat"] = call("linkat", here, secret, here, b"link", 0)
found["symlinkat"] = call("symlinkat", secret, here, b"link")
found["add_key"] = call("add_key", b"user", b"minshu-test", b"rows", 4, -4)
found["shmget"] = call("shmget", 0, 4096, 0o1600)
found["msgget"] = call("msgget", 0, 0o1600)
found["semget"] = call("semget", 0, 1, 0o1600)
found["mq_open"] = call("mq_open", b"minshu-test", 0o102, 0o600, None)
found["memory of others"] = call("userfaultfd", 0)
found["watch"] = call("inotify_init1", 0)
assert Path("kept").read_bytes() == b"kept"
"""
    found = fenced(code, inside, secret)
    assert set(found.values()) == {"EPERM"}, found
    assert (secret.read_text(), secret.stat().st_mode & 0o777, secret.stat().st_mtime) == ("KEY", 0o600, 1)
    assert os.listxattr(secret) == []


@calls_only
def test_every_call_of_the_list_is_refused_by_this_kernel(tmp_path):
    code = """
assert fence.CALLS in layers
for name, of in numbers.items():
    if name not in fence.CALLS_BOUNDED and of[column] is not None:
        found[name] = call(name, -1, -1, -1, -1, -1, -1)
found["newer"] = errno.errorcode[ctypes.get_errno()] if libc.syscall(470, 0, 0) < 0 else "done"
"""
    found = fenced(code, tmp_path)
    absent = {"newer", *fence.CALLS_ABSENT}
    assert {name for name, answer in found.items() if answer == "ENOSYS"} == absent
    assert {answer for name, answer in found.items() if name not in absent} == {"EPERM"}


def given(machine: str, name: str, *arguments: int) -> int:
    """What the filter of a machine answers to a call, as the kernel would run it."""
    column, architecture = fence._MACHINES[machine]
    listed = {**fence.CALLS_REFUSED, **fence.CALLS_ABSENT, **fence.CALLS_BOUNDED}
    plain = {"read": (0, 63), "write": (1, 64), "mmap": (9, 222), "futex": (202, 98), "memfd": (319, 279)}
    number = {**listed, **plain}[name][column]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * 6)[:6])
    code = list(struct.iter_unpack("HBBI", fence._program(machine, 77)))
    at, kept = 0, 0
    while True:
        what, yes, no, value = code[at]
        at += 1
        if what == fence._LOAD:
            (kept,) = struct.unpack_from("<I", data, value)
        elif what == fence._AND:
            kept &= value
        elif what == fence._GIVE:
            return value
        else:
            at += yes if (kept == value if what == fence._EQUAL else kept > value) else no


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filters_of_both_machines_say_the_same(machine):
    column = fence._MACHINES[machine][0]
    allow, refuse, absent = 0x7FFF0000, 0x00050001, 0x00050026
    for name, numbers in fence.CALLS_REFUSED.items():
        if numbers[column] is not None:
            assert given(machine, name, -1 & 0xFFFFFFFF) == refuse, name
    assert {given(machine, name) for name in fence.CALLS_ABSENT} == {absent}
    assert {given(machine, name) for name in ("read", "write", "mmap", "futex", "memfd")} == {allow}
    thread = 0x3D0F00  # what glibc makes threads with
    for name, arguments, answer in [
        ("clone", (thread,), allow),
        ("clone", (thread | 0x10000000,), refuse),
        ("clone", (thread & ~0x10000,), refuse),
        ("clone", (0x4111,), refuse),
        ("clone", (17 | 1 << 40,), refuse),
        ("kill", (77,), allow),
        ("kill", (78,), refuse),
        ("kill", ((1 << 64) - 77,), refuse),
        ("tgkill", (77, 80), allow),
        ("prlimit64", (0, 7, 0, 4096), allow),
        ("prlimit64", (0, 7, 4096, 0), refuse),
        ("prlimit64", (0, 7, 1 << 32, 0), refuse),
        ("prlimit64", (78, 7, 0, 4096), refuse),
        ("sched_setaffinity", (0,), allow),
        ("sched_setaffinity", (78,), refuse),
        ("fcntl", (3, 1), allow),
        ("fcntl", (3, 8, 78), refuse),
        ("openat", (0, 0, 0o100), allow),
        ("openat", (0, 0, 0o1001), allow),
        ("openat", (0, 0, 0o1000), refuse),
    ]:
        assert given(machine, name, *arguments) == answer, (name, arguments)


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_of_calls_are_those_of_the_kernel(column, header):
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", Path(header).read_text(), re.MULTILINE)
    known = {name: int(number) for name, number in defined}
    newest = known.get("syscalls", max(known.values()))
    listed = {**fence.CALLS_REFUSED, **fence.CALLS_ABSENT, **fence.CALLS_BOUNDED}
    ours = {name: of[column] for name, of in listed.items() if of[column] is not None}
    assert len(set(ours.values())) == len(ours)
    assert {name: known.get(name) for name, number in ours.items() if number < newest} == {
        name: number for name, number in ours.items() if number < newest
    }
    assert {name for name, of in listed.items() if of[column] is None} & set(known) == set()


# ---------------------------------------------------------------- Python's events


def test_python_refuses_changes_outside_by_either_path_and_through_an_open_folder(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "key").write_text("KEY")
    # As where the kernel helps with nothing.
    code = """
other = sys.argv[2]
there = os.open(other, os.O_RDONLY)
Path("x").write_text("planted"); os.mkdir("d"); os.rename("x", "y"); os.truncate("y", 1); os.rename("y", "x")
for name, what in {
    "rename out": lambda: os.rename("x", other + "/key"),
    "rename in": lambda: os.rename(other + "/key", "y"),
    "rename by folder": lambda: os.rename("x", "key", dst_dir_fd=there),
    "link": lambda: os.link("x", other + "/l"),
    "link in": lambda: os.link(other + "/key", "l"),
    "symlink": lambda: os.symlink(other, "s"),
    "chmod": lambda: os.chmod(other, 0o777),
    "chmod by folder": lambda: os.chmod("key", 0o777, dir_fd=there),
    "chmod by descriptor": lambda: os.chmod(there, 0o777),
    "chown": lambda: os.chown(other, 0, 0),
    "utime": lambda: os.utime(other + "/key"),
    "setxattr": lambda: os.setxattr(other + "/key", "user.a", b"b"),
    "removexattr": lambda: os.removexattr(other + "/key", "user.a"),
    "remove by folder": lambda: os.remove("key", dir_fd=there),
    "mkdir by folder": lambda: os.mkdir("d", dir_fd=there),
    "kill": lambda: os.kill(os.getppid(), 0),
    "killpg": lambda: os.killpg(0, 0),
}.items():
    found[name] = tried(what)
"""
    text = CHILD.replace("layers = fence.erect(Path.cwd())", "fence.refuse_events(Path.cwd())")
    command = [sys.executable, "-I", "-c", text + code + "\nprint(json.dumps(found))", own, other]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout).values()) == {"Forbidden"}, ran.stdout
    assert [path.name for path in other.iterdir()] == ["key"]
    assert (other / "key").read_text() == "KEY"


def test_a_file_of_a_worker_is_bounded(tmp_path):
    code = """
with open("large", "wb") as file:
    file.truncate(fence.MAX_FILE_BYTES)
    found["longer"] = tried(lambda: file.truncate(fence.MAX_FILE_BYTES + 1))
"""
    assert fenced(code, tmp_path) == {"longer": "OSError"}


# ---------------------------------------------------------------- files


@files_only
def test_of_the_system_s_settings_and_of_a_checkout_nothing_else_is_read(tmp_path):
    own, entry = tmp_path / "own", tmp_path / "checkout"
    own.mkdir()
    entry.mkdir()
    (entry / "rows.csv").write_text("rows")
    code = """
import importlib
import node
root = Path(node.__file__).parents[1]
found["/etc"] = tried(lambda: os.listdir("/etc"))
found["passwd"] = tried(lambda: open("/etc/passwd"))
found["hostname"] = tried(lambda: open("/proc/sys/kernel/hostname"))
if (root / "pyproject.toml").exists():
    found["checkout"] = tried(lambda: open(root / "pyproject.toml"))
found["entry"] = tried(lambda: open(sys.argv[2]))
importlib.invalidate_caches()
import policies.decision, ssl
"""
    text = CHILD.replace("layers =", f"sys.path.append({str(entry)!r}); layers =") + code
    command = [sys.executable, "-I", "-c", text + "\nprint(json.dumps(found))", own, entry / "rows.csv"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout).values()) == {"PermissionError"}, ran.stdout


def test_what_is_private_must_not_lie_where_python_is_read(tmp_path):
    libraries, packages = fence.readable([str(tmp_path), *sys.path])
    assert tmp_path not in libraries
    install(tmp_path, logistic())
    assert tmp_path in fence.readable([str(tmp_path)])[0]
    assert all(place.name == name for name, place in packages.items())
    folders = [*libraries, *packages.values()]
    fence.check_apart(folders, [tmp_path, ROOT / "home", ROOT / "town" / "rows.csv", ROOT])
    link = tmp_path / "link"
    link.symlink_to(libraries[0])
    for near in (libraries[0], libraries[0] / "home", link / "home", ROOT / "node" / "home"):
        with pytest.raises(StateConflict) as caught:
            fence.check_apart([*folders, ROOT / "node"], [tmp_path, near])
        assert caught.value.code == "fence-too-wide"


def begin(recipe: str | Pin) -> Begin:
    return Begin("lead", recipe, settings_of(recipe, amounts(1)), 77, LEAD, (2,), bytes(32), ())


@files_only
def test_a_worker_that_could_read_its_node_s_folder_loads_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    install(tmp_path, logistic(), name="beside")
    worker = WorkerProcess(None, Limits(), private=[home], program=program(tmp_path))
    with worker, pytest.raises(RecipeFailed) as caught:
        worker.step(begin("logistic"))
    assert caught.value.code == "fence-too-wide"
    assert "move the node's folder" in caught.value.hint


# ---------------------------------------------------------------- what a node requires


@pytest.mark.parametrize(
    ("unfenced", "own", "runs"),
    [
        ("none", True, False),
        ("none", False, False),
        ("built-in", True, True),
        ("built-in", False, False),
        ("all", True, True),
        ("all", False, True),
    ],
)
def test_what_runs_without_a_whole_fence_is_the_operator_s_to_say(unfenced, own, runs):
    fence.check_level(fence.LAYERS, unfenced, own=own)
    for lacking in fence.LAYERS:
        layers = [layer for layer in fence.LAYERS if layer != lacking]
        if runs:
            fence.check_level(layers, unfenced, own=own)
        else:
            with pytest.raises(StateConflict) as caught:
                fence.check_level(layers, unfenced, own=own)
            assert caught.value.code == "fence-missing"
            assert platform.release() in caught.value.hint


def lacking(folder: Path, layer: str) -> tuple[str, ...]:
    """The program of a worker whose kernel does not have this layer."""
    *start, text = program(folder)
    return *start, f"from node.trainer import fence; fence.{layer} = lambda *_: False; " + text


@calls_only
@files_only
@pytest.mark.parametrize(
    ("layer", "unfenced"),
    [
        ("refuse_files", "built-in"),
        pytest.param("refuse_calls", "built-in", marks=pytest.mark.alone),
        pytest.param("refuse_files", "none", marks=pytest.mark.alone),
    ],
)
def test_without_a_whole_fence_no_recipe_from_elsewhere_is_loaded(tmp_path, monkeypatch, layer, unfenced):
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = tmp_path / "loaded"
    install(tmp_path, f"open({str(loaded)!r}, 'w')\n" + logistic())
    pinned = recipes.pin("r", "recipe-for-test")
    limits = Limits(unfenced=unfenced)
    with WorkerProcess(None, limits, program=lacking(tmp_path, layer)) as worker:
        with pytest.raises(RecipeFailed) as caught:
            worker.step(begin(pinned))
        assert caught.value.code == "fence-missing"
        assert platform.release() in caught.value.hint
    assert not loaded.exists()


@calls_only
@files_only
@pytest.mark.alone
@pytest.mark.parametrize(("unfenced", "own"), [("built-in", True), ("all", False), ("none", True)])
def test_a_worker_says_which_layers_hold(tmp_path, monkeypatch, unfenced, own):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, logistic())
    recipe = "logistic" if own else recipes.pin("r", "recipe-for-test")
    whole = unfenced == "none"
    start = program(tmp_path) if whole else lacking(tmp_path, "refuse_files")
    with WorkerProcess(None, Limits(unfenced=unfenced), program=start) as worker:
        ready = worker.step(begin(recipe))
    assert isinstance(ready, Ready)
    assert ready.fence == (fence.LAYERS if whole else ("audit-hook", "seccomp"))


def test_the_node_s_log_tells_of_a_fence_that_lacks_a_layer(tmp_path):
    path = tmp_path / "node.log"
    log = Log(path, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    workers = Workers(Config(NodeName("police.gz.example/node-a")), lambda: None, log)
    workers.look_at(Ready({}, {}, fence.LAYERS))
    assert not path.exists()
    workers.look_at(Ready({}, {}, ("audit-hook", "seccomp")))
    log.close()
    assert f"warning fence-missing layers=landlock system={platform.release()}" in path.read_text()


def test_a_node_keeps_its_folder_and_every_dataset_from_its_workers(world: World):
    state = world.open("health")
    try:
        home = world.homes["health"]
        datasets = [dataset.place.path for dataset in state.datasets()]
        assert datasets
        assert private(Home(home.path).config) == (home.path, *datasets)
    finally:
        state.close()


# ---------------------------------------------------------------- folders


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_a_killed_node_left_is_removed_at_the_next_start(temporary):
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]; from node.trainer.process import Folder;"
        "folder = Folder(); (folder.path / 'a').mkdir(); (folder.path / 'a' / 'b').touch();"
        "print(folder.path, flush=True); os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", code, temporary], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL
    left = Path(ran.stdout.strip())
    assert left.exists()
    another = Folder()
    assert not left.exists()
    another.remove()
    assert list(temporary.iterdir()) == []


def test_a_folder_in_use_and_what_only_has_its_name_stay(temporary, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "kept").touch()
    (temporary / f"{process._PREFIX}link").symlink_to(elsewhere)
    (temporary / f"{process._PREFIX}file").touch()
    used = Folder()
    sweep()
    assert used.path.exists()
    assert len(list(temporary.iterdir())) == 3
    assert (elsewhere / "kept").exists()
    used.remove()
    assert not used.path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders of others")
def test_a_folder_of_another_user_stays(temporary):
    left = temporary / f"{process._PREFIX}other"
    left.mkdir()
    shutil.chown(left, 65534)
    sweep()
    assert left.exists()
