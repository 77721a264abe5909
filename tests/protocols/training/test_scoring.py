"""Codes, parts, steps and the specs of score-joined/1."""

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from crosscheck_case import CTX, person, seeded
from score_joined_case import (
    AGE,
    BAND,
    LOOSE,
    RISK,
    S1,
    S2,
    S3,
    SCORES,
    SEATS,
    TRAINED,
    VISITS,
    code,
    feature,
    listed,
    score_spec,
    shelf_with,
    split_spec,
)

from protocols.dp.cost import Cost
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.ids import JobId, NodeName, Organisation, Role
from protocols.jobs import job_type
from protocols.jobs.job_type import REQUESTER, Keeps, OutputClass, Setup, TellsLess, Trains
from protocols.jobs.score_joined import RECIPIENT, Params
from protocols.joined.lists import JoinedList
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.statistics.differencing import differenced
from protocols.training.joined.scoring import (
    Feature,
    Part,
    Scoring,
    Steps,
    model_digest,
    part_name,
    read_part,
    write_part,
)
from protocols.wire import Constraints, InputSummary, JobSpec

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "score-joined.json").read_text())
BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        SCORES.check(spec)
    assert error.value.hint
    return error.value


def edges_of(texts: list[str]) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, texts))


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", VECTORS["bad_params"], ids=lambda bad: bad["why"])
def test_wrong_params_are_refused(bad: dict[str, Any]) -> None:
    spec = score_spec()
    columns = {"key": "id", "age": "age", "visits": "v", "band": "b", "street": "street", "last_seen": "seen"}
    for changed in (spec, replace(spec, inputs=tuple(replace(i, columns=columns) for i in spec.inputs))):
        assert refused(replace(changed, params={**spec.params, **bad["change"]})).code == bad["code"]


@pytest.mark.parametrize("vector", VECTORS["steps"], ids=lambda each: f"{each['bits']} {each['chance']}")
def test_the_least_score_that_reaches_a_chance_is_that_of_the_vectors(vector: dict[str, Any]) -> None:
    steps = Steps(vector["bits"], Fraction(1, 2), Fraction(1, 10))
    assert steps.whole(Fraction(vector["chance"])) == vector["whole"]


@pytest.mark.parametrize("vector", VECTORS["scorings"], ids=lambda each: f"{each['scale']} {each['step']}")
def test_steps_thresholds_and_widths_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    chance = vector["scale"] == "chance"
    steps = Steps(vector["bits"], Fraction(vector["at_least"]), Fraction(vector["step"]), chance)
    spans = tuple((place, (low, high)) for place, (low, high) in enumerate(vector["spans"]))
    scoring = Scoring(("on",) * len(spans), spans, vector["constant"], steps)
    assert [str(each) for each in scoring.told] == vector["told"]
    assert list(scoring.thresholds) == vector["thresholds"]
    assert scoring.width == vector["width"]


@pytest.mark.parametrize("vector", VECTORS["codings"], ids=str)
def test_what_codes_mean_has_the_digest_of_the_vectors(vector: dict[str, Any]) -> None:
    for slot in ("age", "other"):
        coded = Feature(1, slot, tuple(vector["codes"]), edges_of(vector["edges"]), vector["missing"])
        assert coded.coding.hex() == vector["coding"]


@pytest.mark.parametrize("vector", VECTORS["models"], ids=lambda each: each["model"][:8])
def test_what_a_part_is_of_has_the_digest_of_the_vectors(vector: dict[str, Any]) -> None:
    columns = [
        (
            Organisation(each["organisation"]),
            Feature(0, each["slot"], tuple(each["codes"]), edges_of(each["edges"]), each["missing"]),
        )
        for each in vector["columns"]
    ]
    assert model_digest(JobId(vector["job"]), columns).hex() == vector["model"]


