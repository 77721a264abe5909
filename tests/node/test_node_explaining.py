"""Dry answers: what the gate would say, signed and journaled; nothing runs, is kept or is read."""

import asyncio
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from simulator import Post, World, answered, approve_all, new_signer, over, running, until

from minshu.v1 import relay_pb2 as pb
from node.activation import InForce, activate_roster
from node.approvals import make_approval, record_approval
from node.explaining import MAX_A_MINUTE, Explaining
from node.gate import MAX_OFFER_BYTES, Gate
from node.logs import Log
from node.rpc import Attempt, ControlRequest
from node.sources import Access, open_source
from node.sources.files import CsvFile
from node.state import State
from policies.decision import Ask
from protocols.envelope import EXPLAIN, JOB, VERDICT, Envelope, decode_envelope, key_id, sign, verify
from protocols.errors import DecodeError, InputError, StateConflict
from protocols.wire import JobSpec, Verdict


@dataclass
class Desk:
    """A node's gate with its window for questions; `seconds` is its monotonic clock."""

    world: World
    name: str
    state: State
    force: InForce
    gate: Gate
    log: Log
    seconds: float = 0.0
    explaining: Explaining = field(init=False)

    def __post_init__(self) -> None:
        signer = self.world.homes[self.name].signer
        self.explaining = Explaining(
            self.state, self.force, self.gate, signer, monotonic=lambda: self.seconds, log=self.log
        )

    def read(self, envelope: bytes | None) -> Verdict:
        assert envelope is not None
        public = self.world.homes[self.name].signer.public_key
        document = decode_envelope(envelope)
        assert verify(document, VERDICT, {key_id(public): public})
        return Verdict.decode(document.payload)

    def explain(self, spec: JobSpec, **how: Any) -> Verdict:
        return self.read(self.explaining.answer(self.world.sign_job(spec, **{"kind": EXPLAIN} | how)))

    def offer(self, spec: JobSpec) -> Verdict:
        return self.read(self.gate.offer(Attempt(spec.job_id, 1), self.world.sign_job(spec)))

    def entries(self, kind: str = "") -> list[Any]:
        return [entry for entry in self.state.journal.entries() if entry.kind.startswith(kind)]


@pytest.fixture
def health(world: World) -> Iterator[Desk]:
    yield from opened(world, "health")


@pytest.fixture
def matcher(world: World) -> Iterator[Desk]:
    yield from opened(world, "statistics")


def opened(world: World, name: str) -> Iterator[Desk]:
    home, state = world.homes[name], world.open(name)
    force = InForce.load(state, home.name, home.signer.public_key)
    enrolled = home.enrolled()
    assert enrolled is not None
    activate_roster(state, force, world.roster_envelope, enrolled, world.clock)
    log = Log(None, world.clock)
    yield Desk(world, name, state, force, Gate(state, force, home.signer, world.clock, log), log)
    state.close()


# -- what is answered ----------------------------------------------------------------------------------------


def test_a_dry_answer_is_what_an_offer_would_get(health: Desk) -> None:
    spec = health.world.spec()
    dry, real = health.explain(spec), health.offer(spec)
    assert (dry.attempt, real.attempt) == (0, 1)
    assert replace(dry, attempt=1) == real
    assert (dry.answer, dry.approvals_needed, dry.approvers) == ("ask", 2, ("dpo", "owner"))
    assert {line.budget for line in dry.costs} == {"queries", "rows"}
    assert {leaving.name: leaving.output_class for leaving in dry.leaves} == {
        "records": "B",
        "street-table": "A",
    }


def test_a_neutral_node_that_asks_nobody_would_take_part(matcher: Desk) -> None:
    verdict = matcher.explain(matcher.world.spec())
    assert (verdict.answer, verdict.costs) == ("permit", ())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"purpose": "P-9"}, "unknown-purpose"),
        ({"legal_basis": "other"}, "legal-basis-mismatch"),
        ({"roster_digest": "sha256:" + "0" * 64}, "wrong-roster"),
    ],
)
def test_what_would_be_refused_is_refused_for_the_same_reason(
    health: Desk, changes: dict[str, Any], code: str
) -> None:
    spec = health.world.spec(**changes)
    dry, real = health.explain(spec), health.offer(spec)
    assert replace(dry, attempt=1) == real
    assert (dry.answer, dry.code) == ("refuse", code)
    assert dry.hint


