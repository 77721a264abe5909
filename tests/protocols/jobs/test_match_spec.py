"""What a spec of match/1 must be, and what follows from it before any party starts."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from match_case import LOOSE, MARITAL, MATCHING, ZERO, match_spec, prepared, summary

from protocols.dp.cost import Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import COORDINATOR, REQUESTER, OutputClass, Setup
from protocols.jobs.match import MAX_KEYS, OWNERS, RECEIVER, SENDER, Params, other_groups, records
from protocols.statistics.differencing import differenced
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "match.json").read_text())
BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        MATCHING.check(spec)
    assert error.value.hint
    return error.value


@pytest.mark.parametrize(
    "spec",
    [
        match_spec(1),
        match_spec(MAX_KEYS, compare="held"),
        match_spec(values=MARITAL),
        match_spec(values=[["a"], ["b"]]),
        match_spec(values=[[str(n) for n in range(128)], [f"x{n}" for n in range(127)]]),
        match_spec(form="dh"),
        match_spec(values=MARITAL, form="auto"),
    ],
)
def test_a_right_spec_passes_and_survives_its_encoding(spec: JobSpec) -> None:
    MATCHING.check(spec)
    MATCHING.check(JobSpec.decode(spec.encode()))


@pytest.mark.parametrize("bad", VECTORS["bad_params"], ids=lambda bad: bad["why"])
def test_wrong_params_are_refused(bad: dict[str, Any]) -> None:
    spec = replace(match_spec(values=MARITAL), params=bad["params"])
    assert refused(spec).code == bad.get("code", "bad-params")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"receiver_keys": True}, "bad-params"),
        ({"receiver_keys": 10.0}, "bad-params"),
        ({"compare": None}, "bad-params"),
        ({"compare": ["differs"]}, "bad-params"),
        ({"form": None}, "bad-params"),
        ({"form": ["dh"]}, "bad-params"),
        ({"areas": "atlantis"}, "bad-params"),
        ({"values": {"a": ["1"], "b": ["2"]}}, "bad-params"),
        ({"values": [[str(n) for n in range(200)], [f"x{n}" for n in range(57)]]}, "bad-params"),
        ({"values": [["1"], [None]]}, "bad-params"),
        ({"values": [["1"], [["2"]]]}, "bad-params"),
    ],
)
def test_a_param_of_another_type_is_refused(change: dict[str, Any], code: str) -> None:
    spec = match_spec(values=MARITAL)
    assert refused(replace(spec, params={**spec.params, **change})).code == code


@pytest.mark.parametrize(
    "roles",
    [
        {"receiver": "a.example/a"},
        {"receiver": "a.example/a", "sender": "b.example/a", "matcher": "c.example/a"},
        {"receiver": "a.example/a", "source-1": "b.example/a"},
        {},
    ],
)
def test_other_roles_are_refused(roles: dict[str, str]) -> None:
    changed = {Role(role): NodeName(node) for role, node in roles.items()}
    assert refused(replace(match_spec(), roles=changed)).code == "bad-roles"


def test_each_side_brings_one_list_with_the_slots_it_needs_and_no_others() -> None:
    for spec, slots in ((match_spec(), {"key"}), (match_spec(values=MARITAL), {"key", "value"})):
        assert refused(replace(spec, inputs=spec.inputs[1:])).code == "bad-inputs"
        every = {"key": "id", "value": "v", "last_seen": "s", "street": "x"}
        for left_out in slots:
            columns = {slot: every[slot] for slot in slots - {left_out}}
            changed = (replace(spec.inputs[0], columns=columns), spec.inputs[1])
            assert refused(replace(spec, inputs=changed)).code == "bad-inputs"
        changed = (spec.inputs[0], replace(spec.inputs[1], columns=every))
        assert refused(replace(spec, inputs=changed)).code == "bad-inputs"
        fewest = tuple(replace(i, columns={slot: every[slot] for slot in slots}) for i in spec.inputs)
        MATCHING.check(replace(spec, inputs=fewest))


def test_what_is_not_compared_is_not_read() -> None:
    spec = match_spec()
    dated = tuple(replace(i, columns={"key": "id", "last_seen": "seen"}) for i in spec.inputs)
    assert refused(replace(spec, inputs=dated)).code == "bad-inputs"
    assert {need.slot for need in MATCHING.columns(spec, SENDER)} == {"key"}


def with_node(spec: JobSpec, role: Role, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, role: NodeName(node)})


def test_one_organisation_gives_one_list() -> None:
    spec = with_node(match_spec(), SENDER, "civil-affairs.example/b")
    assert refused(spec).code == "one-list-each"
    assert any(apart.these & apart.those for apart in MATCHING.separation(spec, BUREAU))


def test_anybody_may_ask_as_nothing_goes_to_whoever_asks() -> None:
    spec = match_spec()
    for requester in (BUREAU, Organisation("police.example"), Organisation("civil-affairs.example")):
        assert not any(apart.these & apart.those for apart in MATCHING.separation(spec, requester))


def test_nobody_may_bear_the_name_that_stands_for_the_requester() -> None:
    spec = with_node(match_spec(), RECEIVER, f"{REQUESTER}/a")
    assert refused(replace(spec, recipients=(REQUESTER,))).code == "reserved-name"


@pytest.mark.parametrize(
    "recipients", [(), ("police.example",), ("civil-affairs.example", "bureau.example"), ("bureau.example",)]
)
def test_only_the_receivers_organisation_receives_records(recipients: tuple[str, ...]) -> None:
    spec = replace(match_spec(), recipients=tuple(Organisation(name) for name in recipients))
    assert refused(spec).code == "bad-recipients"


def test_the_receiver_is_a_recipient_and_the_sender_a_source() -> None:
    spec = match_spec()
    assert {role: MATCHING.kinds(spec, role) for role in OWNERS} == {
        RECEIVER: {"recipient"},
        SENDER: {"source"},
    }
    (release,) = MATCHING.releases(spec)
    assert (release.name, release.output_class) == ("records", OutputClass.DIRECTED)
    assert (release.made_by, release.recipient) == (RECEIVER, "civil-affairs.example")


def test_the_values_of_all_groups_are_held_against_the_policy() -> None:
    spec = match_spec(values=MARITAL)
    for role in OWNERS:
        needs = {need.slot: need for need in MATCHING.columns(spec, role)}
        assert {slot: (need.use, need.required) for slot, need in needs.items()} == {
            "key": ("join", True),
            "value": ("carry", True),
            "last_seen": ("filter", False),
        }
        domain = needs["value"].domain
        assert domain is not None
        assert set(domain.values) == {value for group in MARITAL for value in group}
        # Numbers have bins and a range in policies, which values named one by one would pass by.
        assert needs["value"].types == ("enum", "code", "text")


# ---------------------------------------------------------------- guards


def guard(
    spec: JobSpec,
    receiver: tuple[int, int],
    sender: int = 100,
    rules: tuple[str, str] = ("rules", "rules"),
    **limits: Any,
) -> str | None:
    """Return the guard that fails for these distinct keys; the receiver's catalogue comes second."""
    inputs = {
        RECEIVER: InputSummary(1 << 40, *receiver, ZERO, "2026-01-01", ZERO, rules[0]),
        SENDER: InputSummary(1 << 40, sender, 100, ZERO, "2026-01-01", ZERO, rules[1]),
    }
    try:
        MATCHING.check_inputs(spec, inputs, replace(LOOSE, **limits))
    except ProtocolAborted as aborted:
        return aborted.code
    return None


