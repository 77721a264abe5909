"""A whole comparison in both forms: right answers, clear refusals, and no queue that fills up."""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.match import base_ot, dh, parties
from protocols.match.parties import BASE, HELLO, MASKS, MATRIX, REPLY, Receiver, Sender
from protocols.match.shape import SIZING, Match, Sizing
from protocols.party import MAX_BODY_BYTES, UNDER_WAY, Finished, Incoming, Outgoing, Sent, Step, run
from protocols.psi import group

RECEIVER, SENDER = Role("receiver"), Role("sender")
VECTORS = json.loads((Path(__file__).parents[2] / "vectors/kkrt.json").read_text())
KKRT = Sizing(dh_below=0, least=256, receiver_mean=64, sender_most=200, message=4096)
CHUNKED = Sizing(points=8)
"""The DH form with lists in several messages."""

Items = list[tuple[bytes, int]]
Entries = list[tuple[bytes, tuple[int, ...]]]


def match_of(mine: Items, theirs: Entries, sizing: Sizing = SIZING) -> Match:
    values = len(theirs[0][1]) if theirs else 1
    return Match(RECEIVER, SENDER, len(mine), len(theirs), values, CTX, sizing)


def pair(match: Match, mine: Items, theirs: Entries, seed: object = 0):
    keys, marks = [key for key, _ in mine], [mark for _, mark in mine]
    theirs_keys, entries = [key for key, _ in theirs], [each for _, each in theirs]
    return {
        RECEIVER: Receiver(
            match,
            np.array(keys, dtype="S30"),
            np.array(marks, dtype=np.uint8),
            seeded(f"receiver/{seed}"),
            lambda found: found.tolist(),
        ),
        SENDER: Sender(
            match,
            np.array(theirs_keys, dtype="S24"),
            np.array(entries, dtype=np.uint8).reshape(len(theirs), match.values),
            seeded(f"sender/{seed}"),
        ),
    }


def play(
    mine: Items, theirs: Entries, sizing: Sizing = SIZING, observe: Callable[[Sent], None] | None = None
):
    outputs = run(pair(match_of(mine, theirs, sizing), mine, theirs), observe=observe)
    assert outputs[SENDER] == ()
    return outputs[RECEIVER]


def wanted(mine: Items, theirs: Entries) -> list[bool]:
    held = dict(theirs)
    return [mark in held.get(key, ()) for key, mark in mine]


def numbered(start: int, stop: int) -> list[bytes]:
    return [b"RIC:%018d" % n for n in range(start, stop)]


def held(keys: list[bytes]) -> Items:
    return [(key, 0) for key in keys]


def entered(keys: list[bytes]) -> Entries:
    return [(key, (0,)) for key in keys]


KEYS = st.one_of(
    st.integers(0, 30).map(lambda n: b"RIC:%d" % n), st.binary(max_size=24).map(lambda b: b + b"x")
)
KEYS = KEYS.filter(lambda key: len(key) <= 24)
MARKED = st.dictionaries(KEYS, st.integers(1, 4), max_size=25)


@settings(max_examples=8, deadline=None)
@given(MARKED, MARKED, st.booleans())
def test_both_forms_find_what_plain_sets_find(mine, theirs, differs):
    if differs:
        others = [(key, tuple(m for m in (1, 2, 3, 4) if m != mark)) for key, mark in theirs.items()]
        items = list(mine.items())
    else:
        items, others = held(list(mine)), entered(list(theirs))
    answer = wanted(items, others)
    assert play(items, others) == answer
    assert play(items, others, CHUNKED) == answer
    assert play(items, others, KKRT) == answer


@pytest.mark.parametrize("sizing", [SIZING, CHUNKED, KKRT], ids=["dh", "dh-chunks", "kkrt"])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ((0, 40), (0, 40)),
        ((0, 40), (100, 140)),
        ((0, 1), (0, 300)),
        ((0, 300), (299, 300)),
        ((0, 1), (0, 1)),
    ],
    ids=["all", "none", "1:300", "300:1", "one"],
)
def test_lists_of_all_sizes_and_overlaps_give_the_right_answer(mine, theirs, sizing):
    items, others = held(numbered(*mine)), entered(numbered(*theirs))
    assert play(items, others, sizing) == wanted(items, others)