def test_the_ledger_counts_in_a_dry_answer(world: World) -> None:
    """What was charged before is charged in the dry answer too, and a dry answer charges nothing itself."""

    async def play() -> None:
        async with running(world) as (post, stations):
            health = stations["health"]
            before = _twice(health, world)
            assert replace(before[0], job=before[1].job) == before[1]
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            after, _ = _twice(health, world)
            assert {line.budget: line.remaining for line in before[0].costs}["queries"] == "100"
            assert after.answered == job  # the very same question
            assert {line.budget: line.remaining for line in after.costs}["queries"] == "99"

    asyncio.run(play())


def _twice(station: Any, world: World) -> list[Verdict]:
    """Ask the same thing twice, in two questions."""
    answers = [station.agent.explaining.answer(world.sign_job(world.spec(), kind=EXPLAIN)) for _ in range(2)]
    return [Verdict.decode(decode_envelope(answer).payload) for answer in answers]


# -- nothing happens -----------------------------------------------------------------------------------------


def test_nothing_is_kept_but_the_journals_entry(health: Desk) -> None:
    spec = health.world.spec()
    before = health.state.journal.size
    verdict = health.explain(spec)
    assert health.state.runs() == []
    assert health.state.job(spec.job_id) is None
    assert list(health.state.ledger().of("people")) == []
    assert health.state.journal.size == before + 1
    [entry] = health.entries("job.explained")
    assert (entry.job, entry.attempt, entry.actor) == (spec.job_id, 0, spec.requester)
    assert entry.policy is not None
    assert entry.policy.rule == verdict.rule == "R1"
    assert entry.body == {
        "code": verdict.code,
        "state": "ask",
        "requester": spec.requester,
        "job_type": "crosscheck/1",
        "purpose": "P-1",
        "approvals": 0,
        "needed": 2,
        "envelope_sha256": entry.body["envelope_sha256"],
    }


class Opened(Exception):
    """The data was touched."""


