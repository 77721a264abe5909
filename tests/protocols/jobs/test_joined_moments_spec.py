"""What a job of type `joined-moments/1` may say, what it costs, and the numbers that its document pins."""

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined_moments_case import (
    AGE,
    EARNED,
    MOMENTS,
    S1,
    S2,
    YEARS,
    as_lists,
    column,
    listed,
    moments_case,
    moments_spec,
    people,
)

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs.job_type import REQUESTER, ExactOrNoisy, Forecaster
from protocols.jobs.joined_moments import Params
from protocols.joined.moments import Column, Moments, Question, again, noises, pairs, shown, table
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.statistics.differencing import differenced
from protocols.wire import Constraints, InputSummary, JobSpec

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/joined-moments.json").read_text("utf-8")
)
LIMITS = Constraints(min_group_size=10)


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["columns"], ids=lambda vector: str(vector[:3]))
def test_q_is_that_of_the_vectors(vector):
    low, high, most, *expected, amount, q = vector
    found = Column("x", low, high, 0, most)
    assert [found.twice_step, found.twice_centre, *found.ends] == expected
    assert found.quantised(np.array([amount])).tolist() == [q]


def columns_of(vector: dict[str, Any], most: int) -> tuple[Column, ...]:
    return tuple(Column(*each, most) for each in vector["columns"])


@pytest.mark.parametrize("vector", VECTORS["tables"], ids=lambda vector: vector["name"])
def test_exact_figures_are_those_of_the_vectors(vector):
    columns = columns_of(vector, vector["largest_q"])
    question = Question(columns, vector["target"], Fraction(vector["ridge"]))
    found = table(question, Moments.read(vector, len(columns)), range(len(columns))).table.columns
    figures = dict(vector["figures"])
    ends = {end: figures.pop(end, []) for end in ("low", "high")}
    assert list(dict.fromkeys(found["measure"])) == [
        name
        for name in (
            *("persons", "mean", "variance", "covariance", "correlation"),
            *("intercept", "coefficient", "standard-error", "residual-variance", "r-squared"),
        )
        if name in figures
    ]
    for name, expected in figures.items():
        here = found["measure"] == name
        values = [None if np.isnan(each) else each for each in found["value"][here].tolist()]
        exact = name in ("persons", "mean", "variance", "covariance", "coefficient", "intercept")
        wanted = expected if isinstance(expected, list) else [expected]
        assert values == (
            wanted if exact else [None if e is None else pytest.approx(e, rel=1e-13) for e in wanted]
        )
    about = np.isin(found["measure"].astype(str), ["intercept", "coefficient"])
    for end, expected in ends.items():
        np.testing.assert_allclose(found[end][about].astype(float), expected, rtol=1e-9)


@pytest.mark.parametrize("vector", VECTORS["shown"], ids=lambda vector: vector["name"])
def test_what_may_be_shown_is_what_the_vectors_say(vector):
    columns = columns_of(vector, 1 << 26)
    found = shown(columns, Moments.read(vector, len(columns)), vector["least"])
    assert list(found) == vector["shown"]


@pytest.mark.parametrize("vector", VECTORS["noise"], ids=str)
def test_noise_is_as_wide_as_the_vectors_say(vector):
    columns = tuple(Column(f"c{i}", low, high) for i, (low, high) in enumerate(vector["columns"]))
    notion, amount = ("zcdp", "rho") if "rho" in vector else ("pure-dp", "epsilon")
    found = noises(columns, Budget(notion, Fraction(vector[amount])))  # type: ignore[arg-type]  # one of two words
    each = [found.count, *found.sums, *found.products]
    variances = [noise.variance / noise.contributors for noise in each]
    np.testing.assert_allclose(variances, [variance for _, variance in vector["each"]], rtol=1e-9)
    reach = [column.reach for column in columns]
    most = [1, *reach, *(reach[i] * reach[j] for i, j in pairs(len(reach)))]
    assert most == [most for most, _ in vector["each"]]


@pytest.mark.parametrize("vector", VECTORS["bad_params"], ids=lambda vector: str(vector["params"]))
def test_bad_params_are_refused_with_their_code(vector):
    base = moments_spec()
    params = {k: v for k, v in {**base.params, **vector["params"]}.items() if v is not None}
    with pytest.raises(InputError) as error:
        MOMENTS.check(replace(base, params=params))
    assert error.value.code == vector["code"]
    assert error.value.hint


@pytest.mark.parametrize("vector", VECTORS["bad_facts"], ids=lambda vector: vector["name"])
def test_of_bad_facts_nobody_makes_a_table(vector):
    question = Question(columns_of(vector, 1 << 26), least=vector["least"])
    with pytest.raises(InputError) as error:
        again(question, vector["facts"])
    assert error.value.code == "bad-table"


