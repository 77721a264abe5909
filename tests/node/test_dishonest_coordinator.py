"""P4 and P6: a coordinator that lies, tampers, replays, swaps, cuts or drops gets nothing out of a node."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from simulator import Post, Station, Task, World, answered, approve_all, over, running, until

from node.rpc import Attempt
from node.state import RunState
from protocols.channel.frame import Header, read_header
from protocols.envelope import ADMISSION, decode_envelope, sign
from protocols.ids import JobId, NodeName, Role
from protocols.wire import Admission, JobSpec

pytestmark = pytest.mark.alone  # towns in memory with a coordinator that lies, 20 s together

# -- equivocation: nothing derived from data leaves --------------------------------------------------------


class Liar(Post):
    """Hands out admissions as `lie` makes them."""

    def __init__(self, world: World, lie: Callable[[str, dict[str, bytes]], Sequence[bytes]]) -> None:
        super().__init__(world)
        self._lie = lie

    def admissions_for(self, name: str, admissions: Mapping[str, bytes]) -> Sequence[bytes]:
        return self._lie(name, dict(admissions))


def resigned(world: World, name: str, envelope: bytes, by: str | None = None, **changes: Any) -> bytes:
    """Return an admission with changed words, signed by a node's identity key."""
    admission = replace(Admission.decode(decode_envelope(envelope).payload), **changes)
    return sign(ADMISSION, admission.encode(), [world.homes[by or name].signer]).encode()


