"""The SDK against a real coordinator with scripted nodes: ask, watch, receive, believe nothing unchecked."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from collaboration import (
    BUREAU,
    HEALTH,
    INSURANCE,
    NODES,
    POLICE,
    SEATS,
    STREETS,
    Collaboration,
    recipient,
    signer,
)
from loopback import LiveBureau
from rich.console import Console

from coordinator.client import cli, notebook
from coordinator.client.home import AnalystConfig, AnalystHome, connect, create
from coordinator.client.progress import bars
from coordinator.client.release import open_release
from coordinator.client.view import Catalogue, RunStatus, View
from minshu import Bureau, Release
from minshu.v1 import jobs_pb2
from protocols.encoding import sha256_digest
from protocols.envelope import key_id
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    ProtocolAborted,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.ids import JobId, NodeName
from protocols.wire import organisation_of

pytestmark = pytest.mark.alone  # a whole coordinator each time, 8 s together

JOB_TOML = Path(__file__).with_name("crosscheck.toml")


@pytest.fixture(scope="module")
def ready(tmp_path_factory, loop):
    """A coordinator whose nodes answer at once, for tests that leave it as they found it."""
    live = LiveBureau(tmp_path_factory.mktemp("ready"), loop)
    live.start()
    yield live
    live.close()


@pytest.fixture
def bureau(ready):
    for node in ready.nodes.values():
        node.answer, node.finishes = "permit", True
    with Bureau.connect(ready.analyst.path) as bureau:
        yield bureau


# -- ask, watch, receive -----------------------------------------------------------------------------


def test_ask_wait_and_receive(bureau):
    job = bureau.submit(JOB_TOML)
    views = []
    last = job.wait(progress=views.append)
    assert (last.state, views[-1]) == ("SUCCEEDED", last)
    assert {run.state for run in last.runs} == {"DONE"}
    release = job.release()
    assert release.to_arrow().to_pydict() == STREETS
    assert release.to_pandas()["flagged"].tolist() == STREETS["flagged"]
    assert (release.facts, release.statement) == ({"suppressed": 3}, "统计结果")
    assert (release.note.node, release.note.job) == (POLICE, job.id)
    assert list(job.releases()) == ["street-table"]


def test_the_same_view_comes_from_every_side(bureau):
    job = bureau.submit(JOB_TOML)
    last = job.wait(progress=False)
    assert bureau.job(job.id).view() == bureau.job(job.id[7:19]).view() == last
    assert bureau.jobs()[0].job == job.id
    assert bureau.jobs()[0].runs == ()
    assert [view.state for view in job.events()] == ["SUCCEEDED"]


def test_a_spec_made_by_hand_is_submitted_as_it_is(bureau, ready):
    spec = ready.world.spec(bureau.roster(), requester=key_id(ready.card.key))
    assert bureau.submit(spec).id == spec.job_id
    assert bureau.submit(spec).id == spec.job_id


def test_progress_and_approvals_are_seen_on_the_way(bureau, ready):
    ready.nodes[INSURANCE].answer = "ask"
    job = bureau.submit(JOB_TOML)
    seen = []
    for view in job.events():
        run = next(run for run in view.runs if run.node == INSURANCE)
        seen.append(run.state)
        if run.state == "AWAITING_APPROVAL":
            approve(ready, job.id)
    assert "AWAITING_APPROVAL" in seen
    assert seen[-1] == "DONE"


def approve(ready, job):
    from minshu.v1 import relay_pb2

    attempt = relay_pb2.Attempt(job=job, attempt=1)
    verdict = ready.world.verdict(INSURANCE, job, 1, "permit")
    ready.loop.run(ready.nodes[INSURANCE].say(answer=relay_pb2.Answer(attempt=attempt, verdict=verdict)))


def test_a_refused_job_says_why_and_what_to_do(bureau, ready):
    ready.nodes[HEALTH].answer = "refuse"
    job = bureau.submit(JOB_TOML)
    last = job.wait(progress=False)
    assert (last.state, last.code) == ("REFUSED", "no-rule")
    with pytest.raises(Refused) as refused:
        job.release()
    assert refused.value.code == "no-rule"
    assert HEALTH in refused.value.message


def test_a_cancelled_job_ends_for_everybody(bureau, ready):
    ready.nodes[HEALTH].answer = ""
    job = bureau.submit(JOB_TOML)
    with pytest.raises(StateConflict) as early:
        job.release()
    assert early.value.code == "job-not-ended"
    assert job.cancel().state == "CANCELLED"
    assert job.cancel().state == "CANCELLED"
    with pytest.raises(StateConflict) as cancelled:
        job.releases()
    assert cancelled.value.code == "cancelled-by-requester"


def test_the_catalogue_is_each_nodes_own(bureau):
    catalogues = bureau.catalogue()
    assert [one.node for one in catalogues] == sorted(NODES)
    assert catalogues[0].datasets[0].name == "people"


def test_a_catalogue_another_node_signed_is_not_believed(live):
    live.start()
    handed_out = [live.world.catalogue(POLICE, by=HEALTH)]
    live.coordinator.registry.catalogues = lambda: handed_out
    with Bureau.connect(live.analyst.path) as bureau:
        with pytest.raises(SignatureInvalid) as error:
            bureau.catalogue()
        assert error.value.code == "wrong-node"
        handed_out[:] = [live.world.catalogue(POLICE, by="mallory")]
        with pytest.raises(SignatureInvalid):
            bureau.catalogue()


# -- bad input ---------------------------------------------------------------------------------------


def test_a_job_file_of_ten_megabytes_is_refused_before_it_is_read(bureau, tmp_path):
    path = tmp_path / "job.toml"
    path.write_bytes(b"# " + b"x" * (10 << 20))
    with pytest.raises(InputError) as refused:
        bureau.submit(path)
    assert refused.value.code == "too-long"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('legal_basis = "DPIA-2026-001"\n', "", "missing-key"),
        ("k = 2", "k = 7", "bad-params"),
        ("[params]", "[params", "not-toml"),
        ("statistics.gz.example/node-a", "unknown.gz.example/node-a", "unknown-node"),
        ("valid_hours = 72", "valid_hours = 1000", "job-invalid"),
    ],
)
def test_a_job_file_that_is_wrong_says_where(bureau, tmp_path, old, new, code):
    path = tmp_path / "job.toml"
    path.write_text(JOB_TOML.read_text("utf-8").replace(old, new, 1), "utf-8")
    with pytest.raises(InputError) as error:
        bureau.submit(path)
    assert error.value.code == code


def test_a_job_file_that_is_not_text_is_refused(bureau, tmp_path):
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as error:
        bureau.submit(path)
    assert error.value.code == "not-utf8"


@pytest.mark.parametrize("name", ["abc", "sha256:" + "0" * 64, "f" * 12])
def test_an_unknown_job_is_named_as_such(bureau, name):
    with pytest.raises(InputError) as error:
        bureau.job(name).view()
    assert error.value.code == "unknown-job"


# -- the coordinator is not believed -----------------------------------------------------------------


def test_a_roster_older_than_one_seen_before_is_refused(live):
    with Bureau.connect(live.analyst.path) as bureau:
        seen = bureau.roster()
    newer = live.world.roster(2, seen)
    live.analyst.keep_roster(2, live.world.signed(newer))
    with Bureau.connect(live.analyst.path) as bureau, pytest.raises(StateConflict) as rolled_back:
        bureau.roster()
    assert rolled_back.value.code == "roster-rollback"


def test_a_roster_the_roots_did_not_sign_is_refused(live):
    live.coordinator.registry._envelope = live.world.signed(live.roster, signatures=1)
    with Bureau.connect(live.analyst.path) as bureau, pytest.raises(SignatureInvalid):
        bureau.submit(JOB_TOML)


def test_a_newer_roster_is_taken_up_on_the_way(live):
    with Bureau.connect(live.analyst.path) as bureau:
        spec = live.world.spec(bureau.roster(), requester=key_id(live.card.key))
        newer = live.publish()
        with pytest.raises(StateConflict) as outdated:
            bureau.submit(spec)
        assert outdated.value.code == "roster-outdated"
        assert bureau.submit(JOB_TOML).view().state == "SUBMITTED"
        assert bureau.roster() == newer


def test_an_analyst_the_roster_does_not_list_is_told_so(live, tmp_path):
    create(tmp_path / "other", name="zhao", organisation="bureau.gz.example", suite=2)
    connect(AnalystHome(tmp_path / "other"), live.invite(), live.world.roots.fingerprint)
    with Bureau.connect(tmp_path / "other") as bureau, pytest.raises(SignatureInvalid) as stranger:
        bureau.jobs()
    assert stranger.value.code == "unknown-analyst"
    assert "card" in stranger.value.hint


class Opening:
    """One release, and what its receiver compares it with."""

    def __init__(self, world: Collaboration) -> None:
        self.world = world
        self.spec = world.spec()
        self.job = self.spec.job_id

    def open(self, by=None, tamper=lambda sealed: sealed, spec=True, **changes) -> Release:
        node = changes.get("node", POLICE)
        note, sealed, _ = self.world.release(self.job, 1, by=by, **changes)
        return open_release(
            note=note,
            sealed=tamper(sealed),
            release=self.world.release(self.job, 1, node=node)[2],
            job=self.job,
            spec=self.spec if spec else None,
            roster=self.world.roster(),
            organisation=BUREAU,
            private=recipient("li"),
        )


@pytest.fixture
def opening(world):
    return Opening(world)


def test_a_release_opens_with_the_analysts_key(opening):
    assert opening.open().to_arrow().to_pydict() == STREETS
    assert opening.open(spec=False).name == "street-table"


@pytest.mark.parametrize(
    ("changes", "kind", "code"),
    [
        ({"by": HEALTH}, SignatureInvalid, "wrong-node"),
        ({"by": "mallory"}, SignatureInvalid, "too-few-signatures"),
        ({"release": "f" * 32}, SignatureInvalid, "wrong-subject"),
        ({"recipient": organisation_of(POLICE)}, SignatureInvalid, "wrong-subject"),
        ({"output_class": "B"}, SignatureInvalid, "wrong-subject"),
        ({"name": "other-table"}, SignatureInvalid, "unplanned-release"),
        ({"name": "other-table", "spec": False}, DecodeError, "wrong-subject"),
        ({"output_class": "C"}, SignatureInvalid, "unplanned-release"),
        ({"statement": "别的"}, DecodeError, "wrong-subject"),
        ({"sha256": sha256_digest(b"x")}, DecodeError, "wrong-digest"),
        ({"content_sha256": sha256_digest(b"x")}, DecodeError, "wrong-digest"),
        ({"tamper": lambda sealed: sealed[:-1]}, DecodeError, "wrong-digest"),
        ({"analyst": "zhao"}, DecodeError, "does-not-open"),
    ],
)
def test_a_release_that_does_not_hold_is_not_opened(opening, changes, kind, code):
    with pytest.raises(kind) as error:
        opening.open(**changes)
    assert error.value.code == code


def test_another_jobs_release_under_this_jobs_name_is_not_opened(opening):
    opening.job = JobId("sha256:" + "9" * 64)
    note, sealed, release = opening.world.release(opening.spec.job_id, 1)
    with pytest.raises(SignatureInvalid) as error:
        open_release(
            note=note,
            sealed=sealed,
            release=release,
            job=opening.job,
            spec=None,
            roster=opening.world.roster(),
            organisation=BUREAU,
            private=recipient("li"),
        )
    assert error.value.code == "wrong-subject"


def test_what_is_sealed_but_no_table_is_refused(world):
    from coordinator.client.release import _described

    whole = Opening(world).open().content
    for content in (b"", b"not arrow", b"\xff" * 100, whole[: len(whole) // 2], whole[:-30]):
        with pytest.raises(DecodeError) as error:
            _described(content)
        assert error.value.code == "bad-release"


# -- when the coordinator goes away ------------------------------------------------------------------


def test_an_unreachable_coordinator_is_a_clear_error(live):
    live.halt()
    with Bureau.connect(live.analyst.path) as bureau, pytest.raises(Unreachable) as error:
        bureau.jobs()
    assert "running" in error.value.hint
    live.boot()


def test_watching_survives_a_restart_of_the_coordinator(live):
    live.nodes[HEALTH].answer = ""
    live.start()
    with Bureau.connect(live.analyst.path) as bureau:
        job = bureau.submit(JOB_TOML)
        events = job.events()
        assert next(events).state == "SUBMITTED"
        live.stop_nodes()
        live.restart()
        live.nodes[HEALTH].answer = "permit"
        live.start()
        assert list(events)[-1].state == "SUCCEEDED"


# -- how it shows ------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>"


def a_view(**changes):
    run = RunStatus(NodeName(HOSTILE), "register", "RUNNING", "", "", "", "tags", 50, 100, 0, 0, b"")
    view = View(
        JobId("sha256:" + "1" * 64),
        "RUNNING",
        1,
        "crosscheck/1",
        "P",
        "",
        HOSTILE,
        HOSTILE,
        "now",
        (run,),
        (),
    )
    return replace(view, **changes)


def test_a_notebook_shows_jobs_and_releases_and_runs_nothing(bureau, opening):
    for html in (notebook.job_html(a_view()), a_view()._repr_html_()):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html
        assert "tags 50 %" in html
    release = replace(opening.open(), facts={HOSTILE: HOSTILE}, statement=HOSTILE)
    html = release._repr_html_()
    assert "<script>" not in html
    assert "<td>东街</td><td>25</td>" in html
    job = bureau.submit(JOB_TOML)
    job.wait(progress=False)
    assert "SUCCEEDED" in job._repr_html_()


def test_without_a_terminal_every_change_is_one_line():
    out = io.StringIO()
    with bars(Console(file=out, force_terminal=False, width=200)) as show:
        show(a_view())
        show(a_view())
        show(a_view(state="SUCCEEDED", sentence=""))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("RUNNING, tags 50 %")
    assert lines[2].endswith("SUCCEEDED, attempt 1")


def test_figures_of_a_run_stand_in_its_line_and_beside_its_bar():
    run = replace(a_view().runs[0], phase="training", figures={"auc": "0.8123", "epsilon": "0.52"})
    for terminal in (False, True):
        out = io.StringIO()
        with bars(Console(file=out, force_terminal=terminal, width=200)) as show:
            show(a_view(runs=(run,)))
        assert "RUNNING, training 50 %, auc 0.8123, epsilon 0.52" in out.getvalue()
    plain = cli._plain(a_view(runs=(run,)))
    assert plain["runs"][0]["figures"] == {"auc": "0.8123", "epsilon": "0.52"}


def test_what_a_coordinator_shows_as_a_figure_and_is_none_is_left_out():
    run = jobs_pb2.RunView(node="n", figures={"auc": "0.8", "x": "\x1b[2J", "loss": "1" * 25})
    view = View.of(jobs_pb2.JobView(job="sha256:" + "1" * 64, runs=[run]))
    assert view.runs[0].figures == {"auc": "0.8"}


def test_in_a_terminal_there_are_bars():
    out = io.StringIO()
    with bars(Console(file=out, force_terminal=True, width=120)) as show:
        show(a_view())
        show(a_view(state="SUCCEEDED"))
    assert "━" in out.getvalue()
    assert "SUCCEEDED" in out.getvalue()


def test_waiting_shows_progress_on_stderr(bureau, capsys):
    bureau.submit(JOB_TOML).wait()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "SUCCEEDED, attempt 1" in shown.err


def test_a_release_is_saved_as_csv_arrow_and_note(opening, tmp_path):
    import pyarrow as pa

    csv, arrow, note = opening.open().save(tmp_path / "out")
    assert csv.read_text("utf-8").splitlines()[1] == '"东街",25'
    assert pa.ipc.open_stream(arrow.read_bytes()).read_all().num_rows == 2
    assert json.loads(note.read_bytes())["payloadType"].startswith("application/vnd.minshu.release")


# -- homes -------------------------------------------------------------------------------------------


def test_a_home_pins_its_roots_for_good(live, tmp_path):
    home = AnalystHome(tmp_path / "home")
    create(home.path, name="li", organisation="bureau.gz.example", suite=2)
    with pytest.raises(InputError) as early:
        Bureau.connect(home.path)
    assert early.value.code == "not-connected"
    with pytest.raises(SignatureInvalid) as wrong:
        connect(home, live.invite(), "sha256:" + "0" * 64)
    assert wrong.value.code == "wrong-roots"
    connect(home, live.invite(), live.world.roots.fingerprint)
    other = Collaboration(live.world.now, roots_signers=tuple(signer(f"other {i}") for i in range(3)))
    live.world, mine = other, live.world
    line = live.invite()
    live.world = mine
    with pytest.raises(StateConflict) as pinned:
        connect(AnalystHome(home.path), line, other.roots.fingerprint)
    assert pinned.value.code == "roots-pinned"
    connect(AnalystHome(home.path), live.invite(), live.world.roots.fingerprint)


def test_keys_are_readable_by_their_owner_alone(tmp_path):
    create(tmp_path / "home", name="li", organisation="bureau.gz.example", suite=1)
    for name in ("analyst.pem", "recipient.key"):
        assert (tmp_path / "home" / "keys" / name).stat().st_mode & 0o077 == 0
    assert (tmp_path / "home").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    [
        'name = "li"',
        'name = "li"\norganisation = "o"\ncolour = "red"',
        "name = 3\norganisation = 'o'",
        "=",
        "\xff",
    ],
)
def test_a_configuration_with_anything_unknown_is_refused(text):
    with pytest.raises(InputError) as error:
        AnalystConfig.decode(text.encode("latin-1"))
    assert error.value.code == "bad-config"


def test_no_home_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.delenv("MINSHU_HOME", raising=False)
    for home in (None, tmp_path):
        with pytest.raises(InputError) as error:
            Bureau.connect(home)
        assert error.value.code == "no-home"


def test_minshu_is_the_sdks_face():
    import minshu

    assert set(minshu.__all__) <= set(dir(minshu))
    assert (minshu.Bureau, minshu.Catalogue) == (Bureau, Catalogue)
    with pytest.raises(AttributeError):
        _ = minshu.NoSuchThing


def test_importing_the_coordinator_is_cheap():
    code = "import sys, coordinator, coordinator.cli, coordinator.client.cli, minshu; "
    code += "print([m for m in ('sqlalchemy', 'duckdb', 'pyarrow', 'grpc', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert result.stdout.strip() == "[]", result.stderr


# -- the command, where a transcript cannot go -------------------------------------------------------


def minshu(home, *words) -> subprocess.Popen:
    program = "import sys; from coordinator.client.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--home", str(home), *words]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'proto'}"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=root
    )


def test_ctrl_c_ends_a_watch_at_once(ready, bureau):
    ready.nodes[HEALTH].answer = ""
    job = bureau.submit(JOB_TOML)
    with minshu(ready.analyst.path, "watch", job.id) as watching:
        assert watching.stderr is not None
        assert "SUBMITTED" in "".join(watching.stderr.readline() for _ in range(5))
        began = time.monotonic()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert time.monotonic() - began < 5
        assert "Traceback" not in watching.stderr.read()
    job.cancel()


def run(capsys, *words) -> tuple[int, str, str]:
    code = cli.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_speaks_json(ready, bureau, capsys, tmp_path):
    home = ("--home", str(ready.analyst.path), "--json")
    code, out, _ = run(capsys, *home, "submit", str(JOB_TOML), "--wait")
    submitted, last = (json.loads(line) for line in out.splitlines())
    job = submitted["job"]
    assert (code, last["state"]) == (0, "SUCCEEDED")
    code, out, _ = run(capsys, "watch", *home, job)
    assert (code, json.loads(out.splitlines()[-1])["job"]) == (0, job)
    code, out, _ = run(capsys, "show", *home, job)
    assert [run["node"] for run in json.loads(out)["runs"]] == [SEATS[role] for role in sorted(SEATS)]
    code, out, _ = run(capsys, "list", *home)
    assert json.loads(out)["jobs"][0]["job"] == job
    code, out, _ = run(capsys, "fetch", *home, job, "--out", str(tmp_path / "out"))
    assert [Path(path).exists() for path in json.loads(out)["releases"]["street-table"]] == [True] * 3
    code, out, _ = run(capsys, "catalogue", *home)
    assert set(json.loads(out)["catalogues"]) == set(NODES)
    code, out, _ = run(capsys, "cancel", *home, job)
    assert json.loads(out)["state"] == "SUCCEEDED"


def test_a_job_that_does_not_succeed_is_exit_code_1_with_its_hint(ready, bureau, capsys):
    ready.nodes[HEALTH].answer = "refuse"
    code, out, err = run(capsys, "submit", "--home", str(ready.analyst.path), str(JOB_TOML), "--wait")
    assert code == 1
    assert "REFUSED" in out
    code, out, err = run(capsys, "fetch", "--home", str(ready.analyst.path), out.splitlines()[0])
    assert (code, out) == (1, "")
    assert err.startswith("minshu: error: the job is REFUSED")


def test_an_error_of_a_stopped_job_is_of_the_tree():
    from coordinator.client.sdk import _succeeded

    for state, kind in (("FAILED", ProtocolAborted), ("REFUSED", Refused), ("EXPIRED", StateConflict)):
        with pytest.raises(MinshuError) as error:
            _succeeded(a_view(state=state, code="some-code"))
        assert (type(error.value), error.value.code) == (kind, "some-code")
