"""A series against plain sets, day after day; and every way in which it must not go on."""

import gc
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest
from crosscheck_case import case, person
from series_case import LOOSE, SERIES, START, Days, Played, series_spec

from protocols.errors import InputError, MinshuError, ProtocolAborted, Refused, StateConflict
from protocols.ids import DatasetName, Digest, Organisation
from protocols.jobs import crosscheck_series
from protocols.jobs.crosscheck import ENVELOPES, MATCHER, READY, REGISTER, ROWS, Crosscheck
from protocols.jobs.crosscheck_series import MARK_KEY, MARKS, WANTED, Day
from protocols.jobs.job_type import REQUESTER, Serial, source
from protocols.party import Incoming, run
from protocols.psi import series

ROW = ("990101001", "2025-11")
LISTS = [
    dict.fromkeys(range(20), ROW),
    dict.fromkeys(range(10, 30), ROW),
    dict.fromkeys(range(15, 33), ROW),
    dict.fromkeys([*range(4, 12), *range(24, 36)], ROW),
]


@pytest.fixture(autouse=True)
def _few_fillers(monkeypatch):
    monkeypatch.setattr(series, "LEAST_POINTS", 8)


def plain(lists: list[dict[int, Any]], k: int, *, everywhere: bool = False) -> set[str]:
    """Who is flagged, by plain sets."""
    register, *sources = lists
    if everywhere:
        found = set(register).intersection(*sources)
    else:
        everybody = set().union(*sources)
        found = {n for n in everybody - set(register) if sum(n in held for held in sources) >= k}
    return {f"RIC:{person(number)}" for number in found}


def changed(lists: list[dict[int, Any]], rng: random.Random) -> list[dict[int, Any]]:
    """Return the lists of the next day: some persons left, some came, from some lists nobody did."""
    following = [dict(held) for held in lists]
    for held in following:
        for number in rng.sample(sorted(held), rng.choice([0, 0, 2, 4])):
            del held[number]
        for number in rng.sample(range(45), rng.choice([0, 3, 9])):
            held.setdefault(number, ROW)
    return following


@pytest.mark.parametrize("params", [{"k": 2}, {"k": 1}, {"present_in": "all"}], ids=str)
def test_each_day_tells_who_is_flagged_and_was_not_told_before(params):
    rng, days = random.Random(11), Days(params)
    lists, told = LISTS, set[str]()
    everywhere = "k" not in params
    for day in range(1, 6):
        flagged = plain(lists, params.get("k", 0), everywhere=everywhere)
        made = days.play(lists, day)
        assert made.flagged == flagged - told
        told |= flagged
        # A cross-check of its own would have told all who are flagged; a person leaves and comes back untold.
        alone = case(lists, **params).released()[0].table.columns["key"].tolist()
        assert set(alone) == flagged
        if day == 1:
            assert made.flagged == flagged
        lists = changed(lists, rng)
    assert len(told) > len(plain(LISTS, params.get("k", 0), everywhere=everywhere))


def test_a_day_costs_exponentiations_for_what_is_new_alone(monkeypatch):
    raised, power = [0], series.group.power
    monkeypatch.setattr(
        series.group, "power", lambda base, k: raised.__setitem__(0, raised[0] + len(base)) or power(base, k)
    )
    days = Days({"k": 2})
    lists = [dict.fromkeys(range(i * 50, i * 50 + 300), ROW) for i in range(4)]
    days.play(lists, 1)
    whole, raised[0] = raised[0], 0
    lists[1][700] = ROW
    days.play(lists, 2)
    assert whole == 300 * (3 + 3 + 4 + 4)
    assert raised[0] == 8 * (3 + 3 + 4 + 4)


def arrays_of(thing: object) -> list[np.ndarray[Any, Any]]:
    """Every array that something holds, directly or through what it holds."""
    found: list[np.ndarray[Any, Any]] = []
    seen: set[int] = set()
    rest: list[Any] = [thing]
    while rest:
        each = rest.pop()
        if id(each) not in seen and not isinstance(each, type | FunctionType | ModuleType):
            seen.add(id(each))
            found += [each] if isinstance(each, np.ndarray) else []
            rest += gc.get_referents(each)
    return found


