"""A session that stays open: who asks is answered once both journals hold that, or hears why not."""

import asyncio
import json
import os
import socket
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from session_case import (
    CANARY,
    CLERK,
    OWNER,
    Answering,
    Asking,
    ask,
    do,
    make_sessions,
    opened,
    play,
    refusal,
)
from simulator import Post, Station, World, approve_all, over, running, until

from node.counter import MAX_KEYS, MAX_LINE_BYTES, MAX_WAITING, Caller, reason_digest, socket_path
from node.rpc import Attempt
from node.runner import Playing
from node.state import RunState
from protocols.errors import StateConflict, Unreachable
from protocols.ids import JobId
from protocols.jobs.job_type import SUSPECTED
from protocols.party import Answer, Waiting

pytestmark = pytest.mark.alone  # sessions of whole nodes, 8 s together


@pytest.fixture(autouse=True)
def standing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_sessions(monkeypatch)


def test_who_asks_is_answered_until_the_session_is_closed(world: World) -> None:
    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        police, owner = stations["police"], stations["human-resources"]
        said = await ask(police, job, "ab", "ac", reason=" 2026-17 ")
        assert said["rows"] == [{"even": "yes"}, None]
        assert said["statement"] == SUSPECTED
        assert (await ask(police, job[7:13], "ab"))["rows"] == [{"even": "yes"}]
        [listed] = (await do(police, "sessions"))["sessions"]
        assert (listed["job"], listed["role"], listed["asked"], listed["closing"]) == (job, CLERK, 2, False)
        assert 0 < listed["closes_in_s"] <= 600
        assert (await do(police, "close", job=job)) == {"job": job}
        task = await over(post, job)
        assert {e.state for e in task.ended.values()} == {"DONE"}
        await until(lambda: not socket_path(police.home).exists())
        assert (await refusal(ask(police, job, "ab"))).code == "no-session"
        bodies = [e.body for e in owner.entries("lookup.")]
        assert bodies == [
            {"role": OWNER, "lookups": 2},
            {"role": OWNER, "lookups": 1},
        ]
        [first, second] = police.entries("lookup.asked")
        salt = (police.home.path / "keys" / "reasons.salt").read_bytes()
        digest = reason_digest(salt, Attempt(job, 1), "2026-17")
        assert said["reason_sha256"] == digest
        assert first.body == {"role": CLERK, "lookups": 2, "reason_sha256": digest}
        assert second.body == {"role": CLERK, "lookups": 1}
        assert (first.job, first.attempt, first.actor) == (job, 1, police.world.spec().requester)

    play(world, session)


def test_nothing_is_answered_before_it_is_recorded_at_both_nodes(world: World) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Post):
        def carried(self, header: Any, frame: bytes) -> tuple[bytes, ...]:
            if header.sender == OWNER:
                owner = nodes["human-resources"]
                assert owner.state.journal.published == owner.state.journal.size
                seen.append((header.seq, len(owner.entries("lookup.answered"))))
            return (frame,)

    nodes: dict[str, Station] = {}

    async def go() -> None:
        async with running(world, Watching(world)) as (post, stations):
            nodes.update(stations)
            job = await opened(post, stations)
            police = stations["police"]
            for number in range(1, 4):
                await ask(police, job, "ab")
                assert len(police.entries("lookup.asked")) == number
                assert police.state.journal.published == police.state.journal.size

    asyncio.run(go())
    assert seen == [(0, 1), (1, 2), (2, 3)]


def test_an_answer_that_cannot_be_recorded_is_given_to_nobody(world: World) -> None:
    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        owner = stations["human-resources"]
        append = owner.state.journal.append

        def full(connection: Any, kind: str, *arguments: Any, **named: Any) -> int:
            if kind == "lookup.answered":
                raise StateConflict("the disk is full", code="journal-write-failed")
            return append(connection, kind, *arguments, **named)

        owner.state.journal.append = full  # type: ignore[method-assign]  # a disk that fills up
        frames = len(post.frames)
        asked = await refusal(ask(stations["police"], job, "ab"))
        assert asked.code == "peer-failed"
        assert not [h for h, _ in post.frames[frames:] if h.sender == OWNER]
        task = await over(post, job)
        assert task.ended["human-resources"].code == "journal-write-failed"

    play(world, session)


