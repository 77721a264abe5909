"""A party and its worker: what is computed, what is refused, what a death changes."""

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the extra `train` is not installed")

import msgspec
from msgspec import structs
from trainer_case import Town, central, install, logistic, program, settings_of, tables, weights

from node.trainer import recipes
from node.trainer.process import Limits
from node.trainer.rows import Rows
from protocols.errors import InputError, StateConflict
from protocols.training.work import (
    LEAD,
    Answer,
    Ask,
    FromParty,
    FromWorker,
    Go,
    Handle,
    Pin,
    RecipeFailed,
    Update,
    Worker,
    WorkerGone,
    encode,
)


def landlock() -> int:
    """Return the kernel's version of it, or less than one."""
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def one(folder, hook="pass", *, limits=None, table=None):
    """A contributor that has begun, and a lead's first message to it."""
    install(folder, logistic(hook))
    return Town(folder, [table or tables(1)[0]], limits=limits)


# ---------------------------------------------------------------- what is computed


@pytest.mark.alone
def test_steps_of_three_nodes_equal_those_over_all_rows_together(folder):
    install(folder, logistic())
    with Town(folder, tables(3), rounds=8) as town:
        assert np.abs(weights(town.play()) - central(tables(3), 8)).max() < 1e-9


FEATURES = [
    {"slot": "age", "edges": ["20.0", "40.0", "60.0"], "missing": False},
    {"slot": "income", "low": "0.0", "high": "100.0"},
]


