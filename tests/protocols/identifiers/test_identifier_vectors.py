"""Vectors written by hand from the standards, good and bad; a bad one names the reason."""

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from protocols.identifiers import RULES, AreaTable, Reason, TypedKeys, normalise, normalise_mixed

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "identifiers.json").read_text("utf-8"))
GOOD, BAD = VECTORS["good"], VECTORS["bad"]


def _title(vector):
    return f"{vector['type']}: {vector['why']}"


def _bytes(vector):
    if "value_hex" in vector:
        return bytes.fromhex(vector["value_hex"])
    return None if vector["value"] is None else vector["value"].encode()


def _normalise(vector) -> TypedKeys:
    return normalise(
        pa.array([_bytes(vector)], pa.binary()),
        vector["type"],
        as_of=date.fromisoformat(vector.get("as_of", VECTORS["as_of"])),
        areas=AreaTable.of(vector.get("areas", VECTORS["areas"])),
    )


@pytest.mark.parametrize("vector", GOOD, ids=_title)
def test_a_good_identifier_has_one_spelling(vector):
    typed = _normalise(vector)
    assert typed.keys.tolist() == [vector["key"].encode()]
    assert typed.counts() == {}


@pytest.mark.parametrize("vector", BAD, ids=_title)
def test_a_bad_identifier_is_refused_for_its_first_fault(vector):
    typed = _normalise(vector)
    assert typed.counts() == {vector["reason"]: 1}
    assert typed.keys.tolist() == []


def test_the_vectors_show_every_reason():
    shown = {vector["reason"] for vector in BAD} | {"accepted", "unknown-type"}
    assert shown == {reason.code for reason in Reason}
    assert VECTORS["rules"] == RULES


def test_all_vectors_in_one_mixed_column_give_the_same_answers():
    usual = [vector for vector in GOOD + BAD if "as_of" not in vector and "areas" not in vector]
    typed = normalise_mixed(
        pa.array([_bytes(vector) for vector in usual], pa.binary()),
        pa.array([vector["type"] for vector in usual]),
        as_of=date.fromisoformat(VECTORS["as_of"]),
        areas=AreaTable.of(VECTORS["areas"]),
    )
    assert typed.keys.tolist() == [vector["key"].encode() for vector in usual if "key" in vector]
    assert [Reason(number).code for number in typed.reasons] == [
        vector.get("reason", "accepted") for vector in usual
    ]
