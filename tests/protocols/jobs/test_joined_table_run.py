"""Joined tables played whole: every form against the plaintext, noise of both, and what single seats see."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from joined_table_case import (
    JOINED,
    MONTHS,
    OVERPAID,
    PAID,
    REGISTERED,
    RESIDENT,
    S1,
    S2,
    STREETS,
    Case,
    Row,
    axis,
    banded,
    cells_of,
    crowd,
    joined_case,
    joined_spec,
    measure,
    plaintext,
)

from protocols.dp import exact
from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.joined_table import NOISE_SHARES, Params, noisy_table
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.joined.parties import ALIGN, BLOCK, COIN, FINAL, ROWS, Totals
from protocols.party import Incoming, Step
from protocols.wire import Constraints, JobSpec

Lists = Sequence[Sequence[Row]]


def opened(case: Case) -> tuple[np.ndarray, ...]:
    """Play it whole and return the cells as the matcher opens them, before anything is published."""
    params, matcher, seen = Params.of(case.spec), case.parties[MATCHER], []
    publish = matcher._publish
    matcher._publish = lambda totals: (seen.append(totals), publish(totals))[1]
    case.released()
    return params.cells(seen[0])


def same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return all((one == other).all() for one, other in zip(found, expected, strict=True))


# -- forms ---------------------------------------------------------------------------------------------------

AGED = banded(2, "age", ["0", "18", "60"])
OPEN_STREET = {**RESIDENT, "open": "yes"}
FORMS: Mapping[str, Mapping[str, Any]] = {
    "open alone": {"axes": [OPEN_STREET, {**REGISTERED, "open": "yes"}]},
    "hidden, one source": {"axes": [REGISTERED]},
    "hidden by open": {"axes": [REGISTERED, OPEN_STREET]},
    "amounts by open": {"axes": [OPEN_STREET], "measures": [PAID]},
    "amounts by hidden by open": {
        "axes": [OPEN_STREET, REGISTERED, {**AGED, "open": "yes"}],
        "measures": [PAID],
    },
    "hidden by hidden": {"axes": [RESIDENT, REGISTERED]},
    "hidden by hidden, banded": {"axes": [AGED, REGISTERED, RESIDENT]},
    "amounts of the other": {"axes": [RESIDENT], "measures": [PAID]},
    "amounts of both": {"axes": [REGISTERED, RESIDENT], "measures": [PAID, {**MONTHS, "of": ["mean"]}]},
    "product": {"axes": [RESIDENT], "measures": [OVERPAID, MONTHS]},
    "mean product": {"axes": [RESIDENT], "measures": [{**OVERPAID, "of": ["sum", "mean"]}, MONTHS]},
    "one total": {"measures": [OVERPAID, MONTHS]},
    "one sum": {"measures": [PAID]},
    "filtered": {
        "axes": [REGISTERED],
        "filters": [{"source": "source-2", "slot": "age", "low": "18", "high": "59"}],
    },
}
NOISY = {"rho": "0.4"}
WITH_NOISE: Mapping[str, Mapping[str, Any]] = {
    "product and sum": {"axes": [RESIDENT], "measures": [OVERPAID, {**MONTHS, "of": ["sum", "mean"]}]},
}
"""Forms that no exact table has."""


def rows(who: int, *picks: int) -> tuple[Row, Row]:
    """Return a person's rows on both lists, values picked by numbers."""
    street, home, paid, months, age = picks
    streets = (*STREETS, "elsewhere", None)
    paying = (None, 0.0, 0.05, 12.25, 499.9, 500.0, 7e9, -3.0)[paid]
    lasting = (0, 1, 59, 60, 61, None)[months]
    return (
        {"who": who, "registered": streets[street], "paid": paying},
        {"who": who, "resident": streets[home], "months": lasting, "age": (0, 17, 18, 59, 60)[age]},
    )


people = st.lists(
    st.tuples(
        st.sampled_from(["both", "both", "both", "one", "other", "neither"]),
        st.tuples(*(st.integers(0, most) for most in (4, 4, 7, 5, 4))),
    ),
    max_size=24,
)


