"""Commands beside a running node, its settings, its home and its doctor."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from simulator import START, World, answered, approve_all, over, person, running, until
from tls_authority import Authority

from node.cli import main
from node.config import load_config
from node.doctor import examine
from node.home import Home, init_home, read_roots
from node.state import RunState, read_state
from protocols.envelope import KeySigner
from protocols.errors import DecodeError, InputError
from protocols.jobs.job_type import SUSPECTED
from protocols.wire import Verdict

ROOT = Path(__file__).parents[2]


def command(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def certify(home: Home) -> None:
    authority = Authority()
    leaf, _ = authority.leaf("node")
    home.authority_pem.write_bytes(authority.pem)
    home.leaf_pem.write_bytes(leaf)


@pytest.fixture
def process(world: World) -> Iterator[subprocess.Popen[str]]:
    """The health department's node, running and dialling a port where nobody answers."""
    home = world.homes["health"]
    certify(home)
    started = subprocess.Popen(
        [sys.executable, "-m", "node.cli", "run", "--home", str(home.path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        assert "is running" in started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


def test_commands_reach_a_running_node_and_it_stops_cleanly(
    world: World, process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.homes["health"]
    # A command that the running node carries out.
    path = world.write_list("health", range(20), at=world.folder / "more.csv")
    code, out, err = command("dataset", "add", "more", path, "--home", home.path, capsys=capsys)
    assert (code, err) == (0, "")
    assert "20 distinct keys" in out
    code, out, _ = command("status", "--json", "--home", home.path, capsys=capsys)
    assert code == 0
    assert json.loads(out)["datasets"] == ["more", "people"]
    # One that it refuses, with its own words and a journal entry.
    envelope = world.folder / "old.dsse"
    envelope.write_bytes(world.policy("health", max_rows=5))
    code, _, err = command("policy", "activate", envelope, "--home", home.path, capsys=capsys)
    assert code == 1
    assert "another text was activated here as version 1" in err
    assert "hint: give the new text version 2" in err
    # A second process on the home is turned away.
    code, _, err = command("run", "--home", home.path, capsys=capsys)
    assert code == 1
    assert "another process has this journal open" in err
    # Nobody listens at its coordinator's address; it says so once the dial has failed.
    begun = time.monotonic()
    while " warning unreachable" not in home.log.read_text():
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert time.monotonic() - begun < 10
    assert " info stopped" in err
    state = world.open("health")
    assert [e.kind for e in state.journal.entries()][-1] == "policy.refused"
    state.close()


def test_recording_says_that_it_is_for_demonstrations(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.homes["health"]
    code, _, err = command("run", "--home", home.path, "--record-bodies", world.folder / "r", capsys=capsys)
    assert code == 1  # no certificate here; the warning comes first
    assert err.startswith("minshu-node: warning: frame bodies are recorded before sealing")


def test_an_opened_list_is_journaled_and_every_row_is_marked(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.homes["police"]
    out, arrow = world.folder / "list.csv", world.folder / "list.arrow"

    async def play() -> list[int]:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            await until(lambda: stations["police"].run(job) is RunState.DONE)
            return [
                await asyncio.to_thread(
                    main, ["release", "open", job, "--out", *map(str, (file, "--home", home.path))]
                )
                for file in (out, arrow)
            ]

    assert asyncio.run(play()) == [0, 0]
    assert out.stat().st_mode & 0o077 == 0
    table = pyarrow.csv.read_csv(out)
    assert set(table["key"].to_pylist()) == {f"RIC:{person(n)}" for n in range(300, 312)}
    assert set(table["mark"].to_pylist()) == {SUSPECTED}
    with pa.OSFile(str(arrow)) as file:
        assert pa.ipc.open_stream(file).read_all().num_rows == 12
    state = world.open("police")
    released = [e.body for e in state.journal.entries() if e.kind == "output.released"]
    assert [body["class"] for body in released] == ["A", "B", "B"]
    assert [body.get("retry") for body in released] == [None, False, True]
    state.close()


def test_a_list_sealed_to_another_node_does_not_open(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play() -> str:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            return job

    job = asyncio.run(play())
    home = world.homes["police"]
    home.recipient_path.write_bytes(bytes(32))
    out = world.folder / "list.csv"
    code, _, err = command("release", "open", job, "--out", out, "--home", home.path, capsys=capsys)
    assert code == 1
    assert "do not open" in err
    assert not out.exists()


# -- approving ---------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(world: World) -> str:
    """A job that waits for two people at the health department, whose node is off."""

    async def play() -> str:
        async with running(world) as (post, _):
            job = post.submit(world.spec())
            await answered(post, job)
            return job

    return asyncio.run(play())


def pem(path: Path, signer: KeySigner) -> Path:
    path.write_bytes(signer.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    public = signer.private_key.public_key()
    path.with_name(f"{path.name}.pub").write_bytes(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return path


def test_a_draft_is_signed_with_openssl_elsewhere_and_recorded_here(
    world: World,
    waiting: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.page._now", world.clock)
    home, draft = world.homes["health"].path, folder / "yes.json"
    officer = folder / "officer"
    officer.mkdir()
    pem(officer / "dpo.pem", world.staff["health"].dpo)
    code, out, _ = command("approve", waiting, "--draft", draft, "--home", home, capsys=capsys)
    assert code == 0
    assert "openssl pkeyutl -sign -rawin -inkey KEY.pem -in yes.json.pae -out yes.json.sig" in out
    assert "What would leave" in out
    # On the officer's machine, with what was printed.
    shutil.copy(folder / "yes.json.pae", officer)
    told = next(line for line in out.splitlines() if "openssl" in line).replace("KEY.pem", "dpo.pem")
    subprocess.run(told.split(), cwd=officer, check=True, capture_output=True)
    # Without the signature, and without a name.
    by = officer / "dpo.pem.pub"
    code, _, err = command("approve", waiting, "--signed", draft, "--by", by, "--home", home, capsys=capsys)
    assert code == 1
    assert "yes.json.sig cannot be read" in err
    shutil.copy(officer / "yes.json.sig", folder)
    code, _, err = command("approve", waiting, "--signed", draft, "--home", home, capsys=capsys)
    assert (code, "give --by" in err) == (1, True)
    code, out, err = command("approve", waiting, "--signed", draft, "--by", by, "--home", home, capsys=capsys)
    assert (code, out, err) == (0, "approved as dpo: 1 of 2 approvals\n", "")
    # Once.
    code, _, err = command("approve", waiting, "--signed", draft, "--by", by, "--home", home, capsys=capsys)
    assert code == 1
    assert "used before" in err
    # A second draft does not overwrite the first.
    code, _, err = command("approve", waiting, "--draft", draft, "--home", home, capsys=capsys)
    assert (code, "cannot be written" in err) == (1, True)


def test_everything_an_officer_is_shown_is_there_as_json(
    world: World,
    waiting: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.page._now", world.clock)
    home = world.homes["health"].path
    code, out, _ = command("approve", waiting, "--json", "--home", home, capsys=capsys)
    assert code == 0
    shown = json.loads(out)
    assert (shown["answer"], shown["job"]["id"], shown["missing"]) == ("ask", waiting, 2)
    code, out, _ = command("show", waiting, "--json", "--home", home, capsys=capsys)
    assert json.loads(out) == shown
    key = pem(folder / "dpo.pem", world.staff["health"].dpo)
    words = ("approve", waiting, "--key", key, "--yes", "--json", "--home", home)
    code, out, _ = command(*words, capsys=capsys)
    done = json.loads(out)
    assert (done["approver"], done["given"], done["case"]["rule"]) == ("dpo", 1, "R1")
    code, out, _ = command("status", "--json", "--home", home, capsys=capsys)
    [run] = json.loads(out)["runs"]
    [given] = run["approvals"]
    assert (given["approver"], given["counts"]) == ("dpo", True)


def test_a_key_may_be_named_by_a_uri(
    world: World,
    waiting: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.page._now", world.clock)
    key = pem(folder / "dpo.pem", world.staff["health"].dpo)
    home = world.homes["health"].path
    words = ("approve", waiting, "--key", f"file://{key}", "--yes", "--home", home)
    code, out, _ = command(*words, capsys=capsys)
    assert code == 0
    assert "approved as dpo" in out
    words = ("approve", waiting, "--key", "pkcs11:token=none;object=dpo", "--yes", "--home", home)
    code, _, err = command(*words, capsys=capsys)
    assert code == 1
    assert "hint" in err


def test_the_reason_of_a_no_reaches_the_analyst(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async def play() -> Verdict:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await answered(post, job)
            home = str(world.homes["health"].path)
            words = ["reject", job, "--reason", "用途不明确 the purpose is unclear", "--home", home]
            assert await asyncio.to_thread(main, words) == 0
            task = post.tasks[job]
            await until(lambda: task.verdicts["health"].answer == "refuse")
            assert stations["health"].run(job) is RunState.REFUSED
            return task.verdicts["health"]

    verdict = asyncio.run(play())
    assert verdict.code == "approver-said-no"
    assert "用途不明确 the purpose is unclear" in verdict.sentence


def test_the_budget_of_a_running_node_is_readable(
    world: World, process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.homes["health"].path
    code, out, err = command("budget", "--home", home, capsys=capsys)
    assert (code, err) == (0, "")
    assert "剩余 left 100 / 100" in out
    assert process.poll() is None


def test_a_stop_reaches_a_running_node(
    world: World, process: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home = world.homes["health"].path
    stop = world.folder / "stop.dsse"
    stop.write_bytes(world.stop("health", "all", at=datetime.now(UTC)))
    code, out, err = command("stop", stop, "--home", home, capsys=capsys)
    assert (code, err) == (0, "")
    assert "halts every job" in out
    code, out, _ = command("status", "--json", "--home", home, capsys=capsys)
    assert len(json.loads(out)["stops"]) == 1
    assert process.poll() is None


def test_registering_a_dataset_is_journaled(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.page._now", world.clock)
    path = world.write_list("health", range(20), at=world.folder / "more.csv")
    home = world.homes["health"].path
    code, _, _ = command("dataset", "add", "more", path, "--home", home, capsys=capsys)
    assert code == 0
    state = world.open("health")
    entry = list(state.journal.entries())[-1]
    state.close()
    assert (entry.kind, entry.body["dataset"], entry.body["rows"]) == ("dataset.registered", "more", 20)
    assert entry.body["columns"] == ["id", "street", "seen", "phone"]
    assert str(path) not in entry.encode().decode()


# -- settings and home -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("unknown-setting", 'name = "a/b"\ncolour = 1'),
        ("bad-name", "suite = 1"),
        ("bad-name", 'name = "A/b"'),
        ("bad-config", 'name = "a/b"\nsuite = "1"'),
        ("bad-config", 'name = "a/b"\nsuite = true'),
        ("bad-config", 'name = "a/b"\nbackoff_min_s = 0'),
        ("bad-config", 'name = "a/b'),
    ],
)
def test_a_wrong_setting_is_an_error(tmp_path: Path, code: str, text: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert caught.value.code == code


def test_settings_have_defaults_and_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('name = "a/b"\nbackoff_max_s = 2\ncoordinator = "host:1"\n')
    config = load_config(path)
    assert (config.suite, config.backoff_max_s, config.coordinator) == (1, 2, "host:1")


def test_private_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    home = init_home(tmp_path / "own", "a.example/n", 2)
    for path in (home.identity_pem, home.tls_pem, home.recipient_path):
        assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError):
        init_home(tmp_path / "own", "a.example/n", 2)
    home.recipient_path.chmod(0o640)
    with pytest.raises(InputError) as caught:
        home.recipient_private()
    assert caught.value.code == "key-exposed"


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 3},
        {"threshold": 0},
        {"keys": ["aa" * 32, "aa" * 32]},
        {"keys": ["bb" * 32, "aa" * 32]},
        {"keys": ["zz" * 32, "zzzz"]},
        {"schema": "minshu-roots/2"},
        {"more": 1},
    ],
)
def test_roots_that_cannot_be_met_are_refused(change: dict[str, object]) -> None:
    good = {
        "schema": "minshu-roots/1",
        "collaboration": "gz.example",
        "threshold": 2,
        "keys": ["aa" * 32, "bb" * 32],
    }
    assert read_roots("h:1", good).threshold == 2
    with pytest.raises(DecodeError):
        read_roots("h:1", good | change)


def test_reading_state_needs_a_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command("status", "--home", tmp_path, capsys=capsys)
    assert code == 1
    assert "minshu-node init" in err
    with pytest.raises(Exception, match="no state"), read_state(tmp_path / "node.db"):
        pass


# -- doctor ------------------------------------------------------------------------------------------------


def findings(home: Home, now: datetime = START) -> dict[str, str]:
    return {finding.what: f"{finding.state}: {finding.found}" for finding in examine(home, now)}


def test_the_doctor_finds_what_is_wrong(world: World) -> None:
    home = world.homes["health"]
    found = findings(home)
    assert found["keys"].startswith("ok")
    assert found["temporary directory"].startswith("ok")
    assert found["network"].startswith("error")
    assert found["certificate"] == "error: tls/leaf.pem is missing or damaged"
    assert found["roster"] == "warning: none yet"
    assert found["policy"].startswith("ok: version 1")
    assert found["dataset people"] == "ok: 82 rows"

    certify(home)
    now = datetime.now(UTC)
    assert findings(home, now)["certificate"].startswith("warning: valid until")
    assert findings(home, now + timedelta(days=2))["certificate"].startswith("error: expired")
    assert findings(home, now - timedelta(days=2))["certificate"].startswith("error: it is not valid yet")
    assert findings(home, START + timedelta(days=80))["policy"].startswith("error")


def test_the_doctor_finds_a_dataset_that_is_gone_or_changed(world: World) -> None:
    home = world.homes["health"]
    own = world.write_list("health", range(5), at=world.folder / "own.csv")
    state = world.open("health")
    with state.journal.transaction() as connection:
        connection.execute("UPDATE dataset SET place = json_object('file', ?)", (str(own),))
    state.close()
    own.write_text("id,street\nx,y\n")
    assert findings(home)["dataset people"] == "error: column seen is gone or has another type"
    own.unlink()
    assert findings(home)["dataset people"].startswith("error: the dataset's file cannot be read")


def test_the_doctor_finds_a_clock_behind_the_roster(world: World) -> None:
    async def play() -> None:
        async with running(world, names=["health"]) as (_, stations):
            await until(lambda: stations["health"].agent.force.roster is not None)

    asyncio.run(play())
    home = world.homes["health"]
    assert findings(home)["clock"].startswith("ok")
    assert findings(home)["roster"] == "ok: version 1, health.gz.example/node-a is listed"
    assert findings(home, START - timedelta(days=9))["clock"].startswith("error")


def test_importing_the_command_is_light() -> None:
    code = "import sys, node.cli; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(loaded) & {"grpc", "duckdb", "pyarrow", "numpy", "cryptography", "sqlite3"}
