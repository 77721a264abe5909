"""Every message of a cross-check altered in every way that can be noticed: a stable code, and no release.

The channel already authenticates messages; these are peers that send what they should not.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
from crosscheck_case import CROSSCHECK, CTX, LOOSE, Case, case, person, seeded

from protocols.errors import ProtocolAborted
from protocols.jobs import crosscheck
from protocols.jobs.crosscheck import CONTENT_KEY, ENVELOPES, MATCHER, READY, REGISTER, ROWS, TAGS
from protocols.jobs.job_type import source
from protocols.party import Finished, Incoming, Outgoing, Party, Step, Waiting
from protocols.psi import envelopes, group
from protocols.psi.keyed_list import Entries

pytestmark = pytest.mark.usefixtures("path")

LISTS = [
    dict.fromkeys(range(12), ("", "")),
    dict.fromkeys(range(6, 20), ("990101001", "2025-11")),
    dict.fromkeys(range(8, 22), ("990101002", "2025-10")),
    dict.fromkeys(range(4, 18), ("990102001", "2025-09")),
]

RECORD = envelopes.RECORD_BYTES

Mutation = Callable[[list[Outgoing]], Iterable[Outgoing]]


@dataclass
class Faulty:
    """A party whose messages of one round are changed on their way out."""

    honest: Party
    number: int
    mutate: Mutation

    def start(self) -> Step:
        return self._changed(self.honest.start())

    def receive(self, message: Incoming) -> Step:
        return self._changed(self.honest.receive(message))

    def _changed(self, step: Step) -> Step:
        outgoing: list[Outgoing] = []
        for message in step.outgoing:
            outgoing += self.mutate([message]) if message.round == self.number else [message]
        if isinstance(step, Finished):
            return Finished(outgoing, step.output)
        return Waiting(outgoing, step.progress)


def body(change: Callable[[bytes], bytes]) -> Mutation:
    return lambda messages: [replace(message, body=change(message.body)) for message in messages]


def open_ended(messages: list[Outgoing]) -> Iterator[Outgoing]:
    return (replace(message, last=False) for message in messages)


def aborted(run: Case) -> ProtocolAborted:
    with pytest.raises(ProtocolAborted) as error:
        run.run()
    return error.value


FLIP_LAST = body(lambda b: b[:-1] + bytes([b[-1] ^ 1]))
SHORTER = body(lambda b: b[:-1])
EMPTY = body(lambda b: b"")


def without(width: int) -> Mutation:
    return body(lambda b: b[:-width])


def repeated(width: int) -> Mutation:
    return body(lambda b: b + b[-width:])


def swapped(width: int) -> Mutation:
    return body(lambda b: b[width : 2 * width] + b[:width] + b[2 * width :])


def first_repeated_in_place(width: int) -> Mutation:
    return body(lambda b: b[:width] + b[:width] + b[2 * width :])


def first_point(point: bytes) -> Mutation:
    return body(lambda b: point + b[32:])


def first_envelope(change: Callable[[bytes], bytes]) -> Mutation:
    """Change the first piece that is no padding."""

    def changed(b: bytes) -> bytes:
        at = next(at for at in range(0, len(b), RECORD) if b[at])
        return b[:at] + change(b[at : at + RECORD]) + b[at + RECORD :]

    return body(changed)


def in_place_of_padding(piece: Callable[[bytes], bytes]) -> Mutation:
    """Put something made of the first envelope where padding was."""

    def changed(b: bytes) -> bytes:
        first = next(at for at in range(0, len(b), RECORD) if b[at])
        free = next(at for at in range(0, len(b), RECORD) if not b[at])
        return b[:free] + piece(b[first : first + RECORD]) + b[free + RECORD :]

    return body(changed)


NON_CANONICAL = bytes([0xED, *[0xFF] * 30, 0x7F])
NEGATIVE = bytes([1] + [0] * 31)
TOP_BIT = group.BASE[:-1] + bytes([group.BASE[-1] | 0x80])

TO_FIRST, TO_SECOND, BACK = (hop << 8 | 2 for hop in (1, 2, 3))  # the list of source-2
SHARE, ROW = 32, crosscheck.ROW_BYTES

FAULTS = [
    *[
        pytest.param(sender, number, change, code, id=f"{name} in {where}")
        for sender, number, where in [
            (source(2), TO_FIRST, "blinded points"),
            (REGISTER, TO_SECOND, "points raised once"),
            (source(1), BACK, "points raised twice"),
        ]
        for name, change, code in [
            ("identity", first_point(bytes(32)), "bad-point"),
            ("non-canonical point", first_point(NON_CANONICAL), "bad-point"),
            ("negative point", first_point(NEGATIVE), "bad-point"),
            ("top bit", first_point(TOP_BIT), "bad-point"),
            ("half a point", SHORTER, "bad-length"),
            ("no point", EMPTY, "bad-length"),
            ("a point less", without(32), "too-few-items"),
            ("a point more", repeated(32), "too-many-items"),
            ("no end", open_ended, "bad-length"),
        ]
    ],
    pytest.param(
        source(1), BACK, body(lambda b: b[:32] * (len(b) // 32)), "repeated-tag", id="one point for all rows"
    ),
    pytest.param(source(2), TAGS, swapped(16), "bad-tags", id="tags out of order"),
    pytest.param(source(2), TAGS, first_repeated_in_place(16), "bad-tags", id="a tag twice"),
    pytest.param(source(2), TAGS, SHORTER, "bad-length", id="half a tag"),
    pytest.param(source(2), TAGS, without(16), "too-few-items", id="a tag less"),
    pytest.param(source(2), TAGS, repeated(16), "too-many-items", id="a tag more"),
    pytest.param(source(2), TAGS, open_ended, "bad-length", id="tags without end"),
    pytest.param(REGISTER, TAGS, without(16), "too-few-items", id="a register's tag less"),
    pytest.param(MATCHER, READY, body(lambda b: b + b"1"), "bad-length", id="a ready that says something"),
    pytest.param(MATCHER, READY, open_ended, "bad-length", id="a ready without end"),
    pytest.param(source(2), ROWS, body(lambda b: bytes(len(b))), "lock-broken", id="rows of zeros"),
    pytest.param(source(2), ROWS, swapped(ROW), "lock-broken", id="rows exchanged"),
    pytest.param(source(2), ROWS, SHORTER, "bad-length", id="half a row"),
    pytest.param(source(2), ROWS, without(ROW), "too-few-items", id="a row less"),
    pytest.param(source(2), ROWS, repeated(ROW), "too-many-items", id="a row more"),
    pytest.param(source(2), ROWS, open_ended, "bad-length", id="rows without end"),
    pytest.param(source(2), CONTENT_KEY, FLIP_LAST, "envelope-broken", id="another content key"),
    pytest.param(source(2), CONTENT_KEY, SHORTER, "bad-length", id="a short content key"),
    pytest.param(
        MATCHER,
        ENVELOPES,
        first_envelope(lambda p: p[:-1] + bytes([p[-1] ^ 1])),
        "envelope-broken",
        id="an altered envelope",
    ),
    pytest.param(MATCHER, ENVELOPES, SHORTER, "bad-length", id="half an envelope"),
    pytest.param(MATCHER, ENVELOPES, without(RECORD), "too-few-items", id="an envelope less"),
    pytest.param(MATCHER, ENVELOPES, repeated(RECORD), "too-many-items", id="an envelope more"),
    pytest.param(
        MATCHER, ENVELOPES, in_place_of_padding(lambda p: p), "envelope-repeated", id="an envelope twice"
    ),
    pytest.param(
        MATCHER,
        ENVELOPES,
        in_place_of_padding(lambda p: b"\0" + p[1:]),
        "envelope-malformed",
        id="padding that says something",
    ),
    pytest.param(
        MATCHER,
        ENVELOPES,
        first_envelope(lambda p: b"\x09" + p[1:]),
        "envelope-malformed",
        id="an envelope of nobody",
    ),
    pytest.param(
        MATCHER,
        ENVELOPES,
        first_envelope(lambda p: p[:4] + bytes([p[4] ^ 1]) + p[5:]),
        "envelope-broken",
        id="an envelope at another position",
    ),
    pytest.param(MATCHER, ENVELOPES, open_ended, "bad-length", id="envelopes without end"),
]


@pytest.mark.parametrize(("sender", "number", "mutate", "code"), FAULTS)
def test_an_altered_message_aborts_with_its_code(sender, number, mutate, code):
    # With k = 2 every row of source-2 that matters has at most three holders; seeds are fixed, so the same
    # envelopes are opened every time. Exchanged rows break only where both are selected: all are, below.
    lists = LISTS if number != ROWS else [{99: ("", "")}, *[dict(LISTS[1])] * 3]
    run = case(lists, k=2, seed=4)
    honest = run.parties[sender]
    run.parties[sender] = Faulty(honest, number, mutate)
    error = aborted(run)
    assert error.code == code
    assert error.message
    keys = {person(number) for each in lists for number in each}
    assert not any(key in error.message + error.hint for key in keys)


def test_the_registers_share_is_needed_and_checked_when_all_must_hold_a_person():
    run = case(LISTS, present_in="all")
    moved_by_one = body(lambda b: b[SHARE:] + b[:SHARE])
    run.parties[REGISTER] = Faulty(run.parties[REGISTER], ROWS, moved_by_one)
    assert aborted(run).code == "lock-broken"


def test_without_faults_the_same_cases_pass():
    for params in ({"k": 2}, {"present_in": "all"}):
        assert case(LISTS, seed=4, **params).released()[0].table.rows > 0


def deliver(party: Party, *messages: Incoming) -> str:
    list(party.start().outgoing)
    *before, last = messages
    for message in before:
        list(party.receive(message).outgoing)
    with pytest.raises(ProtocolAborted) as error:
        list(party.receive(last).outgoing)
    return error.value.code


@pytest.mark.parametrize(
    ("role", "sender", "number"),
    [
        (source(1), MATCHER, READY),  # before the tags have even left
        (source(1), REGISTER, READY),
        (source(1), MATCHER, ROWS),
        (source(1), MATCHER, ENVELOPES),
        (source(1), source(2), CONTENT_KEY),
        (REGISTER, MATCHER, READY),
        (REGISTER, MATCHER, CONTENT_KEY),
        (REGISTER, REGISTER, CONTENT_KEY),
        (REGISTER, source(1), ENVELOPES),
        (REGISTER, source(1), TAGS),
        (MATCHER, source(1), ROWS),
        (MATCHER, source(1), READY),
        (MATCHER, source(1), CONTENT_KEY),
        (MATCHER, MATCHER, TAGS),
        (MATCHER, "stranger", TAGS),
        (MATCHER, source(1), 0x7777),
    ],
)
def test_a_message_out_of_turn_or_from_the_wrong_seat_is_refused(role, sender, number):
    party = case(LISTS, k=2).parties[role]
    assert deliver(party, Incoming(sender, number, b"")) == "unexpected-message"


@pytest.mark.parametrize(
    ("sender", "number", "to", "code"),
    [
        (source(2), TO_FIRST, REGISTER, "too-many-items"),
        (REGISTER, TO_SECOND, source(1), "too-many-items"),
        (source(1), BACK, source(2), "too-many-items"),
        (source(2), TAGS, MATCHER, "too-many-items"),
        (MATCHER, READY, REGISTER, "unexpected-message"),
        (source(2), ROWS, MATCHER, "too-many-items"),
        (source(2), CONTENT_KEY, REGISTER, "unexpected-message"),
    ],
)
def test_a_replayed_message_is_refused_by_the_party_itself(sender, number, to, code):
    # The channel drops replays; a party does not rely on it. Each message is delivered twice in a row.
    run = case(LISTS, present_in="all")
    victim = run.parties[to]

    class Twice:
        def start(self) -> Step:
            return victim.start()

        def receive(self, message: Incoming) -> Step:
            step = victim.receive(message)
            if (message.sender, message.round) != (sender, number):
                return step
            list(step.outgoing)
            return victim.receive(message)

    run.parties[to] = Twice()
    assert aborted(run).code == code


def test_envelopes_after_their_end_are_refused():
    # Of these limits follows that nobody can be flagged, so that the stream is one empty message.
    run = case(LISTS, k=2, constraints=replace(LOOSE, min_coverage=Fraction(1)))
    register = run.parties[REGISTER]
    empty = Incoming(MATCHER, ENVELOPES, b"")
    assert deliver(register, empty, empty) == "unexpected-message"


def test_the_register_takes_no_more_records_than_the_rules_allow_even_from_a_lax_matcher():
    run = case(LISTS, k=2, constraints=replace(LOOSE, max_rows=3))
    lax = replace(run.setup, constraints=LOOSE)
    run.parties[MATCHER] = CROSSCHECK.party(MATCHER, lax, None, seeded("lax"))
    assert aborted(run).code == "guard-rows"


def written(run: Case, forged: Callable[[str], str]) -> None:
    """Let all sources write forged keys into their envelopes, after tagging the true ones."""
    for index in (1, 2, 3):
        parts = run.parties[source(index)]._parts

        def other(tagged: object, parts=parts) -> Iterator[tuple[object, Entries, object]]:
            for values, listed, places in parts(tagged):
                keys = np.array([forged(key.decode()).encode() for key in listed.keys.tolist()])
                yield values, Entries(keys, listed.streets, listed.months, listed.street_names), places

        run.parties[source(index)]._parts = other


def test_sources_that_write_people_of_the_register_into_envelopes_are_noticed():
    run = case(LISTS, k=2)
    others = {f"RIC:{person(number)}": f"RIC:{person(number - 12)}" for number in range(12, 24)}
    written(run, lambda key: others.get(key, key))
    assert aborted(run).code == "not-selected"


def test_sources_that_write_the_same_person_everywhere_are_noticed():
    run = case(LISTS, k=2)
    written(run, lambda key: f"RIC:{person(500)}")
    assert aborted(run).code == "envelope-repeated"


@pytest.mark.parametrize(
    "forged", ["RIC:990101195001010011", "USCC:91350100M000100Y43", "990101195001010010", ""]
)
def test_sources_that_write_something_that_is_no_key_are_noticed(forged):
    run = case(LISTS, k=2)
    written(run, lambda key: forged)
    assert aborted(run).code == "envelope-malformed"


def test_a_matcher_that_opens_somebody_the_question_leaves_out_is_noticed():
    run = case(LISTS, k=2)
    matcher = run.parties[MATCHER]
    # It selects those on the register's list instead: k shares open their locks, too.
    matcher._guarded = lambda venn: [mask for mask in venn if mask & 1 and (mask >> 1).bit_count() >= 2]
    assert aborted(run).code == "not-selected"


def test_parties_of_different_attempts_do_not_understand_each_other():
    run = case(LISTS, k=2)
    other = replace(run.setup, ctx=bytes(32))
    run.parties[source(2)] = CROSSCHECK.party(source(2), other, run.lists[source(2)], seeded("x"))
    records, _ = run.released()
    # Its H is another one, so none of its rows coincides with anybody's: only sources 1 and 3 are left.
    held = set(LISTS[1]) & set(LISTS[3]) - set(LISTS[0])
    assert records.table.columns["key"].tolist() == sorted("RIC:" + person(number) for number in held)
    assert other.ctx != CTX


def test_a_role_without_its_list_cannot_play():
    run = case(LISTS, k=2)
    with pytest.raises(TypeError):
        CROSSCHECK.party(source(1), run.setup, None, seeded(0))
