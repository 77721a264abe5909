"""Sums and products over joined rows: right answers, messages that are none, restarts, and what shows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from crosscheck_case import seeded
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from joining_case import (
    DEALER,
    HELPER,
    MATCHER,
    S1,
    S2,
    S3,
    S4,
    Joined,
    Listed,
    check,
    frames,
    joined_case,
    key_of,
)
from scipy.stats import chisquare

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.joined import align, parties, triples
from protocols.joined.field import NARROW, WIDE, Field, Stream
from protocols.joined.parties import (
    ALIGN,
    BLOCK,
    CHECK,
    COIN,
    DEAL,
    DEALT,
    FINAL,
    GROUPS,
    ROWS,
    SEED,
    Dealer,
    Helper,
    Holder,
    Joining,
    Matcher,
)
from protocols.joined.triples import Multiplier, deal
from protocols.party import MAX_BODY_BYTES, UNDER_WAY, Finished, Incoming, Outgoing, Party, Sent, Waiting, run
from protocols.psi import tagging

# -- right answers -------------------------------------------------------------------------------------------


def words_of(data: st.DataObject, width: int, most: int) -> st.SearchStrategy[list[int]]:
    extremes = st.sampled_from([-most, most, 0, 1, -1])
    return st.lists(extremes | st.integers(-most, most), min_size=width, max_size=width)


@settings(max_examples=40)
@given(st.data())
def test_sums_and_products_are_those_of_the_persons_on_all_lists(data):
    """Two to four lists, signs and extremes, empty lists and groups, persons who wait."""
    field: Field = data.draw(st.sampled_from([WIDE, NARROW]))
    count = data.draw(st.integers(2, 4))
    widths = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    shapes: list[Any] = [None]
    if sum(widths):
        shapes.append("gram")
    shapes += [(i, j) for i in range(count) for j in range(count) if i != j and widths[i] and widths[j]]
    product = data.draw(st.sampled_from(shapes))
    axes = st.lists(st.integers(1, 4), max_size=2)
    sizes = [[] if product else data.draw(axes) for _ in range(count)]
    # Ten rows of whatever product or sum stay within the field.
    most = int((field.reach // 10) ** 0.5) if product else field.reach // 10
    lists = []
    for width, size in zip(widths, sizes, strict=True):
        people = data.draw(st.sets(st.integers(0, 11), max_size=10))
        rows = {person: data.draw(words_of(data, width, most)) for person in people}
        codes = {person: [data.draw(st.integers(0, s - 1)) for s in size] for person in people}
        waiting = data.draw(st.sets(st.sampled_from(sorted(people)))) if people else set()
        lists.append(Listed(rows, codes, frozenset(waiting)))
    check(joined_case(lists, widths=widths, field=field, product=product, open_sizes=sizes))


ALL = {person: [person - 9, 3] for person in range(20)}
OTHER = {person: [person * person] for person in range(10, 35)}


@pytest.mark.parametrize("product", [None, "gram", (0, 1), (1, 0)])
@pytest.mark.parametrize("others", [{}, {50: [4]}, {3: [4]}, {person: [7] for person in range(20)}])
def test_nobody_one_person_and_everybody_are_joined(product, others):
    found = check(joined_case([ALL, others], widths=[2, 1], product=product))
    assert found.n == len(set(ALL) & set(others))


def test_lists_and_products_of_several_messages_and_blocks_are_right(monkeypatch):
    monkeypatch.setattr(parties, "CHUNK_ROWS", 7)
    monkeypatch.setattr(parties, "MAX_BODY_BYTES", 96)
    monkeypatch.setattr("protocols.joined.triples.MAX_BODY_BYTES", 96)
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram", open_sizes=[[], []])
    check(case)
    messages = {number: sum(m.round == number for m in case.sent) for number in (ROWS, ALIGN, BLOCK, DEAL)}
    assert messages[ROWS] == 7 + 7
    assert messages[ALIGN] == 3
    assert messages[BLOCK] >= 10
    assert messages[DEAL] >= 2
    sizes = {len(m.body) for m in case.sent if not tagging.is_tagging(m.round)}
    assert max(sizes) <= 120


def test_the_matcher_keeps_few_blocks_under_way(monkeypatch):
    """A flow that returns: however slow the helper is, what waits for it stays bounded."""
    monkeypatch.setattr("protocols.joined.triples.MAX_BODY_BYTES", 64)
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    under_way = [0]

    def watch(m: Sent) -> None:
        if m.round == BLOCK:
            under_way.append(under_way[-1] + (1 if m.sender == MATCHER else -1))

    run(case.parties, observe=watch)
    assert max(under_way) == UNDER_WAY
    assert (min(under_way), under_way[-1], len(under_way)) == (0, 0, 21)


def test_rows_as_wide_as_a_message_is_long_go_one_by_one():
    width = (MAX_BODY_BYTES - 16) // 8
    case = joined_case([{1: [1] * width, 2: [-3] * width}, {2: [5]}], widths=[width, 1])
    assert check(case).sums[0, -2:].tolist() == [-3, 5]
    assert sum((m.sender, m.round) == (S1, ROWS) for m in case.sent) == 3


def test_both_add_their_own_noise_to_sums_and_products():
    def noise(rand: Any) -> Any:
        drawn = 1 + int.from_bytes(rand(1))
        return np.full((1, 3), drawn, dtype=np.int64), np.full((3, 3), -drawn * 1000, dtype=np.int64)

    plain = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="noise").play()
    noisy = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="noise", noise=noise).play()
    more = set((noisy.sums - plain.sums).ravel().tolist())
    assert plain.products is not None
    assert noisy.products is not None
    assert set((noisy.products - plain.products).ravel().tolist()) == {-1000 * each for each in more}
    assert (len(more), noisy.n) == (1, plain.n)
    # Of two who draw the same kind of noise, each its own.
    halves = []
    for role in (MATCHER, HELPER):
        case = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="noise", noise=noise)
        case.parties[role]._noise = None  # type: ignore[attr-defined]  # the one that adds none
        halves.append(int((case.play().sums - plain.sums)[0, 0]))
    assert halves[0] != halves[1]
    assert 0 not in halves
    assert more == {sum(halves)}


def test_a_dealer_draws_a_seed_for_each_of_the_two():
    """With one for both, each would have the other's masks of the triple."""
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    case.play()
    assert case.bodies(DEALER, MATCHER, DEAL) != case.bodies(DEALER, HELPER, DEAL)[:32]