def test_of_a_list_that_is_back_its_round_trip_keeps_nothing_and_takes_nothing_more():
    days = Days({"k": 2})
    for day in (1, 2):
        played = days.play(LISTS, day)
        for role, key_holder in [(REGISTER, source(1)), (source(1), REGISTER), (source(3), source(1))]:
            tagging = played.parties[role]._keeper.tagging
            assert tagging.tagged is not None
            assert arrays_of(tagging._inner) == []
            index = tagging._index
            hop = 3 if role == source(3) else 2
            with pytest.raises(ProtocolAborted) as error:
                tagging.receive(Incoming(key_holder, hop << 8 | index, b"", last=True))
            assert error.value.code == "unexpected-message"


def test_the_street_table_of_a_day_is_about_the_newly_flagged():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    more = [dict(held) for held in LISTS]
    for number in range(50, 57):
        more[1][number] = more[2][number] = ROW
    _, table = days.play(more, 2).contents
    assert table.table.columns["count"].tolist()[0] == 5  # seven, rounded
    assert days.played[0].contents[1].table.columns["count"].tolist()[0] > 5


# what a failed day leaves


def parts(days: Days) -> dict[Any, dict[str, bytes]]:
    return {role: dict(shelf.blobs) for role, shelf in days.shelves.items()}


def kept_by(days: Days) -> dict[Any, series.Kept]:
    found = {role: series.load(shelf, days.first) for role, shelf in days.shelves.items() if role != MATCHER}
    return {role: kept for role, kept in found.items() if kept is not None}


def test_a_day_that_fails_leaves_the_day_before_and_may_be_asked_again_in_the_same_job():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    before, all_there = kept_by(days), parts(days)
    more = [dict(held) for held in LISTS]
    more[1][40] = more[2][40] = ROW
    days.constraints = replace(LOOSE, max_rows=5)
    failing = days.make(more, 2)
    with pytest.raises(ProtocolAborted) as error:
        failing.run()
    assert error.value.code == "guard-rows"
    # All but that key-holders have raised some more points.
    for role, kept in kept_by(days).items():
        points = [rest - 8 for rest in before[role].points]
        was = b"".join(replace(before[role], points=points).pieces())
        assert b"".join(kept.pieces()) == was
        assert bool(points) == (role in (REGISTER, source(1)))
    assert parts(days)[source(3)] == all_there[source(3)]
    days.constraints = LOOSE
    again = days.play(more, 2, attempt=2, spec=failing.spec)
    assert again.flagged == {f"RIC:{person(40)}"}


def test_an_attempt_that_ended_well_everywhere_but_at_the_registers_node_tells_the_same_again():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    more = [dict(held) for held in LISTS]
    more[1][40] = more[2][40] = ROW
    lost = days.play(more, 2)
    assert lost.flagged == {f"RIC:{person(40)}"}
    days.committed.discard(lost.spec.job_id)  # its node died before commit point 2
    assert days.play(more, 2, attempt=2, spec=lost.spec).flagged == lost.flagged
    # The same where another job goes on, and once it is committed nobody is told again.
    days.committed.discard(lost.spec.job_id)
    assert days.play(more, 3).flagged == lost.flagged
    assert days.play(more, 4).flagged == set()


def test_the_register_may_die_while_the_sources_are_done_and_the_next_day_goes_on():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    more = [dict(held) for held in LISTS]
    more[1][40] = more[2][40] = ROW
    register = dict(days.shelves[REGISTER].blobs)
    cut = days.play(more, 2)
    days.shelves[REGISTER].blobs = register  # it never wrote
    days.committed.discard(cut.spec.job_id)
    with pytest.raises(StateConflict) as error:
        days.make(more, 2, spec=replace(cut.spec, nonce="9" * 32))
    assert error.value.code == "series-day"  # sources have finished that day, in another job
    assert days.play(more, 3).flagged == {f"RIC:{person(40)}"}