@pytest.mark.parametrize("answer", ["ask", "refuse"])
def test_no_data_is_touched(health: Desk, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    dataset = health.state.dataset("people")
    assert dataset is not None
    watched = {str(dataset.place.path), str(dataset.place.path.resolve())}

    def opens(event: str, arguments: tuple[Any, ...]) -> None:
        if armed and event == "open" and str(arguments[0]) in watched:
            raise Opened

    def touches(*_: object) -> None:
        raise Opened

    armed = True
    sys.addaudithook(opens)
    monkeypatch.setattr(CsvFile, "read", touches)
    monkeypatch.setattr(CsvFile, "columns", touches)
    try:
        with pytest.raises(Opened):
            dataset.place.path.read_bytes()
        with pytest.raises(Opened):
            open_source(dataset.place, Access()).columns()
        spec = health.world.spec(**({"purpose": "P-9"} if answer == "refuse" else {}))
        assert health.explain(spec).answer == answer
    finally:
        armed = False


def test_a_dataset_whose_file_nobody_can_open_is_explained_all_the_same(health: Desk) -> None:
    dataset = health.state.dataset("people")
    assert dataset is not None
    known = health.explain(health.world.spec())
    dataset.place.path.unlink()
    dataset.place.path.mkdir()
    with pytest.raises((InputError, OSError)):
        list(open_source(dataset.place, Access()).read(["id"]))
    asked = health.explain(health.world.spec())
    assert replace(asked, job=known.job) == known


def test_what_cannot_be_journaled_is_not_answered(health: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StateConflict("no space", code="disk-full")

    monkeypatch.setattr(health.state.journal, "append", full)
    with pytest.raises(StateConflict):
        health.explain(health.world.spec())


# -- who asks ------------------------------------------------------------------------------------------------


def test_a_job_is_no_question_and_a_question_is_no_job(health: Desk) -> None:
    spec = health.world.spec()
    assert health.explain(spec, kind=JOB).code == "wrong-payload-type"
    question = health.world.sign_job(spec, kind=EXPLAIN)
    assert health.read(health.gate.offer(Attempt(spec.job_id, 1), question)).code == "wrong-payload-type"
    document = decode_envelope(question)
    disguised = Envelope(JOB, document.payload, document.signatures).encode()
    assert health.read(health.gate.offer(Attempt(spec.job_id, 1), disguised)).code == "job-forged"
    document = decode_envelope(health.world.sign_job(spec))
    disguised = Envelope(EXPLAIN, document.payload, document.signatures).encode()
    assert health.read(health.explaining.answer(disguised)).code == "job-forged"
    assert health.state.runs() == []


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda world, spec: world.sign_job(spec, new_signer(), EXPLAIN), "job-forged"),
        (
            lambda world, spec: world.sign_job(replace(spec, requester="sha256:" + "1" * 64), kind=EXPLAIN),
            "job-forged",
        ),
        (lambda world, spec: sign(EXPLAIN, b"{}", [world.analyst]).encode(), "missing-field"),
    ],
)
def test_a_forged_question_is_refused_and_journaled(health: Desk, forge: Any, code: str) -> None:
    request = forge(health.world, health.world.spec())
    verdict = health.read(health.explaining.answer(request))
    assert (verdict.answer, verdict.code, verdict.attempt) == ("refuse", code, 0)
    assert verdict.job == decode_envelope(request).payload_digest
    [entry] = health.entries("job.explained")
    assert (entry.body["code"], entry.actor) == (code, "")
    assert verdict.costs == verdict.leaves == ()


def test_what_is_too_large_or_no_envelope_is_not_answered_as_a_question(health: Desk) -> None:
    for request in (b"", b"{}", b"\xff" * 100):
        with pytest.raises(DecodeError):
            health.explaining.answer(request)
    large = Envelope(EXPLAIN, b" " * MAX_OFFER_BYTES, decode_envelope(
        health.world.sign_job(health.world.spec(), kind=EXPLAIN)).signatures).encode()  # fmt: skip
    assert health.read(health.explaining.answer(large)).code == "job-too-large"


def test_an_analyst_gets_only_so_many_answers_a_minute(health: Desk) -> None:
    specs = [health.world.spec() for _ in range(MAX_A_MINUTE)]
    assert {health.explain(spec).answer for spec in specs} == {"ask"}
    size = health.state.journal.size
    refused = health.explain(health.world.spec())
    assert (refused.answer, refused.code) == ("refuse", "too-many-questions")
    assert refused.hint
    assert health.state.journal.size == size
    health.seconds = 60.0
    assert health.explain(health.world.spec()).answer == "ask"


def test_forged_questions_cost_the_analysts_nothing_and_end_unanswered(health: Desk) -> None:
    forged = health.world.sign_job(health.world.spec(), new_signer(), EXPLAIN)
    answers = [health.explaining.answer(forged) for _ in range(MAX_A_MINUTE + 5)]
    assert answers[MAX_A_MINUTE:] == [None] * 5
    assert len(health.entries("job.explained")) == MAX_A_MINUTE
    assert health.explain(health.world.spec()).answer == "ask"


def test_a_question_is_answered_once_and_its_repetition_costs_the_analyst_nothing(health: Desk) -> None:
    question = health.world.sign_job(health.world.spec(), kind=EXPLAIN)
    assert health.read(health.explaining.answer(question)).answer == "ask"
    size = health.state.journal.size
    again = [health.explaining.answer(question) for _ in range(MAX_A_MINUTE + 5)]
    refused = health.read(again[0])
    assert (refused.answer, refused.code, refused.costs) == ("refuse", "question-replayed", ())
    assert refused.hint
    assert again[MAX_A_MINUTE:] == [None] * 5
    assert health.state.journal.size == size
    # All the questions that the analyst has left are answered.
    rest = [health.explain(health.world.spec()).answer for _ in range(MAX_A_MINUTE - 1)]
    assert set(rest) == {"ask"}


