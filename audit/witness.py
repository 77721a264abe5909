"""The witness's side: cosign a log's checkpoint if, and only if, it extends the last one. No I/O, no clock.

Source: C2SP tlog-witness, add-checkpoint, byte for byte; how the bytes travel is the caller's affair. What a
witness answers, in this order:

(1) 400: the body is no request;
(2) 404: the log is unknown;
(3) 403: no key that is known of the log signed, or one of them signed wrongly;
    400: the old size exceeds the checkpoint's;
(4) 409 and the size cosigned last: the request starts from another size, or names another root at this size;
(5) 422: the proof does not lead from the tree cosigned last to this one;
(6) 200 and signature lines, once the new checkpoint is stored in place of the old one.

The store compares and replaces in one step, so that of two requests at a time one has to begin again, and
nobody's size ever goes back.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from audit.merkle import EMPTY_ROOT, verify_consistency
from audit.note import (
    COSIGNATURE,
    ML_DSA_44,
    Checkpoint,
    Note,
    NoteSignature,
    VerifierKey,
    cosign,
    verify_note,
)
from audit.proof import MAX_HASHES, decode_hashes, encode_hashes, is_log_key, parse_size, split_head
from protocols.encoding import b64encode
from protocols.errors import DecodeError, SignatureInvalid

SPLIT_VIEW: Final = "split-view"
"""The log signed two roots for one size."""

NO_CONSISTENCY_PROOF: Final = "no-consistency-proof"
"""The log signed a larger tree without showing that it extends the one before."""

_MAX_HEAD_BYTES: Final = len("old \n\n") + 19 + MAX_HASHES * (len(b64encode(EMPTY_ROOT)) + 1)


@dataclass(frozen=True, slots=True)
class CosignerKeys:
    """What a witness signs with.

    Attributes:
        name: the key name of all its keys, such as `police.gz.example/node-a/witness/1`.
        ed25519: raw public key, and what returns 64-byte signatures by it.
        mldsa: the same for ML-DSA-44, None where there is no such key.
    """

    name: str
    ed25519: "CosignerKey"
    mldsa: "CosignerKey | None" = None

    @property
    def vkeys(self) -> tuple[VerifierKey, ...]:
        """The verifier keys that a roster lists: type 4, then type 6."""
        return tuple(key for key, _ in self._pairs())

    def sign(self, text: bytes, time_s: int) -> tuple[NoteSignature, ...]:
        """Return one cosignature line per key, over a checkpoint that was found consistent.

        Args:
            text: the checkpoint's note text.
            time_s: seconds since 1970.

        Raises:
            SignatureInvalid: a private key does not belong to its public one (`signer-mismatch`).
            DecodeError: `text` is no checkpoint.
        """
        return tuple(cosign(text, vkey, key.sign, time_s) for vkey, key in self._pairs())

    def _pairs(self) -> "Iterable[tuple[VerifierKey, CosignerKey]]":
        yield VerifierKey(self.name, COSIGNATURE, self.ed25519.public_key), self.ed25519
        if self.mldsa is not None:
            yield VerifierKey(self.name, ML_DSA_44, self.mldsa.public_key), self.mldsa


class CosignerKey(Protocol):
    """Something that signs with one key; `protocols.envelope.KeySigner` is one."""

    @property
    def public_key(self) -> bytes:
        """The raw public key."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the raw signature of `data`."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A log asks for a cosignature.

    Attributes:
        old: size of the tree that the proof starts from.
        proof: RFC 6962 consistency proof, empty from `old` = 0.
        note: the signed checkpoint, not verified yet.
        checkpoint: what it says.
    """

    old: int
    proof: tuple[bytes, ...]
    note: Note
    checkpoint: Checkpoint


def encode_request(old: int, proof: Iterable[bytes], note: bytes) -> bytes:
    """Return an add-checkpoint request body.

    Args:
        old: size of the tree that the witness is believed to know, 0 for none.
        proof: consistency proof from there to the checkpoint's size.
        note: the signed checkpoint.
    """
    return f"old {old}\n{encode_hashes(proof)}\n".encode() + note


def decode_request(body: bytes) -> Request:
    """Read an add-checkpoint request body strictly.

    Raises:
        DecodeError: not of that form, too long, or more than 63 proof lines.
    """
    lines, note_bytes = split_head(body, _MAX_HEAD_BYTES)
    first = lines.pop(0)
    if not first.startswith("old "):
        raise DecodeError("a request begins with the old size", code="bad-request")
    old = parse_size(first.removeprefix("old "))
    proof = decode_hashes(lines)
    note = Note.decode(note_bytes)
    return Request(old, proof, note, Checkpoint.decode(note.text))


class WitnessStore(Protocol):
    """The newest checkpoint of each log that was cosigned here. Durable."""

    def get(self, origin: str) -> bytes | None:
        """Return that log's note, None if none was cosigned."""
        ...

    def swap(self, origin: str, expected: bytes | None, new: bytes) -> bool:
        """Put `new` in place of `expected`, in one step and for good; return whether `expected` still stood.

        Where both are the same bytes, only whether they still stand is asked.
        """
        ...


