"""The table that a clerk's node holds: rows nobody can read without the owner's help. SPEC.md, "Table".

A row is tag (12) ‖ build (8) ‖ sealed (width + 16), in ascending order of tags. F_k(x) of a person gives the
tag and a seed; the seed and the build, drawn anew whenever rows are sealed, give the row's key.
"""

import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.encoding import b64decode, b64encode, canonical_json, decode_json
from protocols.errors import DecodeError, ProtocolAborted
from protocols.psi.group import POINT_BYTES

SCHEMA: Final = "minshu-lookup-table/1"

TAG_BYTES: Final = 12
SEED_BYTES: Final = 32
BUILD_BYTES: Final = 8
HEAD_BYTES: Final = TAG_BYTES + BUILD_BYTES
SEAL_BYTES: Final = 16

WIDTH_STEP: Final = 32
"""Rows are padded to a multiple of so many bytes."""

MAX_WIDTH: Final = 4096

MAX_TABLE_BYTES: Final = 16 << 30
"""Of all rows of a table: 10 million of 1.6 kB, or 100 million of the least width."""

_KEY_INFO: Final = b"minshu/lookup/1 row"
_NONCE: Final = bytes(12)  # a key seals one row once
_MAGIC: Final = b"minshu lookup 1\n"
_ALIGN: Final = 64


