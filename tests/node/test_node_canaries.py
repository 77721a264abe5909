"""Identifiers planted in data never appear in logs, journals, verdicts, control messages or on the relay."""

import asyncio
import errno
import hashlib
import os
from pathlib import Path

import pytest
from simulator import Post, World, approve_all, over, person, running

from node import scratch

FLAGGED = range(300, 312)
PLANTED = [person(n) for n in (*FLAGGED, *range(8), *range(55, 62), *range(100, 110))]


def spellings(identifier: str) -> list[bytes]:
    """Return how an identifier could slip out."""
    raw = identifier.encode()
    plain = [raw, identifier.lower().encode(), raw.hex().encode(), raw.hex().upper().encode()]
    for prefix in (b"", b"RIC:"):
        for name in ("sha256", "md5", "sm3"):
            digest = hashlib.new(name, prefix + raw).digest()
            plain += [digest, digest.hex().encode()]
    return plain


def found_in(data: bytes) -> bool:
    return any(spelling in data for identifier in PLANTED for spelling in spellings(identifier))


def files_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def play(world: World, record: Path) -> Post:
    async def go() -> Post:
        async with running(world, record=record) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}
            return post

    return asyncio.run(go())


def test_canaries_stay_inside(world: World) -> None:
    record = world.folder / "recorded"
    post = play(world, record)
    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    for home in world.homes.values():
        for file in files_below(home.path):
            assert not found_in(file.read_bytes()), file.name
    bodies = files_below(record)
    assert len(bodies) > 8
    for file in bodies:
        assert not found_in(file.read_bytes()), file.name


def test_phone_numbers_no_job_declares_are_not_even_read_into_a_body(world: World) -> None:
    record = world.folder / "recorded"
    play(world, record)
    assert not any(b"1390000" in file.read_bytes() for file in files_below(record))


def test_the_scan_finds_a_party_that_leaks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scan over a party that sends one identifier in the clear, inside a sealed frame."""
    from protocols.jobs import crosscheck
    from protocols.party import Outgoing

    def leaking(self: crosscheck.Source, tagged: object) -> object:
        yield Outgoing(crosscheck.MATCHER, 0x7777, person(300).encode())

    monkeypatch.setattr(crosscheck.Source, "_tags", leaking)
    record = world.folder / "recorded"

    async def go() -> Post:
        async with running(world, record=record) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await over(post, job)
            return post

    post = asyncio.run(go())
    assert not found_in(b"".join(frame for _, frame in post.frames))  # sealed: the relay sees nothing
    assert any(found_in(file.read_bytes()) for file in files_below(record))


def test_errors_of_every_kind_carry_no_identifier(world: World) -> None:
    """A list whose every line is broken after an identifier, at the health department."""
    path = world.folder / "broken.csv"
    path.write_bytes(b"id,street,seen\n" + b"".join(f"{i},x\n".encode() for i in PLANTED))
    state = world.open("health")
    with state.journal.transaction() as connection:
        connection.execute("UPDATE dataset SET place = json_object('file', ?)", (str(path),))
    state.close()

    async def go() -> Post:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert task.ended["health"].code == "bad-file"
            return post

    post = asyncio.run(go())
    assert not found_in(b"".join(post.control))
    for file in files_below(world.homes["health"].path):
        assert not found_in(file.read_bytes()), file.name


def test_lists_that_do_not_fit_into_memory_are_nowhere_in_the_clear_and_gone_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    write = os.pwrite

    def looking(descriptor: int, data: bytes, at: int) -> int:
        written.append(bytes(data))
        return write(descriptor, data, at)

    monkeypatch.setattr(scratch.os, "pwrite", looking)

    async def go() -> None:
        async with running(world, spill_rows=5) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {e.state for e in task.ended.values()} == {"DONE"}
            made = {output.name for output in stations["police"].state.outputs(job)}
            assert made == {"records", "street-table"}

    asyncio.run(go())
    assert sum(map(len, written)) > 10_000
    assert not found_in(b"".join(written))
    for home in world.homes.values():
        assert list(home.scratch.glob("*")) == []


def test_a_full_disk_ends_an_attempt_before_it_is_opened_and_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scratch.os, "pwrite", failing)

    async def go() -> None:
        async with running(world, spill_rows=5) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert "disk-full" in {ended.code for ended in task.ended.values()}
            assert not any(ended.opened for ended in task.ended.values())

    asyncio.run(go())
    for home in world.homes.values():
        assert list(home.scratch.glob("*")) == []