HELD, DIFFERS = match_spec(500), match_spec(500, values=MARITAL)


@pytest.mark.parametrize(
    ("receiver", "code"),
    [
        ((100, 100), None),
        ((98, 100), None),
        ((102, 100), None),
        ((97, 100), "guard-list-size"),
        ((103, 100), "guard-list-size"),
        ((1, 100), "guard-list-size"),
        ((0, 0), None),
        ((1, 0), "guard-list-size"),
    ],
)
def test_the_receivers_list_is_about_as_long_as_its_catalogue_says(
    receiver: tuple[int, int], code: str | None
) -> None:
    assert guard(HELD, receiver) == guard(DIFFERS, receiver) == code


def test_the_receiver_lists_as_much_of_its_catalogue_as_a_rule_asks_for() -> None:
    most = Fraction(99, 100)
    assert guard(DIFFERS, (99, 100), min_coverage=most) is None
    assert guard(DIFFERS, (98, 100), min_coverage=most) == "guard-coverage"
    assert guard(DIFFERS, (0, 0), min_coverage=most) is None


def test_sizes_that_no_list_has_end_the_attempt_before_room_is_made_for_them() -> None:
    rows = 1 << 20
    sizes = {RECEIVER: (rows, rows), SENDER: (rows, rows)}

    def code(role: Role, stated: tuple[int, int]) -> str | None:
        inputs = {
            each: InputSummary(*size, rows, ZERO, "2026-01-01", ZERO, "rules")
            for each, size in (sizes | {role: stated}).items()
        }
        try:
            MATCHING.check_inputs(match_spec(rows), inputs, LOOSE)
        except ProtocolAborted as aborted:
            return aborted.code
        return None

    assert code(SENDER, (rows, rows)) is None
    assert code(SENDER, (1 << 40, MAX_KEYS)) is None
    for role in OWNERS:
        assert code(role, (rows, rows + 1)) == "guard-sizes"
        assert code(role, (1 << 53, MAX_KEYS + 1)) == "guard-sizes"


