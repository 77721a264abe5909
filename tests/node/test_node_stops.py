"""Stops: one signature halts at once what it names, on or off, until two signatures lift it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from simulator import (
    START,
    Post,
    World,
    answered,
    approve_all,
    new_signer,
    over,
    policy_text,
    running,
    until,
)

from node.activation import InForce, activate_policy, activate_roster
from node.cli import main
from node.desk import desk_of
from node.logs import Log
from node.rpc import Attempt
from node.state import RunState, State
from node.stops import apply_stop, covering
from policies.decision import Refuse
from policies.sign import sign_policy
from protocols.channel.frame import Header
from protocols.encoding import b64encode
from protocols.envelope import STOP, decode_envelope, key_id, sign
from protocols.errors import MinshuError
from protocols.wire import JobSpec, Verdict


@dataclass
class Desk:
    """The health department's node, off."""

    world: World
    state: State
    force: InForce

    def __init__(self, world: World) -> None:
        self.world, home = world, world.homes["health"]
        self.state = world.open("health")
        self.force = InForce.load(self.state, home.name, home.signer.public_key)
        enrolled = home.enrolled()
        assert enrolled is not None
        activate_roster(self.state, self.force, world.roster_envelope, enrolled, world.clock)
        log = Log(None, world.clock)
        self.desk = desk_of(self.state, self.force, home, signer=home.signer, now=world.clock, log=log)

    def offer(self, spec: JobSpec | None = None, number: int = 1) -> Verdict:
        spec = spec or self.world.spec()
        envelope = self.desk.gate.offer(Attempt(spec.job_id, number), self.world.sign_job(spec))
        return Verdict.decode(decode_envelope(envelope).payload)

    def stop(self, *stops: str, **how: Any) -> dict[str, Any]:
        return self.desk.handle("stop", {"envelope": b64encode(self.world.stop("health", *stops, **how))})

    def policy(self, *edits: tuple[str, str], **changes: Any) -> None:
        """Activate the next version; each edit replaces a text wherever it stands."""
        newest = self.state.policy()
        assert newest is not None
        staff = self.world.staff["health"]
        keys = (key_id(k.public_key) for k in (self.world.analyst, staff.dpo, staff.owner))
        text = policy_text("health", *keys, version=newest.version + 1, previous=newest.digest, **changes)
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        envelope = sign_policy(text.encode(), staff.owner, sign_policy(text.encode(), staff.dpo))
        activate_policy(self.state, self.force, envelope.encode(), self.world.clock)

    def reopened(self) -> InForce:
        return InForce.load(self.state, self.force.name, self.force.identity_key)

    def entries(self, kind: str) -> list[Any]:
        return [e for e in self.state.journal.entries() if e.kind == kind]


@pytest.fixture
def desk(world: World) -> Iterator[Desk]:
    made = Desk(world)
    yield made
    made.state.close()


def fails(code: str, desk: Desk, envelope: bytes) -> None:
    size = desk.state.journal.size
    with pytest.raises(MinshuError) as caught:
        apply_stop(desk.state, desk.force, envelope, desk.world.clock)
    assert caught.value.code == code
    assert not desk.state.stops()
    assert desk.state.journal.size == size


# -- what it halts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["all", "requester=bureau", "purpose=P-1", "dataset=people"])
def test_one_signature_refuses_every_later_offer_that_the_stop_names(desk: Desk, stop: str) -> None:
    assert desk.offer().answer == "ask"
    desk.stop(stop)
    verdict = desk.offer()
    assert (verdict.answer, verdict.code) == ("refuse", "stopped")
    assert "调查中" in verdict.sentence


def test_a_stop_of_one_job_leaves_the_others(desk: Desk) -> None:
    one, other = desk.world.spec(), desk.world.spec()
    desk.stop(f"job={one.job_id}")
    assert desk.offer(one).code == "stopped"
    assert desk.offer(other).answer == "ask"