@pytest.mark.parametrize("vector", VECTORS["runs"], ids=lambda vector: vector["name"])
def test_a_seeded_run_sends_and_releases_what_the_vectors_say(vector):
    spec = moments_spec(**vector["params"])
    case = moments_case(spec, as_lists(people(vector["people"], seed=5)), seed="vector")
    facts = case.released().facts
    bodies: dict[str, Any] = defaultdict(hashlib.sha256)
    for m in case.sent:
        bodies[f"{m.sender}>{m.to}/{m.round:#06x}"].update(m.body)
    assert {name: digest.hexdigest()[:16] for name, digest in bodies.items()} == vector["bodies"]
    assert {name: facts[name] for name in vector["facts"]} == vector["facts"]


# -- roles and slots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seat", [MATCHER, HELPER, DEALER, S2])
def test_every_seat_is_needed(seat):
    spec = moments_spec()
    with pytest.raises(InputError) as error:
        MOMENTS.check(replace(spec, roles={r: node for r, node in spec.roles.items() if r != seat}))
    assert error.value.code == "bad-roles"


def test_matcher_helper_and_dealer_are_three_organisations_that_neither_ask_nor_bring():
    spec = moments_spec()

    def apart(**seats: str) -> bool:
        roles = {**spec.roles, **{Role(r): NodeName(n) for r, n in seats.items()}}
        pairs_ = MOMENTS.separation(replace(spec, roles=roles), Organisation("bureau.example"))
        return not any(pair.these & pair.those for pair in pairs_)

    assert apart()
    assert not apart(helper="statistics.example/b")
    assert not apart(dealer="statistics.example/b")
    assert not apart(dealer="archives.example/b")
    assert not apart(matcher="department-1.example/b")
    assert not apart(helper="department-2.example/b")
    assert not apart(dealer="department-2.example/b")
    for seat in ("matcher", "helper", "dealer"):
        assert not apart(**{seat: "bureau.example/a"})


def test_a_column_has_to_be_free_for_sums_and_means_for_with_n_each_is_the_other():
    needs = MOMENTS.columns(moments_spec(), S2)
    assert [(need.slot, need.use) for need in needs if need.slot == "years"] == [
        ("years", "sum"),
        ("years", "mean"),
    ]
    assert not MOMENTS.columns(moments_spec(), MATCHER)
    (release,) = MOMENTS.releases(moments_spec())
    assert (release.made_by, release.recipient) == (MATCHER, REQUESTER)


def test_a_recipient_or_a_slot_too_many_is_refused():
    spec = moments_spec()
    with pytest.raises(InputError) as error:
        MOMENTS.check(replace(spec, recipients=(Organisation("department-1.example"),)))
    assert error.value.code == "bad-recipients"
    more = tuple(replace(each, columns={**each.columns, "extra": "x"}) for each in spec.inputs)
    with pytest.raises(InputError) as error:
        MOMENTS.check(replace(spec, inputs=more))
    assert error.value.code == "bad-inputs"


def test_two_columns_of_a_job_are_not_one_of_a_dataset_unless_there_is_noise():
    """Cut to two bounds, an amount would tell of groups between them what no rule on columns looks at."""
    twice = [EARNED, {**EARNED, "slot": "capped", "high": "9000"}, YEARS]
    for params, refused in (({}, True), ({"rho": "1"}, False)):
        spec = moments_spec(columns=twice, **params)
        inputs = tuple(
            replace(each, columns={**each.columns, "capped": "the_income"}) if each.role == S1 else each
            for each in spec.inputs
        )
        MOMENTS.check(spec)  # of a column each
        if not refused:
            MOMENTS.check(replace(spec, inputs=inputs))
            continue
        with pytest.raises(InputError) as error:
            MOMENTS.check(replace(spec, inputs=inputs))
        assert error.value.code == "measured-twice"
        assert error.value.hint


def test_what_is_released_says_which_rows_count_and_what_noise_hides():
    kept = [{"source": "source-2", "slot": "age", "low": "20"}]
    for params, words in (
        ({}, ("source-2: the_age = 20 …",)),
        ({"rho": "0.1"}, ("source-2: the_age = 20 …", "is on a list or not", "ρ = 0.1,", "ρ = 0.4")),
        ({"epsilon": "3"}, ("source-2: the_age = 20 …", "ε = 3,", "ε = 6")),
    ):
        (said,) = MOMENTS.learns(moments_spec(filters=kept, **params))[frozenset({Role(REQUESTER)})]
        for word in words:
            assert word in said.en
        assert "仅计 source-2: the_age = 20 … 的记录" in said.zh
        (said,) = MOMENTS.learns(moments_spec(**params))[frozenset({Role(REQUESTER)})]
        assert "only those" not in said.en
        assert "仅计" not in said.zh


# -- cost, questions, forecasts ------------------------------------------------------------------------------


