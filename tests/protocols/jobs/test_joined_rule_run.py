"""Whole runs of joined-rule/1: right answers, guards, faults, and what each coalition can compute."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from crosscheck_case import CTX, person
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_rule_case import (
    HARDSHIP,
    LOOSE,
    RULES,
    S1,
    S2,
    S3,
    S4,
    Case,
    clause,
    column,
    households,
    right,
    rule_case,
    rule_spec,
)

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER
from protocols.jobs.joined_rule import RECIPIENT, Params
from protocols.joined import bits, rule_parties, rules
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.joined.parties import ALIGN, DEALT, ROWS, SEED
from protocols.joined.rule_parties import (
    BITS,
    CONTENT_KEY,
    CORRECTIONS,
    ENVELOPES,
    LOCKED,
    LOCKED_BYTES,
    LOCKS,
    OPENINGS,
    READY,
    SEEDS,
    WANTED,
)
from protocols.party import Incoming, Outgoing, Progress, Sent, Step, Waiting
from protocols.psi import envelopes
from protocols.psi.tagging import tags

LISTS = households()


# -- right answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"recipient": "recipient"},
        {"recipient": S1, "records_from": S1},
        {"records_from": S2, "key_holders": [S3, S2]},
        {"join": {S1: "on", S2: "may", S3: "may", S4: "may"}, "recipient": S4},
        {"join": {S1: "on", S2: "on", S3: "on", S4: "on"}, "recipient": S4},
        {"filters": [{"source": S2, "slot": "income", "values": ["x"]}]},
    ],
    ids=lambda params: ",".join(params) or "hardship",
)
def test_exactly_the_persons_are_received_for_whom_the_rule_holds(params: dict[str, Any]) -> None:
    if "filters" in params:
        kept = [{"source": S3, "slot": "kind", "values": ["a"]}]
        lists = [[{**row, "kind": "ab"[row["who"] % 2]} for row in each] for each in LISTS]
        params = {"filters": kept}
    else:
        lists = LISTS
    spec = rule_spec(**params)
    expected = right(spec, lists)
    content = rule_case(spec, lists).released()
    columns = content.table.columns
    assert columns["key"].tolist() == expected
    assert expected
    place = int(str(Params.of(spec).source)[-1]) - 1
    rows = {f"RIC:{person(row['who'])}": row for row in lists[place]}
    assert columns["street"].tolist() == [rows[key].get("street", "") for key in expected]
    assert columns["last_seen"].tolist() == [rows[key].get("last_seen", "") for key in expected]
    assert set(columns["organisation"].tolist()) == {f"department-{place + 1}.example"}
    assert content.facts["rows"] == len(expected)
    assert set(columns) == {"key", "street", "last_seen", "source", "organisation"}  # and no value


SMALL: dict[str, Any] = {
    "columns": [
        column(1, "a", "-9", "9", decimals=1),
        column(2, "b", "-90", "90"),
        column(3, "c", "3", "9"),
    ],
    "records_from": S1,
    "recipient": "recipient",
}
NAMES = ("a", "b", "c", "present(source-3)")


@st.composite
def small_rules(draw: Any) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """A rule over three short lists, and the lists."""
    ways = draw(st.sampled_from([("on", "on", "may"), ("on", "may", "may"), ("on", "on", "may", "not")]))
    bound = st.sampled_from(["0", "-90", "90", "9", "1/3", "-0.05", "2.75", "1000"]) | st.integers(
        -200, 200
    ).map(str)
    weights = st.dictionaries(st.sampled_from(NAMES), st.integers(-3, 3).filter(bool), min_size=1)
    every = draw(st.lists(st.tuples(st.sampled_from(["at_least", "at_most"]), bound, weights), max_size=3))
    # Every column is named, with bounds that hold for many.
    loose = (
        "at_least",
        draw(st.sampled_from(["-500", "-40", "0"])),
        {"a": 1, "b": draw(st.sampled_from([1, -2])), "c": 1},
    )
    people = st.lists(st.integers(0, 9), unique=True, max_size=8)
    value = {
        "a": st.integers(-100, 100).map(lambda tenths: tenths / 10),
        "b": st.integers(-95, 95),
        "c": st.integers(0, 12),
    }
    lists = [
        [{"who": who, **({"abc"[i]: draw(value["abc"[i]])} if i < 3 else {})} for who in draw(people)]
        for i in range(len(ways))
    ]
    for row in lists[0]:
        row["street"] = "s"
    join = {f"source-{i + 1}": way for i, way in enumerate(ways)}
    rule = [clause(sense, text, **each) for sense, text, each in (*every, loose)]
    return {**SMALL, "join": join, "rule": rule}, lists


@settings(max_examples=12, deadline=None)
@given(small_rules())
def test_any_rule_over_any_lists_gives_what_plain_fractions_give(drawn: Any) -> None:
    params, lists = drawn
    spec = rule_spec(len(lists), **params)
    assert rule_case(spec, lists).found() == right(spec, lists)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(small_rules())
def test_many_rules_give_what_plain_fractions_give(drawn: Any) -> None:
    params, lists = drawn
    spec = rule_spec(len(lists), **params)
    assert rule_case(spec, lists).found() == right(spec, lists)


@pytest.mark.parametrize(("bound", "everybody"), [("1000000000", False), ("-1000000000", True)])
def test_nobody_and_everybody_are_answers(bound: str, everybody: bool) -> None:  # a case
    lowest = clause("at_least", bound, cost=1, income=1, support=1)
    spec = rule_spec(rule=[lowest])
    found = rule_case(spec, LISTS).found()
    on = {row["who"] for row in LISTS[0]} & {row["who"] for row in LISTS[1]} - {
        row["who"] for row in LISTS[3]
    }
    assert found == (sorted(f"RIC:{person(n)}" for n in on) if everybody else [])


def test_lists_of_nobody_give_nobody() -> None:
    for empty in (0, 1, 3):
        lists = [[] if i == empty else each for i, each in enumerate(LISTS)]
        assert rule_case(rule_spec(), lists).found() == right(rule_spec(), lists)


def test_who_waits_on_the_only_list_that_is_on_is_not_flagged_and_nor_is_the_stand_in() -> None:
    lists = [
        [{"who": n, "cost": 1.0, "kind": "ab"[n % 2], "street": "s"} for n in range(8)],
        [{"who": n, "income": 5.0} for n in range(3)],
    ]
    spec = rule_spec(
        2,
        join={S1: "on", S2: "may"},
        columns=HARDSHIP["columns"][:2],
        rule=[clause("at_least", "-99999", cost=1, income=1)],
        filters=[{"source": S1, "slot": "kind", "values": ["a"]}],
        recipient="recipient",
    )
    found = rule_case(spec, lists).found()
    assert found == sorted(f"RIC:{person(n)}" for n in (0, 2, 4, 6)) == right(spec, lists)


@pytest.mark.parametrize("how", ["filter", "no amount", "neither"])
def test_who_does_not_count_on_the_only_list_that_is_on_is_no_part_of_what_a_share_is_of(how: str) -> None:
    kept = [{"source": S1, "slot": "kind", "values": ["a"]}]
    first: list[dict[str, Any]] = [{"who": n, "cost": 1.0, "kind": "a", "street": "s"} for n in range(40)]
    for row in first[4:]:
        row.update({"filter": {"kind": "b"}, "no amount": {"cost": None}, "neither": {}}[how])
    lists = [first, [{"who": n, "income": 5.0} for n in range(3)]]
    spec = rule_spec(
        2,
        join={S1: "on", S2: "may"},
        columns=HARDSHIP["columns"][:2],
        rule=[clause("at_least", "-99999", cost=1, income=1)],
        filters=kept,
        recipient="recipient",
    )
    half = replace(LOOSE, max_fraction=Fraction(1, 2))
    run = rule_case(spec, lists, constraints=half)
    assert aborted(run).code == "guard-fraction"
    counts = 40 if how == "neither" else 4
    assert run.parties[MATCHER]._alignment.n == run.parties[HELPER]._joined == counts
    run = rule_case(spec, lists, constraints=LOOSE)
    assert len(run.found()) == counts
    # As many rows go to the helper as before, whoever counts.
    assert sum(len(m.body) for m in run.sent if m.round == ALIGN) == 40 * 2 * 4


def test_many_batches_give_the_same_and_the_dealer_is_asked_for_each(monkeypatch: Any) -> None:
    lists = households(300)
    whole = rule_case(rule_spec(), lists).found()
    assert whole
    monkeypatch.setattr(bits, "MOST_WORDS", 1)
    monkeypatch.setattr(bits, "_SPAN", 5000)
    run = rule_case(rule_spec(), lists)
    assert run.found() == whole == right(rule_spec(), lists)
    asked = [m for m in run.sent if m.round == DEALT]
    batches = run.parties[DEALER]._question.plan.batches
    assert len(batches) == 4
    assert [m.last for m in asked] == [False, False, False, True]


def test_a_dealer_of_a_single_batch_is_done_once_rows_have_come_and_not_before() -> None:
    run = rule_case(rule_spec(), LISTS)
    run.released()
    (at,) = (place for place, m in enumerate(run.sent) if m.to == DEALER)
    assert (run.sent[at].sender, run.sent[at].round, run.sent[at].last) == (HELPER, DEALT, True)
    assert {SEED, ROWS, ALIGN, CORRECTIONS} <= {m.round for m in run.sent[:at]}
    assert not {SEED, ROWS, ALIGN, CORRECTIONS} & {m.round for m in run.sent[at:]}


# -- guards --------------------------------------------------------------------------------------------------


def aborted(run: Case) -> ProtocolAborted:
    with pytest.raises(ProtocolAborted) as error:
        run.released()
    return error.value


def rounds(run: Case) -> set[int]:
    return {sent.round for sent in run.sent}


def test_too_many_or_too_large_a_share_leaves_before_any_envelope_is_made() -> None:
    flagged = len(right(rule_spec(), LISTS))
    joined = len({row["who"] for row in LISTS[0]} & {row["who"] for row in LISTS[1]}) - len(
        {row["who"] for row in LISTS[0]} & {row["who"] for row in LISTS[1]} & {row["who"] for row in LISTS[3]}
    )
    share = Fraction(flagged, joined)
    right_limits = replace(LOOSE, max_rows=flagged, max_fraction=share)
    assert len(rule_case(rule_spec(), LISTS, constraints=right_limits).found()) == flagged
    for limits, code in (
        (replace(LOOSE, max_rows=flagged - 1), "guard-rows"),
        (replace(LOOSE, max_fraction=share - Fraction(1, 10**6)), "guard-fraction"),
    ):
        run = rule_case(rule_spec(), LISTS, constraints=limits)
        error = aborted(run)
        assert error.code == code
        assert str(flagged) not in error.message
        assert not rounds(run) & {READY, WANTED, LOCKS, LOCKED, CONTENT_KEY, ENVELOPES}


# -- faults --------------------------------------------------------------------------------------------------


@dataclass
class Tampering:
    """A party whose messages of one round go through `change`."""

    party: Any
    number: int
    change: Callable[[Outgoing], list[Outgoing]]

    def start(self) -> Step:
        return self._changed(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._changed(self.party.receive(message))

    def _changed(self, step: Step) -> Step:
        return replace(step, outgoing=self._outgoing(step))

    def _outgoing(self, step: Step) -> Iterator[Outgoing]:
        for message in step.outgoing:
            yield from self.change(message) if message.round == self.number else [message]


def tampered(role: Role, number: int, change: Callable[[Outgoing], list[Outgoing]], **more: Any) -> Case:
    run = rule_case(more.pop("spec", rule_spec(recipient="recipient")), more.pop("lists", FEW), **more)
    run.parties[role] = Tampering(run.parties[role], number, change)
    return run


FEW = households(14)

SENT = [
    (S1, SEED),
    (S2, ROWS),
    (MATCHER, ALIGN),
    (DEALER, SEEDS),
    (DEALER, CORRECTIONS),
    (MATCHER, OPENINGS),
    (HELPER, OPENINGS),
    (HELPER, BITS),
    (MATCHER, READY),
    (MATCHER, WANTED),
    (HELPER, LOCKS),
    (S1, LOCKED),
    (S1, CONTENT_KEY),
    (MATCHER, ENVELOPES),
]


@pytest.mark.parametrize(
    ("role", "number"), SENT, ids=lambda each: f"{each:#x}" if isinstance(each, int) else each
)
def test_a_message_of_another_size_or_end_is_refused(role: Role, number: int) -> None:
    changes: list[Callable[[Outgoing], list[Outgoing]]] = [
        lambda m: [replace(m, body=m.body + b"\0")],
        lambda m: [replace(m, body=m.body[:-1] or b"\0")],
        lambda m: [replace(m, last=not m.last)],
        lambda m: [replace(m, last=False), m],
    ]
    for change in changes:
        code = aborted(tampered(role, number, change)).code
        assert code in {
            "bad-length",
            "too-many-items",
            "too-few-items",
            "unexpected-message",
            "bad-triple",
            "stream-truncated",
            "frame-after-last",
        }


def flip(at: int) -> Callable[[Outgoing], list[Outgoing]]:
    def change(message: Outgoing) -> list[Outgoing]:
        body = bytearray(message.body)
        body[at] ^= 1
        return [replace(message, body=bytes(body))]

    return change


def test_a_lock_of_a_true_row_that_was_altered_is_found() -> None:
    def every_first_byte(message: Outgoing) -> list[Outgoing]:
        rows = np.frombuffer(message.body, dtype=np.uint8).reshape(-1, LOCKED_BYTES).copy()
        rows[:, 0] ^= 1
        return [replace(message, body=rows.tobytes())]

    assert aborted(tampered(S1, LOCKED, every_first_byte)).code == "lock-broken"


@pytest.mark.parametrize("at", [0, 12_345, 524_287])
def test_a_wrong_correction_ends_the_attempt_before_a_row_meets_a_triple(at: int) -> None:
    run = tampered(DEALER, CORRECTIONS, flip(at))
    assert aborted(run).code == "bad-triple"
    plan = rule_case(rule_spec(), FEW).parties[MATCHER]._question.plan
    (batch,) = plan.batches
    checks = plan.exchanges(batch) - len(plan.circuit.levels())
    assert BITS not in rounds(run)
    sizes = [len(m.body) for m in run.sent if m.round == OPENINGS and m.sender == MATCHER]
    assert len(sizes) <= checks


def test_corrections_that_are_all_wrong_end_the_attempt() -> None:
    inverted = tampered(
        DEALER, CORRECTIONS, lambda m: [replace(m, body=bytes(byte ^ 255 for byte in m.body))]
    )
    assert aborted(inverted).code == "bad-triple"


@pytest.mark.parametrize(
    ("role", "number", "at", "code"),
    [
        (HELPER, LOCKS, 0, "lock-broken"),
        (HELPER, LOCKS, -1, "lock-broken"),
        (S1, CONTENT_KEY, 0, "envelope-broken"),
        (MATCHER, ENVELOPES, 5, "envelope-broken"),
        (MATCHER, ENVELOPES, 4, "envelope-broken"),
        (MATCHER, ENVELOPES, 0, "envelope-malformed"),
        (MATCHER, ENVELOPES, -1, "envelope-malformed"),
        (MATCHER, ALIGN, -1, "bad-alignment"),
    ],
)
def test_a_wrong_byte_is_refused_with_a_code(role: Role, number: int, at: int, code: str) -> None:
    run = tampered(role, number, flip(at))
    assert aborted(run).code == code


def test_the_helper_gives_no_lock_for_a_row_that_is_none_twice_or_beyond_the_guards() -> None:
    def asking(*numbers: int) -> Callable[[Outgoing], list[Outgoing]]:
        def change(message: Outgoing) -> list[Outgoing]:
            room = len(message.body) // 4
            asked = [*numbers, *[0xFFFFFFFF] * (room - len(numbers))][:room]
            return [replace(message, body=np.array(asked, dtype="<u4").tobytes())]

        return change

    for numbers in ((0, 0), (0xFFFFFFF0,), (11,)):
        assert aborted(tampered(MATCHER, WANTED, asking(*numbers))).code == "bad-rows"
    limits = replace(LOOSE, max_fraction=Fraction(1, 2))
    joined = rule_case(rule_spec(recipient="recipient"), FEW)
    joined.found()
    n = joined.parties[HELPER]._joined
    run = tampered(MATCHER, WANTED, asking(*range(n // 2 + 1)), constraints=limits)
    assert aborted(run).code == "guard-fraction"


def test_a_matcher_that_joins_a_person_whom_the_recipients_list_rules_out_is_found() -> None:
    # Person 0 is on the recipient's list, which is "not": M joins it in all the same.
    spec = rule_spec(rule=[clause("at_least", "0", cost=1, income=1, support=1)])
    lists = [
        [*LISTS[0], {"who": 0, "cost": 9.0, "street": "s"}],
        [*LISTS[1], {"who": 0, "income": 1.0}],
        *LISTS[2:],
    ]
    run = rule_case(spec, lists)
    matcher = run.parties[MATCHER]
    matcher._question = replace(
        matcher._question, rule=replace(matcher._question.rule, ways=("on", "on", "may", "may"))
    )
    assert aborted(run).code in {"bad-alignment", "not-selected"}


def joined_of(lists: list[list[dict[str, Any]]]) -> set[str]:
    on, also, _, out = ({row["who"] for row in each} for each in lists)
    return {f"RIC:{person(who)}" for who in (on & also) - out}


def test_neither_records_nor_helper_show_that_a_matcher_turned_the_bits_of_rows_round() -> None:
    # What the model leaves: shares are not authenticated, so either holder may turn a bit round.
    spec = rule_spec(recipient="recipient")
    others = sorted(joined_of(FEW) - set(right(spec, FEW)))
    assert others
    run = rule_case(spec, FEW)
    matcher = run.parties[MATCHER]
    tell = matcher.tell

    def turned() -> Step:
        matcher._bits = [~each for each in matcher._bits]
        return tell()

    matcher.tell = turned
    assert run.found() == others
    run = tampered(HELPER, BITS, lambda m: [replace(m, body=bytes(byte ^ 255 for byte in m.body))])
    assert run.found() == others


def test_what_is_out_of_turn_is_refused() -> None:
    run = rule_case(rule_spec(), FEW)
    for role in run.spec.roles:
        for sender, number in (
            (S1, 0x7777),
            (MATCHER, READY),
            (HELPER, BITS),
            (DEALER, SEED),
            (S2, OPENINGS),
        ):
            if sender != role:
                with pytest.raises(ProtocolAborted) as error:
                    run.parties[role].receive(Incoming(sender, number, b"x" * 3))
                assert error.value.code in {"unexpected-message", "bad-length"}


# -- what each coalition can compute -------------------------------------------------------------------------

ROLES = (MATCHER, HELPER, DEALER, S1, S2, S3, S4, RECIPIENT)
COALITIONS = [frozenset(each) for size in (1, 2, 3) for each in combinations(ROLES, size)]
NUMBER_OF = {f"RIC:{person(n)}".encode(): n for n in range(60)}


@dataclass
class View:
    """What a coalition has: messages, own lists, and own secrets."""

    members: frozenset[Role]
    run: Case
    messages: list[Sent]

    def body(self, number: int, sender: Role, to: Role | None = None) -> bytes:
        return b"".join(
            m.body for m in self.messages if (m.round, m.sender) == (number, sender) and to in (None, m.to)
        )

    @property
    def question(self) -> rules.Question:
        """Public, so anybody has it."""
        return self.run.parties[MATCHER]._question


def view(run: Case, members: frozenset[Role]) -> View:
    return View(members, run, [m for m in run.sent if m.sender in members or m.to in members])


@pytest.fixture(scope="module")
def played() -> Case:
    run = rule_case(rule_spec(recipient="recipient"), LISTS, seed="views")
    assert run.found()
    return run


def opened(seen: View) -> set[int]:
    """Persons whose envelopes it can read, by every 32 bytes it has as content key, lock key or seed."""
    question = seen.question
    content = [seen.body(CONTENT_KEY, S1), *([seen.run.parties[S1]._seed] if S1 in seen.members else [])]
    content = [key for key in content if len(key) == 32]
    found = set()
    records = seen.body(ENVELOPES, MATCHER)
    for at in range(0, len(records), envelopes.RECORD_BYTES):
        piece = records[at : at + envelopes.RECORD_BYTES]
        found |= read(content, int.from_bytes(piece[1:5], "big"), piece[5:])
    locked = seen.body(LOCKED, S1)
    rows = [locked[at : at + LOCKED_BYTES] for at in range(0, len(locked), LOCKED_BYTES)]
    keys: dict[int, list[bytes]] = {place: [] for place in range(len(rows))}
    given_out = seen.body(LOCKS, HELPER)
    loose = [given_out[at : at + 32] for at in range(0, len(given_out), 32)]
    if seed := seen.body(SEED, S1):
        every = rules.row_keys(question.lock_key(seed), np.arange(len(rows)))
        keys = {place: [key] for place, key in enumerate(every)}
    for place, row in enumerate(rows):
        for key in (*keys[place], *loose):
            try:
                found |= read(content, place, AESGCM(key).decrypt(bytes(12), row, None))
            except InvalidTag:
                continue
    return found


def read(content: list[bytes], position: int, envelope: bytes) -> set[int]:
    for key in content:
        try:
            plain = AESGCM(key).decrypt(envelopes.nonce(position), envelope, envelopes.domain(CTX, 1))
        except InvalidTag:
            continue
        if any(plain):
            return {NUMBER_OF[envelopes.parse(plain)[0][0]]}
    return set()


FLAGGED = {NUMBER_OF[key.encode()] for key in right(rule_spec(recipient="recipient"), LISTS)}
FIRST = {row["who"] for row in LISTS[0]}


@pytest.mark.parametrize("members", COALITIONS, ids=lambda each: "+".join(sorted(each)))
def test_exactly_these_envelopes_can_be_read(played: Case, members: frozenset[Role]) -> None:
    found = opened(view(played, members))
    if S1 in members:  # the content key is its own, and so are the rows
        return
    if members >= {MATCHER, HELPER, RECIPIENT}:
        assert found == FIRST
    else:
        # M + R and H + R open what R receives, and no row that is not true.
        assert found == (FLAGGED if RECIPIENT in members else set())


def words_of(seen: View) -> dict[int, Counter[tuple[int, ...]]]:
    """Words of all rows of a list, if its masked rows and its seed are in view."""
    found = {}
    for index, owner in enumerate((S1, S2, S3, S4)):
        joining = seen.question.joining
        width, body, seed = joining.widths[index], seen.body(ROWS, owner), seen.body(SEED, owner)
        if not (width and body and seed):
            continue
        rows = np.frombuffer(body, dtype=np.uint8).reshape(-1, joining.row_bytes(index))
        masked = np.ascontiguousarray(rows[:, 16:]).view("<u8")
        mask = joining.field.stream(joining.mask_key(seed, owner)).take(len(rows), width)
        plain = (masked + mask).view(np.int64)
        found[index] = Counter(map(tuple, plain.tolist()))
    return found


def true_words(run: Case) -> dict[int, Counter[tuple[int, ...]]]:
    rule, found = run.parties[MATCHER]._question.rule, {}
    for index, owner in enumerate((S1, S2, S3, S4)):
        listed = run.lists[owner]
        if rule.width(index):
            words = rule.words(index, listed.amounts, listed.counted).tolist()
            found[index] = Counter(map(tuple, [*words, [0] * rule.width(index)]))  # and the stand-in
    return found


@pytest.mark.parametrize("members", COALITIONS, ids=lambda each: "+".join(sorted(each)))
def test_only_matcher_and_helper_together_see_words(played: Case, members: frozenset[Role]) -> None:
    found, every = words_of(view(played, members)), true_words(played)
    if members >= {MATCHER, HELPER}:
        assert found == every
    else:
        own = {index for index, owner in enumerate((S1, S2, S3)) if owner in members}
        assert set(found) <= own


def summands(seen: View, seeds: tuple[bytes, bytes]) -> np.ndarray:
    """The low bits of the compared value of each row, as a holder with the dealer's seeds computes them.

    The first AND of a batch opens e = y + b: with the other's b, its own summand is open.
    """
    holder, other = (MATCHER, HELPER) if MATCHER in seen.members else (HELPER, MATCHER)
    plan = seen.question.plan
    (batch,) = plan.batches
    heard = [m.body for m in seen.messages if m.round == OPENINGS and m.sender == other]
    first, second = (seen.body(OPENINGS, role)[:16] for role in (MATCHER, HELPER))
    dealt = bits.Triples(*bits._expanded(plan, batch, seeds[other == HELPER], 3))
    x_mask, y_mask, _ = bits._ordered(dealt, bits._challenge(plan, batch, first, second))
    (width,) = plan.circuit.widths
    opening = next(body for body in heard if len(body) == 2 * 8 * (width - 1) * batch.words)
    d, e = np.frombuffer(opening, dtype="<u8").reshape(2, width - 1, batch.words)
    used = slice(0, (width - 1) * batch.words)
    # The matcher's summand is in x, the helper's in y.
    planes = (e ^ y_mask[used].reshape(e.shape)) if other == HELPER else (d ^ x_mask[used].reshape(d.shape))
    theirs = sum(bits.unpacked(plane).astype(np.int64) << at for at, plane in enumerate(planes))
    shares = SHARES[holder]
    values, _ = shares.batch(batch)
    return (values[0].view(np.int64) + theirs) % (1 << (width - 1))


SHARES: dict[Role, Any] = {}


def test_the_dealer_with_either_holder_sees_the_compared_sums_and_neither_alone(monkeypatch: Any) -> None:
    original = rule_parties.Shares.batch

    def kept(self: Any, batch: Any) -> Any:
        SHARES[MATCHER if self._first else HELPER] = self
        return original(self, batch)

    monkeypatch.setattr(rule_parties.Shares, "batch", kept)
    run = rule_case(rule_spec(recipient="recipient"), LISTS, seed="views")
    run.found()
    monkeypatch.undo()
    dealer = run.parties[DEALER]
    question = run.parties[MATCHER]._question
    (form,) = question.rule.crossing
    sums: Counter[int] = Counter()
    people = [{row["who"]: row for row in each} for each in LISTS]
    for who in (people[0].keys() & people[1].keys()) - people[3].keys():
        value = form.constant + form.factors["cost"] * round(people[0][who]["cost"] * 100)
        value += form.factors["income"] * round(people[1][who]["income"] * 10)
        value += form.factors["support"] * people[2].get(who, {"support": 0})["support"]
        sums[value % (1 << (form.width - 1))] += 1
    n = run.parties[HELPER]._joined
    for holder in (MATCHER, HELPER):
        seen = view(run, frozenset({DEALER, holder}))
        found = summands(seen, (dealer._first, dealer._second))
        assert Counter(found[:n].tolist()) == sums
        alone = summands(view(run, frozenset({holder})), (bytes(32), bytes(32)))
        assert not Counter(alone[:n].tolist()) & sums


def flagged_rows(seen: View) -> dict[int, int]:
    """For each flagged person the aligned row, by records that the recipient opens and the alignment."""
    places = np.frombuffer(seen.body(ALIGN, MATCHER), dtype="<u4").reshape(-1, 4)[:, 0].tolist()
    records, content = seen.body(ENVELOPES, MATCHER), [seen.body(CONTENT_KEY, S1)]
    found = {}
    for at in range(0, len(records), envelopes.RECORD_BYTES):
        piece = records[at : at + envelopes.RECORD_BYTES]
        position = int.from_bytes(piece[1:5], "big")
        for who in read(content, position, piece[5:]):
            found[who] = places.index(position)
    return found


@pytest.mark.parametrize("recipient", [RECIPIENT, S4])
def test_the_recipient_with_others_learns_more_of_flagged_persons_by_name(
    monkeypatch: Any, recipient: Role
) -> None:
    original = rule_parties.Shares.batch

    def kept(self: Any, batch: Any) -> Any:
        SHARES[MATCHER if self._first else HELPER] = self
        return original(self, batch)

    monkeypatch.setattr(rule_parties.Shares, "batch", kept)
    run = rule_case(rule_spec(recipient=recipient), LISTS, seed="views")
    run.found()
    monkeypatch.undo()
    dealer, question = run.parties[DEALER], run.parties[MATCHER]._question
    (form,) = question.rule.crossing
    people = [{row["who"]: row for row in each} for each in LISTS]
    for holder in (MATCHER, HELPER):
        # Which lists that may hold the person do: with the matcher or the helper alone.
        seen = view(run, frozenset({holder, recipient}))
        rows = flagged_rows(seen)
        assert set(rows) == FLAGGED
        places = np.frombuffer(seen.body(ALIGN, MATCHER), dtype="<u4").reshape(-1, 4)
        assert {who: places[row, 2] != 0xFFFFFFFF for who, row in rows.items()} == {
            who: who in people[2] for who in FLAGGED
        }
        # The compared sums: with the dealer, too.
        found = summands(view(run, frozenset({DEALER, holder, recipient})), (dealer._first, dealer._second))
        for who, row in rows.items():
            value = form.constant + form.factors["cost"] * round(people[0][who]["cost"] * 100)
            value += form.factors["income"] * round(people[1][who]["income"] * 10)
            value += form.factors["support"] * people[2].get(who, {"support": 0})["support"]
            assert found[row] == value % (1 << (form.width - 1))


def linked(seen: View, owner: Role) -> dict[int, set[int]]:
    """For each row of a member's list: which lists hold the person, by tags in view."""
    tagged = seen.run.parties[owner]._tagging.tagged
    keys = seen.run.lists[owner].keys
    found = {}
    for index, other in enumerate((S1, S2, S3, S4)):
        body = seen.body(ROWS, other)
        width = seen.question.joining.row_bytes(index)
        held = {body[at : at + 16] for at in range(0, len(body), width)}
        if other == owner or not held:
            continue
        for row, value in zip(tagged.order.tolist(), tagged.values, strict=True):
            if row < len(keys):
                number = NUMBER_OF[keys[row]]
                found.setdefault(number, set())
                if tags(value.reshape(1, 32)).tobytes() in held:
                    found[number].add(index)
    return found


