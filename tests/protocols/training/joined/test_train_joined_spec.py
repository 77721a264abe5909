"""What a job of type `train-joined/1` may say, what it costs, and the numbers that its document pins."""

import hashlib
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from train_joined_case import (
    BILL,
    LIMIT,
    NOISY,
    S1,
    S2,
    STATUS,
    TRAIN,
    as_lists,
    listed,
    people,
    train_case,
    train_spec,
)

import protocols
from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER, ExactOrNoisy, Keeps, Trains
from protocols.joined.params import DEALER, HELPER, MATCHER
from protocols.statistics.differencing import differenced
from protocols.training.joined.columns import Coding
from protocols.training.joined.cubic import Cubic
from protocols.training.joined.held import Histogram
from protocols.training.joined.params import Params
from protocols.training.joined.rare import withheld
from protocols.training.joined.scoring import Feature
from protocols.wire import Constraints

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "vectors/train-joined.json").read_text("utf-8")
)


# -- vectors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["cubics"], ids=lambda vector: str(vector[:2]))
def test_cubics_are_those_of_the_vectors(vector):
    bound, bits, unit, linear, constant, largest, values = vector
    cubic = Cubic(bound, bits)
    assert (cubic.unit, cubic.whole, cubic.largest) == (unit, (constant, linear), int(largest))
    assert [[v, str(cubic.value(v))] for v, _ in values] == values


@pytest.mark.parametrize("vector", VECTORS["thresholds"], ids=lambda vector: str(vector[:2]))
def test_edges_of_bins_are_those_of_the_vectors(vector):
    bins, bits, expected = vector
    assert list(Histogram(10, Cubic(8, bits), bins, bytes(32)).thresholds) == expected


@pytest.mark.parametrize("vector", VECTORS["held"], ids=str)
def test_places_for_held_out_rows_are_those_of_the_vectors(vector):
    rows, holdout, expected = vector
    params = Params.of(train_spec(holdout=holdout))
    assert params.plan([rows, rows], bytes(32), 3).held_rows() == expected


@pytest.mark.parametrize("vector", VECTORS["noise"], ids=lambda vector: str(vector[:6]))
def test_noise_is_that_of_the_vectors(vector):
    features, bound, bits, rounds, rho, evaluation, *expected = vector
    columns = [{"source": f"source-{1 + at % 2}", "slot": f"x{at}", "edges": ["0"]} for at in range(features)]
    params = Params.of(
        train_spec(columns=columns, rounds=rounds, rho=rho, scores=bound, evaluate={"rho": evaluation})
    )
    noises = params.noises(params._model(Cubic(bound, bits)))
    assert noises is not None
    assert noises.histogram is not None
    found = [float(each.spread) for each in (noises.round[0], noises.histogram, noises.count)]
    assert found == pytest.approx([float(each) for each in expected], rel=1e-10)
    assert noises.cost == Cost.zcdp(Fraction(rho))


@pytest.mark.parametrize("vector", VECTORS["bad_params"], ids=lambda vector: str(vector)[:80])
def test_malformed_params_are_refused_by_their_codes(vector):
    params, code = vector
    with pytest.raises(InputError) as error:
        TRAIN.check(train_spec(**params))
    assert error.value.code == code
    assert error.value.hint


@pytest.mark.parametrize("model", ["assembled", "split"])
def test_what_is_kept_to_score_with_has_no_more_columns_and_names_than_a_score(model):
    def columns(count, slot="x"):
        slots = [f"{slot}{at}" if at else slot for at in range(count)]
        return [
            {"source": f"source-{1 + at % 2}", "slot": name, "edges": ["0"]} for at, name in enumerate(slots)
        ]

    Params.of(train_spec(columns=columns(64), model=model))
    for wrong in (columns(65), columns(3, "street")):
        if model == "assembled":
            Params.of(train_spec(columns=wrong, model=model))
            continue
        with pytest.raises(InputError) as error:
            Params.of(train_spec(columns=wrong, model=model))
        assert error.value.code == "bad-params"


