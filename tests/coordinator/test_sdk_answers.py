"""Questions, stored answers, outcomes and usage over the wire: SDK and command against a real coordinator."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from collaboration import (
    HEALTH,
    INSURANCE,
    NODES,
    POLICE,
    STATISTICS,
    STREETS,
    signer,
)
from loopback import LiveBureau

from audit.note import ED25519, VerifierKey
from coordinator import scheduler as scheduling
from coordinator import service
from coordinator.client import cli
from coordinator.client.connection import Connection
from coordinator.client.outcomes import read_outcomes, recipients
from coordinator.client.progress import says
from coordinator.client.view import RunStatus
from coordinator.store import StoredRotation
from minshu import Bureau
from minshu.v1 import relay_pb2
from protocols.envelope import EXPLAIN, JOB, Envelope, decode_envelope, key_id, sign
from protocols.errors import InputError, Refused, SignatureInvalid, StateConflict
from protocols.ids import JobId, Organisation
from protocols.wire import CostLine, JobSpec

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
        node.answer, node.says, node.finishes = "permit", {}, True
    with Bureau.connect(ready.analyst.path) as bureau:
        yield bureau


def succeeded(bureau):
    job = bureau.submit(JOB_TOML)
    assert job.wait(progress=False).succeeded
    return job


def journal(ready, kind, job):
    """What the coordinator's journal says of a job, once everything due is in it."""
    ready.until(lambda: not ready.coordinator.store.due_entries())
    return [
        entry for entry in ready.coordinator._journal.entries() if (entry.kind, entry.job) == (kind, job.id)
    ]


def run(capsys, ready, *words) -> tuple[int, str, str]:
    code = cli.main([*words, "--home", str(ready.analyst.path)])
    out, err = capsys.readouterr()
    return code, out, err


# -- questions ---------------------------------------------------------------------------------------


def test_explain_asks_every_node_and_leaves_no_job(bureau, ready):
    ready.nodes[HEALTH].answer = "refuse"
    ready.nodes[INSURANCE].answer = "ask"
    before = [view.job for view in bureau.jobs()]
    found = bureau.explain(JOB_TOML)
    said = {answer.node: answer.verdict and answer.verdict.answer for answer in found.answers}
    assert said == {POLICE: "permit", INSURANCE: "ask", HEALTH: "refuse", STATISTICS: "permit"}
    assert found.refused
    assert found.spec.expected_use == "核实疑似漏登并补录"
    assert [view.job for view in bureau.jobs()] == before
    assert ready.coordinator.store.job(found.spec.job_id) is None


def test_a_spec_is_asked_about_anew_each_time(bureau, ready):
    spec = ready.world.spec(bureau.roster(), requester=key_id(ready.card.key))
    first, second = bureau.explain(spec), bureau.explain(spec)
    assert len({spec.job_id, first.spec.job_id, second.spec.job_id}) == 3
    assert all(answer.verdict is not None for answer in first.answers)


def test_explain_stops_at_what_is_no_job(bureau, tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB_TOML.read_text("utf-8").replace("k = 2", "k = 7"), "utf-8")
    with pytest.raises(InputError) as error:
        bureau.explain(path)
    assert error.value.code == "bad-params"


def test_explain_prints_the_page_and_exits_by_it(bureau, ready, capsys):
    code, out, _ = run(capsys, ready, "explain", str(JOB_TOML), "--lang", "en")
    assert code == 0
    assert out.splitlines()[-1] == "next: submitted now, it would run: minshu submit"
    ready.nodes[HEALTH].answer = "refuse"
    code, out, _ = run(capsys, ready, "explain", str(JOB_TOML))
    assert code == 1
    assert f"{HEALTH} (source-2): 拒绝" in out
    code, out, _ = run(capsys, ready, "explain", str(JOB_TOML), "--json")
    assert (code, json.loads(out)["refused"]) == (1, True)


def test_a_node_that_is_away_is_named(live):
    live.start(POLICE, INSURANCE, HEALTH)
    with Bureau.connect(live.analyst.path) as bureau:
        found = bureau.explain(JOB_TOML)
    assert {a.node: a.code for a in found.answers if a.verdict is None} == {STATISTICS: "node-away"}
    assert STATISTICS in found.next("en")


