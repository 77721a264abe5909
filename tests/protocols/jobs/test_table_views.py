"""What the statements of `table/1` say each coalition learns, against what it can compute of a real run."""

from collections.abc import Mapping

import numpy as np
import pytest
from crosscheck_case import CTX
from sum_case import SumCase, View, subsets, sum_of
from table_case import CROSS_TABLE, INCOME, SourcesCase, cells_of, crowd, table_case, table_spec

from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, COORDINATOR, REQUESTER, source
from protocols.jobs.table import Params, own_vector
from protocols.wire import Constraints

ANALYST = Role(REQUESTER)
SOURCES = tuple(source(number) for number in range(1, 5))
KEY_HOLDER = source(2)
TABLES = [crowd(number, 300 + 60 * number) for number in range(4)]


def played(tables, mode: str) -> SourcesCase:
    case = table_case(
        tables,
        constraints=Constraints(),
        key_holder=2,
        mode=mode,
        measures=[INCOME],
        persons_in=1,
        seed=f"views/{mode}",
    )
    case.content = case.released()
    return case


@pytest.fixture(scope="module", params=["bfv", "mask"])
def case(request) -> SourcesCase:
    return played(TABLES, request.param)


def as_sum(case: SourcesCase) -> SumCase:
    """The secure sum inside the job, for the attack on sums."""
    params = Params.of(case.spec)
    vectors = {role: own_vector(params, tally) for role, tally in case.tallies.items()}
    return SumCase(params.sums(CTX), vectors, case.parties, case.sent)


def stated(spec, members: frozenset[Role]) -> set[str]:
    """Keys of all statements about a coalition and its parts."""
    table: Mapping[frozenset[Role], tuple] = CROSS_TABLE.learns(spec)
    return {s.key for part, statements in table.items() if part <= members for s in statements}


SEATS = (*SOURCES, AGGREGATOR, ANALYST)


@pytest.mark.parametrize("members", subsets(SEATS), ids=lambda members: "+".join(sorted(members)))
def test_a_coalition_computes_what_the_statements_say_and_no_more(case, members):
    said = stated(case.spec, members)
    sums = as_sum(case)
    view = View(sums, members - {ANALYST})
    outside = [role for role in SOURCES if role not in members]
    rest = frozenset(outside)
    alone = {role: sum_of(view, frozenset({role})) == sums.vectors[role].tolist() for role in outside}
    # A department's own part is known if it is the last one outside, and the key-holder is in.
    assert any(alone.values()) == (len(outside) == 1 and "last-department" in said)
    together = bool(rest) and sum_of(view, rest) == np.sum([sums.vectors[r] for r in rest], axis=0).tolist()
    assert together == (bool(rest) and "totals" in said)
    for some in subsets(outside):
        if some != rest:
            assert sum_of(view, some) != np.sum([sums.vectors[r] for r in some], axis=0).tolist()
    assert ("others-together" in said) == (
        ANALYST in members and bool(members & (set(SOURCES) - {KEY_HOLDER}))
    )
    assert ("withheld-cells" in said) == ({ANALYST, KEY_HOLDER} <= members)
    assert ("table" in said) == (ANALYST in members)


def test_the_requester_with_a_source_subtracts_its_part_from_published_cells(case):
    shown = cells_of(case.content)
    persons = np.array([value for (*_, word), value in shown.items() if word == "persons"])
    assert len(persons) == 12
    tallies = [tally.persons().reshape(2, 3) for tally in case.tallies.values()]
    others = sum(tallies[1:])
    inner = np.array([value for (*labels, word), value in shown.items() if word == "persons" and all(labels)])
    assert np.abs(inner.reshape(2, 3) - tallies[0] - others).max() <= 2.5


@pytest.mark.parametrize("having", [1, 2, 3])
def test_the_key_holder_tells_how_many_have_a_cell_and_where_one_other_has_what_it_has(having):
    # Persons of the east: of the key-holder never, of `having` others.
    others = [role for role in SOURCES if role != KEY_HOLDER]
    tables = [
        [row for row in table if role in others[:having] or row["district"] == "west"]
        for role, table in zip(SOURCES, TABLES, strict=True)
    ]
    case = played(tables, "mask")
    rest = sum_of(View(as_sum(case), frozenset({KEY_HOLDER})), frozenset(others))
    persons, departments = np.reshape(rest, (-1, 2, 3))[:2]
    assert departments[0].tolist() == [having] * 3
    first = case.tallies[others[0]].persons().reshape(2, 3)[0]
    assert (persons[0].tolist() == first.tolist()) == (having == 1)
    (totals,) = [s for s in CROSS_TABLE.learns(case.spec)[frozenset({KEY_HOLDER})] if s.key == "totals"]
    assert "how many departments" in totals.en
    assert "only one other has any" in totals.en
    assert "部门个数" in totals.zh
    # Who has one source's part beside the table is left with two others in what it shows, at least.
    shown = {tuple(labels) for *labels, _ in cells_of(case.content)}
    assert (("east", "[0, 18)") in shown) == (having >= 3)


def test_each_seat_and_the_relay_are_spoken_of():
    for sources in (1, 3, 5):
        spec = table_spec(sources)
        table = CROSS_TABLE.learns(spec)
        for seat in (*spec.roles, ANALYST, Role(COORDINATOR)):
            assert table[frozenset({seat})]
    assert {s.key for s in CROSS_TABLE.learns(table_spec(3))[frozenset({AGGREGATOR})]} == {"published-sizes"}


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_departments_that_swap_their_rows_make_no_difference_to_anybody_else(mode):
    swapped = [TABLES[2], TABLES[1], TABLES[0], TABLES[3]]
    one, other = played(TABLES, mode), played(swapped, mode)
    # What is released, and what the key-holder opens, is the same; frames are of one shape.
    columns = [case.content.table.columns for case in (one, other)]
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype == float)
        for a, b in zip(*(c.values() for c in columns), strict=True)
    )
    assert one.content.facts == other.content.facts
    shapes = [[(m.sender, m.to, m.round, m.last) for m in case.sent] for case in (one, other)]
    assert shapes[0] == shapes[1]
    views = [View(as_sum(case), frozenset({KEY_HOLDER})) for case in (one, other)]
    rest = frozenset(SOURCES) - {KEY_HOLDER}
    assert sum_of(views[0], rest) == sum_of(views[1], rest)
    for role in (SOURCES[0], SOURCES[2]):
        assert all(sum_of(view, frozenset({role})) is None for view in views)


def test_no_persons_identifier_is_in_any_message(case):
    for row in TABLES[0][:20]:
        assert not any(row["unit"].encode() in message.body for message in case.sent)
