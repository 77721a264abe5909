"""A model's files: scores as trained, nothing read that is not theirs, no model without its card."""

import json
import sys
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_case import (
    AGE,
    INCOME,
    RHO,
    TURNS,
    content_of,
    files_in,
    inputs_of,
    metrics_of,
    rows_of,
    schema_of,
    spec_of,
    table_of,
    trained,
)
from safetensors.numpy import save

from node.releases import decode_content, encode_content
from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.errors import DecodeError, InputError, MinshuError
from protocols.training.card import Card, differences, measure
from protocols.training.card_text import limits
from protocols.training.model import (
    ARRAYS,
    CARD,
    CURVES,
    facts_of,
    files_of,
    pack,
    read_model,
    unpack,
    write_model,
)
from protocols.training.recipe import sigmoid
from protocols.training.schema import Schema
from protocols.training.scores import HELD_OUT, Bins

RECIPES = ["logistic", "mlp", "boost"]
PIN = {"name": "steps", "distribution": "own-recipe", "version": "1.0", "digest": "sha256:" + "1" * 64}


def model_of(recipe: Any = "logistic", **changes: Any):
    return read_model(files_in(content_of(spec_of(recipe), **changes)))


def refused(files: dict[str, bytes]) -> str:
    with pytest.raises(DecodeError) as error:
        read_model(files)
    assert error.value.hint
    return error.value.code


# -- scores


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_released_model_scores_as_the_recipe_that_trained_it(recipe):
    made, state = trained(recipe)
    rows = rows_of(recipe)
    model = model_of(recipe, model=pack(made.arrays(state)))
    expected = sigmoid(made.scores(state, rows))
    assert np.array_equal(model.scores(table_of(recipe)), expected)
    assert len(np.unique(expected)) > 3


@pytest.mark.parametrize("recipe", ["logistic", "mlp"])
@pytest.mark.parametrize("features", ["both", "codes", "amounts"])
def test_another_program_computes_the_same_from_the_exported_model(recipe, features):
    kept = {"both": [AGE, INCOME], "codes": [AGE], "amounts": [INCOME]}[features]
    spec = spec_of(recipe, features=kept)
    schema = schema_of(recipe)
    schema = Schema(schema.coded[:1] if AGE in kept else (), schema.amounts if INCOME in kept else ())
    rng = np.random.default_rng(5)
    if recipe == "logistic":
        weights: Any = rng.integers(-(1 << 21), 1 << 21, schema.size)
    else:
        weights = rng.normal(size=4 * (schema.size + 1) + 1)
    model = read_model(files_in(content_of(spec, pack({"weights": weights}))))
    table = {name: each for name, each in table_of(recipe).items() if name in ("age", "income")}
    table = {name: each for name, each in table.items() if any(name == f["slot"] for f in kept)}
    rows = model.rows(table)
    session = onnxruntime.InferenceSession(model.to_onnx(), providers=["CPUExecutionProvider"])
    given = {"codes": rows.codes.astype(np.int64), "amounts": table.get("income", np.zeros(300))[:, None]}
    [found] = session.run(["probability"], {each.name: given[each.name] for each in session.get_inputs()})
    assert np.abs(found - model.scores(table)).max() < 1e-12
    assert found.std() > 0.01
    # The card goes with it, to the byte.
    assert Card.decode(session.get_modelmeta().custom_metadata_map["minshu.card"].encode()) == model.card


def test_trees_are_not_exported_and_say_what_to_do():
    with pytest.raises(InputError) as error:
        model_of("boost").to_onnx()
    assert (error.value.code, "minshu model score" in error.value.hint) == ("not-exportable", True)