def play_lie(
    world: World, lie: Callable[[str, dict[str, bytes]], Sequence[bytes]], code: str, *victims: str
) -> None:
    """Run a job under a lie; the victims must stop with `code`, journal it, and send nothing."""

    async def play() -> None:
        async with running(world, Liar(world, lie)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            for name in victims:
                assert (task.ended[name].state, task.ended[name].code) == ("FAILED", code)
                assert not task.ended[name].opened
                [entry] = stations[name].entries("job.aborted")
                assert entry.body["code"] == code
                assert not stations[name].entries("job.admitted")
                senders = {header.sender for header, _ in post.frames}
                assert world.spec().role_of(world.homes[name].name) not in senders
            assert not any(s.state.outputs() for s in stations.values())

    asyncio.run(play())


def test_p4_a_node_that_is_told_of_one_admission_less_sends_nothing(world: World) -> None:
    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        return [e for n, e in all_of.items() if n != "statistics" or name == "statistics"]

    play_lie(world, lie, "admission-mismatch", "health", "police")


def test_p4_a_node_whose_own_words_are_missing_sends_nothing(world: World) -> None:
    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        return [e for n, e in all_of.items() if n != name]

    play_lie(world, lie, "admission-mismatch", "health", "police", "statistics", "human-resources")


def test_p4_an_admission_signed_by_another_node_is_not_believed(world: World) -> None:
    def lie(_: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        all_of["statistics"] = resigned(world, "statistics", all_of["statistics"], by="police")
        return list(all_of.values())

    play_lie(world, lie, "admission-mismatch", "health", "police", "human-resources")


def test_p4_two_admissions_of_one_node_are_not_believed(world: World) -> None:
    def lie(_: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        return [*all_of.values(), resigned(world, "health", all_of["health"], rule="R2")]

    play_lie(world, lie, "admission-mismatch", "police")


def test_p4_a_node_that_tells_another_roster_stops_all(world: World) -> None:
    other = world.make_roster(2, world.roster.digest).digest

    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        if name != "health":
            all_of["health"] = resigned(world, "health", all_of["health"], roster_digest=other)
        return list(all_of.values())

    play_lie(world, lie, "admission-mismatch", "police", "human-resources", "statistics")


def test_p4_a_node_that_was_told_of_other_participants_stops_all(world: World) -> None:
    roles = {**world.spec().roles, Role("source-3"): NodeName("tax.gz.example/node-a")}

    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        if name != "health":
            all_of["health"] = resigned(world, "health", all_of["health"], participants=roles)
        return list(all_of.values())

    play_lie(world, lie, "admission-mismatch", "police", "human-resources", "statistics")


def test_p4_an_admission_of_another_attempt_is_not_believed(world: World) -> None:
    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        if name != "health":
            all_of["health"] = resigned(world, "health", all_of["health"], attempt=2)
        return list(all_of.values())

    play_lie(world, lie, "admission-mismatch", "police", "human-resources", "statistics")


def test_p4_a_key_that_is_no_key_of_the_suite_is_not_sealed_to(world: World) -> None:
    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        if name != "health":
            all_of["health"] = resigned(world, "health", all_of["health"], key=b"short")
        return list(all_of.values())

    play_lie(world, lie, "admission-mismatch", "police", "statistics")


def test_p4_an_admission_that_has_run_out_is_not_believed(world: World) -> None:
    def lie(name: str, all_of: dict[str, bytes]) -> Sequence[bytes]:
        if name != "health":
            all_of["health"] = resigned(world, "health", all_of["health"], not_after=world.clock())
        return list(all_of.values())

    play_lie(world, lie, "admission-expired", "police", "statistics")


def test_p4_two_texts_of_one_job_never_meet(world: World) -> None:
    """Two signed jobs that differ in one word; each half of the nodes is told of another one."""
    one = world.spec()
    other = replace(one, nonce="f" * 32)
    envelopes = {one.job_id: world.sign_job(one), other.job_id: world.sign_job(other)}

    async def play() -> None:
        post = Post(world)
        async with running(world, post) as (_, stations):
            post.may_start = lambda task: False  # type: ignore[method-assign]  # started by hand below
            for spec in (one, other):
                post.submit(spec, envelopes[spec.job_id])
            for spec in (one, other):
                await approve_all(post, stations, spec.job_id)
                await until(lambda spec=spec: len(post.tasks[spec.job_id].admissions) == 4)  # type: ignore[misc]
            first, second = (post.tasks[spec.job_id].admissions for spec in (one, other))
            for name in stations:
                mixed = {n: (first if n == name else second)[n] for n in stations}
                stations[name].agent.runner.start(Attempt(one.job_id, 1), tuple(mixed.values()))
            task = await over(post, one.job_id)
            assert {e.code for e in task.ended.values()} <= {"admission-mismatch", "peer-failed"}
            assert "admission-mismatch" in {e.code for e in task.ended.values()}
            assert not post.frames

    asyncio.run(play())


def test_p4_a_coordinator_cannot_make_up_a_job(world: World) -> None:
    class Forger(Post):
        def job_for(self, name: str, envelope: bytes) -> bytes:
            spec = JobSpec.decode(decode_envelope(envelope).payload)
            return world.sign_job(spec, world.roots[0])

    async def play() -> None:
        async with running(world, Forger(world)) as (post, stations):
            job = post.submit(world.spec())
            task = await answered(post, job)
            assert {v.code for v in task.verdicts.values()} == {"job-forged"}
            for station in stations.values():
                [entry] = station.entries("job.refused")
                assert entry.body["code"] == "job-forged"

    asyncio.run(play())


def test_p4_a_coordinator_cannot_make_up_a_roster(world: World) -> None:
    class Forger(Post):
        def roster_for(self, name: str) -> bytes:
            return world.sign_roster(world.roster, 1)

    async def play() -> None:
        async with running(world, Forger(world), ["health", "statistics"]) as (post, stations):
            await until(
                lambda: all("too-few-signatures" in s.home.log.read_text() for s in stations.values())
            )
            assert all(s.agent.force.roster is None for s in stations.values())
            job = post.submit(world.spec())
            await until(lambda: len(post.tasks[job].verdicts) == 2)
            assert {v.code for v in post.tasks[job].verdicts.values()} == {"no-roster"}

    asyncio.run(play())


def test_p6_a_start_nobody_was_admitted_for_is_answered_with_a_failure(world: World) -> None:
    async def play() -> None:
        async with running(world, names=["statistics"]) as (post, stations):
            spec = world.spec()
            post.tasks[spec.job_id] = Task(world.sign_job(spec))
            stations["statistics"].agent.runner.start(Attempt(spec.job_id, 1), ())
            stations["statistics"].agent.runner.admit(Attempt(spec.job_id, 1))
            task = post.tasks[spec.job_id]
            await until(lambda: "statistics" in task.ended)
            assert task.ended["statistics"].code == "unknown-attempt"

    asyncio.run(play())


def test_p6_a_policy_that_changes_after_the_admission_stops_the_run(world: World) -> None:
    class Wait(Post):
        def may_start(self, task: Task) -> bool:
            return False

    async def play() -> None:
        async with running(world, Wait(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = post.tasks[job]
            await until(lambda: len(task.admissions) == 4)
            health = stations["health"]
            newest = health.state.policy()
            assert newest is not None
            from node.activation import activate_policy

            envelope = world.policy("health", version=2, previous=newest.digest, max_rows=5)
            activate_policy(health.state, health.agent.force, envelope, world.clock)
            post.start(job)
            await until(lambda: "health" in task.ended)
            # The old approvals are void, so the job is not permitted any more.
            # Nor does it decide anything by the new one before others have seen that it is in force.
            assert task.ended["health"].code == "policy-unwitnessed"
            assert not health.entries("job.admitted")

    asyncio.run(play())


def test_p6_a_permit_withdrawn_before_admission_is_a_new_answer(world: World) -> None:
    async def play() -> None:
        async with running(world, names=["statistics"]) as (post, stations):
            job = post.submit(world.spec())
            task = post.tasks[job]
            await until(lambda: "statistics" in task.verdicts)
            station = stations["statistics"]
            assert task.verdicts["statistics"].answer == "permit"
            station.agent.force.policy = None
            station.agent.runner.admit(Attempt(job, 1))
            await until(lambda: task.verdicts["statistics"].answer == "refuse")
            assert station.run(job) is RunState.REFUSED
            assert station.entries("job.refused")[-1].body["code"] == "no-policy"

    asyncio.run(play())


# -- tampering with frames ---------------------------------------------------------------------------------


class Meddler(Post):
    """Lets `meddle` turn each frame into any number of frames."""

    def __init__(self, world: World, meddle: Callable[[Header, bytes], Iterable[bytes]]) -> None:
        super().__init__(world)
        self._meddle = meddle

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return self._meddle(header, frame)


def play_meddling(
    world: World, meddle: Callable[[Header, bytes], Iterable[bytes]], post: Post | None = None
) -> Task:
    """Run a job over a meddling relay and return how it went."""

    async def play() -> Task:
        async with running(world, post or Meddler(world, meddle)) as (mail, stations):
            job = mail.submit(world.spec())
            await approve_all(mail, stations, job)
            task = await over(mail, job)
            if any(e.state != "DONE" for e in task.ended.values()):
                assert not any(kept(s, job) for s in stations.values())
            return task

    return asyncio.run(play())


def kept(station: Station, job: JobId) -> list[Any]:
    return station.state.outputs(job)


def failures(task: Task) -> set[str]:
    return {e.code for e in task.ended.values() if e.state == "FAILED"}


def to_matcher(header: Header) -> bool:
    return (header.sender, header.to, header.seq) == ("source-1", "matcher", 0)


def flipped(frame: bytes, at: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]


@pytest.mark.parametrize("at", [-1, -65, -200, 60])
def test_p4_an_altered_frame_ends_the_attempt(world: World, at: int) -> None:
    def meddle(header: Header, frame: bytes) -> Iterable[bytes]:
        return (flipped(frame, at),) if to_matcher(header) else (frame,)

    assert failures(play_meddling(world, meddle)) & {"frame-forged", "foreign-frame"}


def test_p4_a_replayed_frame_is_dropped_and_changes_nothing(world: World) -> None:
    task = play_meddling(world, lambda _, frame: (frame, frame))
    assert {e.state for e in task.ended.values()} == {"DONE"}


def test_p4_swapped_frames_end_the_attempt(world: World) -> None:
    held: list[bytes] = []

    def direction(header: Header, frame: bytes) -> Iterable[bytes]:
        # The two first frames of source-1 to register change places.
        if (header.sender, header.to, header.seq) == ("source-1", "register", 0):
            held.append(frame)
            return ()
        if held and (header.sender, header.to) == ("source-1", "register"):
            return (frame, held.pop())
        return (frame,)

    assert failures(play_meddling(world, direction)) == {"frame-gap"}


def test_p4_a_frame_delivered_to_another_node_ends_the_attempt(world: World) -> None:
    class Misrouter(Post):
        def route(self, header: Header, frame: bytes) -> str:
            return "police" if to_matcher(header) else super().route(header, frame)

    assert failures(play_meddling(world, lambda _, f: (f,), Misrouter(world))) == {"foreign-frame"}


def test_p4_a_dropped_frame_shows_as_a_gap(world: World) -> None:
    def meddle(header: Header, frame: bytes) -> Iterable[bytes]:
        lost = (header.sender, header.to, header.seq) == ("source-1", "register", 0)
        return () if lost else (frame,)

    assert failures(play_meddling(world, meddle)) == {"frame-gap"}


def test_p4_a_cut_stream_is_not_taken_for_a_whole_one(world: World) -> None:
    """The relay claims that a stream ends here: `last` is signed, so the claim does not hold."""

    def meddle(header: Header, frame: bytes) -> Iterable[bytes]:
        if not to_matcher(header):
            return (frame,)
        claimed = replace(header, last=not header.last).encode()
        return (claimed + frame[len(header.encode()) :],)

    assert failures(play_meddling(world, meddle)) == {"frame-forged"}


def test_p4_a_frame_of_an_earlier_attempt_does_not_open_in_a_later_one(world: World) -> None:
    first: list[bytes] = []

    def meddle(header: Header, frame: bytes) -> Iterable[bytes]:
        if to_matcher(header):
            first.append(frame)
            if header.attempt == 1:
                return (flipped(frame, -1),)
            return (first[0],)
        return (frame,)

    async def play() -> None:
        async with running(world, Meddler(world, meddle)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            post.again(job)
            task = await over(post, job)
            assert read_header(first[0]).attempt == 1
            assert failures(task) == {"foreign-frame"}

    asyncio.run(play())


def test_p4_what_the_coordinator_relays_shows_no_key_and_no_payload(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            carried = b"".join(frame for _, frame in post.frames) + b"".join(post.control)
            from simulator import person

            for number in (*range(300, 312), *range(40, 60)):
                assert person(number).encode() not in carried
            assert b"S0" * 2 not in carried

    asyncio.run(play())
