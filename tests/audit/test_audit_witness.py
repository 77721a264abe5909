"""What a witness answers, byte for byte, and that its size never goes back."""

import json
import threading
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from witnessing import LOG_VKEY, ORIGIN, Witness, branch, proof, signed

from audit.merkle import MAX_SIZE
from audit.note import Checkpoint, Note, NoteSignature, VerifierKey, verify_note
from audit.witness import (
    NO_CONSISTENCY_PROOF,
    SPLIT_VIEW,
    CosignerKeys,
    MemoryStore,
    add_checkpoint,
    decode_request,
    encode_request,
)
from protocols.envelope import KeySigner
from protocols.errors import DecodeError, SignatureInvalid, StateConflict

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "tlog_witness.json").read_text())
LOG = VerifierKey.parse(VECTORS["log_vkey"])
WITNESS = VerifierKey.parse(VECTORS["witness_vkey"])
KEYS = CosignerKeys(
    WITNESS.name,
    KeySigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["witness_seed"]))),
)


def sign(text: bytes) -> tuple[NoteSignature, ...]:
    return KEYS.sign(text, VECTORS["time"])


def knows(origin: str) -> list[VerifierKey]:
    return [LOG] if origin == LOG.name else []


def store_of(size: int) -> MemoryStore:
    store = MemoryStore()
    if size:
        store.notes[LOG.name] = VECTORS["known"][str(size)].encode()
    return store


def known_size(store: MemoryStore, origin: str = LOG.name) -> int:
    note = store.get(origin)
    return 0 if note is None else Checkpoint.decode(Note.decode(note).text).size


def request(leaves: tuple[bytes, ...], old: int) -> bytes:
    return encode_request(old, proof(old, leaves), signed(leaves))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda c: c["name"])
def test_the_answer_is_the_expected_one_byte_for_byte(case):
    store = store_of(case["before"])
    held = store.get(LOG.name)
    answer = add_checkpoint(case["request"].encode(), known=knows, store=store, sign=sign)
    assert (answer.status, answer.body.decode()) == (case["status"], case["body"])
    assert known_size(store) == case["after"]
    changed = answer.status == 200 and (held is None or case["after"] != case["before"])
    assert answer.stored == (store.get(LOG.name) if changed else None)
    if not changed:
        assert store.get(LOG.name) == held
    assert ("" if answer.conflict is None else answer.conflict.code) == case["conflict"]


def test_every_status_of_the_specification_is_in_the_table():
    assert {case["status"] for case in VECTORS["cases"]} == {200, 400, 403, 404, 409, 422}


@pytest.mark.parametrize("case", [c for c in VECTORS["cases"] if c["conflict"]], ids=lambda c: c["name"])
def test_of_a_conflict_both_checkpoints_are_evidence_without_the_witness(case):
    store = store_of(case["before"])
    answer = add_checkpoint(case["request"].encode(), known=knows, store=store, sign=sign)
    conflict = answer.conflict
    assert conflict is not None
    assert (conflict.log, answer.log) == (LOG.name, LOG.name)
    ours, signers = verify_note(conflict.cosigned, [LOG, WITNESS])
    assert (signers, Checkpoint.decode(ours.text).size) == ((LOG, WITNESS), case["before"])
    theirs, signers = verify_note(conflict.conflicting, [LOG])
    assert signers == (LOG,)
    told = Checkpoint.decode(theirs.text)
    assert (conflict.size, conflict.root) == (told.size, told.root)
    same_size = told.size == Checkpoint.decode(ours.text).size
    assert conflict.code == (SPLIT_VIEW if same_size else NO_CONSISTENCY_PROOF)


def test_only_verified_signatures_are_kept_whatever_was_sent_along():
    junk = "".join(f"— elsewhere.example/{n} AAAAAAAA\n" for n in range(90)).encode()
    witness = Witness("health.gz.example/node-b", mldsa=True)
    answer = witness.answer(encode_request(0, [], signed(branch("a", 3)) + junk))
    assert answer.status == 200
    assert answer.stored is not None
    note, signers = verify_note(answer.stored, [LOG_VKEY, *witness.keys.vkeys])
    assert signers == (LOG_VKEY, *witness.keys.vkeys)
    assert len(note.signatures) == 3
    assert answer.body.decode() == "".join(map(str, note.signatures[1:]))


