"""Letters: an answer counts for its question, from whoever was asked; nothing else changes anything."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError as Unparsable
from hypothesis import given
from hypothesis import strategies as st
from simulator import COORDINATOR, Post, World, running, until

from minshu.v1 import audit_pb2
from minshu.v1 import relay_pb2 as pb
from node import rpc
from node.letters import MAX_ASKED, MAX_PENDING, Later, Letters
from node.logs import Log
from node.rpc import AddCheckpoint, AskHead, Cosigned, HandReceipt, HeadSaid, Letter, ReceiptKept
from protocols.errors import DecodeError, StateConflict, Unreachable

A, B = "a.example/node-a", "b.example/node-a"
DIGEST = "sha256:" + "0" * 64


class Mail:
    """Letters with a wire that keeps what is sent."""

    def __init__(
        self, serve: Callable[[str, rpc.Question], rpc.Reply | Later | None] = lambda _, __: None
    ) -> None:
        self.sent: list[audit_pb2.Letter] = []
        self.down = False
        log = Log(None, lambda: datetime(2026, 11, 22, tzinfo=UTC))
        self.letters = Letters(self.send, self.post, serve, rand=secrets.token_bytes, log=log)

    async def send(self, message: rpc.ControlRequest) -> None:
        if self.down:
            raise Unreachable("down", code="link-down")
        self.post(message)

    def post(self, message: rpc.ControlRequest) -> None:
        self.sent.append(message.letter)

    async def asked(self, count: int = 1) -> str:
        await until(lambda: len(self.sent) >= count)
        return self.sent[count - 1].id


def received(letter: audit_pb2.Letter, sender: str = A) -> Letter:
    """Return a letter as the addressee's node reads it."""
    setattr(letter, "from", sender)
    letter.to = ""
    read = rpc.read_control(
        pb.ControlResponse.FromString(pb.ControlResponse(letter=letter).SerializeToString())
    )
    assert isinstance(read, Letter)
    return read


BODIES = (
    AddCheckpoint(b"old 0\n\nx"),
    Cosigned(200, b"line\n"),
    Cosigned(409, b""),
    AskHead(bytes(32), "x.example/node-a/journal/1"),
    HeadSaid(b"{}", b""),
    HandReceipt(b"{}"),
    ReceiptKept(DIGEST, ""),
    ReceiptKept(DIGEST, "unknown-attempt"),
)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_letter_arrives_as_it_was_sent(body: rpc.Question | rpc.Reply) -> None:
    sent = rpc.letter("0" * 32, A, body).letter
    assert sent.to == A
    assert received(sent, B) == Letter("0" * 32, B, body)


def _letter(**fields: object) -> audit_pb2.Letter:
    about = {"id": "0" * 32, "from": A, "ask_head": audit_pb2.AskHead(nonce=bytes(32), log="x")}
    return audit_pb2.Letter(**(about | fields))  # type: ignore[arg-type]  # `from` is no name in Python


MALFORMED = {
    "no id": _letter(id=""),
    "a long id": _letter(id="0" * 33),
    "no sender": _letter(**{"from": ""}),
    "a sender that is no node": _letter(**{"from": "x\n"}),
    "an addressee": _letter(to=B),
    "a short nonce": _letter(ask_head=audit_pb2.AskHead(nonce=bytes(31), log="x")),
    "a log that is no name": _letter(ask_head=audit_pb2.AskHead(nonce=bytes(32), log="x y")),
    "an unknown status": _letter(cosigned=audit_pb2.Cosigned(status=500)),
    "a long answer": _letter(cosigned=audit_pb2.Cosigned(status=200, body=bytes(rpc.MAX_COSIGNED_BYTES + 1))),
    "a long request": _letter(
        add_checkpoint=audit_pb2.AddCheckpoint(body=bytes(rpc.MAX_CHECKPOINT_BYTES + 1))
    ),
    "a long statement": _letter(head=audit_pb2.HeadSaid(statement=bytes(rpc.MAX_STATEMENT_BYTES + 1))),
    "a long receipt": _letter(receipt=audit_pb2.HandReceipt(receipt=bytes(rpc.MAX_STATEMENT_BYTES + 1))),
    "no digest": _letter(receipt_kept=audit_pb2.ReceiptKept(sha256="x")),
    "a code with an identifier in it": _letter(
        receipt_kept=audit_pb2.ReceiptKept(sha256=DIGEST, code="x-13900000000")
    ),
    "nothing": audit_pb2.Letter(**{"id": "0" * 32, "from": A}),  # type: ignore[arg-type]  # see above
}