@pytest.mark.parametrize("vector", VECTORS["runs"], ids=lambda vector: str(vector["params"]))
def test_seeded_runs_say_what_the_vectors_pin(vector, monkeypatch):
    plan = Params.plan
    monkeypatch.setattr(Params, "plan", lambda *args: plan(*args, fewest=40))
    case = train_case(
        train_spec(**vector["params"]), as_lists(people(vector["persons"])), seed=vector["seed"]
    )
    case.released()
    digests: dict[str, Any] = {}
    for message in case.sent:
        digests.setdefault(f"{message.round:04x}", hashlib.sha256()).update(message.body)
    assert {name: each.hexdigest()[:16] for name, each in sorted(digests.items())} == vector["rounds"]


# -- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "params"),
    [(4000, {}), (3000, {"rounds": 1000}), (1100, {"method": "adassp", "rounds": None})],
    ids=str,
)
def test_what_is_too_much_to_reckon_with_is_refused_before_anybody_is_asked(codes, params):
    def columns(count):
        listed_ = [f"c{at}" for at in range(count)]
        return [
            {**STATUS, "codes": listed_},
            {**BILL, "source": "source-1", "edges": [str(at) for at in range(200)]},
        ]

    with pytest.raises(InputError) as error:
        TRAIN.check(train_spec(**params, columns=columns(codes)))
    assert error.value.code == "too-many-words"
    TRAIN.check(
        replace(train_spec(**params, columns=columns(700)), inputs=train_spec(columns=columns(3)).inputs)
    )


@pytest.mark.parametrize("rows", [1_200_000, 6_000_000])
def test_more_comparisons_than_a_dealers_luck_is_bounded_for_are_not_made(rows):
    def plan(**params):
        return Params.of(train_spec(rounds=1, **params)).plan([rows, rows], bytes(32), 10)

    plan(holdout=5, evaluate={"bins": 8}).check_room()
    with pytest.raises(ProtocolAborted) as error:
        plan(holdout=2, evaluate={"bins": 64}).check_room()
    assert error.value.code == "guard-too-large"


def test_room_counts_who_is_held_out():
    without, held = (
        Params.of(train_spec(rounds=1, **more)).plan([500_000, 500_000], bytes(32), 10)
        for more in ({"holdout": 0}, {"holdout": 2, "evaluate": {"bins": 64}})
    )
    # Their rows stay until the end, and a byte for each edge and label.
    assert held.room - without.room > held.held_rows() * (8 * (held.size + 1) + 2 * 63)


# -- the job type --------------------------------------------------------------------------------------------


def test_it_says_whether_it_is_exact_and_by_which_recipe():
    assert isinstance(TRAIN, ExactOrNoisy)
    assert isinstance(TRAIN, Trains)
    assert isinstance(TRAIN, Keeps)
    assert TRAIN.exact(train_spec())
    assert not TRAIN.exact(train_spec(**NOISY))
    assert TRAIN.recipe(train_spec()) == "logistic"


def test_each_list_pays_for_the_whole_run_and_nobody_else_does():
    limits = Constraints(min_group_size=10)
    spec = train_spec(**NOISY)
    assert TRAIN.cost(spec, S1, limits) == Cost.zcdp(Fraction("0.5")) + Cost(queries=1)
    assert TRAIN.cost(train_spec(), S2, limits) == Cost(queries=1)
    assert TRAIN.cost(spec, MATCHER, limits) == NOTHING


def test_columns_are_for_training_and_the_label_is_its_owners():
    needs = TRAIN.columns(train_spec(), S1)
    assert [(each.slot, each.use) for each in needs][:4] == [
        ("key", "join"),
        ("limit", "train"),
        ("sex", "train"),
        ("default", "train"),
    ]
    assert [each.slot for each in TRAIN.columns(train_spec(), S2)][1:3] == ["status", "bill"]
    assert needs[1].domain is not None
    assert needs[1].domain.bins == (2, 4, 6)
    assert needs[2].domain is not None
    assert needs[2].domain.named == ("1", "2")


def test_an_exact_run_is_another_question_than_any_other_and_is_not_put_twice():
    query = TRAIN.query(train_spec(), S1)
    assert query is not None
    assert query.amounts
    assert not query.noisy
    elsewhere = {"source": "source-2", "slot": "late", "at_least": "1"}
    for other in ({"rounds": 6}, {"label": elsewhere}, {"step": "2"}):
        asked = TRAIN.query(train_spec(**other), S1)
        assert asked is not None
        assert differenced(asked, query)
    noisy = TRAIN.query(train_spec(**NOISY), S1)
    assert noisy is not None
    assert noisy.noisy


