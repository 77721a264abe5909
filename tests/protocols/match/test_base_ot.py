"""Base oblivious transfers: the chosen key and no other, bound to the attempt; points checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import CTX, seeded

from protocols.errors import ProtocolAborted
from protocols.match.base_ot import Chooser, answer
from protocols.psi.group import BASE

BAD = json.loads((Path(__file__).parents[2] / "vectors/kkrt.json").read_text())["bad_points"]
COUNT = 24
CHOICES = np.random.default_rng(2).integers(0, 2, COUNT).astype(bool)
PLACES = np.arange(COUNT)


def chooser(ctx=CTX):
    return Chooser(CHOICES, ctx, seeded("chooser"))


def test_a_chooser_has_the_key_of_each_bit_and_never_the_other():
    first = chooser()
    reply, pairs = answer(first.message, COUNT, CTX, seeded("answerer"))
    keys = first.keys(reply)
    assert (keys == pairs[PLACES, CHOICES.astype(int)]).all()
    assert not (keys == pairs[PLACES, 1 - CHOICES.astype(int)]).all(axis=1).any()
    assert len(np.unique(pairs.reshape(-1, 16), axis=0)) == 2 * COUNT


def test_keys_belong_to_one_attempt():
    first, other = chooser(), bytes(32)
    reply, pairs = answer(first.message, COUNT, other, seeded("answerer"))
    assert not (first.keys(reply)[:, None] == pairs).all(axis=2).any()


def test_one_message_looks_the_same_whatever_the_bits():
    # The same draws with every bit turned: each pair still is one point that was drawn and one that was
    # computed, and no point appears in both messages at the place it had.
    turned = Chooser(~CHOICES, CTX, seeded("chooser"))
    mine = np.frombuffer(chooser().message, dtype=np.uint8).reshape(COUNT, 2, 32)
    theirs = np.frombuffer(turned.message, dtype=np.uint8).reshape(COUNT, 2, 32)
    drawn = PLACES, 1 - CHOICES.astype(int)
    assert (mine[drawn] == theirs[PLACES, CHOICES.astype(int)]).all()
    assert not (mine == theirs).all(axis=2).any()


@pytest.mark.parametrize("bad", BAD, ids=[each["name"] for each in BAD])
@pytest.mark.parametrize("place", [0, 2 * COUNT - 1])
def test_a_point_that_is_none_or_the_identity_is_refused(bad, place):
    first, point = chooser(), bytes.fromhex(bad["point"])
    message = first.message[: 32 * place] + point + first.message[32 * (place + 1) :]
    with pytest.raises(ProtocolAborted) as refused:
        answer(message, COUNT, CTX, seeded("answerer"))
    assert refused.value.code == bad["code"]
    with pytest.raises(ProtocolAborted) as refused:
        first.keys(point)
    assert refused.value.code == bad["code"]


def test_a_point_that_would_make_a_key_of_the_identity_is_refused():
    from protocols.match.base_ot import _shift
    from protocols.psi import group

    zero, side = np.zeros((1, 32), dtype=np.uint8), np.zeros(1, dtype=np.intp)
    one = np.frombuffer(BASE, dtype=np.uint8).reshape(1, 32)
    crafted = group.subtract(zero, _shift(one, side, CTX)).tobytes() + BASE
    with pytest.raises(ProtocolAborted) as refused:
        answer(crafted, 1, CTX, seeded("answerer"))
    assert refused.value.code == "bad-point"


@pytest.mark.parametrize("cut", [-1, 1])
def test_messages_of_another_length_are_refused(cut):
    first = chooser()
    for body, take in (
        (first.message, lambda body: answer(body, COUNT, CTX, seeded("answerer"))),
        (BASE, first.keys),
    ):
        with pytest.raises(ProtocolAborted) as refused:
            take(body[:-1] if cut < 0 else body + b"\0")
        assert refused.value.code == "bad-length"
