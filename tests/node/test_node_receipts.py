"""Receipts: what one node releases stands in the journal of everybody who took part, and once."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from simulator import (
    COORDINATOR,
    DEPARTMENTS,
    Fragile,
    Post,
    Station,
    World,
    approve_all,
    over,
    running,
    until,
)

from minshu.v1 import audit_pb2
from node.activation import InForce
from node.letters import Letters
from node.logs import Log
from node.receipts import GIVE_UP, MAX_PER_ATTEMPT, Receipts
from node.rpc import Attempt, ControlRequest, HandReceipt, Letter, ReceiptKept
from node.state import State
from protocols.encoding import sha256_digest
from protocols.envelope import RECEIPT, RELEASE, KeySigner, decode_envelope, key_id, sign, verify
from protocols.errors import Unreachable
from protocols.ids import Digest, JobId, NodeName
from protocols.wire import Receipt

OTHERS = [name for name in DEPARTMENTS if name != "police"]


@pytest.fixture(autouse=True)
def _faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.receipts.SOON_S", 0.1)


def receipts(station: Station) -> list[dict[str, object]]:
    return [dict(entry.body) for entry in station.entries("peer.receipt")]


async def finished(post: Post, world: World, stations: dict[str, Station]) -> JobId:
    job = post.submit(world.spec())
    await approve_all(post, stations, job)
    await over(post, job)
    return job


def test_a_release_stands_in_every_participants_journal(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            job = await finished(post, world, stations)
            police = stations["police"]
            committed = police.entries("output.commit")
            assert len(committed) == 2
            await until(lambda: not police.state.receipts_due())
            for name in OTHERS:
                entries = stations[name].entries("peer.receipt")
                assert [(e.job, e.attempt) for e in entries] == [(job, 1)] * 2
                said = sorted(receipts(stations[name]), key=lambda body: str(body["release"]))
                for body, commit in zip(
                    said, sorted(committed, key=lambda e: e.body["release"]), strict=True
                ):
                    envelope = stations[name].state.journal.get_object(str(body["envelope_sha256"]))
                    assert envelope is not None
                    key = police.home.signer.public_key
                    verify(decode_envelope(envelope), RECEIPT, {key_id(key): key})
                    told = Receipt.decode(decode_envelope(envelope).payload)
                    assert body == {
                        "peer": police.home.name,
                        "sha256": commit.body["sha256"],
                        "kind": "output.commit",
                        "release": commit.body["release"],
                        "log": police.state.journal.origin,
                        "seq": commit.seq,
                        "envelope_sha256": sha256_digest(envelope),
                    }
                    assert (told.job, told.attempt, told.node) == (job, 1, police.home.name)
                    assert told.note_sha256 == commit.body["envelope_sha256"]
            assert len({sha256_digest(envelope) for envelope in post.receipts}) == 2
            assert not receipts(police)

    asyncio.run(play())


def test_a_lost_receipt_or_acknowledgement_is_made_good_and_journaled_once(world: World) -> None:
    class Losing(Post):
        def passed_on(self, sender: str, to: str, letter: audit_pb2.Letter) -> tuple[audit_pb2.Letter, ...]:
            kind = letter.WhichOneof("body")
            if kind in ("receipt", "receipt_kept") and (sender, to, kind) not in lost:
                lost.add((sender, to, kind))
                return ()
            return (letter, letter) if kind == "receipt" else (letter,)

    lost: set[tuple[str, str, str | None]] = set()

    async def play() -> None:
        async with running(world, Losing(world)) as (post, stations):
            await finished(post, world, stations)
            await until(lambda: len(lost) == 2 * len(OTHERS))
            for wire in post.wires.values():
                wire.drop()
            await until(lambda: not stations["police"].state.receipts_due())
            for name in OTHERS:
                assert len(receipts(stations[name])) == 2

    asyncio.run(play())


def test_a_receipt_is_owed_from_the_commit_on_also_by_a_node_that_died_there(world: World) -> None:
    async def play() -> None:
        async with running(world) as (post, stations):
            await stations.pop("police").close()
            doomed = type("Doomed", (Fragile,), {"at": "output.commit", "before": False})
            stations["police"] = Station(world, post, "police", doomed)
            await until(
                lambda: post.wires["police"] is stations["police"].wire and stations["police"].ready()
            )
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            await until(lambda: stations["police"].state.dead)  # type: ignore[attr-defined]  # a Fragile state
            await stations.pop("police").kill()
            assert not any(receipts(station) for station in stations.values())
            stations["police"] = Station(world, post, "police")
            await until(lambda: all(len(receipts(stations[name])) == 2 for name in OTHERS))
            await until(lambda: not stations["police"].state.receipts_due())

    asyncio.run(play())


# -- what is handed to a node ------------------------------------------------------------------------------


@dataclass
class Desk:
    """The police's side after a job with all four departments."""

    world: World
    state: State
    receipts: Receipts
    genuine: Receipt

    def sealed(self, receipt: Receipt, signer: KeySigner | None = None, kind: str = RECEIPT) -> HandReceipt:
        key = signer or self.world.homes["health"].signer
        return HandReceipt(sign(kind, receipt.encode(), [key]).encode())

    def handed(self, receipt: Receipt, signer: KeySigner | None = None, kind: str = RECEIPT) -> str:
        """Hand in a receipt; return the code of the answer."""
        kept = self.receipts.take(self.sealed(receipt, signer, kind))
        assert kept is not None
        assert kept.sha256 == sha256_digest(receipt.encode())
        return kept.code

    def journaled(self) -> int:
        return sum(entry.kind == "peer.receipt" for entry in self.state.journal.entries())


