"""Models are measured on what is released, against the same recipe on the same rows in one place."""

import ast
import sys

import numpy as np
import pyarrow as pa
import pytest

from bench.models import across, datasets, joined
from bench.models.jobs import auc, seeded
from bench.peers import ebm

ADULT = pytest.mark.skipif(
    not (datasets.DATA / "adult.data").exists(),
    reason="the public data sets lie beside the sources, not in them",
)


def people(count: int, seed: int) -> pa.Table:
    """Rows with the columns of Adult, of whom the older and those who work longer are the positive."""
    draw = np.random.default_rng(seed)
    columns = {slot: draw.integers(low, high + 1, count) for slot, (low, high) in datasets.NUMBERS.items()}
    for feature in datasets.LINEAR:
        if "codes" in feature:
            columns[feature["slot"]] = draw.choice(feature["codes"], count)
    odds = (columns["age"] - 50) / 8 + (columns["hours"] - 50) / 15
    there = draw.random(count) < 1 / (1 + np.exp(-odds))
    columns[datasets.LABEL] = np.where(there, datasets.POSITIVE, "<=50K")
    return pa.table(columns)


def test_the_auc_is_that_of_all_pairs_and_a_tie_counts_half():
    draw = np.random.default_rng(1)
    scores, labels = draw.integers(0, 6, 80).astype(float), draw.integers(0, 2, 80)
    ones, others = scores[labels == 1][:, None], scores[labels == 0][None, :]
    pairs = (ones > others).mean() + (ones == others).mean() / 2
    assert auc(scores, labels) == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("skewed", [False, True])
def test_departments_share_all_rows_out_and_each_has_both_labels(skewed):
    whole = people(6000, 1)
    parts = datasets.split(whole, 20, 1, skewed=skewed)
    again = datasets.split(whole, 20, 1, skewed=skewed)
    assert all(one.equals(other) for one, other in zip(parts, again, strict=True))
    rows = [tuple(row.values()) for row in whole.to_pylist()]
    assert sorted(tuple(row.values()) for part in parts for row in part.to_pylist()) == sorted(rows)
    shares = [datasets.labels(part).mean() for part in parts]
    assert (max(shares) - min(shares) > 0.5) == skewed


@pytest.mark.long  # four processes
def test_the_released_model_is_that_of_the_same_rows_in_one_place():
    asked = across.Asked("logistic", {"clip": "8", "step": "2"}, 4, datasets.LINEAR)
    # Whole hundreds: a catalogue has them to three digits.
    parts, test = [people(rows, rows) for rows in (600, 400, 300)], people(500, 9)
    found = across.federated(asked, parts, 1, test)
    assert found == across.centralised(asked, [pa.concat_tables(parts)], test)
    assert found > 0.8


def test_noise_is_another_for_another_seed_and_the_same_again():
    assert seeded("a", 1)(9) == seeded("a", 1)(9) != seeded("a", 2)(9)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match="the data set is not there"):
        datasets.records("adult.data", folder=tmp_path)


@ADULT
def test_the_data_sets_are_whole():
    assert (len(datasets.adult("adult.data")), len(datasets.adult("adult.test"))) == (32_561, 16_281)
    assert int(datasets.labels(datasets.adult("adult.test")).sum()) == 3_846


def owners(count: int) -> list[datasets.Owner]:
    """Guest and host of credit cards with a few columns of random values; the label follows one of each."""
    draw = np.random.default_rng(3)
    guest, host = ({f"{name}_x0": draw.normal(0, 1, count)} for name in ("guest", "host"))
    odds = 2 * guest["guest_x0"] + 2 * host["host_x0"]
    guest[datasets.DEFAULT] = (draw.random(count) < 1 / (1 + np.exp(-odds))).astype(float)
    persons = np.arange(count)
    return [datasets.Owner("guest", persons, guest), datasets.Owner("host", persons, host)]


def test_the_joined_model_foretells_who_was_held_out_better_than_the_guest_alone():
    guest, host = owners(700)
    alone, both = joined.alone_auc(guest, 8), joined.joined_auc(guest, host, 8)
    assert 0.6 < alone < both - 0.02


def test_the_peers_fit_imports_nothing_that_its_environment_lacks():
    tree = ast.parse(ebm.FIT.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_a_peer_without_an_answer_says_why(monkeypatch):
    monkeypatch.setattr(ebm, "interpreter", lambda _: sys.executable)
    table = pa.table({"x": [1, 2], "y": [0, 1]})
    with pytest.raises(RuntimeError, match=r"(?s)no answer: .*Error"):
        ebm.chances(table, table, "y", {"x": (0, 3)}, epsilon="1", delta="0.00001", seed=1)