OTHERS = (
    ("[requesters.bureau]", f'[requesters.else]\nkeys = ["sha256:{"5" * 64}"]\n[requesters.bureau]'),
    (
        '[purposes."P-1"]',
        '[purposes."P-2"]\ntitle = "x"\nlegal_basis = "x"\nvalid_until = 2027-01-31\n[purposes."P-1"]',
    ),
    (
        "[datasets.people]",
        """[datasets.others]
source = "local:others"
grade = "general-4"
personal = "personal"
[datasets.others.columns]
id = { type = "resident-id", use = ["join"] }
[datasets.people]""",
    ),
)
"""A requester, a purpose and a dataset beside those of every job here."""


@pytest.mark.parametrize("stop", ["requester=else", "purpose=P-2", "dataset=others"])
def test_what_a_stop_does_not_name_goes_on(desk: Desk, stop: str) -> None:
    desk.policy(*OTHERS)
    desk.stop(stop)
    assert desk.offer().answer == "ask"


@pytest.mark.parametrize(
    ("stop", "known"), [("requester=buraeu", "bureau"), ("purpose=P-01", "P-1"), ("dataset=peopel", "people")]
)
def test_a_stop_that_names_nobody_is_refused_and_the_known_names_are_said(
    desk: Desk, stop: str, known: str
) -> None:
    size = desk.state.journal.size
    with pytest.raises(MinshuError) as caught:
        desk.stop("all", stop)
    assert caught.value.code == "stop-names-nobody"
    assert known in caught.value.hint
    assert stop.partition("=")[2] in caught.value.message
    # Not even the part of it that would hold: whoever signed it is told, and makes it again.
    assert not desk.state.stops()
    assert desk.state.journal.size == size


@pytest.mark.parametrize("stop", ["requester=bureau", "purpose=P-1", "dataset=people"])
def test_without_a_policy_only_all_and_jobs_can_be_stopped(desk: Desk, stop: str) -> None:
    desk.force.policy = None
    fails("stop-names-nobody", desk, desk.world.stop("health", stop))
    desk.stop("all", f"job={desk.world.spec().job_id}")
    assert len(desk.entries("stop.applied")) == 2


@pytest.mark.parametrize(
    ("stop", "old", "new"),
    [
        ("requester=bureau", "bureau", "office"),
        ("purpose=P-1", "P-1", "P-1b"),
        ("dataset=people", "people", "persons"),
    ],
)
def test_a_policy_that_renames_what_is_stopped_must_lift_the_stop(
    desk: Desk, stop: str, old: str, new: str
) -> None:
    done = desk.stop(stop)
    with pytest.raises(MinshuError) as caught:
        desk.policy((old, new))
    assert caught.value.code == "stopped-name-gone"
    assert desk.entries("policy.refused")[-1].body["code"] == "stopped-name-gone"
    assert desk.offer().code == "stopped"
    desk.policy((old, new), lifted=[done["sha256"]])
    assert desk.entries("stop.lifted")


def test_a_waiting_job_is_refused_when_the_stop_comes(desk: Desk) -> None:
    spec = desk.world.spec()
    desk.offer(spec)
    desk.stop("purpose=P-1")
    run = desk.state.run(Attempt(spec.job_id, 1))
    assert run is not None
    assert (run.state, run.code) == (RunState.REFUSED, "stopped")


def test_the_journal_says_what_is_halted_and_who_signed(desk: Desk) -> None:
    done = desk.stop("purpose=P-1", "dataset=people")
    one, two = desk.entries("stop.applied")
    assert (one.body["scope"], one.body["subject"]) == ("purpose", "P-1")
    assert (two.body["scope"], two.body["subject"]) == ("dataset", "people")
    assert one.body["sha256"] == two.body["sha256"] == done["sha256"]
    assert one.body["signers"] == [key_id(desk.world.staff["health"].dpo.public_key)]
    assert desk.state.journal.get_object(done["sha256"]) is not None
    assert done["signed_by"] == "dpo"


# -- who may, and once -------------------------------------------------------------------------------------


def test_the_owner_may_stop_as_well(desk: Desk) -> None:
    assert desk.stop("all", signer=desk.world.staff["health"].owner)["signed_by"] == "owner"


def test_a_stranger_stops_nothing(desk: Desk) -> None:
    fails("too-few-signatures", desk, desk.world.stop("health", "all", signer=new_signer()))


def test_a_stop_for_another_node_stops_nothing(desk: Desk) -> None:
    envelope = decode_envelope(desk.world.stop("police", "all"))
    fails(
        "stop-of-another-node",
        desk,
        sign(STOP, envelope.payload, [desk.world.staff["health"].dpo]).encode(),
    )