def test_the_matcher_with_a_source_links_its_rows_and_the_helper_with_one_those_joined(played: Case) -> None:
    people = [{row["who"] for row in each} for each in LISTS]
    seen = view(played, frozenset({MATCHER, S2}))
    assert linked(seen, S2) == {n: {i for i in (0, 2, 3) if n in people[i]} for n in people[1]}
    assert linked(view(played, frozenset({HELPER, S2})), S2) == {}
    assert linked(view(played, frozenset({RECIPIENT, S2})), S2) == {}
    seen = view(played, frozenset({HELPER, S2}))
    places = np.frombuffer(seen.body(ALIGN, MATCHER), dtype="<u4").reshape(-1, 4)
    wanted = np.frombuffer(seen.body(WANTED, MATCHER), dtype="<u4")
    tagged, keys = played.parties[S2]._tagging.tagged, played.lists[S2].keys
    rows = {
        at: NUMBER_OF[keys[tagged.order[place]]]
        for at, place in enumerate(places[:, 1])
        if place != 0xFFFFFFFF
    }
    assert set(rows.values()) == (people[0] & people[1]) - people[3]
    assert {rows[at] for at in wanted[wanted != 0xFFFFFFFF]} == FLAGGED
    assert all((places[at, 2] != 0xFFFFFFFF) == (who in people[2]) for at, who in rows.items())