def people(count: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    age, income = draw.integers(0, 4, count), draw.integers(0, 257, count)
    return {
        "f:age": age.astype("<u2"),
        "f:income": income.astype("<u2"),
        "label": (draw.random(count) < 1 / (1 + np.exp(2 - age))).astype("u1"),
        "held": (draw.random(count) < 0.2).astype("u1"),
    }


class Heard:
    """A worker whose every answer is kept, but for the words of the secure sum."""

    def __init__(self, worker: Worker, frames: list[bytes]) -> None:
        self.worker, self.frames = worker, frames

    def step(self, frame: FromParty) -> FromWorker:
        answer = self.worker.step(frame)
        self.frames.append(
            encode(structs.replace(answer, words=b"") if isinstance(answer, Update) else answer)
        )
        return answer

    def close(self) -> None:
        self.worker.close()


@pytest.mark.parametrize(
    "recipe", ["logistic", *(pytest.param(name, marks=pytest.mark.alone) for name in ("mlp", "boost"))]
)
def test_nothing_but_the_words_holds_anything_of_the_rows(recipe):
    """No eight values that follow each other in a column are in any answer of a worker."""
    features = FEATURES if recipe == "logistic" else FEATURES[:1]
    own = {"logistic": {}, "mlp": {"hidden": "2", "step": "0.3"}, "boost": {"depth": "2"}}[recipe]
    settings = settings_of(
        recipe, features, settings=own, rounds=4, evaluate={"every": 2, "bins": 8, "test": False}
    )
    found = [people(900, 1), people(90, 2)] if recipe == "logistic" else [people(900, 1)]
    frames: list[bytes] = []
    with Town(
        None, found, recipe=recipe, settings=settings, wrap=lambda worker, _: Heard(worker, frames)
    ) as town:
        done = town.play()
        assert done.facts["auc"] > 0.6
        assert len(frames) == 2 + len(found) * 7 + 6
        receipts = town.bodies[1::2]
        assert max(map(len, receipts)) < 150
    said = b"\0".join(frames)
    for table in found:
        for name in (each for each in table if each.startswith("f:")):
            column = table[name].tobytes()
            windows = {column[at : at + 16] for at in range(0, len(column) - 16, 2)}
            assert not [window for window in windows if window in said]


@pytest.mark.alone
def test_no_message_and_no_receipt_holds_an_update_or_a_row(folder):
    install(folder, logistic())
    canary = 0.7264519835
    found = tables(2)
    for table in found:
        table["x0"][:] = canary
    with Town(folder, found, rounds=2) as town:
        town.play()
        vectors = [np.float64(canary).tobytes(), np.float32(canary).tobytes(), str(canary).encode()]
        assert not [body for body in town.bodies for piece in vectors if piece in body]


def test_a_party_imports_neither_flower_nor_torch():
    code = (
        "import sys; from node.trainer import process, recipes, rows; recipes.installed();"
        "print([m for m in ('flwr', 'torch', 'opacus', 'google.protobuf', 'pyarrow') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.alone
def test_what_a_recipe_prints_is_no_frame(folder):
    with one(folder, "print('x' * 1000, flush=True); import os; os.write(1, b'y' * 1000)") as town:
        town.alone()


# ---------------------------------------------------------------- what a recipe may not

FORBIDDEN = [
    "import socket; socket.create_connection(('127.0.0.1', 9))",
    "import subprocess; subprocess.run(['true'])",
    "import os; os.fork()",
    "import os; os.execv('/bin/true', ['true'])",
    "open('/var/tmp/minshu-worker-was-here', 'w')",
    "import os; os.open('/var/tmp/minshu-worker-was-here', os.O_CREAT | os.O_WRONLY)",
    "import os; os.remove('/var/tmp/minshu-worker-was-here')",
    "import os; os.mkdir('/var/tmp/minshu-worker-was-here')",
]


def test_a_recipe_that_leaves_its_fence_is_refused_each_time_and_ended(folder):
    hook = "import os; place = os.path.join(os.getcwd(), 'own'); open(place, 'w').close(); os.remove(place)"
    for attempt in FORBIDDEN:
        hook += f"""
        try:
            exec({attempt!r})
        except PermissionError as error:
            assert type(error).__name__ == "Forbidden", {attempt!r}
        else:
            raise AssertionError({attempt!r})"""
    hook += f"\n        exec({FORBIDDEN[0]!r})"
    with one(folder, hook) as town, pytest.raises(RecipeFailed) as caught:
        town.alone()
    assert caught.value.code == "worker-forbidden"


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's fence is Linux's")
def test_native_code_meets_the_fence_too(folder):
    hook = (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); "
        "assert [libc.socket(2, 1, 0), ctypes.get_errno()] == [-1, 1]; "
        "assert [libc.execv(b'/bin/true', None), ctypes.get_errno()] == [-1, 1]"
    )
    with one(folder, hook) as town:
        town.alone()


@pytest.mark.skipif(landlock() < 1, reason="the kernel has no Landlock")
def test_the_node_s_own_files_are_not_to_be_read(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("home") / "identity.pem"
    secret.write_text("secret")
    hook = "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)"
    for path in (secret, f"/proc/{os.getpid()}/environ"):
        hook += f"""
        try:
            open({str(path)!r})
        except PermissionError:
            pass
        else:
            raise AssertionError({str(path)!r})
        assert [libc.open({str(path).encode()!r}, 0), ctypes.get_errno()] == [-1, 13]"""
    hook += f"""
        with open('own', 'w') as file:
            file.write('kept')
        assert open('own').read() == 'kept'
        open({str(secret)!r})"""
    with one(folder, hook) as town, pytest.raises(RecipeFailed) as caught:
        town.alone()
    assert caught.value.code == "worker-forbidden"


def test_an_exception_leaves_as_a_code(folder):
    with one(folder, "raise ValueError('person 110101199003070011')") as town:
        with pytest.raises(RecipeFailed) as caught:
            town.alone()
        assert caught.value.code == "recipe-failed"
        assert "1101" not in str(caught.value)


def test_the_rows_cannot_be_written(folder):
    with one(folder, "rows['x0'][0] = 1") as town, pytest.raises(RecipeFailed):
        town.alone()


# ---------------------------------------------------------------- limits


def test_a_worker_that_takes_too_long_is_killed(folder):
    with one(folder, "import time; time.sleep(60)", limits=Limits(step_s=0.5)) as town:
        began = time.monotonic()
        with pytest.raises(WorkerGone) as caught:
            town.alone()
        assert caught.value.code == "worker-deadline"
        assert time.monotonic() - began < 20
        (worker,) = town.started[2]
        with pytest.raises(ProcessLookupError):
            os.kill(worker.pid, 0)


@pytest.mark.alone
def test_processor_time_is_bounded(folder):
    with one(folder, "while True: pass", limits=Limits(cpu_s=3)) as town, pytest.raises(WorkerGone) as caught:
        town.alone()
    assert caught.value.code in {"worker-cpu", "worker-killed"}


@pytest.mark.alone
def test_memory_is_bounded(folder):
    town = one(folder, "np.ones(1 << 30)", limits=Limits(memory_mb=1024))
    with town, pytest.raises(RecipeFailed) as caught:
        town.alone()
    assert caught.value.code == "worker-memory"


def test_a_worker_ends_when_its_party_does(folder):
    install(folder, logistic())
    code = (
        "import sys, time; from node.trainer.process import WorkerProcess, Limits; "
        f"w = WorkerProcess(None, Limits(), program={program(folder)!r}); "
        "print(w.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as party:
        assert party.stdout is not None
        alive = Path(f"/proc/{int(party.stdout.readline())}/exe")
        party.kill()
        party.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and alive.exists():
            time.sleep(0.02)
        assert not alive.exists()


# ---------------------------------------------------------------- deaths


@pytest.mark.alone
@pytest.mark.parametrize("victim", [LEAD, 2])
def test_a_killed_worker_goes_on_where_it_was(folder, victim):
    install(folder, logistic())

    def kill(ask: Ask) -> None:
        if ask.exchange in {2, 4}:
            os.kill(town.started[victim][-1].pid, signal.SIGKILL)

    with Town(folder, tables(2), rounds=5, lasting=True) as town:
        done = town.play(kill)
        assert len(town.started[victim]) == 3
        assert np.array_equal(weights(done), uninterrupted(folder))


def uninterrupted(folder, rounds: int = 5) -> np.ndarray:
    with Town(folder, tables(2), rounds=rounds) as town:
        return weights(town.play())


@pytest.mark.alone
def test_a_lead_goes_on_in_another_process_of_its_node(folder):
    install(folder, logistic())
    with Town(folder, tables(2), rounds=4, lasting=True) as town:
        for node in (LEAD, *town.nodes):
            town.begin(node)
        said = town.lead(None)
        assert isinstance(said, Ask)
        town.lead(town.turn(said))
        kept = town.kept
    with Town(folder, tables(2), rounds=4, lasting=True, kept=kept) as town:
        done = town.play()
        assert [ask.exchange for ask in town.asks] == [2, 3, 4]
    assert np.array_equal(weights(done), uninterrupted(folder, 4))


@pytest.mark.alone
def test_a_lead_that_would_ask_otherwise_after_a_restart_is_refused(folder):
    install(folder, logistic(lead_hook="import os; w = w + int.from_bytes(os.urandom(4), 'big')"))
    town = Town(folder, tables(1), rounds=3, lasting=True)
    with town, pytest.raises(StateConflict) as caught:
        town.play(lambda ask: ask.exchange == 2 and os.kill(town.started[LEAD][-1].pid, signal.SIGKILL))
    assert caught.value.code == "recipe-not-deterministic"


@pytest.mark.alone
def test_a_worker_that_keeps_dying_is_given_up(folder):
    install(folder, logistic("import os; os.kill(os.getpid(), 9)"))
    with Town(folder, tables(1), lasting=True) as town:
        with pytest.raises(WorkerGone) as caught:
            town.play()
        assert caught.value.code == "worker-killed"
        assert len(town.started[2]) == 3


def test_a_worker_that_was_ended_cannot_be_asked(folder):
    with one(folder) as town:
        worker = town.start(2)
        worker.close()
        worker.close()
        with pytest.raises(WorkerGone):
            worker.step(town.first(2))


# ---------------------------------------------------------------- pins


def test_a_recipe_altered_after_it_was_installed_is_refused(folder):
    install(folder, logistic())
    (folder / "recipe_for_test.py").write_text(logistic("print()"))
    with pytest.raises(InputError) as caught:
        recipes.pin("r", "recipe-for-test")
    assert caught.value.code == "recipe-altered"


def test_another_text_under_the_same_version_is_refused(folder):
    install(folder, logistic())
    pinned = recipes.pin("r", "recipe-for-test")
    install(folder, logistic("print()"))
    with pytest.raises(InputError) as caught:
        recipes.check(pinned)
    assert caught.value.code == "recipe-differs"


def test_the_worker_checks_the_pin_itself(folder):
    install(folder, logistic())
    with Town(folder, tables(1)) as town:
        install(folder, logistic("print()"))
        with pytest.raises(RecipeFailed) as caught:
            town.begin(2)
    assert caught.value.code == "recipe-differs"


@pytest.mark.alone
def test_a_compiled_file_beside_the_recipe_is_not_run(folder):
    install(folder, logistic())
    # A compiled file whose time and size fit the source, but whose code is another.
    source = folder / "recipe_for_test.py"
    evil = folder / "evil.py"
    evil.write_text("raise RuntimeError")
    code = (
        "import importlib._bootstrap_external as b, importlib.util, os, sys; s, e = sys.argv[1:];"
        "st = os.stat(s);"
        "code = compile(open(e).read(), s, 'exec'); p = importlib.util.cache_from_source(s);"
        "os.makedirs(os.path.dirname(p), exist_ok=True);"
        "open(p, 'wb').write(b._code_to_timestamp_pyc(code, int(st.st_mtime), st.st_size))"
    )
    subprocess.run([sys.executable, "-c", code, source, evil], check=True)
    plain = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(folder)!r}); import recipe_for_test",
        ],
        capture_output=True,
    )
    assert b"RuntimeError" in plain.stderr  # Python itself would run it
    with Town(folder, tables(1), rounds=1) as town:
        town.alone()


