"""Letters: whose they are, where they go, and that no number of them holds up anybody else."""

import asyncio
from dataclasses import dataclass, field

import pytest
from collaboration import HEALTH, INSURANCE, POLICE
from loopback import until

from coordinator import letters, rpc, service
from coordinator.letters import BURST, MAX_LETTER_BYTES, RATE, Letters
from coordinator.service import ControlSession
from minshu.v1 import audit_pb2, relay_pb2
from protocols.errors import DecodeError, Unreachable
from protocols.ids import NodeName

ME = NodeName("bureau.gz.example/coordinator")
ID = "0f" * 16


def sender(message):
    return getattr(message.letter, "from")


def request(body=b"old 0\n\n", to=HEALTH, identifier=ID, **more):
    return audit_pb2.Letter(id=identifier, to=to, add_checkpoint=audit_pb2.AddCheckpoint(body=body), **more)


def answer(to=HEALTH, body=b"line"):
    return audit_pb2.Letter(id=ID, to=to, cosigned=audit_pb2.Cosigned(status=200, body=body))


def read(letter):
    """The letter as the coordinator reads it off the wire."""
    raw = relay_pb2.ControlRequest(letter=letter).SerializeToString()
    return rpc.read_control(relay_pb2.ControlRequest.FromString(raw))


@dataclass
class Desk:
    """A post office whose nodes keep what they get."""

    got: dict = field(default_factory=lambda: {POLICE: [], HEALTH: []})
    handed_in: list = field(default_factory=list)
    now: float = 0.0
    slept: float = 0.0

    def __post_init__(self):
        self.letters = Letters(ME, self.session, self.receipt, lambda: self.now)

    def session(self, node):
        desk = self

        class Session:
            def post(self, message, sender):
                desk.got[node].append(message)

        return Session() if node in self.got else None

    def receipt(self, node, envelope):
        self.handed_in.append((node, envelope))
        return audit_pb2.ReceiptKept(sha256="sha256:…") if envelope else None

    async def sleep(self, seconds):
        self.slept += seconds
        self.now += seconds


@pytest.fixture
def desk(monkeypatch):
    desk = Desk()
    monkeypatch.setattr(letters.asyncio, "sleep", desk.sleep)
    return desk


def take(desk, node, letter):
    asyncio.run(desk.letters.take(node, read(letter)))


# -- whose they are, and where they go ---------------------------------------------------------------


def test_a_letter_says_who_handed_it_in_and_nothing_else_of_its_way(desk):
    take(desk, POLICE, request())
    (message,) = desk.got[HEALTH]
    assert (sender(message), message.letter.to, message.letter.id) == (POLICE, "", ID)
    assert message.letter.add_checkpoint.body == b"old 0\n\n"


@pytest.mark.parametrize(
    "letter",
    [
        request(**{"from": HEALTH}),
        request(**{"from": POLICE}),
        request(to=""),
        request(to="a" * 201),
        request(identifier=""),
        request(identifier="0F" * 16),
    ],
    ids=["another-sender", "its-own-sender", "nobody", "long", "no-id", "id"],
)
def test_a_letter_that_names_its_own_sender_or_lacks_its_form_is_refused(letter):
    with pytest.raises(DecodeError) as refused:
        read(letter)
    assert refused.value.code == "bad-message"


def test_letters_to_nobody_to_oneself_and_of_too_many_bytes_are_dropped(desk):
    for letter in (
        request(to=POLICE),
        request(to=INSURANCE),
        request(to=HEALTH, body=bytes(MAX_LETTER_BYTES)),
        request(to=ME),
        audit_pb2.Letter(id=ID, to=ME),
        audit_pb2.Letter(id=ID, to=ME, receipt_kept=audit_pb2.ReceiptKept()),
    ):
        take(desk, POLICE, letter)
    assert desk.got == {POLICE: [], HEALTH: []}
    assert desk.handed_in == []


def test_a_receipt_for_the_coordinator_is_answered_to_whom_it_came_from(desk):
    take(desk, POLICE, audit_pb2.Letter(id=ID, to=ME, receipt=audit_pb2.HandReceipt(receipt=b"dsse")))
    assert desk.handed_in == [(POLICE, b"dsse")]
    (message,) = desk.got[POLICE]
    assert (sender(message), message.letter.id, message.letter.receipt_kept.code) == (ME, ID, "")
    take(desk, POLICE, audit_pb2.Letter(id=ID, to=ME, receipt=audit_pb2.HandReceipt()))
    assert len(desk.got[POLICE]) == 1


# -- questions of the coordinator's own --------------------------------------------------------------


async def asked(desk, node=POLICE):
    """Ask for a cosignature; return the task and the id it went out with."""
    task = asyncio.create_task(desk.letters.add_checkpoint(node, b"body", 5))
    await asyncio.wait([task], timeout=0.01)
    return task, desk.got[node][-1].letter.id


def cosigned(identifier, status=200):
    return read(audit_pb2.Letter(id=identifier, to=ME, cosigned=audit_pb2.Cosigned(status=status, body=b"x")))