@pytest.fixture(scope="module")
def worked(founded: World, memory: Path) -> tuple[World, JobId]:
    world = founded.clone(memory / "worked")

    async def play() -> JobId:
        async with running(world) as (post, stations):
            return await finished(post, world, stations)

    return world, asyncio.run(play())


async def nowhere(_: ControlRequest) -> None:
    raise Unreachable("nobody sends here", code="link-down")


@pytest.fixture
def desk(worked: tuple[World, JobId], folder: Path) -> Iterator[Desk]:
    world, job = worked[0].clone(folder / "desk"), worked[1]
    home, state, log = world.homes["police"], world.open("police"), Log(None, world.clock)
    force = InForce.load(state, home.name, home.signer.public_key)
    letters = Letters(nowhere, lambda _: None, lambda *_: None, rand=secrets.token_bytes, log=log)
    taken = Receipts(state, force, home.signer, letters, now=world.clock, log=log)
    health = world.homes["health"]
    genuine = Receipt(
        job=job,
        attempt=1,
        node=health.name,
        kind="output.commit",
        release="0" * 32,
        sha256=Digest("sha256:" + "1" * 64),
        note_sha256=Digest("sha256:" + "2" * 64),
        log=health.origin,
        seq=7,
        issued=world.clock(),
    )
    yield Desk(world, state, taken, genuine)
    state.close()


def test_a_genuine_receipt_is_journaled_once_however_often_it_comes(desk: Desk) -> None:
    for _ in range(3):
        assert desk.handed(desk.genuine) == ""
    assert desk.journaled() == 1
    [kept] = desk.state.receipts_kept(Attempt(desk.genuine.job, 1), desk.genuine.node)
    assert kept == desk.genuine.release


def test_what_is_no_genuine_receipt_is_refused_with_its_code_and_never_journaled(desk: Desk) -> None:
    world, genuine = desk.world, desk.genuine
    stranger = NodeName("stranger.gz.example/node-a")
    refused = {
        "receipt-forged": desk.handed(genuine, world.coordinator),
        "receipt-forged by another node": desk.handed(genuine, world.homes["statistics"].signer),
        "receipt-forged as something else": desk.handed(genuine, kind=RELEASE),
        "not-in-roster": desk.handed(replace(genuine, node=stranger, log=f"{stranger}/journal/1")),
        "wrong-subject": desk.handed(replace(genuine, log=world.homes["police"].origin)),
        "unknown-attempt": desk.handed(replace(genuine, attempt=2)),
        "unknown-attempt of a job": desk.handed(replace(genuine, job=JobId("sha256:" + "9" * 64))),
    }
    assert [code.split()[0] for code in refused] == list(refused.values())
    assert desk.receipts.take(HandReceipt(b"{}")) is None
    assert desk.receipts.take(HandReceipt(sign(RECEIPT, b"{}", [world.coordinator]).encode())) is None
    assert desk.journaled() == 0


