"""The functions of RFC 9497 give its vectors, and refuse whatever is not theirs."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.psi import dleq, group, oprf
from protocols.psi.oprf import KeyPair, Mode

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/vectors/oprf-ristretto255.json").read_text())
CASES = [
    pytest.param(mode, vector, id=f"{Mode(mode['mode']).name}-{number}")
    for mode in VECTORS["modes"]
    for number, vector in enumerate(mode["vectors"], start=1)
]
KEY = oprf.derive_key_pair(bytes(32), b"a test", Mode.VOPRF)


def drawn(*scalars: str):
    """Return a source of bytes from which `random_scalar` takes just these."""
    left = [bytes.fromhex(scalar) + bytes(32) for scalar in scalars]
    return lambda count: left.pop(0)[:count]


def encoded(hexes):
    return group.points(bytes.fromhex("".join(hexes)))


@pytest.mark.parametrize("mode", VECTORS["modes"], ids=lambda mode: Mode(mode["mode"]).name)
def test_keys_are_derived_as_in_rfc_9497(mode):
    seed, info = bytes.fromhex(VECTORS["seed"]), bytes.fromhex(VECTORS["key_info"])
    pair = oprf.derive_key_pair(seed, info, Mode(mode["mode"]))
    assert pair.secret.hex() == mode["secret"]
    assert pair.public.hex() == mode.get("public", pair.public.hex())
    assert mode["secret"] not in repr(pair)


@pytest.mark.parametrize(("mode", "vector"), CASES)
def test_every_message_and_output_is_that_of_rfc_9497(mode, vector):
    kind = Mode(mode["mode"])
    pair = oprf.derive_key_pair(bytes.fromhex(VECTORS["seed"]), bytes.fromhex(VECTORS["key_info"]), kind)
    inputs = [bytes.fromhex(item) for item in vector["inputs"]]
    blinded = oprf.blind(inputs, kind, drawn(*vector["blinds"]))
    assert blinded.elements.tobytes().hex() == "".join(vector["blinded"])
    scalars = [vector["proof_scalar"]] if kind is Mode.VOPRF else []
    evaluated, proof = oprf.blind_evaluate(pair, blinded.elements, kind, drawn(*scalars))
    assert evaluated.tobytes().hex() == "".join(vector["evaluated"])
    assert proof.hex() == vector.get("proof", "")
    oprf.check_evaluation(pair.public, blinded.elements, evaluated, proof, kind)
    outputs = oprf.finalize(inputs, blinded, evaluated)
    assert [output.hex() for output in outputs] == vector["outputs"]
    assert oprf.evaluate(pair, inputs, kind) == outputs


@settings(max_examples=12, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=90), st.sampled_from(Mode), st.integers())
def test_blind_evaluation_is_the_function_of_every_batch(inputs, mode, seed):
    rand = seeded(seed)
    blinded = oprf.blind(inputs, mode, rand)
    evaluated, proof = oprf.blind_evaluate(KEY, blinded.elements, mode, rand)
    oprf.check_evaluation(KEY.public, blinded.elements, evaluated, proof, mode)
    outputs = oprf.finalize(inputs, blinded, evaluated)
    assert outputs == oprf.evaluate(KEY, inputs, mode)
    assert len(set(outputs)) == len(set(inputs))


def test_no_inputs_have_no_outputs():
    assert oprf.evaluate(KEY, [], Mode.VOPRF) == []


def test_one_input_is_blinded_differently_every_time():
    rand = seeded("blinds")
    found = oprf.blind([b"x"] * 20, Mode.OPRF, rand).elements
    assert len(np.unique(found, axis=0)) == 20


def test_the_modes_are_unrelated_functions():
    assert oprf.evaluate(KEY, [b"x"], Mode.OPRF) != oprf.evaluate(KEY, [b"x"], Mode.VOPRF)


def proved(count: int = 5):
    rand = seeded("proofs")
    before = group.hash_to_group([b"%d" % i for i in range(count)], b"test")
    after = group.power(before, KEY.secret)
    proof = dleq.prove(KEY.secret, group.BASE, KEY.public, before, after, b"context", rand)
    return before, after, proof


def refused(*arguments, code: str = "bad-proof") -> None:
    with pytest.raises(ProtocolAborted) as error:
        dleq.verify(group.BASE, *arguments)
    assert error.value.code == code


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 129])
def test_a_proof_holds_for_what_it_was_made_of(count):
    before, after, proof = proved(count)
    assert len(proof) == dleq.PROOF_BYTES
    dleq.verify(group.BASE, KEY.public, before, after, proof, b"context")


def test_a_proof_of_another_key_statement_or_context_is_refused():
    before, after, proof = proved()
    other = oprf.derive_key_pair(bytes(32), b"another", Mode.VOPRF)
    refused(other.public, before, after, proof, b"context")
    refused(KEY.public, before, after, proof, b"contexu")
    refused(KEY.public, before[::-1].copy(), after[::-1].copy(), proof, b"context")
    refused(KEY.public, before[:-1], after[:-1], proof, b"context")
    swapped = after[[1, 0, 2, 3, 4]]
    refused(KEY.public, before, swapped, proof, b"context")


def test_one_point_raised_to_another_key_spoils_the_proof():
    before, after, _ = proved()
    other = oprf.derive_key_pair(bytes(32), b"another", Mode.VOPRF)
    wrong = after.copy()
    wrong[3] = group.power(before[3:4], other.secret)[0]
    proof = dleq.prove(KEY.secret, group.BASE, KEY.public, before, wrong, b"context", seeded(1))
    refused(KEY.public, before, wrong, proof, b"context")


def test_errors_that_cancel_without_weights_are_found():
    # (after_0 + d, after_1 - d): the plain sums would still agree.
    before, after, _ = proved(2)
    d = group.hash_to_group([b"d"], b"test")
    wrong = np.concatenate((group.add(after[:1], d), group.subtract(after[1:], d)))
    proof = dleq.prove(KEY.secret, group.BASE, KEY.public, before, wrong, b"context", seeded(2))
    refused(KEY.public, before, wrong, proof, b"context")


def test_every_changed_byte_of_a_proof_is_noticed():
    before, after, proof = proved(1)
    for at in range(len(proof)):
        changed = bytearray(proof)
        changed[at] ^= 1 << at % 7
        refused(KEY.public, before, after, bytes(changed), b"context")


@pytest.mark.parametrize("code", ["bad-proof", "bad-point"])
def test_an_error_about_a_proof_keeps_nothing_of_the_last_one(code):
    before, after, proof = proved(1)
    wrong = proof[:32] + proof[:32] if code == "bad-proof" else proof
    spoilt = after if code == "bad-proof" else np.full_like(after, 0xFF)
    errors = []
    for _ in range(2):
        with pytest.raises(ProtocolAborted) as error:
            oprf.check_evaluation(KEY.public, before, spoilt, wrong, Mode.VOPRF)
        errors.append(error.value)
    assert [each.code for each in errors] == [code, code]
    assert errors[0] is not errors[1]


def test_a_proof_has_one_form():
    before, after, proof = proved(1)
    c, s = proof[:32], proof[32:]
    above = (int.from_bytes(s, "little") + group.ORDER).to_bytes(32, "little")
    for spoilt in (b"", proof[:-1], proof + b"\0", c + above, bytes(32) + s, c + bytes(32)):
        refused(KEY.public, before, after, spoilt, b"context")


def test_points_of_a_statement_are_decoded_strictly():
    before, after, proof = proved(2)
    for spoilt in (bytes(32), b"\xff" * 32, group.BASE[:-1] + bytes([group.BASE[-1] | 0x80])):
        wrong = after.copy()
        wrong[1] = np.frombuffer(spoilt, dtype=np.uint8)
        refused(KEY.public, before, wrong, proof, b"context", code="bad-point")
    refused(bytes(32), before, after, proof, b"context", code="bad-point")


def test_a_statement_has_as_many_points_on_both_sides_and_at_least_one():
    before, after, proof = proved(2)
    for one, other in ((before, after[:1]), (before[:0], after[:0])):
        with pytest.raises(ValueError, match="expected 1 to"):
            dleq.verify(group.BASE, KEY.public, one, other, proof, b"context")


def test_without_a_proof_none_is_accepted():
    before, after, proof = proved(1)
    oprf.check_evaluation(KEY.public, before, after, b"", Mode.OPRF)
    with pytest.raises(ProtocolAborted):
        oprf.check_evaluation(KEY.public, before, after, proof, Mode.OPRF)


def test_two_proofs_of_one_statement_share_no_scalar():
    before, after, _ = proved(1)
    rand = seeded("two")
    one, two = (dleq.prove(KEY.secret, group.BASE, KEY.public, before, after, b"c", rand) for _ in range(2))
    assert one[:32] != two[:32]
    assert one[32:] != two[32:]


def test_a_seed_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 32"):
        oprf.derive_key_pair(bytes(31), b"", Mode.OPRF)
    assert isinstance(KEY, KeyPair)
    assert hashlib.sha512().digest_size == oprf.OUTPUT_BYTES