def test_a_product_needs_a_dealer_and_nothing_else_does():
    case = joined_case([ALL, OTHER], widths=[2, 1])
    assert DEALER not in case.parties
    with pytest.raises(ValueError, match="dealer"):
        replace_of(case.joining, product="gram")
    with pytest.raises(ValueError, match="dealer"):
        replace_of(case.joining, dealer=DEALER)
    with pytest.raises(ValueError, match="without a product"):
        Dealer(case.joining, seeded(0))
    with pytest.raises(ValueError, match="2 lists"):
        replace_of(case.joining, widths=[1])


def replace_of(joining: Joining, **changes: Any) -> Joining:
    filled: dict[str, Any] = {"widths": joining.widths, "matcher": MATCHER, "helper": HELPER, "field": WIDE}
    return Joining.of((S1, S2), (S1, S2), (20, 25), bytes(32), **(filled | changes))


# -- what shows of n -----------------------------------------------------------------------------------------


class Watched:
    """A party whose progress, which its node tells the coordinator, and whose mark are written down."""

    def __init__(self, party: Party, told: list[Any]) -> None:
        self.party, self.told = party, told

    def start(self) -> Any:
        return self._seen(self.party.start())

    def receive(self, message: Incoming) -> Any:
        return self._seen(self.party.receive(message))

    def _seen(self, step: Any) -> Any:
        if isinstance(step, Waiting):
            self.told.append((step.progress, step.answering))
        return step


@pytest.mark.parametrize("product", [None, "gram"])
def test_neither_frames_nor_progress_depend_on_who_is_joined(product):
    seen = []
    for others in (range(100, 125), range(19, 44), range(25), range(10, 35)):
        case = joined_case(
            [ALL, {person: [1] for person in others}],
            widths=[2, 1],
            product=product,
            open_sizes=[[], []] if product else [[3], []],
        )
        told: list[Any] = []
        case.parties = {role: Watched(party, told) for role, party in case.parties.items()}
        case.play()
        seen.append((frames(case), told))
    assert all(each == seen[0] for each in seen)


def test_a_list_owner_answers_with_its_rows_and_not_before():
    case = joined_case([ALL, OTHER, OTHER], widths=[2, 1, 1], product="gram")
    before: dict[Role, list[int]] = {}

    class Marked(Watched):
        def __init__(self, role: Role, party: Party) -> None:
            super().__init__(party, [])
            self.role, self.marked = role, False

        def _seen(self, step: Any) -> Any:
            self.marked |= isinstance(step, Finished) or step.answering
            outgoing = list(step.outgoing)
            if not self.marked:
                before.setdefault(self.role, []).extend(m.round for m in outgoing)
            return replace(step, outgoing=outgoing)

    case.parties = {role: Marked(role, party) for role, party in case.parties.items()}
    case.play()
    for owner in (S1, S2, S3):
        assert before[owner]
        assert all(tagging.is_tagging(number) for number in before[owner])


def test_nothing_of_the_joined_rows_leaves_where_there_are_too_few():
    def admit(n: int) -> None:
        raise ProtocolAborted(f"{n > 0}", code="guard-few-joined")

    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram", admit=admit)
    with pytest.raises(ProtocolAborted) as error:
        case.play()
    assert error.value.code == "guard-few-joined"
    assert not any(m.sender == MATCHER or m.to == DEALER for m in case.sent)


