"""Outcomes: filed where the list was received, journaled, and sent until the coordinator has them."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from simulator import Post, Station, World, approve_all, over, running, until

from minshu.v1 import relay_pb2 as pb
from node import cli
from node.outcomes import MAX_OUTCOMES, Outcomes
from node.rpc import ControlRequest
from node.state import RunState
from protocols.encoding import sha256_digest
from protocols.envelope import OUTCOME, decode_envelope, key_id, verify
from protocols.errors import InputError, MinshuError, Refused
from protocols.ids import JobId
from protocols.wire import Outcome

GOOD = {"checked": 5718, "confirmed": 3351, "note": "按户核实"}


class Filing(Post):
    """Takes outcomes in. `says` is what it answers: stored, nothing, or a reason why not."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.filed: list[bytes] = []
        self.says = "stored"

    async def heard(self, name: str, message: ControlRequest) -> None:
        if message.WhichOneof("kind") != "outcome":
            await super().heard(name, message)
            return
        envelope = message.outcome.outcome
        self.filed.append(envelope)
        outcome = Outcome.decode(decode_envelope(envelope).payload)
        if self.says == "stored":
            sha256 = decode_envelope(envelope).payload_digest
            self.wires[name].say(filed=pb.StatementStored(sha256=sha256))
        elif self.says:
            at = pb.Attempt(job=outcome.job, attempt=0)
            self.wires[name].say(stop=pb.Stop(attempt=at, code=f"outcome.{self.says}", sentence=""))


async def finished(post: Post, stations: dict[str, Station], world: World) -> JobId:
    """Run a job to its end; the police hold its list."""
    job = post.submit(world.spec())
    await approve_all(post, stations, job)
    await over(post, job)
    await until(lambda: stations["police"].run(job) is RunState.DONE)
    return job


def file(station: Station, job: JobId, **changes: Any) -> dict[str, Any]:
    return station.agent.desk.handle("outcome", {"job": job, **GOOD, **changes})


def states(station: Station, job: JobId) -> list[str]:
    return [one.code or ("stored" if one.stored else "filed") for one in station.state.outcomes(job)]


@pytest.fixture(scope="module")
def done(founded: World, memory: Any) -> tuple[World, JobId]:
    """A world in which one job has been through; tests take copies of it."""
    world = founded.clone(memory / "done")

    async def play() -> JobId:
        async with running(world) as (post, stations):
            return await finished(post, stations, world)

    return world, asyncio.run(play())


@pytest.fixture
def town(done: tuple[World, JobId], folder: Any) -> tuple[World, JobId]:
    return done[0].clone(folder / "town"), done[1]


# -- filing --------------------------------------------------------------------------------------------------


def test_an_outcome_is_journaled_signed_and_confirmed(town: tuple[World, JobId]) -> None:
    world, job = town

    async def play() -> None:
        async with running(world, Filing(world), ["police"]) as (post, stations):
            police = stations["police"]
            done = file(police, job, note="  按户\n核实 ")
            assert (done["state"], done["note"]) == ("filed", "按户 核实")
            await until(lambda: states(police, job) == ["stored"])
            [envelope] = post.filed
            public = police.home.signer.public_key
            signed = decode_envelope(envelope)
            assert verify(signed, OUTCOME, {key_id(public): public})
            outcome = Outcome.decode(signed.payload)
            assert (outcome.job, outcome.by, outcome.note) == (job, police.home.name, "按户 核实")
            [entry] = police.entries("outcome.filed")
            [records] = [o for o in police.state.outputs(job) if o.output_class == "B"]
            assert (entry.job, entry.attempt) == (job, 1)
            assert entry.body == {
                "sha256": signed.payload_digest,
                "release": records.release,
                "recipient": "police.gz.example",
                "checked": 5718,
                "confirmed": 3351,
                "envelope_sha256": sha256_digest(envelope),
            }
            assert police.state.journal.get_object(sha256_digest(envelope)) == envelope

    asyncio.run(play())


@contextmanager
def desk(world: World, name: str) -> Iterator[tuple[Outcomes, Any, list[ControlRequest]]]:
    """A node that is off, as its commands open it."""
    from node.activation import InForce
    from node.logs import Log

    home, state, posted = world.homes[name], world.open(name), []
    force = InForce.load(state, home.name, home.signer.public_key)
    log = Log(None, world.clock)
    try:
        made = Outcomes(state, force, home.signer, now=world.clock, log=log, post=posted.append)
        yield made, state, posted
    finally:
        state.close()