def test_a_recipient_is_refused_and_seats_are_apart():
    spec = train_spec()
    with pytest.raises(InputError) as error:
        TRAIN.check(replace(spec, recipients=(Organisation("department-1.example"),)))
    assert error.value.code == "bad-recipients"
    with pytest.raises(InputError) as error:
        TRAIN.check(replace(spec, roles={role: n for role, n in spec.roles.items() if role != DEALER}))
    assert error.value.code == "bad-roles"


# -- who learns what -----------------------------------------------------------------------------------------


def keys(spec):
    return {frozenset(members): {s.key for s in said} for members, said in TRAIN.learns(spec).items()}


def test_the_leakage_statement_is_that_of_the_specification():
    two = [frozenset(pair) for pair in ((MATCHER, HELPER), (MATCHER, DEALER), (HELPER, DEALER))]
    expected = {
        frozenset({Role(REQUESTER)}): {"exact-model", "exact-end"},
        frozenset({Role(COORDINATOR)}): {"list-sizes", "traffic", "exact-end"},
        frozenset({MATCHER}): {"list-sizes", "venn", "exact-rounds"},
        frozenset({HELPER}): {"list-sizes", "joined-size", "exact-weights", "exact-end"},
        frozenset({DEALER}): {"list-sizes", "exact-end"},
        two[0]: {"payloads"},
        two[1]: {"joined-words"},
        two[2]: {"joined-words"},
        frozenset({MATCHER, S1, S2}): {"dictionary"},
    }
    for owner in (S1, S2):
        expected[frozenset({owner})] = {"list-sizes", "exact-end"}
        expected[frozenset({MATCHER, owner})] = {"own-rows-elsewhere"}
        expected[frozenset({HELPER, owner})] = {"own-rows-joined"}
        expected |= {pair | {owner}: {"joined-records"} for pair in two}
    assert keys(train_spec()) == expected
    noisy = keys(train_spec(**NOISY, model="split"))
    assert noisy.pop(frozenset({Role(REQUESTER), HELPER})) == {"one-noise"}
    assert noisy.pop(frozenset({S1, S2})) == {"whole-model"}
    assert noisy[frozenset({S1})] == {"list-sizes", "own-part"}
    assert noisy[frozenset({MATCHER})] == {"list-sizes", "venn", "helpers-noise", "noisy-rounds"}
    assert noisy[frozenset({HELPER})] == {"list-sizes", "joined-size", "noisy-weights"}
    assert noisy[frozenset({Role(REQUESTER)})] == {"noisy-metrics"}


def test_every_key_of_this_type_stands_in_its_section():
    text = (Path(protocols.__path__[0]) / "training" / "SPEC.md").read_text("utf-8")
    section = text[text.index("## 6. `train-joined/1`") : text.index("## 7.")]
    (rows,) = re.findall(r"^\| coalition \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", section, flags=re.MULTILINE)
    documented = {key.strip() for row in rows.splitlines() for key in row.split("|")[3].split(",")}
    said = set()
    for spec in (
        train_spec(),
        train_spec(**NOISY),
        train_spec(model="split"),
        train_spec(**NOISY, model="split"),
    ):
        said |= set().union(*keys(spec).values())
    common = {
        *("list-sizes", "traffic", "venn", "joined-size", "helpers-noise", "one-noise", "payloads"),
        *("joined-words", "joined-records", "own-rows-elsewhere", "own-rows-joined", "dictionary"),
    }
    assert said - common == documented


def test_what_is_released_says_whom_it_is_of_and_what_noise_hides():
    kept = [{"source": "source-2", "slot": "bill", "low": "0"}]
    for params, words in (
        ({}, ("limit, sex, status, bill", "source-2: the_bill = 0 …", "without noise", "after one round")),
        ({**NOISY}, ("ρ = 0.5,", "ρ = 2", "a weight for each code")),
        ({**NOISY, "model": "split"}, ("no weight of it",)),
    ):
        said = TRAIN.learns(train_spec(filters=kept, **params))[frozenset({Role(REQUESTER)})][0]
        for word in words:
            assert word in said.en
        assert "仅计 source-2: the_bill = 0 … 的记录" in said.zh


