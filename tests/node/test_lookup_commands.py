"""`minshu-node lookup`: identifiers come by standard input or a file, and go nowhere but to the node."""

import asyncio
import csv
import io
import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from session_case import CANARY, Answering, make_sessions, play
from simulator import START, Post, Station, World, over, until

from node import asking
from node.asking import Batch, Wish, read_list, read_one, read_reason
from node.cli import main
from node.counter import reason_digest, reason_salt
from node.rpc import Attempt
from node.shelf import shelf_of
from protocols.errors import InputError
from protocols.ids import JobId
from protocols.jobs.job_type import SUSPECTED
from protocols.lookup.build import OwnerKey, put
from protocols.psi.oprf import KeyPair

Printed = tuple[int, str, str]


@pytest.fixture(autouse=True)
def standing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return make_sessions(monkeypatch)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Printed]:
    """Run a command with something on its standard input."""

    def run(text: str, *words: str | Path) -> Printed:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def at(world: World) -> tuple[str, Path]:
    return "--home", world.homes["police"].path


def test_one_person_is_asked_about_from_standard_input(world: World, typed: Callable[..., Printed]) -> None:
    reason = world.folder / "reason.txt"
    reason.write_text("\ufeff案 17\r\n", encoding="utf-8")

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        def go() -> None:
            code, out, _err = typed("ab\n", "lookup", job[7:15], "--reason-file", reason, *at(world))
            assert code == 0
            assert out == f"有记录 · there is a record\n  even  yes\n{SUSPECTED}\n"
            code, out, _err = typed("ac\n", "lookup", job, *at(world))
            assert (code, out) == (
                0,
                f"本范围内无此人记录 · no record of this person in this scope\n{SUSPECTED}\n",
            )
            code, out, _err = typed("ab\n", "lookup", job, "--json", *at(world))
            assert json.loads(out) == {
                "job": job, "found": True, "fields": {"even": "yes"}, "statement": SUSPECTED
            }  # fmt: skip
            code, out, _ = typed("案 17\nab\n", "lookup", job, "--reason-file", "-", "--json", *at(world))
            digest = reason_digest(reason_salt(world.homes["police"]), Attempt(job, 1), "案 17")
            assert (code, json.loads(out)["reason_sha256"]) == (0, digest)
            code, out, err = typed(f"{CANARY}?\n", "lookup", job, *at(world))
            assert (code, out) == (1, "")
            assert "1 of 1 are no identifiers" in err
            assert CANARY not in err

        await asyncio.to_thread(go)
        digests = [e.body.get("reason_sha256") for e in stations["police"].entries("lookup.asked")]
        assert digests[1:3] == [None, None]
        assert digests[0] == digests[3] is not None

    play(world, session)


def test_a_list_is_asked_about_and_only_its_owner_can_read_the_answers(
    world: World, typed: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "CHUNK", 4)
    people = [f"a{n}" for n in range(10)]
    listed = world.folder / "list.csv"
    listed.write_text("﻿name,id\n" + "".join(f"=x,{who}\n" for who in (*people, "a3", "a3")), encoding="utf-8")
    out = world.folder / "out.csv"

    async def session(_: Post, stations: dict[str, Station], job: JobId) -> None:
        def go() -> None:
            words = ("lookup", job, "--batch", listed, "--column", "id", "--out", out, "--field", "even")
            code, said, err = typed("", *words, "--json", *at(world))
            assert (code, err) == (0, "")
            assert json.loads(said) == {
                "job": job, "asked": 10, "found": 5, "statement": SUSPECTED, "out": str(out)
            }  # fmt: skip
            code, said, err = typed("", *words, *at(world))
            assert (code, said) == (1, "")
            assert "exists already" in err

        await asyncio.to_thread(go)
        assert [e.body["lookups"] for e in stations["police"].entries("lookup.asked")] == [4, 4, 2]

    play(world, session)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    head, *rows = csv.reader(out.read_text("utf-8-sig").splitlines())
    assert head == ["identifier", "found", "even", "statement"]
    assert rows == [
        [who, *(("yes", "yes") if int(who[1]) % 2 == 0 else ("no", "")), SUSPECTED] for who in people
    ]


