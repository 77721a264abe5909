"""What joined jobs say of seats, lists and columns; and which two of them would give away a difference."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from crosscheck_case import ZERO
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.ids import DatasetName, KeyId, NodeName, Organisation, Role
from protocols.jobs.job_type import source
from protocols.jobs.sources import kinds_of
from protocols.joined.lists import Amount, Wanted
from protocols.joined.params import (
    DEALER,
    HELPER,
    MATCHER,
    Lists,
    OwnAmount,
    owners_of,
    read_lists,
    seats_apart,
)
from protocols.statistics.differencing import Query, differenced
from protocols.tables.layout import Axis, Filter, Reader
from protocols.wire import JobInput, JobSpec, organisation_of

ONE, TWO, THREE = (source(i) for i in (1, 2, 3))
OWNERS = (ONE, TWO, THREE)
USES = ("sum", "mean")

PLACE = {"source": "source-1", "slot": "place", "values": ["S1", "S2"], "open": "yes"}
AGE = {"source": "source-2", "slot": "age", "bins": ["0", "18", "60"]}
PAID = {"source": "source-2", "slot": "paid", "low": "0", "high": "100.5", "decimals": 2}
GONE = {"source": "source-3", "slot": "gone", "low": "0", "high": "24", "until": "2025-12"}
YEAR = {"source": "source-1", "slot": "year", "low": "2025", "high": "2025"}
STATE = {"source": "source-2", "slot": "state", "values": ["open", "late"]}
PARAMS: dict[str, Any] = {
    "axes": [PLACE, AGE],
    "measures": [{**PAID, "of": ["sum", "mean"], "times": "gone"}, GONE],
    "filters": [YEAR, STATE],
    "key_holders": ["source-3", "source-1"],
    "areas": "demo-city",
}


def read(params: Mapping[str, Any], **more: Any) -> Lists:
    reader = Reader(params, "joined-x/1")
    asked = {"axes": True, "amounts": "measures", "uses": USES, "most": 4, "times": True} | more
    found = read_lists(reader, OWNERS, **asked)
    reader.finish()
    return found


# -- reading -------------------------------------------------------------------------------------------------


def test_each_source_gets_its_own_part() -> None:
    lists = read(PARAMS)
    assert lists.owners == OWNERS
    assert lists.key_holders == (THREE, ONE)
    assert lists.areas == "demo-city"
    place = Axis("place", values=("S1", "S2"))
    age = Axis("age", bins=(Fraction(0), Fraction(18), Fraction(60)))
    year = Filter("year", low=Fraction(2025), high=Fraction(2025))
    state = Filter("state", values=("open", "late"))
    assert lists.wholes == (
        Wanted(ONE, open=(place,), filters=(year,)),
        Wanted(TWO, hidden=(age,), amounts=(Amount("paid", 0, 10_050, 2),), filters=(state,)),
        Wanted(THREE, amounts=(Amount("gone", 0, 24, until="2025-12"),)),
    )
    assert lists.wanted(ONE).open_sizes == (2,)
    assert lists.wanted(TWO).cells == 3
    assert lists.wanted(TWO).required == {"key", "age", "paid", "state"}
    assert lists.wanted(TWO).known == {"key", "age", "paid", "state", "latest"}


def test_an_amount_that_only_multiplies_another_is_asked_for_nothing() -> None:
    lists = read(PARAMS)
    assert [each.of for each in lists.amounts] == [("sum", "mean"), ()]
    assert [each.times for each in lists.amounts] == ["gone", ""]
    both = {**PARAMS, "measures": [{**PAID, "times": "gone"}, {**GONE, "of": ["mean"]}]}
    assert [each.of for each in read(both).amounts] == [("sum",), ("mean",)]


def test_what_is_left_out_has_a_default() -> None:
    lists = read({})
    assert lists == Lists(OWNERS, (ONE, TWO), "national")
    assert lists.wanted(TWO) == Wanted(TWO)


def test_columns_are_needed_for_what_is_done_with_them() -> None:
    lists = read({**PARAMS, "records_from": "source-3"}, records=True)
    uses = {role: [(need.slot, need.use, need.required) for need in lists.needs(role)] for role in OWNERS}
    assert uses == {
        ONE: [
            ("key", "join", True),
            ("place", "group", True),
            ("place", "open-to-matcher", True),
            ("year", "filter", True),
            ("latest", "filter", False),
        ],
        TWO: [
            ("key", "join", True),
            ("age", "group", True),
            ("paid", "sum", True),
            ("paid", "mean", True),
            ("state", "filter", True),
            ("latest", "filter", False),
        ],
        THREE: [
            ("key", "join", True),
            ("gone", "sum", True),
            ("street", "group", True),
            ("last_seen", "carry", False),
            ("latest", "filter", False),
        ],
    }
    assert lists.needs(MATCHER) == ()
    for role in OWNERS:
        wanted = lists.wanted(role)
        assert {need.slot for need in lists.needs(role)} == wanted.known
        assert {need.slot for need in lists.needs(role) if need.required} == wanted.required
    (gone,) = (need for need in lists.needs(THREE) if need.slot == "gone")
    assert gone.types == ("date", "month")


def test_a_filter_may_keep_months_also_of_a_date_that_months_are_counted_from() -> None:
    lists = read({**PARAMS, "filters": [{"source": "source-3", "slot": "gone", "to": "2025-09"}]})
    kept = Filter("gone", high=Fraction(2025 * 12 + 8), months=True)
    assert lists.wanted(THREE).filters == (kept,)
    assert lists.wanted(THREE).required == {"key", "gone"}
    of_gone = [need for need in lists.needs(THREE) if need.slot == "gone"]
    assert [(need.use, need.types) for need in of_gone] == [
        ("sum", ("date", "month")),
        ("filter", ("date", "month")),
    ]


@pytest.mark.parametrize("outside", ["clip", "refuse"])
def test_bounds_that_refuse_or_of_exact_sums_have_to_be_the_policys_range(outside: str) -> None:
    lists = read({"measures": [{**PAID, "outside": outside}]})
    for exact in (False, True):
        (need,) = (need for need in lists.needs(TWO, exact=exact) if need.slot == "paid")
        assert need.domain is not None
        assert need.domain.stated is (exact or outside == "refuse")
        assert need.domain.bounds == (0, Fraction("100.5"))


def test_months_have_no_range_that_an_exact_question_could_keep_to() -> None:
    lists = read({"measures": [{**PAID, "decimals": 0, "high": "100", "until": "2025-12"}]})
    for exact in (False, True):
        (need,) = (need for need in lists.needs(TWO, exact=exact) if need.slot == "paid")
        assert (need.domain is not None and need.domain.stated) is exact


def test_no_amount_refuses_a_list_in_a_job_with_noise() -> None:
    params = {"measures": [{**PAID, "outside": "refuse"}]}
    assert read(params).amounts[0].amount.outside == "refuse"
    with pytest.raises(InputError) as error:
        read(params, noisy=True)
    assert error.value.code == "bad-params"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"axes": [{**PLACE, "source": "source-4"}]}, "params.source is none of"),
        ({"axes": [{**PLACE, "open": True}]}, "params.open is none of no, yes"),
        ({"axes": [PLACE, {**PLACE, "source": "source-2"}]}, "have one slot"),
        ({"axes": [{**PLACE, "slot": "key"}]}, "every list has of its own"),
        ({"axes": [{**PLACE, "slot": "last_seen"}]}, "every list has of its own"),
        ({"axes": [{**PLACE, "slot": "unit"}]}, "reserved name"),
        ({"axes": [PLACE] * 5}, "no list of 1 to 4 entries"),
        ({"measures": [{**PAID, "slot": "age"}]}, "have one slot"),
        ({"measures": [{**PAID, "low": "100.5"}]}, "not the least and greatest"),
        ({"measures": [{**PAID, "high": "100.505"}]}, "not the least and greatest"),
        ({"measures": [{**PAID, "high": str(1 << 60)}]}, "not the least and greatest"),
        ({"measures": [{**PAID, "low": 0}]}, "no number written as text"),
        ({"measures": [{**PAID, "outside": "drop"}]}, "none of clip, refuse"),
        ({"measures": [{**PAID, "decimals": 7}]}, "no whole number from 0 to 6"),
        ({"measures": [{**PAID, "of": ["quantile"]}]}, "does not give"),
        ({"measures": [{**PAID, "times": "paid"}]}, "no amount of another source"),
        ({"measures": [{**PAID, "times": "age"}]}, "no amount of another source"),
        ({"measures": [PAID, {**PAID, "slot": "more", "times": "paid"}]}, "no amount of another source"),
        ({"measures": [{**GONE, "until": "2025-13"}]}, "no month"),
        ({"measures": [{**GONE, "until": "2025-12-01"}]}, "no month"),
        ({"measures": [{**GONE, "decimals": 1}]}, "months have decimals"),
        ({"measures": [{**GONE, "outside": "refuse"}]}, "months have decimals"),
        ({"filters": [{**YEAR, "source": "source-2", "slot": "place"}]}, "slot of another source's column"),
        ({"filters": [YEAR, YEAR]}, "have one slot"),
        ({"filters": [{"source": "source-1", "slot": "year"}]}, "keeps nothing, or everything"),
        ({"key_holders": ["source-1"]}, "two sources"),
        ({"key_holders": ["source-1", "matcher"]}, "two sources"),
        ({"key_holders": ["source-1", "source-1"]}, "lists a text twice"),
        ({"areas": "mars"}, "params.areas is none of"),
    ],
)
def test_params_of_another_form_are_refused(changed: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read({**PARAMS, **changed})
    assert caught.value.code == "bad-params"
    assert caught.value.hint


@pytest.mark.parametrize(
    "changed",
    [
        {"axes": [{**PLACE, "colour": "red"}]},
        {"measures": [{**PAID, "bounds": ["0", "1"]}]},
        {"filters": [{**YEAR, "bins": ["1"]}]},
        {"columns": [PAID]},
        {"records_from": "source-1"},
    ],
)
def test_params_that_nobody_knows_are_refused(changed: Mapping[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        read({**PARAMS, **changed})
    assert caught.value.code == "unknown-param"


def test_a_job_type_says_what_it_takes() -> None:
    for params, more in (
        ({"axes": [PLACE]}, {"axes": False}),
        ({"measures": [PAID]}, {"amounts": "columns"}),
        ({"measures": [{**PAID, "times": "gone"}, GONE]}, {"times": False}),
        ({"measures": [{**PAID, "of": ["sum"]}]}, {"uses": ("mean",)}),
    ):
        with pytest.raises(InputError) as caught:
            read(params, **more)
        assert caught.value.code == "unknown-param"
    with pytest.raises(InputError, match=r"no list of 1 to 4|has 1 entries"):
        read({"measures": [PAID]}, least=2)
    with pytest.raises(InputError, match="no list of 1 to 1"):
        read({"measures": [PAID, GONE]}, most=1)
    with pytest.raises(InputError, match="place"):
        read({"axes": [PLACE]}, reserved={"place"})
    with pytest.raises(InputError, match="street"):
        read({"axes": [{**PLACE, "slot": "street"}], "records_from": "source-2"}, records=True)
    assert read({"axes": [{**PLACE, "slot": "street"}]}).axes[0].axis.slot == "street"


def test_a_table_of_too_many_cells_is_refused() -> None:
    many = {"source": "source-2", "slot": "code", "values": [str(i) for i in range((1 << 16) + 1)]}
    for axes in ([{**many, "open": "yes"}], [many, {**PLACE, "values": [str(i) for i in range(16)]}]):
        with pytest.raises(InputError, match="cells along the axes") as caught:
            read({"axes": axes})
        assert caught.value.code == "too-many-cells"
    assert read({"axes": [many]}).wanted(TWO).cells == (1 << 16) + 1


# -- seats ---------------------------------------------------------------------------------------------------


def job(params: Mapping[str, Any] = PARAMS, *, dealer: bool = True, sources: int = 3) -> JobSpec:
    """Return a spec whose sources bring what `params` ask of them."""
    nodes = {source(i): f"department-{i}.example/a" for i in range(1, sources + 1)}
    nodes |= {MATCHER: "matching.example/a", HELPER: "helping.example/a"}
    nodes |= {DEALER: "dealing.example/a"} if dealer else {}
    owners = tuple(source(i) for i in range(1, sources + 1))
    lists = read_lists(
        Reader(params, "joined-x/1"), owners, axes=True, amounts="measures", uses=USES, most=4, times=True
    )
    return JobSpec(
        job_type="joined-x/1",
        params=params,
        inputs=tuple(
            JobInput(
                role,
                organisation_of(NodeName(nodes[role])),
                DatasetName("people"),
                {slot: f"the_{slot}" for slot in lists.wanted(role).required},
            )
            for role in owners
        ),
        roles={role: NodeName(node) for role, node in nodes.items()},
        purpose="P-1",
        legal_basis="L-1",
        expected_use="规划学位和养老服务",
        recipients=(),
        requester=KeyId(ZERO),
        collaboration="example",
        roster_digest=ZERO,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        expires=datetime(2026, 2, 1, tzinfo=UTC),
        nonce="0" * 32,
    )


def without(spec: JobSpec, *roles: Role) -> JobSpec:
    return replace(spec, roles={role: node for role, node in spec.roles.items() if role not in roles})


def moved(spec: JobSpec, role: str, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, Role(role): NodeName(node)})


def test_the_seats_are_lists_and_three_neutral_ones() -> None:
    assert owners_of(job(), dealer=True) == OWNERS
    assert owners_of(job(dealer=False), dealer=False) == OWNERS
    assert (
        owners_of(moved(job(), "recipient", "e.example/a"), dealer=True, extra=(Role("recipient"),)) == OWNERS
    )
    small = {"measures": [PAID]}
    for spec, dealer in (
        (job(dealer=False), True),
        (job(), False),
        (without(job(), HELPER), True),
        (without(job(), MATCHER), True),
        (without(job(), TWO), True),
        (without(job(small, sources=2), TWO), True),
        (moved(job(), "aggregator", "e.example/a"), True),
        (job(PARAMS, sources=7), True),
    ):
        with pytest.raises(InputError) as caught:
            owners_of(spec, dealer=dealer)
        assert caught.value.code == "bad-roles"
    assert len(owners_of(job(PARAMS, sources=6), dealer=True)) == 6


def test_kinds_are_those_of_the_policy() -> None:
    assert [kinds_of(role, (ONE, TWO)) for role in (ONE, THREE, MATCHER, HELPER, DEALER)] == [
        {"source", "key-holder"},
        {"source"},
        {"matcher"},
        {"helper"},
        {"dealer"},
    ]


BUREAU, OFFICE = Organisation("bureau.example"), Organisation("office.example")


def together(spec: JobSpec) -> list[str]:
    return [each.why for each in seats_apart(spec, OWNERS, BUREAU) if each.these & each.those]


def test_seats_that_would_learn_more_together_are_kept_apart() -> None:
    base = replace(job(), recipients=(OFFICE,))
    assert together(base) == []
    for role, other in (
        *((one, two) for one in (MATCHER, HELPER, DEALER) for two in (MATCHER, HELPER, DEALER) if one != two),
        *((one, owner) for one in (MATCHER, HELPER, DEALER) for owner in OWNERS),
        (ONE, THREE),
    ):
        assert together(moved(base, role, f"{organisation_of(base.roles[other])}/b")), (role, other)
    for role in (MATCHER, HELPER, DEALER):
        assert together(moved(base, role, f"{BUREAU}/a"))
        assert together(moved(base, role, f"{OFFICE}/a"))
    # Who brings a list may ask.
    assert together(moved(base, ONE, f"{BUREAU}/a")) == []
    assert together(moved(without(base, DEALER), ONE, f"{OFFICE}/a")) == []


def test_every_source_brings_the_columns_of_its_part() -> None:
    spec = job()
    lists = read(PARAMS)
    lists.check_columns(spec)
    one, two, three = spec.inputs
    for inputs, code in (
        ((one, two), "bad-inputs"),
        ((one, two, three, three), "bad-inputs"),
        ((one, two, replace(three, columns=one.columns)), "bad-inputs"),
        ((replace(one, columns={**one.columns, "more": "x"}), two, three), "bad-inputs"),
    ):
        with pytest.raises(InputError) as caught:
            lists.check_columns(replace(spec, inputs=inputs))
        assert caught.value.code == code
    lists.check_columns(
        replace(spec, inputs=(replace(one, columns={**one.columns, "latest": "x"}), two, three))
    )
    again = {**PARAMS, "filters": [YEAR, {**YEAR, "slot": "year2"}]}
    spec = job(again)
    one = spec.inputs[0]
    same = replace(one, columns={**one.columns, "year2": one.columns["year"]})
    with pytest.raises(InputError) as caught:
        read(again).check_columns(replace(spec, inputs=(same, *spec.inputs[1:])))
    assert caught.value.code == "filters-on-one-column"
    with pytest.raises(InputError) as caught:
        lists.check_columns(moved(job(), MATCHER, "requester/a"))
    assert caught.value.code == "reserved-name"
    with pytest.raises(InputError) as caught:
        lists.check_columns(moved(job(), "source-2", "department-1.example/b"))
    assert caught.value.code == "one-list-each"


# -- differencing --------------------------------------------------------------------------------------------


def asked(
    params: Mapping[str, Any] = PARAMS, role: Role = ONE, spec: JobSpec | None = None, **more: Any
) -> Query:
    lists = read(params) if spec is None else read_lists(
        Reader(params, "joined-x/1"),
        tuple(sorted(given.role for given in spec.inputs)),
        axes=True,
        amounts="measures",
        uses=USES,
        most=4,
        times=True,
    )  # fmt: skip
    query = lists.query(spec or job(params), role, {"job_type": "joined-x/1", "form": "a"}, **more)
    assert query is not None
    return query


def test_the_same_question_may_be_asked_again() -> None:
    for role in OWNERS:
        assert not differenced(asked(role=role), asked(role=role))
        assert asked(role=role) == Query.decode(asked(role=role).encode())
    turned = {
        **PARAMS,
        "filters": [{**STATE, "values": ["late", "open"]}, YEAR],
        "key_holders": ["source-1", "source-2"],
    }
    assert asked(turned) == asked()
    assert read(PARAMS).query(job(), MATCHER, {}) is None


def test_numbering_the_sources_otherwise_is_the_same_question() -> None:
    number = {"source-1": "source-3", "source-2": "source-1", "source-3": "source-2"}
    turned = {
        name: [{**each, "source": number[each["source"]]} for each in PARAMS[name]]
        for name in ("axes", "measures", "filters")
    } | {"areas": "demo-city"}
    spec = job()
    numbered = replace(
        spec,
        roles={Role(number.get(role, role)): node for role, node in spec.roles.items()},
        inputs=tuple(
            sorted(
                (replace(each, role=Role(number[each.role])) for each in spec.inputs),
                key=lambda given: given.role,
            )
        ),
    )
    for role in OWNERS:
        assert asked(turned, Role(number[role]), numbered) == asked(role=role)


CHANGED: list[Mapping[str, Any]] = [
    {"axes": [AGE, PLACE]},
    {"axes": [PLACE]},
    {"axes": [{**PLACE, "open": "no"}, AGE]},
    {"axes": [{**PLACE, "values": ["S1"]}, AGE]},
    {"axes": [PLACE, {**AGE, "bins": ["0", "19", "60"]}]},
    {"measures": []},
    {"measures": [{**PAID, "of": ["sum"], "times": "gone"}, GONE]},
    {"measures": [{**PAID, "of": ["sum", "mean"]}, GONE]},
    {"measures": [{**PAID, "of": ["sum", "mean"], "times": "gone", "high": "100"}, GONE]},
    {"measures": [{**PAID, "of": ["sum", "mean"], "times": "gone"}, {**GONE, "until": "2025-11"}]},
    {"filters": [YEAR]},
    {"filters": [STATE]},
    {"filters": [YEAR, {**STATE, "values": ["open"]}]},
    {"filters": [{**YEAR, "high": "2026"}, STATE]},
    {"areas": "national"},
]


@pytest.mark.parametrize("changed", CHANGED)
def test_two_exact_questions_that_select_other_persons_of_any_list_do_not_both_pass(
    changed: Mapping[str, Any],
) -> None:
    plain = {name: value for name, value in {**PARAMS, **changed}.items() if value}
    for role in OWNERS:
        assert differenced(asked(plain, role), asked(role=role)), role
        # With noise on one of the two, what the difference tells is paid for.
        assert not differenced(asked(plain, role, noisy=True), asked(role=role))


def test_another_partner_another_dataset_or_another_column_is_another_question() -> None:
    spec = job()
    one, two, three = spec.inputs
    fewer = {
        name: [each for each in PARAMS[name] if each["source"] != "source-3"] for name in ("axes", "filters")
    }
    pair = job(fewer, sources=2)
    others = [
        moved(spec, "source-3", "department-9.example/a"),
        replace(spec, inputs=(one, two, replace(three, dataset=DatasetName("others")))),
        replace(spec, inputs=(one, two, replace(three, columns={**three.columns, "gone": "left"}))),
        replace(spec, inputs=(one, two, replace(three, columns={**three.columns, "latest": "seen"}))),
    ]
    for other in others:
        assert differenced(asked(spec=other), asked())
    assert differenced(asked(fewer, spec=pair), asked({**fewer, "measures": [GONE]}))
    assert differenced(asked(), read(PARAMS).query(job(), ONE, {"form": "b"}) or asked())


def test_filters_that_exclude_each_other_may_leave_a_person_in_both() -> None:
    # Somebody with a row of each year on the first list is in both answers. With rows of each month on every
    # list, two exact moments of 599 and 600 persons would differ by the newcomer's amounts.
    later = {**YEAR, "low": "2026", "high": "2026"}
    shut = {**STATE, "values": ["shut"]}
    for filters in ([later, STATE], [YEAR, shut], [later, shut]):
        for role in OWNERS:
            assert differenced(asked({**PARAMS, "filters": filters}, role), asked(role=role))


def test_a_query_keeps_no_list_of_values() -> None:
    assert all(asked(role=role).filters == {} for role in OWNERS)


def test_a_query_says_whether_amounts_leave() -> None:
    assert asked(amounts=True).amounts
    assert not asked().amounts


@given(st.lists(st.sampled_from(["open", "late", "shut"]), min_size=1, unique=True), st.data())
@settings(max_examples=20)
def test_the_order_of_values_is_no_part_of_a_question(values: list[str], data: st.DataObject) -> None:
    other = data.draw(st.permutations(values))
    one, two = ({**PARAMS, "filters": [{**STATE, "values": each}]} for each in (values, other))
    assert asked(one, TWO) == asked(two, TWO)


def test_an_amount_of_a_list_is_of_one_source() -> None:
    lists = read(PARAMS)
    assert lists.amounts[0] == OwnAmount(TWO, Amount("paid", 0, 10_050, 2), ("sum", "mean"), "gone")
    assert lists.amounts[0].amount.most == 10_050
