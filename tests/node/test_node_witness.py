"""A node as a witness: it cosigns what goes on from what it saw, and keeps what contradicts that."""

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from simulator import COORDINATOR, START, Crash, World, running, until

from audit.log import Journal
from audit.note import (
    COSIGNATURE,
    ML_DSA_44,
    Checkpoint,
    Note,
    NoteSignature,
    VerifierKey,
    cosigned_at,
    sign_note,
)
from audit.quorum import cosigners
from audit.witness import NO_CONSISTENCY_PROOF, SPLIT_VIEW, encode_request
from minshu.v1 import audit_pb2
from node.activation import InForce
from node.home import Home
from node.journal import open_journal
from node.letters import Later
from node.logs import Log
from node.rpc import AddCheckpoint, AskHead, Cosigned
from node.state import Change, State
from node.witness import MAX_CONFLICTS, NEW_AT_ONCE, NEW_PER_S, READY_S, SAME_S, Witness
from protocols.encoding import sha256_digest
from protocols.envelope import HEAD, decode_envelope, key_id, verify
from protocols.errors import StateConflict
from protocols.wire import Head

NONCE = bytes(range(32))


@dataclass
class Bench:
    """The health department's witness, and the journal of the police to be cosigned."""

    world: World
    state: State
    witness: Witness
    log: Journal
    known: int = 0

    def grow(self, count: int = 1) -> None:
        for _ in range(count):
            self.log.record("clock.step", {})

    def ask(self, log: Journal | None = None, *, old: int | None = None) -> Cosigned | None:
        """Ask for the newest checkpoint of a journal, from what the witness has seen or from `old`."""
        answer = self.asked(log, old=old)
        assert not isinstance(answer, Later)
        return answer

    def asked(self, log: Journal | None = None, *, old: int | None = None) -> Cosigned | Later | None:
        journal = log or self.log
        start = self.known if old is None else old
        proof = journal.consistency_proof(start, journal.published)
        body = encode_request(start, proof, journal.checkpoint())
        return self.witness.cosign(COORDINATOR, AddCheckpoint(body))

    def cosigned(self) -> Cosigned:
        """Ask as an honest log does; the answer is yes."""
        answer = self.ask()
        assert answer is not None
        assert answer.status == 200
        self.known = self.log.published
        return answer

    def conflicts(self) -> list[dict[str, object]]:
        return [dict(e.body) for e in self.state.journal.entries() if e.kind == "witness.conflict"]


def witness_of(world: World, state: State, name: str = "health") -> Witness:
    home = world.homes[name]
    force = InForce.load(state, home.name, home.signer.public_key)
    force.roster = world.roster
    log = Log(None, world.clock)
    return Witness(
        state,
        force,
        home.cosigner,
        home.signer,
        trusted=world.clock,
        monotonic=world.clock.ticks,
        knows=lambda: True,
        log=log,
    )


@pytest.fixture
def bench(world: World) -> Iterator[Bench]:
    state = world.open("health")
    log = open_journal(world.homes["police"], world.clock)
    yield Bench(world, state, witness_of(world, state), log)
    log.close()
    state.close()


def fork(bench: Bench, folder: Path) -> Journal:
    """Return a second journal with the same key and history, which goes on for itself."""
    bench.log.close()
    home = bench.world.homes["police"]
    copy = Home(folder / "fork")
    shutil.copytree(home.path, copy.path)
    bench.log = open_journal(home, bench.world.clock)
    return open_journal(copy, lambda: bench.world.clock() + timedelta(seconds=1))


def test_a_checkpoint_is_cosigned_by_both_keys_that_the_roster_lists(bench: Bench) -> None:
    answer = bench.cosigned()
    lines = tuple(NoteSignature.parse(line) for line in answer.body.decode().splitlines())
    note = Note.decode(bench.log.checkpoint()).with_lines(lines)
    listed = bench.world.roster.node(bench.world.homes["health"].name)
    assert listed is not None
    keys = [VerifierKey.parse(line) for line in listed.witness_vkeys]
    assert [key.type for key in keys] == [COSIGNATURE, ML_DSA_44]
    assert cosigners(note, keys, START) == set(keys)