@pytest.mark.parametrize(
    ("name", "changes", "kind", "code"),
    [
        ("police", {"checked": 2, "confirmed": 0}, Refused, "small-count"),
        ("police", {"checked": 100, "confirmed": 2}, Refused, "small-count"),
        ("police", {"checked": 100, "confirmed": 98}, Refused, "small-count"),
        ("police", {"checked": 100, "confirmed": 101}, InputError, "bad-outcome"),
        ("police", {"checked": -1, "confirmed": 0}, InputError, "bad-field"),
        ("police", {"note": "身份证 990101199001011234"}, InputError, "bad-outcome"),
        ("police", {"note": "x" * 513}, InputError, "bad-field"),
        ("police", {"job": "sha256:" + "9" * 64}, InputError, "not-a-recipient"),
        ("health", {}, InputError, "not-a-recipient"),
        ("statistics", {}, InputError, "not-a-recipient"),
    ],
)
def test_what_may_not_be_filed_is_refused_and_leaves_no_trace(
    town: tuple[World, JobId], name: str, changes: dict[str, Any], kind: type[MinshuError], code: str
) -> None:
    world, job = town
    with desk(world, name) as (outcomes, state, posted):
        size = state.journal.size
        with pytest.raises(kind) as refused:
            outcomes.file(**{"job": job, **GOOD, **changes})
        assert refused.value.code == code
        assert refused.value.hint
        assert (state.outcomes(), state.journal.size, posted) == ([], size, [])


@pytest.mark.parametrize(("checked", "confirmed"), [(0, 0), (3, 0), (3, 3), (6, 3)])
def test_nobody_and_a_whole_group_may_be_told(
    town: tuple[World, JobId], checked: int, confirmed: int
) -> None:
    world, job = town
    with desk(world, "police") as (outcomes, state, _):
        outcomes.file(job, checked, confirmed, "")
        assert len(state.outcomes(job)) == 1


def test_the_group_size_is_the_largest_of_all_participants_and_stays_that_of_the_run(world: World) -> None:
    world.activate("health", min_group_size=10)

    async def play() -> JobId:
        async with running(world) as (post, stations):
            return await finished(post, stations, world)

    job = asyncio.run(play())
    # The recipient's own rule, which lets 3 be shown, counts as little as one that it wrote later.
    world.activate("police", min_group_size=50)
    with desk(world, "police") as (outcomes, state, _posted):
        for checked, confirmed in ((9, 0), (100, 9), (100, 91)):
            with pytest.raises(Refused) as refused:
                outcomes.file(job, checked, confirmed, "")
            assert refused.value.code == "small-count"
        outcomes.file(job, 10, 0, "")
        assert len(state.outcomes(job)) == 1


@pytest.mark.parametrize(
    ("checked", "confirmed"), [(101, 50), (102, 52), (98, 50), (100, 51), (100, 48), (102, 50), (103, 52)]
)
def test_two_outcomes_differ_by_nobody_or_by_a_whole_group(
    town: tuple[World, JobId], checked: int, confirmed: int
) -> None:
    world, job = town
    with desk(world, "police") as (outcomes, state, _posted):
        outcomes.file(job, 100, 50, "")
        outcomes.file(job, 200, 100, "")
        with pytest.raises(Refused) as refused:
            outcomes.file(job, checked, confirmed, "")
        assert refused.value.code == "small-count"
        outcomes.file(job, 103, 50, "")
        assert len(state.outcomes(job)) == 3


def test_a_job_takes_only_so_many_outcomes(town: tuple[World, JobId]) -> None:
    world, job = town
    with desk(world, "police") as (outcomes, _, _posted):
        for number in range(MAX_OUTCOMES):
            outcomes.file(job, 1000 + 3 * number, 500, "")
        with pytest.raises(Refused) as refused:
            outcomes.file(job, 2000, 500, "")
        assert refused.value.code == "too-many-outcomes"


# -- sending -------------------------------------------------------------------------------------------------