# -- codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "column"),
    [
        (AGE, pa.array([0, 19, 20, 40, 41, 60, 999, None])),
        (AGE, pa.array([-0.5, 19.999, 20.0, 40.5, 40.499, 60.0, 1e9, None])),
        (AGE, pa.array(["0", "40.5", "40.49999999999999", None, " 60 "])),
        (AGE, pa.array([Decimal("40.49"), Decimal("40.50"), None])),
        ({**AGE, "missing": "yes"}, pa.array([20, None, 60])),
        (BAND, pa.array(["low", "high", None, "other", " middle"])),
        ({**BAND, "missing": "no"}, pa.array(["low", "high", None, "other"])),
        (feature(1, "x", codes=["1", "2"]), pa.array([1, 2, 3, None])),
        (feature(1, "x", codes=["1", "2"]), pa.chunked_array([["1"], ["2", None]])),
    ],
    ids=lambda each: str(getattr(each, "type", "")),
)
def test_a_row_has_the_code_that_plain_comparison_gives(given: dict[str, Any], column: Any) -> None:
    own = Feature(0, "x", tuple(given.get("codes", ())), edges_of(given.get("edges", [])),
                  given.get("missing", "yes" if "codes" in given else "no") == "yes")  # fmt: skip
    rows = [
        {given["slot"]: (value.strip() or None) if isinstance(value, str) else value}
        for value in column.to_pylist()
    ]
    if "codes" in given:
        rows = [{given["slot"]: None if r[given["slot"]] is None else str(r[given["slot"]])} for r in rows]
    assert own.placed(column).to_pylist() == [code(given, row) for row in rows]
    assert own.width == len(given.get("codes", ())) + (len(given.get("edges", ())) + 1 if "edges" in given
                                                       else 0) + own.missing  # fmt: skip


def test_a_row_without_a_code_does_not_count_and_one_that_is_no_number_refuses_the_list() -> None:
    spec = score_spec()
    rows = [{"who": n, "age": age, "visits": 1, "street": "s"} for n, age in enumerate((30, None, 70))]
    found = listed(spec, S1, rows)
    assert found.counted.sum() == 2
    assert dict(found.quality())["no-value"] == 1
    builder = SCORES.builder(spec, S1)
    builder.add(
        {
            "key": pa.array([person(0)]),
            "age": pa.array(["much"]),
            "visits": pa.array([1]),
            "street": pa.array(["s"]),
            "last_seen": pa.array(["2025-01"]),
        }
    )
    with pytest.raises(InputError) as error:
        builder.finish()
    assert error.value.code == "bad-measure"
    for column, expected in ((pa.array([[1]]), "not-a-number"), (pa.array([True]), "not-a-number")):
        with pytest.raises(InputError) as error:
            Feature(0, "age", edges=(Fraction(1),)).placed(column)
        assert error.value.code == expected
    with pytest.raises(InputError) as error:
        Feature(0, "age", codes=("1",)).placed(pa.array([0.5]))
    assert error.value.code == "not-text"


def test_a_list_without_a_slot_is_refused_as_any_list_is() -> None:
    with pytest.raises(InputError) as error:
        SCORES.builder(score_spec(), S1).add({"key": pa.array([person(1)]), "age": pa.array([1])})
    assert error.value.code == "unknown-slot"


def test_what_is_committed_to_depends_on_codes_alone() -> None:
    spec = score_spec()
    rows = [{"who": 1, "age": 30, "visits": 1, "street": "s"}]
    same, other = ([{**rows[0], "age": age}] for age in (35, 50))
    one, two, three = (listed(spec, S1, each).commitment(bytes(32)) for each in (rows, same, other))
    assert one == two != three


def test_a_part_is_the_sum_of_the_weights_of_a_rows_codes() -> None:
    spec = score_spec()
    rows = [{"who": n, "age": age, "visits": v, "street": "s"} for n, (age, v) in
            enumerate([(10, 0), (25, 3), (50, 2), (90, 9)])]  # fmt: skip
    found = listed(spec, S1, rows)
    part = Part((tuple(AGE["weights"]), tuple(VISITS["weights"])), 7)
    sums = {key: total for key, (total,) in zip(found.keys.tolist(), part.on(found).amounts, strict=True)}
    expected = [-900 - 400 + 7, -200 + 500 + 7, 300 - 400 + 7, 1700 + 500 + 7]
    assert sums == {f"RIC:{person(n)}".encode(): total for n, total in enumerate(expected)}
    assert part.span == (-900 - 400 + 7, 1700 + 500 + 7)