def test_what_was_cosigned_last_outlives_the_process(bench: Bench) -> None:
    bench.cosigned()
    bench.state.close()
    bench.state = bench.world.open("health")
    bench.witness = witness_of(bench.world, bench.state)
    again = bench.ask(old=0)
    assert again is not None
    assert (again.status, again.body) == (409, b"%d\n" % bench.known)
    bench.grow()
    bench.cosigned()


def test_witnessing_writes_no_entry_and_leaves_the_checkpoint_for_auditors(bench: Bench) -> None:
    before = bench.state.journal.size
    for _ in range(3):
        bench.grow()
        bench.cosigned()
    assert bench.state.journal.size == before
    bench.witness.write()
    name = sha256_digest(bench.log.origin.encode()).removeprefix("sha256:")
    kept = Note.decode((bench.world.homes["health"].journal / "witnessed" / name).read_bytes())
    assert kept.text == Note.decode(bench.log.checkpoint()).text
    assert len(kept.signatures) == 3


def test_the_checkpoints_for_auditors_are_written_after_a_crash_too(bench: Bench) -> None:
    bench.cosigned()  # and not written: the process is gone
    witness_of(bench.world, bench.state).write()
    assert len(list((bench.world.homes["health"].journal / "witnessed").iterdir())) == 1


def test_logs_are_known_from_the_roster_and_a_nodes_own_is_none_of_them(bench: Bench) -> None:
    own = bench.ask(bench.state.journal, old=0)
    assert own is not None
    assert own.status == 404
    key = VerifierKey.parse(bench.world.roster.coordinator.journal_vkey)  # type: ignore[union-attr]  # this world's has one
    text = Checkpoint(key.name, 1, bytes(32)).encode()
    request = encode_request(0, [], sign_note(text, key, bench.world.coordinator.sign).encode())
    coordinator = bench.witness.cosign(COORDINATOR, AddCheckpoint(request))
    assert isinstance(coordinator, Cosigned)
    assert coordinator.status == 200
    stranger = replace(bench.world.roster, nodes=bench.world.roster.nodes[1:], version=2)
    bench.witness._force.roster = stranger
    unlisted = bench.ask(old=0)
    assert unlisted is not None
    assert unlisted.status == 404


def test_with_its_clock_in_doubt_a_witness_says_nothing(bench: Bench) -> None:
    bench.witness._trusted = lambda: None
    assert bench.asked() == Later(READY_S)
    assert bench.witness.head(AskHead(NONCE, bench.log.origin)) is None


@pytest.mark.parametrize("before", [True, False])
def test_a_cosignature_leaves_only_once_it_is_remembered(bench: Bench, before: bool) -> None:
    class Dying(State):
        @contextmanager
        def change(self) -> Iterator[Change]:
            with super().change() as change:
                yield change
                if before:
                    raise Crash
            raise Crash

    bench.state.__class__ = Dying
    with pytest.raises(Crash):
        bench.ask()
    bench.state.__class__ = State
    assert (bench.state.witness_head(bench.log.origin) is None) == before
    # Asked again by a log that got no answer, it gives one, and never one that goes back.
    bench.known = 0 if before else bench.log.published
    bench.cosigned()


def test_nothing_is_answered_while_the_disk_is_full(bench: Bench) -> None:
    class Full(State):
        @contextmanager
        def change(self) -> Iterator[Change]:
            raise StateConflict("no space left", code="journal-write-failed")
            yield

    bench.state.__class__ = Full
    with pytest.raises(StateConflict):
        bench.ask()
    bench.state.__class__ = State
    assert bench.state.witness_head(bench.log.origin) is None


def test_a_witness_that_does_not_know_its_own_heads_cosigns_nothing_but_says_what_it_saw(
    bench: Bench,
) -> None:
    """Put back to an older copy it has forgotten what it cosigned; and all may start at the same time."""
    bench.cosigned()
    bench.witness._knows = lambda: False
    bench.grow()
    assert bench.asked() == Later(READY_S)
    assert bench.witness.head(AskHead(NONCE, bench.log.origin)) is not None
    bench.witness._knows = lambda: True
    bench.cosigned()


# -- what one log may ask ----------------------------------------------------------------------------------