@pytest.mark.parametrize("sizing", [SIZING, KKRT], ids=["dh", "kkrt"])
@pytest.mark.parametrize(("mine", "theirs"), [(0, 5), (5, 0), (0, 0)])
def test_an_empty_list_is_answered_without_a_message(mine, theirs, sizing):
    sent: list[Sent] = []
    items, others = held(numbered(0, mine)), entered(numbered(0, theirs))
    assert play(items, others, sizing, sent.append) == [False] * mine
    assert sent == []


def test_the_form_follows_from_the_two_sizes_alone():
    def form(receiver, sender, values=1):
        return Match(RECEIVER, SENDER, receiver, sender, values, CTX).form

    assert form(2047, 2047) == form(1, 682, 3) == "dh"
    assert form(2048, 1) == form(1, 2048) == form(1, 683, 3) == "kkrt"


def test_a_job_may_ask_for_the_form_that_counts_exactly_whatever_the_sizes():
    items, others = held(numbered(0, 60)), entered(numbered(30, 100))
    asked = replace(match_of(items, others, replace(KKRT, points=8)), exact=True)
    assert asked.form == "dh"
    sent: list[Sent] = []
    outputs = run(pair(asked, items, others), observe=sent.append)
    assert outputs[RECEIVER] == wanted(items, others)
    assert {each.round for each in sent} == {dh.BLINDED, dh.RAISED, dh.OWN}
    points = sum(len(each.body) for each in sent if each.round == dh.BLINDED) // group.POINT_BYTES
    assert points == 60  # one for each item, which the sender counts


@pytest.mark.parametrize("sizing", [SIZING, CHUNKED, KKRT], ids=["dh", "dh-chunks", "kkrt"])
def test_lists_of_one_size_give_messages_of_the_same_sizes_whatever_is_in_them(sizing):
    def sizes(start):
        sent: list[Sent] = []
        play(held(numbered(0, 150)), entered(numbered(start, start + 200)), sizing, sent.append)
        return [(each.sender, each.round, len(each.body), each.last) for each in sent]

    assert sizes(0) == sizes(100) == sizes(10**6)


@pytest.mark.parametrize(("sizing", "answer"), [(SIZING, dh.OWN), (KKRT, MASKS)], ids=["dh", "kkrt"])
def test_the_sender_says_when_what_it_sends_makes_an_answer(sizing, answer):
    items, others = held(numbered(0, 150)), entered(numbered(50, 250))
    played = pair(match_of(items, others, sizing), items, others)
    before: list[int] = []
    said: list[Step] = []

    class Watched:
        def start(self) -> Step:
            return played[SENDER].start()

        def receive(self, message: Incoming) -> Step:
            step = played[SENDER].receive(message)
            outgoing = list(step.outgoing)
            if isinstance(step, Finished) or step.answering:
                said.append(step)
            if not said:
                before.extend(each.round for each in outgoing)
            return replace(step, outgoing=outgoing)

    run({RECEIVER: played[RECEIVER], SENDER: Watched()})
    assert said
    assert answer not in before


@pytest.fixture(scope="module", autouse=True)
def remembered_transfers():
    """Compute the same 512 base transfers once for all tests: seeds are the same, and so are all points."""
    known: dict[object, object] = {}

    class Remembered:
        def __getattr__(self, name):
            function = getattr(group, name)
            if name not in {"power", "power_each", "base_power", "hash_to_group", "from_uniform"}:
                return function

            def call(*arguments):
                key = (
                    name,
                    *(each.tobytes() if hasattr(each, "tobytes") else repr(each) for each in arguments),
                )
                if key not in known:
                    known[key] = function(*arguments)
                return known[key]

            return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_ot, "group", Remembered())
        yield


# -- queues --------------------------------------------------------------------------------------------------