def test_an_old_stop_is_not_applied(desk: Desk) -> None:
    fails("stop-too-old", desk, desk.world.stop("health", "all", at=START - timedelta(days=8)))


def test_a_stop_is_applied_once(desk: Desk) -> None:
    envelope = desk.world.stop("health", "all")
    apply_stop(desk.state, desk.force, envelope, desk.world.clock)
    with pytest.raises(MinshuError) as caught:
        apply_stop(desk.state, desk.force, envelope, desk.world.clock)
    assert caught.value.code == "stop-applied-before"


def test_before_signers_are_pinned_nobody_stops_anything(desk: Desk) -> None:
    with desk.state.journal.transaction() as connection:
        connection.execute("DELETE FROM pin")
    fails("no-signers", desk, desk.world.stop("health", "all"))


# -- how long ----------------------------------------------------------------------------------------------


def test_a_stop_survives_a_restart(desk: Desk) -> None:
    desk.stop("purpose=P-1")
    assert desk.reopened().policy == desk.force.policy
    assert [stop.scope for stop in desk.reopened().policy.stops] == ["purpose"]  # type: ignore[union-attr]  # furnished


def test_a_stop_survives_a_new_policy_that_does_not_name_it(desk: Desk) -> None:
    desk.stop("all")
    desk.policy(queries=99)
    assert desk.offer().code == "stopped"
    assert not desk.entries("stop.lifted")


def test_a_policy_that_names_it_lifts_a_stop_and_says_so(desk: Desk) -> None:
    done = desk.stop("all")
    desk.policy(lifted=[done["sha256"]])
    assert desk.offer().answer == "ask"
    [entry] = desk.entries("stop.lifted")
    assert (entry.body["sha256"], entry.body["version"], entry.body["scope"]) == (done["sha256"], 2, "all")
    assert len(entry.body["signers"]) == 2
    assert desk.reopened().policy.stops == ()  # type: ignore[union-attr]  # furnished


def test_a_lifted_stop_does_not_come_back(desk: Desk) -> None:
    envelope = desk.world.stop("health", "all")
    digest = apply_stop(desk.state, desk.force, envelope, desk.world.clock).digest
    desk.policy(lifted=[digest])
    with pytest.raises(MinshuError) as caught:
        apply_stop(desk.state, desk.force, envelope, desk.world.clock)
    assert caught.value.code == "stop-applied-before"
    # Nor by a later policy that no longer names it.
    desk.policy(queries=99)
    assert desk.offer().answer == "ask"


def test_two_stops_are_lifted_one_by_one(desk: Desk) -> None:
    first, second = desk.stop("purpose=P-1"), desk.stop("dataset=people")
    desk.policy(lifted=[first["sha256"]])
    assert desk.offer().code == "stopped"
    desk.policy(lifted=[second["sha256"]])
    assert desk.offer().answer == "ask"


def test_a_stop_in_the_policy_itself_holds_as_long_as_that_version(desk: Desk) -> None:
    desk.policy(stops='[[stops]]\nscope = "all"\nreason = "整改"\n')
    assert desk.offer().code == "stopped"
    desk.policy(queries=99)
    assert desk.offer().answer == "ask"


@pytest.mark.parametrize("change", ["envelope = x'00'", "digest = 'sha256:' || hex(zeroblob(32))"])
def test_a_stop_changed_in_the_database_keeps_the_node_from_starting(desk: Desk, change: str) -> None:
    desk.stop("all")
    with desk.state.journal.transaction() as connection:
        connection.execute(f"UPDATE stop SET {change}")
    with pytest.raises(MinshuError) as caught:
        desk.reopened()
    assert caught.value.code == "stop-changed"


def test_where_nobody_can_tell_whom_a_stop_covers_it_covers_everybody_p6(desk: Desk) -> None:
    desk.policy(*OTHERS)
    desk.stop("purpose=P-2")
    spec = desk.world.spec()
    assert covering(desk.force, spec, START) is None
    for now in (None, START + timedelta(days=400)):
        no = covering(desk.force, spec, now)
        assert isinstance(no, Refuse)
        assert no.code == "stopped"