def test_a_dealer_is_done_when_its_part_and_the_alignment_have_come_and_not_before():
    """Whoever is done can take part in no other attempt, and one whose rows never came is made again."""
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    case.play()
    (at,) = (place for place, m in enumerate(case.sent) if m.to == DEALER)
    rounds = {m.round for m in case.sent[:at]}
    assert {SEED, ROWS, DEAL, ALIGN} <= rounds
    assert not {SEED, ROWS, DEAL, ALIGN} & {m.round for m in case.sent[at:]}
    assert (case.sent[at].sender, case.sent[at].round, case.sent[at].body) == (HELPER, DEALT, b"")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Incoming(HELPER, DEALT, b"\x00"), "bad-length"),
        (Incoming(HELPER, DEALT, b"", last=False), "bad-length"),
        (Incoming(MATCHER, DEALT, b""), "unexpected-message"),
        (Incoming(S1, DEALT, b""), "unexpected-message"),
        (Incoming(HELPER, DEAL, b""), "unexpected-message"),
    ],
)
def test_a_dealer_is_done_by_nothing_else(message, code):
    dealer = joined_case([ALL, OTHER], widths=[2, 1], product="gram").parties[DEALER]
    dealer.start()
    with pytest.raises(ProtocolAborted) as error:
        dealer.receive(message)
    assert error.value.code == code
    assert isinstance(dealer.receive(Incoming(HELPER, DEALT, b"")), Finished)


def seen_by(rand: Any, calls: list[int]) -> Any:
    """Return `rand` that writes down how many bytes it is asked for."""

    def drawing(count: int) -> bytes:
        calls.append(count)
        drawn: bytes = rand(count)
        return drawn

    return drawing


@pytest.mark.parametrize("grouped", [False, True])
def test_the_matcher_and_the_helper_handle_as_many_rows_however_many_are_joined(grouped, monkeypatch):
    sums, done = Field.sums, []
    monkeypatch.setattr(Field, "sums", lambda *args: done.append(args[1].shape) or sums(*args))
    for name in ("filled", "cleared"):
        of = getattr(align, name)
        kept = lambda column, other, of=of: done.append(len(column)) or of(column, other)  # noqa: E731
        monkeypatch.setattr(align, name, kept)
        monkeypatch.setattr(parties, name, kept)
    seen = []
    for others in (range(100, 125), range(19, 44), range(25), range(10, 35)):
        case = joined_case(
            [Listed(ALL, {p: [p % 3] for p in ALL} if grouped else {}), {person: [1] for person in others}],
            widths=[2, 1],
            open_sizes=[[3], []] if grouped else [[], []],
        )
        matcher = case.parties[MATCHER]
        matcher._rand = seen_by(seeded("work"), calls := [])  # type: ignore[attr-defined]  # what it draws
        done.clear()
        check(case)
        seen.append((calls, [*done]))
    assert all(each == seen[0] for each in seen)
    assert seen[0][0][0] == 8 * 21
    # Both fill up and clear both lists' columns, and add up all rows of them.
    assert [seen[0][1].count(each) for each in (20, (20, 2), (20, 1))] == [8, 2, 2]


def test_codes_of_those_who_wait_are_those_of_persons_who_count():
    """Left at 0 they would show the matcher how many wait: here nobody who counts has the code 0."""
    people = {person: [0] for person in range(60)}
    codes = {person: [1 + person % 2, 4] for person in people}
    waiting = frozenset(range(0, 60, 3))
    zeros = {person: [0, 0] if person in waiting else code for person, code in codes.items()}
    listed = Listed(people, zeros, waiting)
    case = joined_case([listed, {1: [1]}], open_sizes=[[3, 5], []])
    check(case)
    rows = np.frombuffer(case.bodies(S1, MATCHER, ROWS), dtype=np.uint8).reshape(-1, 16 + 4 + 8)
    shown = np.ascontiguousarray(rows[:, 16:20]).view("<u2")
    assert sorted(set(map(tuple, shown.tolist()))) == [(0, 0), (1, 4), (2, 4)]
    assert (shown == 0).all(axis=1).sum() == 1  # the stand-in
    nobody = joined_case([Listed(people, zeros, frozenset(people)), {1: [1]}], open_sizes=[[3, 5], []])
    assert check(nobody).n == 0