def test_the_same_checkpoint_is_signed_once_in_a_while_and_its_time_stays_near_the_present(
    bench: Bench,
) -> None:
    first = bench.cosigned()
    bench.world.clock.at += SAME_S
    assert [bench.ask() for _ in range(3)] == [first] * 3
    bench.world.clock.at += timedelta(seconds=1)
    later = bench.ask()
    assert later is not None
    lines = [NoteSignature.parse(line) for line in later.body.decode().splitlines()]
    assert {cosigned_at(line.signature) for line in lines} == {int(bench.world.clock().timestamp())}


def test_a_log_that_shows_too_many_new_checkpoints_waits_for_its_turn_and_no_other_does(
    bench: Bench,
) -> None:
    for _ in range(NEW_AT_ONCE):
        bench.grow()
        bench.cosigned()
    bench.grow()
    before = bench.state.witness_head(bench.log.origin)
    assert [bench.asked() for _ in range(3)] == [Later(1 / NEW_PER_S)] * 3
    assert bench.state.witness_head(bench.log.origin) == before
    with open_journal(bench.world.homes["statistics"], bench.world.clock) as other:
        answer = bench.ask(other, old=0)
        assert answer is not None
        assert answer.status == 200
    bench.world.clock.at += timedelta(seconds=1 / NEW_PER_S)
    bench.cosigned()


# -- two views of one log ----------------------------------------------------------------------------------


def test_p5_a_split_view_is_refused_and_both_checkpoints_are_kept_as_evidence(
    bench: Bench, folder: Path
) -> None:
    other = fork(bench, folder)
    with other:
        bench.grow(2)
        other.record("clock.step", {})
        other.record("clock.step", {"step_ms": 1})
        bench.cosigned()
        assert other.published == bench.log.published
        refused = bench.ask(other)
        assert refused is not None
        assert (refused.status, refused.body) == (409, b"%d\n" % bench.known)
        conflicting = other.checkpoint()
    [conflict] = bench.conflicts()
    seen, shown = (
        bench.state.journal.get_object(str(conflict[key]))
        for key in ("checkpoint_sha256", "conflicting_sha256")
    )
    assert seen == bench.state.witness_head(bench.log.origin)
    assert shown is not None
    assert Note.decode(shown).text == Note.decode(conflicting).text
    root = Checkpoint.decode(Note.decode(shown).text).root.hex()
    assert conflict == {
        "log": bench.log.origin,
        "checkpoint_sha256": sha256_digest(seen or b""),
        "conflicting_sha256": sha256_digest(shown),
        "size": bench.known,
        "root": f"sha256:{root}",
        "code": "split-view",
        "peer": COORDINATOR,
    }
    # The log that was cosigned goes on; the other one stays refused.
    bench.grow()
    bench.cosigned()


def test_a_longer_fork_is_evidence_too_and_each_checkpoint_is_journaled_once(
    bench: Bench, folder: Path
) -> None:
    with fork(bench, folder) as other:
        bench.grow()
        bench.cosigned()
        for _ in range(3):
            other.record("clock.step", {"step_ms": 1})
        for _ in range(3):
            answer = bench.ask(other)
            assert answer is not None
            assert answer.status == 422
        bench.witness = witness_of(bench.world, bench.state)  # also after a restart
        bench.ask(other)
    [conflict] = bench.conflicts()
    assert conflict["code"] == "no-consistency-proof"
    assert bench.state.journal.published == bench.state.journal.size


def test_missing_proofs_are_journaled_less_often_and_never_take_a_split_views_place(
    bench: Bench, folder: Path
) -> None:
    """Whoever holds honest checkpoints can show each without its proof, which proves nothing."""
    unproven, proven = MAX_CONFLICTS[NO_CONSISTENCY_PROOF], MAX_CONFLICTS[SPLIT_VIEW]
    assert unproven < proven
    with fork(bench, folder) as other:
        bench.grow()
        bench.cosigned()
        while other.published <= bench.known:
            other.record("clock.step", {"step_ms": 1})
        for _ in range(unproven + 3):
            other.record("clock.step", {"step_ms": 1})
            refused = bench.ask(other)
            assert refused is not None
            assert refused.status == 422
        assert [conflict["code"] for conflict in bench.conflicts()] == [NO_CONSISTENCY_PROOF] * unproven
        for _ in range(proven + 1):
            while bench.log.published < other.published:
                bench.grow()
            bench.cosigned()
            split = bench.ask(other)
            assert split is not None
            assert split.status == 409
            other.record("clock.step", {"step_ms": 1})
        codes = [conflict["code"] for conflict in bench.conflicts()][unproven:]
        assert codes == [SPLIT_VIEW] * proven
        bench.world.clock.at += timedelta(days=1)
        bench.ask(other)
        assert len(bench.conflicts()) == unproven + proven + 1


