"""Canonical bytes: RFC 8785 JSON with strict decode, digests, and a bounded binary reader.

Whatever is signed or hashed has exactly one byte form. `canonical_json` writes it, `decode_json` refuses
everything else: it parses, serialises again and compares, which also refuses duplicate keys.
"""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec.json
import rfc8785

from protocols.errors import DecodeError
from protocols.ids import Digest

MAX_JSON_BYTES: Final = 1 << 20
"""Upper bound for any signed JSON payload, in bytes."""

MAX_JSON_DEPTH: Final = 32

MAX_JSON_INT: Final = 2**53 - 1
"""Largest integer that JSON carries exactly, RFC 8785 appendix D."""

_SORTED: Final = msgspec.json.Encoder(order="sorted")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# A string is one token, so that brackets inside it do not count. Possessive, so that no input makes it slow.
_NESTING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)


def canonical_json(value: Any) -> bytes:
    """Return the RFC 8785 bytes of `value`. Integers beyond ±(2^53 - 1) must be given as strings.

    Raises:
        DecodeError: `value` holds something JSON cannot carry exactly.
    """
    try:
        return _plain_json(value) or rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise DecodeError(
            f"value has no canonical JSON form ({type(error).__name__})",
            code="not-canonical",
            hint="use strings for integers beyond 2^53 and plain JSON types",
        ) from None


def _plain_json(value: Any) -> bytes | None:
    """Return the RFC 8785 bytes of `value` if the fast encoder is sure to write them, else None.

    An encoder that sorts keys and leaves out spaces can differ only in how it spells a fraction, in how it
    sorts keys beyond ASCII, and in how it escapes what must be escaped.
    """
    try:
        if not _is_plain(value):
            return None
        data = _SORTED.encode(value)
    except (RecursionError, UnicodeEncodeError):
        return None  # too deep for it, or half a surrogate pair: the reference says what is wrong
    return None if b"\\" in data else data


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        return bool(-MAX_JSON_INT <= value <= MAX_JSON_INT)
    if kind is dict:
        return all(type(key) is str and key.isascii() and _is_plain(item) for key, item in value.items())
    return (kind is list or kind is tuple) and all(map(_is_plain, value))


def decode_json(data: bytes, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse canonical JSON and refuse any other spelling of it.

    Args:
        data: the bytes as received.
        limit: largest accepted length in bytes, checked before parsing.

    Raises:
        DecodeError: too long, too deep, not JSON, or not canonical (spaces, key order, duplicate keys).
    """
    if len(data) > limit:
        raise DecodeError(
            f"message of {len(data)} bytes, at most {limit} accepted",
            code="too-long",
            hint="split the request or remove what is not needed",
        )
    if _too_deep(data):
        raise DecodeError(f"JSON nested deeper than {MAX_JSON_DEPTH} levels", code="too-deep")
    try:
        value = _parse(data)
    except (ValueError, RecursionError):
        raise DecodeError("not a JSON document in UTF-8", code="not-json") from None
    if canonical_json(value) != data:
        raise DecodeError(
            "JSON is not in RFC 8785 canonical form (key order, spaces, numbers or duplicate keys differ)",
            code="not-canonical",
            hint="serialise the payload with an RFC 8785 library before signing it",
        )
    return value


def parse_json(data: bytes, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON as another program spells it: with spaces and keys in any order, but no key twice.

    Raises:
        DecodeError: too long, too deep, not JSON, or a key twice in one object.
    """
    if len(data) > limit:
        raise DecodeError(f"message of {len(data)} bytes, at most {limit} accepted", code="too-long")
    if _too_deep(data):
        raise DecodeError(f"JSON nested deeper than {MAX_JSON_DEPTH} levels", code="too-deep")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise DecodeError("not a JSON document in UTF-8 without a key twice", code="not-json") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(name)


def _parse(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        # It accepts less than this one, whose further documents (NaN, UTF-16) are refused as not canonical.
        return json.loads(data)


def _too_deep(data: bytes) -> bool:
    """Return whether `data` nests deeper than MAX_JSON_DEPTH, without building anything."""
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return False
    depth = 0
    for token in _NESTING.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def sha256_digest(data: bytes) -> Digest:
    """Return `sha256:` + hex of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_bytes(digest: str) -> bytes:
    """Return the 32 raw bytes of a `sha256:…` digest.

    Raises:
        DecodeError: the text is not of that form.
    """
    if not _DIGEST.fullmatch(digest):
        raise DecodeError("expected sha256: and 64 lower-case hex digits", code="bad-digest")
    return bytes.fromhex(digest[7:])


def b64encode(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def b64decode(text: str) -> bytes:
    """Decode standard base64 strictly: padding required, no other characters, no stray bits.

    Raises:
        DecodeError: the text is not the canonical base64 of anything.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DecodeError("not standard base64", code="bad-base64") from None
    if b64encode(data) != text:
        raise DecodeError("base64 is not canonical", code="bad-base64")
    return data


@dataclass(slots=True)
class Reader:
    """Reads big-endian fields from `data`, never past its end; `finish` refuses bytes left over."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            DecodeError: fewer are left.
        """
        if count < 0 or self.at + count > len(self.data):
            raise DecodeError(
                f"message ends after {len(self.data)} bytes, {count} more expected at {self.at}",
                code="truncated",
            )
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def uint(self, width: int) -> int:
        """Return the next unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "big")

    def bytes16(self, limit: int = 0xFFFF) -> bytes:
        """Return a field with a two-byte length before it, of at most `limit` bytes."""
        length = self.uint(2)
        if length > limit:
            raise DecodeError(f"field of {length} bytes, at most {limit} accepted", code="too-long")
        return self.take(length)

    def text16(self, limit: int = 0xFFFF) -> str:
        """Return a UTF-8 field with a two-byte length before it."""
        try:
            return self.bytes16(limit).decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("field is not UTF-8", code="not-utf8") from None

    def rest(self) -> bytes:
        """Return everything left."""
        return self.take(len(self.data) - self.at)

    def finish(self) -> None:
        """Raise DecodeError if anything is left."""
        if self.at != len(self.data):
            raise DecodeError(f"{len(self.data) - self.at} bytes too many", code="trailing-bytes")


def bytes16(data: bytes) -> bytes:
    """Return `data` with its two-byte length before it."""
    if len(data) > 0xFFFF:
        raise DecodeError(f"field of {len(data)} bytes, at most 65535 accepted", code="too-long")
    return len(data).to_bytes(2, "big") + data
