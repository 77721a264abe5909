"""Whole jobs: real gates, runners, channels and journals; an honest stand-in for the coordinator."""

import asyncio
from pathlib import Path

import pytest
from simulator import Post, Station, Task, World, answered, approve_all, over, person, running, until

from node.releases import decode_content, kept, open_release, release_info
from node.rpc import Attempt
from node.state import RunState
from protocols.channel import suites
from protocols.channel.frame import Header
from protocols.encoding import b64encode, sha256_digest
from protocols.envelope import RELEASE, decode_envelope, key_id, verify
from protocols.errors import MinshuError
from protocols.ids import JobId
from protocols.jobs.job_type import SUSPECTED
from protocols.wire import Admission, ReleaseNote

pytestmark = pytest.mark.alone  # whole nodes, 12 s together


def test_a_job_runs_from_offer_to_release(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}
            police = stations["police"]
            await until(lambda: police.run(job) is RunState.DONE)

            # Class A: sealed to the requester, uploaded, what the note says.
            [(release, pieces)] = task.uploads.items()
            sealed = post.release(job)
            note_envelope = decode_envelope(pieces[0].note)
            identity = police.home.signer.public_key
            assert verify(note_envelope, RELEASE, {key_id(identity): identity})
            note = ReleaseNote.decode(note_envelope.payload)
            assert note.sha256 == sha256_digest(sealed)
            opened = suites.open_sealed(2, world.analyst_private, release_info(release, job), sealed)
            table, about = decode_content(opened)
            assert about["name"] == "street-table"
            assert table.num_rows > 0

            # Class B: only at the police, marked, exactly the twelve of both sources and not on the register.
            [records] = [o for o in police.state.outputs(job) if o.output_class == "B"]
            note = ReleaseNote.decode(decode_envelope(records.note).payload)
            assert note.statement == SUSPECTED
            listed, _ = open_release(
                kept(police.home.releases, records), note, police.home.recipient_private()
            )
            assert set(listed.column("key").to_pylist()) == {f"RIC:{person(n)}" for n in range(300, 312)}
            assert not list(police.home.outbox.iterdir())

    asyncio.run(play())


def test_p1_every_output_has_a_signed_entry_before_it_leaves(world: World) -> None:
    class Watch(Post):
        seen_before_upload: list[str]

        async def heard(self, name: str, message: object) -> None:
            if message.WhichOneof("kind") == "upload":  # type: ignore[attr-defined]  # a ControlRequest
                station = nodes["police"]
                assert station.state.journal.published == station.state.journal.size
                self.seen_before_upload = [e.body["release"] for e in station.entries("output.commit")]
                assert message.upload.release in self.seen_before_upload  # type: ignore[attr-defined]
            await super().heard(name, message)  # type: ignore[arg-type]

    nodes = {}

    async def play() -> None:
        async with running(world, Watch(world)) as (post, stations):
            nodes.update(stations)
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            police = stations["police"]
            await until(lambda: police.run(job) is RunState.DONE)
            committed = {e.body["release"]: e.body for e in police.entries("output.commit")}
            assert {o.release for o in police.state.outputs(job)} == set(committed)
            for output in police.state.outputs(job):
                assert committed[output.release]["sha256"] == output.sha256
            assert [e.body["class"] for e in police.entries("output.released")] == ["A"]

    asyncio.run(play())


def test_no_frame_leaves_a_node_before_its_admission_is_journaled(world: World) -> None:
    nodes = {}
    checked = []

    class Watch(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            sender = next(s for s in nodes.values() if s.world.spec().roles[header.sender] == s.home.name)
            if header.seq == 0:
                [entry] = sender.entries("job.admitted")
                assert (entry.job, entry.attempt) == (header.job, header.attempt)
                assert entry.body["ctx"] == "sha256:" + header.ctx.hex()
                assert sender.state.journal.published == sender.state.journal.size
                checked.append(header.sender)
            return (frame,)

    async def play() -> None:
        async with running(world, Watch(world)) as (post, stations):
            nodes.update(stations)
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}

    asyncio.run(play())
    assert {"register", "source-1", "source-2", "matcher"} == set(checked)


