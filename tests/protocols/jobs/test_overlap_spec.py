"""What a job of type `overlap/1` may say, what it costs, and the numbers that its document pins."""

import hashlib
import json
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from crosscheck_case import person
from overlap_case import OVERLAP, PERSON, S1, S2, S3, listed, overlap_case, pair_spec, venn_spec

from protocols.dp import exact
from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import NodeName, Organisation, Role
from protocols.jobs.job_type import REQUESTER, UNIT, Forecaster
from protocols.jobs.overlap import MATCHER
from protocols.overlap.dummies import dummies
from protocols.overlap.parties import POOL, Pair
from protocols.party import Incoming
from protocols.wire import Constraints, JobSpec

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors/overlap.json").read_text("utf-8"))
LIMITS = Constraints(min_group_size=10)


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["pools"], ids=lambda vector: f"{vector[0]}, {vector[1]}")
def test_pools_and_intervals_are_those_of_the_vectors(vector):
    epsilon, delta, pool, half_width = vector
    found = dummies(Fraction(epsilon), Fraction(delta))
    assert (found.pool, found.half_width()) == (pool, half_width)


def test_points_of_keys_and_pool_are_those_of_the_vectors():
    known = VECTORS["points"]
    noise = dummies(Fraction(1), Fraction(1, 10**9))
    pair = Pair(S1, S2, 1, 1, noise, bytes.fromhex(known["ctx"]))
    keys = np.array([key.encode() for key in known["keys"]])
    assert [point.tobytes().hex() for point in pair.hashed(keys)] == [*known["keys"].values()]
    assert [point.tobytes().hex() for point in pair.pool()[:2]] == known["pool"]


@pytest.mark.parametrize("vector", VECTORS["runs"], ids=lambda vector: vector["name"])
def test_a_seeded_run_sends_and_releases_what_the_vectors_say(vector, monkeypatch):
    monkeypatch.setattr(exact, "SMALL", 0)  # noise comes from `rand` alone
    make = pair_spec if vector["name"].startswith("pair") else venn_spec
    base = make() if make is pair_spec else venn_spec(len(vector["lists"]))
    case = overlap_case(vector["lists"], spec=replace(base, params=vector["params"]), seed="vector")
    columns = case.released().table.columns
    bodies: dict[str, Any] = defaultdict(hashlib.sha256)
    for m in case.sent:
        bodies[f"{m.sender}>{m.to}/{m.round:#06x}"].update(m.body)
    assert {name: digest.hexdigest() for name, digest in bodies.items()} == vector["bodies"]
    assert np.transpose([columns[name] for name in ("value", "low", "high")]).tolist() == vector["released"]


@pytest.mark.parametrize("vector", VECTORS["bad_params"], ids=lambda vector: str(vector["params"]))
def test_bad_params_are_refused_with_their_code(vector):
    base = pair_spec() if vector["of"] == "pair" else venn_spec()
    params = {k: v for k, v in {**base.params, **vector["params"]}.items() if v is not None}
    with pytest.raises(InputError) as error:
        OVERLAP.check(replace(base, params=params))
    assert error.value.code == vector["code"]
    assert error.value.hint


@pytest.mark.parametrize("vector", VECTORS["bad_pools"], ids=lambda vector: f"{vector['at']}")
def test_a_bad_pool_is_refused_with_its_code(vector):
    case = overlap_case([range(3), range(3)], seed="vector")
    message = next(iter(case.parties[S1].start().outgoing))
    body = bytearray(message.body)
    body[vector["at"]] ^= vector["xor"]
    with pytest.raises(ProtocolAborted) as error:
        case.parties[S2].receive(Incoming(S1, POOL, bytes(body)))
    assert error.value.code == vector["code"]


# -- roles, lists and people ---------------------------------------------------------------------------------


def without(spec: JobSpec, *roles: str) -> JobSpec:
    return replace(spec, roles={role: node for role, node in spec.roles.items() if role not in roles})


@pytest.mark.parametrize(
    "spec",
    [
        without(pair_spec(), "source-1"),
        without(venn_spec(3), MATCHER),
        without(venn_spec(3), "source-2"),
        without(venn_spec(2), "source-2"),
        replace(pair_spec(), roles={**pair_spec().roles, Role("register"): NodeName("x.example/a")}),
        venn_spec(7),
    ],
)
def test_other_roles_than_two_or_a_matcher_and_up_to_six_are_refused(spec):
    with pytest.raises(InputError) as error:
        OVERLAP.check(spec)
    assert error.value.code == "bad-roles"