def test_the_receiver_lists_no_more_keys_than_was_approved_and_every_rule_allows() -> None:
    assert guard(HELD, (500, 500)) is None
    assert guard(HELD, (501, 501)) == "guard-rows"
    assert guard(HELD, (1, 1), max_rows=500) is None
    assert guard(HELD, (1, 1), max_rows=499) == "guard-rows"
    assert guard(HELD, (1, 1), max_rows=None) == "guard-missing"


def test_no_more_than_the_allowed_share_of_the_senders_list_can_be_found() -> None:
    assert guard(HELD, (30, 30), 100, max_fraction=Fraction(3, 10)) is None
    assert guard(HELD, (31, 31), 100, max_fraction=Fraction(3, 10)) == "guard-fraction"
    assert guard(HELD, (400, 400), 100, max_fraction=Fraction(1)) is None
    assert guard(HELD, (400, 400), 0, max_fraction=Fraction(1, 10)) is None


def test_limits_that_a_job_of_two_lists_cannot_meet_end_it() -> None:
    assert guard(HELD, (10, 10), min_sources=2, min_organisations=2) is None
    assert guard(HELD, (10, 10), min_sources=3) == "guard-sources"
    assert guard(HELD, (10, 10), min_organisations=3) == "guard-organisations"
    assert MATCHING.sources_asked(HELD) == 2


def test_an_empty_list_is_no_fault() -> None:
    assert guard(HELD, (0, 0), 0) is None
    assert guard(HELD, (100, 100), 0) is None


def test_a_summary_is_needed_of_both_lists_made_by_the_same_rules() -> None:
    assert guard(HELD, (10, 10), rules=("rules", "others")) == "guard-rules"
    one = {RECEIVER: summary(prepared(HELD, RECEIVER, [1]))}
    with pytest.raises(ProtocolAborted) as aborted:
        MATCHING.check_inputs(HELD, one, LOOSE)
    assert aborted.value.code == "guard-inputs"


def test_a_party_checks_the_guards_once_more_and_takes_its_own_list_alone() -> None:
    listed = prepared(HELD, RECEIVER, [1, 2, 3])
    inputs = {role: summary(listed) for role in OWNERS}
    strict = Setup(HELD, 1, bytes(32), replace(LOOSE, max_rows=499), inputs)
    with pytest.raises(ProtocolAborted) as aborted:
        MATCHING.party(RECEIVER, strict, listed, bytes)
    assert aborted.value.code == "guard-rows"
    with pytest.raises(TypeError):
        MATCHING.party(RECEIVER, replace(strict, constraints=LOOSE), None, bytes)
    with pytest.raises(TypeError):
        MATCHING.party(Role("matcher"), replace(strict, constraints=LOOSE), listed, bytes)


def test_jobs_about_other_values_state_the_same_sizes() -> None:
    """Whoever has a seat reads them before anything is charged: they may not count persons by value."""
    rows = [(n, "10" if n < 70 else "20" if n < 97 else "90", "") for n in range(100)]
    stated = set()
    for values in (MARITAL, [["90"], ["zz"]], [["20"], ["zz"]], [["x"], ["y"], ["z"]]):
        for role in OWNERS:
            said = summary(prepared(match_spec(values=values), role, rows))
            stated.add((said.rows, said.distinct_keys))
    held = summary(prepared(match_spec(), SENDER, [n for n, _, _ in rows]))
    assert stated == {(held.rows, held.distinct_keys)} == {(100, 100)}


