"""Other people's software reads and verifies our logs, unmodified: sigstore-python, pymerkle and openssl.

sigstore-python checks notes and inclusion as Rekor's clients do, pymerkle proofs, openssl bare signatures.
The log is the golden one of 257 entries, which our own writer gives byte for byte (test_golden_logs).
"""

import base64
import random
import subprocess
from collections.abc import Callable
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pymerkle import ConsistencyProof, InclusionProof, InvalidProof, verify_consistency, verify_inclusion
from pymerkle.core import _consistency_path_layout, _inclusion_path_layout

from audit.merkle import (
    EMPTY_ROOT,
    ENTRIES,
    Tile,
    consistency_proof,
    cut_tile,
    decode_bundle,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_tiles,
    tile_at,
)
from audit.note import COSIGNATURE, Checkpoint, Note, VerifierKey, cosigned_at, cosigned_message

GOLDEN = Path(__file__).parents[1] / "vectors" / "golden_logs"
LOG = GOLDEN / "257"
SIZE = 257
PREFIXED = True
"""pymerkle hashes leaves and nodes after RFC 6962's prefix bytes."""


def vkey(name: str, kind: int) -> VerifierKey:
    keys = [VerifierKey.parse(line) for line in (GOLDEN / "vkeys" / name).read_text("utf-8").splitlines()]
    return next(key for key in keys if key.type == kind)


def read(size: int) -> Callable[[Tile], bytes]:
    """Tiles of the log as it was at `size`: those on disk, cut where it grew."""

    def tile(wanted: Tile) -> bytes:
        now = tile_at(SIZE, wanted.level, wanted.index)
        return cut_tile(now, (LOG / now.path).read_bytes(), wanted.width)

    assert size <= SIZE
    return tile


def root(size: int) -> bytes:
    return root_from_tiles(read(size), size)


@pytest.fixture(scope="module")
def entries() -> list[bytes]:
    bundles = [tile_at(SIZE, ENTRIES, index) for index in range(2)]
    return [entry for each in bundles for entry in decode_bundle((LOG / each.path).read_bytes(), each.width)]


@pytest.fixture(scope="module")
def positions() -> list[tuple[int, int]]:
    """Pairs (index or old size, size): the edges, and some drawn with a fixed seed."""
    draw = random.Random(6962)
    sizes = [draw.randrange(2, SIZE + 1) for _ in range(150)]
    drawn = [(draw.randrange(size), size) for size in sizes]
    return [(0, 1), (0, 2), (1, 2), (0, 256), (255, 256), (0, 257), (255, 257), (256, 257), *drawn]


# ---------------------------------------------------------------- sigstore-python


def sigstore(name: str, *expected: str) -> ModuleType:
    """A module of sigstore-python, of those that have no published interface."""
    module = import_module(f"sigstore._internal.{name}")
    missing = [each for each in expected if not hasattr(module, each)]
    if missing:
        pytest.skip(f"this sigstore-python keeps {', '.join(missing)} elsewhere")
    return module


@pytest.mark.parametrize("size", [0, 1, 257])
@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.cosigned"])
def test_sigstore_python_reads_our_checkpoints(size, name):
    rekor = sigstore("rekor.checkpoint", "SignedCheckpoint", "LogCheckpoint", "SignedNote")
    text = (GOLDEN / str(size) / name).read_text("utf-8")
    theirs = rekor.SignedCheckpoint.from_text(text)
    note = Note.decode(text.encode())
    ours = Checkpoint.decode(note.text)
    assert theirs.checkpoint.origin == ours.origin == "golden.example/node-a/journal/1"
    assert (theirs.checkpoint.log_size, theirs.checkpoint.log_hash) == (size, ours.root.hex())
    assert theirs.checkpoint.other_content == []
    assert theirs.signed_note.note.encode() == note.text
    assert [(s.name, s.sig_hash, base64.b64decode(s.signature)) for s in theirs.signed_note.signatures] == [
        (s.name, s.key_id, s.signature) for s in note.signatures
    ]


def test_sigstore_python_verifies_our_signature_and_no_other():
    rekor = sigstore("rekor.checkpoint", "SignedNote")
    trust = sigstore("trust", "Keyring", "Key")
    errors = import_module("sigstore.errors")
    models = import_module("sigstore_models.common.v1")

    def keyring(public_key: bytes) -> object:
        der = Ed25519PublicKey.from_public_bytes(public_key).public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        key = models.PublicKey(
            raw_bytes=base64.b64encode(der), key_details=models.PublicKeyDetails.PKIX_ED25519
        )
        return trust.Keyring([key])

    log = vkey("log", 1)
    text = (LOG / "checkpoint.cosigned").read_text("utf-8")
    rekor.SignedNote.from_text(text).verify(keyring(log.public_key), log.key_id)
    for changed, key in (
        (text.replace("\n257\n", "\n258\n"), log.public_key),
        (text, vkey("witness", COSIGNATURE).public_key),
    ):
        with pytest.raises(errors.VerificationError):
            rekor.SignedNote.from_text(changed).verify(keyring(key), log.key_id)


