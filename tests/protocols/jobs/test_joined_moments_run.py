"""Joined moments played whole, by all parties: right figures, or a clear refusal before anything is told."""

from fractions import Fraction

import numpy as np
import pytest
import statsmodels.api as sm
from crosscheck_case import person
from joined_moments_case import (
    AGE,
    EARNED,
    INSURED,
    MOMENTS,
    S1,
    YEARS,
    as_lists,
    column,
    moments_case,
    moments_spec,
    people,
    shown_rows,
)

from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER
from protocols.jobs.joined_moments import Params
from protocols.joined.moments import again
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.joined.parties import ALIGN, FINAL
from protocols.party import run
from protocols.wire import Constraints

SPEC = moments_spec(target="income")


def test_three_columns_of_two_departments_are_those_of_the_joined_rows():
    rows = people(700)
    case = moments_case(SPEC, as_lists(rows))
    content = case.released()
    assert content.facts["n"] == 700
    assert content.facts["withheld_columns"] == ""
    found = shown_rows(content)
    real = rows[:, :3] / np.array([100, 1, 1])
    names = ["income", "years", "age"]
    for i, name in enumerate(names):
        assert found["mean", name, ""][0] == pytest.approx(real[:, i].mean(), rel=1e-12)
        assert found["variance", name, ""][0] == pytest.approx(real[:, i].var(ddof=1), rel=1e-10)
    oracle = sm.OLS(real[:, 0], sm.add_constant(real[:, 1:])).fit()
    for at, slot in enumerate(("", "years", "age")):
        measure = "coefficient" if slot else "intercept"
        assert found[measure, slot, "income"] == pytest.approx(
            (oracle.params[at], *oracle.conf_int()[at]), rel=1e-7
        )
        assert found["standard-error", slot, "income"][0] == pytest.approx(oracle.bse[at], rel=1e-8)


def test_columns_in_another_order_than_the_sources_keep_their_names():
    rows = people(400)
    spec = moments_spec(columns=[YEARS, EARNED, AGE])
    lists = as_lists(rows)
    found = shown_rows(moments_case(spec, lists).released())
    assert found["mean", "years", ""][0] == pytest.approx(rows[:, 1].mean())
    assert found["mean", "age", ""][0] == pytest.approx(rows[:, 2].mean())
    expected = np.cov(rows[:, 0] / 100, rows[:, 2])[0, 1]
    assert found["covariance", "income", "age"][0] == pytest.approx(expected, rel=1e-10)


def test_filters_nulls_and_out_of_range_values_leave_out_or_clip_as_the_rules_say():
    rows = people(400)
    lists = as_lists(rows)
    first, second = lists
    for at in range(40):
        second[at]["years"] = None  # the last 40 of those on both
    first[5]["income"] = 50_000.0  # clipped to 20,000
    first += [{"who": 7, "income": 1.0}]  # another row of one person
    spec = moments_spec(filters=[{"source": S1, "slot": "income", "low": "2"}])
    case = moments_case(spec, lists)
    content = case.released()
    assert content.facts["n"] == 360
    assert case.lists[S1].quality()["out-of-range"] == 1
    kept = rows[:360].copy()
    kept[5, 0] = 2_000_000
    assert shown_rows(content)["mean", "income", ""][0] == pytest.approx(kept[:, 0].mean() / 100, rel=1e-12)


def test_three_departments_and_a_flag():
    rows = people(500, seed=3)
    lists = as_lists(rows)
    lists.append([{"who": i, "insured": int(rows[i, 3])} for i in range(500)])
    spec = moments_spec(3, columns=[EARNED, YEARS, AGE, INSURED], target="insured", ridge="0.001")
    found = shown_rows(moments_case(spec, lists).released())
    assert found["mean", "insured", ""][0] == rows[:, 3].mean()
    assert ("coefficient", "income", "insured") in found


