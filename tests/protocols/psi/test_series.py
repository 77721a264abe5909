"""Tags, marks and shelves of a series, against vectors made from the SPEC's text; openings that lie."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crosscheck_case import seeded
from series_case import MemoryShelf

from protocols.errors import DecodeError, MinshuError, ProtocolAborted, Refused, StateConflict
from protocols.ids import Digest, JobId, Role
from protocols.party import Incoming
from protocols.psi import locks, series
from protocols.psi.series import (
    GO,
    OPENING,
    DayTagging,
    Kept,
    Place,
    day_tags,
    drop_over,
    load,
    marks_of,
    opened_marks,
    points_for,
    sealed_marks,
    store,
    told_of,
    wanted_bits,
    wanted_places,
)
from protocols.psi.tagging import Plan

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/crosscheck-series.json").read_text()
)
SERIES, CTX, MARK_KEY = (bytes.fromhex(VECTORS[name]) for name in ("series", "ctx", "mark_key"))
PERSONS = VECTORS["persons"]
FIRST = JobId(Digest("sha256:" + "1" * 64))
OWNERS = (Role("register"), Role("source-1"), Role("source-2"))


class Full(MemoryShelf):
    """A shelf whose disk is full after so many writes."""

    room = 100

    @contextmanager
    def put(self, name: str) -> Iterator[Callable[[bytes], object]]:
        with super().put(name) as write:

            def limited(data: bytes) -> None:
                self.room -= 1
                if self.room < 0:
                    raise StateConflict("the disk is full", code="shelf-write-failed")
                write(data)

            yield limited


def points(*texts: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(bytes.fromhex("".join(texts)), dtype=np.uint8).reshape(-1, 32)


def test_tags_marks_and_rows_are_those_of_the_vectors():
    values = points(*(p["V"] for p in PERSONS))
    assert day_tags(values, CTX).tobytes().hex() == "".join(p["tag"] for p in PERSONS)
    marks = marks_of(values, SERIES)
    assert marks.hex() == "".join(p["mark"] for p in PERSONS)
    sealed = sealed_marks(marks, MARK_KEY)
    assert sealed.hex() == "".join(p["sealed_mark"] for p in PERSONS)
    assert opened_marks(sealed, MARK_KEY) == marks
    for place, person in enumerate(PERSONS):
        inside = bytes.fromhex(person["envelope"]) + sealed[16 * place : 16 * place + 16]
        (row,) = locks.lock(
            bytes.fromhex(person["V"]), person["share_index"], person["threshold"], CTX, [inside]
        )
        assert row.hex() == person["row"]


def test_a_shelf_is_read_and_written_as_the_vectors_say():
    told = VECTORS["shelf"]
    kept = Kept.read(memoryview(bytes.fromhex(told["blob"])))
    begun = datetime(2026, 1, 1, 2, tzinfo=UTC)
    assert (kept.day, kept.attempt, kept.begun, kept.series) == (3, 2, begun, SERIES)
    assert kept.until == begun + timedelta(days=30)
    assert (kept.question, kept.roster) == (told["head"]["question"], told["head"]["roster"])
    assert list(kept.points) == told["head"]["points"]
    assert kept.keys.tolist() == [key.encode() for key in told["keys"]]
    assert [value.tobytes().hex() for value in kept.values] == told["values"]
    assert b"".join(kept.told.values()).hex() == "".join(told["told"])
    for person, key in zip(told["told"], told["told_keys"], strict=True):
        assert told_of(key.encode(), SERIES).hex() == person[32:]
    assert b"".join(kept.pieces()).hex() == told["blob"]
    assert "RIC" not in repr(kept)


def test_a_long_list_is_hashed_and_written_block_by_block(monkeypatch):
    monkeypatch.setattr(series, "_AT_ONCE", 2)
    test_tags_marks_and_rows_are_those_of_the_vectors()
    test_a_shelf_is_read_and_written_as_the_vectors_say()
    long = kept(keys=np.array([b"RIC:%d" % n for n in range(5)]), values=points(*["11" * 32] * 5))
    _, _, *blocks, _ = map(len, long.pieces())
    assert blocks == [10, 10, 5, 64, 64, 32]


@pytest.mark.parametrize("bad", VECTORS["bad_shelves"], ids=lambda bad: bad["why"])
def test_a_damaged_shelf_loses_the_series_and_says_so(bad):
    shelf = MemoryShelf()
    shelf.blobs[f"{'1' * 64}-0000000001-01767232800-01769824800-{'2' * 16}"] = bytes.fromhex(bad["blob"])
    with pytest.raises(StateConflict) as error:
        load(shelf, FIRST)
    assert error.value.code == "series-lost"


@pytest.mark.parametrize("case", VECTORS["points"], ids=lambda case: str(case["new"]))
def test_the_number_of_points_tells_new_keys_to_a_power_of_two(case):
    assert points_for(case["new"]) == case["points"]


def test_wanted_places_are_bits_first_bit_highest():
    told = VECTORS["wanted"]
    assert wanted_bits([bool(w) for w in told["wanted"]], told["room"]).hex() == told["bits"]
    assert wanted_places(bytes.fromhex(told["bits"]), 9).tolist() == told["places"]
    assert wanted_places(b"", 0).tolist() == []


@pytest.mark.parametrize("bad", VECTORS["bad_wanted"], ids=lambda bad: bad["why"])
def test_places_without_an_envelope_cannot_be_wanted(bad):
    with pytest.raises(ProtocolAborted) as error:
        wanted_places(bytes.fromhex(bad["bits"]), bad["count"])
    assert error.value.code == "bad-marks"


BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


def kept(**changes: Any) -> Kept:
    keys = np.array([b"RIC:1", b"RIC:2"])
    fields: dict[str, Any] = {
        "series": SERIES,
        "attempt": 1,
        "question": Digest("sha256:" + "2" * 64),
        "roster": Digest("sha256:" + "3" * 64),
        "begun": BEGUN,
        "until": BEGUN + timedelta(days=5),
        "day": 2,
        "job": FIRST,
        "tag_key": b"\1" + bytes(31),
        "points": [256, 512, 256],
        "keys": keys,
        "values": points("11" * 32, "22" * 32),
    }
    return Kept(**(fields | changes))


def test_what_is_kept_anew_takes_the_place_of_all_that_was_there():
    shelf = MemoryShelf()
    store(shelf, FIRST, kept())
    store(shelf, FIRST, kept(day=3))
    assert len(shelf.blobs) == 1
    store(shelf, FIRST, kept(attempt=2, begun=BEGUN + timedelta(days=1)))
    assert len(shelf.blobs) == 1
    found = load(shelf, FIRST)
    assert found is not None
    assert found.attempt == 2


def test_of_two_attempts_that_a_crash_left_the_later_one_counts_though_the_clock_went_back():
    shelf, other = MemoryShelf(), MemoryShelf()
    store(shelf, FIRST, kept(attempt=9))
    store(other, FIRST, kept(attempt=10, begun=BEGUN - timedelta(hours=3)))
    shelf.blobs |= other.blobs
    found = load(shelf, FIRST)
    assert found is not None
    assert found.attempt == 10


def test_a_write_that_fails_leaves_the_day_before():
    shelf = Full()
    store(shelf, FIRST, kept())
    before, shelf.room = dict(shelf.blobs), 3
    with pytest.raises(StateConflict):
        store(shelf, FIRST, kept(day=3))
    assert shelf.blobs == before


def test_series_go_at_the_end_that_was_agreed_or_earlier_where_less_is_allowed_by_now():
    shelf, other = MemoryShelf(), JobId(Digest("sha256:" + "2" * 64))
    second, agreed = timedelta(seconds=1), BEGUN + timedelta(days=5)
    store(shelf, FIRST, kept())
    store(shelf, other, kept(begun=BEGUN + timedelta(days=1), until=agreed + timedelta(days=1)))
    # What the own rule would allow makes nothing live longer than the strictest one.
    assert drop_over(shelf, agreed - second, 30) == 0
    assert drop_over(shelf, agreed, 30) == 1
    assert load(shelf, FIRST) is None
    # A rule that has become stricter holds at once.
    assert drop_over(shelf, BEGUN + timedelta(days=3) - second, 2) == 0
    assert drop_over(shelf, BEGUN + timedelta(days=3), 2) == 1
    store(shelf, other, kept())
    assert drop_over(shelf, BEGUN, None) == 1
    shelf.blobs["of-another-form"] = b""
    assert drop_over(shelf, BEGUN, 30) == 1
    assert not shelf.blobs


def test_day_1_ends_other_series_of_its_question_alone():
    shelf, old, another = MemoryShelf(), *(JobId(Digest("sha256:" + c * 64)) for c in "45")
    store(shelf, old, kept())
    store(shelf, another, kept(question=Digest("sha256:" + "6" * 64)))
    Place(shelf, FIRST, 1, None).put(kept(day=1))
    assert load(shelf, old) is None
    assert load(shelf, another) is not None
    assert load(shelf, FIRST) is not None


def test_a_day_is_not_kept_over_what_it_did_not_begin_from():
    shelf = MemoryShelf()
    store(shelf, FIRST, kept())
    place = Place(shelf, FIRST, 3, load(shelf, FIRST))
    for other in ({"day": 4}, {"series": CTX}, {"job": JobId(Digest("sha256:" + "9" * 64))}, None):
        shelf.blobs.clear()
        if other is not None:
            store(shelf, FIRST, kept(**other))
        before = dict(shelf.blobs)
        for act in (place.check, lambda: place.put(kept(day=3)), lambda: place.spend([0, 0, 0])):
            with pytest.raises(StateConflict) as error:
                act()
            assert error.value.code == "series-day"
        assert shelf.blobs == before


def test_points_are_counted_before_any_is_raised_and_no_more_than_one_series_may_have():
    shelf = MemoryShelf()
    store(shelf, FIRST, kept())
    place = Place(shelf, FIRST, 3, load(shelf, FIRST))
    # 256, 512 and 256 are left, and 256 for each day after the first.
    place.spend([256, 1024, 256])
    found = load(shelf, FIRST)
    assert found is not None
    assert (found.points, found.at) == ((0, -512, 0), kept().at)
    before = dict(shelf.blobs)
    with pytest.raises(Refused) as error:
        place.spend([256, 256, 256])  # another attempt of that day
    assert error.value.code == "series-over"
    assert shelf.blobs == before
    # What was counted while a day ran is not forgotten when it ends.
    place.put(kept(day=3, points=[256, 512, 256]))
    after = load(shelf, FIRST)
    assert after is not None
    assert (after.day, after.points) == (3, found.points)
    Place(shelf, FIRST, 4, after).spend([256, 256, 256])


def test_fillers_are_nobodys_and_all_different_however_many_are_drawn_at_once(monkeypatch):
    monkeypatch.setattr(series, "_AT_ONCE", 64)
    missing = 3 * 64 + 5
    count = 256 - missing
    keys = np.array([b"RIC:%06d" % n for n in range(count)])
    plan = Plan(OWNERS, OWNERS[:2], (2, 2, count), CTX)
    made = DayTagging(plan, OWNERS[2], keys, kept(keys=keys[:0], values=points()), seeded("f"), spend=nothing)
    fillers = made._fillers(missing)
    assert fillers.dtype == np.dtype("S39")
    assert np.strings.startswith(fillers, b"FILLER:").all()
    assert len(np.unique(fillers)) == missing


def nothing(_counts: Any) -> None:
    """Count nothing."""


def key_holder(spent: list[Any] | None = None) -> DayTagging:
    plan = Plan(OWNERS, OWNERS[:2], (2, 500, 2), CTX)
    keys = np.array([b"RIC:1", b"RIC:3"])
    spend = nothing if spent is None else spent.append
    made = DayTagging(plan, OWNERS[0], keys, kept(), seeded("series"), spend=spend)
    (opening,) = made.start()
    assert (opening.to, opening.round) == (OWNERS[1], OPENING)
    assert opening.body == SERIES + (256).to_bytes(4, "big")
    return made


def opening(count: int, series: bytes = SERIES) -> bytes:
    return series + count.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([(OWNERS[1], OPENING, opening(255))], "bad-count"),
        ([(OWNERS[1], OPENING, opening(128))], "bad-count"),
        ([(OWNERS[1], OPENING, opening(0))], "bad-count"),
        ([(OWNERS[1], OPENING, opening(1024))], "bad-count"),  # its list has 500 keys
        ([(OWNERS[2], OPENING, opening(512))], "bad-count"),  # its list has 2
        ([(OWNERS[1], OPENING, opening(256, CTX))], "series-lost"),
        ([(OWNERS[1], OPENING, opening(256)[:-1])], "bad-length"),
        ([(OWNERS[1], OPENING, opening(256))] * 2, "unexpected-message"),
        ([(OWNERS[0], OPENING, opening(256))], "unexpected-message"),
        ([(Role("matcher"), OPENING, opening(256))], "unexpected-message"),
        ([(OWNERS[2], GO, b"")], "unexpected-message"),  # no key-holder
        ([(OWNERS[1], GO, b"")] * 2, "unexpected-message"),
        ([(OWNERS[1], GO, b"x")], "bad-length"),
        ([(OWNERS[1], 0x101, bytes(32))], "unexpected-message"),  # points before all have opened
    ],
)
def test_a_key_holder_refuses_openings_that_are_not_due_or_lie(messages, code):
    made = key_holder()
    *before, last = [Incoming(*message) for message in messages]
    for message in before:
        list(made.receive(message))
    with pytest.raises(MinshuError) as error:
        list(made.receive(last))
    assert error.value.code == code


def test_a_key_holder_sends_no_point_before_the_other_says_that_it_may():
    spent: list[Any] = []
    made = key_holder(spent)
    assert not list(made.receive(Incoming(OWNERS[1], OPENING, opening(512))))
    assert not spent
    gone = list(made.receive(Incoming(OWNERS[2], OPENING, opening(256))))
    assert {(m.to, m.round) for m in gone} == {(OWNERS[1], GO), (OWNERS[2], GO)}
    assert spent == [[256, 512, 256]]
    assert made.serving
    first = list(made.receive(Incoming(OWNERS[1], GO, b"")))
    # One key is known from the day before, one is new, and nobody's keys fill up.
    assert [(m.to, m.round, len(m.body), m.last) for m in first] == [(OWNERS[1], 0x100, 256 * 32, True)]


def test_only_what_kept_reads_is_kept():
    with pytest.raises(DecodeError):
        Kept.read(memoryview(b"x" * 100))