class MemoryStore:
    """A store that lasts as long as the process."""

    def __init__(self) -> None:
        """Begin empty."""
        self.notes: dict[str, bytes] = {}

    def get(self, origin: str) -> bytes | None:
        """Return that log's note."""
        return self.notes.get(origin)

    def swap(self, origin: str, expected: bytes | None, new: bytes) -> bool:
        """Put `new` in place of `expected`."""
        if self.notes.get(origin) != expected:
            return False
        self.notes[origin] = new
        return True


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two checkpoints that one log signed and that do not go together, as far as anybody showed.

    Attributes:
        log: its origin.
        cosigned: the note that was cosigned here last, with our cosignatures.
        conflicting: the other note, with the signatures of the log's known keys only.
        size: entries in the conflicting tree.
        root: its root, 32 bytes.
        code: `SPLIT_VIEW`, which nothing can explain, or `NO_CONSISTENCY_PROOF`.
    """

    log: str
    cosigned: bytes
    conflicting: bytes
    size: int
    root: bytes
    code: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a witness answers.

    Attributes:
        status: 200, 400, 403, 404, 409 or 422, as in HTTP.
        body: signature lines for 200, `<size>` and a newline for 409, else empty.
        log: origin of the log, empty where the request could not be read.
        stored: the note that is now kept for that log, where this request changed it.
        conflict: what has to be kept as evidence.
    """

    status: int
    body: bytes = b""
    log: str = ""
    stored: bytes | None = None
    conflict: Conflict | None = None


def add_checkpoint(
    body: bytes,
    *,
    known: Callable[[str], Sequence[VerifierKey]],
    store: WitnessStore,
    sign: Callable[[bytes], Sequence[NoteSignature]],
) -> Answer:
    """Answer one request. Safe to call from several threads at a time if the store is.

    The cosignatures exist before the checkpoint is stored, and leave only after: if the store fails, nothing
    may be answered, and the same checkpoint is cosigned when it is asked for again.

    Args:
        body: the request as received.
        known: returns the keys of the log of that origin, none if it is unknown.
        store: see `WitnessStore`.
        sign: returns our cosignatures over a note text, with the present time.

    Raises:
        MinshuError: the store or the signer failed; there is no answer.
    """
    # (1) A request, at most so long.
    try:
        request = decode_request(body)
    except DecodeError:
        return Answer(400)
    checkpoint = request.checkpoint
    log = checkpoint.origin
    # (2) (3) Of a known log, signed by it. Other signatures are left aside: anybody can add such lines.
    keys = [key for key in known(log) if is_log_key(key, checkpoint)]
    if not keys:
        return Answer(404, log=log)
    try:
        _, signers = verify_note(request.note.encode(), keys)
    except SignatureInvalid:
        return Answer(403, log=log)
    if request.old > checkpoint.size:
        return Answer(400, log=log)
    note = _only(request.note, signers)
    # (4) From where this witness stands.
    held = store.get(log)
    size, root = _head(held)

    def conflict(code: str) -> Conflict | None:
        # Nothing contradicts the empty tree, nor the very same one, whatever was sent along as its proof.
        if held is None or size == 0 or (checkpoint.size, checkpoint.root) == (size, root):
            return None
        return Conflict(log, held, note.encode(), checkpoint.size, checkpoint.root, code)

    if checkpoint.size == size and checkpoint.root != root:
        return Answer(409, b"%d\n" % size, log, conflict=conflict(SPLIT_VIEW))
    if request.old != size:
        return Answer(409, b"%d\n" % size, log)
    # (5) To a tree that extends it.
    try:
        verify_consistency(size, root, checkpoint.size, checkpoint.root, request.proof)
    except SignatureInvalid:
        return Answer(422, log=log, conflict=conflict(NO_CONSISTENCY_PROOF))
    # (6) Stored first, answered then. The same tree again leaves the store as it is.
    lines = sign(note.text)
    new = note.with_lines(lines).encode() if held is None or checkpoint.size > size else held
    if not store.swap(log, held, new):
        return Answer(409, b"%d\n" % _head(store.get(log))[0], log)
    return Answer(200, "".join(map(str, lines)).encode(), log, stored=None if new is held else new)


def _only(note: Note, keys: Sequence[VerifierKey]) -> Note:
    """Return the note with the first signature of each of `keys`, the one that was verified."""
    first: dict[tuple[str, bytes], NoteSignature] = {}
    for line in note.signatures:
        first.setdefault((line.name, line.key_id), line)
    return Note(note.text, tuple(first[key.name, key.key_id] for key in keys))


def _head(note: bytes | None) -> tuple[int, bytes]:
    if note is None:
        return 0, EMPTY_ROOT
    checkpoint = Checkpoint.decode(Note.decode(note).text)
    return checkpoint.size, checkpoint.root