@pytest.mark.alone
def test_a_recipe_cannot_take_the_name_of_another_module(folder):
    install(folder, logistic(), module="tomllib")
    with Town(folder, tables(1)) as town, pytest.raises(RecipeFailed) as caught:
        town.begin(2)
    assert caught.value.code == "recipe-shadows"


def test_where_a_recipe_is_installed_does_not_change_its_digest(tmp_path, monkeypatch):
    digests = set()
    for place in ("a", "b"):
        install(tmp_path / place, logistic())
        (tmp_path / place / "recipe_for_test-1.0.dist-info" / "INSTALLER").write_text(place)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / place))
            digests.add(recipes.pin("r", "recipe-for-test").digest)
    assert len(digests) == 1


def test_an_editable_install_cannot_be_pinned(folder):
    info = folder / "loose-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loose\nVersion: 1.0\n")
    (info / "RECORD").write_text("loose.pth,,\n")
    with pytest.raises(InputError) as caught:
        recipes.pin("r", "loose")
    assert caught.value.code == "recipe-not-pinned"


def put(folder, name, files, **more):
    """Put a distribution with these files into `folder`; `more` are lines of its RECORD."""
    info = f"{name}-1.0.dist-info"
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
    lines = []
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(content.encode())}")
    (folder / info / "RECORD").write_text("\n".join([*lines, *more.get("lines", ()), ""]))