# -- what frames tell ----------------------------------------------------------------------------------------


def shape(run: Case) -> list[tuple[Role, Role, int, int, bool]]:
    return [(m.sender, m.to, m.round, len(m.body), m.last) for m in run.sent]


@dataclass
class Watched:
    """A party whose progress, which its node tells the coordinator, is written down."""

    party: Any
    told: list[Progress | None]

    def start(self) -> Step:
        return self._seen(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._seen(self.party.receive(message))

    def _seen(self, step: Step) -> Step:
        self.told.append(step.progress if isinstance(step, Waiting) else None)
        return step


def test_frames_and_progress_tell_neither_how_many_are_joined_nor_how_many_are_true() -> None:
    seen = []
    moved = [[{**row, "who": (row["who"] + 23 * i) % 97} for row in each] for i, each in enumerate(LISTS)]
    richer = [LISTS[0], [{**row, "income": 300_000.0} for row in LISTS[1]], *LISTS[2:]]
    for lists in (LISTS, moved, richer):
        run = rule_case(rule_spec(recipient="recipient"), lists)
        told: list[Progress | None] = []
        run.parties = {role: Watched(party, told) for role, party in run.parties.items()}
        found = run.found()
        seen.append((len(found), shape(run), told))
    assert len({found for found, _, _ in seen}) == 3
    assert seen[0][1:] == seen[1][1:] == seen[2][1:]


def test_no_identifier_is_in_any_frame_but_those_sealed_for_the_recipient(played: Case) -> None:
    everything = b"".join(sent.body for sent in played.sent)
    for number in range(60):
        plain = person(number).encode()
        for spelling in (
            plain,
            plain[:-1],
            plain[6:14] + plain[14:17],
            b"RIC:" + plain,
            plain.hex().encode(),
        ):
            assert spelling not in everything


def test_masked_words_and_the_shares_of_results_are_uniform() -> None:
    # All values are the same: unmasked, the share of ones would be far from 1/2. By chance it is off by
    # 5 standard deviations once in 1.7e6, for each of two streams.
    lists = [
        [{"who": n, "cost": 1.0, "street": "s"} for n in range(200)],
        [{"who": n, "income": 1.0} for n in range(200)],
        [],
        [],
    ]
    run = rule_case(rule_spec(recipient="recipient"), lists)
    run.found()
    question = run.parties[MATCHER]._question
    rows = np.frombuffer(
        b"".join(m.body for m in run.sent if m.round == ROWS and m.sender == S1), dtype=np.uint8
    ).reshape(-1, question.joining.row_bytes(0))
    masked = np.unpackbits(rows[:, 16:])
    theirs = np.unpackbits(
        np.frombuffer(b"".join(m.body for m in run.sent if m.round == BITS), dtype=np.uint8)
    )
    for ones in (masked, theirs):
        assert abs(ones.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(ones))
    plain = np.unpackbits(np.full((200, 2), [100, 0], dtype=np.uint64).view(np.uint8))
    assert abs(plain.mean() - 0.5) > 50 * 0.5 / np.sqrt(len(plain))


def test_an_attempt_that_begins_again_has_other_secrets_and_the_same_answer() -> None:
    spec = rule_spec(recipient="recipient")
    runs = [rule_case(spec, FEW, seed=seed, ctx=ctx) for seed, ctx in ((1, CTX), (2, CTX[::-1]))]
    found = [run.found() for run in runs]
    assert found[0] == found[1]
    for number in (SEED, SEEDS, CORRECTIONS, ROWS, BITS, LOCKED, CONTENT_KEY):
        bodies = [{m.body for m in run.sent if m.round == number} for run in runs]
        assert not bodies[0] & bodies[1]


def test_every_seat_that_a_run_has_is_spoken_of(played: Case) -> None:
    spoken = {next(iter(members)) for members in RULES.learns(played.spec) if len(members) == 1}
    assert spoken == {*played.spec.roles, Role(REQUESTER), Role(COORDINATOR)}