def test_halves_of_the_challenge_are_drawn_when_the_dealers_part_is_there_and_both_count(monkeypatch):
    monkeypatch.setattr(parties, "MAX_BODY_BYTES", 48)
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    log: list[Any] = []
    for role in (MATCHER, HELPER):
        party: Any = case.parties[role]

        def drawing(count: int, role: Role = role, rand: Any = party._rand) -> bytes:
            log.append((role, count))
            drawn: bytes = rand(count)
            return drawn

        party._rand = drawing
    challenged = []
    given = Multiplier.challenge
    monkeypatch.setattr(
        Multiplier, "challenge", lambda self, coin: challenged.append(coin) or given(self, coin)
    )

    class Logged(Watched):
        def __init__(self, role: Role) -> None:
            super().__init__(case.parties[role], [])
            self.role = role

        def receive(self, message: Incoming) -> Any:
            log.append((self.role, message.round, message.last))
            return super().receive(message)

    case.parties |= {role: Logged(role) for role in (MATCHER, HELPER)}
    case.play()
    assert sum(each == (HELPER, DEAL, False) for each in log) == 1
    for role in (MATCHER, HELPER):
        assert log.index((role, 16)) > log.index((role, DEAL, True))
    coin = case.bodies(MATCHER, HELPER, COIN) + case.bodies(HELPER, MATCHER, COIN)
    assert len(coin) == 32
    assert challenged == [coin, coin]


def test_the_matchers_half_of_the_challenge_does_not_leave_before_it_has_the_dealers_seed():
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    held: list[Incoming] = []
    early: list[int] = []

    class Late(Watched):
        def receive(self, message: Incoming) -> Any:
            if message.round == DEAL:
                held.append(message)
                return Waiting((), parties.Progress("held", 0, 1))
            step = super().receive(message)
            step = replace(step, outgoing=tuple(step.outgoing))
            early.extend(m.round for m in step.outgoing)
            return step

    case.parties[MATCHER] = Late(case.parties[MATCHER], [])
    with pytest.raises(ProtocolAborted):
        case.play()
    assert len(held) == 1
    assert ALIGN in early
    assert COIN not in early
    inner: Any = case.parties[MATCHER]
    assert [m.round for m in inner.party.receive(held[0]).outgoing] == [COIN]


def test_the_matcher_lets_go_of_tags_codes_and_rows_that_are_not_joined():
    case = joined_case([ALL, OTHER], widths=[2, 1], open_sizes=[[2], []])
    case.play()
    for each in case.parties[MATCHER]._lists:  # type: ignore[attr-defined]  # what it keeps
        for kept in (each.tags, each.codes, each._words):
            assert not len(kept)
            assert kept.base is None


# -- keys and labels of streams ------------------------------------------------------------------------------


def derived(secret: bytes, ctx: bytes, names: Sequence[str], label: str) -> bytes:
    """Return a stream's key as sums/SPEC.md says, made without the package."""
    words = [name.encode() for name in (*names, label)]
    info = b"minshu/sums-mask/1" + ctx + b"".join(bytes([len(word)]) + word for word in words)
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def test_streams_have_the_keys_of_the_document_each_its_own():
    ctx, other, secret = b"c" * 32, b"d" * 32, b"s" * 32
    joining = joined_case([ALL, OTHER], widths=[2, 1], product="gram", ctx=ctx).joining
    assert joining.mask_key(secret, S1) == derived(secret, ctx, ("source-1", "helper"), "joined-rows")
    assert joining.mask_key(secret, S1) != derived(secret, other, ("source-1", "helper"), "joined-rows")
    shape = joining.shape
    assert shape is not None
    words = WIDE.stream(derived(secret, ctx, ("dealer", "matcher"), "joined-triple/masks")).take(20, 4)
    np.testing.assert_array_equal(triples.masks_of(shape, secret, ctx, MATCHER).take(20, 4), words)
    multiplier = Multiplier(shape, secret, ctx, first=True, corrections=None)
    multiplier.challenge(secret)
    weights = WIDE.stream(derived(secret, ctx, ("matcher", "helper"), "joined-triple/challenge")).take(1, 3)
    np.testing.assert_array_equal(multiplier._weights, weights)
    # The matcher's share of the correction: what the dealer sends the helper is the product less that.
    seeds = b"1" * 32, b"2" * 32
    sent = WIDE.read(deal(shape, *seeds, ctx), 1)[:, 0]
    masks = [
        WIDE.stream(derived(seed, ctx, ("dealer", name), "joined-triple/masks")).take(20, 4)
        for seed, name in zip(seeds, ("matcher", "helper"), strict=True)
    ]
    a = WIDE.add(*masks)[:, :3].astype(object)
    own = WIDE.stream(derived(seeds[0], ctx, ("dealer", "matcher"), "joined-triple/corrections")).take(1, 7)
    c = (a.T @ a)[np.triu_indices(3)]
    assert [(int(x) + int(y)) % WIDE.prime for x, y in zip(sent[:6], own[0, :6], strict=True)] == [
        int(each) % WIDE.prime for each in c
    ]


# -- room ----------------------------------------------------------------------------------------------------


