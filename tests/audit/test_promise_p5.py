"""P5: any rewrite of history is detected, given fewer than 2q - w dishonest witnesses of w at quorum q.

Shown with the witnesses' and the auditors' own code: honest witnesses answer by it, dishonest ones cosign
whatever they are shown, and the log, which is dishonest too, shows whatever it likes to whom it likes.
"""

import asyncio
import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from witnessing import (
    LOG_VKEY,
    ORIGIN,
    Clock,
    FakeJournal,
    Relay,
    Witness,
    branch,
    inline,
    proof,
    run,
    signed,
)

from audit.cosigning import Cosigner
from audit.note import Note, NoteSignature, verify_note
from audit.quorum import Quorum
from audit.witness import SPLIT_VIEW, Answer, Conflict, decode_request, encode_request
from policies.witnesses import default_quorum, tolerated
from protocols.errors import Unreachable

COMMON = 3
BRANCHES = {"A": branch("A", 6, COMMON), "B": branch("B", 8, COMMON)}


def request(leaves: tuple[bytes, ...], old: int) -> bytes:
    return encode_request(old, proof(old, leaves), signed(leaves))


class Dishonest(Witness):
    """Cosigns anything, again and again."""

    def answer(self, body: bytes) -> Answer:
        lines = self.sign(decode_request(body).note.text)
        return Answer(200, "".join(map(str, lines)).encode(), ORIGIN)


def name(number: int) -> str:
    return f"bureau-{number}.gz.example/node"


def show(witness: Witness, leaves: tuple[bytes, ...]) -> tuple[tuple[NoteSignature, ...], list[Conflict]]:
    """Show a history the way that gets furthest: from every size that the witness names."""
    found = []
    for _ in range(3):
        answer = witness.answer(request(leaves, min(witness.size, len(leaves))))
        if answer.conflict:
            found.append(answer.conflict)
        if answer.status == 200:
            return tuple(map(NoteSignature.parse, answer.body.decode().splitlines())), found
    return (), found


@cache
def outcomes(number: int, *, honest: bool) -> frozenset[tuple[tuple[str, NoteSignature], ...]]:
    """What a log can get out of one witness, whatever of the two branches it shows, in whatever order."""
    gained = set()
    for count in range(4):
        for shown in itertools.product("AB", repeat=count):
            witness = (Witness if honest else Dishonest)(name(number))
            show(witness, BRANCHES["A"][:COMMON])
            got = {}
            for letter in shown:
                lines, conflicts = show(witness, BRANCHES[letter])
                if lines:
                    got[letter] = lines[0]
                elif len(BRANCHES[letter]) >= witness.size:
                    # Whoever refuses has the evidence; only a smaller tree might be an old one of the same.
                    both = (conflicts[0].cosigned, conflicts[0].conflicting)
                    texts = {verify_note(data, [LOG_VKEY])[0].text for data in both}
                    assert len(texts) == 2
            gained.add(tuple(sorted(got.items())))
    return frozenset(gained)


def test_an_honest_witness_cosigns_one_branch_and_a_dishonest_one_both():
    branches = {tuple(letter for letter, _ in outcome) for outcome in outcomes(0, honest=True)}
    assert branches == {(), ("A",), ("B",)}
    branches = {tuple(letter for letter, _ in outcome) for outcome in outcomes(0, honest=False)}
    assert branches == {(), ("A",), ("B",), ("A", "B")}


@cache
def reached(quorum: int, letter: str, lines: tuple[NoteSignature, ...]) -> bool:
    note = Note.decode(signed(BRANCHES[letter]))
    vkeys = {name(n): Witness(name(n)).vkeys for n in range(5)}
    return Quorum.of_nodes(vkeys, quorum).reached(Note(note.text, (*note.signatures, *lines)))


@pytest.mark.parametrize("witnesses", range(1, 6))
def test_two_branches_get_a_quorum_exactly_if_2q_minus_w_witnesses_are_dishonest(witnesses):
    """Every w up to 5, every q, every number of dishonest ones, and everything shown to each in any order."""
    for quorum, dishonest in itertools.product(range(1, witnesses + 1), range(witnesses + 1)):
        forked = False
        each = [outcomes(n, honest=n >= dishonest) for n in range(witnesses)]
        for gained in itertools.product(*each):
            lines = {
                letter: tuple(line for outcome in gained for at, line in outcome if at == letter)
                for letter in "AB"
            }
            forked |= all(reached(quorum, letter, lines[letter]) for letter in "AB")
            if forked:
                break
        assert forked == (dishonest >= 2 * quorum - witnesses), (witnesses, quorum, dishonest)
        if 2 * quorum > witnesses:
            assert forked == (dishonest > tolerated(quorum, witnesses))