def test_p5_a_second_history_shown_through_the_coordinator_is_journaled(world: World, folder: Path) -> None:
    """The coordinator shows another history, signed by the police's own key, to a running witness."""
    copy = Home(folder / "copy")
    shutil.copytree(world.homes["police"].path, copy.path)

    async def play() -> None:
        async with running(world) as (post, stations):
            health, police = stations["health"], stations["police"]
            await until(lambda: police.state.journal.cosigned_size == police.state.journal.size)
            seen = health.state.witness_head(police.state.journal.origin)
            assert seen is not None
            with open_journal(copy, world.clock) as other:
                while other.published < police.state.journal.published:
                    other.record("clock.step", {"step_ms": 1})
                size = other.published
                body = encode_request(size, [], other.checkpoint())
            letter = audit_pb2.Letter(id="0" * 32, add_checkpoint=audit_pb2.AddCheckpoint(body=body))
            post.deliver(police.home.name, "health", letter)
            await until(lambda: bool(health.entries("witness.conflict")))
            [entry] = health.entries("witness.conflict")
            assert (entry.body["code"], entry.body["size"]) == ("split-view", size)
            for key in ("checkpoint_sha256", "conflicting_sha256"):
                assert health.state.journal.get_object(entry.body[key]) is not None
            # The others' logs, and the police's own, go on.
            police.state.journal.record("clock.step", {})
            await until(lambda: police.state.journal.cosigned_size == police.state.journal.size)

    asyncio.run(play())


# -- what a witness saw last -------------------------------------------------------------------------------


def said(bench: Bench, log: str, nonce: bytes = NONCE) -> tuple[Head, bytes]:
    answer = bench.witness.head(AskHead(nonce, log))
    assert answer is not None
    home = bench.world.homes["health"]
    key = home.signer.public_key
    envelope = decode_envelope(answer.statement)
    verify(envelope, HEAD, {key_id(key): key})
    head = Head.decode(envelope.payload)
    assert (head.nonce, head.log, head.witness, head.issued) == (nonce, log, home.name, START)
    return head, answer.checkpoint


def test_a_head_is_signed_for_its_nonce_and_comes_with_the_logs_own_checkpoint(bench: Bench) -> None:
    head, note = said(bench, bench.log.origin)
    assert (head.size, head.root, note) == (0, None, b"")
    bench.cosigned()
    head, note = said(bench, bench.log.origin, bytes(32))
    checkpoint = Checkpoint.decode(Note.decode(note).text)
    assert (head.size, head.root) == (bench.known, f"sha256:{bench.log.root().hex()}")
    assert (checkpoint.size, checkpoint.root) == (bench.known, bench.log.root())


def test_of_an_unknown_log_nothing_is_said(bench: Bench) -> None:
    assert bench.witness.head(AskHead(NONCE, "stranger.example/node-a/journal/1")) is None
    assert bench.witness.head(AskHead(NONCE, bench.state.journal.origin)) is None


# -- keys --------------------------------------------------------------------------------------------------


def test_witness_keys_are_private_made_once_and_made_for_a_home_of_before(world: World) -> None:
    home = world.homes["health"]
    files = (home.witness_pem, home.witness_mldsa_pem)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    before = home.witness_vkeys
    assert Home(home.path).witness_vkeys == before
    assert [VerifierKey.parse(line).name for line in before] == [f"{home.name}/witness/1"] * 2
    home.witness_mldsa_pem.unlink()
    made = Home(home.path).witness_vkeys
    assert made[0] == before[0]
    assert made[1] != before[1]
    assert home.witness_mldsa_pem.stat().st_mode & 0o777 == 0o600