def test_sigstore_python_verifies_our_inclusion_proofs(entries, positions):
    merkle = sigstore("merkle", "verify_merkle_inclusion")
    errors = import_module("sigstore.errors")

    def check(index: int, size: int, body: bytes, proof: list[bytes]) -> None:
        said = SimpleNamespace(log_index=index, tree_size=size, hashes=proof, root_hash=root(size))
        merkle.verify_merkle_inclusion(
            SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=said, canonicalized_body=body))
        )

    for index, size in positions:
        proof = inclusion_proof(read(size), index, size)
        check(index, size, entries[index], proof)
        with pytest.raises(errors.VerificationError):
            check(index, size, entries[index] + b" ", proof)


# ---------------------------------------------------------------- pymerkle


def test_pymerkle_verifies_our_inclusion_proofs(entries, positions):
    for index, size in positions:
        rule, _ = _inclusion_path_layout(index + 1, size)
        leaf = leaf_hash(entries[index])
        path = [leaf, *inclusion_proof(read(size), index, size)]
        proof = InclusionProof("sha256", PREFIXED, size, index + 1, rule, path)
        verify_inclusion(leaf, root(size), proof, index=index + 1, size=size, algorithm="sha256")
        with pytest.raises(InvalidProof):
            verify_inclusion(leaf, root(size - 1), proof, index=index + 1, size=size, algorithm="sha256")


def as_pymerkle(entries: list[bytes], old: int, new: int) -> ConsistencyProof:
    """Our consistency proof in pymerkle's form.

    RFC 6962 starts with two neighbours: the old tree's last complete subtree, left out where that is the
    whole old tree, and what the new tree has to its right. pymerkle takes the latter apart, down to the first
    leaf that the old tree lacked: its parts are those of that leaf's inclusion proof.
    """
    ours = consistency_proof(read(new), old, new)
    if old == new:
        path = [root(old)]
    else:
        left, right, *rest = ours if old & (old - 1) else [root(old), *ours]
        leaf, within = leaf_hash(entries[old]), inclusion_proof(read(new), old, new)
        parts = within[: len(within) - 1 - len(rest)]
        assert reduce(node_hash, parts, leaf) == right
        path = [leaf, *parts, left, *rest]
    rule, subset, _ = _consistency_path_layout(old, new)
    return ConsistencyProof("sha256", PREFIXED, new, old, rule, subset, path)


def test_pymerkle_verifies_our_consistency_proofs(entries, positions):
    for old, new in [*((old, new) for old, new in positions if old), (1, 1), (256, 256), (257, 257)]:
        proof = as_pymerkle(entries, old, new)
        verify_consistency(root(old), root(new), proof, old, new, "sha256")
        with pytest.raises(InvalidProof):
            verify_consistency(EMPTY_ROOT, root(new), proof, old, new, "sha256")


# ---------------------------------------------------------------- openssl


def openssl_verifies(folder: Path, key: VerifierKey, message: bytes, signature: bytes) -> bool:
    pem = Ed25519PublicKey.from_public_bytes(key.public_key).public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    for name, data in (("key.pem", pem), ("message", message), ("signature", signature)):
        (folder / name).write_bytes(data)
    command = "openssl pkeyutl -verify -pubin -inkey key.pem -rawin -in message -sigfile signature"
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, timeout=30)
    assert (done.returncode == 0) == ("Signature Verified Successfully" in done.stdout)
    return done.returncode == 0


def test_openssl_verifies_the_logs_signature_over_the_text_as_it_stands(tmp_path):
    text, _, lines = (LOG / "checkpoint").read_bytes().partition(b"\n\n")
    signature = base64.b64decode(lines.split()[2])[4:]
    log = vkey("log", 1)
    assert openssl_verifies(tmp_path, log, text + b"\n", signature)
    assert not openssl_verifies(tmp_path, log, text, signature)


def test_openssl_verifies_a_witness_over_its_time_and_the_text(tmp_path):
    note = Note.decode((LOG / "checkpoint.cosigned").read_bytes())
    witness = vkey("witness", COSIGNATURE)
    (line,) = (line for line in note.signatures if line.key_id == witness.key_id)
    time_s = cosigned_at(line.signature)
    assert cosigned_message(witness, note.text, time_s).startswith(
        b"cosignature/v1\ntime 1767312000\ngolden."
    )
    by_hand = b"cosignature/v1\ntime %d\n" % time_s + note.text
    assert openssl_verifies(tmp_path, witness, by_hand, line.signature[8:])
    later = b"cosignature/v1\ntime %d\n" % (time_s + 1) + note.text
    assert not openssl_verifies(tmp_path, witness, later, line.signature[8:])
