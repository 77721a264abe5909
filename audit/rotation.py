"""Key rotation: how a log that one key opened comes to be signed by another, and how anyone can tell.

A log's keys form a chain. `log.open` names the first, each `key.rotate` entry the next, together with a
statement (`minshu-rotation/1`) that the key before and the key after have both signed. So which key signs
the checkpoint over n entries follows from those entries alone, and whoever holds any key of the chain on
paper can follow it to the others.
"""

from collections.abc import Sequence

from audit.entries import Entry
from audit.note import VerifierKey
from protocols.encoding import sha256_digest
from protocols.envelope import ROTATION, decode_envelope, key_id, verify
from protocols.errors import SignatureInvalid
from protocols.wire import Rotation


def read_statement(statement: bytes, keys: Sequence[VerifierKey], following: VerifierKey) -> Rotation:
    """Return what a rotation statement says.

    (1) The key after is one of the same log and never was its key before.
    (2) The key before and the key after have both signed.
    (3) The statement is about this log's node, and about these two keys.

    Args:
        statement: a DSSE envelope, as received.
        keys: the log's keys so far, oldest first; at least one.
        following: the key after.

    Raises:
        DecodeError: not a rotation statement.
        SignatureInvalid: not one that hands this log over from the last of `keys` to `following`.
    """
    previous = keys[-1]
    # (1) A key that was given up may be in a thief's hands; and a chain without a loop can replay nothing.
    if following.name != previous.name:
        raise SignatureInvalid("the key after is named for another log", code="wrong-origin")
    if any(following.public_key == key.public_key for key in keys):
        raise SignatureInvalid(
            "the key after was this log's key before",
            code="key-used-before",
            hint="make a new key; one that was given up never comes back",
        )
    # (2)
    envelope = decode_envelope(statement)
    both = {key_id(key.public_key): key.public_key for key in (previous, following)}
    verify(envelope, ROTATION, both, threshold=2)
    # (3)
    rotation = Rotation.decode(envelope.payload)
    if previous.name.rpartition("/journal/")[0] != rotation.node:
        raise SignatureInvalid("the statement is about another node", code="wrong-node")
    if (rotation.previous_key, rotation.next_key) != (previous.public_key, following.public_key):
        raise SignatureInvalid("the statement is about other keys than those that signed", code="wrong-keys")
    return rotation


def follow(
    entry: Entry, statement: bytes | None, keys: Sequence[VerifierKey]
) -> tuple[VerifierKey, Rotation]:
    """Return the key that a `key.rotate` entry hands the log to, and its statement's content.

    What entry and statement say of the tree, `size`, `root`, `journal_size` and `journal_root`, is only
    checked as far as numbers go; the roots are for the caller, who has the tree.

    Args:
        entry: the `key.rotate` entry.
        statement: the object that it names; None if that is missing.
        keys: the log's keys before it, oldest first; at least one.

    Raises:
        DecodeError: the statement is none.
        SignatureInvalid: it does not prove the hand-over that the entry states.
    """
    body = entry.body
    if not {"previous_vkey", "envelope_sha256", "size", "root"} <= body.keys():
        raise SignatureInvalid("the entry names no signed statement", code="rotation-unproven")
    if body["previous_vkey"] != str(keys[-1]):
        raise SignatureInvalid("the key before is not the log's key here", code="wrong-previous-key")
    if statement is None:
        raise SignatureInvalid("the signed statement is missing", code="missing-statement")
    if sha256_digest(statement) != body["envelope_sha256"]:
        raise SignatureInvalid("the signed statement is not the one that is named", code="wrong-statement")
    following = VerifierKey.parse(body["vkey"])
    rotation = read_statement(statement, keys, following)
    if body.get("identity", key_id(following.public_key)) != key_id(following.public_key):
        raise SignatureInvalid("the identity is not that of the key after", code="wrong-identity")
    if body["size"] != entry.seq or not 1 <= rotation.journal_size <= entry.seq:
        raise SignatureInvalid("entry or statement stands at another place of the log", code="wrong-size")
    return following, rotation
