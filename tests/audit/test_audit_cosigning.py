"""Gathering cosignatures in virtual time, from honest, slow, absent and lying witnesses, by a lying relay."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import Place
from witnessing import (
    LOG_VKEY,
    ORIGIN,
    START,
    Clock,
    FakeJournal,
    Relay,
    Witness,
    branch,
    inline,
    keys_of,
    proof,
    run,
    signed,
)

from audit.cosigning import LONGEST_REST_S, MAX_ANSWER_BYTES, Cosigner, Trouble
from audit.note import Checkpoint, Note, NoteSignature, VerifierKey, verify_note
from audit.witness import encode_request
from protocols.errors import MinshuError, Unreachable

B, C, D, E = (f"{name}.gz.example/node" for name in ("health", "housing", "statistics", "education"))
FIVE_MINUTES = 300.0


class Site:
    """A log, its witnesses, what carries between them, and what was reported."""

    def __init__(self, *names: str, needed: int, relay: type[Relay] = Relay, **journal: Any) -> None:
        self.clock = Clock()
        self.witnesses = [Witness(name, self.clock) for name in names]
        self.relay = relay(*self.witnesses)
        self.journal = FakeJournal(**journal)
        self.troubles: list[Trouble] = []
        self.needed = needed

    def __getitem__(self, name: str) -> Witness:
        return self.relay.witnesses[name]

    @property
    def nodes(self) -> dict[str, Sequence[str]]:
        return {witness.name: witness.vkeys for witness in self.witnesses}

    @asynccontextmanager
    async def cosigner(self, **other: Any) -> AsyncIterator[Cosigner]:
        cosigner = Cosigner(
            self.journal,
            self.relay,
            self.clock,
            report=self.troubles.append,
            monotonic=asyncio.get_running_loop().time,
            in_thread=inline,
            **other,
        )
        cosigner.set_witnesses(self.nodes, self.needed)
        running = asyncio.create_task(cosigner.run())
        try:
            yield cosigner
            assert not running.done() or running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        assert self.relay.busy == set(), "no request outlives its cosigner"

    def asked(self, name: str = "") -> list[float]:
        return [round(at, 2) for at, asked in self.relay.asked if name in ("", asked)]

    def codes(self) -> list[tuple[str, str]]:
        return [(trouble.code, trouble.witness) for trouble in self.troubles]


def test_with_its_quorum_a_checkpoint_is_covered_and_stored():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        async with site.cosigner() as cosigner:
            site.journal.grow(5)
            await cosigner.until(5, FIVE_MINUTES)
            assert (cosigner.covered, site.journal.cosigned_size, cosigner.uncovered_s) == (5, 5, 0.0)
            await asyncio.sleep(5)
        keys = [LOG_VKEY, *(witness.keys.vkeys[0] for witness in site.witnesses)]
        assert set(verify_note(site.journal.notes[5].encode(), keys)[1]) == set(keys)
        # Stored when there were enough, and once more when all were there.
        assert [(size, quorum) for size, _, quorum in site.journal.added][-1] == (5, True)
        assert len(site.journal.added) <= 2
        assert (site.codes(), len(site.asked())) == ([], 3)

    run(main())


def test_one_organisation_short_of_a_quorum_covers_nothing():
    async def main() -> None:
        site = Site(B, C, D, needed=3)
        site.relay.down = {D}
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable) as caught:
                await cosigner.until(1, FIVE_MINUTES)
            assert caught.value.code == "no-quorum"
            assert (cosigner.covered, site.journal.cosigned_size) == (0, 0)
            assert cosigner.troubles == {D: "witness-unanswered"}
            # What there is stands in the folder all the same.
            assert site.journal.added == [(1, frozenset(f"{name}/witness/1" for name in (B, C)), False)]

    run(main())


def test_two_nodes_of_one_organisation_are_one_vote():
    async def main() -> None:
        site = Site(B, f"{B}-2", C, needed=2)
        site.relay.down = {C}
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, FIVE_MINUTES)
            site.relay.down.clear()
            await cosigner.until(1, FIVE_MINUTES)

    run(main())


def test_while_nobody_waits_there_is_one_round_a_second_whatever_is_published():
    async def main() -> None:
        site = Site(B, C, needed=2)
        async with site.cosigner() as cosigner:
            for _ in range(100):
                site.journal.grow()
                await asyncio.sleep(0.05)
            await asyncio.sleep(2)
            assert cosigner.covered == 100
            assert 5 <= len(site.asked(B)) <= 7
            await asyncio.sleep(3600)
            assert len(site.asked(B)) <= 7, "nothing new, nobody is asked"

    run(main())


def test_whoever_waits_is_served_at_once_and_a_hundred_share_a_round():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        loop = asyncio.get_running_loop()
        async with site.cosigner() as cosigner:
            took = []

            async def record() -> None:
                size, began = site.journal.grow(), loop.time()
                await cosigner.until(size, FIVE_MINUTES)
                took.append(loop.time() - began)

            for _ in range(5):
                await record()
            assert max(took) < 0.05, "not once a second, but once a round trip"
            before = len(site.asked(B))
            await asyncio.gather(*(record() for _ in range(100)))
            assert max(took) < 0.1
            assert len(site.asked(B)) - before <= 2
            assert cosigner.covered == 105

    run(main())


def test_what_is_published_during_a_round_is_covered_by_the_next():
    async def main() -> None:
        site = Site(B, C, needed=2)
        site.relay.delays = {B: 0.5, C: 0.5}
        async with site.cosigner() as cosigner:
            site.journal.grow()
            first = asyncio.create_task(cosigner.until(1, FIVE_MINUTES))
            await asyncio.sleep(0.1)
            site.journal.grow(3)
            await asyncio.gather(first, cosigner.until(4, FIVE_MINUTES))
            assert [size for size, _, quorum in site.journal.added if quorum][::1] == [1, 4]
            assert site.asked(B) == [0.0, 0.5]

    run(main())


def test_a_slow_witness_holds_up_nobody_and_is_asked_for_the_newest_next():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        site.relay.delays[D] = 8.0
        async with site.cosigner() as cosigner:
            for size in range(1, 6):
                site.journal.grow()
                await cosigner.until(size, 1.0)
            await asyncio.sleep(20)
            assert site[D].size == 5
            assert site.asked(D) == [0.0, 8.0]
            assert cosigner.troubles == {}
            assert site.journal.notes[5].signatures[-1].name == f"{D}/witness/1", "late, but it is kept"

    run(main())


def test_an_absent_witness_is_asked_less_and_less_often_and_again_when_the_link_is_back():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        site.relay.down = {D}
        async with site.cosigner(timeout_s=1.0) as cosigner:
            site.journal.grow()
            await cosigner.until(1, 1.0)
            await asyncio.sleep(600)
            asked = site.asked(D)
            rests = [round(later - earlier - 1.0) for earlier, later in itertools.pairwise(asked)]
            assert rests[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
            assert max(rests) == LONGEST_REST_S
            assert site.codes() == [("witness-unanswered", D)], "reported once"
            site.relay.down.clear()
            cosigner.reconnected()
            await asyncio.sleep(1.1)
            assert (site[D].size, cosigner.troubles) == (1, {})
            # Its failures are forgotten: the next rest is a short one again.
            site.relay.down = {D}
            site.journal.grow()
            await asyncio.sleep(10)
            assert len(site.asked(D)) - len(asked) >= 3

    run(main())


def test_a_witness_that_knows_another_size_is_asked_again_from_there():
    async def main() -> None:
        site = Site(B, C, D, needed=3, leaves=FakeJournal().leaves)
        site.journal.grow(9)
        history = site.journal.leaves
        for name, size in ((B, 4), (C, 9)):
            assert site[name].answer(encode_request(0, [], signed(history[:size]))).status == 200
        async with site.cosigner() as cosigner:
            await cosigner.until(9, 1.0)
        assert {name: len(site.asked(name)) for name in (B, C, D)} == {B: 2, C: 2, D: 1}
        assert site.codes() == []

    run(main())


def test_after_a_restart_what_was_covered_stays_covered_and_the_rest_is_asked_for():
    async def main() -> None:
        site = Site(B, C, needed=2)
        async with site.cosigner() as cosigner:
            site.journal.grow(3)
            await cosigner.until(3, 1.0)
        asked = len(site.asked())
        async with site.cosigner() as cosigner:
            assert cosigner.covered == 3
            await cosigner.until(3, 0.0)
            await asyncio.sleep(10)
            assert len(site.asked()) == asked
        site.journal.grow(2)
        async with site.cosigner() as cosigner:
            await cosigner.until(5, 1.0)
        assert len(site.asked()) == asked + 2, "from the size that was covered, at the first attempt"

    run(main())


def test_a_cosigner_goes_on_where_it_was_cancelled():
    async def main() -> None:
        site = Site(B, C, needed=2)
        site.journal.grow()
        cosigner = Cosigner(
            site.journal, site.relay, site.clock, monotonic=asyncio.get_running_loop().time, in_thread=inline
        )
        cosigner.set_witnesses(site.nodes, 2)
        for seconds in (0.005, 0.0, 5.0):
            running = asyncio.create_task(cosigner.run())
            await asyncio.sleep(seconds)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert site.relay.busy == set()
        assert cosigner.covered == 1

    run(main())


def test_a_witness_that_came_back_rests_shortly_when_it_is_away_again():
    async def main() -> None:
        site = Site(B, C, needed=1)
        async with site.cosigner(timeout_s=1.0) as cosigner:
            for _ in range(2):
                site.relay.down = {C}
                began = len(site.asked(C))
                site.journal.grow()
                await asyncio.sleep(100)
                rests = [
                    later - earlier - 1.0 for earlier, later in itertools.pairwise(site.asked(C)[began:])
                ]
                assert [round(rest) for rest in rests[:4]] == [1, 2, 4, 8]
                site.relay.down.clear()
                await asyncio.sleep(LONGEST_REST_S + 1)
                assert (cosigner.troubles, site[C].size) == ({}, site.journal.published)

    run(main())


def test_a_witness_that_saw_a_later_checkpoint_of_ours_is_asked_for_the_next():
    async def main() -> None:
        site = Site(B, C, needed=2)
        site.journal.grow(9)
        for witness in site.witnesses:
            witness.answer(encode_request(0, [], signed(site.journal.leaves)))
        # The log had published nine entries, and is asked about while it shows five again.
        leaves, site.journal.leaves = site.journal.leaves, site.journal.leaves[:5]
        async with site.cosigner() as cosigner:
            await asyncio.sleep(0.005)
            site.journal.leaves = leaves
            await cosigner.until(9, 5.0)
            assert (site.codes(), site.journal.added[-1][0]) == ([], 9)

    run(main())


def test_a_witness_that_saw_more_than_there_is_is_reported_and_believed_in_nothing():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        site.journal.grow(7)
        # A backup: the witness cosigned nine entries, of which the log has seven.
        full = FakeJournal()
        full.grow(9)
        site[D].answer(encode_request(0, [], signed(full.leaves)))
        async with site.cosigner() as cosigner:
            await cosigner.until(7, 1.0)
            assert site.troubles == [Trouble("witness-ahead", D, 9)]
            assert cosigner.troubles == {D: "witness-ahead"}
            # It goes on otherwise: two new entries make nine, with another root.
            site.journal.leaves += branch("again", 2)
            await cosigner.until(9, 5.0)
            await asyncio.sleep(10)
            assert cosigner.troubles == {D: "witness-conflict"}
            assert site[D].size == 9

    run(main())


@pytest.mark.parametrize("longer", [False, True])
def test_a_restored_backup_that_goes_on_otherwise_gets_no_quorum(longer):
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        async with site.cosigner() as cosigner:
            site.journal.grow(8)
            await cosigner.until(8, 1.0)
            await asyncio.sleep(5)
        backup = FakeJournal(site.journal.leaves[:5])
        backup.leaves += branch("again", 6 if longer else 3)
        site.journal = backup
        async with site.cosigner() as cosigner:
            with pytest.raises(Unreachable):
                await cosigner.until(6, FIVE_MINUTES)
            assert set(cosigner.troubles.values()) == {"witness-conflict"}
            assert (cosigner.covered, backup.added) == (0, [])
        assert {witness.size for witness in site.witnesses} == {8}

    run(main())


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b"", "witness-bad-request"), (403, b"", "witness-unknown-key"),
        (404, b"", "witness-unknown-log"), (422, b"", "witness-conflict"),
        (409, b"0\n", "witness-conflict"), (409, b"2\n", "witness-ahead"),
        (409, b"", "witness-bad-answer"), (409, b"01\n", "witness-bad-answer"),
        (409, b"1", "witness-bad-answer"), (409, b"-1\n", "witness-bad-answer"),
        (409, b"9" * 19 + b"\n", "witness-bad-answer"), (409, b"9" * 10**6 + b"\n", "witness-bad-answer"),
        (409, "１\n".encode(), "witness-bad-answer"), (200, b"", "witness-bad-answer"),
        (200, b"\xff\n", "witness-bad-answer"), (200, b"\n" * 10**6, "witness-bad-answer"),
        (200, "— x AAAAAAAA\n".encode(), "witness-bad-answer"), (500, b"", "witness-bad-answer"),
        (302, b"elsewhere", "witness-bad-answer"), (0, b"", "witness-bad-answer"),
    ],
    ids=lambda value: str(value[:12]) if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_every_other_answer_is_a_trouble_with_its_code_and_no_vote(status, body, code):
    class Saying(Relay):
        def passes_on(self, name: str, asked: bytes) -> tuple[int, bytes]:
            return (status, body) if name == D else super().passes_on(name, asked)

    async def main() -> None:
        site = Site(B, C, D, needed=3, relay=Saying)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, FIVE_MINUTES)
            assert site.codes() == [(code, D)]
            assert len(site.asked(D)) < 15, "and it rests in between"

    run(main())


def test_a_witness_that_names_ever_other_sizes_is_left_in_peace_after_three_requests():
    class Wavering(Relay):
        def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
            return (409, b"3\n" if body.startswith(b"old 0\n") else b"0\n")

    async def main() -> None:
        site = Site(B, needed=1, relay=Wavering)
        site.journal.grow(5)
        async with site.cosigner():
            await asyncio.sleep(0.9)
            assert len(site.asked()) == 3
            assert site.codes() == [("witness-bad-answer", B)]

    run(main())


def test_a_cosignature_from_the_future_does_not_count_until_its_time_comes():
    async def main() -> None:
        site = Site(B, C, needed=2)
        site[C].ahead = timedelta(minutes=30)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, FIVE_MINUTES)
            assert cosigner.troubles == {C: "witness-clock"}
            site[C].ahead = timedelta(minutes=9)
            await cosigner.until(1, FIVE_MINUTES)

    run(main())


def test_a_cosignature_dated_before_it_was_asked_for_is_no_vote():
    """Auditors go by these times: one witness that dates its lines back would fail an honest log."""

    async def main() -> None:
        site = Site(B, C, D, needed=3)
        site[C].ahead = -timedelta(minutes=6)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, 30.0)
            assert cosigner.troubles == {C: "witness-clock"}
            site[C].ahead = -timedelta(minutes=4)  # clocks differ
            await cosigner.until(1, FIVE_MINUTES)
        names = {line.name for line in site.journal.notes[1].signatures}
        assert names == {ORIGIN, *(f"{name}/witness/1" for name in (B, C, D))}

    run(main())


def test_both_kinds_of_cosignature_are_kept_and_ml_dsa_alone_is_no_answer():
    class Stripping(Relay):
        strip = False

        def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
            status, answer = super().passes_on(name, body)
            return status, answer.split(b"\n", 1)[1] if self.strip else answer

    async def main() -> None:
        site = Site(B, needed=1, relay=Stripping)
        site.witnesses[0].mldsa = True
        site.witnesses[0].__post_init__()
        ed25519, mldsa = site[B].keys.vkeys
        async with site.cosigner() as cosigner:
            site.journal.grow()
            await cosigner.until(1, 1.0)
            assert verify_note(site.journal.notes[1].encode(), [ed25519, mldsa])[1] == (ed25519, mldsa)
            site.relay.strip = True
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(2, FIVE_MINUTES)
            assert cosigner.troubles == {B: "witness-bad-answer"}

    run(main())


def test_a_witness_key_that_bears_the_logs_name_is_no_vote():
    async def main() -> None:
        site = Site(B, C, needed=2)
        imposing = VerifierKey(ORIGIN, 4, site[C].keys.vkeys[0].public_key)
        site[C].keys = keys_of(C).__class__(ORIGIN, site[C].keys.ed25519)
        site[C].vkeys = (str(imposing),)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, 60.0)
            assert {names for _, names, _ in site.journal.added} == {frozenset({f"{B}/witness/1"})}

    run(main())


def test_lines_that_cannot_be_stored_cover_nothing_until_they_are():
    async def main() -> None:
        site = Site(B, C, needed=2)
        site.journal.fails = ["journal-write-failed"] * 3
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, 1.5)
            assert cosigner.covered == 0
            await cosigner.until(1, 10.0)
            assert site.troubles == [Trouble("journal-write-failed", "", 1)], "reported once"
            assert site.journal.cosigned_size == 1

    run(main())


def test_the_age_of_what_is_not_covered_is_that_of_its_oldest_entry():
    async def main() -> None:
        site = Site(B, C, needed=2)
        async with site.cosigner() as cosigner:
            assert cosigner.uncovered_s == 0.0
            site.relay.down = {B, C}
            site.journal.grow()
            await asyncio.sleep(100)
            site.journal.grow()
            assert 99 <= cosigner.uncovered_s < 100.1
            site.relay.down = {C}
            await asyncio.sleep(100)
            assert 199 <= cosigner.uncovered_s < 200.1
            site.relay.down.clear()
            cosigner.reconnected()
            await cosigner.until(2, 20.0)
            assert cosigner.uncovered_s == 0.0
            await asyncio.sleep(5)
            # One entry is covered while a later one waits: the age becomes the later one's.
            site.relay.delays = {B: 9.0, C: 9.0}
            site.journal.grow()
            await asyncio.sleep(5)
            site.journal.grow()
            await asyncio.sleep(7)
            assert cosigner.covered == 3
            assert 6 <= cosigner.uncovered_s < 7.1

    run(main())


def test_what_was_covered_stays_covered_only_by_what_the_present_witnesses_signed():
    async def main() -> None:
        site = Site(B, C, D, needed=2)
        site.relay.down = {D}
        async with site.cosigner() as cosigner:
            site.journal.grow(4)
            await cosigner.until(4, 1.0)
            await asyncio.sleep(20)
            for names, needed, covered in (
                ((B, C), 2, 4), ((B, C, D), 1, 4), ((B, C, D), 3, 0),
                ((B, D), 2, 0), ((D,), 1, 0), ((B,), 1, 4),
            ):  # fmt: skip
                cosigner.set_witnesses({name: site.nodes[name] for name in names}, needed)
                assert cosigner.covered == covered
                await asyncio.sleep(20)
                assert cosigner.covered == covered
                assert (cosigner.uncovered_s > 10) == (covered == 0)
            cosigner.set_witnesses(site.nodes, 3)
            site.relay.down.clear()
            await cosigner.until(4, LONGEST_REST_S)
            # The same holds after a restart: what counts is what is stored, also for who waits already.
            again = Cosigner(site.journal, site.relay, site.clock)
            waiting = asyncio.create_task(again.until(4, 1.0))
            await asyncio.sleep(0.5)
            again.set_witnesses(site.nodes, 3)
            await waiting
            assert again.covered == 4

    run(main())


def test_other_witnesses_or_another_quorum_hold_for_everything_not_covered_yet():
    async def main() -> None:
        site = Site(B, C, D, E, needed=3)
        site.relay.down = {D, E}
        async with site.cosigner() as cosigner:
            site.journal.grow()
            await asyncio.sleep(30)
            assert cosigner.covered == 0
            asked = len(site.asked(B))
            cosigner.set_witnesses(site.nodes, 3)
            await asyncio.sleep(0.5)
            assert len(site.asked(B)) == asked, "nothing changed"
            cosigner.set_witnesses(site.nodes, 2)
            await cosigner.until(1, 1.0)
            # Two of them are no witnesses any more: nobody asks them, and they count for nothing.
            cosigner.set_witnesses({name: site.nodes[name] for name in (B, C)}, 2)
            asked = len(site.asked(D)) + len(site.asked(E))
            site.journal.grow()
            await cosigner.until(2, 1.0)
            await asyncio.sleep(600)
            assert len(site.asked(D)) + len(site.asked(E)) == asked
            assert set(cosigner.quorums[0].vkeys) == {B.split("/")[0], C.split("/")[0]}
            cosigner.set_witnesses({}, 1)
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(3, FIVE_MINUTES)

    run(main())


def test_a_quorum_that_changes_while_lines_are_stored_is_asked_for_anew():
    async def main() -> None:
        site = Site(B, C, D, needed=1)
        site.relay.down = {C, D}
        storing = asyncio.Event()

        async def slowly(work: Any) -> Any:
            if work.func.__name__ == "add_cosignatures":
                storing.set()
                await asyncio.sleep(5)
            return work()

        cosigner = Cosigner(
            site.journal,
            site.relay,
            site.clock,
            monotonic=asyncio.get_running_loop().time,
            in_thread=slowly,
        )
        cosigner.set_witnesses(site.nodes, 1)
        site.journal.grow()
        running = asyncio.create_task(cosigner.run())
        await storing.wait()
        cosigner.set_witnesses(site.nodes, 2)
        await asyncio.sleep(30)
        assert cosigner.covered == 0
        site.relay.down = {D}
        cosigner.reconnected()
        await cosigner.until(1, 30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(main())


def test_a_journal_that_cannot_be_read_ends_the_cosigner():
    class Broken(FakeJournal):
        def consistency_proof(self, old: int, size: int) -> list[bytes]:
            raise MinshuError("a tile is damaged", code="journal-damaged")

    async def main() -> None:
        site = Site(B, needed=1)
        journal = Broken(branch("a", 3))
        cosigner = Cosigner(journal, site.relay, site.clock, in_thread=inline)
        cosigner.set_witnesses(site.nodes, 1)
        with pytest.raises(ExceptionGroup) as caught:
            await cosigner.run()
        assert [error.code for error in caught.value.exceptions] == ["journal-damaged"]

    run(main())


# -- a relay that lies ---------------------------------------------------------------------------------------


class Hostile(Relay):
    """Answers with whatever it ever heard from anybody, bent as the test says."""

    moves: list[tuple[str, int]]

    def __init__(self, *witnesses: Witness) -> None:
        super().__init__(*witnesses)
        self.heard: list[tuple[int, bytes]] = [(409, b"0\n"), (409, b"7\n"), (422, b""), (404, b"")]
        self.moves = []

    def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
        move, draw = self.moves.pop(0) if self.moves else ("honest", 0)
        if move == "lose request":
            raise Unreachable("lost")
        if move == "replay":
            return self.heard[draw % len(self.heard)]
        if move == "another asked":
            names = sorted(self.witnesses)
            name = names[draw % len(names)]
        if move == "another proof":
            body = body.replace(b"\n\n", b"\n" + b"A" * 43 + b"=\n\n", 1)
        if move == "another old":
            body = b"old %d" % (draw % 9) + body[body.index(b"\n") :]
        status, answer = super().passes_on(name, body)
        self.heard.append((status, answer))
        if move == "lose answer":
            raise Unreachable("lost")
        if move == "truncate":
            answer = answer[: draw % (len(answer) + 1)]
        if move == "repeat":
            answer *= 2 + draw % 5000
        if move == "flip" and answer:
            bent = bytearray(answer)
            bent[draw % len(bent)] ^= 1 << draw % 8
            answer = bytes(bent)
        if move == "mix":
            answer += b"".join(heard for _, heard in self.heard[-4:])
        if move == "status":
            status = (200, 409, 404, 0, 2**31)[draw % 5]
        return status, answer


MOVES = st.tuples(
    st.sampled_from(
        ["honest", "replay", "another asked", "another proof", "another old", "truncate", "repeat", "flip",
         "mix", "status", "lose request", "lose answer"]
    ),
    st.integers(0, 2**16),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(MOVES, max_size=60), st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_whatever_a_relay_does_nothing_counts_that_a_quorum_did_not_cosign(moves, growth):
    async def main() -> None:
        site = Site(B, C, D, needed=2, relay=Hostile)
        site.relay.moves = list(moves)
        async with site.cosigner(timeout_s=1.0) as cosigner:
            for count in growth:
                size = site.journal.grow(count)
                try:
                    await cosigner.until(size, 20.0)
                except Unreachable:
                    assert cosigner.covered < size
                # Safe: so many witnesses really stand there, and the stored lines are theirs.
                assert sum(witness.size >= cosigner.covered for witness in site.witnesses) >= 2
                if cosigner.covered:
                    note = site.journal.notes[cosigner.covered]
                    assert all(quorum.reached(note) for quorum in cosigner.quorums)
                    assert Checkpoint.decode(note.text).size == cosigner.covered
                for each in site.journal.notes.values():
                    keys = [key for witness in site.witnesses for key in witness.keys.vkeys]
                    assert len(verify_note(each.encode(), [LOG_VKEY, *keys])[1]) == len(each.signatures)
            # Live: as soon as it only relays, everything is covered within the longest rest.
            site.relay.moves.clear()
            await cosigner.until(size, LONGEST_REST_S + 20)

    run(main())


def test_an_old_answer_replayed_for_ever_covers_nothing_new():
    class Stale(Relay):
        first: tuple[int, bytes] | None = None

        def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
            if self.first is None:
                self.first = super().passes_on(name, body)
            return self.first

    async def main() -> None:
        site = Site(B, needed=1, relay=Stale)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            await cosigner.until(1, 1.0)
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(2, FIVE_MINUTES)
            assert cosigner.covered == 1

    run(main())


def test_swapped_answers_count_for_neither_witness():
    class Swapping(Relay):
        def passes_on(self, name: str, body: bytes) -> tuple[int, bytes]:
            return super().passes_on({B: C, C: B}[name], body)

    async def main() -> None:
        site = Site(B, C, needed=1, relay=Swapping)
        async with site.cosigner() as cosigner:
            site.journal.grow()
            with pytest.raises(Unreachable):
                await cosigner.until(1, FIVE_MINUTES)
            assert set(cosigner.troubles.values()) == {"witness-bad-answer"}
            assert site.journal.added == []

    run(main())


def test_thousands_of_lines_and_megabytes_are_refused_before_they_are_looked_at():
    site = Site(B, needed=1)
    site.journal.grow()
    text = Note.decode(site.journal.checkpoint()).text
    good = str(site[B].sign(text)[0]).encode()
    forged = good.replace(good[-12:-4], b"AAAAAAAA")
    long = str(NoteSignature("elsewhere", b"abcd", bytes(MAX_ANSWER_BYTES))).encode()
    for body in (
        forged * 99 + good,
        good * 101,
        good * 50_000,
        good + long,
        b"\xe2" * 10**7,
    ):

        class Flooding(Relay):
            def passes_on(self, name: str, asked: bytes, body: bytes = body) -> tuple[int, bytes]:
                return 200, body

        async def main() -> int:
            flooded = Site(B, needed=1, relay=Flooding)
            flooded.journal = FakeJournal(site.journal.leaves)
            async with flooded.cosigner() as cosigner:
                await asyncio.sleep(0.5)
                return cosigner.covered

        # A hundred lines are an answer, though ninety-nine are forged; no more than that is.
        assert run(main()) == (1 if body.count(b"\n") == 100 else 0)


# -- with the real journal -----------------------------------------------------------------------------------


def test_a_real_journal_gets_its_quorum_in_real_time(tmp_path: Path):
    place = Place(tmp_path)
    witnesses = [Witness(name, Clock(START), mldsa=True) for name in (B, C, D)]
    with place.open() as journal:
        log = VerifierKey.parse(journal.vkey)
        for witness in witnesses:
            witness.answer = answering(witness, log)
        relay = Relay(*witnesses, delay_s=0.0)

        async def main() -> None:
            cosigner = Cosigner(journal, relay, place.clock, every_s=0.05)
            cosigner.set_witnesses({each.name: each.vkeys for each in witnesses}, 2)
            running = asyncio.create_task(cosigner.run())
            for _ in range(5):
                await asyncio.to_thread(place.fill, journal, 70)
                await cosigner.until(journal.published, 20.0)
                assert cosigner.covered == journal.cosigned_size == journal.published
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(main())
        size = journal.published
    cosigned = (place.directory / "checkpoint.cosigned").read_bytes()
    keys = [witness.keys.vkeys[0] for witness in witnesses]
    note, signers = verify_note(cosigned, [log, *keys])
    assert Checkpoint.decode(note.text).size == size
    assert signers[0] == log
    assert len(signers) >= 3
    older = Note.decode((place.directory / "checkpoint.old").read_bytes())
    assert Checkpoint.decode(older.text).size < size
    with place.open() as journal:
        cosigner = Cosigner(journal, relay, place.clock)
        assert cosigner.covered == 0, "nobody says yet whose cosignatures count"
        cosigner.set_witnesses({each.name: each.vkeys for each in witnesses}, 2)
        assert cosigner.covered == size


def answering(witness: Witness, log: VerifierKey) -> Any:
    from audit.witness import add_checkpoint

    return lambda body: add_checkpoint(body, known=lambda _: [log], store=witness.store, sign=witness.sign)


def test_proofs_of_the_fake_journal_are_those_of_the_rfc():
    """The fake stands in for the journal: RFC 6962 section 2.1.3 gives these proofs of seven leaves."""
    leaves = branch("a", 7)
    assert [len(proof(old, leaves)) for old in (0, 3, 4, 6, 7)] == [0, 4, 1, 3, 0]