def asked(ready, kind=EXPLAIN, **changes) -> bytes:
    spec = ready.world.spec(ready.coordinator.registry.roster, requester=key_id(ready.card.key), **changes)
    return sign(kind, spec.encode(), [ready.analyst.signer()]).encode()


@pytest.fixture
def connection(ready):
    connection = Connection(ready.analyst, ready.world.now)
    yield connection
    connection.close()


def test_a_question_is_never_taken_for_a_job_nor_a_job_for_a_question(bureau, ready, connection):
    question = asked(ready)
    assert len(list(connection.explain(question))) == len(NODES)
    for kind in (EXPLAIN, JOB):  # as it is, and under the other name
        document = decode_envelope(question)
        disguised = Envelope(kind, document.payload, document.signatures).encode()
        with pytest.raises(SignatureInvalid):
            connection.submit(disguised)
    assert ready.coordinator.store.job(JobSpec.decode(document.payload).job_id) is None
    document = decode_envelope(asked(ready, JOB))
    for kind in (EXPLAIN, JOB):
        disguised = Envelope(kind, document.payload, document.signatures).encode()
        with pytest.raises(SignatureInvalid):
            list(connection.explain(disguised))


def test_a_question_is_answered_once_and_only_while_it_is_new(ready, bureau, connection):
    question = asked(ready)
    list(connection.explain(question))
    with pytest.raises(StateConflict) as again:
        list(connection.explain(question))
    assert again.value.code == "request-replayed"
    for created in (-timedelta(minutes=6), timedelta(minutes=6)):
        with pytest.raises(Refused) as stale:
            list(connection.explain(asked(ready, created=ready.world.now().replace(microsecond=0) + created)))
        assert stale.value.code == "request-stale"


def test_a_strangers_question_is_not_passed_on(ready, connection):
    before = len(ready.nodes[POLICE].got("explain"))
    with pytest.raises(SignatureInvalid) as stranger:
        list(connection.explain(ready.world.question(ready.world.spec(ready.roster), "mallory")))
    assert stranger.value.code == "unknown-analyst"
    assert len(ready.nodes[POLICE].got("explain")) == before


def test_an_analyst_has_only_so_many_questions_open(ready, bureau, connection, monkeypatch):
    monkeypatch.setattr(scheduling, "EXPLAIN_S", 5)
    monkeypatch.setattr(service, "_MAX_QUESTIONS", 2)
    ready.nodes[HEALTH].answer = ""
    held = [connection.explain(asked(ready)) for _ in range(2)]
    for answers in held:
        next(answers)
    with pytest.raises(Refused) as refused:
        list(connection.explain(asked(ready)))
    assert refused.value.code == "too-many-questions"
    for answers in held:
        answers.close()
    ready.until(lambda: not ready.coordinator.scheduler._questions)
    ready.nodes[HEALTH].answer = "permit"
    assert len(list(connection.explain(asked(ready)))) == len(NODES)


def test_a_coordinator_that_turns_a_refusal_into_a_yes_is_found_out(ready, bureau, monkeypatch):
    ready.nodes[HEALTH].answer = "refuse"
    honest = Connection.explain

    def lying(self, envelope):
        answers = list(honest(self, envelope))
        spare = next(one for one in answers if one.node == POLICE)
        for one in answers:
            if one.node == HEALTH:
                one.verdict = spare.verdict
        return iter(answers)

    monkeypatch.setattr(Connection, "explain", lying)
    with pytest.raises(SignatureInvalid):
        bureau.explain(JOB_TOML)


# -- stored answers ----------------------------------------------------------------------------------


def answered_again(bureau, ready):
    """A job, and one that all nodes say it has answered."""
    first = succeeded(bureau)
    for node in ready.nodes.values():
        node.says = {"answered": first.id}
    ready.nodes[HEALTH].answer = "refuse"
    again = bureau.submit(JOB_TOML)
    again.wait(progress=False)
    return first, again


