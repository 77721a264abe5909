"""Merkle trees after RFC 6962, cut into tiles after C2SP tlog-tiles. Pure functions: no file, no clock.

A tree over entries d[0..n) has leaves SHA-256(0x00 ‖ d) and nodes SHA-256(0x01 ‖ left ‖ right). A tile holds
up to 256 hashes of one level: hash i of tile (L, N) is MTH(d[(256 N + i) · 256^L : (256 N + i + 1) · 256^L]).
A full tile is one hash of the level above, so a tree of any size is read, proven and extended through a
handful of files that never change.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from protocols.encoding import Reader, bytes16
from protocols.errors import DecodeError, SignatureInvalid

HASH_BYTES: Final = 32
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
MAX_ENTRY_BYTES: Final = 0xFFFF
MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)
MAX_SIZE: Final = 1 << 53
"""Largest tree this code handles: seq stays an exact JSON integer."""

ENTRIES: Final = -1
"""The level of an entry bundle, `tile/entries/…`, which lies under the hash tiles of level 0."""

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_MAX_LEVEL: Final = 63
_TILE_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


def leaf_hash(entry: bytes) -> bytes:
    """Return SHA-256(0x00 ‖ entry), the leaf of one entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return SHA-256(0x01 ‖ left ‖ right), the node over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def merkle_root(hashes: Sequence[bytes]) -> bytes:
    """Return the RFC 6962 root over subtree hashes of one height, of which the last may stand for less.

    Pairing neighbours and carrying an odd last one up unchanged yields the same tree as splitting at the
    largest power of two.
    """
    if not hashes:
        return EMPTY_ROOT
    row = list(hashes)
    while len(row) > 1:
        odd = row[-1:] if len(row) % 2 else []
        row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)] + odd
    return row[0]