def test_what_no_node_has_memory_for_is_refused_from_sizes_alone():
    def joining(count: int, widths: Sequence[int], product: Any = None) -> Joining:
        dealer = None if product is None else DEALER
        return Joining.of(
            (S1, S2), (S1, S2), (count, count), bytes(32), matcher=MATCHER, helper=HELPER, dealer=dealer,
            field=WIDE, widths=widths, product=product,
        )  # fmt: skip

    million = joining(10**6, [3, 3], "gram")
    million.check_room()
    lists = 2 * (10**6 + 1) * (16 + 24)
    assert million.room == lists + 10**6 * (48 + 8) + 48 + 9 * 8 * 36
    for wrong in (joining(10**6, [4096, 0]), joining(10, [4096, 40_000], (0, 1)), joining(1 << 28, [1, 1])):
        with pytest.raises(ProtocolAborted) as error:
            wrong.check_room()
        assert error.value.code == "guard-too-large"
    joining(1 << 26, [1, 1]).check_room()


# -- messages that are none ----------------------------------------------------------------------------------


class Changing:
    """A party whose messages go through `change`."""

    def __init__(self, party: Party, change: Callable[[Outgoing], Iterable[Outgoing]]) -> None:
        self.party, self.change = party, change

    def start(self) -> Any:
        return self._through(self.party.start())

    def receive(self, message: Incoming) -> Any:
        return self._through(self.party.receive(message))

    def _through(self, step: Any) -> Any:
        return replace(step, outgoing=(out for each in step.outgoing for out in self.change(each)))


def broken(of: Role, change: Callable[[Outgoing], Iterable[Outgoing]], **how: Any) -> str:
    """Play while the messages of one party are changed; return the code of the end."""
    how = {"product": "gram"} | how
    case = joined_case([ALL, OTHER, OTHER], widths=[2, 1, 1], **how)
    case.parties[of] = Changing(case.parties[of], change)
    with pytest.raises(ProtocolAborted) as error:
        case.play()
    assert not case.totals
    return error.value.code


def edit(number: int, how: Callable[[bytes], bytes], to: Role | None = None) -> Any:
    return lambda m: [replace(m, body=how(m.body)) if m.round == number and to in (None, m.to) else m]


GROUPED: dict[str, Any] = {"product": None, "open_sizes": [[3], [], [2]]}
SENT: list[tuple[Role, int, Role, dict[str, Any]]] = [
    (S1, SEED, HELPER, {}),
    (S2, ROWS, MATCHER, {}),
    (MATCHER, ALIGN, HELPER, {}),
    (MATCHER, GROUPS, HELPER, GROUPED),
    (MATCHER, COIN, HELPER, {}),
    (HELPER, COIN, MATCHER, {}),
    (DEALER, DEAL, MATCHER, {}),
    (DEALER, DEAL, HELPER, {}),
    (MATCHER, BLOCK, HELPER, {}),
    (HELPER, BLOCK, MATCHER, {}),
    (MATCHER, CHECK, HELPER, {}),
    (HELPER, CHECK, MATCHER, {}),
    (HELPER, FINAL, MATCHER, {}),
]
LENGTHS = {"bad-length", "too-few-items", "too-many-items"}


@pytest.mark.parametrize(("of", "number", "to", "how"), SENT)
def test_a_message_of_another_size_is_refused(of, number, to, how):
    for change in (lambda b: b[:-1], lambda b: b + b"\x00", lambda b: b"", lambda b: b[8:], lambda b: b + b):
        assert broken(of, edit(number, change, to), **how) in LENGTHS


@pytest.mark.parametrize(("of", "number", "to", "how"), SENT)
def test_a_stream_that_does_not_end_or_ends_twice_is_refused(of, number, to, how):
    open_ended = lambda m: [replace(m, last=False) if (m.round, m.to) == (number, to) else m]  # noqa: E731
    assert broken(of, open_ended, **how) in LENGTHS | {"unexpected-message"}

    def again(m: Outgoing) -> Iterable[Outgoing]:
        if (m.round, m.to) != (number, to):
            return [m]
        return [replace(m, last=False), m]

    assert broken(of, again, **how) in LENGTHS | {"unexpected-message"}


@pytest.mark.parametrize(("of", "number", "to", "how"), SENT)
@pytest.mark.parametrize("wrong", [0x0400, 0x2A00, 0x3400])
def test_a_message_of_a_round_that_is_none_is_refused(of, number, to, how, wrong):
    change = lambda m: [replace(m, round=wrong) if (m.round, m.to) == (number, to) else m]  # noqa: E731
    assert broken(of, change, **how) == "unexpected-message"