def test_weights_without_noise_are_said_to_be_exact_sums_wherever_they_go():
    def said(key, *members, **params):
        return next(e for e in TRAIN.learns(train_spec(**params))[frozenset(members)] if e.key == key)

    for one in (
        said("exact-model", Role(REQUESTER)),
        said("exact-weights", HELPER),
        said("own-part", S2, model="split"),
    ):
        assert "exact" in one.en
        assert "round" in one.en
        assert "label" in one.en
        assert "各标签" in one.zh
    assert "exact" not in said("own-part", S2, model="split", **NOISY).en


@pytest.mark.parametrize("twice", ["feature", "label"])
def test_a_column_is_in_an_exact_job_once_and_in_a_noisy_one_as_often_as_wanted(twice):
    again = {"source": "source-1", "slot": "limit2", "edges": ["2.1"]}
    for params, code in (({}, "measured-twice"), (NOISY, None)):
        spec = train_spec(columns=[LIMIT, again, STATUS], **params)
        assert TRAIN.check(spec) is None
        other = "limit2" if twice == "feature" else "default"
        inputs = tuple(
            replace(each, columns={**each.columns, other: each.columns["limit"]}) if each.role == S1 else each
            for each in spec.inputs
        )
        spec = replace(spec, inputs=inputs)
        if code is None:
            TRAIN.check(spec)
            continue
        with pytest.raises(InputError) as error:
            TRAIN.check(spec)
        assert error.value.code == code
        assert error.value.hint


# -- rare codes ----------------------------------------------------------------------------------------------

TABLES = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), min_size=1, max_size=3
)


@given(TABLES, st.integers(1, 8))
def test_neither_a_weight_nor_what_is_left_out_of_a_column_tells_of_few(table, least):
    # Every column is of the same persons: the first has them, the others a code more for those left.
    total = np.array([[sum(cell[label] for cell in column) for label in (0, 1)] for column in table])
    everybody = total.max(axis=0)
    assume(everybody.min() >= least)
    columns = [[*column, tuple(everybody - of)] for column, of in zip(table, total, strict=True)]
    cells = np.array([cell for column in columns for cell in column] + [everybody])
    found = withheld([len(each) for each in columns], cells.sum(axis=1), cells[:, 1], least)
    assert not found[-1]
    assert cells[~found].min() >= least
    at = 0
    for column in columns:
        own, out = cells[at : at + len(column)], found[at : at + len(column)]
        together = own[out].sum(axis=0)
        assert not together.any() or together.min() >= least
        # Nothing is left out that neither needs it nor hides another.
        few = own.min(axis=1) < least
        alone = own[few].sum(axis=0)
        if not alone.any() or alone.min() >= least:
            assert out.tolist() == few.tolist()
        at += len(column)


# -- codes ---------------------------------------------------------------------------------------------------


def test_codes_are_those_of_a_model_that_scores_rows_by_itself():
    spec = train_spec()
    schema = Params.of(spec).schema
    rows = as_lists(people(60))[1]
    found = listed(spec, S2, rows)
    table = {
        "source-2.status": np.array([row["status"] for row in rows]),
        "source-2.bill": np.array([np.nan if row["bill"] is None else row["bill"] for row in rows]),
    }
    own = [feature for feature in schema.coded if feature.name in table]
    assert len(own) == 2
    expected = np.stack([feature.encode(table[feature.name]) for feature in own], axis=1)
    assert sorted(map(tuple, found.amounts.tolist())) == sorted(map(tuple, expected.tolist()))
    assert len(rows) == found.distinct_keys


def test_codings_are_what_a_kept_part_is_read_by():
    """A score job finds a part by its features: widths and meanings are the same there."""
    for each in Params.of(train_spec()).features:
        assert isinstance(each, Coding)
        kept = Feature(0, each.slot, each.codes, each.edges, each.missing or bool(each.codes))
        assert kept.width == each.width == each.feature.width