# ---------------------------------------------------------------- cost, query, statements


def test_every_key_the_receiver_may_list_is_charged_found_or_not() -> None:
    for spec in (HELD, DIFFERS):
        assert MATCHING.cost(spec, SENDER, LOOSE) == Cost(rows=500, queries=1)
        assert MATCHING.cost(spec, RECEIVER, LOOSE) == Cost(queries=1)
        assert MATCHING.cost(spec, SENDER, Constraints()) == Cost(rows=500, queries=1)


def turned(spec: JobSpec) -> JobSpec:
    """Return the same job the other way round."""
    roles = {RECEIVER: spec.roles[SENDER], SENDER: spec.roles[RECEIVER]}
    organisation = {role: Organisation(node.partition("/")[0]) for role, node in roles.items()}
    other = {RECEIVER: SENDER, SENDER: RECEIVER}
    inputs = tuple(
        JobInput(other[i.role], organisation[other[i.role]], i.dataset, i.columns) for i in spec.inputs
    )
    return replace(spec, roles=roles, inputs=inputs, recipients=(organisation[RECEIVER],))


@pytest.mark.parametrize("spec", [HELD, DIFFERS])
def test_both_directions_and_other_caps_are_the_same_question(spec: JobSpec) -> None:
    asked = MATCHING.query(spec, SENDER)
    assert asked is not None
    MATCHING.check(turned(spec))
    same = [
        turned(spec),
        replace(spec, inputs=spec.inputs[::-1]),
        replace(spec, params={**spec.params, "receiver_keys": 7}),
        replace(spec, params={**spec.params, "form": "dh"}),
    ]
    if "values" in spec.params:
        shuffled = [list(reversed(group)) for group in reversed(MARITAL)]
        same.append(replace(spec, params={**spec.params, "values": shuffled}))
    for each in same:
        assert MATCHING.query(each, SENDER) == MATCHING.query(each, RECEIVER) == asked
        assert not differenced(asked, asked)


def test_another_comparison_of_the_same_lists_is_another_group() -> None:
    asked = MATCHING.query(DIFFERS, SENDER)
    assert asked is not None
    coarser = [["10"], [value for group in MARITAL[1:] for value in group]]
    ours, theirs = DIFFERS.inputs
    for other in (
        HELD,
        match_spec(values=coarser),
        replace(DIFFERS, params={**DIFFERS.params, "areas": "national"}),
        replace(DIFFERS, inputs=(ours, replace(theirs, columns={"key": "id", "value": "old"}))),
        replace(DIFFERS, inputs=(replace(ours, dataset=DatasetName("other")), theirs)),
    ):
        query = MATCHING.query(other, SENDER)
        assert query is not None
        assert differenced(asked, query)


def test_statements_say_what_the_variant_tells() -> None:
    def keys(spec: JobSpec) -> dict[str, list[str]]:
        return {"+".join(who): [s.key for s in said] for who, said in MATCHING.learns(spec).items()}

    rest = {
        "sender": ["list-sizes", "no-result"],
        REQUESTER: ["it-ran"],
        COORDINATOR: ["list-sizes", "traffic"],
    }
    assert keys(HELD) == {"receiver": ["list-sizes", "held", "crafted-list"], **rest}
    assert keys(DIFFERS) == {"receiver": ["list-sizes", "differs", "crafted-list"], **rest}
    said = {spec.job_id: MATCHING.learns(spec)[frozenset({RECEIVER})] for spec in (HELD, DIFFERS)}
    assert "500" in said[HELD.job_id][2].en
    assert "500" in said[HELD.job_id][2].zh
    assert "does not learn which" in said[DIFFERS.job_id][1].en
    two = MATCHING.learns(match_spec(values=[["a"], ["b"]]))[frozenset({RECEIVER})][1]
    assert "of every key that is found it learns the sender's group" in two.en
    assert "即得知发送方的取值属于哪一组" in two.zh