# -- too few, none, one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joined", "least", "fine"),
    [
        (0, None, False),
        (1, None, False),
        (99, None, False),
        (100, None, True),
        (119, 120, False),
        (120, 120, True),
    ],
)
def test_fewer_than_a_hundred_or_the_minimum_group_end_the_attempt_before_anything_goes_on(
    joined, least, fine
):
    spec = moments_spec(columns=[column(1, "income", "3000", "16000"), column(2, "years", "0", "45")])
    rng = np.random.default_rng(4)
    rows = people(130)
    rows[:, 0] = rng.integers(300_000, 1_600_000, 130)
    rows[:, 1] = rng.integers(0, 46, 130)
    first = [{"who": i, "income": rows[i, 0] / 100} for i in range(130)]
    second = [{"who": i + 130 - joined, "years": int(rows[i, 1])} for i in range(130)]
    case = moments_case(spec, [first, second], constraints=Constraints(min_group_size=least))
    if fine:
        assert case.released().facts["n"] == joined
        return
    with pytest.raises(ProtocolAborted) as error:
        run(case.parties, observe=case.sent.append)
    assert error.value.code == "guard-few-joined"
    assert not [m for m in case.sent if m.sender == MATCHER and m.round >= ALIGN]


def test_lists_that_are_too_short_for_anybody_are_refused_before_they_are_tagged():
    with pytest.raises(ProtocolAborted) as error:
        moments_case(SPEC, as_lists(people(60)))
    assert error.value.code == "guard-few-joined"


def test_constant_columns_have_moments_and_no_coefficients():
    rows = people(600)
    rows[:, 2] = 40
    content = moments_case(SPEC, as_lists(rows, only_first=0, only_second=0)).released()
    found = shown_rows(content)
    assert found["mean", "age", ""][0] == 40
    assert found["variance", "age", ""][0] == 0
    assert ("correlation", "income", "age") not in found
    assert content.facts["coefficients"] == "singular"
    assert not any(key[0] in ("coefficient", "intercept", "standard-error") for key in found)


def test_a_flag_of_three_persons_is_withheld_from_what_is_released():
    rows = people(500)
    rows[:, 3] = np.arange(500) < 3
    lists = as_lists(rows)
    for row in lists[1]:
        row["flag"] = int(row["who"] < 3)
    spec = moments_spec(columns=[EARNED, YEARS, AGE, column(2, "flag", "0", "1")])
    content = moments_case(spec, lists).released()
    assert content.facts["withheld_columns"] == "flag"
    assert not any("flag" in key for key in shown_rows(content))


def test_values_at_both_ends_of_wide_and_negative_bounds_are_exact():
    limit = 2**40
    spec = moments_spec(
        columns=[column(1, "income", str(-limit), str(limit)), column(2, "years", "-45", "0")]
    )
    ends = np.arange(140) % 2
    other = np.arange(140) % 7 < 3
    first = [{"who": i, "income": int(limit if ends[i] else -limit)} for i in range(140)]
    second = [{"who": i, "years": -45 if other[i] else 0} for i in range(140)]
    found = shown_rows(moments_case(spec, [first, second]).released())
    assert found["mean", "income", ""][0] == 0
    assert found["variance", "income", ""][0] == float(Fraction(140, 139) * limit**2)
    assert found["mean", "years", ""][0] == -45 * other.mean()


# -- noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"rho": "1"}, {"epsilon": "4"}], ids=str)
def test_with_noise_every_number_is_noisy_and_near(budget):
    rows = people(900)
    case = moments_case(moments_spec(target="income", **budget), as_lists(rows))
    content = case.released()
    found = shown_rows(content)
    persons, low, high = found["persons", "", ""]
    # Half widths of 95 %: each is left by 4 of them with a chance far below 1e-9 for a Gaussian, 4e-6 else.
    assert abs(persons - 900) <= 4 * (high - low) / 2
    for at, slot in enumerate(("income", "years", "age")):
        value, low, high = found["mean", slot, ""]
        assert abs(value - rows[:, at].mean() / (100 if at == 0 else 1)) <= 2 * (high - low) + 1e-9
    assert content.facts["coefficients"] == "shown"
    made = again(Params.of(case.spec).question(0, case.setup.constraints), content.facts)
    np.testing.assert_allclose(made.table.columns["value"], content.table.columns["value"], rtol=1e-9)


def test_the_helpers_shares_and_the_matchers_opening_each_have_the_others_noise():
    """Two attempts with the same masks: what differs is the noise, and it does in every number."""
    rows, opened = people(150), []
    for _ in range(2):
        case = moments_case(moments_spec(rho="1"), as_lists(rows))
        content = case.released()
        final = np.frombuffer(b"".join(m.body for m in case.sent if m.round == FINAL), "<u8")
        opened.append((final, content.facts))
    (one, first), (other, second) = opened
    assert len(one) == 3 + 9
    assert (one != other).all()
    assert first["sums"] != second["sums"]