def test_an_admission_cites_input_quality_and_a_commitment_auditors_can_open(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            health = stations["health"]
            admission = Admission.decode(decode_envelope(task.admissions["health"]).payload)
            [summary] = admission.inputs.values()
            record = health.state.input_record(Attempt(job, 1))
            assert record is not None
            salt, quality = record
            assert len(salt) == 32
            assert summary.quality_sha256 == sha256_digest(quality)
            assert (summary.rows, summary.distinct_keys, summary.catalogue_keys) == (82, 82, 82)
            [entry] = health.entries("job.admitted")
            assert entry.body["commitment"] == summary.commitment
            # What everybody signed stands beside the log.
            for ref in entry.refs:
                assert health.state.journal.get_object(ref) is not None

    asyncio.run(play())


def test_each_attempt_has_a_fresh_key_and_salt(world: World) -> None:
    class Once(Post):
        def may_start(self, task: Task) -> bool:
            return task.attempt > 1

    async def play() -> None:
        async with running(world, Once(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            first = post.tasks[job]
            await until(lambda: len(first.admissions) == 4)
            post.again(job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}
            for name in ("health", "police"):
                one, two = (
                    Admission.decode(decode_envelope(t.admissions[name]).payload) for t in (first, task)
                )
                assert one.key != two.key
                [a], [b] = one.inputs.values(), two.inputs.values()
                assert a.commitment != b.commitment
                assert a.quality_sha256 != b.quality_sha256
            assert stations["health"].run(job, 1) is RunState.CANCELLED

    asyncio.run(play())


def test_asked_twice_a_node_hands_in_one_and_the_same_admission(world: World) -> None:
    class Wait(Post):
        def may_start(self, task: Task) -> bool:
            return False

    async def play() -> None:
        async with running(world, Wait(world), ["statistics"]) as (post, stations):
            seen: list[bytes] = []
            job = JobId(world.spec().job_id)
            spec = world.spec()
            job = post.submit(spec)
            task = post.tasks[job]
            await until(lambda: "statistics" in task.verdicts)
            runner = stations["statistics"].agent.runner
            for _ in range(3):
                task.admissions.clear()
                runner.admit(Attempt(job, 1))
                await until(lambda: "statistics" in task.admissions)
                seen.append(task.admissions["statistics"])
            assert len(set(seen)) == 1

    asyncio.run(play())


def test_a_cancelled_job_ends_everywhere_and_leaves_no_output(world: World) -> None:
    class Silent(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            return () if header.to == "matcher" else (frame,)

    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: {h.sender for h, _ in post.frames} >= {"register", "source-1", "source-2"})
            await until(lambda: len(post.streams) == len(stations))
            post.stop(job, "cancelled-by-requester")
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"CANCELLED"}
            assert {e.code for e in task.ended.values()} == {"cancelled-by-requester"}
            for station in stations.values():
                [entry] = station.entries("job.cancelled")
                assert entry.body["code"] == "cancelled-by-requester"
                assert entry.body["opened"] is True
                assert not station.state.outputs()

    asyncio.run(play())


def test_a_job_stopped_before_it_runs_has_opened_nothing(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await answered(post, job)
            post.stop(job, "cancelled-by-requester")
            task = await over(post, job)
            assert not any(e.opened for e in task.ended.values())
            assert not post.frames
            assert not stations["health"].state.ledger().of("people")

    asyncio.run(play())


def test_a_run_that_takes_too_long_is_timed_out(world: World) -> None:
    class Silent(Post):
        def carried(self, header: Header, frame: bytes) -> tuple[bytes, ...]:
            return ()

    for name in ("police", "health", "human-resources"):
        world.activate(name, max_runtime_s=1)

    async def play() -> None:
        async with running(world, Silent(world)) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            # The strictest of all counts, also for the matcher, whose own policy allows an hour.
            assert "TIMED_OUT" in {e.state for e in task.ended.values()}
            assert {e.code for e in task.ended.values()} <= {"timed-out", "peer-failed"}

    asyncio.run(play())


def test_a_job_nobody_approved_in_time_expires_and_the_journal_says_so(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await answered(post, job)
            post.stop(job, "job-expired")
            health = stations["health"]
            await until(lambda: health.run(job) is RunState.EXPIRED)
            [entry] = health.entries("job.expired")
            assert entry.job == job

    asyncio.run(play())


def test_a_release_is_sent_again_with_the_same_bytes_until_it_is_stored(world: World) -> None:
    async def play() -> None:
        post = Post(world)
        post.confirm = False
        async with running(world, post) as (_, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            police = stations["police"]
            first = post.release(job)
            [release] = task.uploads
            task.uploads.clear()
            task.ended.pop("police")
            assert police.run(job) is RunState.RELEASING
            post.confirm = True
            police.wire.drop()
            await until(lambda: police.run(job) is RunState.DONE)
            assert post.release(job) == first
            assert list(task.uploads) == [release]
            await until(lambda: "police" in task.ended)
            assert len(police.entries("output.commit")) == 2
            assert len(police.entries("output.released")) == 1
            hello = post.hellos[-1]
            assert [a.job for a in hello.live] == [job]

    asyncio.run(play())


class Unconfirmed(Post):
    """Never says that it has a release."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.confirm = False


def opening(station: Station, job: JobId) -> str:
    """Open the directed list of a job; return the code of the refusal, empty for none."""
    [records] = [o for o in station.state.outputs(job) if o.output_class == "B"]
    before = len(station.entries("output.released"))
    code = ""
    try:
        station.agent.desk.handle("open", {"release": records.release})
    except MinshuError as error:
        code = error.code
    assert len(station.entries("output.released")) == before + (not code)
    return code


def test_a_list_of_an_attempt_that_was_given_up_is_not_opened(world: World) -> None:
    async def play() -> None:
        async with running(world, Unconfirmed(world)) as (post, stations):
            job, police = post.submit(world.spec()), stations["police"]
            await approve_all(post, stations, job)
            await until(lambda: police.run(job) is RunState.RELEASING)
            await until(lambda: opening(police, job) == "")
            post.stop(job, "peer-failed")
            await until(lambda: police.run(job) is RunState.CANCELLED)
            assert opening(police, job) == "release-withdrawn"

    asyncio.run(play())


def test_no_list_is_opened_under_a_stop(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job, police = post.submit(world.spec()), stations["police"]
            await approve_all(post, stations, job)
            await until(lambda: police.run(job) is RunState.DONE)
            assert opening(police, job) == ""
            stop = world.stop("police", f"job={job}")
            police.agent.desk.handle("stop", {"envelope": b64encode(stop)})
            assert police.run(job) is RunState.DONE
            assert opening(police, job) == "stopped"

    asyncio.run(play())


def test_a_job_that_is_accepted_and_never_started_expires(world: World) -> None:
    class Wait(Post):
        def may_start(self, task: Task) -> bool:
            return False

    async def play() -> None:
        async with running(world, Wait(world)) as (post, stations):
            spec, health = world.spec(), stations["health"]
            job = post.submit(spec)
            await approve_all(post, stations, job)
            await until(lambda: health.run(job) is RunState.ACCEPTED)
            assert health.state.ledger().of("people")
            world.clock.at = spec.expires
            await until(lambda: health.run(job) is RunState.EXPIRED)
            assert not health.state.ledger().of("people")

    asyncio.run(play())


def test_a_node_without_datasets_publishes_no_catalogue_and_others_no_path(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, _):
            by_node = {hello.node.partition(".")[0]: hello.catalogue for hello in post.hellos}
            assert by_node["statistics"] == b""
            payload = decode_envelope(by_node["health"]).payload
            assert b'"rows":82' in payload
            assert str(world.folder).encode() not in payload
            assert b".csv" not in payload

    asyncio.run(play())


def test_the_log_holds_codes_and_no_paths(world: World) -> None:
    async def play() -> Path:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            return stations["health"].home.log

    text = asyncio.run(play()).read_text()
    for code in ("connected", "job-ask", "admitted", "run-done"):
        assert f" info {code}" in text
    assert str(world.folder) not in text
