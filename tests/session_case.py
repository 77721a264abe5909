"""Sessions with a plain protocol in the place of look-ups: of each key, whether its last letter is even."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from simulator import Post, Station, World, approve_all, running, until

from node.counter import Caller, socket_path
from protocols.errors import InputError, MinshuError
from protocols.ids import JobId, Role
from protocols.jobs import job_type
from protocols.jobs.crosscheck import Crosscheck
from protocols.jobs.job_type import PlannedRelease, Setup
from protocols.party import Answer, Finished, Incoming, Outgoing, Step, Waiting

CLERK, OWNER = Role("register"), Role("source-1")
CANARY = "99010119900101123X"


class Asking:
    """The clerk's side: sends each question on, answers what comes back, in order."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def start(self) -> Step:
        return Waiting()

    def ask(self, number: int, question: Mapping[str, Any]) -> Step:
        bad = sum(not key.isalnum() for key in question["keys"])
        if bad:
            raise InputError(f"{bad} of {len(question['keys'])} are no identifiers", code="bad-keys")
        self.numbers.append(number)
        return Waiting(
            [Outgoing(OWNER, 1, json.dumps([ord(k[-1]) for k in question["keys"]]).encode(), last=False)]
        )

    def close(self) -> Step:
        return Waiting([Outgoing(OWNER, 1, b"", last=True)])

    def receive(self, message: Incoming) -> Step:
        if message.last:
            return Finished(output=())
        said = json.loads(message.body)
        number = self.numbers.pop(0)
        if isinstance(said, str):
            record: dict[str, int | str] = {"event": "lookup-refused", "lookups": 0, "code": said}
            body: dict[str, Any] = {"refused": said, "sentence": "no more", "hint": "wait"}
        else:
            record = {"event": "lookup-asked", "lookups": len(said)}
            body = {"rows": [{"even": "yes"} if even else None for even in said]}
        return Waiting(record=record, answers=(Answer(number, body),))


class Answering:
    """The owner's side: at most `limit` keys in all."""

    limit = 1000

    def __init__(self) -> None:
        self.total = 0

    def start(self) -> Step:
        return Waiting(answering=True)

    def receive(self, message: Incoming) -> Step:
        if message.last:
            return Finished([Outgoing(CLERK, 1, b"", last=True)], ())
        letters = json.loads(message.body)
        if self.total + len(letters) > self.limit:
            said: Any = "lookups-exhausted"
            record: dict[str, int | str] = {"event": "lookup-refused", "lookups": len(letters), "code": said}
        else:
            self.total += len(letters)
            said = [letter % 2 == 0 for letter in letters]
            record = {"event": "lookup-answered", "lookups": len(letters)}
        return Waiting([Outgoing(CLERK, 1, json.dumps(said).encode(), last=False)], record=record)


class Idle:
    """Takes no part."""

    def start(self) -> Step:
        return Finished(output=())

    def receive(self, message: Incoming) -> Step:
        raise AssertionError(message.sender)


def make_sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make cross-checks sessions; `seconds` of what is returned is how long one lasts."""
    settings: dict[str, Any] = {"seconds": 600}

    class Sessions(Crosscheck):
        def serving(
            self, role: Role, _setup: Setup, _prepared: object, _rand: object, **_more: object
        ) -> Any:
            return {CLERK: Asking, OWNER: Answering}.get(role, Idle)()

        def session_s(self, _spec: object, role: Role) -> int | None:
            seconds: int = settings["seconds"]
            return seconds if role == CLERK else None

        def releases(self, _spec: object) -> tuple[PlannedRelease, ...]:
            return ()

    # The rules of this world are for cross-checks, and set no rate.
    monkeypatch.setattr("policies.parse._standing", lambda _job_types: frozenset())
    # A class of its own: Python remembers of a class that it fits a protocol.
    monkeypatch.setattr(job_type(Crosscheck.name), "__class__", Sessions)
    return settings


async def opened(post: Post, stations: Mapping[str, Station]) -> JobId:
    """Have a session opened, and wait until people can ask."""
    job = post.submit(stations["police"].world.spec())
    await approve_all(post, stations, job)
    await until(lambda: socket_path(stations["police"].home).exists())
    return job


def play(
    world: World, what: Callable[[Post, dict[str, Station], JobId], Awaitable[None]], **settings: Any
) -> Post:
    async def go() -> Post:
        async with running(world, **settings) as (post, stations):
            await what(post, stations, await opened(post, stations))
        return post

    return asyncio.run(go())


async def ask(station: Station, job: str, *keys: str, **more: Any) -> dict[str, Any]:
    def call() -> dict[str, Any]:
        with Caller(station.home) as caller:
            return caller.call({"do": "ask", "job": job, "keys": list(keys), **more})

    return await asyncio.to_thread(call)


async def do(station: Station, what: str, **more: Any) -> dict[str, Any]:
    def call() -> dict[str, Any]:
        with Caller(station.home) as caller:
            return caller.call({"do": what, **more})

    return await asyncio.to_thread(call)


async def refusal(asking: Awaitable[object]) -> MinshuError:
    with pytest.raises(MinshuError) as refused:
        await asking
    return refused.value