def test_a_noisy_number_below_a_hundred_ends_the_attempt():
    # ρ = 1e-6 spreads n by thousands: of 40 attempts with 150 persons about half end, none with a chance
    # below 1e-9.
    rows = people(150)
    codes = []
    for seed in range(40):
        spec = moments_spec(rho="0.000001")
        case = moments_case(spec, as_lists(rows), seed=seed)
        matcher = case.parties[MATCHER]
        try:
            matcher._admit(150)  # type: ignore[attr-defined]  # what the matcher asks
        except ProtocolAborted as error:
            codes.append(error.code)
    assert 0 < len(codes) < 40
    assert set(codes) == {"guard-few-joined"}


def test_released_n_carries_the_noise_that_the_guard_saw_and_no_second_one():
    case = moments_case(moments_spec(rho="0.5"), as_lists(people(400)))
    content = case.released()
    matcher = case.parties[MATCHER]
    maker = matcher._admit.__self__  # type: ignore[attr-defined]  # what the matcher asks
    assert content.facts["n"] == maker._n


# -- who learns what ---------------------------------------------------------------------------------------


def test_the_leakage_statement_is_that_of_the_specification():
    def keys(spec):
        return {frozenset(members): {s.key for s in said} for members, said in MOMENTS.learns(spec).items()}

    two = [frozenset(pair) for pair in ((MATCHER, HELPER), (MATCHER, DEALER), (HELPER, DEALER))]
    expected = {
        frozenset({Role(REQUESTER)}): {"moments"},
        frozenset({Role(COORDINATOR)}): {"list-sizes", "traffic"},
        frozenset({MATCHER}): {"list-sizes", "venn", "all-moments"},
        frozenset({HELPER}): {"list-sizes", "joined-size"},
        frozenset({DEALER}): {"list-sizes"},
        two[0]: {"payloads"},
        two[1]: {"joined-words"},
        two[2]: {"joined-words"},
        frozenset({MATCHER, "source-1", "source-2"}): {"dictionary"},
    }
    for owner in ("source-1", "source-2"):
        expected[frozenset({owner})] = {"list-sizes"}
        expected[frozenset({MATCHER, owner})] = {"own-rows-elsewhere"}
        expected[frozenset({HELPER, owner})] = {"own-rows-joined"}
        expected |= {pair | {owner}: {"joined-records"} for pair in two}
    assert keys(SPEC) == expected
    noisy = keys(moments_spec(rho="0.1"))
    assert noisy.pop(frozenset({Role(REQUESTER), HELPER})) == {"one-noise"}
    assert noisy[frozenset({MATCHER})] == {"list-sizes", "venn", "helpers-noise"}
    assert noisy[frozenset({Role(REQUESTER)})] == {"noisy-moments"}


def test_no_message_has_an_amount_or_an_identifier_and_all_look_the_same_for_other_amounts():
    """Frames follow from sizes: what is inside differs, what a relay sees does not."""

    def frames(seed):
        case = moments_case(SPEC, as_lists(people(200, seed=seed)))
        case.released()
        assert not any(person(3).encode() in m.body for m in case.sent)
        return [(m.sender, m.to, m.round, len(m.body), m.last) for m in case.sent]

    assert frames(1) == frames(2)


def test_the_requester_with_the_helper_takes_off_one_noise_and_meets_the_other():
    case = moments_case(moments_spec(rho="1"), as_lists(people(300)))
    drawn = []
    for role in (MATCHER, HELPER):
        party = case.parties[role]
        noise = party._noise  # type: ignore[attr-defined]  # what each of the two draws

        def kept(rand, noise=noise):
            drawn.append(noise(rand))
            return drawn[-1]

        party._noise = kept  # type: ignore[attr-defined]
    products = str(case.released().facts["products"]).split()
    ages = [int(each[1][2, 2]) for each in drawn]
    assert len(ages) == 2
    left = int(products[-1]) - sum(((people(300)[:, 2] - 43) ** 2).tolist())  # 43: the middle of the bounds
    assert left == sum(ages)
    assert 0 not in ages
