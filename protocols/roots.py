"""The root keys of a collaboration, pinned by nodes, analysts and coordinator: one form, one fingerprint."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.ids import Digest
from protocols.wire import Fields, NextRoots

MAX_ROOTS_BYTES: Final = 16 << 10
_MAX_KEYS: Final = 16


@dataclass(frozen=True, slots=True)
class Roots:
    """The raw Ed25519 keys that sign rosters, and how many of them must. `minshu-roots/1`."""

    collaboration: str
    threshold: int
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, collaboration: str, threshold: int, keys: Iterable[bytes]) -> Self:
        """Return the roots with these keys.

        Raises:
            InputError: a key twice, or a threshold that the keys cannot reach.
        """
        given = tuple(keys)
        distinct = tuple(sorted(set(given)))
        if len(distinct) != len(given) or not 1 <= threshold <= len(distinct) <= _MAX_KEYS:
            raise InputError(
                f"{len(distinct)} distinct root keys of {len(given)} given, threshold {threshold}",
                code="bad-roots",
                hint="give 2 to 16 different --root files and a threshold they can reach",
            )
        return cls(collaboration, threshold, distinct)

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json(
            {
                "schema": "minshu-roots/1",
                "collaboration": self.collaboration,
                "threshold": self.threshold,
                "keys": [key.hex() for key in self.keys],
            }
        )

    @property
    def fingerprint(self) -> Digest:
        """`sha256:` of the canonical JSON: what people compare out of band."""
        return sha256_digest(self.encode())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the canonical JSON strictly.

        Raises:
            DecodeError: another form, keys not sorted, not distinct or fewer than the threshold.
        """
        f = Fields(decode_json(data, limit=MAX_ROOTS_BYTES), "roots")
        f.schema("minshu-roots/1")
        collaboration = f.text("collaboration")
        threshold = f.count("threshold", minimum=1, maximum=_MAX_KEYS)
        texts = f.items("keys", maximum=_MAX_KEYS)
        f.finish()
        wrong = DecodeError("roots.keys are not sorted, distinct keys of 32 bytes in hex", code="bad-roots")
        try:
            keys = tuple(bytes.fromhex(text) for text in texts)
        except (TypeError, ValueError):
            raise wrong from None
        ordered = list(keys) == sorted(set(keys)) and [key.hex() for key in keys] == texts
        if not ordered or any(len(key) != 32 for key in keys) or len(keys) < threshold:
            raise wrong
        return cls(collaboration, threshold, keys)

    def handed_over(self, to: NextRoots) -> Self:
        """Return the root keys that sign after these: those which a roster of theirs hands over to."""
        return type(self)(self.collaboration, to.threshold, to.keys)

    def pinned(self, fingerprint: str) -> Self:
        """Return these roots if they are the ones that `fingerprint` names.

        Raises:
            SignatureInvalid: they are others.
        """
        if not hmac.compare_digest(self.fingerprint.encode(), fingerprint.encode()):
            raise SignatureInvalid(
                f"the coordinator's root keys have the fingerprint {self.fingerprint}, expected another",
                code="wrong-roots",
                hint="compare the fingerprint with the collaboration's root key holders, not with the bureau",
            )
        return self