def test_day_1_again_has_fresh_keys_and_its_parts_do_not_mix_with_others():
    days = Days({"k": 2})
    first = days.play(LISTS, 1)
    old = dict(days.shelves[source(2)].blobs)
    again = days.play(LISTS, 1, attempt=2, spec=first.spec)
    assert again.flagged == first.flagged
    days.shelves[source(2)].blobs = old  # it missed the second attempt's end
    with pytest.raises(ProtocolAborted) as error:
        days.make(LISTS, 2).run()
    assert error.value.code == "series-lost"


def test_of_two_days_at_once_one_ends_well_and_nobody_who_was_told_is_forgotten():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    second, third = ([dict(held) for held in LISTS] for _ in range(2))
    second[1][40] = second[2][40] = third[1][41] = third[2][41] = ROW
    late = START + timedelta(days=2)
    early = days.make(second, 2, now=late)
    assert days.play(third, 3, now=late).flagged == {f"RIC:{person(41)}"}
    before = parts(days)
    with pytest.raises(StateConflict) as error:
        early.run()
    assert error.value.code == "series-day"
    assert parts(days) == before
    assert not [m for m in early.sent if m.round == ROWS]
    third[1][40] = third[2][40] = ROW
    assert days.play(third, 4).flagged == {f"RIC:{person(40)}"}


def test_a_source_whose_series_is_gone_sends_no_row():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    made = days.make(LISTS, 2)

    def gone(body: bytes) -> bytes:
        days.shelves[source(3)].blobs.clear()
        return body

    made.parties[source(3)] = Tampered(made.parties[source(3)], READY, gone)  # type: ignore[assignment]  # a party
    with pytest.raises(StateConflict) as error:
        run(made.parties, observe=made.sent.append)
    assert error.value.code == "series-day"
    assert not [m for m in made.sent if (m.round, m.sender) == (ROWS, source(3))]
    assert not days.shelves[source(3)].blobs


def test_a_day_1_that_ends_ends_older_series_of_its_question():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    again = days.job(3, 1, roster_digest=Digest("sha256:" + "1" * 64))
    days.play(LISTS, 1, spec=again, now=START + timedelta(days=1))
    assert all(len(shelf.blobs) == 1 for role, shelf in days.shelves.items() if role != MATCHER)
    assert refused(days, LISTS, 2, only=[source(2)]) == "series-lost"
    other = Days({"k": 1}, shelves=days.shelves)
    other.play(LISTS, 1)
    assert len(days.shelves[REGISTER].blobs) == 2


# what must not go on


def refused(days: Days, lists: list[dict[int, Any]], day: int, **options: Any) -> str:
    before = parts(days)
    with pytest.raises(MinshuError) as error:
        days.make(lists, day, **options)
    assert parts(days) == before
    return error.value.code


def test_days_do_not_repeat_and_do_not_run_backwards():
    days = Days({"k": 2})
    first = days.play(LISTS, 1)
    days.play(LISTS, 4)
    assert refused(days, LISTS, 4, spec=replace(days.played[1].spec, nonce="7" * 32)) == "series-day"
    assert refused(days, LISTS, 3) == "series-day"
    assert refused(days, LISTS, 1, spec=first.spec) == "series-day"
    days.play(LISTS, 6)
    assert refused(days, LISTS, 4, spec=days.played[1].spec) == "series-day"  # a replayed job


def test_a_forged_first_finds_nothing():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    spec = days.job(3, 2)
    forged = replace(spec, params={**spec.params, "first": "sha256:" + "f" * 64})
    for role in (REGISTER, source(1), source(2)):
        assert refused(days, LISTS, 2, spec=forged, only=[role]) == "series-lost"


OTHERWISE: Mapping[str, dict[str, Any]] = {
    "another roster": {"roster_digest": Digest("sha256:" + "1" * 64)},
    "another purpose": {"purpose": "P-2"},
    "another collaboration": {"collaboration": "other"},
}