def test_an_outcome_filed_while_the_node_was_off_is_sent_when_it_runs(town: tuple[World, JobId]) -> None:
    world, job = town
    with desk(world, "police") as (outcomes, _, _posted):
        outcomes.file(job, **GOOD)

    async def play() -> None:
        async with running(world, Filing(world), ["police"]) as (post, stations):
            await until(lambda: states(stations["police"], job) == ["stored"])
            assert len(post.filed) == 1

    asyncio.run(play())


def test_an_outcome_is_sent_again_until_it_is_stored(town: tuple[World, JobId]) -> None:
    world, job = town

    async def play() -> None:
        post = Filing(world)
        post.says = ""
        async with running(world, post, ["police"]) as (_, stations):
            police = stations["police"]
            file(police, job)
            await until(lambda: len(post.filed) == 1)
            assert states(police, job) == ["filed"]
            police.wire.drop()
            await until(lambda: len(post.filed) == 2)
            post.says = "stored"
            police.wire.drop()
            await until(lambda: states(police, job) == ["stored"])
            sent = len(post.filed)
            police.wire.drop()
            hellos = len(post.hellos)
            await until(lambda: len(post.hellos) > hellos)
            await asyncio.sleep(0.1)
            assert len(post.filed) == sent == 3
            assert len({decode_envelope(one).payload_digest for one in post.filed}) == 1

    asyncio.run(play())


def test_an_outcome_that_the_coordinator_refuses_is_kept_with_the_reason_and_stops_nothing(
    town: tuple[World, JobId],
) -> None:
    world, job = town

    async def play() -> None:
        post = Filing(world)
        post.says = "small-count"
        async with running(world, post, ["police"]) as (_, stations):
            police = stations["police"]
            file(police, job)
            await until(lambda: states(police, job) == ["small-count"])
            assert police.run(job) is RunState.DONE
            police.wire.drop()
            await asyncio.sleep(0.1)
            assert len(post.filed) == 1
            post.says = "stored"
            file(police, job, checked=6000)
            await until(lambda: states(police, job) == ["small-count", "stored"])

    asyncio.run(play())


def test_a_release_under_way_is_not_withdrawn_by_a_refused_outcome(world: World) -> None:
    async def play() -> None:
        post = Filing(world)
        post.confirm, post.says = False, "job-not-succeeded"
        async with running(world, post) as (_, stations):
            police = stations["police"]
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            assert police.run(job) is RunState.RELEASING
            file(police, job)
            await until(lambda: states(police, job) == ["job-not-succeeded"])
            assert police.run(job) is RunState.RELEASING
            assert len(list(police.home.outbox.glob("*.sealed"))) == 1

    asyncio.run(play())


# -- the command ---------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], world: World, *words: str) -> tuple[int, str, str]:
    code = cli.main([*words, "--home", str(world.homes["police"].path)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_files_shows_and_refuses(
    town: tuple[World, JobId], capsys: pytest.CaptureFixture[str]
) -> None:
    world, job = town
    short = job.removeprefix("sha256:")[:12]
    figures = ("--checked", "5718", "--confirmed", "3351", "--note", "按户核实")
    assert run(capsys, world, "outcome", short)[1] == "no outcome was filed here for this job\n"
    code, _, err = run(capsys, world, "outcome", short, *figures)
    assert code == 1
    assert "hint: start it with minshu-node run" in err

    async def play() -> None:
        post = Filing(world)
        post.says = ""
        async with running(world, post, ["police"]):
            await asyncio.to_thread(file_and_show)

    def file_and_show() -> None:
        code, out, _ = run(capsys, world, "outcome", short, *figures)
        assert code == 0
        first, second = out.splitlines()
        assert first == f"filed for {job}"
        assert second.startswith("3,351 of 5,718 confirmed (58.6 %), 20")
        assert second.endswith("Z, not yet at the coordinator: 按户核实")
        code, out, _ = run(capsys, world, "outcome", short, "--json")
        [plain] = json.loads(out)["outcomes"]
        assert (plain["state"], plain["confirmed"], plain["job"]) == ("filed", 3351, job)
        code, _, err = run(capsys, world, "outcome", short, "--checked", "2", "--confirmed", "0")
        assert code == 1
        assert "between 1 and 2" in err
        assert "hint: file it once more has been checked" in err

    asyncio.run(play())
    code, _, err = run(capsys, world, "outcome", short, "--checked", "200")
    assert (code, "only one of the two figures" in err) == (1, True)