def test_a_witness_key_that_is_listed_for_a_log_does_not_speak_for_it():
    cosigner = VerifierKey(ORIGIN, 4, LOG_VKEY.public_key)
    store = MemoryStore()
    answer = add_checkpoint(
        request(branch("a", 3), 0), known=lambda _: [cosigner, WITNESS], store=store, sign=sign
    )
    assert (answer.status, store.notes) == (404, {})


def test_while_a_log_changes_its_key_either_key_will_do_but_a_wrong_signature_will_not():
    other = VerifierKey(ORIGIN, 1, WITNESS.public_key)
    body = request(branch("a", 3), 0)
    wrong = body + str(NoteSignature(ORIGIN, other.key_id, bytes(64))).encode()
    for sent, status in ((body, 200), (wrong, 403)):
        store = MemoryStore()
        answer = add_checkpoint(sent, known=lambda _: [other, LOG_VKEY], store=store, sign=sign)
        assert answer.status == status
        assert (store.get(ORIGIN) is not None) == (status == 200)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_fails_is_not_answered_for_and_the_next_time_it_is(when):
    witness = Witness("health.gz.example/node-b")
    assert witness.answer(request(branch("a", 3), 0)).status == 200
    witness.store.fails = when
    with pytest.raises(StateConflict):
        witness.answer(request(branch("a", 5), 3))
    assert witness.size == (3 if when == "before" else 5)
    again = witness.answer(request(branch("a", 5), 3))
    if when == "after":
        # It stands already; the log is told so, and asks from there.
        assert (again.status, again.body) == (409, b"5\n")
        again = witness.answer(request(branch("a", 5), 5))
    assert again.status == 200
    assert witness.keys.vkeys[0].holds(
        Note.decode(signed(branch("a", 5))).text,
        NoteSignature.parse(again.body.decode().rstrip("\n")).signature,
    )


def test_a_signer_that_fails_leaves_the_store_as_it_was():
    store = MemoryStore()

    def broken(text: bytes) -> tuple[NoteSignature, ...]:
        raise SignatureInvalid("the key is not at hand", code="signer-mismatch")

    with pytest.raises(SignatureInvalid):
        add_checkpoint(request(branch("a", 3), 0), known=lambda _: [LOG_VKEY], store=store, sign=broken)
    assert store.notes == {}


class Turns(MemoryStore):
    """Lets the steps of several threads happen in the given order only; then in any."""

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order = list(order)
        self.moved = threading.Condition()
        self.sizes = [0]

    def step(self, act: Callable[[], Any]) -> Any:
        me = threading.current_thread().name
        with self.moved:
            assert self.moved.wait_for(lambda: not self.order or self.order[0] == me, timeout=10)
            del self.order[:1]
            try:
                return act()
            finally:
                note = self.notes[ORIGIN]
                self.sizes.append(Checkpoint.decode(Note.decode(note).text).size)
                self.moved.notify_all()

    def get(self, origin: str) -> bytes | None:
        return self.step(lambda: MemoryStore.get(self, origin))

    def swap(self, origin: str, expected: bytes | None, new: bytes) -> bool:
        return self.step(lambda: MemoryStore.swap(self, origin, expected, new))

    def leave(self) -> None:
        me = threading.current_thread().name
        with self.moved:
            self.order = [name for name in self.order if name != me]
            self.moved.notify_all()