# -- parts that are kept -------------------------------------------------------------------------------------

FEATURES = (
    Feature(0, "age", edges=(Fraction(20), Fraction(81, 2))),
    Feature(0, "band", codes=("a", "b"), missing=True),
)
MODEL = bytes(range(32))
OWN = Part(((-5, 1 << 39, 7), (0, -(1 << 39), 3)), -11)


def test_a_part_comes_back_as_it_was_kept() -> None:
    assert read_part(write_part(OWN, FEATURES, 11, MODEL), FEATURES, 11, MODEL) == OWN
    assert part_name(TRAINED) == "7" * 64 + "-part"


@pytest.mark.parametrize(
    ("features", "scale"),
    [
        (FEATURES, 12),
        (FEATURES[:1], 11),
        ((*FEATURES, Feature(0, "more", codes=("x",))), 11),
        ((replace(FEATURES[0], slot="years"), FEATURES[1]), 11),
        ((replace(FEATURES[0], edges=(Fraction(20), Fraction(41))), FEATURES[1]), 11),
        ((FEATURES[0], replace(FEATURES[1], codes=("b", "a"))), 11),
        ((FEATURES[0], replace(FEATURES[1], codes=("a", "b", "c"), missing=False)), 11),
    ],
)
def test_a_part_of_other_columns_or_codes_is_refused(features: tuple[Feature, ...], scale: int) -> None:
    with pytest.raises(InputError) as error:
        read_part(write_part(OWN, FEATURES, 11, MODEL), features, scale, MODEL)
    assert error.value.code == "wrong-part"


def test_a_part_of_another_model_is_refused() -> None:
    with pytest.raises(InputError) as error:
        read_part(write_part(OWN, FEATURES, 11, MODEL), FEATURES, 11, MODEL[::-1])
    assert error.value.code == "wrong-part"


def test_a_model_is_who_has_which_columns_and_what_their_codes_mean() -> None:
    one, other = Organisation("a.example"), Organisation("b.example")
    whole = [(one, FEATURES[0]), (other, FEATURES[1])]
    digest = model_digest(TRAINED, whole)
    assert model_digest(TRAINED, [(o, replace(each, owner=4)) for o, each in whole[::-1]]) == digest
    for others in (
        whole[:1],
        [(one, FEATURES[0]), (one, FEATURES[1])],
        [(one, replace(FEATURES[0], slot="years")), whole[1]],
        [(one, replace(FEATURES[0], edges=(Fraction(20), Fraction(41)))), whole[1]],
    ):
        assert model_digest(TRAINED, others) != digest
    assert model_digest(JobId("sha256:" + "8" * 64), whole) != digest


def test_a_part_that_is_no_file_of_arrays_is_refused() -> None:
    whole = write_part(OWN, FEATURES, 11, MODEL)
    for broken in (b"", b"x" * 40, whole[:-9], whole[:20]):
        with pytest.raises(DecodeError) as error:
            read_part(broken, FEATURES, 11, MODEL)
        assert error.value.code == "bad-model"


def prepared(spec: JobSpec) -> JoinedList:
    return listed(spec, S1, [{"who": n, "age": n, "visits": n % 7, "street": "s"} for n in range(9)])


@pytest.mark.parametrize(
    ("columns", "constant", "code"),
    [(None, 0, "no-part"), ([AGE, BAND, VISITS], 6000, "part-too-large"),
     ([AGE, BAND, VISITS], -6900, "part-too-large"), ([AGE, BAND, VISITS], 5000, None)],
)  # fmt: skip
def test_a_node_that_kept_no_part_or_one_beyond_reach_takes_no_part(columns, constant, code) -> None:
    spec = split_spec()
    own = prepared(spec)
    setup = joined_setup(spec, own)
    shelf = shelf_with(spec, S1, columns or [AGE, BAND, VISITS], constant)
    if columns is None:
        shelf.drop(part_name(TRAINED))
    if code is None:
        SCORES.party_with(S1, setup, own, seeded("part"), shelf=shelf)
        return
    with pytest.raises(InputError) as error:
        SCORES.party_with(S1, setup, own, seeded("part"), shelf=shelf)
    assert error.value.code == code
    assert "6000" not in error.value.message