def test_an_answer_counts_from_whom_it_was_asked_and_of_the_kind_it_must_be(desk):
    async def scene():
        task, identifier = await asked(desk)
        await desk.letters.take(HEALTH, cosigned(identifier, 404))
        head = audit_pb2.Letter(id=identifier, to=ME, head=audit_pb2.HeadSaid(checkpoint=b"x"))
        await desk.letters.take(POLICE, read(head))
        await desk.letters.take(POLICE, cosigned("1e" * 16, 404))
        assert not task.done()
        await desk.letters.take(POLICE, cosigned(identifier))
        await desk.letters.take(POLICE, cosigned(identifier, 409))
        assert await task == (200, b"x")
        await desk.letters.take(POLICE, cosigned(identifier, 409))

    asyncio.run(scene())


def test_a_node_that_is_away_or_silent_gives_no_answer(desk):
    async def scene():
        with pytest.raises(Unreachable) as away:
            await desk.letters.add_checkpoint(INSURANCE, b"body", 5)
        with pytest.raises(Unreachable) as silent:
            await desk.letters.ask_head(POLICE, bytes(32), "log", 0.01)
        return away.value.code, silent.value.code

    assert asyncio.run(scene()) == ("node-away", "no-answer")


# -- how many ----------------------------------------------------------------------------------------


def test_whoever_writes_too_much_is_read_more_slowly_and_nobody_else(desk):
    async def scene():
        for _ in range(int(BURST) + 2 * int(RATE)):
            await desk.letters.take(POLICE, read(answer()))
        flood = desk.slept
        for _ in range(100):
            await desk.letters.take(HEALTH, read(answer(to=POLICE)))
        return flood

    assert asyncio.run(scene()) == pytest.approx(2, rel=0.05)
    assert desk.slept == pytest.approx(2, rel=0.05)
    assert len(desk.got[POLICE]) == 100


def test_questions_and_long_letters_count_for_more(desk):
    """Whoever answers a question signs or stores something: at this rate it never does much else."""
    head = audit_pb2.Letter(id=ID, to=HEALTH, ask_head=audit_pb2.AskHead(nonce=bytes(32), log="log"))
    receipt = audit_pb2.Letter(id=ID, to=ME, receipt=audit_pb2.HandReceipt(receipt=b"dsse"))
    dear = [request(), head, receipt, answer(body=bytes(200 << 10))]

    async def scene(letter, number):
        desk.slept, desk.now = 0.0, desk.now + 60
        for _ in range(number):
            await desk.letters.take(POLICE, read(letter))
        return desk.slept

    number = int(BURST) // 4
    assert min(asyncio.run(scene(letter, number)) for letter in dear) > 3
    assert asyncio.run(scene(answer(), number)) == 0


def test_a_senders_letters_take_only_its_share_and_wait_behind_everything_else(monkeypatch):
    monkeypatch.setattr(service, "_MAX_POSTED_BYTES", 1000)
    session = ControlSession("sha256:…")
    for number in range(50):
        session.post(rpc.letter(POLICE, request(bytes(100), identifier=f"{number:032x}")), POLICE)
    session.post(rpc.letter(INSURANCE, request(b"one", identifier="ff" * 16)), INSURANCE)
    session.send(rpc.stored("a release"))
    written = []

    class Context:
        async def write(self, message):
            written.append(message)
            if len(written) == 3:
                session.post(rpc.letter(POLICE, request(b"more")), POLICE)

    async def scene():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.pump(Context()), 0.05)

    asyncio.run(scene())
    first, *others = written
    assert first.stored.release == "a release"
    assert [sender(message) for message in others][-2:] == [INSURANCE, POLICE]
    assert 1 < len(others) < 10
    assert sum(message.ByteSize() for message in others[:-2]) <= 1000


def test_a_flood_of_letters_holds_up_no_other_node(live):
    live.start(POLICE, HEALTH, INSURANCE)
    nodes = live.nodes
    forged = relay_pb2.ControlRequest(letter=request(**{"from": HEALTH}))

    async def flood():
        for _ in range(1500):
            await nodes[POLICE].say(letter=request(bytes(2000), to=HEALTH))

    async def exchange():
        burst = asyncio.create_task(flood())
        await asyncio.sleep(0.2)
        await nodes[INSURANCE].say(letter=request(b"from insurance", to=HEALTH, identifier="1e" * 16))
        await until(lambda: any(one.id == "1e" * 16 for one in nodes[HEALTH].got("letter")), 3)
        burst.cancel()
        await nodes[INSURANCE]._call.write(forged)

    live.loop.run(exchange())
    (arrived,) = [letter for letter in nodes[HEALTH].got("letter") if letter.id == "1e" * 16]
    assert getattr(arrived, "from") == INSURANCE
    assert nodes[HEALTH].problem is None
    live.until(lambda: nodes[INSURANCE].problem)
    assert nodes[INSURANCE].problem.code == "bad-message"
    assert {getattr(letter, "from") for letter in nodes[HEALTH].got("letter")} <= {POLICE, INSURANCE, ME}