@pytest.mark.parametrize("letter", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_letter_is_refused_where_it_is_read(letter: audit_pb2.Letter) -> None:
    with pytest.raises(DecodeError):
        rpc.read_control(pb.ControlResponse(letter=letter))


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with suppress(DecodeError, Unparsable):
        rpc.read_control(pb.ControlResponse.FromString(b"\x62" + bytes([min(len(data), 127)]) + data[:127]))


def test_only_whoever_was_asked_answers_and_only_to_what_was_asked() -> None:
    async def play() -> None:
        mail = Mail()
        asking = asyncio.create_task(mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned))
        identifier = await mail.asked()
        wrong = [
            Letter(identifier, B, Cosigned(200, b"from another")),
            Letter("f" * 32, A, Cosigned(200, b"to another question")),
            Letter(identifier, A, HeadSaid(b"another kind", b"")),
            Letter(identifier, A, ReceiptKept(DIGEST, "")),
        ]
        for letter in wrong:
            mail.letters.take(letter)
            await asyncio.sleep(0)
            assert not asking.done()
        mail.letters.take(Letter(identifier, A, Cosigned(200, b"right")))
        mail.letters.take(Letter(identifier, A, Cosigned(200, b"a second answer")))
        assert await asking == Cosigned(200, b"right")
        # Late and replayed ones meet nobody who waits.
        for letter in (*wrong, Letter(identifier, A, Cosigned(200, b"right"))):
            mail.letters.take(letter)

    asyncio.run(play())


def test_two_questions_to_two_nodes_do_not_get_each_others_answers() -> None:
    async def play() -> None:
        mail = Mail()
        first = asyncio.create_task(mail.letters.ask(A, AddCheckpoint(b"a"), Cosigned))
        await mail.asked()
        second = asyncio.create_task(mail.letters.ask(B, AddCheckpoint(b"b"), Cosigned))
        ids = [await mail.asked(), await mail.asked(2)]
        assert ids[0] != ids[1]
        mail.letters.take(Letter(ids[0], B, Cosigned(200, b"b")))
        mail.letters.take(Letter(ids[1], A, Cosigned(200, b"a")))
        await asyncio.sleep(0)
        assert not first.done()
        assert not second.done()
        mail.letters.take(Letter(ids[0], A, Cosigned(200, b"a")))
        mail.letters.take(Letter(ids[1], B, Cosigned(200, b"b")))
        assert (await first, await second) == (Cosigned(200, b"a"), Cosigned(200, b"b"))

    asyncio.run(play())


def test_a_question_ends_when_nobody_answers_when_the_link_breaks_and_when_it_is_down() -> None:
    async def play() -> None:
        mail = Mail()
        with pytest.raises(Unreachable) as late:
            await mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned, 0.01)
        assert late.value.code == "no-answer"
        asking = asyncio.create_task(mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned))
        await mail.asked(2)
        mail.letters.lost()
        with pytest.raises(Unreachable) as broken:
            await asking
        assert broken.value.code == "link-broken"
        mail.down = True
        with pytest.raises(Unreachable) as down:
            await mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned)
        assert down.value.code == "link-down"

    asyncio.run(play())


def test_questions_under_way_are_bounded_and_an_end_makes_room() -> None:
    async def play() -> None:
        mail = Mail()
        asking = [
            asyncio.create_task(mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned))
            for _ in range(MAX_PENDING)
        ]
        await mail.asked(MAX_PENDING)
        with pytest.raises(Unreachable) as caught:
            await mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned)
        assert caught.value.code == "too-many-letters"
        asking[0].cancel()
        await asyncio.gather(asking[0], return_exceptions=True)
        asking[0] = asyncio.create_task(mail.letters.ask(A, AddCheckpoint(b"x"), Cosigned))
        await mail.asked(MAX_PENDING + 1)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    asyncio.run(play())


@asynccontextmanager
async def served(mail: Mail) -> AsyncIterator[None]:
    """Have a node's letters answered until the block ends."""
    serving = asyncio.create_task(mail.letters.run())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_a_question_is_answered_under_its_id_or_not_at_all() -> None:
    def serve(sender: str, question: rpc.Question) -> rpc.Reply | None:
        if isinstance(question, AddCheckpoint):
            return Cosigned(404, b"")
        if isinstance(question, AskHead):
            raise StateConflict("the disk is full", code="journal-write-failed")
        return None

    async def play() -> None:
        mail = Mail(serve)
        async with served(mail):
            bodies = (AskHead(bytes(32), "x"), HandReceipt(b""), AddCheckpoint(b""))
            for number, body in enumerate(bodies):
                mail.letters.take(Letter(f"{number:032}", A, body))
            await until(lambda: bool(mail.sent))
        [sent] = mail.sent
        assert (sent.id, sent.to, sent.cosigned.status) == (f"{2:032}", A, 404)

    asyncio.run(play())