def test_without_onnx_the_export_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError) as error:
        model_of().to_onnx()
    assert (error.value.code, error.value.hint) == ("no-onnx", 'pip install "minshu[onnx]"')


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"age": None}, "missing-column"),
        ({"name": np.array(["x"] * 300)}, "unknown-column"),
        ({"income": np.array([np.nan] * 300)}, "not-a-number"),
        ({"income": np.array([np.inf] * 300)}, "not-a-number"),
        ({"income": np.zeros(299)}, "no-rows"),
    ],
)
def test_rows_of_another_form_get_no_score(change, code):
    table = {k: v for k, v in (table_of("logistic") | change).items() if v is not None}
    with pytest.raises(InputError) as error:
        model_of().scores(table)
    assert error.value.code == code


def test_a_recipe_from_elsewhere_is_kept_as_it_is_and_not_scored():
    arrays = {"any": np.arange(6, dtype=np.int32).reshape(2, 3), "other": np.ones(1, np.float32)}
    model = model_of(PIN, model=pack(arrays))
    assert {name: each.tolist() for name, each in model.arrays.items()} == {
        name: each.tolist() for name, each in arrays.items()
    }
    assert "steps (own-recipe 1.0)" in "\n".join(model.describe("en"))
    with pytest.raises(InputError) as error:
        model.scores(table_of("logistic"))
    assert error.value.code == "foreign-recipe"
    with pytest.raises(InputError) as error:
        model.to_onnx()
    assert error.value.code == "not-exportable"


def test_a_joined_model_is_a_logistic_one_over_columns_of_several_departments():
    columns = [
        {"source": "source-1", "slot": "age", "edges": ["40"]},
        {"source": "source-2", "slot": "age", "codes": ["a", "b"]},
    ]
    params = {
        "columns": columns,
        "method": "gd",
        "step": "1",
        "recipe": None,
        "features": None,
        "group": None,
    }
    spec = spec_of(**params)
    weights = np.array([0, 1 << 20, 1 << 20, 0, 0, -(1 << 20)])
    model = read_model(files_in(content_of(spec, pack({"weights": weights}))))
    assert model.card.settings == {"method": "gd", "step": "1"}
    assert (model.card.recipe, differences(model.card, spec)) == ("logistic", [])
    table = {"source-1.age": np.array([30.0, 50.0]), "source-2.age": np.array(["a", "b"])}
    assert np.allclose(model.scores(table), sigmoid(np.array([0.0, 0.0])), atol=1e-12)
    assert not np.allclose(model.log_odds(model.rows(table | {"source-2.age": np.array(["b", "b"])})), 0)


# -- what is in the file


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_but_what_scores_are_made_of_is_released(recipe):
    expected = {"boost": {"features", "right", "leaves"}}.get(recipe, {"weights"})
    assert set(model_of(recipe).arrays) == expected


def test_sums_of_a_tree_that_was_still_growing_are_not_released():
    made, _ = trained("boost")
    rows = rows_of("boost")
    halfway = made.start()
    for _ in range(3):
        total = made.contribute(halfway, rows).astype(float)
        halfway = made.advance(halfway, total, len(rows))
    assert (halfway.level, halfway.parents.any()) == (1, True)
    model = model_of("boost", model=pack(made.arrays(halfway)))
    assert {name: len(each) for name, each in model.arrays.items()} == dict.fromkeys(model.arrays, 1)
    assert np.array_equal(model.scores(table_of("boost")), sigmoid(made.scores(halfway, rows)))


def test_files_go_through_a_release_and_back_to_the_byte():
    content = content_of()
    table, about = decode_content(encode_content(content, "statement", bytes(16)))
    assert table.schema.field("data").type == "binary"
    found = files_of({name: table.column(name).to_pylist() for name in table.column_names})
    assert found == files_in(content)
    card = Card.decode(found[CARD])
    assert about["facts"] == facts_of(card, found)
    assert about["facts"]["model_sha256"] == sha256_digest(found[ARRAYS])


def test_the_file_names_its_schema_and_nothing_else():
    data = files_in(content_of())[ARRAYS]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"schema": "minshu-model/1"}


# -- refused