def others(spec: Any) -> dict[str, Any]:
    swapped = {**spec.roles, source(2): spec.roles[source(3)], source(3): spec.roles[source(2)]}
    inputs = tuple(
        replace(i, organisation=Organisation(swapped[i.role].partition("/")[0])) for i in spec.inputs
    )
    return {
        **{name: replace(spec, **change) for name, change in OTHERWISE.items()},
        "another dataset": replace(
            spec, inputs=(replace(spec.inputs[0], dataset=DatasetName("other")), *spec.inputs[1:])
        ),
        "another column": replace(
            spec, inputs=(replace(spec.inputs[0], columns={"key": "passport"}), *spec.inputs[1:])
        ),
        "another k": replace(spec, params={**spec.params, "k": 3}),
        "another key-holder": replace(spec, params={**spec.params, "key_holder": "source-2"}),
        "other owners": replace(spec, roles=swapped, inputs=inputs),
    }


def test_a_series_goes_on_with_its_own_question_alone():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    for name, spec in others(days.job(3, 2)).items():
        for role in (REGISTER, source(1), source(3)):
            assert refused(days, LISTS, 2, spec=spec, only=[role]) == "series-other", name
    # Who asks, and in which words, may be another person.
    spec = replace(days.job(3, 2), legal_basis="L-2", expected_use="another")
    days.play(LISTS, 2, spec=spec)


def test_keys_live_as_many_days_as_the_strictest_rule_says_by_the_nodes_own_clock():
    days = Days({"k": 2}, constraints=replace(LOOSE, max_series_days=3))
    days.play(LISTS, 1)
    # By the job's word: too many days, though it is early.
    with pytest.raises(ProtocolAborted) as error:
        days.make(LISTS, 4, now=START + timedelta(hours=1))
    assert error.value.code == "series-over"
    # By the clock, though the job says that it is but day 2.
    late = START + timedelta(days=3)
    assert refused(days, LISTS, 2, now=late, only=[REGISTER]) == "series-over"
    assert refused(days, LISTS, 2, now=late, only=[source(1)]) == "series-over"
    assert refused(days, LISTS, 2, now=late, only=[source(3)]) == "series-over"
    days.play(LISTS, 2, now=late - timedelta(seconds=1))
    # A later day makes them no younger.
    assert refused(days, LISTS, 3, now=late, only=[REGISTER]) == "series-over"


def test_keys_go_when_the_strictest_rule_says_though_the_own_rule_is_more_generous():
    days = Days({"k": 2}, constraints=replace(LOOSE, max_series_days=3))
    days.play(LISTS, 1)
    days.constraints = replace(LOOSE, max_series_days=30)  # all have become more generous since
    end = START + timedelta(days=3)
    assert refused(days, LISTS, 2, now=end, only=[source(3)]) == "series-over"
    shelf = days.shelves[source(3)]
    assert SERIES.drop_over(shelf, now=end - timedelta(seconds=1), most_days=30) == 0
    assert SERIES.drop_over(shelf, now=end, most_days=30) == 1


def test_what_began_in_the_future_does_not_go_on():
    days = Days({"k": 2})
    days.play(LISTS, 1, now=START + timedelta(days=1, seconds=1))
    assert refused(days, LISTS, 2, now=START + timedelta(days=1), only=[REGISTER]) == "series-over"
    days.play(LISTS, 2, now=START + timedelta(days=1, seconds=1))


def test_a_series_does_not_run_ahead_of_the_calendar():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    night = START + timedelta(hours=23)
    assert refused(days, LISTS, 3, now=night, only=[REGISTER]) == "series-day"
    assert refused(days, LISTS, 30, now=night, only=[source(2)]) == "series-day"
    days.play(LISTS, 2, now=night)
    days.play(LISTS, 3, now=START + timedelta(days=1))


def test_the_same_is_said_before_admission():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    spec, shelf = days.job(3, 2), days.shelves[REGISTER]
    assert isinstance(SERIES, Serial)
    assert (SERIES.first(spec), SERIES.day(spec)) == (days.first, 2)

    def check(role: Any = REGISTER, **changes: Any) -> None:
        given = {"shelf": shelf, "now": START + timedelta(days=1), "most_days": 30} | changes
        SERIES.check_kept(spec, role, **given)

    check()
    check(MATCHER, most_days=None)
    for most in (None, 1):
        with pytest.raises(Refused) as error:
            check(most_days=most)
        assert error.value.code == "series-over"
    with pytest.raises(Refused):
        check(now=START + timedelta(days=30))
    shelf.blobs.clear()
    with pytest.raises(StateConflict) as lost:
        check()
    assert lost.value.code == "series-lost"