def test_parts_that_are_kept_are_asked_for_with_their_shelf() -> None:
    spec = split_spec()
    own = prepared(spec)
    with pytest.raises(TypeError):
        SCORES.party(S1, joined_setup(spec, own), own, seeded("part"))
    assert isinstance(SCORES, Keeps)
    assert SCORES.shelf == "train-joined/1"


def joined_setup(spec: JobSpec, own: JoinedList) -> Setup:
    sizes = {"rows": 9, "distinct_keys": 9, "catalogue_keys": 9, "rule_version": own.rule_version}
    found = {role: replace(each, **sizes) for role, each in summaries(spec).items()}
    return Setup(spec, 1, CTX, LOOSE, found)


# -- steps ---------------------------------------------------------------------------------------------------


def test_widths_hold_every_sum_less_every_threshold() -> None:
    scoring = Params.of(score_spec()).scoring
    low = sum(min(each["weights"]) for each in RISK["columns"])
    high = sum(max(each["weights"]) for each in RISK["columns"])
    for total in (low, high):
        for threshold in scoring.thresholds:
            assert -(1 << (scoring.width - 1)) <= total - threshold < 1 << (scoring.width - 1)


def test_no_step_is_told_that_nobody_can_reach() -> None:
    for at_least, expected in (("0.5", "0.9"), ("0.8", "0.9")):
        scoring = Params.of(score_spec(at_least=at_least, step="0.1")).scoring
        assert scoring.told[-1] == Fraction(expected)
    cold = [{**each, "weights": [w - 300 for w in each["weights"]]} for each in RISK["columns"]]
    assert Params.of(score_spec(columns=cold)).scoring.told[-1] == Fraction("0.8")


def test_scores_of_62_bits_are_compared_and_wider_ones_refused() -> None:
    steps = Steps(4, Fraction(1, 2), Fraction(1, 4))
    for low, high, fits in ((-(1 << 60), 1 << 60, True), (-(1 << 61), 100, False), (0, 1 << 61, False)):
        spans = ((0, (low, 0)), (1, (0, high)))
        if fits:
            assert Scoring(("on", "on"), spans, 0, steps).width == 62
            continue
        with pytest.raises(InputError) as error:
            Scoring(("on", "on"), spans, 0, steps)
        assert error.value.code == "overflow"
    # Within 61 bits less the first threshold, and beyond less the last one.
    far = Steps(4, Fraction(0), Fraction(1 << 55), chance=False)
    with pytest.raises(InputError) as error:
        Scoring(("on", "on"), ((0, (-(1 << 61) + 1, 0)), (1, (0, 1 << 60))), 0, far)
    assert error.value.code == "overflow"


def test_the_most_that_params_can_ask_for_is_compared() -> None:
    columns = [feature(1 + n % 2, f"c{n}", [-(1 << 40), 1 << 40], edges=["1"]) for n in range(64)]
    model = {"bits": 24, "constant": -(1 << 40)}
    spec = score_spec(2, join=None, recipient=S1, columns=columns, model=model)
    SCORES.check(spec)
    assert Params.of(spec).scoring.width == 48
    assert refused(score_spec(2, join=None, recipient=S1, columns=[*columns, AGE])).code == "bad-params"


# -- specs ---------------------------------------------------------------------------------------------------


def with_node(spec: JobSpec, role: Role, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, role: NodeName(node)})


def separate(spec: JobSpec, requester: Organisation = BUREAU) -> bool:
    return not any(apart.these & apart.those for apart in SCORES.separation(spec, requester))