HISTORIES = [
    leaves[:size]
    for leaves in (
        branch("A", 9, 2),
        branch("B", 9, 2),
        branch("A", 4, 2) + branch("C", 9)[4:],
        branch("D", 9),
    )
    for size in range(1, 10)
]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.data())
def test_of_any_two_checkpoints_with_a_quorum_one_continues_the_other(witnesses, data):
    """Forks of forks, shown in any order, to anybody, as often as the log likes."""
    quorum = data.draw(st.integers(witnesses // 2 + 1, witnesses))
    dishonest = data.draw(st.integers(0, tolerated(quorum, witnesses)))
    them = [(Dishonest if n < dishonest else Witness)(name(n)) for n in range(witnesses)]
    shown = data.draw(
        st.lists(st.tuples(st.sampled_from(HISTORIES), st.sets(st.integers(0, witnesses - 1))), max_size=12)
    )
    lines: dict[tuple[bytes, ...], dict[str, NoteSignature]] = {}
    for leaves, to in shown:
        for number in to:
            for line in show(them[number], leaves)[0]:
                lines.setdefault(leaves, {})[line.name] = line
    rule = Quorum.of_nodes({each.name: each.vkeys for each in them}, quorum)
    final = [
        leaves
        for leaves, got in lines.items()
        if rule.reached(Note.decode(signed(leaves)).with_lines(got.values()))
    ]
    for one, other in itertools.combinations(sorted(final, key=len), 2):
        assert other[: len(one)] == one


@pytest.mark.parametrize("witnesses", range(1, 7))
def test_a_restored_backup_that_goes_on_otherwise_gets_no_quorum_by_default(witnesses):
    """At the default quorum: with as many liars as it tolerates, and with one more it is not promised."""
    quorum = default_quorum(witnesses)
    most = tolerated(quorum, witnesses)

    async def covered(liars: int) -> int:
        them = [(Dishonest if n < liars else Witness)(name(n)) for n in range(witnesses)]
        nodes = {each.name: each.vkeys for each in them}
        journal = FakeJournal()
        journal.grow(8)
        loop = asyncio.get_running_loop()
        # The log as it was: the honest ones that it takes beside the liars cosign eight entries.
        relay = Relay(*them)
        relay.down = {each.name for each in them[quorum:]}
        await _until(
            Cosigner(journal, relay, Clock(), monotonic=loop.time, in_thread=inline), nodes, quorum, 8
        )
        assert journal.cosigned_size == 8
        # The backup: five of them, and others after them, to everybody.
        backup = FakeJournal(journal.leaves[:5] + branch("again", 4))
        cosigner = Cosigner(backup, Relay(*them), Clock(), monotonic=loop.time, in_thread=inline)
        await _until(cosigner, nodes, quorum, 9)
        return cosigner.covered

    assert run(covered(most)) == 0
    assert run(covered(most + 1)) == 9, "the bound is tight"


async def _until(cosigner: Cosigner, nodes: dict[str, tuple[str, ...]], quorum: int, size: int) -> None:
    cosigner.set_witnesses(nodes, quorum)
    running = asyncio.create_task(cosigner.run())
    try:
        await cosigner.until(size, 300.0)
    except Unreachable:
        pass  # no quorum; `covered` says how far it came
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_split_view_of_one_size_leaves_proof_that_needs_nobodys_word():
    witness = Witness(name(0))
    show(witness, branch("A", 6, COMMON))
    _, conflicts = show(witness, branch("B", 6, COMMON))
    assert {conflict.code for conflict in conflicts} == {SPLIT_VIEW}
    ours, theirs = (
        verify_note(data, [LOG_VKEY])[0].text for data in (conflicts[0].cosigned, conflicts[0].conflicting)
    )
    assert ours.splitlines()[:2] == theirs.splitlines()[:2]
    assert ours != theirs