def test_a_question_asked_again_gives_the_earlier_release(bureau, ready, capsys):
    first, again = answered_again(bureau, ready)
    last = again.view()
    assert (last.state, last.code, last.answered_by) == ("SUCCEEDED", "answered-before", first.id)
    release = again.release()
    assert release.to_arrow().to_pydict() == STREETS
    assert release.note.job == first.id
    assert list(again.releases()) == ["street-table"]
    receipts = journal(ready, "peer.receipt", again)
    assert [entry.body["code"] for entry in receipts] == ["answered-before"] * len(NODES)
    code, out, _ = run(capsys, ready, "show", again.id)
    assert code == 0
    assert f"every node says that job {first.id} has answered this question" in out


LIES = {
    "names another job": lambda view, other: replace(view, answered_by=other),
    "hides a node": lambda view, _: replace(view, runs=view.runs[1:]),
    "shows no node": lambda view, _: replace(view, runs=()),
    "swaps two verdicts": lambda view, _: replace(
        view,
        runs=(
            replace(view.runs[0], verdict=view.runs[1].verdict),
            replace(view.runs[1], verdict=view.runs[0].verdict),
            *view.runs[2:],
        ),
    ),
    "shows a verdict of the earlier job": lambda view, _: replace(view, attempt=2),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_earlier_answer_counts_only_if_every_node_has_signed_for_it(bureau, ready, monkeypatch, lie):
    other = succeeded(bureau)
    _, again = answered_again(bureau, ready)
    told = again.view
    monkeypatch.setattr(again, "view", lambda: lie(told(), other.id))
    with pytest.raises(SignatureInvalid):
        again.release()
    with pytest.raises(SignatureInvalid):
        again.releases()


def test_a_job_answered_for_another_home_is_not_followed(bureau, ready):
    first, again = answered_again(bureau, ready)
    ready.analyst.job(again.id).unlink()
    with pytest.raises(InputError) as unknown:
        again.releases()
    assert unknown.value.code == "job-not-kept"
    assert first.id in unknown.value.hint


def test_the_nodes_verdicts_are_checked_one_by_one(bureau, ready):
    job = succeeded(bureau)
    assert {node: verdict.answer for node, verdict in job.verdicts().items()} == dict.fromkeys(
        NODES, "permit"
    )


# -- outcomes ----------------------------------------------------------------------------------------


def node_files(ready, job, **changes):
    envelope = ready.world.outcome(job.id, **changes)
    ready.loop.run(ready.nodes[POLICE].say(outcome=relay_pb2.OutcomeFiled(outcome=envelope)))
    digest = decode_envelope(envelope).payload_digest
    ready.until(lambda: digest in [stored.sha256 for stored in ready.nodes[POLICE].got("filed")])


def test_what_the_recipient_found_out_stands_with_the_job(bureau, ready, capsys):
    job = succeeded(bureau)
    node_files(ready, job)
    view = job.file(40, 40, "  街道复核\n一致 ")
    mine, police = view.outcomes
    assert str(police) == (
        f"3,351 of 5,718 confirmed (58.6 %), {POLICE}, {ready.world.now():%Y-%m-%d}: 按户核实"
    )
    assert (mine.by, mine.organisation, mine.note) == ("li", "bureau.gz.example", "街道复核 一致")
    assert job.view().outcomes == view.outcomes
    _, out, _ = run(capsys, ready, "show", job.id)
    assert f"  outcome: {police}" in out.splitlines()
    assert "  expected use: 核实疑似漏登并补录" in out.splitlines()
    assert "  legal basis: DPIA-2026-001" in out.splitlines()
    html = job._repr_html_()
    assert "58.6 %" in html
    assert "核实疑似漏登并补录" in html
    _, out, _ = run(capsys, ready, "show", job.id, "--json")
    assert [one["confirmed"] for one in json.loads(out)["outcomes"]] == [40, 3351]
    recorded = journal(ready, "outcome.filed", job)
    assert [(entry.body["checked"], entry.body["confirmed"]) for entry in recorded] == [
        (5718, 3351),
        (40, 40),
    ]


def test_the_outcome_command_files_and_shows(bureau, ready, capsys):
    job = succeeded(bureau)
    code, out, _ = run(capsys, ready, "outcome", job.id, "--checked", "0", "--confirmed", "0")
    assert code == 0
    assert "0 of 0 confirmed, li" in out
    code, _, err = run(capsys, ready, "outcome", job.id, "--checked", "9", "--confirmed", "0")
    assert (code, "between 1 and 9" in err) == (1, True)


@pytest.mark.parametrize(
    ("figures", "kind", "code"),
    [
        ((100, 200, ""), InputError, "bad-outcome"),
        ((100, 50, "身份证 990101199001011234"), InputError, "bad-outcome"),
        ((100, 50, "x" * 513), InputError, "bad-field"),
        ((-1, 0, ""), InputError, "bad-field"),
        ((9, 0, ""), Refused, "small-count"),
    ],
)
def test_an_outcome_that_cannot_be_filed_says_why(bureau, figures, kind, code):
    job = succeeded(bureau)
    with pytest.raises(kind) as refused:
        job.file(*figures)
    assert refused.value.code == code
    assert refused.value.hint


def test_an_outcome_that_no_key_in_the_roster_vouches_for_is_not_shown_as_one(bureau, ready, capsys):
    job = succeeded(bureau)
    genuine = ready.world.outcome(job.id)
    roster = bureau.roster()
    forged = [
        ready.world.outcome(job.id, signed_by=HEALTH),
        ready.world.outcome(job.id, signed_by="mallory"),
        ready.world.outcome("sha256:" + "9" * 64),
        ready.world.question(ready.world.spec()),
        b"",
    ]
    shown, doubtful = read_outcomes([*forged, genuine], job.id, roster)
    assert ([one.confirmed for one in shown], doubtful) == ([3351], len(forged))
    store = ready.coordinator.store
    for number, envelope in enumerate(forged):
        stored = scheduling.StoredOutcome(
            f"sha256:{number:064x}", job.id, POLICE, envelope, ready.world.now()
        )
        store.add_outcome(stored, 16)
    view = job.view()
    assert (view.outcomes, view.doubtful) == ((), len(forged))
    _, out, _ = run(capsys, ready, "show", job.id)
    assert "5 outcome(s) not shown: no key in the roster vouches for them" in out


def test_only_who_received_a_release_is_shown_and_only_so_many_are_read(ready, bureau):
    job = JobId("sha256:" + "1" * 64)
    spec, roster = ready.world.spec(), ready.world.roster()
    receiving = recipients(spec, Organisation("bureau.gz.example"))
    own, stranger = ready.world.outcome(job), ready.world.outcome(job, HEALTH)
    shown, doubtful = read_outcomes([stranger, own], job, roster, receiving)
    assert ([one.by for one in shown], doubtful) == ([POLICE], 1)
    assert [one.by for one in read_outcomes([stranger], job, roster)[0]] == [HEALTH]
    assert read_outcomes([*[b""] * 16, own], job, roster) == ((), 17)


def test_a_node_taken_in_anew_vouches_for_nothing_old_and_a_changed_key_for_all_between(live):
    bureau = Bureau(live.analyst)
    spec = live.world.spec(bureau.roster(), requester=key_id(live.card.key))
    live.start()
    job = bureau.submit(spec)

    def vouched(name):
        roster = bureau.roster()
        return [n.identity_key for n in job._vouching(roster, job.id).nodes if n.name == name]

    announced = []
    for before, after in ((POLICE, "second"), ("second", "third")):
        keys = signer(before).public_key, signer(after).public_key
        announced.append(StoredRotation(POLICE, *keys, live.world.now(), b""))
        live.publish(rotations=announced)
    assert vouched(POLICE) == [signer(key).public_key for key in ("third", "second", POLICE)]
    live.publish(without=[POLICE])
    assert vouched(POLICE) == []
    key = signer("anew").public_key
    vkey = str(VerifierKey(f"{POLICE}/journal/1", ED25519, key))
    anew = [
        replace(one, identity_key=key, journal_vkey=vkey, enrolled=live.world.now())
        if one.node == POLICE
        else one
        for one in live.coordinator.store.enrolments()
    ]
    live.publish(enrolments=anew)
    assert vouched(POLICE) == [key]
    assert vouched(HEALTH) == [signer(HEALTH).public_key]


def test_the_newest_outcome_is_shown_first(ready, bureau):
    job = JobId("sha256:" + "1" * 64)
    hours = [2, 0, 1]
    envelopes = [
        ready.world.outcome(job, checked=9000 + n, filed=ready.world.now() + timedelta(hours=n))
        for n in hours
    ]
    shown, _ = read_outcomes(envelopes, job, bureau.roster())
    assert [one.checked for one in shown] == [9002, 9001, 9000]


# -- usage -------------------------------------------------------------------------------------------


def test_usage_shows_what_the_organisation_asked_and_spent(live, capsys):
    cost = CostLine("b", "zcdp", "0.1", "0.4", "0.5", live.world.now())
    live.nodes[HEALTH].says = {"costs": (cost,)}
    live.start()
    with Bureau.connect(live.analyst.path) as bureau:
        assert bureau.usage() == []
        succeeded(bureau)
        live.nodes[INSURANCE].answer = "refuse"
        bureau.submit(JOB_TOML).wait(progress=False)
        (row,) = bureau.usage()
    assert (row["organisation"], row["purpose"]) == ("bureau.gz.example", "P-2026-001")
    assert (row["jobs"], row["succeeded"], row["refused"], row["rho"]) == (2, 1, 1, "0.1")
    code, out, _ = run(capsys, live, "usage")
    assert code == 0
    assert out.splitlines()[0].split()[0] == "purpose"
    assert out.splitlines()[1].split()[:4] == ["P-2026-001", "2", "1", "1"]
    code, out, _ = run(capsys, live, "usage", "--json")
    assert json.loads(out)["usage"] == [row]


# -- how runs show -----------------------------------------------------------------------------------


def test_a_run_that_waits_shows_cost_and_who_may_approve(bureau, ready, capsys):
    cost = CostLine("elder_quarter", "zcdp", "0.1", "0.4", "0.5", ready.world.now())
    ready.nodes[HEALTH].answer = "ask"
    ready.nodes[HEALTH].says = {
        "approvals_needed": 2,
        "approvals_given": 1,
        "approvers": ("owner",),
        "costs": (cost,),
    }
    job = bureau.submit(JOB_TOML)
    ready.until(lambda: ready.coordinator.store.job(job.id).job.state == "AWAITING_APPROVAL")
    _, out, _ = run(capsys, ready, "show", job.id)
    waits = "AWAITING_APPROVAL, 1 of 2 approvals, still by owner; costs ρ = 0.1 (elder_quarter)"
    assert f"  {HEALTH} (source-2): {waits}" in out.splitlines()
    ready.nodes[HEALTH].says = {}
    job.cancel()


def test_a_node_that_has_changed_its_key_since_still_stands_by_what_it_signed(ready, bureau):
    job = JobId("sha256:" + "1" * 64)
    roster = ready.world.roster()
    changed = [replace(n, identity_key=signer("next").public_key) for n in roster.nodes if n.name == POLICE]
    others = [node for node in roster.nodes if node.name != POLICE]
    old, new = ready.world.outcome(job), ready.world.outcome(job, signed_by="next", checked=6000)
    for nodes, held in (
        ([*changed, *others], [6000]),
        ([*changed, *others, *roster.nodes], [6000, 5718]),
        (others, []),
    ):
        shown, _ = read_outcomes([old, new], job, replace(roster, nodes=tuple(nodes)))
        assert [one.checked for one in shown] == held


def test_a_run_that_waits_for_its_hours_says_so_and_a_verdict_that_cannot_be_read_hides_nothing(ready):
    verdict = ready.world.verdict(HEALTH, "sha256:" + "1" * 64, 1, "ask", sentence="it waits until 08:00")
    waiting = RunStatus(
        node=HEALTH,
        role="source-2",
        state="AWAITING_APPROVAL",
        code="window-closed",
        sentence="it waits until 08:00",
        hint="",
        phase="",
        done=0,
        total=0,
        approvals_needed=0,
        approvals_given=0,
        verdict=verdict,
    )
    assert says(waiting) == "AWAITING_APPROVAL, it waits until 08:00"
    for broken in (b"", b"junk", ready.world.outcome("sha256:" + "1" * 64)):
        unread = replace(waiting, verdict=broken, approvals_needed=2)
        assert unread.said is None
        assert says(unread) == "AWAITING_APPROVAL, 0 of 2 approvals"