def test_a_job_has_no_recipients_and_each_department_one_list():
    spec = pair_spec()
    with pytest.raises(InputError, match="recipient"):
        OVERLAP.check(replace(spec, recipients=(Organisation("department-1.example"),)))
    twice = {**spec.roles, S2: NodeName("department-1.example/b")}
    with pytest.raises(InputError) as error:
        OVERLAP.check(replace(spec, roles=twice))
    assert error.value.code in ("one-source-each", "bad-inputs")


def test_a_person_counts_once_however_many_rows_and_spellings():
    spec = pair_spec()
    builder = OVERLAP.builder(spec, S1, PERSON)
    keys = pa.array([person(1), person(1).lower(), f" {person(1)}", person(2), None, "x"], pa.string())
    builder.add({"key": keys, UNIT: keys})
    found = builder.finish()
    assert (found.rows, found.distinct_keys) == (6, 2)


def test_a_list_by_another_column_than_the_unit_is_refused():
    builder = OVERLAP.builder(pair_spec(), S1, PERSON)
    keys = pa.array([person(1), person(2)], pa.string())
    household = pa.array([person(1), person(1)], pa.string())
    with pytest.raises(InputError) as error:
        builder.add({"key": keys, UNIT: household})
    assert error.value.code == "key-not-unit"
    for batch in ({"key": keys}, {"key": keys, UNIT: keys, "street": keys}):
        with pytest.raises(InputError) as error:
            builder.add(batch)
        assert error.value.code == "unknown-slot"


def test_identifiers_are_judged_as_of_the_day_of_the_data():
    from datetime import date

    early = replace(PERSON, as_of=date(1949, 1, 1))  # before anybody in these tests was born
    assert listed(pair_spec(), S1, range(3), early).distinct_keys == 0
    assert listed(pair_spec(), S1, range(3)).distinct_keys == 3


def test_key_holders_are_the_first_two_unless_others_are_named():
    spec = venn_spec(4, key_holders=["source-4", "source-2"])
    holding = {role for role in spec.roles if "key-holder" in OVERLAP.kinds(spec, role)}
    assert holding == {"source-4", "source-2"}
    assert {r for r in venn_spec(4).roles if "key-holder" in OVERLAP.kinds(venn_spec(4), r)} == {S1, S2}
    assert OVERLAP.kinds(pair_spec(), S1) == OVERLAP.kinds(pair_spec(), S2) == {"source"}


def test_the_sender_is_not_the_requesters_and_the_receiver_may_be():
    spec = pair_spec()

    def apart(requester: str) -> bool:
        return not any(p.these & p.those for p in OVERLAP.separation(spec, Organisation(requester)))

    assert apart("department-1.example")
    assert not apart("department-2.example")
    assert apart("bureau.example")


# -- cost and forecast ---------------------------------------------------------------------------------------


def test_both_lists_pay_epsilon_and_delta_and_the_matcher_nothing():
    spec = pair_spec(epsilon="0.5", delta="1/1000000000")
    expected = Cost.pure_dp(Fraction(1, 2), Fraction(1, 10**9)) + Cost(queries=1)
    assert {OVERLAP.cost(spec, role, LIMITS) for role in spec.roles} == {expected}
    assert expected.delta == 10**6
    spec = venn_spec(3, rho="0.1")
    assert OVERLAP.cost(spec, MATCHER, LIMITS) == NOTHING
    assert OVERLAP.cost(spec, S3, LIMITS) == Cost.zcdp(Fraction(1, 10)) + Cost(queries=1)
    assert OVERLAP.cost(venn_spec(2), S1, LIMITS) == Cost.pure_dp(Fraction(1)) + Cost(queries=1)


def test_a_forecast_says_what_each_amount_buys():
    assert isinstance(OVERLAP, Forecaster)
    found = OVERLAP.forecast(pair_spec(), [Fraction(1), Fraction(1, 10)])
    assert [each.within for each in found] == [3, 30]
    assert found[1].cost == OVERLAP.cost(pair_spec(epsilon="0.1"), S1, LIMITS)
    found = OVERLAP.forecast(venn_spec(3, rho="0.5"), [Fraction(1, 2)])
    assert found[0].within == 3  # 1.96 sigma is 2.8, sigma² = 2/(2·0.5)
    with pytest.raises(InputError):
        OVERLAP.forecast(pair_spec(), [Fraction(0)])