def test_without_a_number_of_days_in_some_rule_nothing_runs():
    days = Days({"k": 2}, constraints=replace(LOOSE, max_series_days=None))
    with pytest.raises(ProtocolAborted) as error:
        days.make(LISTS, 1)
    assert error.value.code == "guard-missing"


def test_a_party_is_made_with_a_shelf_only():
    with pytest.raises(TypeError):
        SERIES.party(REGISTER, None, None, bytes)  # type: ignore[arg-type]  # never looked at


@pytest.mark.parametrize(
    "params",
    [
        {"first": "sha256:" + "a" * 64},
        {"day": 2},
        {"first": "sha256:" + "a" * 64, "day": 1},
        {"first": "sha256:" + "a" * 64, "day": 36_501},
        {"first": "sha256:" + "A" * 64, "day": 2},
        {"first": "b" * 64, "day": 2},
        {"grace_days": 60, "present_in": "all"},
        {"as_of": "2026-01-01", "present_in": "all"},
    ],
    ids=str,
)
def test_a_day_that_is_none_is_refused(params):
    spec = series_spec(3, **({"k": 2} if "present_in" not in params else {}))
    with pytest.raises(InputError) as error:
        SERIES.check(replace(spec, params={**spec.params, **params}))
    assert error.value.code == "bad-params"


def test_all_days_of_all_series_ask_one_question_and_not_that_of_a_crosscheck():
    one, later = series_spec(3, k=2), series_spec(3, k=2, first="sha256:" + "a" * 64, day=7)
    asked = SERIES.query(one, REGISTER)
    assert asked == SERIES.query(later, source(1))
    assert asked != SERIES.query(series_spec(3, k=3), REGISTER)
    assert SERIES.query(one, MATCHER) is None
    assert asked is not None
    other = Crosscheck().query(Day.of(one).asked, REGISTER)
    assert other is not None
    assert other.asks != asked.asks


# messages that are not what they have to be


def tampered(days: Days, number: int, change: Any) -> str:
    """Play day 2 with the bodies of one round changed, and return the code it ends with."""
    made = days.make(LISTS, 2)
    for role, party in made.parties.items():
        made.parties[role] = Tampered(party, number, change)
    with pytest.raises(MinshuError) as error:
        run(made.parties)
    return error.value.code


class Tampered:
    """A party whose messages of one round arrive changed."""

    def __init__(self, party: Any, number: int, change: Any) -> None:
        self.party, self.number, self.change = party, number, change

    def start(self) -> Any:
        return self.party.start()

    def receive(self, message: Any) -> Any:
        if message.round == self.number:
            message = replace(message, body=self.change(message.body))
        return self.party.receive(message)


def test_marks_that_repeat_stand_behind_padding_or_are_cut_are_refused():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    first = days.played[0]
    count = len(first.flagged)
    assert count > 2
    assert tampered(days, MARKS, lambda body: body[:16] * 2 + body[32:]) == "mark-repeated"
    assert tampered(days, MARKS, lambda body: bytes(16) + body[16:]) == "bad-marks"
    assert tampered(days, MARKS, lambda body: body[:-16]) in ("bad-length", "too-few-items")
    assert tampered(days, MARKS, lambda body: body[:-1]) == "bad-length"


def forging(days: Days, victim: int, *, of: int, lists: Any, day: int, by: Any) -> Played:
    """Return a day on which sources write one person's mark in the rows of another."""
    made = days.make(lists, day)
    for role in by:
        party: Any = made.parties[role]
        party._inside = partial(_forged, party, of, victim)
    return made


def _forged(party: Any, of: int, victim: int, values: bytes, sealed: Any) -> Any:
    order, keys = party._tagged().order, party.listed.keys
    places = {key: place for place, key in enumerate(keys[order].tolist())}
    mine, other = (places[f"RIC:{person(n)}".encode()] for n in (of, victim))
    swapped = bytearray(values)
    swapped[32 * mine : 32 * mine + 32] = values[32 * other : 32 * other + 32]
    yield from crosscheck_series.Source._inside(party, bytes(swapped), sealed)