def test_lists_pay_the_budget_or_a_question_and_the_others_nothing():
    assert isinstance(MOMENTS, ExactOrNoisy)
    spec = moments_spec()
    assert MOMENTS.exact(spec)
    assert MOMENTS.cost(spec, S1, LIMITS) == Cost(queries=1)
    assert MOMENTS.cost(spec, MATCHER, LIMITS) == NOTHING
    noisy = moments_spec(rho="0.1")
    assert not MOMENTS.exact(noisy)
    assert MOMENTS.cost(noisy, S2, LIMITS) == Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)
    pure = MOMENTS.cost(moments_spec(epsilon="2"), S2, LIMITS)
    assert pure.within("pure-dp", Fraction(2))
    assert not pure.within("pure-dp", Fraction(19, 10))


def test_what_is_regressed_on_what_is_no_other_question_and_all_else_is():
    base = moments_spec()
    mine = MOMENTS.query(base, S1)
    assert mine is not None
    assert mine.amounts
    for same in (moments_spec(target="income"), moments_spec(target="age", ridge="1")):
        assert MOMENTS.query(same, S1) == mine
    others: list[JobSpec] = [
        moments_spec(columns=[EARNED, YEARS]),
        moments_spec(columns=[YEARS, EARNED, AGE]),
        moments_spec(columns=[{**EARNED, "high": "19999"}, YEARS, AGE]),
        moments_spec(filters=[{"source": "source-2", "slot": "age", "low": "20"}]),
    ]
    for other in others:
        asked = MOMENTS.query(other, S1)
        assert asked is not None
        assert differenced(asked, mine)
    noisy = MOMENTS.query(moments_spec(rho="1"), S1)
    assert noisy is not None
    assert not differenced(noisy, mine)
    assert not noisy.amounts


def test_a_forecast_says_what_each_amount_buys():
    assert isinstance(MOMENTS, Forecaster)
    few, many = (MOMENTS.forecast(moments_spec(rho="0.1"), [Fraction(each)]) for each in ("0.1", "10"))
    assert [each.what for each in few] == [
        "the number of persons",
        "the mean of income over 1,000 persons",
        "the mean of years over 1,000 persons",
        "the mean of age over 1,000 persons",
    ]
    for less, more in zip(few, many, strict=True):
        assert less.within > more.within
    assert few[1].cost == MOMENTS.cost(moments_spec(rho="0.1"), S1, LIMITS)
    with pytest.raises(InputError) as error:
        MOMENTS.forecast(moments_spec(), [Fraction(1)])
    assert error.value.code == "bad-privacy"


# -- guards on inputs ----------------------------------------------------------------------------------------


def summaries(spec: JobSpec, keys: int) -> dict[Role, InputSummary]:
    found = listed(spec, S1, as_lists(people(120))[0])
    one = InputSummary(
        keys, keys, keys, found.commitment(bytes(32)), "2026-01-01", found.commitment(bytes(32)), "r"
    )
    return {S1: one, S2: one}


def test_sums_that_could_leave_their_words_are_refused_before_anything_leaves():
    exact, noisy = moments_spec(), moments_spec(rho="0.0001")
    MOMENTS.check_inputs(exact, summaries(exact, 1 << 26), LIMITS)  # q is coarser then
    MOMENTS.check_inputs(noisy, summaries(noisy, (1 << 26) - (1 << 20)), LIMITS)
    with pytest.raises(ProtocolAborted) as error:
        MOMENTS.check_inputs(noisy, summaries(noisy, 1 << 27), LIMITS)
    assert error.value.code == "guard-overflow"


def test_lists_that_no_node_has_memory_for_are_refused_before_anything_leaves():
    spec = moments_spec()
    with pytest.raises(ProtocolAborted) as error:
        MOMENTS.check_inputs(spec, summaries(spec, 1 << 27), LIMITS)
    assert error.value.code == "guard-too-large"


def test_rules_on_organisations_and_sources_hold():
    spec = moments_spec()
    MOMENTS.check_inputs(spec, summaries(spec, 500), Constraints(min_organisations=2, min_sources=2))
    for limits, code in (
        (Constraints(min_organisations=3), "guard-organisations"),
        (Constraints(min_sources=3), "guard-sources"),
        (Constraints(min_group_size=501), "guard-few-joined"),
    ):
        with pytest.raises(ProtocolAborted) as error:
            MOMENTS.check_inputs(spec, summaries(spec, 500), limits)
        assert error.value.code == code


def test_a_source_that_sends_words_beyond_its_bounds_spoils_nothing_quietly():
    spec = moments_spec(columns=[column(1, "income", "0", "10"), column(2, "years", "0", "45")])
    case = moments_case(
        spec,
        [
            [{"who": i, "income": i % 11} for i in range(150)],
            [{"who": i, "years": i % 46} for i in range(150)],
        ],
    )
    case.parties[S1]._words = lambda rows: np.full((len(rows), 1), 99)  # type: ignore[attr-defined]
    with pytest.raises(ProtocolAborted) as error:
        case.released()
    assert error.value.code == "bad-totals"


def test_words_of_many_columns_stand_in_the_order_of_sources():
    params = Params.of(moments_spec(columns=[YEARS, EARNED, AGE]))
    assert params.order == (1, 0, 2)
    assert [len(each.amounts) for each in params.lists.wholes] == [1, 2]