def width_of(longest: int) -> int:
    """Return the bytes that every row is padded to, of which the longest has so many."""
    return max(-(-longest // WIDTH_STEP), 1) * WIDTH_STEP


def row_bytes(width: int) -> int:
    """Return the bytes of a row of the table."""
    return HEAD_BYTES + width + SEAL_BYTES


def check_size(rows: int, width: int) -> None:
    """Refuse a table that no node has to make room for.

    Raises:
        ProtocolAborted: `table-too-large`.
    """
    if rows * row_bytes(width) > MAX_TABLE_BYTES:
        raise ProtocolAborted(
            f"a table of {rows} rows of {row_bytes(width)} bytes, at most {MAX_TABLE_BYTES >> 30} GiB",
            code="table-too-large",
            hint="hand out fewer fields, or shorter ones, or make the scope smaller",
        )


def row_type(width: int) -> np.dtype[np.void]:
    """Return the form of a row; fields of type S compare as bytes of one length."""
    return np.dtype([
        ("tag", f"S{TAG_BYTES}"), ("build", f"V{BUILD_BYTES}"), ("sealed", f"V{width + SEAL_BYTES}")
    ])  # fmt: skip


def split(output: bytes, at: int = 0) -> tuple[bytes, bytes]:
    """Return tag and seed of a person, two parts of F_k(x), which begins at `at`."""
    middle = at + TAG_BYTES
    return output[at:middle], output[middle : middle + SEED_BYTES]


def _row_key(seed: bytes, build: bytes) -> bytes:
    # HKDF-Expand (RFC 5869) with SHA-256, one block; the seed is uniform, so there is nothing to extract.
    return hmac.digest(seed, _KEY_INFO + build + b"\1", "sha256")


def seal(seed: bytes, build: bytes, plain: bytes, width: int) -> bytes:
    """Return a row sealed: AES-256-GCM over the text padded with zeros.

    Args:
        seed: of the person.
        build: drawn for this build of the table.
        plain: at most `width` bytes, without zero bytes.
        width: of the table.
    """
    return AESGCM(_row_key(seed, build)).encrypt(_NONCE, plain.ljust(width, b"\0"), None)


def unseal(seed: bytes, build: bytes, sealed: bytes) -> bytes | None:
    """Return the text of a row; None where it is another person's."""
    try:
        return AESGCM(_row_key(seed, build)).decrypt(_NONCE, sealed, None).rstrip(b"\0")
    except InvalidTag:
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What identifies a table, as its owner states it.

    Attributes:
        key_version: counts the owner's keys.
        public: the key's public point; evaluations are checked against it.
        version: counts the tables that this clerk got under the key.
        rows: how many.
        width: bytes of a row's text, padded.
        fields: what a row holds.
        digest: SHA-256 over tag ‖ build of every row in order; sealing ties the row's text to them.
    """

    mode: int
    key_version: int
    public: bytes
    version: int
    rows: int
    width: int
    fields: tuple[str, ...]
    digest: bytes

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "schema": SCHEMA,
            "mode": self.mode,
            "key_version": self.key_version,
            "public": b64encode(self.public),
            "version": self.version,
            "rows": self.rows,
            "width": self.width,
            "fields": list(self.fields),
            "digest": b64encode(self.digest),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read the plain JSON form strictly.

        Raises:
            DecodeError: another form.
        """
        match value:
            case {
                "schema": "minshu-lookup-table/1",
                "mode": int(mode),
                "key_version": int(key_version),
                "public": str(public),
                "version": int(version),
                "rows": int(rows),
                "width": int(width),
                "fields": list(fields),
                "digest": str(digest),
            } if len(value) == 9 and all(isinstance(name, str) for name in fields):
                found = cls(
                    mode,
                    key_version,
                    b64decode(public),
                    version,
                    rows,
                    width,
                    tuple(fields),
                    b64decode(digest),
                )
                if found.is_sound() and bool not in map(type, value.values()):
                    return found
        raise DecodeError("not the manifest of a look-up table", code="bad-manifest")

    def is_sound(self) -> bool:
        """Whether every part is within its range."""
        return (
            self.mode in (0, 1)
            and min(self.key_version, self.version) >= 1
            and self.rows >= 0
            and self.width % WIDTH_STEP == 0
            and WIDTH_STEP <= self.width <= MAX_WIDTH
            and len(self.public) == POINT_BYTES
            and len(self.digest) == 32
        )

    def identity(self) -> bytes:
        """Return 32 bytes that name this table."""
        return sha256(canonical_json(self.to_json())).digest()

    def header(self) -> bytes:
        """Return what stands before the rows of a table on a shelf."""
        data = canonical_json(self.to_json())
        head = _MAGIC + len(data).to_bytes(4, "big") + data
        return head.ljust(-(-len(head) // _ALIGN) * _ALIGN, b"\0")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the owner is about to send: `keep` nothing, `delta` what has changed, or the `whole` table."""

    give: str
    removed: int
    sent: int
    manifest: Manifest

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json({
            "give": self.give, "removed": self.removed, "sent": self.sent, "manifest": self.manifest.to_json()
        })  # fmt: skip

    def facts(self) -> dict[str, int | str]:
        """Return what a journal says of it."""
        return {
            "give": self.give,
            "key_version": self.manifest.key_version,
            "table_version": self.manifest.version,
            "rows": self.manifest.rows,
            "sent": self.sent,
            "removed": self.removed,
        }

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an offer strictly.

        Raises:
            DecodeError: another form, or counts that contradict one another.
        """
        match decode_json(data):
            case {
                "give": "keep" | "delta" | "whole" as give,
                "removed": int(removed),
                "sent": int(sent),
                "manifest": dict(plain),
            } as value if (
                len(value) == 4 and removed >= 0 <= sent and bool not in (type(removed), type(sent))
            ):
                manifest = Manifest.from_json(plain)
                fits = {
                    "keep": (removed, sent) == (0, 0),
                    "delta": sent <= manifest.rows and removed + sent > 0,
                    "whole": (removed, sent) == (0, manifest.rows),
                }
                if fits[give]:
                    return cls(give, removed, sent, manifest)
        raise DecodeError("not an offer of a look-up table", code="bad-offer")


def lower_bound(data: memoryview, stride: int, count: int, tag: bytes) -> int:
    """Return how many records begin with a lesser tag; as many reads wherever it is, or is not.

    Args:
        data: `count` records in ascending order of the tags that they begin with.
        stride: bytes of a record.
        count: of records.
        tag: what is looked for.
    """
    at = 0
    for bit in range(count.bit_length() - 1, -1, -1):
        reach = at + (1 << bit)
        start = (min(reach, count) - 1) * stride
        if data[start : start + TAG_BYTES].tobytes() < tag and reach <= count:
            at = reach
    return at


class BadRow(ProtocolAborted):
    """A row has the tag that was looked for, but does not open or is no row of these fields.

    Its owner made it so, or a disk failed. Whoever looks it up must not let the owner see that: one such row
    would show when somebody asks about that very person.
    """

    default_code = "bad-row"

    def __init__(self) -> None:
        super().__init__(
            "a row of the table has the tag that was looked for, but does not open or is no row of its fields"
        )


@dataclass(frozen=True, slots=True)
class Table:
    """A table on a shelf, mapped."""

    manifest: Manifest
    data: memoryview = field(repr=False)  # the rows

    @classmethod
    def read(cls, blob: memoryview) -> Self:
        """Return the table of a blob.

        Raises:
            DecodeError: not a table, or cut short.
        """
        size = int.from_bytes(blob[len(_MAGIC) : len(_MAGIC) + 4], "big")
        start = len(_MAGIC) + 4
        if blob[: len(_MAGIC)].tobytes() != _MAGIC or start + size > len(blob):
            raise DecodeError("not a look-up table", code="bad-table")
        manifest = Manifest.from_json(decode_json(blob[start : start + size].tobytes()))
        data = blob[len(manifest.header()) :]
        if len(data) != manifest.rows * row_bytes(manifest.width):
            raise DecodeError("a look-up table of another length than it states", code="bad-table")
        return cls(manifest, data)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.void]:
        """Return some rows, in the form of `row_type`."""
        stride = row_bytes(self.manifest.width)
        return np.frombuffer(self.data[start * stride : stop * stride], dtype=row_type(self.manifest.width))

    def find(self, output: bytes) -> dict[str, str] | None:
        """Return the fields of the person with this F_k(x), None where it is on no row.

        One path for both: as many rows are read, and one is opened, a neighbour where there is none.

        Raises:
            BadRow: the person's own row does not open or is no row of these fields.
        """
        tag, seed = split(output)
        stride, count = row_bytes(self.manifest.width), self.manifest.rows
        at = min(lower_bound(self.data, stride, count, tag), max(count - 1, 0))
        row = self.data[at * stride : (at + 1) * stride].tobytes() or bytes(stride)
        plain = unseal(seed, row[TAG_BYTES:HEAD_BYTES], row[HEAD_BYTES:])
        if plain is None:
            if count and hmac.compare_digest(row[:TAG_BYTES], tag):
                raise BadRow
            return None
        try:
            texts = plain.decode().split("\x1f")
            return dict(zip(self.manifest.fields, texts, strict=True))
        except ValueError:  # no UTF-8, or another number of fields
            raise BadRow from None