def waiting(station: Station) -> int:
    """Return how much the party's thread at a node has not taken yet."""
    [live] = station.agent.runner._live.values()
    return 0 if live.exchange is None else len(live.exchange._inbox._waiting)


@pytest.mark.parametrize("breaks", ["the commit", "the checkpoint"])
def test_of_what_is_recorded_together_nothing_leaves_before_all_of_it_is_durable(
    world: World, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """The disk fails under four answers in one transaction: at the last moment, or once it is committed."""
    gathered, failing = threading.Event(), threading.Event()
    waits = Playing._next

    def slow(self: Playing, party: Any) -> Any:
        if self.role == OWNER and not gathered.is_set():
            gathered.wait(10.0)  # until four questions wait
        return waits(self, party)

    monkeypatch.setattr(Playing, "_next", slow)

    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        police, owner = stations["police"], stations["human-resources"]
        journal = owner.state.journal

        def fail(*_: Any) -> Any:
            if failing.is_set():
                raise StateConflict("the disk is full", code="journal-write-failed")

        def failing_first(name: str) -> None:
            original = getattr(journal, name)
            monkeypatch.setattr(journal, name, lambda *given: (fail(), original(*given))[1])

        failing_first("_commit" if breaks == "the commit" else "_write_through")
        before, frames = journal.size, len(post.frames)
        asking = [asyncio.create_task(ask(police, job, key)) for key in ("aa", "ab", "ac", "ad")]
        await until(lambda: waiting(owner) == 4)
        failing.set()
        gathered.set()
        assert {(await refusal(one)).code for one in asking} == {"peer-failed"}
        assert not [h for h, _ in post.frames[frames:] if h.sender == OWNER]
        assert not police.entries("lookup.")
        # All or none: four entries that no checkpoint covers yet, or nothing.
        there = [e for e in journal.entries(before) if e.kind == "lookup.answered"]
        assert len(there) == (0 if breaks == "the commit" else 4)
        failing.clear()

    play(world, session)


def test_what_waits_at_the_same_moment_is_one_transaction(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = threading.Event()
    waits = Playing._next

    def slow(self: Playing, party: Any) -> Any:
        if self.role == OWNER:
            gathered.wait(10.0)
        return waits(self, party)

    monkeypatch.setattr(Playing, "_next", slow)

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        police, owner = stations["police"], stations["human-resources"]
        journal, signed = owner.state.journal, list[int]()
        write = journal._write_through
        monkeypatch.setattr(journal, "_write_through", lambda: (write(), signed.append(journal.published))[0])
        asking = [asyncio.create_task(ask(police, job, key)) for key in ("aa", "ab", "ac", "ad")]
        await until(lambda: waiting(owner) == 4)
        before = journal.size
        gathered.set()
        answers = [said["rows"] for said in await asyncio.gather(*asking)]
        assert answers == [[None], [{"even": "yes"}], [None], [{"even": "yes"}]]
        assert [size for size in signed if size > before] == [before + 4]
        assert len(police.entries("lookup.asked")) == 4

    play(world, session)


def test_a_question_that_cannot_be_put_comes_back_and_the_session_goes_on(world: World) -> None:
    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        police = stations["police"]
        error = await refusal(ask(police, job, "ab", "not one", CANARY + "!"))
        assert (error.code, error.message) == ("bad-keys", "2 of 3 are no identifiers")
        assert (await ask(police, job, "ab"))["rows"] == [{"even": "yes"}]
        assert len(police.entries("lookup.asked")) == len(stations["human-resources"].entries("lookup.")) == 1

    play(world, session)


@pytest.mark.long
def test_what_is_refused_is_said_and_recorded_with_its_code(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "limit", 3)

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        police = stations["police"]
        await ask(police, job, "ab", "ac")
        assert (await ask(police, job, "ab", "ac"))["refused"] == "lookups-exhausted"
        assert (await ask(police, job, "ac"))["rows"] == [None]
        for station, good in ((stations["human-resources"], "answered"), (police, "asked")):
            said = [(e.kind, e.body.get("code", "")) for e in station.entries("lookup.")]
            refused = ("lookup.refused", "lookups-exhausted")
            assert said == [(f"lookup.{good}", ""), refused, (f"lookup.{good}", "")]

    play(world, session)


@pytest.mark.long
def test_many_ask_at_once_and_each_gets_the_own_answer(world: World) -> None:
    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        police = stations["police"]
        keys = [chr(97 + n) for n in range(26)]
        said = await asyncio.gather(*(ask(police, job, key) for key in keys))
        assert [bool(one["rows"][0]) for one in said] == [ord(key) % 2 == 0 for key in keys]
        assert len(police.entries("lookup.asked")) == 26

    play(world, session)


@pytest.mark.long
def test_one_connection_may_have_several_questions_under_way(world: World) -> None:
    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        def call() -> dict[int, list[Any]]:
            with Caller(stations["police"].home) as caller:
                numbers = [caller.put({"do": "ask", "job": job, "keys": [f"a{n}"]}) for n in range(8)]
                said = dict(caller.take() for _ in numbers)
                return {number: said[number]["rows"] for number in numbers}

        found = await asyncio.to_thread(call)
        assert list(found.values()) == [[{"even": "yes"} if n % 2 == 0 else None] for n in range(8)]

    play(world, session)


def test_a_session_closes_by_itself_when_its_time_is_over(world: World, standing: dict[str, Any]) -> None:
    standing["seconds"] = 1

    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        task = await over(post, job)
        assert {e.state for e in task.ended.values()} == {"DONE"}
        assert (await refusal(ask(stations["police"], job, "ab"))).code == "no-session"

    play(world, session)


@pytest.mark.parametrize(
    "why",
    [
        pytest.param("cancelled", marks=pytest.mark.long),
        "stopped",
        pytest.param("node off", marks=pytest.mark.long),
    ],
)
def test_who_waits_hears_why_a_session_ended(world: World, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    silent = threading.Event()
    monkeypatch.setattr(Answering, "receive", lambda _self, _message: silent.set() or Waiting())

    async def go() -> str:
        async with running(world) as (post, stations):
            job = await opened(post, stations)
            police = stations["police"]
            asking = asyncio.create_task(ask(police, job, "ab"))
            await until(silent.is_set)
            if why == "cancelled":
                post.stop(job, "cancelled-by-requester")
            elif why == "stopped":
                police.agent.desk.handle("stop", {"envelope": _stop(world)})
            else:
                police.task.cancel()
            error = await refusal(asking)
            assert CANARY not in str(error)
            if why != "node off":
                await until(lambda: police.run(job) is RunState.CANCELLED)
            await until(lambda: not socket_path(police.home).exists())
            assert not police.entries("lookup.asked")
            return error.code

    assert asyncio.run(go()) == {
        "cancelled": "cancelled-by-requester", "stopped": "stopped", "node off": "node-restarted"
    }[why]  # fmt: skip


def _stop(world: World) -> str:
    from protocols.encoding import b64encode

    return b64encode(world.stop("police", "all"))


def test_another_policy_ends_the_session_before_the_next_answer(world: World) -> None:
    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        from protocols.encoding import b64encode

        owner = stations["human-resources"]
        await ask(stations["police"], job, "ab")
        newest = owner.state.policy()
        assert newest is not None
        envelope = world.policy(
            "human-resources", version=newest.version + 1, previous=newest.digest, max_rows=9
        )
        owner.agent.desk.handle("policy", {"envelope": b64encode(envelope)})
        assert (await refusal(ask(stations["police"], job, "ab"))).code == "peer-failed"
        task = await over(post, job)
        assert task.ended["human-resources"].code == "admission-outdated"
        assert len(owner.entries("lookup.answered")) == 1

    play(world, session)


@pytest.mark.long
def test_the_socket_is_the_accounts_own_and_goes_with_the_last_session(world: World) -> None:
    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        path = socket_path(stations["police"].home)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not socket_path(stations["human-resources"].home).exists()
        await do(stations["police"], "close", job=job)
        await until(lambda: not path.exists())

    play(world, session)


@pytest.mark.long
def test_a_socket_that_a_crash_left_is_in_nobodys_way(world: World) -> None:
    path = socket_path(world.homes["police"])
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(f"{path}")
    with pytest.raises(Unreachable, match="no session is open"), Caller(world.homes["police"]):
        pass

    async def go() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: stations["police"].run(job) is RunState.RUNNING)
            await until(lambda: "session-open" in stations["police"].home.log.read_text())
            assert (await ask(stations["police"], job, "ab"))["rows"] == [{"even": "yes"}]

    asyncio.run(go())


@pytest.mark.long
def test_something_else_of_that_name_is_left_alone_and_the_run_says_so(world: World) -> None:
    path = socket_path(world.homes["police"])
    path.write_text("mine")

    async def go() -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert task.ended["police"].code == "counter-unavailable"
            assert path.read_text() == "mine"

    asyncio.run(go())


@pytest.mark.long
def test_a_home_deep_in_folders_has_a_counter_too(founded: World, folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    deep.parent.mkdir()
    world = founded.clone(deep)
    assert len(os.fsencode(socket_path(world.homes["police"]))) > 108

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        assert (await ask(stations["police"], job, "ab"))["rows"] == [{"even": "yes"}]

    play(world, session)


BAD_LINES = {
    "no JSON": b"{",
    "deep": b"[" * 100_000 + b"\n",
    "no such request": b'{"do":"drop","id":1}\n',
    "no job": b'{"do":"ask","id":1,"keys":["a"]}\n',
    "no keys": b'{"do":"ask","id":1,"job":"abcd","keys":[]}\n',
    "too many keys": json.dumps(
        {"do": "ask", "id": 1, "job": "abcd", "keys": ["a"] * (MAX_KEYS + 1)}
    ).encode(),
    "a long key": json.dumps({"do": "ask", "id": 1, "job": "abcd", "keys": [CANARY * 15]}).encode(),
    "another field": b'{"do":"ask","id":1,"job":"abcd","keys":["%s"],"x":1}\n' % CANARY.encode(),
    "a number": b'{"do":"ask","id":1,"job":"abcd","keys":[99010119900101123]}\n',
    "a long line": b'"' + b"a" * MAX_LINE_BYTES + b'"\n',
}


def test_a_bad_request_is_answered_with_a_code_and_repeats_nothing(world: World) -> None:
    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        path = socket_path(stations["police"].home)
        for what, line in BAD_LINES.items():
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line.removesuffix(b"\n") + b"\n")
            said = json.loads(await reader.readline())
            assert said["error"]["code"] == ("too-long" if what == "a long line" else "bad-request"), what
            assert "9901" not in json.dumps(said)
            writer.close()
        assert (await ask(stations["police"], job, "ab"))["rows"] == [{"even": "yes"}]

    play(world, session)


@pytest.mark.long
def test_more_questions_than_may_wait_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "receive", lambda _self, _message: Waiting())

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        sessions = stations["police"].agent.runner._counter._sessions
        await until(lambda: bool(sessions))
        [open_one] = sessions.values()
        for _ in range(MAX_WAITING):
            open_one.ask({"keys": ["ab"]}, None, None)
        assert (await refusal(ask(stations["police"], job, "ab"))).code == "counter-busy"

    play(world, session)


@pytest.mark.long
def test_a_step_that_answers_without_a_record_ends_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Asking, "receive", lambda self, _message: Waiting(answers=(Answer(self.numbers.pop(), {"rows": []}),))
    )

    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        assert (await refusal(ask(stations["police"], job, "ab"))).code == "not-recorded"
        task = await over(post, job)
        assert task.ended["police"].code == "not-recorded"

    play(world, session)


@pytest.mark.long
def test_nothing_asked_is_in_log_journal_or_on_the_relay(world: World) -> None:
    async def session(post: Post, stations: dict[str, Station], job: JobId) -> None:
        await ask(stations["police"], job, CANARY, reason=f"case {CANARY}")
        await refusal(ask(stations["police"], job, CANARY + "?"))
        await do(stations["police"], "close", job=job)
        await over(post, job)

    post = play(world, session)
    assert not any(CANARY.encode() in data for data in (*post.control, *(frame for _, frame in post.frames)))
    for home in world.homes.values():
        for path in home.path.rglob("*"):
            if path.is_file():
                assert CANARY.encode() not in path.read_bytes(), path.name