def test_what_was_answered_of_a_list_before_it_was_refused_is_kept(
    world: World, typed: Callable[..., Printed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "CHUNK", 4)
    monkeypatch.setattr(asking, "MAX_AT_ONCE", 1)
    monkeypatch.setattr(Answering, "limit", 9)
    out = world.folder / "out.csv"

    async def session(_: Post, _stations: dict[str, Station], job: JobId) -> None:
        def go() -> None:
            people = "".join(f"{CANARY}{n}\n" for n in range(12))
            code, _, err = typed(people, "lookup", job, "--batch", "-", "--out", out, *at(world))
            assert code == 1
            assert "8 of 12 are answered and in out.csv; then: no more" in err
            assert CANARY not in err

        await asyncio.to_thread(go)

    play(world, session)
    assert len(out.read_text("utf-8-sig").splitlines()) == 9


def test_sessions_are_listed_and_closed(world: World, typed: Callable[..., Printed]) -> None:
    async def session(post: Post, _stations: dict[str, Station], job: JobId) -> None:
        def go() -> None:
            code, out, _ = typed("", "lookup", "sessions", *at(world))
            assert code == 0
            assert out.startswith(f"{job}  0 次查询 questions  剩余 closes in ")
            code, out, _ = typed("", "lookup", "close", job[:20], "--json", *at(world))
            assert (code, json.loads(out)) == (0, {"job": job})

        await asyncio.to_thread(go)
        task = await over(post, job)
        assert {e.state for e in task.ended.values()} == {"DONE"}
        await until(lambda: typed("", "lookup", "sessions", *at(world))[1].startswith("没有开放的会话"))
        code, _, err = typed("ab\n", "lookup", job, *at(world))
        assert (code, err.splitlines()[0]) == (
            1, "minshu-node: error: no session is open at this node, or the node is off"
        )  # fmt: skip

    play(world, session)


@pytest.mark.parametrize("runs", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_key_is_rotated_whether_the_node_runs_or_not(
    world: World, typed: Callable[..., Printed], runs: bool
) -> None:
    home = world.homes["health"]
    shelf = shelf_of(home, "lookup/1")
    for dataset in ("people", "others"):
        pair = KeyPair(bytes(32), bytes(32))
        put(shelf, f"key.{dataset}", OwnerKey(dataset, 3, pair, bytes(32), 0, START.date()).encode())

    def marked(dataset: str) -> bool:
        return OwnerKey.decode(bytes(shelf.get(f"key.{dataset}") or b"")).rotate

    def rotate() -> None:
        assert not marked("people")
        code, out, _ = typed("", "lookup", "rotate", "people", "--json", "--home", home.path)
        assert (code, json.loads(out)) == (0, {"dataset": "people", "tables": 1})
        assert (marked("people"), marked("others")) == (True, False)
        code, _, err = typed("", "lookup", "rotate", "nothing", "--home", home.path)
        assert code == 1
        assert "no dataset of that name" in err

    async def session(_: Post, _stations: dict[str, Station], _job: JobId) -> None:
        await asyncio.to_thread(rotate)

    if runs:
        play(world, session)
    else:
        rotate()
    state = world.open("health")
    entries = [e.body for e in state.journal.entries() if e.kind == "lookup.rotated"]
    state.close()
    assert entries == [{"dataset": "people", "count": 1}]


@pytest.mark.parametrize("words", [("sessions", CANARY), ("close",), ("rotate",), ("abcd", CANARY)])
def test_a_wrong_usage_repeats_nothing_that_was_typed(
    world: World, typed: Callable[..., Printed], words: tuple[str, ...]
) -> None:
    code, out, err = typed("", "lookup", *words, *at(world))
    assert (code, out) == (1, "")
    assert CANARY not in err


def test_a_reason_on_the_command_line_is_taken_for_a_file_and_not_repeated(
    world: World, typed: Callable[..., Printed]
) -> None:
    listed = world.folder / "list"
    listed.write_text("ab\n")
    for words in (("--reason", CANARY), ("--reason-file", "-", "--batch", "-"), ("--reason-file", CANARY)):
        out = world.folder / "out.csv"
        batch = () if "--batch" in words else ("--batch", listed)
        code, said, err = typed("ab\n", "lookup", "abcd", *words, *batch, "--out", out, *at(world))
        assert (code, said) == (1, "")
        assert "reason" in err
        assert CANARY not in err
        assert not out.exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "no-reason"),
        (" \n", "no-reason"),
        ("a\nb\n", "bad-reason"),
        ("案" * 201, "long-reason"),
        ("案" * 900, "too-long"),
    ],
)
def test_a_reason_is_one_line_of_a_file(folder: Path, text: str, code: str) -> None:
    path = folder / "reason"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_reason(str(path), sys.stdin)
    assert refused.value.code == code
    path.write_text("案" * 200, encoding="utf-8")
    assert read_reason(str(path), sys.stdin) == "案" * 200
    assert read_reason("", sys.stdin) == ""


