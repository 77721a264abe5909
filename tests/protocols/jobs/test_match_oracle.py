"""Whole matches in memory against sets in plain Python, in both forms."""

import json
from pathlib import Path
from typing import Any

import pytest
from crosscheck_case import person
from hypothesis import given, settings
from hypothesis import strategies as st
from match_case import KKRT, MARITAL, MATCHING, Case, Row, match_case, prepared

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.match import OWNERS
from protocols.match.shape import Sizing

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "match.json").read_text())
FORMS: dict[str, Sizing | None] = {"dh": None, "kkrt": KKRT}
GROUP = {value: number for number, group in enumerate(MARITAL) for value in group}


def keys(case: Case) -> list[str]:
    return [key.decode().removeprefix("RIC:") for key in case.released().table.columns["key"].tolist()]


def latest(rows: list[Row]) -> dict[int, str]:
    """Return by hand the value that counts of each person; of values in no group none does."""
    found: dict[int, tuple[str, str]] = {}
    for n, value, month in rows:
        if value in GROUP:
            known = found.get(n)
            if known is None or month > known[1] or (month == known[1] and value < known[0]):
                found[n] = (value, month)
    return {n: value for n, (value, _) in found.items()}


ROWS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from(["10", "20", "22", "30", "40", "90", ""]),
        st.sampled_from(["2025-12", "2026-01", ""]),
    ),
    max_size=40,
)


def check(form: str, receiver: list[Row], sender: list[Row]) -> None:
    """Play both comparisons of two lists."""
    people = [[n for n, _, _ in rows] for rows in (receiver, sender)]
    held = match_case(*people, sizing=FORMS[form])
    assert keys(held) == sorted(person(n) for n in set(people[0]) & set(people[1]))
    ours, theirs = latest(receiver), latest(sender)
    differs = match_case(receiver, sender, sizing=FORMS[form], values=MARITAL)
    expected = {
        person(n): MARITAL[GROUP[value]][0]
        for n, value in ours.items()
        if n in theirs and GROUP[theirs[n]] != GROUP[value]
    }
    columns = differs.released().table.columns
    found = zip(columns["key"].tolist(), columns["own_group"].tolist(), strict=True)
    assert {key.decode().removeprefix("RIC:"): own.decode() for key, own in found} == expected
    assert columns["key"].tolist() == sorted(columns["key"].tolist())


@settings(max_examples=15, deadline=None)
@given(receiver=ROWS, sender=ROWS)
def test_records_are_whom_both_list_and_whose_values_differ(receiver: list[Row], sender: list[Row]) -> None:
    check("dh", receiver, sender)


@pytest.mark.long
@settings(max_examples=80, deadline=None)
@given(receiver=ROWS, sender=ROWS)
def test_records_are_the_same_in_the_form_for_long_lists(receiver: list[Row], sender: list[Row]) -> None:
    check("kkrt", receiver, sender)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("receiver", "sender"),
    [
        (range(40), range(40)),  # total overlap
        (range(40), range(40, 80)),  # none
        pytest.param(range(1), range(200), marks=pytest.mark.long),
        pytest.param(range(200), range(7, 8), marks=pytest.mark.long),
        (range(0), range(40)),
        (range(40), range(0)),
        (range(0), range(0)),
        ([3, 3, 5, 5, 5], [5, 5, 9]),  # repeats
    ],
)
def test_lists_of_every_kind_give_the_right_answer(form: str, receiver: Any, sender: Any) -> None:
    case = match_case(list(receiver), list(sender), sizing=FORMS[form])
    assert keys(case) == sorted(person(n) for n in set(receiver) & set(sender))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vector", VECTORS["cases"], ids=lambda vector: vector["why"])
def test_the_cases_of_the_vectors(form: str, vector: dict[str, Any]) -> None:
    names = "ABCDEFG"
    lists = [
        [(names.index(name), *(value or [""]), "") for name, *value in vector[side]]
        for side in ("receiver", "sender")
    ]
    values = {"values": vector["values"]} if "values" in vector else {}
    columns = match_case(*lists, sizing=FORMS[form], **values).released().table.columns
    expected = {f"RIC:{person(names.index(name))}".encode(): name for name in vector["found"]}
    assert set(columns["key"].tolist()) == set(expected)
    for key, own in zip(columns["key"].tolist(), columns.get("own_group", []), strict=False):
        assert own.decode() == vector["own_group"][expected[key]]


@pytest.mark.long
@pytest.mark.parametrize("values", [{}, {"values": [["1"], ["2"]]}])
def test_long_lists_take_the_form_for_them_without_being_told(values: dict[str, Any]) -> None:
    def rows(numbers: range) -> list[Row]:
        return [(n, str(1 + n % 3 % 2), "") for n in numbers]

    ours, theirs = rows(range(70_000)), [(n, "1", "") for n in range(35_000, 40_000)]
    case = match_case(ours, theirs, receiver_keys=70_000, **values)
    differing = {n for n, value, _ in ours if value == "2"} if values else {n for n, _, _ in ours}
    assert keys(case) == sorted(person(n) for n in differing & {n for n, _, _ in theirs})
    assert len({message.round for message in case.sent}) == 5


@pytest.mark.parametrize("liar", OWNERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_side_that_sends_for_another_size_than_it_admitted_ends_the_attempt(form: str, liar: Role) -> None:
    honest = match_case(range(20), range(20), seed=1, sizing=FORMS[form])
    other = match_case(range(300), range(300), seed=1, sizing=FORMS[form])
    honest.parties[liar] = other.parties[liar]
    with pytest.raises(ProtocolAborted) as aborted:
        honest.run()
    codes = {"kkrt": {"sizes-differ"}, "dh": {"too-many-items", "too-few-items", "bad-length"}}
    assert aborted.value.code in codes[form]


@pytest.mark.parametrize("side", OWNERS)
def test_a_list_that_is_not_the_admitted_one_is_not_even_begun(side: Role) -> None:
    case = match_case(range(20), range(20))
    longer = prepared(case.spec, side, range(21))
    with pytest.raises(ProtocolAborted) as aborted:
        MATCHING.party(side, case.setup, longer, bytes)
    assert aborted.value.code == "count-changed"