def test_nobodys_questions_hold_up_anybody_elses_nor_the_nodes_own_work() -> None:
    answered: list[str] = []
    between: list[int] = []

    def serve(sender: str, _question: rpc.Question) -> rpc.Reply:
        answered.append(sender)
        return Cosigned(404, b"")

    async def play() -> None:
        mail = Mail(serve)
        for number in range(2 * MAX_ASKED):
            mail.letters.take(Letter(f"{number:032}", A, AddCheckpoint(b"")))
        mail.letters.take(Letter("f" * 32, B, AddCheckpoint(b"")))
        async with served(mail):
            while len(answered) <= MAX_ASKED:
                between.append(len(answered))
                await asyncio.sleep(0)
        # What is beyond the bound is dropped, and room is made by answering.
        assert answered.index(B) == 1
        assert answered.count(A) == MAX_ASKED
        assert len(mail.sent) == MAX_ASKED + 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(between))
        async with served(mail):
            mail.letters.take(Letter("e" * 32, A, AddCheckpoint(b"")))
            await until(lambda: mail.sent[-1].id == "e" * 32)

    asyncio.run(play())


def test_a_question_whose_turn_comes_later_is_answered_then_and_counts_until_then() -> None:
    asked: list[rpc.Question] = []

    def serve(_sender: str, question: rpc.Question) -> rpc.Reply | Later:
        asked.append(question)
        first = question == AddCheckpoint(b"first")
        return Cosigned(200, b"line\n") if first and len(asked) > 3 * MAX_ASKED else Later(0.01)

    async def play() -> None:
        mail = Mail(serve)
        async with served(mail):
            mail.letters.take(Letter("f" * 32, A, AddCheckpoint(b"first")))
            for number in range(2 * MAX_ASKED):
                mail.letters.take(Letter(f"{number:032}", A, AddCheckpoint(b"%d" % number)))
            await until(lambda: bool(mail.sent))
        assert [sent.id for sent in mail.sent] == ["f" * 32]
        assert len(set(asked)) == MAX_ASKED

    asyncio.run(play())


def test_what_nobody_waits_for_any_more_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.letters.ANSWER_S", 0.05)
    asked: list[rpc.Question] = []

    def serve(_sender: str, question: rpc.Question) -> Later:
        asked.append(question)
        return Later(0.02)

    async def play() -> None:
        mail = Mail(serve)
        async with served(mail):
            mail.letters.take(Letter("f" * 32, A, AddCheckpoint(b"")))
            await until(lambda: not mail.letters._waiting)
        assert 1 <= len(asked) <= 3
        assert not mail.sent

    asyncio.run(play())


def test_what_others_can_bring_about_at_will_fills_no_log(folder: Path) -> None:
    now = datetime(2026, 11, 22, 8, tzinfo=UTC)
    clock = [now]
    log = Log(folder / "node.log", lambda: clock[0])
    for minute in range(2):
        clock[0] = now + timedelta(minutes=minute)
        for number in range(500):
            log.seldom("receipt-forged", A if number % 2 else B, job="x")
            log.seldom("outbox-full")
    log.close()
    lines = (folder / "node.log").read_text().splitlines()
    assert len(lines) == 2 * 3
    assert lines[0] == f"2026-11-22T08:00:00Z warning receipt-forged peer={B} job=x"
    for number in range(5000):  # names that a coordinator makes up
        log.seldom("too-many-letters", f"n{number}.example/node-a")
    log.close()
    assert len((folder / "node.log").read_text().splitlines()) < 2 * 3 + 100


def test_letters_of_a_lying_coordinator_change_nothing(world: World) -> None:
    async def play() -> None:
        async with running(world, names=["health", "police"]) as (post, stations):
            health = stations["health"]
            before = health.state.journal.size
            police = world.homes["police"].name
            for letter in (*MALFORMED.values(), *(_copy(body) for body in BODIES)):
                for sender in (police, world.homes["health"].name, COORDINATOR, "nobody.example/x"):
                    letter.to = ""
                    post.deliver(sender, "health", letter)
            job = post.submit(world.spec())
            await until(lambda: "health" in post.tasks[job].verdicts)
            assert not health.task.done()
            assert [e.kind for e in health.state.journal.entries(before)] == ["job.received"]

    asyncio.run(play())


def _copy(body: rpc.Question | rpc.Reply) -> audit_pb2.Letter:
    return rpc.letter("0" * 32, "", body).letter


def test_a_swapped_cosignature_counts_for_nobody(world: World) -> None:
    """Every answer that a coordinator hands on is another witness's."""

    class Swapping(Post):
        def witnesses(self, name: str) -> bool:
            return False

        def passed_on(self, sender: str, to: str, letter: audit_pb2.Letter) -> tuple[audit_pb2.Letter, ...]:
            if letter.WhichOneof("body") == "cosigned":
                others = [n for n in self.world.homes if n not in (sender, to)]
                setattr(letter, "from", self.world.homes[others[0]].name)
            return (letter,)

    async def play() -> None:
        async with running(world, Swapping(world), ready=False) as (_, stations):
            health = stations["health"]
            await until(lambda: health.agent.cosigning._known)
            await asyncio.sleep(0.3)
            assert health.agent.cosigning.covered == 0
            no = health.agent.cosigning.hindrance()
            assert no is not None
            assert no.code == "policy-unwitnessed"

    asyncio.run(play())