@pytest.mark.parametrize("minutes", [-11, 11, 60 * 24])
def test_a_question_that_was_not_made_just_now_is_refused(health: Desk, minutes: int) -> None:
    question = health.world.sign_job(health.world.spec(), kind=EXPLAIN)
    size = health.state.journal.size
    health.world.clock.at += timedelta(minutes=minutes)
    refused = health.read(health.explaining.answer(question))
    assert (refused.answer, refused.code) == ("refuse", "question-outdated")
    assert health.state.journal.size == size
    assert health.explain(health.world.spec()).code != "too-many-questions"


def test_no_question_outlives_the_memory_of_its_answer(health: Desk) -> None:
    made = health.world.clock.at
    question = health.world.sign_job(
        health.world.spec(created=made + timedelta(minutes=10), expires=made + timedelta(days=1)),
        kind=EXPLAIN,
    )
    health.explaining.answer(question)
    codes = []
    for minute in range(23):
        health.world.clock.at = made + timedelta(minutes=minute)
        health.seconds = 60.0 * minute
        codes.append(health.read(health.explaining.answer(question)).code)
        health.explain(health.world.spec())
    assert codes == ["question-replayed"] * 21 + ["question-outdated"] * 2
    # Nor is anything remembered longer than it must be.
    health.world.clock.at = made + timedelta(minutes=60)
    health.seconds = 3600.0
    health.explain(health.world.spec())
    assert len(health.explaining._answered) == 1


def test_the_journal_says_how_many_approvals_are_needed_in_all(health: Desk) -> None:
    spec = health.world.spec()
    health.offer(spec)
    dpo, now = health.world.staff["health"].dpo, health.world.clock
    decision = health.gate.judge(spec, Attempt(spec.job_id, 1))
    assert isinstance(decision, Ask)
    assert health.force.policy is not None
    envelope = make_approval(
        spec, decision, health.force.policy, signer=dpo, now=now(), rand=secrets.token_bytes
    )
    record_approval(health.state, health.force, spec.job_id, envelope=envelope, key=dpo.public_key, now=now)
    verdict = health.explain(spec)
    assert (verdict.approvals_given, verdict.approvals_needed) == (1, 2)
    [entry] = health.entries("job.explained")
    assert (entry.body["approvals"], entry.body["needed"]) == (1, 2)


# -- over the stream -----------------------------------------------------------------------------------------


def test_a_running_node_answers_over_its_control_stream(world: World) -> None:
    class Asking(Post):
        explained: dict[str, pb.Explained]

        async def heard(self, name: str, message: ControlRequest) -> None:
            if message.WhichOneof("kind") == "explained":
                self.explained[name] = message.explained
            else:
                await super().heard(name, message)

    async def play() -> None:
        post = Asking(world)
        post.explained = {}
        async with running(world, post) as (_, stations):
            spec = world.spec()
            question = world.sign_job(spec, kind=EXPLAIN)
            for wire in post.wires.values():
                wire.say(explain=pb.Explain(id="0" * 32, request=b"junk"))
                wire.say(explain=pb.Explain(id="ab" * 16, request=question))
            await until(lambda: set(post.explained) == set(stations))
            said = {}
            for name, answer in post.explained.items():
                assert answer.id == "ab" * 16
                verdict = Verdict.decode(decode_envelope(answer.verdict).payload)
                assert (verdict.job, verdict.attempt) == (spec.job_id, 0)
                said[name] = verdict.answer
            assert said == {
                "police": "ask", "human-resources": "ask", "health": "ask", "statistics": "permit"
            }  # fmt: skip
            # The same spec, submitted: it is a job of its own, and nothing stands in its way.
            job = post.submit(spec)
            await answered(post, job)
            assert all(station.run(job) is not None for station in stations.values())

    asyncio.run(play())