def lists_of(found: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[list[Row], list[Row]]:
    both = [(where, rows(who, *picks)) for who, (where, picks) in enumerate(found)]
    return (
        [one for where, (one, _) in both if where in ("both", "one")],
        [other for where, (_, other) in both if where in ("both", "other")],
    )


def in_the_clear(spec: JobSpec, lists: Lists) -> Totals:
    """Return what the parties would open, from prepared lists and without any protocol."""
    params, ready = Params.of(spec), joined_case(spec, lists).lists
    one, other = (ready[role] for role in (S1, S2))
    _, left, right = np.intersect1d(one.keys, other.keys, return_indices=True)
    words = [params.words(each, at.astype(np.uint32)) for each, at in ((one, left), (other, right))]
    codes = [list(each.codes[at].T) for each, at in ((one, left), (other, right))]
    joining = params.joining([1, 1], bytes(32))
    sizes = [size for some in joining.open_sizes for size in some]
    groups = np.ravel_multi_index([*codes[0], *codes[1]], sizes) if sizes else np.zeros(len(left), dtype=int)
    sums = np.zeros((joining.groups, joining.width), dtype=np.int64)
    np.add.at(sums, groups, np.concatenate(words, axis=1))
    products = words[0].T @ words[1] if params.product else None
    return Totals(len(left), np.bincount(groups, minlength=joining.groups), sums, products)


@settings(max_examples=60, deadline=None)
@given(people, st.sampled_from(sorted({**FORMS, **WITH_NOISE})), st.booleans())
def test_cells_are_those_of_the_plaintext_whatever_the_form(found, form, noisy):
    noise = NOISY if noisy or form in WITH_NOISE else {}
    spec, lists = joined_spec(**{**FORMS, **WITH_NOISE}[form], **noise), lists_of(found)
    params = Params.of(spec)
    assert same(params.cells(in_the_clear(spec, lists)), plaintext(spec, lists))


@settings(max_examples=8, deadline=None)
@given(people, st.sampled_from(sorted(FORMS)))
def test_the_parties_open_just_these_cells(found, form):
    spec, lists = joined_spec(**FORMS[form]), lists_of(found)
    case, expected = joined_case(spec, lists), plaintext(spec, lists)
    if expected[0].sum():
        assert same(opened(case), expected)
        return
    with pytest.raises(ProtocolAborted) as error:
        case.released()
    assert error.value.code == "guard-few-joined"


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(people, st.sampled_from(sorted(FORMS)))
def test_the_parties_open_just_these_cells_however_often(found, form):
    spec, lists = joined_spec(**FORMS[form]), lists_of(found)
    expected = plaintext(spec, lists)
    if expected[0].sum():
        assert same(opened(joined_case(spec, lists)), expected)


@pytest.mark.parametrize("form", ["hidden by hidden", "amounts by open", "one total"])
@pytest.mark.parametrize("joined", [1, 30])
def test_one_joined_row_and_all_of_them_come_out_right(form, joined):
    spec = joined_spec(**FORMS[form])
    one = crowd(range(30), registered=STREETS, paid=[250.5])
    other = crowd(range(30 - joined, 60 - joined), resident=STREETS, months=[30], age=[20])
    case = joined_case(spec, [one, other])
    found = opened(case)
    assert found[0].sum() == joined
    assert same(found, plaintext(spec, [one, other]))


def test_three_lists_join_whoever_is_on_all_and_counts_on_each():
    spec = joined_spec(
        3,
        axes=[axis(3, "status", ["open"], open=True), OPEN_STREET],
        measures=[measure(1, "paid", "-50", "50", of=["sum"])],
        rho="15",
    )
    lists = [
        crowd(range(40), paid=[-50, 20, 50]),
        crowd(range(5, 60), resident=STREETS),
        crowd(range(0, 60, 2), status=["open", "shut"]),
    ]
    found, expected = opened(joined_case(spec, lists)), plaintext(spec, lists)
    for one, other, noise in zip(found, expected, Params.of(spec).noises, strict=True):
        assert np.abs((one - other).astype(float)).max() <= noise.reach
    assert found[1].min() < 0


def test_an_overpaid_total_is_what_each_was_paid_times_the_months(monkeypatch):
    """With and without noise; of 50 persons, each got 100.5 for as many months as their number."""
    monkeypatch.setattr(exact, "SMALL", 0)  # noise comes from `rand` alone
    lists = [crowd(range(60), paid=[100.5]), crowd(range(50), months=range(50))]
    true = 100.5 * sum(range(50))
    table = cells_of(joined_case(joined_spec(measures=[OVERPAID, MONTHS]), lists).released())
    assert table == {("persons",): 50, ("sum(paid*months)",): true}
    noisy = joined_case(joined_spec(measures=[OVERPAID, MONTHS], rho="16"), lists).released().table.columns
    at = noisy["measure"].tolist().index("sum(paid*months)")
    low, high = noisy["low"][at], noisy["high"][at]
    # Between ends that hold with 95 %; with this seed they do.
    assert low <= true <= high
    assert high - low < 60_000


# -- 176 × 176 -----------------------------------------------------------------------------------------------

WHOLE_CITY = [f"{n:03}" for n in range(176)]


def matrix(**params: Any) -> tuple[JobSpec, Lists]:
    streets = {"axes": [axis(1, "registered", WHOLE_CITY), axis(2, "resident", WHOLE_CITY)], **params}
    one = crowd(range(300), registered=WHOLE_CITY)
    return joined_spec(**streets), [one, crowd(range(100, 400), resident=[*WHOLE_CITY[5:], *WHOLE_CITY[:5]])]


def test_a_matrix_of_all_streets_is_opened_with_the_noise_of_both():
    spec, lists = matrix(rho="0.5")
    found, expected = opened(joined_case(spec, lists)), plaintext(spec, lists)
    off = (found[0] - expected[0]).astype(np.float64)
    # 30,976 cells of variance 2: the mean of squares is within 0.1 of 2 but for 1 in 10^8 seeds.
    assert off.shape == (176, 176)
    assert abs((off**2).mean() - NOISE_SHARES * 1.0) < 0.1


@pytest.mark.long
def test_a_matrix_of_all_streets_can_be_exact_with_margins():
    spec, lists = matrix()
    assert same(
        opened(joined_case(spec, lists, constraints=Constraints(min_group_size=10))), plaintext(spec, lists)
    )


# -- noise ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"rho": "0.5"}, {"epsilon": "1"}])
@pytest.mark.parametrize("form", ["hidden by hidden", "hidden by open"])
def test_matcher_and_helper_each_add_noise_that_is_enough_by_itself(budget, form, monkeypatch):
    monkeypatch.setattr(exact, "SMALL", 0)  # from `rand` alone
    streets = [f"s{n}" for n in range(40)]
    params = {
        **FORMS[form],
        "axes": [{**each, "values": streets} for each in FORMS[form]["axes"]],
        "measures": [PAID],
    }
    spec = joined_spec(**params, **budget)
    asked = Params.of(spec)
    shape = tuple(each.size for each in asked.layout.axes)
    drawn = [asked.added(seeded(f"draw {n}")) for n in range(2)]
    for total, noise in zip(range(2), asked.noises, strict=True):
        parts = []
        for sums, products in drawn:
            cells = asked.cells(Totals(0, np.zeros(1, dtype=np.int64), sums, products))[total]
            assert cells.shape == shape
            parts.append(cells.astype(np.float64))
        share = noise.variance / NOISE_SHARES
        # 1,600 values each: their mean of squares is within a quarter of the variance but for 1 in 10^6.
        assert all(abs((part**2).mean() / share - 1) < 0.25 for part in parts)
        assert abs((parts[0] * parts[1]).mean()) < 0.25 * share
        assert (noise.contributors, noise.honest) == (NOISE_SHARES, 1)


def test_intervals_hold_the_noise_of_both_as_often_as_they_say(monkeypatch):
    """1,000 cells at 95 %: fewer than 91 % would come 1 time in 10^8."""
    monkeypatch.setattr(exact, "SMALL", 0)
    spec = joined_spec(
        axes=[axis(1, "a", [str(n) for n in range(1000)])],
        measures=[measure(1, "paid", "0", "100", of=["sum"]), measure(1, "other", "-80", "100", of=["mean"])],
        rho="0.1",
    )
    params = Params.of(spec)
    true = [np.full(1000, count, dtype=np.int64) for count in (200, 12_000, 200 * (30 - 10))]
    noise = [sum(noise.draw(seeded(f"{n}{at}")) for n in range(2)) for at, noise in enumerate(params.noises)]
    table = noisy_table(params, Constraints(), [one + other for one, other in zip(true, noise, strict=True)])
    columns = table.table.columns
    low, high = (columns[name].reshape(3, -1) for name in ("low", "high"))
    for at, value in enumerate((200, 12_000, 30)):
        assert ((low[at] <= value) & (value <= high[at])).mean() > 0.91


def test_no_joined_row_is_told_apart_from_noise_by_nobody_and_with_noise_refused_by_nobody():
    lists = [crowd(range(20), registered=STREETS), crowd(range(20, 40), resident=STREETS)]
    content = joined_case(joined_spec(axes=[REGISTERED, RESIDENT], rho="0.5"), lists).released()
    assert content.table.rows == 9


# -- what single seats see -----------------------------------------------------------------------------------

FULL = {"axes": [REGISTERED, RESIDENT], "measures": [OVERPAID, MONTHS]}


SPENT: Mapping[str, Any] = {"registered": STREETS, "paid": [10.0, 300.0, 500.0, 72.4]}
STOPPED: Mapping[str, Any] = {"resident": STREETS[::-1], "months": range(61)}


def example(**params: Any) -> Case:
    spec = joined_spec(**{**FULL, **params})
    return joined_case(spec, [crowd(range(60), **SPENT), crowd(range(20, 80), **STOPPED)])


def test_the_matcher_opens_what_is_asked_for_and_blanks_in_the_place_of_all_else():
    """Sums of words that are multiplied, and products that nobody asked for, are uniform whatever is true."""
    seen: list[Totals] = []
    for seed in range(2):
        lists = [
            crowd(range(60), registered=STREETS, paid=[10]),
            crowd(range(60), resident=STREETS, months=[9]),
        ]
        case = joined_case(joined_spec(**FULL), lists, seed=seed)
        matcher = case.parties[MATCHER]
        publish = matcher._publish
        matcher._publish = lambda totals, publish=publish: (seen.append(totals), publish(totals))[1]
        case.released()
    one, other = seen
    blocks = one.products.reshape(3, 2, 3, 2), other.products.reshape(3, 2, 3, 2)
    for left, right in ((0, 1), (1, 0)):  # months alone, and paid alone: neither is asked for
        first, second = (block[:, left, :, right] for block in blocks)
        assert (first != second).all()
        assert (np.abs(first) > 1 << 40).all()  # 1 in 2^20 each would be smaller
    for left, right in ((0, 0), (1, 1)):
        assert (blocks[0][:, left, :, right] == blocks[1][:, left, :, right]).all()
    assert (one.sums != other.sums).all()


def test_with_noise_the_matchers_own_view_has_the_helpers_noise_on_every_cell(monkeypatch):
    """What it can take off is what it drew: what is left is noise of the helper, nowhere the exact cell."""
    monkeypatch.setattr(exact, "SMALL", 0)
    streets = [f"s{n}" for n in range(30)]
    spec = joined_spec(axes=[axis(1, "registered", streets), axis(2, "resident", streets)], rho="0.01")
    lists = [crowd(range(50), registered=streets), crowd(range(50), resident=streets)]
    case = joined_case(spec, lists)
    matcher, drawn = case.parties[MATCHER], []
    added = matcher._noise
    matcher._noise = lambda rand: (drawn.append(added(rand)), drawn[-1])[1]
    found = opened(case)[0]
    own = Params.of(spec).cells(Totals(0, np.zeros(1, dtype=np.int64), *drawn[0]))[0]
    left = (found - own - plaintext(spec, lists)[0]).astype(np.float64)
    share = Params.of(spec).noises[0].variance / NOISE_SHARES
    assert abs((left**2).mean() / share - 1) < 0.3  # 900 cells: 1 in 10^6


def sizes(case: Case) -> list[tuple[Role, Role, int, int]]:
    case.released()
    return [(each.sender, each.to, each.round, len(each.body)) for each in case.sent]


def test_frames_are_the_same_however_many_are_joined_and_whoever_counts():
    """All but the group sizes' content: every round, sender and length is."""
    few = joined_case(
        joined_spec(**FULL, rho="1"),
        [crowd(range(60), registered=["s1"], paid=[1]), crowd(range(59, 119), resident=["s1"], months=[1])],
    )
    many = joined_case(
        joined_spec(**FULL, rho="1"),
        [crowd(range(60), registered=STREETS, paid=[5]), crowd(range(60), resident=["s1", None], months=[1])],
    )
    assert sorted(sizes(few)) == sorted(sizes(many))


def test_a_word_that_no_list_has_is_noticed_before_an_exact_table_is_released():
    case = example()
    source = case.parties[S1]
    words = source._words
    source._words = lambda places: 2 * words(places)
    with pytest.raises(ProtocolAborted) as error:
        case.released()
    assert error.value.code == "bad-totals"


def test_every_share_that_leaves_a_source_or_the_helper_is_far_from_what_it_stands_for():
    case = example()
    case.released()
    wide = [np.frombuffer(each.body, dtype="<u8") for each in case.sent if each.round in (FINAL, BLOCK)]
    # Of uniform words below 2^61, one in 2^21 is below 2^40, as all true ones are.
    assert sum(int((words < 1 << 40).sum()) for words in wide) <= 1
    masked = [each.body for each in case.sent if each.round == ROWS]
    assert masked
    assert not any(b"\0" * 8 in body for body in masked)


def test_a_helper_that_starts_again_takes_part_in_a_new_attempt_which_shares_nothing_with_the_first():
    """The first stops half-way; the next has other seeds, masks and triples, and the same table."""
    stopped, whole = example(), example(margins="yes")
    helper = stopped.parties[HELPER]
    receive = helper.receive

    def lost(message: Incoming) -> Step:
        if message.round == COIN:
            raise ProtocolAborted("started again", code="restarted")
        return receive(message)

    helper.receive = lost
    with pytest.raises(ProtocolAborted):
        stopped.released()
    again = joined_case(
        stopped.spec,
        [crowd(range(60), **SPENT), crowd(range(20, 80), **STOPPED)],
        seed="again",
        ctx=bytes(32),
    )
    assert cells_of(again.released()) == cells_of(whole.released())
    first, second = ({each.body for each in case.sent if each.round != ALIGN} for case in (stopped, again))
    assert not first & second


@pytest.mark.parametrize("role", [S1, MATCHER, HELPER, DEALER])
def test_every_seat_refuses_to_begin_where_a_sum_could_overflow(role):
    case = example()
    inputs = dict(case.setup.inputs)
    large = {owner: replace(each, rows=1 << 26, distinct_keys=1 << 26) for owner, each in inputs.items()}
    high = str(1 << 40)
    spec = joined_spec(measures=[measure(1, "paid", "0", high, of=["sum"]), {**MONTHS, "of": ["sum"]}])
    setup = replace(case.setup, spec=spec, inputs=large)
    with pytest.raises(ProtocolAborted) as error:
        JOINED.party(role, setup, None, bytes)
    assert error.value.code == "guard-overflow"
    assert Params.of(spec).reach(1 << 26) > Params.of(spec).field.reach
    assert Fraction(Params.of(spec).reach(1 << 19), 1 << 40) == 1 << 19
