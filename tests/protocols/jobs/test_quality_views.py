"""What the statements of `quality/1` say each coalition learns, against what it can compute of a real run."""

import numpy as np
import pytest
from crosscheck_case import CTX
from quality_case import KEY, NAME, QUALITY, figures_of, quality_case, quality_spec
from sum_case import SumCase, View, subsets, sum_of

from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, COORDINATOR, REQUESTER, source
from protocols.jobs.quality import Params, own_vector
from protocols.wire import Constraints

ANALYST = Role(REQUESTER)
SOURCES = tuple(source(number) for number in range(1, 5))
KEY_HOLDER = source(2)
CANARY = "990101195001011234"
TABLES = [
    [
        {
            "id": CANARY if n == 3 else f"9901011950010{n:05d}",
            "name": f"甲乙丙丁-{number}-{n}" if n % 4 else "",
        }
        for n in range(40 + 10 * number)
    ]
    for number in range(4)
]


def played(tables, **params):
    case = quality_case(
        tables,
        constraints=Constraints(min_group_size=3),
        key_holder=2,
        columns=[KEY, NAME],
        persons_in=1,
        seed="views",
        **params,
    )
    case.content = case.released()
    return case


@pytest.fixture(scope="module", params=["bfv", "mask"])
def case(request):
    return played(TABLES, mode=request.param)


def as_sum(case) -> SumCase:
    """The secure sum inside the job, for the attack on sums."""
    params = Params.of(case.spec)
    vectors = {role: own_vector(params, each, bytes) for role, each in case.inputs.items()}
    return SumCase(params.sums(CTX), vectors, case.parties, case.sent)


def stated(spec, members: frozenset[Role]) -> set[str]:
    """Keys of all statements about a coalition and its parts."""
    return {s.key for part, said in QUALITY.learns(spec).items() if part <= members for s in said}


@pytest.mark.parametrize(
    "members", subsets((*SOURCES, AGGREGATOR, ANALYST)), ids=lambda members: "+".join(sorted(members))
)
def test_a_coalition_computes_what_the_statements_say_and_no_more(case, members):
    said, sums = stated(case.spec, members), as_sum(case)
    view = View(sums, members - {ANALYST})
    outside = [role for role in SOURCES if role not in members]
    rest = frozenset(outside)
    alone = {role: sum_of(view, frozenset({role})) == sums.vectors[role].tolist() for role in outside}
    assert any(alone.values()) == (len(outside) == 1 and "last-department" in said)
    together = bool(rest) and sum_of(view, rest) == np.sum([sums.vectors[r] for r in rest], axis=0).tolist()
    assert together == (bool(rest) and "totals" in said)
    for some in subsets(outside):
        if some != rest:
            assert sum_of(view, some) != np.sum([sums.vectors[r] for r in some], axis=0).tolist()
    assert ("others-together" in said) == (
        ANALYST in members and bool(members & (set(SOURCES) - {KEY_HOLDER}))
    )
    assert ("withheld-figures" in said) == ({ANALYST, KEY_HOLDER} <= members)
    assert ("table" in said) == (ANALYST in members)


def test_departments_that_swap_their_rows_make_no_difference_to_anybody_else(case):
    other = played([TABLES[2], TABLES[1], TABLES[0], TABLES[3]], mode=Params.of(case.spec).mode)
    assert figures_of(case.content) == figures_of(other.content)
    assert case.content.facts == other.content.facts
    shapes = [[(m.sender, m.to, m.round, m.last) for m in each.sent] for each in (case, other)]
    assert shapes[0] == shapes[1]
    rest = frozenset(SOURCES) - {KEY_HOLDER}
    views = [View(as_sum(each), frozenset({KEY_HOLDER})) for each in (case, other)]
    assert sum_of(views[0], rest) == sum_of(views[1], rest)
    for role in (SOURCES[0], SOURCES[2]):
        assert all(sum_of(view, frozenset({role})) is None for view in views)


def test_no_value_of_any_row_is_in_a_message_or_in_the_table(case):
    texts = [CANARY.encode(), "甲乙丙丁".encode()]
    assert not any(text in message.body for message in case.sent for text in texts)
    assert not any(CANARY in str(value) for column in case.content.table.columns.values() for value in column)
    assert not any(CANARY in repr(each) for each in case.inputs.values())


@pytest.mark.parametrize("noise", [{}, {"rho": "0.1"}])
def test_each_seat_and_the_relay_are_spoken_of(noise):
    for sources in (3, 5):
        spec = quality_spec(sources, **noise)
        table = QUALITY.learns(spec)
        for seat in (*spec.roles, ANALYST, Role(COORDINATOR)):
            assert table[frozenset({seat})]
        assert {s.key for s in table[frozenset({AGGREGATOR})]} == {"published-sizes"}


def test_with_noise_whoever_takes_its_own_off_is_left_with_that_of_the_others():
    case = played(TABLES, rho="0.5")
    totals = sum(each.counts for each in case.inputs.values())
    noises, _ = Params.of(case.spec).noise()
    value = case.content.table.columns["value"]
    there = ~np.isnan(value)
    # Noise there is: of 20 and more numbers, not all are true.
    assert (value[there] != totals[there]).any()
    keys = {s.key for s in QUALITY.learns(case.spec)[frozenset({KEY_HOLDER})]}
    assert keys == {"published-sizes", "noisy-totals"}
    assert all((noise.honest, noise.contributors) == (3, 4) for noise in noises)


def test_a_figure_may_be_nearly_all_one_departments_and_the_statement_says_so():
    case = quality_case([[{"name": ""}] * rows for rows in (200, 1, 1)], columns=[NAME], persons_in=1)
    assert figures_of(case.released())["name", "missing", ""] == 200
    [said] = QUALITY.learns(case.spec)[frozenset({ANALYST})]
    assert "a figure may be nearly all one department's" in said.en
    assert "某一数字可能几乎全部来自一个部门" in said.zh