@pytest.mark.parametrize("params", [{}, {"values": MARITAL}])
def test_statements_say_what_a_receiver_gains_that_departs_from_the_protocol(params: dict[str, Any]) -> None:
    auto, exact = (
        MATCHING.learns(match_spec(form=form, **params))[frozenset({RECEIVER})][2] for form in ("auto", "dh")
    )
    assert "can obtain the sender's whole list" in auto.en
    assert "发送方的整份清单" in auto.zh
    assert ("with every person's group" in auto.en) == bool(params)
    for text in (auto.en, auto.zh):
        assert "2048" in text
        assert 'form = "dh"' in text
    for text in (exact.en, exact.zh):
        assert "whole list" not in text
        assert "整份清单" not in text
    assert "no more keys than it was admitted with" in exact.en
    assert "数量不超过其准入条数" in exact.zh


# ---------------------------------------------------------------- marks, records


@pytest.mark.parametrize("vector", VECTORS["values"], ids=lambda vector: vector["why"])
def test_the_sender_enters_every_group_but_its_own(vector: dict[str, Any]) -> None:
    params = Params.of(match_spec(values=vector["values"]))
    own = np.array([int(number) for number in vector["entries"]], dtype=np.uint8)
    entered = other_groups(own, params)
    assert entered.dtype == np.uint8
    assert entered.shape == (len(own), params.entries)
    assert [sorted(row) for row in entered.tolist()] == list(vector["entries"].values())
    # A receiver's mark is among the sender's exactly where the groups differ.
    for mark, row in zip(own[own > 0], entered[own > 0], strict=True):
        assert {int(other) for other in own if other in row} == {int(other) for other in own} - {0, int(mark)}
    rows = [(n, value, "2026-01") for n, (value, _) in enumerate(vector["rows"])]
    listed = prepared(match_spec(values=vector["values"]), SENDER, rows)
    kept = {prepared(match_spec(), SENDER, [n]).keys[0]: mark for n, (_, mark) in enumerate(vector["rows"])}
    assert dict(zip(listed.keys, listed.marks, strict=True)) == kept
    # Whose value is in no group is found by nobody, and finds nobody.
    assert 0 not in entered
    assert not set(entered[own == 0].ravel()) & set(own)
    assert len(set(entered[own == 0].ravel())) == params.entries


def test_without_values_the_sender_enters_each_key_once() -> None:
    entered = other_groups(np.zeros(4, dtype=np.uint8), Params.of(HELD))
    assert (entered.shape, entered.dtype, entered.any()) == ((4, 1), np.uint8, np.False_)


def test_records_are_the_receivers_own_keys_in_order_with_its_own_values() -> None:
    listed = prepared(DIFFERS, RECEIVER, [(3, "21", ""), (1, "10", ""), (2, "40", "")])
    found = np.array([False, True, True])
    content = records(listed, found, Params.of(DIFFERS), Organisation("police.example"))
    rows = dict(zip(listed.keys.tolist(), listed.marks.tolist(), strict=True))
    shown = [*content.table]
    assert [key for key, _, _ in shown] == listed.keys[found].tolist()
    group = {1: b"10", 2: b"20", 4: b"40"}
    assert [own for _, own, _ in shown] == [group[rows[key]] for key, _, _ in shown]
    assert {organisation for _, _, organisation in shown} == {"police.example"}
    # No column takes more for a row than its key, or a label of bytes.
    assert {name: column.dtype.kind for name, column in content.table.columns.items()} == {
        "key": "S",
        "own_group": "S",
        "organisation": "U",
    }
    assert content.table.columns["organisation"].strides == (0,)
    assert content.facts["rows"] == 2
    # No honest sender enters anything that a key without a group of its own would be found by.
    of_none = prepared(DIFFERS, RECEIVER, [(1, "90", "")])
    lied = records(of_none, np.array([True]), Params.of(DIFFERS), Organisation("police.example"))
    assert lied.table.rows == lied.facts["rows"] == 0
    held = prepared(HELD, RECEIVER, [1, 2])
    none = records(held, np.zeros(2, dtype=np.bool_), Params.of(HELD), Organisation("police.example"))
    assert (none.table.rows, sorted(none.table.columns)) == (0, ["key", "organisation"])
    assert none.facts["mark"]


def test_the_registry_knows_it() -> None:
    assert job_type("match/1") in JOB_TYPES
