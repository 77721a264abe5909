"""A split model of six nodes: trained, kept in parts, scored with; nothing else leaves, lies are found."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from math import exp
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from joined_world import (
    JOINED,
    NEUTRAL,
    SOURCES,
    JoinedWorld,
    age,
    band,
    departments_of,
    done,
    opened,
    scan,
    street,
    wage,
)
from score_joined_case import whole_of
from simulator import Station, answered, approve_all, over, person, running

from audit.findings import Answer
from minshu.v1 import relay_pb2 as pb
from node.activation import InForce
from node.ledger import RowState
from node.logs import Log
from node.lookups import delete_unused
from node.releases import decode_content, kept, open_release
from node.shelf import shelf_of
from protocols.envelope import decode_envelope
from protocols.ids import JobId, Organisation
from protocols.jobs import score_joined, train_joined
from protocols.jobs.job_type import SUSPECTED
from protocols.jobs.score_joined import Params
from protocols.joined.params import HELPER
from protocols.party import Finished, Incoming, Outgoing, Step
from protocols.training.joined import parties, scoring_parties
from protocols.training.joined.scoring import Part, part_name, read_part
from protocols.training.logistic import WEIGHT_BITS
from protocols.training.model import unpack
from protocols.wire import JobSpec, ReleaseNote

pytestmark = pytest.mark.alone  # six nodes train and score, some seconds each time

COLUMNS: list[dict[str, Any]] = [
    {"source": "source-1", "slot": "age", "edges": ["30", "50", "65"]},
    {"source": "source-2", "slot": "band", "codes": ["low", "high"]},
    {"source": "source-2", "slot": "wage", "edges": ["3500", "4500"]},
]
TRAINING = """[[rules]]
id = "M1"
requesters = ["bureau"]
purposes = ["P-1"]
job_types = ["train-joined/1"]
recipients = ["bureau"]
recipes = ["logistic"]
"""
SCORING = {
    "[defaults]": "[defaults]\ndifferencing_days = 1",
    'job_types = ["joined-rule/1"]': 'job_types = ["score-joined/1"]\nrecipes = ["logistic"]',
    "max_rows = 60": "max_rows = 150",
    'max_fraction = "0.50"\nmin_coverage = "1"': 'max_fraction = "0.90"\nmin_coverage = "1"',
}
USES = {
    "police": {'use = ["sum", "mean"], range = [0, 120]': 'use = ["train", "filter"], range = [0, 120]'},
    "human-resources": {
        'use = ["group"], values = ["low"': 'use = ["train", "filter"], values = ["low"',
        '"decimal", use = ["sum", "mean", "filter"]': '"decimal", use = ["train", "filter"]',
    },
    "health": {'use = ["sum", "mean", "filter"], range': 'use = ["train"], range'},
}


class ModelWorld(JoinedWorld):
    """Departments that train a model of age and wages for who costs much, and score with it.

    The model is exact and of everybody, so that it is the same each time; after a day, for which an exact
    answer stands in the way of others about the same people, scores may be asked for.
    """

    def policy_of(self, name: str, **changes: Any) -> str:
        """Return the policy with a rule for joined models, and one for scores in the place of `leads`."""
        text = super().policy_of(name, **changes)
        for old, new in {**SCORING, **USES.get(name, {})}.items():
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        more = f'roles = ["{self.seats.get(name, "")}"]\napprovals = 0\n'
        if name in SOURCES:
            columns = text.split("columns = [")[-1].split("]")[0]
            more = 'roles = ["source", "key-holder"]\ndatasets = ["records"]\nquotas = ["joins"]\n'
            more += f"columns = [{columns}]\nexact_training = true\n"
            more += 'approvals = 2\napprovers = ["dpo", "owner"]\n'
        at = text.index('[[rules]]\nid = "J3"')
        return text[:at] + TRAINING + more + text[at:]

    def training(self) -> JobSpec:
        """Return the job whose model is split: who costs more than a few hundred, by age and wage."""
        params = {
            "columns": COLUMNS,
            "label": {"source": "source-3", "slot": "paid", "at_least": "500"},
            "rounds": 8,
            "step": "2",
            "holdout": 0,
            "noise": "none",
            "model": "split",
        }
        sources = {
            "police": {"age": "age"},
            "human-resources": {"band": "band", "wage": "wage"},
            "health": {"paid": "paid"},
        }
        return self.joined("train-joined/1", sources, params)

    def scoring(self, trained: JobId) -> JobSpec:
        """Return the job that tells health whom the parts that are kept make likely, in steps."""
        params = {
            "columns": COLUMNS,
            "model": {"of": trained, "bits": WEIGHT_BITS, "reach": 16},
            "at_least": "0.5",
            "step": "0.02",
            "records_from": "source-1",
            "recipient": "source-3",
        }
        sources = {
            "police": {"age": "age", "street": "street", "last_seen": "seen"},
            "human-resources": {"band": "band", "wage": "wage"},
            "health": {},
        }
        recipients = (Organisation("health.gz.example"),)
        return self.joined("score-joined/1", sources, params, recipients=recipients)

    def part(self, name: str, job: JobId, scoring: JobSpec) -> Part:
        """Return what a department keeps of a model."""
        data = shelf_of(self.homes[name], "train-joined/1").get(part_name(job))
        assert data is not None, name
        role = next(role for role, node in scoring.roles.items() if node == self.homes[name].name)
        return read_part(bytes(data), Params.of(scoring).own(role), WEIGHT_BITS, whole_of(scoring))


@pytest.fixture(scope="module")
def founded(memory: Path) -> ModelWorld:
    return ModelWorld(memory / "models")


@pytest.fixture(scope="module")
def trained(founded: ModelWorld, memory: Path) -> tuple[ModelWorld, JobId]:
    """A world in which a model was trained and split, all of it looked at."""
    world = founded.clone(memory / "trained")
    assert isinstance(world, ModelWorld)
    spec, record = world.training(), world.folder / "recorded"
    found: dict[str, bytes] = {}

    async def play() -> JobId:
        async with running(world, record=record) as (post, stations):
            job = await done(post, stations, spec)
            found["metrics.arrow"] = opened(world, post, job)
            scan(world, post, record)
            for name in SOURCES:
                [charged] = stations[name].state.ledger().of_job(job)
                assert (charged.state, charged.past.cost.queries) == (RowState.CHARGED, 1)
            return job

    job = asyncio.run(play())
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name
    checks = audited(world, NEUTRAL["matcher"], opened=found)
    assert findings(checks) == set()
    assert (checks["disclosure"].answer, checks["disclosure"].looked_at) == (Answer.HOLDS, 1)
    facts = decode_content(found["metrics.arrow"])[1]["facts"]
    assert (facts["model"], facts["weights"]) == ("split", 11)
    return world, job


@pytest.fixture
def world(trained: tuple[ModelWorld, JobId], folder: Path) -> ModelWorld:
    """The same, when scores may be asked for."""
    world = trained[0].clone(folder / "world")
    assert isinstance(world, ModelWorld)
    world.clock.at += timedelta(days=1, minutes=1)
    return world


def blobs(world: ModelWorld) -> dict[str, list[str]]:
    """Return what lies on the shelves of every node that has any."""
    found = {name: shelf_of(home, "train-joined/1").names() for name, home in world.homes.items()}
    return {name: names for name, names in found.items() if names}


def scored(world: ModelWorld, job: JobId) -> dict[str, str]:
    """Return by hand the step of each person whom the parts together make likely."""
    spec = world.scoring(job)
    parts = [world.part(name, job, spec) for name in SOURCES]
    (ages,), (bands, wages) = (part.weights for part in parts[:2])
    found = {}
    for n in JOINED:
        total = sum(part.constant for part in parts)
        total += ages[sum(age(n) >= edge for edge in (30, 50, 65))]
        total += bands[{"low": 0, "high": 1}.get(band(n), 2)]
        total += wages[sum(wage(n) >= edge for edge in (3500, 4500))]
        chance = 1 / (1 + exp(-total / (1 << WEIGHT_BITS)))
        if chance >= 0.5:
            found[f"RIC:{person(n)}"] = f"{0.5 + 0.02 * int((chance - 0.5) / 0.02):.2f}"
    return found


def test_each_department_keeps_its_own_part_and_nobody_else_any(
    trained: tuple[ModelWorld, JobId],
) -> None:
    world, job = trained
    assert blobs(world) == {name: [part_name(job)] for name in SOURCES}
    spec = world.scoring(job)
    for name, own in zip(SOURCES, (("age",), ("band", "wage"), ()), strict=True):
        data = shelf_of(world.homes[name], "train-joined/1").get(part_name(job))
        assert data is not None
        slots = {key.partition(":")[2] for key in unpack(bytes(data)) if key.startswith("weights:")}
        assert slots == set(own)
    assert sum(bool(world.part(name, job, spec).constant) for name in SOURCES) == 1


def test_parts_that_are_kept_score_as_the_whole_model_and_nothing_else_leaves(
    world: ModelWorld, trained: tuple[ModelWorld, JobId]
) -> None:
    job, record = trained[1], world.folder / "scored"
    expected = scored(world, job)
    assert 20 < len(expected) < len(JOINED) - 20
    assert len(set(expected.values())) >= 5
    spec = world.scoring(job)

    async def play() -> list[dict[str, Any]]:
        async with running(world, record=record) as (post, stations):
            scores = await done(post, stations, spec)
            assert not post.tasks[scores].uploads
            assert [name for name, each in stations.items() if each.state.outputs(scores)] == ["health"]
            scan(world, post, record)
            health = stations["health"]
            [output] = health.state.outputs(scores)
            note = ReleaseNote.decode(decode_envelope(output.note).payload)
            assert note.statement == SUSPECTED
            for name, rows in (("police", 150), ("human-resources", 150), ("health", 0)):
                [charged] = stations[name].state.ledger().of_job(scores)
                assert (charged.state, charged.past.cost.rows) == (RowState.CHARGED, rows)
            sealed = kept(health.home.releases, output)
            return open_release(sealed, note, health.home.recipient_private())[0].to_pylist()

    records = asyncio.run(play())
    assert {row["key"]: f"{float(row['score']):.2f}" for row in records} == expected
    assert set(records[0]) == {"key", "street", "last_seen", "source", "organisation", "score"}
    for row in records:
        assert row["street"] == street(next(n for n in JOINED if row["key"] == f"RIC:{person(n)}"))
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name
    # Used or not, parts stay where they were.
    assert blobs(world) == {name: [part_name(job)] for name in SOURCES}


def failed(world: ModelWorld, spec: JobSpec) -> dict[str, pb.RunEnded]:
    """Run a job that fails; return how it ended at each node, once nothing of it was found to leave."""
    found: dict[str, pb.RunEnded] = {}

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(spec)
            await approve_all(post, stations, job)
            assert {each.answer for each in post.tasks[job].verdicts.values()} <= {"permit", "ask"}
            task = await over(post, job)
            found.update({name: end for name, end in task.ended.items() if end.state == "FAILED"})
            for name, end in found.items():
                assert end.code in ends(stations[name], job), name
            assert not task.uploads
            for station in stations.values():
                assert not [entry for entry in station.entries("output.") if entry.job == job]
                assert not list(station.home.releases.iterdir())

    asyncio.run(play())
    for name in departments_of(spec):
        assert findings(audited(world, name)) == set(), name
    return found


def ends(station: Station, job: JobId) -> list[str]:
    """Return with which codes a job ended, as the journal has it."""
    found = [entry for entry in station.entries("job.") if entry.kind in ("job.failed", "job.aborted")]
    return [entry.body["code"] for entry in found if entry.job == job]


# -- a dealer that lies --------------------------------------------------------------------------------------


class LyingTrainer(parties.Dealer):
    """A dealer of whose last batch one bit is wrong."""

    def deal(self, number: int) -> Iterator[Outgoing]:
        for message in super().deal(number):
            if message.to == HELPER and message.last:
                body = bytearray(message.body)
                body[0] ^= 1
                yield Outgoing(message.to, message.round, bytes(body), last=True)
            else:
                yield message


class LyingScorer(scoring_parties.Dealer):
    """A dealer of whose triples for steps one bit is wrong."""

    def receive(self, message: Incoming) -> Step:
        step = super().receive(message)
        said = []
        for each in step.outgoing:
            body = bytearray(each.body)
            if each.round == scoring_parties.FURTHER:
                body[0] ^= 1
            said.append(Outgoing(each.to, each.round, bytes(body), each.last))
        return type(step)(said, *((step.output,) if isinstance(step, Finished) else (step.progress,)))


def found_out(ended: Mapping[str, pb.RunEnded]) -> bool:
    """Tell whether matcher or helper has found wrong triples."""
    holders = (NEUTRAL["matcher"], NEUTRAL["helper"])
    return any(name in ended and ended[name].code == "bad-triple" for name in holders)


def test_a_dealer_that_lies_while_a_model_is_trained_is_found_and_nobody_keeps_a_part(
    founded: ModelWorld, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = founded.clone(folder / "lied-to")
    assert isinstance(world, ModelWorld)
    monkeypatch.setattr(train_joined, "Dealer", LyingTrainer)
    assert found_out(failed(world, world.training()))
    assert blobs(world) == {}


def test_a_dealer_that_lies_about_steps_is_found_before_anybody_receives_a_person(
    world: ModelWorld, trained: tuple[ModelWorld, JobId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_joined, "Dealer", LyingScorer)
    assert found_out(failed(world, world.scoring(trained[1])))


# -- a part that is gone -------------------------------------------------------------------------------------


def look(world: ModelWorld, name: str, days: float) -> list[Mapping[str, Any]]:
    """Look for what is due at a department so many days later; return the receipts of shelves."""
    home, state = world.homes[name], world.open(name)
    active = InForce.load(state, home.name, home.signer.public_key).policy
    delete_unused(state, home, active, world.clock.at + timedelta(days), Log(home.log, world.clock))
    found = [e.body for e in state.journal.entries() if e.kind == "deletion.receipt"]
    state.close()
    return [body for body in found if body["what"] == "shelf"]


def test_a_part_that_nobody_uses_any_more_is_deleted_with_a_receipt_and_then_no_score_is_made_of_it(
    world: ModelWorld, trained: tuple[ModelWorld, JobId]
) -> None:
    job = trained[1]
    for path in (world.homes["police"].path / "shelf").rglob("*.blob"):
        os.utime(path, (world.clock.at.timestamp(),) * 2)
    assert look(world, "police", 29) == []
    assert blobs(world) == {name: [part_name(job)] for name in SOURCES}
    assert look(world, "police", 31) == [{"what": "shelf", "count": 1}]
    assert blobs(world) == {name: [part_name(job)] for name in SOURCES if name != "police"}
    end = failed(world, world.scoring(job))["police"]
    assert (end.code, end.sentence) == (
        "no-part",
        "this node keeps no part of the model that the job names",
    )
    assert end.hint.startswith("name a training job in which this node took part")


def test_scores_are_not_told_as_long_as_the_exact_model_stands_in_the_way(
    world: ModelWorld, trained: tuple[ModelWorld, JobId]
) -> None:
    world.clock.at -= timedelta(hours=1)

    async def play() -> None:
        async with running(world) as (post, _):
            task = await answered(post, post.submit(world.scoring(trained[1])))
            refused = {name: v.code for name, v in task.verdicts.items() if v.answer == "refuse"}
            assert refused == dict.fromkeys(SOURCES, "differencing")
            assert not post.frames

    asyncio.run(play())