def test_a_receipt_that_is_refused_again_and_again_is_one_line_a_minute(desk: Desk, folder: Path) -> None:
    log = Log(folder / "refused.log", desk.world.clock)
    desk.receipts._log = log
    for number in range(50):
        desk.handed(replace(desk.genuine, attempt=2, seq=number))
        stranger = NodeName(f"stranger-{number}.gz.example/node-a")
        desk.handed(replace(desk.genuine, node=stranger, log=f"{stranger}/journal/1"))
    log.close()
    lines = (folder / "refused.log").read_text().splitlines()
    assert [line.split()[2:4] for line in lines] == [
        ["unknown-attempt", f"peer={desk.genuine.node}"],
        ["not-in-roster", f"job={desk.genuine.job}"],
    ]


def test_a_node_that_takes_no_part_is_refused_also_about_a_job_that_is_known_here(desk: Desk) -> None:
    home = desk.world.homes["police"]
    own = replace(desk.genuine, node=home.name, log=home.origin)
    assert desk.handed(own, home.signer) == "not-a-participant"
    # The statistics department's own job: known here by its text, and it names three others.
    spec = desk.world.spec()
    without = {role: node for role, node in spec.roles.items() if "health" not in node}
    with desk.state.change() as change:
        alien = replace(spec, roles=without, inputs=spec.inputs[:2])
        change.add_job(
            alien.job_id,
            desk.world.sign_job(alien),
            requester=alien.requester,
            purpose=alien.purpose,
            received=desk.world.clock(),
        )
    assert desk.handed(replace(desk.genuine, job=alien.job_id)) == "not-a-participant"
    assert desk.journaled() == 0


def test_a_receipt_that_contradicts_an_earlier_one_is_refused_and_so_are_too_many(desk: Desk) -> None:
    assert desk.handed(desk.genuine) == ""
    other = replace(desk.genuine, sha256=Digest("sha256:" + "3" * 64))
    assert desk.handed(other) == "receipt-contradicts"
    for number in range(1, MAX_PER_ATTEMPT):
        assert desk.handed(replace(desk.genuine, release=f"{number:032x}")) == ""
    assert desk.handed(replace(desk.genuine, release="f" * 32)) == "too-many-receipts"
    assert desk.handed(desk.genuine) == ""
    assert desk.journaled() == MAX_PER_ATTEMPT


# -- what becomes of what a node owes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "later", "settled"),
    [
        ("", timedelta(), True),
        ("unknown-attempt", timedelta(), True),
        # The peer may only lack the newest roster.
        ("receipt-forged", timedelta(), False),
        ("receipt-forged", GIVE_UP + timedelta(days=1), True),
    ],
)
def test_a_receipt_is_owed_until_its_receiver_has_said_something_final(
    desk: Desk, code: str, later: timedelta, settled: bool
) -> None:
    payload = desk.genuine.encode()
    digest = sha256_digest(payload)
    with desk.state.change() as change:
        change.add_receipt(digest, COORDINATOR, payload)
    [due] = [one for one in desk.state.receipts_due() if one.sha256 == digest]
    desk.world.clock.at += later

    async def play() -> None:
        async def answer(message: ControlRequest) -> None:
            wrong = ReceiptKept("sha256:" + "0" * 64, "")
            kept = wrong if not said else ReceiptKept(digest, code)
            said.append(kept)
            letters.take(Letter(message.letter.id, message.letter.to, kept))

        said: list[ReceiptKept] = []
        log = Log(None, desk.world.clock)
        letters = Letters(answer, lambda _: None, lambda *_: None, rand=secrets.token_bytes, log=log)
        desk.receipts._letters = letters
        # An answer about another receipt settles nothing.
        await desk.receipts._hand(due)
        assert due in desk.state.receipts_due()
        await desk.receipts._hand(due)
        assert (due not in desk.state.receipts_due()) == settled

    asyncio.run(play())
