"""Lists that do not fit into memory: the same list, the same answer, the same guards; bounded memory."""

import hashlib
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from fractions import Fraction

import crosscheck_case
import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import (
    CROSSCHECK,
    CTX,
    LOOSE,
    ZERO,
    Case,
    case,
    entries,
    job_spec,
    person,
    seeded,
    under_tags,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from node.scratch import DiskScratch
from protocols.errors import ProtocolAborted
from protocols.identifiers import demo_area_table
from protocols.jobs import crosscheck
from protocols.jobs.crosscheck import MATCHER, REGISTER
from protocols.jobs.job_type import Setup, Spills, source
from protocols.party import Incoming
from protocols.psi import envelopes, keyed_list, locks, spread, tagging
from protocols.psi.envelopes import check_selected
from protocols.psi.keyed_list import KeyedList, KeyedListBuilder, SpilledList
from protocols.resources import Resources, in_memory
from protocols.wire import InputSummary

UNTIL = date(2025, 11, 30)

row = st.tuples(
    st.integers(-2, 8),  # below 0: no identity number
    st.sampled_from(["", "990101001", "东街道", "990101002"]),
    st.sampled_from(["", "2024-12", "2025-01"]),
    st.none() | st.dates(date(2025, 11, 1), date(2025, 12, 31)),
)


def built(
    rows: Sequence[tuple[int, str, str, date | None]], cut: int, until: date | None, resources: Resources
) -> KeyedList | SpilledList:
    builder = KeyedListBuilder(
        as_of=date(2026, 1, 1), areas=demo_area_table(), until=until, resources=resources
    )
    for start in range(0, len(rows), cut):
        piece = rows[start : start + cut]
        batch = {
            "key": pa.array([person(number) if number >= 0 else "x" for number, *_ in piece], pa.string()),
            "street": pa.array([street or None for _, street, _, _ in piece], pa.string()),
            "last_seen": pa.array([month or None for _, _, month, _ in piece], pa.string()),
        }
        if until is not None:
            batch["since"] = pa.array([day for *_, day in piece], pa.date32())
        builder.add(batch)
    return builder.finish()


@settings(max_examples=60)
@given(st.lists(row, max_size=40), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_a_list_on_disk_is_the_list_that_memory_would_hold(rows, cut, held, dated):
    until = UNTIL if dated else None
    one = built(rows, cut, until, in_memory())
    other = built(rows, cut, until, Resources(spill_rows=held))
    assert isinstance(one, KeyedList)
    assert isinstance(other, SpilledList) == (sum(number >= 0 for number, *_ in rows) > held)
    for name in ("keys", "streets", "months"):
        assert getattr(entries(one), name).tolist() == getattr(entries(other), name).tolist()
    assert one.street_names == other.street_names
    assert one.quality() == other.quality()
    assert one.commitment(bytes(32)) == other.commitment(bytes(32))
    assert (one.rows, one.distinct_keys, one.rule_version) == (
        other.rows,
        other.distinct_keys,
        other.rule_version,
    )
    assert b"".join(block.tobytes() for block in other.key_blocks()) == entries(other).keys.tobytes()


def lists() -> list[dict[int, tuple[str, str]]]:
    return [
        dict.fromkeys(range(30), ("", "")),
        dict.fromkeys(range(15, 60), ("990101001", "2025-11")),
        dict.fromkeys(range(22, 68), ("990101002", "2025-10")),
        dict.fromkeys(range(8, 52), ("990102001", "2025-09")),
    ]


@pytest.fixture
def spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crosscheck_case, "HELD_ROWS", 7)


def keys_of(run: Case) -> list[str]:
    keys: list[str] = run.released()[0].table.columns["key"].tolist()
    return keys


@pytest.mark.parametrize("params", [{"k": 1}, {"k": 2}, {"k": 3}, {"present_in": "all"}])
def test_the_answer_is_the_same(params, monkeypatch):
    one = keys_of(case(lists(), **params))
    monkeypatch.setattr(crosscheck_case, "HELD_ROWS", 7)
    run = case(lists(), **params)
    assert all(isinstance(listed, SpilledList) for listed in run.lists.values())
    assert keys_of(run) == one != []


def test_messages_have_the_same_number_and_size(monkeypatch):
    def frames(run: Case) -> list[tuple[str, str, int, int, bool]]:
        run.run()
        return [(m.sender, m.to, m.round, len(m.body), m.last) for m in run.sent]

    one = frames(case(lists(), k=2))
    monkeypatch.setattr(crosscheck_case, "HELD_ROWS", 7)
    assert frames(case(lists(), k=2)) == one


@pytest.mark.usefixtures("spilled")
@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_rows": 3}, "guard-rows"),
        ({"max_fraction": Fraction(1, 10)}, "guard-fraction"),
        ({"min_coverage": Fraction(9, 10)}, "guard-coverage"),
    ],
)
def test_every_guard_comes_before_anything_but_tags(limit, code):
    run = case(lists(), k=2, constraints=replace(LOOSE, **limit))
    with pytest.raises(ProtocolAborted) as aborted:
        run.run()
    assert aborted.value.code == code
    assert max(sent.round for sent in run.sent) == crosscheck.TAGS


