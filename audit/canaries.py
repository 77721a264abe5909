"""Planted identifiers, looked for in any bytes: as text, in hex and base64, and as digests.

A canary is looked for in the forms in which it could slip out: as text, in hex and base64, and as a SHA-256,
SM3 or MD5 digest (of the bare identifier and of its typed key), each digest raw, in hex and in base64.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np


def _base64_cores(data: bytes) -> Iterator[bytes]:
    """Yield what base64 of any text containing `data` must contain, for its three alignments."""
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + data).rstrip(b"=")
        # The first and last characters also depend on the neighbours, so they are left out.
        yield encoded[(0, 2, 3)[shift] : len(encoded) - 1]


def _encodings(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield f"{name} hex", data.hex().encode()
    yield f"{name} HEX", data.hex().upper().encode()
    for core in _base64_cores(data):
        yield f"{name} base64", core
        yield f"{name} base64url", core.translate(bytes.maketrans(b"+/", b"-_"))


def forms(identifier: str) -> dict[bytes, str]:
    """Return every byte string that would betray `identifier`, with the name of its form."""
    found: dict[bytes, str] = {}
    texts = {identifier, identifier.upper(), identifier.lower()}
    for text in sorted(texts):
        raw = text.encode()
        found.setdefault(raw, "text")
        found.setdefault(text.encode("utf-16-le"), "utf-16")
        for name, data in _encodings("text", raw):
            found.setdefault(data, name)
        for algorithm in ("sha256", "sm3", "md5"):
            for prefix in (b"", b"RIC:"):
                digest = hashlib.new(algorithm, prefix + raw, usedforsecurity=False).digest()
                found.setdefault(digest, algorithm)
                for name, data in _encodings(algorithm, digest):
                    found.setdefault(data, name)
    return found


class Canaries:
    """Finds any form of many identifiers in bytes, in one pass of numpy filters."""

    def __init__(self, canaries: Iterable[str]) -> None:
        """Prepare the forms of `canaries`."""
        self._forms: dict[bytes, tuple[int, str]] = {}
        for number, canary in enumerate(canaries):
            for data, form in forms(canary).items():
                self._forms.setdefault(data, (number, form))
        self.longest = max(map(len, self._forms), default=0)
        """Bytes of the longest form."""
        # Two tables of byte pairs, at offsets 0 and 2 of a form, leave few places to compare in full.
        self._first = np.zeros(1 << 16, dtype=bool)
        self._second = np.zeros(1 << 16, dtype=bool)
        self._by_prefix: dict[bytes, list[bytes]] = {}
        for data in self._forms:
            self._first[int.from_bytes(data[0:2], "big")] = True
            self._second[int.from_bytes(data[2:4], "big")] = True
            self._by_prefix.setdefault(data[:4], []).append(data)

    def search(self, data: bytes) -> Iterator[tuple[int, str, int, int]]:
        """Yield (canary number, form, offset, length) for every form in `data`."""
        if len(data) < 4:
            return
        octets = np.frombuffer(data, dtype=np.uint8)
        pairs = (octets[:-1].astype(np.uint16) << 8) | octets[1:]
        places = np.flatnonzero(self._first[pairs[:-2]] & self._second[pairs[2:]])
        for place in places.tolist():
            for form in self._by_prefix.get(data[place : place + 4], ()):
                if data.startswith(form, place):
                    number, name = self._forms[form]
                    yield number, name, place, len(form)
