"""A second reader of journals, written from the C2SP texts with `cryptography` and hashlib alone.

Signed notes (c2sp.org/signed-note), checkpoints (c2sp.org/tlog-checkpoint), cosignatures
(c2sp.org/tlog-cosignature), tiles and entry bundles (c2sp.org/tlog-tiles), tree hashes (RFC 6962, 2.1).
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

TILE = 256


@dataclass(frozen=True)
class Log:
    """A log that verified."""

    origin: str
    public_key: bytes
    entries: list[bytes]


def verified(folder: Path, vkey: str) -> Log:
    """Return the log in `folder`, or raise whatever does not hold."""
    name, key_id, encoded = vkey.split("+", 2)
    key = base64.b64decode(encoded, validate=True)
    assert key[0] == 1, "an Ed25519 key"
    assert len(key) == 33
    assert hashlib.sha256(name.encode() + b"\n" + key).digest()[:4].hex() == key_id
    text, _, signatures = (folder / "checkpoint").read_text("utf-8").partition("\n\n")
    text += "\n"
    for line in signatures.splitlines():
        dash, signer, blob = line.split(" ")
        raw = base64.b64decode(blob, validate=True)
        if (dash, signer, raw[:4].hex()) == ("—", name, key_id):
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], text.encode())
            break
    else:
        raise AssertionError("the checkpoint is not signed with this key")
    origin, size_text, root, *_ = text.splitlines()
    assert origin == name
    size = int(size_text)
    assert size_text == str(size)
    entries = [entry for n in range(-(-size // TILE)) for entry in _bundle(folder, n, size)]
    assert len(entries) == size
    leaves = [hashlib.sha256(b"\x00" + entry).digest() for entry in entries]
    assert tree_hash(leaves) == base64.b64decode(root, validate=True)
    _check_tiles(folder, leaves)
    return Log(origin, key[1:], entries)


def cosigned(note: Path, vkeys: list[str]) -> dict[tuple[str, int], int]:
    """Return (key name, type) → time in seconds since 1970 of every cosignature in a note by one of the keys.

    Raises whatever does not hold.
    """
    text, _, signatures = note.read_text("utf-8").partition("\n\n")
    text += "\n"
    origin, size, root, *more = text.splitlines()
    assert not more
    found = {}
    for vkey in vkeys:
        name, key_id, encoded = vkey.split("+", 2)
        key = base64.b64decode(encoded, validate=True)
        assert hashlib.sha256(name.encode() + b"\n" + key).digest()[:4].hex() == key_id
        for line in signatures.splitlines():
            dash, signer, blob = line.split(" ")
            raw = base64.b64decode(blob, validate=True)
            if (dash, signer, raw[:4].hex()) != ("—", name, key_id):
                continue
            time, signature = int.from_bytes(raw[4:12], "big"), raw[12:]
            if key[0] == 4:
                signed = f"cosignature/v1\ntime {time}\n{text}".encode()
                Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature, signed)
            else:
                assert key[0] == 6
                parts = [b"subtree/v1\n\0", bytes([len(name)]), name.encode(), time.to_bytes(8, "big")]
                parts += [bytes([len(origin)]), origin.encode(), bytes(8), int(size).to_bytes(8, "big")]
                signed = b"".join(parts) + base64.b64decode(root, validate=True)
                MLDSA44PublicKey.from_public_bytes(key[1:]).verify(signature, signed)
            found[name, key[0]] = time
    return found


def head_of(note: Path) -> tuple[str, int, bytes]:
    """Return origin, size and root that a checkpoint states, its signatures unread."""
    origin, size, root, *_ = note.read_text("utf-8").splitlines()
    return origin, int(size), base64.b64decode(root, validate=True)


def tree_hash(leaves: list[bytes]) -> bytes:
    """Return RFC 6962's MTH of hashed leaves."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:half]) + tree_hash(leaves[half:])).digest()


def tile_path(level: str, number: int, width: int) -> str:
    """Return where a tile lies: groups of three digits, all but the last with x; a partial one in N.p/W."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    path = f"tile/{level}/" + "/".join(groups)
    return path if width == TILE else f"{path}.p/{width}"


def _bundle(folder: Path, number: int, size: int) -> list[bytes]:
    width = min(TILE, size - number * TILE)
    data = (folder / tile_path("entries", number, width)).read_bytes()
    entries = []
    while data:
        length = int.from_bytes(data[:2], "big")
        entries.append(data[2 : 2 + length])
        assert len(entries[-1]) == length
        data = data[2 + length :]
    assert len(entries) == width
    return entries


def _check_tiles(folder: Path, hashes: list[bytes]) -> None:
    """Compare every level's tiles with the hashes they must hold."""
    level = 0
    while hashes:
        for number in range(-(-len(hashes) // TILE)):
            held = hashes[number * TILE : (number + 1) * TILE]
            assert (folder / tile_path(str(level), number, len(held))).read_bytes() == b"".join(held)
        whole = range(0, len(hashes) // TILE * TILE, TILE)
        hashes = [tree_hash(hashes[at : at + TILE]) for at in whole]
        level += 1