def test_a_model_without_its_card_is_none():
    files = files_in(content_of())
    assert refused({name: data for name, data in files.items() if name != CARD}) == "no-card"
    assert refused({name: data for name, data in files.items() if name != CURVES}) == "bad-model"
    assert refused(files | {"more.txt": b""}) == "bad-model"


def test_the_card_of_another_model_is_refused():
    mine, other = files_in(content_of()), files_in(content_of(spec_of("mlp")))
    assert refused(mine | {CARD: other[CARD]}) == "wrong-card"
    assert refused(mine | {ARRAYS: other[ARRAYS]}) == "wrong-card"


def with_arrays(data: bytes, recipe: Any = "logistic") -> dict[str, bytes]:
    """Return files whose card names these bytes."""
    files = files_in(content_of(spec_of(recipe)))
    plain = decode_json(files[CARD]) | {"model_sha256": sha256_digest(data)}
    return files | {ARRAYS: data, CARD: canonical_json(plain)}


SIZE = schema_of("logistic").size
META = {"schema": "minshu-model/1"}
WEIGHTS = np.zeros(SIZE, np.int64)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        (1 << 40).to_bytes(8, "little") + b"{}",
        save({"weights": WEIGHTS}),
        save({"weights": WEIGHTS}, {"schema": "minshu-model/2"}),
        save({"weights": WEIGHTS}, META | {"more": "x"}),
        save({"weights": WEIGHTS[:-1]}, META),
        save({"weights": WEIGHTS.astype(np.int32)}, META),
        save({"weights": WEIGHTS.astype(float)}, META),
        save({"weights": WEIGHTS + (1 << 50)}, META),
        save({"weights": WEIGHTS[None]}, META),
        save({"weights": WEIGHTS, "velocity": WEIGHTS.astype(float)}, META),
        save({"other": WEIGHTS}, META),
        save({"weights": WEIGHTS}, META)[:-1],
        save({"weights": WEIGHTS}, META) + b"\0",
        save({"weights": WEIGHTS}, META).replace(b'"I64"', b'"C64"'),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_arrays_that_are_not_the_recipes_are_refused(data):
    assert refused(with_arrays(data)) == "bad-model"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused(number):
    weights = np.zeros(2 * (SIZE + 1) + 1)
    assert read_model(with_arrays(pack({"weights": weights}), "mlp"))
    weights[3] = number
    assert refused(with_arrays(pack({"weights": weights}), "mlp")) == "bad-model"
    assert refused(with_arrays(pack({"weights": weights[:-1]}), "mlp")) == "bad-model"


def trees(**changes: Any) -> bytes:
    arrays = {
        "features": np.zeros((2, 3), np.int16),
        "right": np.zeros((2, 3, 5), np.bool_),
        "leaves": np.zeros((2, 4), np.int64),
    }
    return pack(arrays | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.full((2, 3), 2, np.int16)},
        {"features": np.full((2, 3), -2, np.int16)},
        {"features": np.zeros((1, 3), np.int16)},
        {"right": np.zeros((2, 3, 4), np.bool_)},
        {"leaves": np.zeros((2, 3), np.int64)},
        {"leaves": np.zeros((2, 0), np.int64)},
        {"leaves": np.zeros(2, np.int64)},
        {"leaves": np.zeros((2, 1 << 9), np.int64)},
    ],
)
def test_trees_that_look_beyond_their_columns_are_refused(change):
    assert read_model(with_arrays(trees(), "boost"))
    assert refused(with_arrays(trees(**change), "boost")) == "bad-model"