@dataclass(frozen=True, slots=True)
class Tile:
    """Coordinates of one tile file.

    Attributes:
        level: 0 for leaf hashes, higher for roots of full tiles below, `ENTRIES` for an entry bundle.
        index: position within the level.
        width: how many hashes (or entries) it holds, 1 to 256; below 256 it is partial.
    """

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """File in the log's folder: `tile/<L>/<N>[.p/<W>]`, N in groups of three digits: x001/x234/067."""
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.append(f"x{rest % 1000:03d}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(reversed(groups))}{partial}"

    @property
    def end(self) -> int:
        """How large the tree must be at least for this tile to be complete at its width, in entries."""
        return (self.index * TILE_WIDTH + self.width) << (TILE_HEIGHT * max(self.level, 0))

    @classmethod
    def parse(cls, path: str) -> "Tile":
        """Read `path` back.

        Raises:
            DecodeError: it is not the one spelling of a tile's path.
        """
        match = _TILE_PATH.fullmatch(path)
        if match:
            level, groups, width = match.groups()
            tile = cls(
                ENTRIES if level == "entries" else int(level),
                int(groups.replace("x", "").replace("/", "")),
                int(width) if width else TILE_WIDTH,
            )
            if tile.path == path and tile.level <= _MAX_LEVEL and tile.index < MAX_SIZE:
                return tile
        raise DecodeError("not a tile path of the form tile/<L>/<N>[.p/<W>]", code="bad-tile-path")


ReadTile: TypeAlias = Callable[[Tile], bytes]
"""Returns the bytes of a hash tile: 32 · width of them."""


def tile_at(size: int, level: int, index: int) -> Tile:
    """Return tile (level, index) as wide as a tree of `size` entries makes it.

    Raises:
        ValueError: a tree of that size has no such tile.
    """
    complete = size >> (TILE_HEIGHT * max(level, 0))
    width = min(TILE_WIDTH, complete - index * TILE_WIDTH)
    if index < 0 or width < 1:
        raise ValueError(f"a tree of {size} has no tile {index} at level {level}")
    return Tile(level, index, width)


def tiles(size: int) -> Iterator[Tile]:
    """Yield every hash tile of a tree of `size` entries, level by level, partial ones last in their level."""
    level = 0
    while size >> (TILE_HEIGHT * level):
        complete = size >> (TILE_HEIGHT * level)
        for index in range(-(-complete // TILE_WIDTH)):
            yield tile_at(size, level, index)
        level += 1


def split_tile(tile: Tile, data: bytes) -> list[bytes]:
    """Return the hashes of a hash tile.

    Raises:
        DecodeError: `data` is not exactly `tile.width` hashes long.
    """
    if len(data) != tile.width * HASH_BYTES:
        raise DecodeError(
            f"{tile.path} has {len(data)} bytes, {tile.width * HASH_BYTES} expected", code="bad-tile"
        )
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle: each entry after its big-endian u16 length.

    Raises:
        DecodeError: an entry is longer than 65,535 bytes.
    """
    return b"".join(bytes16(entry) for entry in entries)


def decode_bundle(data: bytes, width: int) -> list[bytes]:
    """Return the `width` entries of an entry bundle.

    Raises:
        DecodeError: it holds fewer or more.
    """
    entries, at = [], 0
    for _ in range(width):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        entries.append(data[start:at])
    if at != len(data):
        reader = Reader(data)  # slower, but it says what is wrong
        entries = [reader.bytes16() for _ in range(width)]
        reader.finish()
    return entries


def cut_tile(tile: Tile, data: bytes, width: int) -> bytes:
    """Return the first `width` hashes (or entries) of `tile`: the partial tile it grew from.

    Raises:
        DecodeError: a bundle that is not `tile.width` entries.
    """
    if tile.level == ENTRIES:
        return encode_bundle(decode_bundle(data, tile.width)[:width])
    return data[: width * HASH_BYTES]


@dataclass(slots=True)
class TileBuilder:
    """Grows a tree leaf by leaf and hands out each tile as it fills. Holds at most 255 hashes per level.

    Attributes:
        size: leaves added so far.
    """

    size: int = 0
    _levels: list[list[bytes]] = field(default_factory=list)

    def add(self, leaf: bytes) -> list[tuple[Tile, bytes]]:
        """Add a leaf hash and return the tiles that it completes, lowest level first."""
        self.size += 1
        return self._rise(leaf, 0)

    def add_tile(self, root: bytes) -> list[tuple[Tile, bytes]]:
        """Add 256 leaves at once, given as the root over them; return the tiles above theirs that fill.

        Raises:
            ValueError: the tree does not end with a full tile.
        """
        if self.size % TILE_WIDTH:
            raise ValueError(f"a tree of {self.size} does not end with a full tile")
        self.size += TILE_WIDTH
        if not self._levels:
            self._levels.append([])
        return self._rise(root, 1)

    def _rise(self, rising: bytes, low: int) -> list[tuple[Tile, bytes]]:
        done: list[tuple[Tile, bytes]] = []
        for level in range(low, _MAX_LEVEL + 1):
            if level == len(self._levels):
                self._levels.append([])
            hashes = self._levels[level]
            hashes.append(rising)
            if len(hashes) < TILE_WIDTH:
                break
            index = (self.size >> (TILE_HEIGHT * (level + 1))) - 1
            done.append((Tile(level, index), b"".join(hashes)))
            rising = merkle_root(hashes)
            hashes.clear()
        return done

    def partial_tiles(self) -> list[tuple[Tile, bytes]]:
        """Return the partial tile of each level that has one, lowest level first."""
        return [
            (tile_at(self.size, level, self.size >> (TILE_HEIGHT * (level + 1))), b"".join(hashes))
            for level, hashes in enumerate(self._levels)
            if hashes
        ]

    def root(self) -> bytes:
        """Return the root over all leaves added so far."""
        return _root_of_edge(self._levels)

    def copy(self) -> "TileBuilder":
        """Return an independent copy."""
        return TileBuilder(self.size, [list(hashes) for hashes in self._levels])


def _root_of_edge(levels: Sequence[Sequence[bytes]]) -> bytes:
    """Return the root from the partial tile of each level: all that a tree's right edge consists of."""
    below: list[bytes] = []
    for hashes in levels:
        # What the lower levels amount to is the unfinished right-most child of this one.
        row = [*hashes, *below]
        below = [merkle_root(row)] if row else []
    return below[0] if below else EMPTY_ROOT


def root_from_tiles(read: ReadTile, size: int) -> bytes:
    """Return the root of the tree of `size` entries; reads one partial tile per level.

    Raises:
        DecodeError: a tile has the wrong length.
    """
    levels: list[list[bytes]] = []
    while size >> (TILE_HEIGHT * len(levels)):
        level = len(levels)
        complete = size >> (TILE_HEIGHT * level)
        if complete % TILE_WIDTH:
            tile = tile_at(size, level, complete // TILE_WIDTH)
            levels.append(split_tile(tile, read(tile)))
        else:
            levels.append([])
    return _root_of_edge(levels)


def inclusion_proof(read: ReadTile, index: int, size: int) -> list[bytes]:
    """Return PATH(index, D[size]), RFC 6962 section 2.1.1: sibling hashes from the leaf up.

    Raises:
        ValueError: `index` is not below `size`.
        DecodeError: a tile has the wrong length.
    """
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    proof: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(_range_hash(read, size, middle, high))
            high = middle
        else:
            proof.append(_range_hash(read, size, low, middle))
            low = middle
    proof.reverse()
    return proof


def consistency_proof(read: ReadTile, old: int, new: int) -> list[bytes]:
    """Return PROOF(old, D[new]), RFC 6962 section 2.1.2: that the first `old` entries of both trees agree.

    Empty for `old` = 0 (nothing to prove) and for `old` = `new`.

    Raises:
        ValueError: not 0 ≤ old ≤ new.
        DecodeError: a tile has the wrong length.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} cannot extend one of {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    low, high = 0, new
    while high != old:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append(_range_hash(read, new, middle, high))
            high = middle
        else:
            proof.append(_range_hash(read, new, low, middle))
            low = middle
    if low:
        # The old tree's last complete subtree must be named; at low = 0 it is the old root itself.
        proof.append(_range_hash(read, new, low, high))
    proof.reverse()
    return proof


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that `leaf` is leaf `index` of the tree (`size`, `root`). RFC 9162 section 2.1.3.2.

    Raises:
        SignatureInvalid: the proof does not hold.
    """
    if not 0 <= index < size:
        raise _proof_invalid("inclusion")
    position, last = index, size - 1
    reached = leaf
    for sibling in proof:
        if last == 0:
            raise _proof_invalid("inclusion")
        if position & 1 or position == last:
            reached = node_hash(sibling, reached)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            reached = node_hash(reached, sibling)
        position >>= 1
        last >>= 1
    if last or reached != root:
        raise _proof_invalid("inclusion")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree (`new`, `new_root`) extends (`old`, `old_root`). RFC 9162 section 2.1.4.2.

    Raises:
        SignatureInvalid: the proof does not hold.
    """
    if not 0 <= old <= new:
        raise _proof_invalid("consistency")
    if old in (0, new):
        # Every tree extends the empty one, and the same size must be the same tree.
        if proof or old_root != (new_root if old == new else EMPTY_ROOT):
            raise _proof_invalid("consistency")
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise _proof_invalid("consistency")
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_reached = new_reached = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise _proof_invalid("consistency")
        if position & 1 or position == last:
            old_reached = node_hash(sibling, old_reached)
            new_reached = node_hash(sibling, new_reached)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new_reached = node_hash(new_reached, sibling)
        position >>= 1
        last >>= 1
    if last or old_reached != old_root or new_reached != new_root:
        raise _proof_invalid("consistency")


def _proof_invalid(kind: str) -> SignatureInvalid:
    return SignatureInvalid(
        f"the {kind} proof does not lead to the root",
        code="proof-invalid",
        hint="keep both checkpoints and the proof: together they show which log changed its past",
    )


def _split(count: int) -> int:
    """Return the largest power of two below `count` (`count` > 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_hash(read: ReadTile, size: int, low: int, high: int) -> bytes:
    """Return MTH(D[low:high]) for a range that a split of the tree of `size` produced."""
    count = high - low
    if count & (count - 1) == 0:
        return _subtree_hash(read, size, count.bit_length() - 1, low)
    middle = low + _split(count)
    return node_hash(_range_hash(read, size, low, middle), _range_hash(read, size, middle, high))


def _subtree_hash(read: ReadTile, size: int, height: int, low: int) -> bytes:
    """Return the hash of the complete subtree of 2^height leaves that starts at leaf `low`."""
    level, inside = divmod(height, TILE_HEIGHT)
    first = low >> (TILE_HEIGHT * level)
    tile = tile_at(size, level, first // TILE_WIDTH)
    hashes = split_tile(tile, read(tile))
    at = first % TILE_WIDTH
    return merkle_root(hashes[at : at + (1 << inside)])