@pytest.mark.parametrize(
    "files",
    [
        {"always.pth": "import always"},
        {"sitecustomize.py": ""},
        {"usercustomize/__init__.py": ""},
        {"data.txt": ""},
        {"node/trainer/more.py": ""},
        {"policies.py": ""},
        {"another/more.py": ""},
        {"another_module.py": ""},
        {"../beside.py": ""},
    ],
    ids=lambda files: next(iter(files)),
)
def test_a_recipe_has_files_in_packages_of_its_own_alone(tmp_path, monkeypatch, files):
    folder = tmp_path / "packages"
    monkeypatch.syspath_prepend(str(folder))
    put(folder, "another", {"another/__init__.py": "", "another_module.py": ""})
    put(folder, "recipe", {"recipe/__init__.py": "", **files})
    with pytest.raises(InputError) as caught:
        recipes.pin("r", "recipe")
    assert caught.value.code == "recipe-not-pinned"


def test_a_recipe_may_have_several_packages_and_modules_with_data_in_them(folder):
    put(folder, "another", {"recipe_more/__init__.py": ""})
    put(folder, "recipe", {"recipe/__init__.py": "", "recipe/data.txt": "", "recipe_too.py": ""})
    assert recipes.pin("r", "recipe").distribution == "recipe"


def test_a_recipe_with_scripts_cannot_be_pinned(folder):
    put(folder, "recipe", {"recipe/__init__.py": ""}, lines=["../../bin/minshu-node,,"])
    with pytest.raises(InputError) as caught:
        recipes.pin("r", "recipe")
    assert caught.value.code == "recipe-not-pinned"


@pytest.mark.parametrize("field", ["name", "distribution", "version", "digest"])
def test_no_text_of_a_pin_ends_with_a_line(field):
    plain = {"name": "r", "distribution": "recipe", "version": "1.0", "digest": "sha256:" + "0" * 64}
    assert msgspec.convert(plain, Pin) == Pin(**plain)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**plain, field: plain[field] + "\n"}, Pin)


# ---------------------------------------------------------------- rows


def test_rows_come_through_as_they_are():
    from node.trainer.rows import attach

    columns = {"a": np.arange(5, dtype="<f4"), "b": np.array([True, False] * 2 + [True]), "c": np.arange(5)}
    with Rows(columns) as rows:
        found = attach(rows.fd, rows.columns)
        assert all(np.array_equal(found[name], columns[name]) for name in columns)
        with pytest.raises(PermissionError):
            os.write(rows.fd, b"x")


def test_frames_have_one_way_in():
    from protocols.errors import DecodeError
    from protocols.training.work import decode_of_party, decode_of_worker

    body = encode(Handle(1, b"m"))
    assert decode_of_party(body) == Handle(1, b"m")
    for wrong in (b"", body[:-1], body + b"x", b"\xc1", encode(Go())):
        with pytest.raises(DecodeError):
            decode_of_worker(wrong)
    with pytest.raises(DecodeError):
        decode_of_party(encode(Answer(((1, b""),), (), None, 0)))  # the lead is no contributor