def changed_card(path: list[Any], value: Any) -> bytes:
    plain = decode_json(files_in(content_of())[CARD])
    part = plain
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return canonical_json(plain)


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (["schema"], "minshu-model/2", "unknown-schema"),
        (["more"], 1, "bad-card"),
        (["training", "more"], 1, "bad-card"),
        (["job"], "sha256:0", "bad-card"),
        (["purpose"], "a\x1b[2Jb", "bad-card"),
        (["purpose"], "a\u202eb", "bad-card"),
        (["features"], [], "bad-card"),
        (["features"], [AGE, AGE], "bad-card"),
        (["features", 0, "edges"], ["20", "10"], "bad-card"),
        (["features", 0, "edges"], ["1/0"], "bad-card"),
        (["features", 0, "codes"], ["a"], "bad-card"),
        (["features", 0, "edges"], [20], "bad-card"),
        (["metrics", "auc"], 1.5, "bad-card"),
        (["metrics", "auc"], "0.9", "bad-card"),
        (["metrics", "on"], "private rows", "bad-card"),
        (["training", "sources"], True, "bad-card"),
        (["datasets"], [], "bad-card"),
        (["limits", "zh"], [], "bad-card"),
        (["limits"], {"en": [], "zh": []}, "bad-card"),
        (["limits", "en", 0], "Approved for decisions about persons.", "bad-card"),
        (["recipe"], "\x1b[2J\x1b]0;x\x07", "bad-card"),
        (["recipe"], "a" * 64, "bad-card"),
        (["settings"], {"\u202eclip": "2"}, "bad-card"),
        (["settings"], {f"s{n}": "2" for n in range(65)}, "bad-card"),
        (["versions"], {"a\x1bb": "1"}, "bad-card"),
        (["training", "rounds"], {f"t{n}": 1 for n in range(65)}, "bad-card"),
        (["privacy", "epsilon"], "", "bad-card"),
        (["privacy", "epsilon"], "9" * 65, "bad-card"),
        (["privacy"], {"notion": "none", "rho": "0.5"}, "bad-card"),
    ],
)
def test_a_card_with_a_field_that_cannot_be_is_refused(path, value, code):
    assert refused(files_in(content_of()) | {CARD: changed_card(path, value)}) == code


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (["\x1b[2Jx"], 1, "$"),
        (["training", "\x1b[2Jx"], 1, "$.training"),
        (["features", 0, "\x1b` - at `$.fine"], 1, "$.features[0]"),
        (["versions"], {"a\x1bb": "1"}, "$.versions"),
        (["metrics", "on"], "\x1b[2Jx", "$.metrics.on"),
        (["recipe"], "\x1b[2Jx", "$.recipe"),
    ],
)
def test_what_is_wrong_with_a_card_is_said_in_this_programs_words(path, value, where):
    with pytest.raises(DecodeError) as error:
        Card.decode(changed_card(path, value))
    assert error.value.message == (
        f"the card cannot be used: a field at {where} is unknown, missing, or not of its form"
    )


def test_every_caveat_is_read_as_it_was_written():
    """The sentences belong to the schema: a card with others is none, so they change with its name alone."""
    cards = [
        model_of().card,
        read_model(files_in(content_of(spec_of(rho=None, noise="none", group=None), metrics=None))).card,
    ]
    cards.append(msgspec.structs.replace(cards[0], job_type="train-joined/1"))
    said = [limits(card) for card in cards]
    assert [card.limits for card in cards[:2]] == said[:2]
    digest = sha256_digest(canonical_json([[*each.en, *each.zh] for each in said]))
    assert (cards[0].schema, digest) == (
        "minshu-model/1",
        "sha256:d1f15a15f77fba4a7543a721f8c7f786f96958eeb7e6d87bd782ae5267219bf4",
    )


OWN = b'"__metadata__":{"schema":"minshu-model/1"},'
BYTE = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def test_a_header_as_it_has_to_be_is_read():
    header = b"{" + OWN + BYTE + b"}"
    assert unpack(len(header).to_bytes(8, "little") + header + b"\x07")["a"].tolist() == [7]


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + OWN + BYTE + b"," + BYTE + b"}",
        b'{"__metadata__":{"schema":"other"},' + OWN + BYTE + b"}",
        b"{" + OWN + BYTE.replace(b"U8", b"BOOL") + b"}",
        b"{" + OWN + b'"a":5}',
    ],
    ids=[
        "lists in lists",
        "tables in tables",
        "an array twice",
        "metadata twice",
        "neither 0 nor 1",
        "a number",
    ],
)
def test_a_header_that_other_readers_may_read_otherwise_is_refused(header):
    with pytest.raises(DecodeError) as error:
        unpack(len(header).to_bytes(8, "little") + header + b"\x07")
    assert error.value.code == "bad-model"