# -- what is under way -------------------------------------------------------------------------------------


def test_an_attempt_that_waits_for_witnesses_is_ended_and_costs_nothing(world: World) -> None:
    class Deaf(Post):
        def witnesses(self, name: str) -> bool:
            return False

        def passed_on(self, sender: str, to: str, letter: Any) -> tuple[Any, ...]:
            started = any(task.started for task in self.tasks.values())
            return () if started and sender == "health" else (letter,)

    async def play() -> None:
        async with running(world, Deaf(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: health.entries("job.admitted") != [])
            health.agent.desk.handle("stop", {"envelope": b64encode(world.stop("health", "all"))})
            task = await over(post, job)
            assert task.ended["health"].code == "stopped"
            [entry] = health.entries("job.cancelled")
            assert entry.body["freed"] is True
            assert len(health.state.ledger().of("people")) == 0
            assert not any(header.sender == "source-2" for header, _ in post.frames)

    asyncio.run(play())


def test_a_running_attempt_is_ended_at_once(world: World) -> None:
    class Silent(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            return () if header.to == "matcher" else (frame,)

    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: all(s.run(job) is RunState.RUNNING for s in stations.values()))
            await until(lambda: any(header.sender == "source-2" for header, _ in post.frames))
            envelope = b64encode(world.stop("health", "dataset=people"))
            health.agent.desk.handle("stop", {"envelope": envelope})
            task = await over(post, job)
            assert task.ended["health"].code == "stopped"
            assert "调查中" in task.ended["health"].sentence
            [entry] = health.entries("job.cancelled")
            assert entry.body["code"] == "stopped"
            # It cost what it was charged: frames had left.
            assert len(health.state.ledger().of("people")) == 1

    asyncio.run(play())


def test_an_accepted_attempt_is_ended_and_its_cost_is_free_again(world: World) -> None:
    class Wait(Post):
        def may_start(self, task: object) -> bool:
            return False

    async def play() -> None:
        async with running(world, Wait(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            health = stations["health"]
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            assert len(health.state.ledger().of("people")) == 1
            health.agent.desk.handle("stop", {"envelope": b64encode(world.stop("health", f"job={job}"))})
            assert health.run(job) is RunState.CANCELLED
            assert not health.state.ledger().of("people")

    asyncio.run(play())


def test_a_release_that_has_not_left_yet_stays_when_the_stop_comes(world: World) -> None:
    async def play() -> None:
        post = Post(world)
        post.confirm = False
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            police = stations["police"]
            await until(lambda: police.run(job) is RunState.RELEASING)
            police.agent.desk.handle("stop", {"envelope": b64encode(world.stop("police", "all"))})
            assert police.run(job) is RunState.CANCELLED
            assert not list(police.home.outbox.iterdir())

    asyncio.run(play())


def test_a_stop_applied_while_the_node_is_off_holds_when_it_is_back(world: World, folder: Path) -> None:
    async def first() -> str:
        post = Post(world)
        post.confirm = False
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: stations["police"].run(job) is RunState.RELEASING)
            return job

    job = asyncio.run(first())
    home = world.homes["police"]
    file = folder / "stop.dsse"
    # The command reads the machine's own clock.
    file.write_bytes(world.stop("police", "all", at=datetime.now(UTC)))
    assert main(["stop", str(file), "--home", str(home.path)]) == 0

    async def second() -> None:
        post = Post(world)
        async with running(world, post, ["police"]) as (_, stations):
            police = stations["police"]
            assert police.run(job) is RunState.CANCELLED  # type: ignore[arg-type]  # a job id
            spec = post.submit(replace(world.spec(), nonce="1" * 32))
            await until(lambda: "police" in post.tasks[spec].verdicts)
            assert post.tasks[spec].verdicts["police"].code == "stopped"

    asyncio.run(second())


def test_a_job_waiting_at_a_running_node_is_refused_and_the_coordinator_hears_it(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await answered(post, job)
            task = post.tasks[job]
            assert task.verdicts["health"].answer == "ask"
            envelope = b64encode(world.stop("health", "requester=bureau"))
            stations["health"].agent.desk.handle("stop", {"envelope": envelope})
            await until(lambda: task.verdicts["health"].code == "stopped")

    asyncio.run(play())