@pytest.mark.parametrize(
    ("to", "sender", "number"),
    [
        (MATCHER, HELPER, number)  # before rows are aligned, nothing of the helper is due
        for number in (COIN, BLOCK, CHECK, FINAL, ALIGN, SEED)
    ]
    + [(MATCHER, S1, SEED), (MATCHER, S1, FINAL), (MATCHER, DEALER, ROWS), (MATCHER, S4, ROWS)]
    + [(MATCHER, HELPER, DEAL), (HELPER, MATCHER, DEAL), (HELPER, DEALER, ALIGN), (HELPER, DEALER, COIN)]
    + [(HELPER, MATCHER, number) for number in (BLOCK, CHECK, FINAL, SEED, ROWS, GROUPS)]
    + [(HELPER, S1, ROWS), (HELPER, S1, ALIGN), (HELPER, S4, SEED), (DEALER, MATCHER, COIN)]
    + [(S1, S2, ROWS), (S1, MATCHER, ALIGN), (S1, HELPER, SEED)],
)
def test_a_message_that_is_not_due_is_refused(to, sender, number):
    party = joined_case([ALL, OTHER], widths=[2, 1], product="gram").parties[to]
    with pytest.raises(ProtocolAborted) as error:
        party.receive(Incoming(sender, number, bytes(32)))
    assert error.value.code == "unexpected-message"


def rows(m: Outgoing, change: Callable[[np.ndarray], None]) -> list[Outgoing]:
    """Change rows of 16 bytes of tag and one word."""
    if m.round != ROWS:
        return [m]
    table = np.frombuffer(m.body, dtype=np.uint8).reshape(-1, 24).copy()
    change(table)
    return [replace(m, body=table.tobytes())]


def test_tags_out_of_order_or_twice_are_refused():
    assert broken(S2, lambda m: rows(m, lambda t: t.__setitem__(slice(0, 2), t[[1, 0]]))) == "bad-tags"
    assert broken(S2, lambda m: rows(m, lambda t: t.__setitem__((1, slice(16)), t[0, :16]))) == "bad-tags"


@pytest.mark.parametrize(
    ("of", "number"), [(S2, ROWS), (DEALER, DEAL), (HELPER, BLOCK), (MATCHER, BLOCK), (HELPER, FINAL)]
)
def test_a_word_that_is_none_is_refused(of, number):
    to = HELPER if number == DEAL else None
    assert broken(of, edit(number, lambda body: body[:-8] + b"\xff" * 8, to)) == "bad-word"
    # The prime itself is no residue.
    prime = WIDE.prime.to_bytes(8, "little")
    assert broken(of, edit(number, lambda body: body[:-8] + prime, to)) == "bad-word"


def test_a_code_that_the_axis_does_not_have_is_refused():
    change = lambda body: body[:16] + b"\x03\x00" + body[18:]  # noqa: E731  # one line
    assert broken(S1, edit(ROWS, change), **GROUPED) == "bad-code"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.__setitem__((0, 1), 26),  # with the stand-in the list has places 0 to 25
        lambda p: p.__setitem__((0, 1), p[1, 1]),
        lambda p: p.__setitem__((0, 1), 0xFFFFFFFF),
        lambda p: p.__setitem__(slice(None), p[::-1].copy()),
    ],
)
def test_an_alignment_that_is_none_is_refused(change):
    def changed(body: bytes) -> bytes:
        positions = np.frombuffer(body, dtype="<u4").reshape(-1, 3).copy()
        change(positions)
        return positions.tobytes()

    assert broken(MATCHER, edit(ALIGN, changed)) == "bad-alignment"


def test_groups_that_are_not_the_joined_rows_are_refused():
    more = lambda body: (int.from_bytes(body[:4], "little") + 1).to_bytes(4, "little") + body[4:]  # noqa: E731
    assert broken(MATCHER, edit(GROUPS, more), **GROUPED) == "bad-groups"


@pytest.mark.parametrize("field", [WIDE, NARROW])
@pytest.mark.parametrize("product", ["gram", (0, 2)])
def test_a_dealer_that_sends_a_wrong_correction_ends_the_attempt_before_any_sum_is_opened(field, product):
    """Every word of the correction, one after the other, with one bit turned, at either side."""
    size = len(joined_dealt(field, product))
    for at in range(32, size, field.bytes):
        flip = lambda body, at=at: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]  # noqa: E731
        opened: list[Sent] = []
        case = joined_case([ALL, OTHER, OTHER], widths=[2, 1, 1], field=field, product=product, seed=at)
        case.parties[DEALER] = Changing(case.parties[DEALER], edit(DEAL, flip, HELPER))
        with pytest.raises(ProtocolAborted) as error:
            run(case.parties, observe=opened.append)
        assert error.value.code == "bad-triple"
        assert not any(m.round == FINAL for m in opened)
        assert not case.totals


def joined_dealt(field: Field, product: Any) -> bytes:
    case = joined_case([ALL, OTHER, OTHER], widths=[2, 1, 1], field=field, product=product)
    case.play()
    return case.bodies(DEALER, HELPER, DEAL)