def test_the_registry_knows_it_and_it_survives_its_encoding() -> None:
    for spec in (score_spec(), score_spec(recipient="recipient"), split_spec(recipient=S1)):
        job_type("score-joined/1").check(JobSpec.decode(spec.encode()))


def test_a_source_brings_what_is_scored_and_only_the_source_of_records_streets() -> None:
    spec = score_spec()
    every = {"key", "age", "visits", "street", "last_seen", "latest"}
    assert {need.slot for need in SCORES.columns(spec, S1)} == every
    assert {need.slot for need in SCORES.columns(spec, S3)} == {"key", "latest"}
    assert all(SCORES.columns(spec, role) == () for role in SEATS)
    needs = {need.slot: need for need in (*SCORES.columns(spec, S1), *SCORES.columns(spec, S2))}
    assert needs["age"].use == needs["band"].use == "filter"
    # A policy's groups begin where codes do; of texts with a code of their own all others count, too.
    assert needs["age"].domain.bins == (20, Fraction(81, 2), 60)
    assert (needs["band"].domain.values, needs["band"].domain.named) == ((), ("low", "middle", "high"))
    certain = {**BAND, "missing": "no", "weights": [1, 2, 3]}
    (need,) = [n for n in SCORES.columns(score_spec(columns=[AGE, certain]), S2) if n.slot == "band"]
    assert need.domain.values == ("low", "middle", "high")
    assert isinstance(SCORES, TellsLess)
    assert "filter" not in SCORES.told


@pytest.mark.parametrize("recipients", [(), ("department-1.example",), ("department-3.example", "x.example")])
def test_only_the_recipients_organisation_receives_records(recipients: tuple[str, ...]) -> None:
    spec = replace(score_spec(), recipients=tuple(map(Organisation, recipients)))
    assert refused(spec).code == "bad-recipients"


def test_a_recipient_with_a_list_is_named_by_its_list() -> None:
    spec = with_node(score_spec(recipient="recipient"), RECIPIENT, "department-3.example/b")
    assert refused(replace(spec, recipients=(Organisation("department-3.example"),))).code == "bad-roles"


@pytest.mark.parametrize("computing", [MATCHER, HELPER, DEALER])
def test_whoever_computes_neither_asks_nor_receives_nor_brings_a_list(computing: Role) -> None:
    for spec in (score_spec(), score_spec(recipient="recipient")):
        assert separate(spec)
        assert not separate(spec, Organisation(str(spec.roles[computing]).partition("/")[0]))
        for other in {*spec.roles} - {computing}:
            assert not separate(with_node(spec, computing, f"{spec.roles[other]}x"))
        gone = {role: node for role, node in spec.roles.items() if role != computing}
        assert refused(replace(spec, roles=gone)).code == "bad-roles"


def test_seats_releases_and_costs_are_those_of_directed_records() -> None:
    spec = score_spec(key_holders=[S3, S1])
    assert [SCORES.kinds(spec, role) for role in (S1, S2, S3)] == [
        {"source", "key-holder"}, {"source"}, {"source", "key-holder", "recipient"}
    ]  # fmt: skip
    assert SCORES.kinds(score_spec(recipient="recipient"), RECIPIENT) == {"recipient"}
    (release,) = SCORES.releases(spec)
    assert release.output_class is SCORES.output_class is OutputClass.DIRECTED
    assert (release.made_by, release.recipient) == (S3, "department-3.example")
    limits = replace(LOOSE, max_rows=70)
    costs = [SCORES.cost(spec, role, limits) for role in (S1, S2, S3, MATCHER)]
    assert costs == [Cost(rows=70, queries=1)] * 2 + [Cost(queries=1), Cost()]
    assert SCORES.sources_asked(spec) == 2
    assert SCORES.sources_asked(score_spec(join=None)) == 3