@pytest.mark.parametrize("order", sorted(set(permutations("AABB"))), ids="".join)
@pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (3, 2), (5, 5)], ids=str)
def test_of_two_requests_at_a_time_none_rolls_the_other_back(order, sizes):
    """The race of the specification: N and N + K, checked both, then stored in the wrong order."""
    history = branch("a", 5)
    store = Turns(order)
    store.notes[ORIGIN] = signed(history[:2])
    answers = {}

    def ask(size: int) -> None:
        body = request(history[:size], 2)
        answers[threading.current_thread().name] = add_checkpoint(
            body, known=lambda _: [LOG_VKEY], store=store, sign=sign
        )
        store.leave()

    threads = [
        threading.Thread(target=ask, args=(size,), name=name) for name, size in zip("AB", sizes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert set(answers) == {"A", "B"}
    assert store.sizes == sorted(store.sizes), "the size never goes back"
    given = dict(zip("AB", sizes, strict=True))
    cosigned = [given[name] for name in answers if answers[name].status == 200]
    # Whoever was cosigned was stored; whoever came second begins again from what stands now.
    assert max(cosigned) == store.sizes[-1]
    assert sum(size > 2 for size in cosigned) == 1
    for name, answer in answers.items():
        if answer.status != 200:
            assert (answer.status, answer.conflict) == (409, None)
            assert int(answer.body) in {2, *cosigned}, name


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_only_an_extension_of_what_was_cosigned_is_cosigned(held, size, common, old):
    """Whatever is asked, and from wherever: two histories that differ are never both cosigned."""
    witness = Witness("health.gz.example/node-b")
    mine, theirs = branch("a", held, common), branch("b", size, common)
    if held:
        assert witness.answer(request(mine, 0)).status == 200
    old = min(old, size)
    answer = witness.answer(request(theirs, old))
    extends = theirs[:held] == mine and size >= held
    assert (answer.status == 200) == (extends and old == held)
    if size >= held:
        asked_right = witness.answer(request(theirs, witness.size))
        assert (asked_right.status == 200) == extends
        assert (asked_right.conflict is not None) == (not extends)
    assert witness.size == (size if extends else held)


@given(st.data())
def test_a_request_with_one_bit_changed_is_never_cosigned_as_something_else(data):
    witness = Witness("health.gz.example/node-b")
    history = branch("a", 7)
    witness.answer(request(history[:5], 0))
    changed = bytearray(request(history, 5))
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    answer = witness.answer(bytes(changed))
    assert answer.status != 200
    assert witness.size == 5


@given(st.integers(0, MAX_SIZE), st.lists(st.binary(min_size=32, max_size=32), max_size=63))
def test_requests_round_trip(old, hashes):
    note = signed(branch("a", 3))
    parsed = decode_request(encode_request(old, hashes, note))
    assert (parsed.old, list(parsed.proof), parsed.note.encode()) == (old, hashes, note)
    assert parsed.checkpoint.size == 3


@given(st.binary(max_size=300))
def test_junk_is_no_request(junk):
    for body in (junk, b"old 0\n\n" + junk, b"old 0\n" + junk):
        with pytest.raises(DecodeError):
            decode_request(body)


NOTE = signed(branch("a", 3))


@pytest.mark.parametrize(
    "body",
    [
        encode_request(0, [], NOTE) + b"\xe2\x80\x94 a AAAAAAAA\n" * 5000,
        encode_request(0, [], NOTE) + b"\xe2\x80\x94 a AAAAAAAA\n" * 200_000,
        b"old " + b"9" * 10**6 + b"\n\n" + NOTE,
        b"old 0\n" + b"A" * 10**6 + b"\n\n" + NOTE,
        b"old 0\n" + (b"A" * 43 + b"=\n") * 20_000 + b"\n" + NOTE,
        encode_request(0, [], NOTE.replace(b"\n3\n", b"\n" + b"3" * 5000 + b"\n")),
        encode_request(0, [], NOTE.replace(b"\n\n", b"\n" + b"x\n" * 10**6 + b"\n")),
        encode_request(0, [], b"\n" * 10**6),
        b"\n" * 10**7,
        b"\xff" * 10**6,
        b"[" * 10**6,
    ],
    ids=range(11),
)
def test_a_request_that_is_too_much_is_refused(body):
    witness = Witness("health.gz.example/node-b")
    assert witness.answer(body).status == 400
    assert witness.size == 0