def test_a_dealer_that_sends_other_seeds_to_one_is_found_by_both():
    change = edit(DEAL, lambda body: bytes([body[0] ^ 1]) + body[1:], MATCHER)
    assert broken(DEALER, change) == "bad-triple"
    # Each by itself, from what the other sends.
    for role in (MATCHER, HELPER):
        case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
        case.parties[DEALER] = Changing(case.parties[DEALER], change)
        other = HELPER if role == MATCHER else MATCHER
        with pytest.raises(ProtocolAborted) as error:
            run(case.parties | {other: Blind(case.parties[other])})
        assert error.value.code == "bad-triple"


class Blind(Watched):
    """A party that takes any share of the check for right."""

    def __init__(self, party: Any) -> None:
        super().__init__(party, [])
        self.inner = party

    def receive(self, message: Incoming) -> Any:
        if message.round == CHECK:
            multiplier = self.inner._side._multiplier
            multiplier.verify = lambda peer: setattr(multiplier, "_verified", True)
        return super().receive(message)


def test_a_list_that_has_changed_since_its_admission_cannot_take_part():
    joining = joined_case([ALL, OTHER], widths=[2, 1]).joining
    keys = np.array([key_of(person) for person in range(19)])
    with pytest.raises(ProtocolAborted) as error:
        Holder(joining, S1, keys, lambda places: places[:, None], np.zeros((19, 0), np.uint16), seeded(0))
    assert error.value.code == "count-changed"


def test_a_value_beyond_the_field_is_not_masked_but_refused():
    case = joined_case([{1: [WIDE.reach + 1]}, {1: [0]}])
    with pytest.raises(ProtocolAborted) as error:
        case.play()
    assert error.value.code == "guard-overflow"


# -- a helper that restarts ----------------------------------------------------------------------------------


def test_a_helper_that_restarts_cannot_go_on_and_a_new_attempt_shares_nothing_with_the_old_one():
    first = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="first", ctx=b"1" * 32)
    fresh = Helper(first.joining, seeded("restarted"), noise=None)
    original = first.parties[HELPER]

    class Restarting(Watched):
        def receive(self, message: Incoming) -> Any:
            if message.round == BLOCK:
                self.party = fresh
            return super().receive(message)

    first.parties[HELPER] = Restarting(original, [])
    with pytest.raises(ProtocolAborted) as error:
        first.play()
    assert error.value.code == "unexpected-message"
    assert not first.totals

    second = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="second", ctx=b"2" * 32)
    check(second)
    for number in (SEED, ROWS, DEAL, COIN, BLOCK):
        old, new = ({m.body for m in case.sent if m.round == number} for case in (first, second))
        assert old
        assert not old & new
    # The words that the matcher has of both attempts are under masks that have nothing to do with each other.
    old_rows, new_rows = (first.bodies(S1, MATCHER, ROWS), second.bodies(S1, MATCHER, ROWS))
    assert not set(words_in(old_rows, 2).ravel()) & set(words_in(new_rows, 2).ravel())


def test_a_matcher_that_restarts_cannot_go_on():
    for number in (ROWS, DEAL, COIN, BLOCK, CHECK, FINAL):
        fresh = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="again").parties[MATCHER]

        class Restarting(Watched):
            fresh: Any
            number: int
            count = 0

            def receive(self, message: Incoming) -> Any:
                if message.round == self.number:
                    self.count += 1
                    # Of two lists the first has come.
                    if self.number != ROWS or self.count == 2:
                        self.party = self.fresh
                return super().receive(message)

        case = joined_case([ALL, OTHER], widths=[2, 1], product="gram", seed="first", ctx=b"1" * 32)
        restarting = Restarting(case.parties[MATCHER], [])
        restarting.fresh, restarting.number = fresh, number
        case.parties[MATCHER] = restarting
        with pytest.raises(ProtocolAborted):
            case.play()
        assert not case.totals


# -- every share is uniform ----------------------------------------------------------------------------------

SAME = {person: [1, 0] for person in range(40)}  # as far from uniform as words can be
SHARES: dict[str, tuple[Role, Role, int]] = {
    "masked words at the matcher": (S1, MATCHER, ROWS),
    "matcher's openings": (MATCHER, HELPER, BLOCK),
    "helper's openings": (HELPER, MATCHER, BLOCK),
    "helper's sums": (HELPER, MATCHER, FINAL),
    "dealer's correction": (DEALER, HELPER, DEAL),
}


def words_in(body: bytes, width: int) -> np.ndarray:
    table = np.frombuffer(body, dtype=np.uint8).reshape(-1, 16 + 8 * width)
    return np.ascontiguousarray(table[:, 16:]).view("<u8")