def test_another_weight_code_step_or_model_is_another_question_and_another_order_is_not() -> None:
    spec = score_spec()
    asked = SCORES.query(spec, S1)
    assert asked is not None
    heavier = {**AGE, "weights": [-900, -200, 300, 1701]}
    others: list[JobSpec] = [
        score_spec(columns=[heavier, BAND, VISITS]),
        score_spec(columns=[{**AGE, "edges": ["20", "41", "60"]}, BAND, VISITS]),
        score_spec(columns=[AGE, {**BAND, "codes": ["middle", "low", "high"]}, VISITS]),
        score_spec(model={"bits": 11, "constant": -300}),
        score_spec(model={"bits": 10, "constant": -299}),
        score_spec(at_least="0.4"),
        score_spec(step="0.05"),
        score_spec(scale="score"),
        score_spec(join=None),
        score_spec(filters=[{"source": S2, "slot": "status", "values": ["open"]}]),
        split_spec(),
    ]
    queries = [SCORES.query(other, S1) for other in others]
    assert all(query is not None and differenced(query, asked) for query in queries)
    assert len({query.encode() for query in queries if query}) == len(others)
    again = {"of": "sha256:" + "8" * 64, "bits": 10, "reach": 8}
    bare = split_spec().params["columns"]
    assert SCORES.query(score_spec(columns=bare, model=again), S1) != SCORES.query(split_spec(), S1)
    for params in ({"recipient": S1}, {"key_holders": [S2, S3]}):
        assert SCORES.query(score_spec(**params), S1) == asked
    assert SCORES.query(spec, MATCHER) is None


def summaries(spec: JobSpec, **changes: Any) -> dict[Role, InputSummary]:
    empty = SCORES.builder(spec, S3).finish()
    each = InputSummary(100, 100, 100, empty.commitment(bytes(32)), "2026-01-01", spec.roster_digest, "v")
    return {role: replace(each, **changes) if role == S3 else each for role in (S1, S2, S3)}


@pytest.mark.parametrize(
    ("limits", "changes", "code"),
    [
        ({"max_rows": None}, {}, "guard-missing"),
        ({"max_fraction": None}, {}, "guard-missing"),
        ({"min_sources": 3}, {}, "guard-sources"),
        ({"min_organisations": 4}, {}, "guard-organisations"),
        ({}, {"distinct_keys": 97}, "guard-list-size"),
        ({"min_coverage": Fraction(995, 1000)}, {"distinct_keys": 99}, "guard-coverage"),
        ({}, {"distinct_keys": 101}, "guard-sizes"),
        ({}, {"rule_version": "w"}, "guard-rules"),
    ],
)
def test_admissions_that_break_a_guard_end_the_attempt_before_it_begins(limits, changes, code) -> None:
    spec = score_spec()
    SCORES.check_inputs(spec, summaries(spec), LOOSE)
    with pytest.raises(ProtocolAborted) as error:
        SCORES.check_inputs(spec, summaries(spec, **changes), replace(LOOSE, **limits))
    assert error.value.code == code
    with pytest.raises(ProtocolAborted) as error:
        SCORES.check_inputs(spec, summaries(spec), Constraints())
    assert error.value.code == "guard-missing"


def test_more_comparisons_or_rows_than_there_is_room_for_are_refused() -> None:
    spec = score_spec(at_least="0.5", step="0.005")
    steps = len(Params.of(spec).scoring.told) - 1
    large = {
        role: replace(each, rows=1 << 22, distinct_keys=1 << 22, catalogue_keys=1 << 22)
        for role, each in summaries(spec).items()
    }
    most = (1 << 26) // steps
    SCORES.check_inputs(spec, large, replace(LOOSE, max_rows=most))
    larger = {
        role: replace(each, rows=1 << 27, distinct_keys=1 << 27, catalogue_keys=1 << 27)
        for role, each in large.items()
    }
    for inputs, rows in ((large, most + 1), (larger, 1)):
        with pytest.raises(ProtocolAborted) as error:
            SCORES.check_inputs(spec, inputs, replace(LOOSE, max_rows=rows))
        assert error.value.code == "guard-too-large"


# -- statements ----------------------------------------------------------------------------------------------