def test_a_perceptron_has_no_number_that_a_sum_runs_over_with():
    weights = np.zeros(2 * (SIZE + 1) + 1)
    weights[0] = 1e308
    assert refused(with_arrays(pack({"weights": weights}), "mlp")) == "bad-model"


@pytest.mark.parametrize(
    "curves",
    [
        {"schema": "minshu-curves/1", "curves": {"\x1b[2J": [1.0]}},
        {"schema": "minshu-curves/1", "curves": {"a" * 64: [1.0]}},
        {"schema": "minshu-curves/1", "curves": {"auc": ["x"]}},
        {"schema": "minshu-curves/2", "curves": {}},
        {"schema": "minshu-curves/1", "curves": {}, "more": 1},
        {"schema": "minshu-curves/1", "curves": {f"c{k}": [] for k in range(40)}},
        [],
    ],
)
def test_curves_of_another_form_are_refused(curves):
    assert refused(files_in(content_of()) | {CURVES: canonical_json(curves)}) == "bad-model"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([ARRAYS, CARD, CURVES]), st.integers(0, 1 << 20), st.integers(1, 255))
def test_no_flipped_byte_is_read_as_another_model(name, at, flip):
    files = FLIPPED
    data = bytearray(files[name])
    data[at % len(data)] ^= flip
    try:
        found = read_model(files | {name: bytes(data)})
    except MinshuError:
        return
    # A card or a curve may say another readable thing, which the note's signature is against. Arrays may not.
    assert name != ARRAYS
    assert found.card.model_sha256 == sha256_digest(files[ARRAYS])


FLIPPED = files_in(content_of())


def test_only_a_state_of_the_recipe_is_released():
    for arrays in ({"velocity": np.zeros(SIZE)}, {"weights": np.zeros(SIZE)}):
        with pytest.raises(DecodeError) as error:
            content_of(model=pack(arrays))
        assert error.value.code == "bad-model"


def test_what_is_packed_comes_back():
    arrays = {"a": np.arange(3, dtype=np.int64), "b": np.array([[True, False]])}
    found = unpack(pack(arrays))
    assert {name: (each.dtype, each.tolist()) for name, each in found.items()} == {
        name: (each.dtype, each.tolist()) for name, each in arrays.items()
    }


# -- the card


def test_a_card_says_what_its_job_says():
    spec = spec_of()
    card = model_of().card
    assert differences(card, spec) == []
    assert (card.purpose, card.job) == (spec.purpose, spec.job_id)
    assert [(each.organisation, each.rows, each.snapshot) for each in card.datasets] == [
        ("police.gz.example", 100, "2026-10-31"),
        ("human-resources.gz.example", 200, "2026-10-31"),
        ("health.gz.example", 300, "2026-10-31"),
    ]
    assert inputs_of(spec).keys() == {each.role for each in card.datasets}
    assert (card.training.rounds, card.training.most_rounds) == (TURNS, TURNS)
    other = spec_of(label={"slot": "ill", "positive": ["2"]})
    assert set(differences(card, other)) == {"job", "label"}
    assert "privacy" in differences(card, spec_of(rho=None, noise="none"))


def test_epsilon_is_what_the_ledger_makes_of_the_cost():
    loss = model_of(spent=Cost.zcdp(RHO / 2)).card.privacy
    assert (loss.notion, loss.rho, loss.delta) == ("zcdp", "0.5", "0.00001")
    whole = Cost.zcdp(RHO).amount("approximate-dp", Fraction("0.00001"))
    assert 0 <= Fraction(loss.epsilon) - whole < Fraction("0.000002")
    assert Fraction(loss.spent_epsilon) < Fraction(loss.epsilon)
    none = read_model(files_in(content_of(spec_of(rho=None, noise="none"), metrics=None))).card
    assert (none.privacy.notion, none.privacy.epsilon) == ("none", "")


