"""Proofs that stand alone: that one entry is in a log which signed for it, and which others have seen.

Source: C2SP tlog-proof. The text is a few lines of index and hashes, then the checkpoint, byte for byte.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from audit.merkle import HASH_BYTES, MAX_SIZE, leaf_hash, verify_inclusion
from audit.note import MAX_NOTE_BYTES, Checkpoint, Note, VerifierKey, verify_note
from protocols.encoding import b64decode, b64encode
from protocols.errors import DecodeError

MAX_HASHES: Final = 63
"""Most hashes in one proof: enough for a tree of 2^63 entries."""

MAX_EXTRA_BYTES: Final = 64 << 10

_FIRST = "c2sp.org/tlog-proof@v1"
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_HASH_CHARS = 44
_MAX_HEAD_BYTES: Final = (
    len(f"{_FIRST}\nextra \nindex \n\n") + 19 + -(-MAX_EXTRA_BYTES // 3) * 4 + MAX_HASHES * (_HASH_CHARS + 1)
)


def parse_size(text: str) -> int:
    """Return a tree size or leaf index: plain decimal, at most `MAX_SIZE`.

    Raises:
        DecodeError: it is not.
    """
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise DecodeError("expected a size in plain decimal, at most 2^53", code="bad-size")
    return int(text)


def encode_hashes(hashes: Iterable[bytes]) -> str:
    """Return the base64 lines of a Merkle proof."""
    return "".join(f"{b64encode(each)}\n" for each in hashes)


def decode_hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    """Read the base64 lines of a Merkle proof, each without its newline.

    Raises:
        DecodeError: more than `MAX_HASHES`, or one that is no SHA-256 hash.
    """
    if len(lines) > MAX_HASHES:
        raise DecodeError(f"{len(lines)} proof lines, at most {MAX_HASHES} accepted", code="bad-proof")
    hashes = tuple(b64decode(line) if len(line) == _HASH_CHARS else b"" for line in lines)
    if any(len(each) != HASH_BYTES for each in hashes):
        raise DecodeError("a proof line is not the base64 of 32 bytes", code="bad-proof")
    return hashes


def split_head(data: bytes, limit: int) -> tuple[list[str], bytes]:
    """Cut `data` at its first empty line: return the lines before it, and the bytes after it.

    Args:
        data: as received.
        limit: most bytes before and with the empty line; nothing longer is looked at.

    Raises:
        DecodeError: no empty line that early, or what stands before it is not ASCII.
    """
    if len(data) > limit + MAX_NOTE_BYTES:
        raise DecodeError(f"{len(data)} bytes, at most {limit + MAX_NOTE_BYTES} accepted", code="too-long")
    end = data.find(b"\n\n", 0, limit)
    if end < 0:
        raise DecodeError("no empty line before the checkpoint", code="bad-proof")
    try:
        head = data[:end].decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError("a line before the checkpoint is not ASCII", code="bad-proof") from None
    return head.split("\n"), data[end + 2 :]


@dataclass(frozen=True, slots=True)
class TlogProof:
    """One entry's proof.

    Attributes:
        index: the entry's number, from 0.
        hashes: the inclusion proof, the leaf's sibling first; 32 bytes each.
        checkpoint: the log's signed checkpoint, with whatever cosignatures it has.
        extra: anything; nobody vouches for it. Empty: none.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def encode(self) -> bytes:
        """Return the proof's text."""
        extra = f"extra {b64encode(self.extra)}\n" if self.extra else ""
        head = f"{_FIRST}\n{extra}index {self.index}\n{encode_hashes(self.hashes)}\n"
        return head.encode() + self.checkpoint

    @classmethod
    def decode(cls, data: bytes) -> "TlogProof":
        """Read a proof strictly. Its checkpoint is a checkpoint, but not verified yet.

        Raises:
            DecodeError: not the one spelling of a proof.
        """
        lines, checkpoint = split_head(data, _MAX_HEAD_BYTES)
        if lines.pop(0) != _FIRST:
            raise DecodeError(f"a proof begins with the line {_FIRST}", code="bad-proof")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = b64decode(lines.pop(0).removeprefix("extra "))
            if not 0 < len(extra) <= MAX_EXTRA_BYTES:
                raise DecodeError(
                    f"extra data of {len(extra)} bytes, 1 to {MAX_EXTRA_BYTES} accepted", code="bad-proof"
                )
        if not lines or not lines[0].startswith("index "):
            raise DecodeError("a proof says its entry's index", code="bad-proof")
        index = parse_size(lines.pop(0).removeprefix("index "))
        Checkpoint.decode(Note.decode(checkpoint).text)
        return cls(index, decode_hashes(lines), checkpoint, extra)

    def verify(self, entry: bytes, logs: Iterable[VerifierKey]) -> tuple[Note, Checkpoint]:
        """Check that `entry` is in the tree that one of `logs` signed for; return the note and what it says.

        Who else has seen that tree is for `Quorum` or `TrustPolicy` to say of the note.

        Args:
            entry: the entry's bytes, as they stand in the log.
            logs: the logs' own keys; a key speaks for the log of its name only.

        Raises:
            DecodeError: the checkpoint is none.
            SignatureInvalid: none of `logs` signed, or the entry is not what the tree has there.
        """
        checkpoint = Checkpoint.decode(Note.decode(self.checkpoint).text)
        note, _ = verify_note(self.checkpoint, (key for key in logs if is_log_key(key, checkpoint)))
        verify_inclusion(leaf_hash(entry), self.index, checkpoint.size, self.hashes, checkpoint.root)
        return note, checkpoint


def is_log_key(key: VerifierKey, checkpoint: Checkpoint) -> bool:
    """Tell whether `key` may sign checkpoints of that log: it bears the log's name, and is no witness's."""
    return not key.cosigns and key.name == checkpoint.origin