def shares(field: Field, seeds: Iterable[object]) -> dict[str, np.ndarray]:
    """Return the words of every share that is sent, of several attempts over constant rows."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SHARES} | {"both openings": []}
    for seed in seeds:
        ctx = f"{seed}".rjust(32).encode()
        case = joined_case([SAME, SAME], widths=[2, 2], product="gram", field=field, seed=seed, ctx=ctx)
        case.play()
        openings = []
        for name, (sender, to, number) in SHARES.items():
            body = case.bodies(sender, to, number)
            if number == ROWS:
                row = 16 + 2 * field.bytes
                table = np.frombuffer(body, dtype=np.uint8).reshape(-1, row)
                body = table[:, 16:].tobytes()
            words = np.frombuffer(body[32 if number == DEAL else 0 :], dtype=field.dtype)
            found[name].append(words)
            openings += [words] if number == BLOCK else []
        found["both openings"].append(field.add(*openings))
    return {name: np.concatenate(words) for name, words in found.items()}


def p_value(field: Field, words: np.ndarray) -> float:
    """Return how likely words are no more uneven than these in 16 classes by size, if they are uniform."""
    classes = np.bincount((words.astype(object) * 16 // field.prime).astype(int), minlength=16)
    assert classes.sum() >= 80
    return float(chisquare(classes).pvalue)


@pytest.mark.parametrize("field", [WIDE, NARROW])
def test_every_share_that_anybody_receives_is_uniform(field):
    # Six p-values for each field, of a seed that is fixed; false alarm 1e-6 each.
    for name, words in shares(field, range(8)).items():
        assert p_value(field, words) > 1e-6, name
    # And both openings together, which each of the two has, are no row and not what one of them was.
    assert len(words) == 8 * 40 * (4 + field.checks)


def test_without_masks_that_test_would_fail_for_each_of_them(monkeypatch):
    taken = Stream.take
    for left_out in ("rows", "triple"):

        def take(self: Stream, rows: int, width: int, left_out: str = left_out) -> Any:
            words = taken(self, rows, width)
            masks_rows = (rows, width) == (41, 2)
            return words * 0 if masks_rows == (left_out == "rows") else words

        monkeypatch.setattr(Stream, "take", take)
        found = shares(WIDE, range(8))
        uneven = {name for name, words in found.items() if p_value(WIDE, words) < 1e-6}
        if left_out == "rows":
            assert {"masked words at the matcher", "helper's sums"} <= uneven
        else:
            assert {"both openings", "dealer's correction"} <= uneven
        monkeypatch.setattr(Stream, "take", taken)


def test_the_helper_is_sent_nothing_that_depends_on_a_value():
    """But for openings, which the test before shows to be uniform, and shares of a check that cancel."""
    seen = []
    for change in (0, 1):
        people: Sequence[Any] = [{p: [w + change for w in row] for p, row in SAME.items()}] * 2
        case = joined_case(people, widths=[2, 2], product="gram", seed="h")
        case.play()
        seen.append([(m.sender, m.round, m.body) for m in case.sent if m.to == HELPER and m.round < BLOCK])
    assert seen[0] == seen[1]
    assert {(sender, number) for sender, number, _ in seen[0]} == {
        (S1, SEED),
        (S2, SEED),
        (MATCHER, ALIGN),
        (MATCHER, COIN),
        (DEALER, DEAL),
    }


def test_a_matcher_or_helper_that_adds_up_shares_alone_has_a_uniform_word():
    # The matcher's share of the first sum, in 64 attempts over constant rows, in 4 classes; false alarm 1e-6.
    found = []
    for seed in range(64):
        case = joined_case([{1: [1]}, {1: [1]}], seed=seed, ctx=f"{seed}".rjust(32).encode())
        total = case.play().sums[0, 0]
        helper = int(np.frombuffer(case.bodies(HELPER, MATCHER, FINAL), dtype="<u8")[0])
        found.append((int(total) - helper) % WIDE.prime * 4 // WIDE.prime)
    assert chisquare(np.bincount(found, minlength=4)).pvalue > 1e-6


def test_who_is_joined_cannot_be_told_from_where_rows_stand():
    """The helper's view of 100 attempts: each place of a list is as often in each row. False alarm 1e-6."""
    table = np.zeros((4, 4), dtype=np.int64)
    for seed in range(100):
        case = joined_case([{p: [0] for p in range(3)}] * 2, seed=seed, ctx=f"{seed}".rjust(32).encode())
        case.play()
        positions = np.frombuffer(case.bodies(MATCHER, HELPER, ALIGN), dtype="<u4").reshape(-1, 2)
        for row, place in enumerate(positions[:, 0].tolist()):
            table[row, place] += 1
    assert chisquare(table[:3].ravel(), np.full(12, 25)).pvalue > 1e-6


def test_matcher_helper_and_dealer_are_parties_like_others():
    case = joined_case([ALL, OTHER], widths=[2, 1], product="gram")
    assert isinstance(case.parties[MATCHER], Matcher)
    assert isinstance(case.parties[DEALER].start(), Waiting)
    assert isinstance(case, Joined)
