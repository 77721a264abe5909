"""Credit defaults of two owners' columns: joining pays, by as much as is said, played whole on all rows."""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_joined_case import train_case, train_spec, watched

from protocols.joined.params import MATCHER
from protocols.training.joined.columns import Coding
from protocols.training.joined.cubic import Cubic
from protocols.training.joined.descent import Descent
from protocols.training.joined.params import Params
from protocols.training.schema import Schema

DATA = Path(__file__).parents[5] / "shared" / "data"
GUEST = DATA / "fate_default_credit_hetero_guest.csv"
HOST = DATA / "fate_default_credit_hetero_host.csv"

AMOUNTS = ["-1.5", "-1", "-0.75", "-0.5", "-0.25", "0", "0.25", "0.5", "1", "1.5", "2", "3"]
"""Edges of standardised amounts: round numbers, public before any row is looked at."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not GUEST.exists(), reason="needs the credit defaults in ../shared/data"),
]


@cache
def table() -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, int]]:
    """Return ids, columns by slot, and whose each is; the label is `y`."""

    def read(path: Path) -> tuple[list[str], np.ndarray]:
        with path.open() as file:
            header, *rows = csv.reader(file)
        return header, np.array(rows, dtype=np.float64)

    (guest_names, guest), (host_names, host) = read(GUEST), read(HOST)
    guest, host = guest[np.argsort(guest[:, 0])], host[np.argsort(host[:, 0])]
    assert (guest[:, 0] == host[:, 0]).all()
    columns, owner = {}, {}
    for number, prefix, names, rows in ((1, "g", guest_names, guest), (2, "h", host_names, host)):
        for at, name in enumerate(names[1:], start=1):
            slot = "y" if name == "y" else f"{prefix}_{name}"
            columns[slot], owner[slot] = rows[:, at], number
    return guest[:, 0].astype(int), columns, owner


def edges(values: np.ndarray) -> list[str]:
    """Return public edges: between all values of a column of few, else round numbers."""
    found = np.unique(values)
    return [f"{edge:.4f}" for edge in (found[1:] + found[:-1]) / 2] if len(found) <= 12 else AMOUNTS


def asked(slots: list[str]) -> list[dict[str, Any]]:
    _, columns, owner = table()
    return [{"source": f"source-{owner[s]}", "slot": s, "edges": edges(columns[s])} for s in slots]


def auc(scores: np.ndarray, y: np.ndarray) -> float:
    _, rank, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positive = int(y.sum())
    return float(
        (middle[rank][y == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive))
    )


def coded(codings: tuple[Coding, ...], rows: np.ndarray) -> np.ndarray:
    _, columns, _ = table()
    return np.stack(
        [
            np.searchsorted([float(edge) for edge in each.edges], columns[each.slot][rows], side="right")
            for each in codings
        ],
        axis=1,
    )


def alone(rounds: int) -> float:
    """Return what the guest's own columns foretell, trained in the same way on them alone."""
    ids, columns, _ = table()
    slots = [slot for slot in columns if slot.startswith("g_")]
    params = Params.of(train_spec(columns=asked([*slots, "h_x0"]), label=LABEL, holdout=0, rounds=rounds))
    codings = params.features[:-1]
    schema = Schema(tuple(each.feature for each in codings))
    held = ids % 5 == 0
    codes, y = coded(codings, ~held) + schema.offsets[:-1], columns["y"][~held].astype(int)
    model = Descent(schema, Cubic(8, 11), rounds=rounds, step=1.0)
    state, cubic = model.start(), model.cubic
    for _ in range(rounds):
        weights = model.weights(state)
        v = weights[codes].sum(axis=1) + weights[-1]
        r = cubic.whole[0] + (cubic.whole[1] - v * v) * v - y * cubic.unit
        total = np.bincount(codes.reshape(-1), np.repeat(r.astype(float), codes.shape[1]), schema.size)
        total[-1] = float(r.astype(float).sum())
        state = model.advance(state, total, float(len(y)))
    weights = model.weights(state)
    scores = weights[coded(codings, held) + schema.offsets[:-1]].sum(axis=1)
    return auc(scores, columns["y"][held])


LABEL = {"source": "source-1", "slot": "y", "at_least": "1"}


def joined(seed: int, **params: Any) -> float:
    """Return what all columns foretell: the whole job on four fifths of the persons, scored on the others."""
    ids, columns, _ = table()
    slots = [slot for slot in columns if slot != "y"]
    spec = train_spec(columns=asked(slots), label=LABEL, holdout=0, **params)
    held = ids % 5 == 0
    lists = []
    for prefix, label in (("g_", ["y"]), ("h_", [])):
        own = [slot for slot in slots if slot.startswith(prefix)] + label
        values = np.stack([columns[slot][~held] for slot in own], axis=1)
        lists.append(
            [
                {"who": who, **dict(zip(own, row, strict=True))}
                for who, row in zip(ids[~held].tolist(), values.tolist(), strict=True)
            ]
        )
    case = train_case(spec, lists, seed=seed)
    published = watched(case, MATCHER, "_publish")
    case.released()
    weights = published[0][0][0].weights
    features = Params.of(spec).features
    places = coded(features, held) + Params.of(spec).schema.offsets[:-1]
    return auc(weights[places].sum(axis=1), columns["y"][held])


def test_joining_pays_on_credit_defaults():
    """Without noise: the AUC of all columns is above that of the guest's alone by 0.05 or more."""
    guest = alone(60)
    both = joined(1, rounds=60)
    print(f"joined {both:.4f} guest {guest:.4f} gain {both - guest:.4f}")
    assert 0.69 < guest < 0.72
    assert both - guest >= 0.05


@pytest.mark.parametrize("seed", [1, 2])
def test_at_epsilon_one_it_still_pays(seed):
    both = joined(seed, rounds=40, epsilon="1", delta="0.00001")
    print(f"epsilon 1: {both:.4f}")
    assert both >= 0.755


def test_one_release_of_moments_pays_too():
    both = joined(1, method="adassp", rounds=None)
    print(f"adassp {both:.4f}")
    assert both - alone(60) >= 0.05