def test_people_read_what_a_model_is_in_both_languages():
    model = model_of()
    english, chinese = "\n".join(model.describe("en")), "\n".join(model.describe("zh"))
    for text in (english, chinese):
        assert model.card.job in text
        assert "疑似, 需人工核实" in text
        assert f"e^{model.card.privacy.epsilon}" in text
        assert "AUC" in text
    assert "others: false alarms of too few rows, misses of too few rows" in english
    assert "其他: 误报 数据过少" in chinese
    assert "it was trained without noise" not in english.lower()
    bare = read_model(files_in(content_of(spec_of(rho=None, noise="none"), metrics=None)))
    assert "was trained without noise" in "\n".join(bare.describe("en"))
    assert "未加噪声" in "\n".join(bare.describe("zh"))


def test_errors_of_a_group_with_few_rows_are_not_stated():
    found = metrics_of()
    stated = [(each.code, each.false_alarms is not None, each.misses is not None) for each in found.groups]
    assert stated == [("1", True, True), ("2", True, True), ("", False, False)]
    assert found.auc_low < found.auc < found.auc_high


def test_the_last_bins_of_a_calibration_are_part_of_the_one_below_where_they_have_few_rows():
    bins = Bins.even(4)
    counts = np.zeros((2, 1, 2, 4))
    counts[HELD_OUT, 0] = [[90, 60, 0, 0], [10, 40, 3, 0]]
    found = measure(counts, bins.edges, "held-out")
    # The three are part of the bin below.
    assert [(each.said, each.found) for each in found.calibration] == [
        (0.125, 0.1),
        (pytest.approx((37.5 + 3 * 0.625) / 103, abs=1e-6), pytest.approx(43 / 103, abs=1e-6)),
    ]
    counts[HELD_OUT, 0, 1, 2] = 100
    assert len(measure(counts, bins.edges, "held-out").calibration) == 3
    nothing = measure(np.zeros((2, 1, 2, 4)), bins.edges, "held-out")
    assert (nothing.calibration, nothing.calibration_error, nothing.auc) == ((), None, None)


def test_noise_above_the_counts_leaves_no_figure():
    bins = Bins.even(8)
    counts = np.full((2, 1, 2, 8), 100.0)
    found = measure(counts, bins.edges, "held-out, noisy", variance=1e6)
    assert (found.auc, found.auc_low, found.loss, found.membership_auc) == (None, None, None, None)
    assert measure(counts, bins.edges, "held-out").membership_auc == 0.5
    assert measure(counts, bins.edges, "public test set").membership_auc is None
    model = model_of(metrics=found)
    assert model.card.metrics == found
    assert "    too few rows for an AUC, above their noise" in model.describe("en")
    assert "    数据过少 (相对于噪声), 不给出 AUC" in model.describe("zh")
    assert not any("too few rows for an AUC" in line for line in model_of().describe("en"))


def test_curves_leave_out_what_is_no_number():
    assert model_of(curves={"auc": [0.5, float("nan"), 0.7]}).curves == {"auc": (0.5, 0.7)}


def test_whatever_a_recipe_hands_over_the_model_can_be_read():
    odd = {f"c{n}": [0.5] for n in range(40)} | {"\x1b[2J": [1.0], "long": [0.0] * 20_000}
    found = model_of(curves={"long": odd["long"], **odd}).curves
    assert (len(found), len(found["long"])) == (32, 10_000)
    with pytest.raises(DecodeError) as error:
        content_of(versions={"a\x1bb": "1"})
    assert error.value.code == "bad-card"


def test_the_same_model_is_written_the_same():
    content = files_in(content_of())
    model = read_model(content)
    assert write_model(dict(model.arrays), model.card, model.curves) == content