def run_bounded(played, room: int = UNDER_WAY) -> tuple[dict[Role, object], int]:
    """Play with inboxes of `room` messages: who sends into a full one waits, and takes nothing meanwhile.

    Returns the outputs and how often both had something to compute at once.
    """
    inbox = {role: deque[Incoming]() for role in played}
    steps = {role: party.start() for role, party in played.items()}
    sending = {role: iter(step.outgoing) for role, step in steps.items()}
    blocked: dict[Role, Outgoing | None] = dict.fromkeys(played)
    outputs, both = {}, 0
    while len(outputs) < len(played):
        moved = 0
        for role, party in played.items():
            if role in outputs:
                continue
            due = blocked[role] or next(sending[role], None)
            blocked[role] = due
            if due is not None:
                if len(inbox[due.to]) < room:
                    inbox[due.to].append(Incoming(role, due.round, due.body, due.last))
                    blocked[role] = None
                    moved += 1
            elif isinstance(steps[role], Finished):
                outputs[role] = steps[role].output
                moved += 1
            elif inbox[role]:
                steps[role] = party.receive(inbox[role].popleft())
                sending[role] = iter(steps[role].outgoing)
                moved += 1
        assert moved, "both wait for each other"
        both += moved == len(played)
    return outputs, both


@pytest.mark.parametrize(("messages", "window"), [(1, 3), (2, 3), (3, 2), (4, 2), (5, 1), (20, 1)])
def test_with_full_inboxes_neither_side_waits_for_the_other_for_ever(messages, window):
    items, others = held(numbered(0, 300)), entered(numbered(100, 400))
    masks = match_of(items, others, KKRT).shape.masks
    match = match_of(items, others, replace(KKRT, message=-(-masks // messages) * 8))
    assert len(match.shape.mask_cut) == messages
    assert len(match.shape.matrix_cut) > 4  # more than an inbox takes
    assert match.shape.window == window
    outputs, both = run_bounded(pair(match, items, others))
    assert outputs[RECEIVER] == wanted(items, others)
    assert both > match.shape.units or window == 1


@pytest.mark.parametrize("sizing", [SIZING, KKRT], ids=["dh", "kkrt"])
def test_queues_of_one_message_are_enough_where_only_one_is_ever_under_way(sizing):
    items, others = held(numbered(0, 60)), entered(numbered(30, 100))
    alone = replace(sizing, message=64)  # masks in so many messages that a unit is answered before the next
    match = match_of(items, others, alone)
    outputs, _ = run_bounded(pair(match, items, others), room=1)
    assert outputs[RECEIVER] == wanted(items, others)


@pytest.mark.parametrize(("receiver", "sender"), [(100, 100), (1, 300), (300, 1), (32, 33), (33, 32)])
def test_long_lists_of_points_fill_no_queue(receiver, sender):
    items, others = held(numbered(0, receiver)), entered(numbered(0, sender))
    outputs, _ = run_bounded(pair(match_of(items, others, CHUNKED), items, others))
    assert outputs[RECEIVER] == wanted(items, others)


def test_of_a_long_list_of_points_few_messages_are_under_way():
    items, others = held(numbered(0, 100)), entered(numbered(0, 10))
    played = pair(match_of(items, others, CHUNKED), items, others)
    assert len(list(played[RECEIVER].start().outgoing)) == UNDER_WAY


def test_short_lists_of_points_are_one_message_and_every_message_of_points_fits():
    assert SIZING.dh_below <= SIZING.points
    assert SIZING.points * group.POINT_BYTES <= MAX_BODY_BYTES


# -- what is refused -----------------------------------------------------------------------------------------

IDENTITY = bytes(32)
NO_POINT = b"\xff" * 32
POINT = group.BASE


@dataclass
class Altered:
    """A party whose message `number` of a round is altered on its way out."""

    party: Receiver | Sender
    round: int
    number: int
    edit: Callable[[Outgoing], list[Outgoing]]
    seen: int = 0

    def start(self) -> Step:
        return self._altered(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._altered(self.party.receive(message))

    def _altered(self, step: Step) -> Step:
        return replace(step, outgoing=self._each(step.outgoing))

    def _each(self, outgoing):
        for message in outgoing:
            hit = message.round == self.round and self.seen == self.number
            self.seen += message.round == self.round
            yield from (altered := self.edit(message) if hit else [message])
            if altered[-1].last and not message.last:
                return


def body(change: Callable[[bytes], bytes]):
    return lambda message: [replace(message, body=change(message.body))]


def ended(message):
    return [replace(message, last=True)]


def open_ended(message):
    return [replace(message, last=False)]


def astray(message):
    return [replace(message, round=0x3FFF)]


def first_point(point: bytes, at: int = 0):
    return body(lambda old: old[:at] + point + old[at + 32 :])


def shorter(old: bytes) -> bytes:
    return old[:-1]


LAST_MATRIX, LAST_MASKS = 2 * 15 - 1, 15 - 1

ALTERED = [
    (KKRT, RECEIVER, HELLO, 0, body(shorter), "bad-length"),
    (KKRT, RECEIVER, HELLO, 0, body(lambda old: old + old), "bad-length"),
    (KKRT, RECEIVER, HELLO, 0, body(lambda old: bytes([1]) + old[1:]), "sizes-differ"),
    (KKRT, RECEIVER, HELLO, 0, open_ended, "bad-length"),
    (KKRT, RECEIVER, HELLO, 0, astray, "unexpected-message"),
    (KKRT, SENDER, BASE, 0, body(lambda old: old[:48]), "bad-length"),
    (KKRT, SENDER, BASE, 0, body(lambda old: old[:16] + bytes([2]) + old[17:]), "sizes-differ"),
    (KKRT, SENDER, BASE, 0, body(shorter), "bad-length"),
    (KKRT, SENDER, BASE, 0, open_ended, "bad-length"),
    (KKRT, SENDER, BASE, 0, body(lambda old: old + POINT), "bad-length"),
    (KKRT, SENDER, BASE, 0, first_point(IDENTITY, 49), "bad-point"),
    (KKRT, SENDER, BASE, 0, first_point(NO_POINT, 49 + 64 * 511), "bad-point"),
    (KKRT, SENDER, BASE, 0, astray, "unexpected-message"),
    (KKRT, RECEIVER, REPLY, 0, body(shorter), "bad-length"),
    (KKRT, RECEIVER, REPLY, 0, open_ended, "bad-length"),
    (KKRT, RECEIVER, REPLY, 0, first_point(IDENTITY), "bad-point"),
    (KKRT, RECEIVER, REPLY, 0, first_point(NO_POINT), "bad-point"),
    (KKRT, RECEIVER, REPLY, 0, astray, "unexpected-message"),
    (KKRT, RECEIVER, MATRIX, 0, body(shorter), "bad-length"),
    (KKRT, RECEIVER, MATRIX, 5, body(lambda old: old + old), "bad-length"),
    (KKRT, RECEIVER, MATRIX, 1, ended, "too-few-items"),
    (KKRT, RECEIVER, MATRIX, LAST_MATRIX, open_ended, "bad-length"),
    (KKRT, SENDER, MASKS, 0, body(shorter), "bad-length"),
    (KKRT, SENDER, MASKS, 0, body(lambda old: old + old), "bad-length"),
    (KKRT, SENDER, MASKS, 0, body(lambda old: old[::-1]), "not-ascending"),
    (KKRT, SENDER, MASKS, 1, ended, "too-few-items"),
    (KKRT, SENDER, MASKS, LAST_MASKS, open_ended, "too-many-items"),
    (KKRT, SENDER, MASKS, 3, astray, "unexpected-message"),
    (SIZING, RECEIVER, dh.BLINDED, 0, first_point(IDENTITY), "bad-point"),
    (SIZING, RECEIVER, dh.BLINDED, 0, first_point(NO_POINT), "bad-point"),
    (SIZING, RECEIVER, dh.BLINDED, 0, body(shorter), "bad-length"),
    (SIZING, RECEIVER, dh.BLINDED, 0, body(lambda old: old + POINT), "too-many-items"),
    (SIZING, RECEIVER, dh.BLINDED, 0, body(lambda old: old[32:]), "too-few-items"),
    (SIZING, RECEIVER, dh.BLINDED, 0, open_ended, "bad-length"),
    (SIZING, RECEIVER, dh.BLINDED, 0, astray, "unexpected-message"),
    (SIZING, SENDER, dh.RAISED, 0, first_point(IDENTITY), "bad-point"),
    (SIZING, SENDER, dh.RAISED, 0, first_point(NO_POINT), "bad-point"),
    (SIZING, SENDER, dh.RAISED, 0, body(lambda old: old[32:]), "too-few-items"),
    (SIZING, SENDER, dh.RAISED, 0, body(lambda old: old + POINT), "too-many-items"),
    (SIZING, SENDER, dh.RAISED, 0, astray, "unexpected-message"),
    (SIZING, SENDER, dh.OWN, 0, first_point(IDENTITY), "bad-point"),
    (SIZING, SENDER, dh.OWN, 0, body(lambda old: b""), "bad-length"),
    (SIZING, SENDER, dh.OWN, 0, body(lambda old: old + POINT), "too-many-items"),
    (SIZING, SENDER, dh.OWN, 0, open_ended, "bad-length"),
    (CHUNKED, RECEIVER, dh.BLINDED, 1, body(lambda old: old[32:]), "bad-length"),
    (CHUNKED, RECEIVER, dh.BLINDED, 0, ended, "too-few-items"),
    (CHUNKED, RECEIVER, dh.BLINDED, 2, body(lambda old: old + POINT), "too-many-items"),
    (CHUNKED, SENDER, dh.RAISED, 1, first_point(NO_POINT), "bad-point"),
    (CHUNKED, SENDER, dh.RAISED, 1, ended, "too-few-items"),
    (CHUNKED, SENDER, dh.OWN, 1, body(lambda old: old[32:]), "bad-length"),
    (CHUNKED, SENDER, dh.OWN, 3, open_ended, "bad-length"),
]


@pytest.mark.parametrize(
    "case",
    ALTERED,
    ids=[f"{at}-{each[2]:x}-{each[5]}" for at, each in enumerate(ALTERED)],
)
def test_a_message_that_is_not_what_is_due_ends_the_attempt(case):
    sizing, role, number, place, edit, code = case
    items, others = held(numbered(0, 300)), entered(numbered(100, 350))
    if sizing is not KKRT:
        items, others = items[:20], others[:30]
    match = match_of(items, others, sizing)
    played = pair(match, items, others)
    with pytest.raises(ProtocolAborted) as refused:
        run({**played, role: Altered(played[role], number, place, edit)})
    assert refused.value.code == code
    assert b"RIC" not in str(refused.value).encode()


def test_masks_that_come_before_a_unit_was_sent_are_refused():
    items, others = held(numbered(0, 300)), entered(numbered(100, 350))
    match = match_of(items, others, KKRT)
    played = pair(match, items, others)
    played[RECEIVER].start()
    base = next(iter(played[SENDER].start().outgoing))
    played[RECEIVER].receive(Incoming(SENDER, base.round, base.body, base.last))
    with pytest.raises(ProtocolAborted) as refused:
        played[RECEIVER].receive(Incoming(SENDER, MASKS, b"", last=False))
    assert refused.value.code == "unexpected-message"


def test_points_that_come_back_before_they_were_sent_are_refused():
    items, others = held(numbered(0, 100)), entered(numbered(0, 10))
    played = pair(match_of(items, others, CHUNKED), items, others)
    sent = list(played[RECEIVER].start().outgoing)
    for message in sent:
        played[RECEIVER].receive(Incoming(SENDER, dh.RAISED, message.body, last=False))  # sends nothing yet
    with pytest.raises(ProtocolAborted) as refused:
        played[RECEIVER].receive(Incoming(SENDER, dh.RAISED, sent[0].body, last=False))
    assert refused.value.code == "unexpected-message"


@pytest.mark.parametrize("sizing", [SIZING, KKRT], ids=["dh", "kkrt"])
@pytest.mark.parametrize(("receiver", "sender"), [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_a_peer_that_has_another_size_than_was_admitted_is_refused(sizing, receiver, sender):
    items, others = held(numbered(0, 300)), entered(numbered(100, 350))
    honest = match_of(items, others, sizing)
    liar = replace(honest, receiver_items=300 + receiver, sender_items=250 + sender)
    more_items, more_others = held(numbered(0, 300 + receiver)), entered(numbered(100, 350 + sender))
    played = pair(honest, items, others) if not sender else pair(liar, items, more_others)
    other = pair(liar, more_items, others) if not sender else pair(honest, items, others)
    with pytest.raises(ProtocolAborted) as refused:
        run({RECEIVER: other[RECEIVER], SENDER: played[SENDER]})
    assert refused.value.code in ({"sizes-differ"} if sizing is KKRT else {"too-many-items", "too-few-items"})


@pytest.mark.parametrize("sizing", [SIZING, KKRT], ids=["dh", "kkrt"])
def test_a_list_that_changed_since_its_admission_is_refused_before_anything_leaves(sizing):
    items, others = held(numbered(0, 20)), entered(numbered(0, 30))
    match = match_of(items, others, sizing)
    for mine, theirs in ((items[:-1], others), (items, others[:-1])):
        with pytest.raises(ProtocolAborted) as refused:
            pair(match, mine, theirs)
        assert refused.value.code == "count-changed"


@pytest.mark.parametrize("sizing", [SIZING, KKRT], ids=["dh", "kkrt"])
def test_the_same_lists_in_another_attempt_look_different(sizing):
    items, others = held(numbered(0, 30)), entered(numbered(0, 30))

    def sent(ctx):
        seen: list[Sent] = []
        match = replace(match_of(items, others, sizing), ctx=ctx)
        assert all(run(pair(match, items, others), observe=seen.append)[RECEIVER])
        return {each.body for each in seen}

    both = sent(CTX) & sent(bytes(32))
    # What does not depend on ctx: the receiver's salt, and its reply to base transfers, a power of the base.
    assert all(len(each) in {17 + 32, 32} for each in both)
    assert len(both) == (2 if sizing is KKRT else 0)


# -- vectors and scale ---------------------------------------------------------------------------------------


def test_the_transcript_of_the_vectors_is_what_both_sides_send():
    given = VECTORS["transcript"]
    match = Match(
        RECEIVER,
        SENDER,
        len(given["receiver_keys"]),
        len(given["sender_keys"]),
        2,
        bytes.fromhex(VECTORS["ctx"]),
        Sizing(**given["sizing"]),
    )
    found: list[Sent] = []
    outputs = run(
        {
            RECEIVER: Receiver(
                match,
                np.array([key.encode() for key in given["receiver_keys"]]),
                np.array(given["receiver_marks"], dtype=np.uint8),
                seeded("receiver"),
                lambda found: np.flatnonzero(found).tolist(),
            ),
            SENDER: Sender(
                match,
                np.array([key.encode() for key in given["sender_keys"]]),
                np.array(given["sender_marks"], dtype=np.uint8),
                seeded("sender"),
            ),
        },
        observe=found.append,
    )
    assert outputs[RECEIVER] == given["found"]
    for number, expected in given["rounds"].items():
        bodies = [each.body for each in found if each.round == int(number, 16)]
        assert len(bodies) == expected["bodies"]
        assert hashlib.sha256(b"".join(bodies)).hexdigest() == expected["sha256"]
    assert {hex(each.round) for each in found} == set(given["rounds"])
    assert parties.COLUMNS == 512


def million(start: int, count: int) -> np.ndarray:
    digits = np.char.zfill(np.arange(start, start + count).astype("S18"), 18)
    return np.char.add(b"RIC:", digits)


@pytest.mark.long
@pytest.mark.parametrize(
    ("receiver", "sender", "values"),
    [(10**6, 10**6, 1), (10**5, 10**5, 3), (2000, 2 * 10**6, 1), (10**6, 1000, 1)],
)
def test_long_lists_in_buckets_of_full_size(receiver, sender, values):
    common = min(receiver, sender) // 2
    match = Match(RECEIVER, SENDER, receiver, sender, values, CTX)
    marks = np.tile(np.arange(values, dtype=np.uint8), (sender, 1))
    outputs = run(
        {
            RECEIVER: Receiver(
                match, million(0, receiver), np.zeros(receiver, np.uint8), seeded("r"), lambda found: found
            ),
            SENDER: Sender(match, million(receiver - common, sender), marks, seeded("s")),
        }
    )
    assert (np.flatnonzero(outputs[RECEIVER]) == np.arange(receiver - common, receiver)).all()
