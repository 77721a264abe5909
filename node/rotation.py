"""A change of this node's identity key: made, announced, listed by a roster, and only then gone over to.

(1) `announce` makes the next key beside the present one, signs a statement with both and journals it. (2) The
statement goes to the coordinator, again with every welcome until it is stored there. (3) The root key holders
compare the next key's fingerprint out of band and sign a roster that lists it. (4) When that roster is
activated, `go_over` hands the journal to the next key and puts its file in the present one's place.

A crash between any two steps is made good: before (4) the present key stands; within it, the journal's own
last word says which key signs (`node.journal.open_journal`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from node.activation import InForce
from node.home import Home
from node.state import Reader, State
from protocols.encoding import sha256_digest
from protocols.envelope import ROTATION, Signer, decode_envelope, key_id, sign
from protocols.errors import InputError, StateConflict
from protocols.ids import Digest
from protocols.succession import signing_keys
from protocols.wire import Rotation


class CurrentSigner:
    """Signs with the identity key that is this node's now. All that signs for the node holds this one."""

    def __init__(self, signer: Signer) -> None:
        """Begin with `signer`."""
        self._signer = signer

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte public key."""
        return self._signer.public_key

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`."""
        return self._signer.sign(data)

    def replace(self, signer: Signer) -> None:
        """Sign with another key from here on."""
        self._signer = signer


@dataclass(frozen=True, slots=True)
class Announced:
    """A change under way: the signed statement, and whether the coordinator has it."""

    rotation: Rotation
    sha256: Digest
    envelope: bytes
    stored: bool


def under_way(reader: Reader, present: bytes) -> Announced | None:
    """Return the change away from the `present` identity key that was announced last, None for none."""
    kept = reader.rotation()
    if kept is None:
        return None
    rotation = Rotation.decode(decode_envelope(kept.envelope).payload)
    if rotation.previous_key != present:
        return None
    return Announced(rotation, kept.sha256, kept.envelope, kept.stored)


def announce(
    state: State, force: InForce, home: Home, signer: Signer, now: Callable[[], datetime]
) -> Announced:
    """Make this node's next identity key and announce it; asked again, return what was announced.

    Raises:
        Refused: `no-roster`, `not-in-roster`: nobody knows the present key.
        InputError: the key cannot be made, or is somebody's already.
        StateConflict: it cannot be journaled.
    """
    force.me()
    following = home.make_next_identity()
    known = under_way(state, signer.public_key)
    if known is not None and known.rotation.next_key == following.public_key:
        return known
    assert force.roster is not None
    if following.public_key in signing_keys(force.roster):
        raise InputError(
            "the key in identity.next.pem is in the roster already",
            code="key-in-use",
            hint="move keys/identity.next.pem away and run minshu-node key rotate again",
        )
    journal = state.journal
    rotation = Rotation(
        node=home.name,
        previous_key=signer.public_key,
        next_key=following.public_key,
        journal_size=journal.size,
        journal_root=Digest(f"sha256:{journal.root().hex()}"),
        issued=now().replace(microsecond=0),
    )
    envelope = sign(ROTATION, rotation.encode(), [signer, following])
    data = envelope.encode()
    body = {
        "identity": key_id(rotation.next_key),
        "previous": key_id(rotation.previous_key),
        "envelope_sha256": sha256_digest(data),
    }
    journal.put_object(data)
    with state.change() as change:
        change.add_rotation(envelope.payload_digest, data)
        change.log("key.announced", body)
    return Announced(rotation, envelope.payload_digest, data, stored=False)


def go_over(state: State, force: InForce, home: Home, signer: CurrentSigner) -> bool:
    """Go over to the announced key that the roster lists, if it lists one; return whether that happened.

    (1) The journal is handed over: from here on it says that the next key signs. (2) The key files follow.
    (3) So does all that signs in this process. What fails is tried again, from where it got to.

    Raises:
        InputError: the next key cannot be read, or not put in its place.
        StateConflict: the key file is another than was announced, or the journal cannot be written.
    """
    mine = None if force.roster is None else force.roster.node(force.name)
    if mine is None or mine.identity_key == signer.public_key:
        return False
    announced = _announced(state, signer.public_key, mine.identity_key)
    if announced is None:
        return False
    following = home.next_signer() or home.signer
    if following.public_key != mine.identity_key:
        raise StateConflict(
            "the roster lists this node's announced key, but keys/identity.next.pem is not that key",
            code="next-key-missing",
            hint="put the announced key back; if it is lost, make a new node and have it enrolled",
        )
    # (1)
    if state.journal.public_key != following.public_key:
        state.journal.rotate(following, announced)
    state.journal.publish()  # signed by both keys: after (2) the old one is gone
    # (2)
    if following.public_key != home.signer.public_key:
        home.adopt_next_identity()
    # (3)
    signer.replace(following)
    force.identity_key = following.public_key
    return True


def _announced(state: State, present: bytes, following: bytes) -> bytes | None:
    """Return a statement by which `present` announced `following`, None for none.

    The newest one, or one that was replaced: whoever signed the roster may have had that in hand.
    """
    newest = under_way(state, present)
    if newest is not None and newest.rotation.next_key == following:
        return newest.envelope
    for entry in state.journal.entries():
        said = (entry.body.get("previous"), entry.body.get("identity"))
        if entry.kind == "key.announced" and said == (key_id(present), key_id(following)):
            return state.journal.get_object(entry.body["envelope_sha256"])
    return None