def keys_of(spec: JobSpec, *members: str) -> set[str]:
    return {each.key for each in SCORES.learns(spec).get(frozenset(map(Role, members)), ())}


@pytest.mark.parametrize("computing", [MATCHER, HELPER])
def test_a_recipient_on_whose_list_nobody_has_to_be_learns_more_with_others(computing: Role) -> None:
    for recipient in ("recipient", S3):
        spec = score_spec(recipient=recipient)
        assert "received-scores" in keys_of(spec, DEALER, computing, recipient)
        assert "chosen-rows" in keys_of(spec, computing, recipient)
    spec = score_spec(recipient=S1)
    assert keys_of(spec, DEALER, computing, S1) == {"joined-records"}
    assert "chosen-rows" in keys_of(spec, computing, S1)


def test_officers_read_which_step_is_told_of_whom_and_what_weights_say() -> None:
    filters = [{"source": S1, "slot": "status", "values": ["settled"]}]
    for key, spec, words in (
        ("received-rows", score_spec(),
         ("whose chance is 0.5 or more, and which step of 0.1", "概率不低于 0.5")),
        ("received-rows", score_spec(scale="score"), ("whose score is 0.5 or more", "线性得分不低于 0.5")),
        ("received-rows", score_spec(filters=filters),
         ("only those with source-1: the_status = settled", "source-1: the_status = settled")),
        # Of the chances 0.5, 0.6 … 0.9 five steps, and not being received.
        ("weighed-columns", score_spec(), ("one of 5, up to 2.6 bits", "共 5 档")),
        ("weighed-columns", score_spec(),
         ("with weights made for it, the value of a column", "某一列或某几列的确切取值")),
        ("weighed-columns", split_spec(), ("the weights of its own columns, if any", "自己各列的权重")),
    ):  # fmt: skip
        (said,) = [e for e in SCORES.learns(spec)[frozenset({S3})] if e.key == key]
        assert words[0] in said.en
        assert words[1] in said.zh
        assert "no column" not in said.en
    (said,) = [e for e in SCORES.learns(score_spec())[frozenset({S3})] if e.key == "received-rows"]
    assert "none of source-3" in said.en
    asked = frozenset({Role(REQUESTER)})
    assert [e.key for e in SCORES.learns(score_spec())[asked]] == ["it-ran", "chosen-weights"]
    assert [e.key for e in SCORES.learns(split_spec())[asked]] == ["it-ran"]


def test_a_rule_names_weights_for_those_in_the_job_and_the_recipe_of_a_trained_model() -> None:
    assert isinstance(SCORES, Trains)
    assert SCORES.recipe(score_spec()) == "weights"
    assert SCORES.recipe(split_spec()) == "logistic"


@pytest.mark.parametrize(
    ("least", "taken"), [("-1", False), ("0", False), ("0.0009765624", True), ("1", True)]
)
def test_a_first_step_that_everybody_reaches_is_refused(least: str, taken: bool) -> None:
    # A look-up: every combination of codes has a sum of its own, and nobody is left out.
    kilo = 1 << 10
    columns = [
        feature(1, "age", [0, kilo, 2 * kilo, 3 * kilo], edges=["20", "40.5", "60"]),
        feature(2, "band", [0, 4 * kilo, 8 * kilo, 12 * kilo], codes=["low", "middle", "high"]),
    ]
    model = {"bits": 10, "constant": 0}
    spec = score_spec(columns=columns, model=model, scale="score", at_least=least, step="1")
    if taken:
        SCORES.check(spec)
        return
    error = refused(spec)
    assert error.code == "bad-params"
    assert "every row" in error.message


def test_weights_that_differ_on_one_list_alone_are_refused() -> None:
    flat = [feature(1, "age", [7] * 4, edges=["20", "40.5", "60"]), BAND]
    error = refused(score_spec(columns=flat))
    assert error.code == "bad-params"
    assert "one's columns" in error.message
    SCORES.check(score_spec(columns=[feature(1, "age", [7, 7, 7, 8], edges=["20", "40.5", "60"]), BAND]))