def test_a_question_is_the_same_whoever_counts_and_another_of_other_lists():
    spec = pair_spec()
    turned = replace(
        spec,
        roles={S1: spec.roles[S2], S2: spec.roles[S1]},
        inputs=tuple(
            replace(i, role=S2 if i.role == S1 else S1, organisation=i.organisation) for i in spec.inputs
        ),
    )
    assert OVERLAP.query(spec, S1) == OVERLAP.query(turned, S2)
    assert OVERLAP.query(spec, S1) != OVERLAP.query(venn_spec(2), S1)
    query = OVERLAP.query(spec, S1)
    assert query is not None
    assert query.noisy


# -- guards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Constraints(min_organisations=3), "guard-organisations"),
        (Constraints(min_sources=2), "guard-sources"),
    ],
)
def test_rules_that_ask_for_more_departments_are_kept(limits, code):
    with pytest.raises(ProtocolAborted) as error:
        overlap_case([[1], [2]], constraints=limits)
    assert error.value.code == code


@pytest.mark.parametrize(("rows", "distinct"), [(0, 1), ((1 << 27) + 1, (1 << 27) + 1), (1 << 53, 1 << 52)])
def test_a_size_that_no_list_has_is_refused_before_room_is_made_for_it(rows, distinct):
    case = overlap_case([[1], [2]])
    inputs = dict(case.setup.inputs)
    inputs[S2] = replace(inputs[S2], rows=rows, distinct_keys=distinct)
    for role in (S1, S2):
        with pytest.raises(ProtocolAborted) as error:
            OVERLAP.party(role, replace(case.setup, inputs=inputs), None, bytes)
        assert error.value.code == "guard-sizes"


def test_lists_by_other_rules_or_missing_ones_are_refused():
    case = overlap_case([[1], [2]])
    inputs = dict(case.setup.inputs)
    inputs[S2] = replace(inputs[S2], rule_version="other")
    for wrong in (inputs, {S1: inputs[S1]}):
        with pytest.raises(ProtocolAborted, match=r"rules|summaries"):
            OVERLAP.check_inputs(case.spec, wrong, LIMITS)


def test_limits_on_group_sizes_do_not_apply_to_noise():
    limits = Constraints(
        min_group_size=500, max_rows=1, max_fraction=Fraction(0), min_coverage=Fraction(1), min_sources=1
    )
    columns = overlap_case([range(9), range(9)], constraints=limits).released().table.columns
    assert not columns["withheld"].any()


# -- what is released ----------------------------------------------------------------------------------------


def test_the_table_says_what_noise_it_has_and_whom_each_list_is_of():
    content = overlap_case([range(9), range(4, 30)], epsilon="0.5").released()
    facts = content.facts
    assert (facts["statistic"], facts["mechanism"]) == ("overlap", "truncated discrete Laplace")
    assert (facts["epsilon"], facts["pool"], facts["source-2"]) == ("0.5", 78, "department-2.example")
    assert "±6 with 95 %" in str(facts["within"])
    assert "±6" in str(facts["within_zh"])
    content = overlap_case([range(9), range(4, 30)], spec=venn_spec(2, rho="0.5")).released()
    assert content.facts["mechanism"] == "discrete Gaussian"
    assert content.facts["rho"] == "0.5"
    rows = list(zip(content.table.columns["source-1"], content.table.columns["source-2"], strict=True))
    assert rows == [("yes", "no"), ("no", "yes"), ("yes", "yes")]


def test_numbers_stay_between_zero_and_the_shortest_list_with_intervals_around_them():
    for seed in range(2):
        columns = overlap_case([range(3), range(2, 30)], epsilon="0.5", seed=seed).released().table.columns
        (value,), (low,), (high,) = columns["value"], columns["low"], columns["high"]
        assert 0 <= low <= value <= high <= 3


@pytest.mark.parametrize(("sources", "figures"), [(2, 3), (6, 63)])
def test_statements_name_the_loss_in_both_languages(sources, figures):
    spec = venn_spec(sources, rho="0.2")
    (said,) = OVERLAP.learns(spec)[frozenset({Role(REQUESTER)})]
    assert "ρ = 0.2" in said.en
    assert "ρ = 0.2" in said.zh
    assert overlap_case([[1]] * sources, spec=spec).released().table.rows == figures
    (said,) = OVERLAP.learns(pair_spec())[frozenset({Role(REQUESTER)})]
    assert "ε = 1, δ = 0.000000001" in said.en