@pytest.mark.usefixtures("spilled")
def test_keys_go_around_in_another_order_than_the_list_and_come_back_with_their_rows():
    run = case(lists(), k=2)
    run.run()
    for role, listed in run.lists.items():
        found = [key for key, _ in under_tags(run.parties[role])]
        assert found != entries(listed).keys.tolist()
        assert sorted(found) == entries(listed).keys.tolist()


@pytest.mark.usefixtures("spilled")
def test_a_key_holder_that_returns_one_point_for_many_is_found_out():
    run = case(lists(), k=2)
    honest = run.parties[source(2)]

    class Fooled:
        def start(self):
            return honest.start()

        def receive(self, message: Incoming):
            if message.round >> 8 == 3:
                message = replace(message, body=message.body[:32] * (len(message.body) // 32))
            return honest.receive(message)

    run.parties[source(2)] = Fooled()
    with pytest.raises(ProtocolAborted) as aborted:
        run.run()
    assert aborted.value.code == "repeated-tag"


def test_the_job_type_says_that_its_lists_may_be_long():
    assert isinstance(CROSSCHECK, Spills)


def test_a_whole_job_on_disk_leaves_nothing_there(tmp_path, monkeypatch):
    disks: list[DiskScratch] = []

    def on_disk() -> Resources:
        disks.append(DiskScratch(tmp_path / "scratch"))
        return Resources(disks[-1], spill_rows=7)

    one = keys_of(case(lists(), k=2))
    monkeypatch.setattr(crosscheck_case, "resources", on_disk)
    assert keys_of(case(lists(), k=2)) == one
    assert list((tmp_path / "scratch").iterdir()) == []
    for disk in disks:
        disk.close()


HELD = 500


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash stands for the group, a tenth of the work: what is held is looked at. Messages are short."""

    def blind(items: list[bytes], *_: object) -> np.ndarray:
        return np.frombuffer(b"".join(hashlib.sha256(each).digest() for each in items), np.uint8).reshape(
            -1, 32
        )

    monkeypatch.setattr(spread, "blind", blind)
    monkeypatch.setattr(spread, "power", lambda points, *_: np.ascontiguousarray(points))
    for module, name in (
        (tagging, "CHUNK_POINTS"),
        (crosscheck, "CHUNK_TAGS"),
        (crosscheck, "CHUNK_ROWS"),
        (crosscheck, "_UNLOCKED_AT_ONCE"),
        (envelopes, "CHUNK_RECORDS"),
        (keyed_list, "COMMIT_ROWS"),
    ):
        monkeypatch.setattr(module, name, 100)


def setup_of(count: int) -> Setup:
    one = InputSummary(count, count, count, ZERO, "2026-01-01", ZERO, "rules")
    inputs = {role: one for role in job_spec(2, k=2).roles if role != MATCHER}
    return Setup(job_spec(2, k=2), 1, CTX, replace(LOOSE, max_rows=count), inputs)


def traced(work: Callable[[], int]) -> int:
    """Return the most memory that `work` held at once."""
    work()  # what is made once, and stays
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("role", [REGISTER, source(2)])
def test_what_a_list_owner_holds_does_not_grow_with_its_list(role, tmp_path):
    def play(count: int) -> int:
        resources = Resources(DiskScratch(tmp_path), spill_rows=HELD)
        builder = CROSSCHECK.builder_with(job_spec(2, k=2), role, None, resources)
        for start in range(0, count, 100):
            builder.add({"key": pa.array([person(number) for number in range(start, start + 100)])})
        listed, setup = builder.finish(), setup_of(count)
        listed.commitment(bytes(32))
        party = CROSSCHECK.party_on(role, setup, listed, seeded(count), resources=resources)
        index = party.index
        *_, last, _ = party.tagging._plan.route(index)
        back = 2 if role == REGISTER else 3
        sent: Counter[int] = Counter()
        under_way = deque(party.start().outgoing)
        while under_way:
            message = under_way.popleft()
            if message.round == crosscheck.TAGS:
                sent[message.round] += len(message.body) // 16
                continue
            for each in party.receive(Incoming(last, back << 8 | index, message.body, message.last)).outgoing:
                if each.round == crosscheck.TAGS:
                    sent[each.round] += len(each.body) // 16
                else:
                    under_way.append(each)
        assert sent[crosscheck.TAGS] == count
        if role == REGISTER:
            check_selected(np.array([b"RIC:0"]), party.listed.key_blocks(), on=False)
        else:
            rows = party.receive(Incoming(MATCHER, crosscheck.READY, b"")).outgoing
            assert sum(len(each.body) for each in rows if each.round == crosscheck.ROWS) == 146 * count
        return count

    small, large = traced(lambda: play(2000)), traced(lambda: play(8000))
    assert large < 1.3 * small


@pytest.mark.usefixtures("small_pieces")
def test_what_the_matcher_holds_does_not_grow_with_the_lists(tmp_path):
    ordered = {
        count: sorted((hashlib.sha256(b"%d" % number).digest() for number in range(count)), key=_tag)
        for count in (2000, 8000)
    }

    def play(count: int) -> int:
        resources = Resources(DiskScratch(tmp_path), spill_rows=HELD)
        matcher = CROSSCHECK.party_on(MATCHER, setup_of(count), None, seeded(1), resources=resources)
        matcher.start()
        values = ordered[count]
        for role in (REGISTER, source(1), source(2)):
            for start in range(0, count, 100):
                # The register holds as many other persons.
                tags = b"".join(
                    _tag(value)[:15] + b"\1" if role == REGISTER else _tag(value)
                    for value in values[start : start + 100]
                )
                step = matcher.receive(Incoming(role, crosscheck.TAGS, tags, start + 100 == count))
        assert len(list(step.outgoing)) == 2
        for number in (1, 2):
            for start in range(0, count, 100):
                rows = locks.lock(b"".join(values[start : start + 100]), number, 2, CTX, [bytes(98)] * 100)
                message = Incoming(source(number), crosscheck.ROWS, b"".join(rows), start + 100 == count)
                step = matcher.receive(message)
        assert sum(len(each.body) for each in step.outgoing) == envelopes.RECORD_BYTES * count
        return count

    small, large = traced(lambda: play(2000)), traced(lambda: play(8000))
    assert large < 1.3 * small


def _tag(value: bytes) -> bytes:
    return tagging.tags(np.frombuffer(value, np.uint8).reshape(1, 32)).tobytes()
