"""Two departments and their dummies: right counts, messages that are none, and what a proof stops."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.overlap import parties
from protocols.overlap.dummies import dummies
from protocols.overlap.parties import KEYS, LIST, POOL, RAISED, Pair, Receiver, Sender
from protocols.party import Finished, Incoming, Outgoing, Party, Rand, Sent, Waiting, run
from protocols.psi import dleq, group
from protocols.psi.group import POINT_BYTES

R, S = "source-1", "source-2"
NOISE = dummies(Fraction(4), Fraction(1, 10**6))


def keys(people: Iterable[int]) -> np.ndarray:
    return np.array(sorted(b"RIC:%018d" % number for number in people) or [], dtype="S22")


@dataclass
class Played:
    """One overlap of two departments."""

    receiver: Receiver
    sender: Sender
    pair: Pair
    sent: list[Sent]
    raised: int

    @property
    def count(self) -> int:
        return self.raised - self.sender._dummies


def players(
    mine: Iterable[int], theirs: Iterable[int], *, seed: object = 0, ctx: bytes = CTX, **changes: Any
) -> tuple[Pair, Receiver, Sender]:
    own, other = keys(mine), keys(theirs)
    pair = Pair(R, S, len(own), len(other), changes.pop("noise", NOISE), ctx)  # type: ignore[arg-type]  # roles
    receiver = Receiver(replace(pair, **changes), own, seeded(f"{seed}/r"), lambda raised: raised)
    return pair, receiver, Sender(pair, other, seeded(f"{seed}/s"))


def play(mine: Iterable[int], theirs: Iterable[int], **changes: Any) -> Played:
    pair, receiver, sender = players(mine, theirs, **changes)
    sent: list[Sent] = []
    outputs = run({R: receiver, S: sender}, observe=sent.append)  # type: ignore[dict-item]  # roles
    return Played(receiver, sender, pair, sent, outputs[R])  # type: ignore[index]


# -- right answers -------------------------------------------------------------------------------------------

SETS = st.sets(st.integers(0, 60), max_size=40)


@settings(max_examples=10, deadline=None)
@given(mine=SETS, theirs=SETS, seed=st.integers(0, 10**6))
def test_the_count_is_the_overlap_of_any_two_lists_plus_the_dummies_drawn(mine, theirs, seed):
    found = play(mine, theirs, seed=seed)
    assert found.count == len(mine & theirs)
    assert 0 <= found.sender._dummies <= NOISE.pool


@pytest.mark.parametrize(
    ("mine", "theirs", "both"),
    [
        ([], [], 0),
        ([], range(5), 0),
        (range(5), [], 0),
        (range(20), range(20), 20),
        (range(20), range(20, 50), 0),
        (range(1), range(1000), 1),
        (range(1000), [500], 1),
    ],
)
def test_empty_equal_disjoint_and_unequal_lists_are_counted(mine, theirs, both):
    assert play(mine, theirs).count == both


def test_lists_of_several_messages_are_counted(monkeypatch):
    monkeypatch.setattr(parties, "CHUNK_POINTS", 8)
    monkeypatch.setattr(parties.Stream.__init__, "__defaults__", (POINT_BYTES, 8))
    found = play(range(41), range(17, 64))
    assert found.count == 24
    assert max(len(m.body) for m in found.sent if m.round != POOL) == 8 * 32


@pytest.mark.parametrize("z", [0, NOISE.half, NOISE.pool])
def test_every_number_of_dummies_is_counted_and_none_shows_in_sizes(monkeypatch, z):
    monkeypatch.setattr(type(NOISE), "draw", lambda self, count, rand: np.full(count, z))
    found = play(range(30), range(20, 60))
    assert found.raised == 10 + z
    sizes = {m.round: len(m.body) // 32 for m in found.sent if m.round != POOL}
    assert sizes == {KEYS: 30, LIST: 40 + NOISE.pool, RAISED: 30 + NOISE.pool}


def test_no_point_of_the_pool_is_the_point_of_a_key():
    pair, _, _ = players(range(500), [])
    pool = {point.tobytes() for point in pair.pool()}
    assert len(pool) == NOISE.pool
    assert not pool & {point.tobytes() for point in pair.hashed(keys(range(500)))}
    # Nor of anything that another attempt hashes.
    assert not pool & {point.tobytes() for point in replace(pair, ctx=bytes(32)).pool()}


# -- messages that are none ----------------------------------------------------------------------------------


def tampered(change: Callable[[Outgoing], Iterable[Outgoing]], *, of: str, lists: Any = None) -> str:
    """Play while every message of one party goes through `change`; return the code of the end."""
    _, receiver, sender = players(*(lists or (range(30), range(20, 60))))

    class Changing:
        def __init__(self, party: Party) -> None:
            self.party = party

        def start(self) -> Any:
            return self._through(self.party.start())

        def receive(self, message: Incoming) -> Any:
            return self._through(self.party.receive(message))

        def _through(self, step: Any) -> Any:
            return replace(step, outgoing=[out for each in step.outgoing for out in change(each)])

    both = {R: receiver, S: sender}
    both[of] = Changing(both[of])  # type: ignore[assignment]  # a party in all but name
    with pytest.raises(ProtocolAborted) as error:
        run(both)  # type: ignore[arg-type]  # roles
    return error.value.code


def edit(number: int, how: Callable[[bytes], bytes]) -> Callable[[Outgoing], Iterable[Outgoing]]:
    return lambda m: [replace(m, body=how(m.body)) if m.round == number else m]


IDENTITY, HIGH_BIT, NEGATIVE = bytes(32), bytes(31) + b"\x80", b"\x01" + bytes(31)


@pytest.mark.parametrize("bad", [IDENTITY, HIGH_BIT, NEGATIVE, b"\xff" * 32])
@pytest.mark.parametrize(("number", "of"), [(KEYS, R), (LIST, S)])
def test_a_point_that_is_none_is_refused_where_it_is_raised(number, of, bad):
    assert tampered(edit(number, lambda body: bad + body[32:]), of=of) == "bad-point"


@pytest.mark.parametrize("at", [0, 96, 96 + 32 * (NOISE.pool - 1)])
@pytest.mark.parametrize("bad", [IDENTITY, HIGH_BIT, NEGATIVE])
def test_a_pool_with_a_point_that_is_none_is_refused(at, bad):
    code = tampered(edit(POOL, lambda body: body[:at] + bad + body[at + 32 :]), of=R)
    assert code in ("bad-point", "bad-proof")


@pytest.mark.parametrize(("number", "of"), [(KEYS, R), (LIST, S), (RAISED, S)])
@pytest.mark.parametrize(
    ("how", "code"),
    [
        (lambda body: body[:-32], "too-few-items"),
        (lambda body: body + body[:32], "too-many-items"),
        (lambda body: body[:-1], "bad-length"),
        (lambda body: b"", "too-few-items"),
    ],
)
def test_a_stream_of_another_size_than_was_admitted_is_refused(number, of, how, code):
    assert tampered(edit(number, how), of=of) == code


@pytest.mark.parametrize(
    "how", [lambda body: body[:-32], lambda body: body + body[-32:], lambda body: b"", lambda body: body[1:]]
)
def test_a_pool_of_another_size_is_refused(how):
    assert tampered(edit(POOL, how), of=R) == "bad-length"


@pytest.mark.parametrize("lie", [-1, 1, 10**6])
def test_whoever_states_another_size_than_its_list_has_cannot_take_part(lie):
    pair, _, _ = players(range(30), range(20, 60))
    with pytest.raises(ProtocolAborted, match="admitted"):
        Receiver(replace(pair, receiver_keys=30 + lie), keys(range(30)), seeded(0), lambda raised: raised)
    with pytest.raises(ProtocolAborted, match="admitted"):
        Sender(replace(pair, sender_keys=40 + lie), keys(range(20, 60)), seeded(0))


def test_a_point_sent_twice_is_refused_on_both_sides():
    twice = lambda body: body[:32] + body[:32] + body[64:]  # noqa: E731  # one line of a table
    for number, of in ((KEYS, R), (LIST, S), (RAISED, S)):
        assert tampered(edit(number, twice), of=of) == "repeated-point"


def test_a_pool_point_among_the_receivers_own_is_refused():
    pool: list[bytes] = []

    def change(m: Outgoing) -> Iterable[Outgoing]:
        if m.round == POOL:
            pool.append(m.body[-32:])
        return [replace(m, body=pool[0] + m.body[32:]) if m.round == KEYS else m]

    assert tampered(change, of=R) == "repeated-point"


@pytest.mark.parametrize(
    ("number", "of"), [(POOL, S), (LIST, R), (RAISED, R), (0x3500, R), (0x3500, S), (0x0100, S), (0x3400, R)]
)
def test_a_message_that_is_not_due_is_refused(number, of):
    first = POOL if of == R else LIST
    code = tampered(lambda m: [replace(m, round=number) if m.round == first else m], of=of)
    assert code == "unexpected-message"


def test_the_list_before_the_pool_or_the_pool_twice_is_refused():
    held: list[Outgoing] = []

    def swapped(m: Outgoing) -> Iterable[Outgoing]:
        if m.round == POOL:
            held.append(m)
            return []
        return [m, *held]

    assert tampered(swapped, of=R) == "unexpected-message"
    _, receiver, sender = players(range(3), range(3))
    pool = next(iter(receiver.start().outgoing))
    message = Incoming(R, POOL, pool.body)  # type: ignore[arg-type]  # a role
    assert isinstance(sender.receive(message), Waiting)
    with pytest.raises(ProtocolAborted, match="not due"):
        sender.receive(message)


def test_nobody_else_is_listened_to():
    _, receiver, sender = players(range(3), range(3))
    for party, number in ((receiver, LIST), (sender, POOL)):
        with pytest.raises(ProtocolAborted, match="not due"):
            party.receive(Incoming("source-3", number, bytes(32)))  # type: ignore[arg-type]  # a role


# -- the proof -----------------------------------------------------------------------------------------------


class Deviating(Receiver):
    """A receiver whose pool is under another key than it shows, or whose list is in part."""

    def __init__(self, pair: Pair, own: np.ndarray, rand: Rand, *, pool: bool = False, half: bool = False):
        super().__init__(pair, own, rand, lambda raised: raised)
        self._other = group.random_scalar(rand)
        self._pool_apart, self._half_apart = pool, half

    def _sent(self) -> Iterable[Outgoing]:  # type: ignore[override]  # lists will do
        pool, *rest = super()._sent()
        if self._pool_apart:
            points = group.power(self._pair.pool(), self._other)
            pool = replace(pool, body=pool.body[:96] + points.tobytes())
        if self._half_apart:
            places = self._order[: len(self._order) // 2]
            apart = group.power(self._pair.hashed(self._keys[places]), self._other)
            rest = [replace(rest[0], body=apart.tobytes() + rest[0].body[len(places) * 32 :])]
        return [pool, *rest]

    def receive(self, message: Incoming) -> Any:
        if message.round == LIST:
            self.theirs = group.points(message.body)
        if message.round == RAISED:
            self.back = group.points(message.body)
        return super().receive(message)

    def matches(self, secret: bytes) -> int:
        """Count what is under the given key, as a receiver that departs from the protocol could."""
        back = {point.tobytes() for point in self.back}
        return sum(point.tobytes() in back for point in group.power(self.theirs, secret))


def deviating(**how: bool) -> tuple[Deviating, Sender]:
    pair, _, sender = players(range(30), range(20, 60), seed="d")
    return Deviating(pair, keys(range(30)), seeded("d/x"), **how), sender


def test_a_pool_under_another_key_is_refused_before_anything_leaves_the_sender():
    receiver, sender = deviating(pool=True)
    with pytest.raises(ProtocolAborted) as error:
        run({R: receiver, S: sender})  # type: ignore[dict-item]  # roles
    assert error.value.code == "bad-proof"
    assert not hasattr(receiver, "theirs")


def test_without_the_proof_that_pool_would_take_the_noise_off(monkeypatch):
    """What is stopped: the dummies never coincide, and the receiver counts the overlap exactly."""
    monkeypatch.setattr(dleq, "verify", lambda *_: None)
    receiver, sender = deviating(pool=True)
    run({R: receiver, S: sender})  # type: ignore[dict-item]  # roles
    assert receiver.matches(receiver._secret) == 10
    assert sender._dummies > 0


def test_a_receiver_with_two_keys_for_its_own_list_is_not_stopped():
    """What is not: persons under a key of their own are counted without dummies. SPEC.md says so."""
    receiver, sender = deviating(half=True)
    run({R: receiver, S: sender})  # type: ignore[dict-item]  # roles
    apart = receiver.matches(receiver._other)
    assert 0 < apart < 10
    assert receiver.matches(receiver._secret) + apart == 10 + sender._dummies


def proofs(before: Callable[[Pair], Pair]) -> str:
    """Return the code with which a sender refuses the pool of a receiver of another pair."""
    pair, _, sender = players(range(3), range(3))
    receiver = Receiver(before(pair), keys(range(3)), seeded("other"), lambda raised: raised)
    pool = next(iter(receiver.start().outgoing))
    with pytest.raises(ProtocolAborted) as error:
        sender.receive(Incoming(R, POOL, pool.body))  # type: ignore[arg-type]  # a role
    return error.value.code


def test_the_pool_of_another_attempt_or_of_other_noise_is_refused():
    assert proofs(lambda pair: replace(pair, ctx=bytes(32))) == "bad-proof"
    other = dummies(Fraction(2), Fraction(1, 10**6))
    assert other.pool != NOISE.pool
    assert proofs(lambda pair: replace(pair, noise=other)) == "bad-length"


@pytest.mark.parametrize("at", [0, 31, 32, 63, 64, 95, 96, 127])
def test_a_flipped_bit_of_key_proof_or_pool_is_refused(at):
    def flip(body: bytes) -> bytes:
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    assert tampered(edit(POOL, flip), of=R) in ("bad-proof", "bad-point")


def test_pool_points_in_another_order_are_refused():
    def swap(body: bytes) -> bytes:
        return body[:96] + body[128:160] + body[96:128] + body[160:]

    assert tampered(edit(POOL, swap), of=R) == "bad-proof"


# -- retries -------------------------------------------------------------------------------------------------


def test_the_sender_says_nothing_of_its_data_before_it_finishes():
    """So an attempt that ends earlier has told nothing, and draws other dummies next time."""
    _, receiver, sender = players(range(3), range(3))
    assert list(sender.start().outgoing) == []
    *first, last = receiver.start().outgoing
    for m in first:
        step = sender.receive(Incoming(R, m.round, m.body, m.last))  # type: ignore[arg-type]  # a role
        assert isinstance(step, Waiting)
        assert not list(step.outgoing)
        assert not step.answering
    step = sender.receive(Incoming(R, last.round, last.body, last.last))  # type: ignore[arg-type]
    assert isinstance(step, Finished)


def test_to_the_relay_all_lists_of_one_size_look_the_same():
    def shape(mine: Sequence[int], theirs: Sequence[int], seed: int) -> list[object]:
        found = play(mine, theirs, seed=seed)
        return [(m.sender, m.to, m.round, len(m.body), m.last) for m in found.sent]

    assert shape(range(30), range(40), 1) == shape(range(30), range(100, 140), 2)
