"""Sealed releases on disk: bytes nobody here can open, kept until they expire.

A release arrives in pieces, in order, beside the folder's finished files; it gets its name once its digest is
the one in the signed note. The store's row is written after that, so a row always has its bytes.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from coordinator.files import flush_folder
from protocols.encoding import digest_bytes
from protocols.errors import DecodeError, InputError, ProtocolAborted
from protocols.ids import Digest

PIECE_BYTES: Final = 1 << 20


class Releases:
    """The folder of sealed releases; a release id is 32 hex digits, so it is a safe file name."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Use `folder`, refusing releases longer than `max_bytes`."""
        self._folder = folder
        self.max_bytes = max_bytes

    def clear(self, keep: frozenset[str]) -> None:
        """Delete what a crash left: every file that is not one of the releases `keep`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink()

    def upload(self, release: str, sha256: Digest) -> "Upload":
        """Begin to receive a release."""
        return Upload(self._folder, release, sha256, self.max_bytes)

    def delete(self, release: str) -> None:
        """Delete a release's bytes; an unknown one is no error."""
        (self._folder / release).unlink(missing_ok=True)

    def pieces(self, release: str) -> Iterator[bytes]:
        """Yield a release in pieces of at most 1 MiB.

        Raises:
            InputError: it is not here any more.
        """
        try:
            with (self._folder / release).open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            raise InputError("the release has expired and was deleted", code="unknown-release") from None


class Upload:
    """A release on its way in."""

    def __init__(self, folder: Path, release: str, sha256: Digest, max_bytes: int) -> None:
        """Open a file beside the finished ones."""
        self.release = release
        self._folder = folder
        self._expected = digest_bytes(sha256)
        self._max_bytes = max_bytes
        self._aside = folder / f"{release}.{secrets.token_hex(8)}"
        self._hash = hashlib.sha256()
        self._file = self._aside.open("xb")
        self.size = 0

    def write(self, offset: int, data: bytes) -> None:
        """Take the next piece.

        Raises:
            ProtocolAborted: not the next one.
            DecodeError: the release grows too long.
        """
        if offset != self.size:
            raise ProtocolAborted(
                f"a release's piece at {offset}, expected at {self.size}", code="upload-out-of-order"
            )
        if offset + len(data) > self._max_bytes:
            raise DecodeError(
                f"a release of more than {self._max_bytes} bytes",
                code="too-long",
                hint="raise max_release_bytes in coordinator.toml, or ask for a smaller table",
            )
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> int:
        """Give the release its name, durably, and return its length.

        Raises:
            ProtocolAborted: the bytes are not those of the note.
        """
        if not hmac.compare_digest(self._hash.digest(), self._expected):
            raise ProtocolAborted("a release's bytes do not have the digest of its note", code="wrong-digest")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._aside.replace(self._folder / self.release)
        flush_folder(self._folder)
        return self.size

    def abandon(self) -> None:
        """Forget what came; harmless after `finish`."""
        self._file.close()
        self._aside.unlink(missing_ok=True)