VICTIM = [dict.fromkeys(held, ROW) for held in ({9}, {8, 9}, {8, 9}, {7})]


@pytest.mark.parametrize("seed", range(4))
def test_a_source_that_gives_a_person_anothers_mark_ends_the_day_whoever_is_drawn(seed):
    days = Days({"k": 2}, seed=seed)
    with pytest.raises(ProtocolAborted) as error:
        forging(days, 9, of=8, lists=VICTIM, day=1, by=[source(1)]).run()
    assert error.value.code == "mark-differs"
    assert days.play(VICTIM, 1, attempt=2).flagged == {f"RIC:{person(8)}"}


def test_a_person_is_not_told_of_under_two_marks_though_all_who_hold_the_person_agree_on_one():
    days = Days({"k": 2})
    made = forging(days, 9, of=8, lists=VICTIM, day=1, by=[source(1), source(2)]).run()
    days.played.append(made)
    days.committed.add(made.spec.job_id)
    with pytest.raises(ProtocolAborted) as error:
        days.make(VICTIM, 2).run()  # 8 comes under the right mark, which is new
    assert error.value.code == "mark-differs"


def test_a_register_that_gives_each_source_its_own_mark_key_ends_the_day():
    days = Days({"k": 2})
    made = days.make(LISTS, 1)
    register: Any = made.parties[REGISTER]
    start = register.start

    def apart() -> Any:
        step = start()
        sent = [replace(m, body=m.to.encode().ljust(32)) if m.round == MARK_KEY else m for m in step.outgoing]
        return replace(step, outgoing=sent)

    register.start = apart
    with pytest.raises(ProtocolAborted) as error:
        made.run()
    assert error.value.code == "mark-differs"


def test_an_owner_that_guesses_in_the_place_of_fillers_is_stopped_after_a_list_of_guesses():
    days = Days({"k": 2})
    lists = [dict.fromkeys(range(i * 50, i * 50 + 100), ROW) for i in range(4)]
    days.play(lists, 1)

    def guessing(day: int, attempt: int) -> Played:
        made = days.make(lists, day, attempt=attempt)
        tagging: Any = made.parties[REGISTER].tagging  # type: ignore[attr-defined]  # a list owner's
        tagging._points[0] = 64  # in truth nothing is new
        tagging._spend = lambda counts: None  # only the other key-holder is honest
        return made

    guessing(2, 1).run()
    guessing(2, 2).run()  # the same day again
    # 64 each, of points_for(100) and 8 for each day after the first.
    late = guessing(3, 1)
    with pytest.raises(Refused) as error:
        run(late.parties, observe=late.sent.append)
    assert error.value.code == "series-over"
    assert {m.round for m in late.sent if m.round >> 8 <= 3} <= {series.OPENING, series.GO}  # no point
    # Whoever has nothing new has points left for every day.
    fresh = Days({"k": 2})
    for day in range(1, 9):
        fresh.play(lists, day)


def test_envelopes_other_than_those_asked_for_are_refused():
    days = Days({"k": 2})
    days.play(LISTS, 1)
    # Nobody is new; a matcher that hears that everybody is wanted sends them all.
    assert tampered(days, WANTED, lambda body: b"\xf0" + body[1:]) == "too-many-items"
    assert tampered(days, WANTED, lambda body: b"\xff" * len(body)) == "bad-marks"
    assert tampered(days, WANTED, lambda body: body[:-1]) in ("too-few-items", "bad-length")
    more = Days({"k": 2})
    made = more.make(LISTS, 1)
    for role, party in made.parties.items():
        made.parties[role] = Tampered(party, ENVELOPES, lambda body: bytes(len(body)))
    with pytest.raises(ProtocolAborted) as error:
        run(made.parties)
    assert error.value.code == "too-few-items"


def test_outputs_are_planned_as_those_of_a_crosscheck():
    made: Played = Days({"k": 2}).play(LISTS, 1)
    planned = SERIES.releases(made.spec)
    assert [content.name for content in made.contents] == [release.name for release in planned]
    assert planned[1].recipient == REQUESTER