def test_an_identifier_is_one_line_of_text() -> None:
    def of(data: bytes) -> str:
        return read_one(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    assert of(f" {CANARY} \r\nrest".encode()) == CANARY
    for data, code in (
        (b"", "no-identifier"),
        (b" \n", "no-identifier"),
        (b"\xff\n", "bad-text"),
        (b"1" * 300, "too-long"),
    ):
        with pytest.raises(InputError) as refused:
            of(data)
        assert refused.value.code == code


@pytest.mark.parametrize(
    ("text", "column", "code"),
    [
        ("a,b\n", "", "bad-list"),
        ("id,id\na,b\n", "id", "no-column"),
        ("name\na\n", "id", "no-column"),
        ("id,name\na\n", "id", "bad-list"),
        ("id,name\n,x\n", "id", "bad-list"),
        ('"a\n', "", "bad-list"),
        ("\n\n", "", "empty-list"),
        ("id\n", "id", "empty-list"),
        ("a" * 300, "", "bad-list"),
    ],
)
def test_a_list_that_is_none_is_refused_before_anybody_is_asked(
    folder: Path, text: str, column: str, code: str
) -> None:
    path = folder / "list"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_list(str(path), column, sys.stdin)
    assert refused.value.code == code


class Slow:
    """A counter that answers `allowed` keys a minute by the test's clock."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.left, self.sizes, self.wait_s = allowed, allowed, [], 20
        self._requests: list[dict[str, Any]] = []

    def put(self, request: dict[str, Any]) -> int:
        self._requests.append(request)
        return len(self._requests)

    def take(self) -> tuple[int, dict[str, Any]]:
        return len(self._requests), self.call(self._requests[-1])

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        size = len(request["keys"])
        if size > self.left:
            return {"refused": "rate-exceeded", "sentence": "too fast", "wait_s": self.wait_s}
        self.left -= size
        self.sizes.append(size)
        return {"rows": [None] * size}

    def sleep(self, seconds: float) -> None:
        self.left = min(self.allowed, self.left + round(seconds * self.allowed / 60))


def test_a_list_waits_for_its_turn_where_the_rate_is_limited() -> None:
    slow, waited = Slow(30), []
    batch = Batch(slow, Wish("abcd"), 30, sleep=slow.sleep, waiting=waited.append)  # type: ignore[arg-type]  # a counter
    keys = [f"k{n}" for n in range(100)]
    assert [key for part, _ in batch.rows(keys) for key in part] == keys
    assert slow.sizes == [30, 30, 30, 10]
    assert waited == [20] * 7
