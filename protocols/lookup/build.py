"""How the owner of a look-up table makes it: one PRF output for each person, kept from day to day.

The work is cut into shards of about 2^16 persons by a salted digest of their keys. Each shard's PRF outputs
are a blob on the shelf, so that a rebuild computes those of new persons alone; sealed rows of a whole table
wait in another until they are sent in order of tags. So nearly nothing of a table is in memory. SPEC.md,
"The owner's shelf".
"""

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.encoding import b64decode, b64encode, canonical_json, decode_json
from protocols.errors import DecodeError, ProtocolAborted
from protocols.jobs.job_type import Shelf
from protocols.lookup.inputs import LookupList
from protocols.lookup.plan import Lookup
from protocols.lookup.table import (
    BUILD_BYTES,
    SEED_BYTES,
    TAG_BYTES,
    Manifest,
    Offer,
    check_size,
    lower_bound,
    row_bytes,
    seal,
    split,
    width_of,
)
from protocols.party import MAX_BODY_BYTES, Rand
from protocols.psi import group, oprf
from protocols.psi.oprf import KeyPair

KEY_SCHEMA: Final = "minshu-lookup-key/1"
LAST_SCHEMA: Final = "minshu-lookup-last/1"

KEY_DAYS: Final = 30
"""A key so many days old is replaced: a node that kept what it computed with it learns no more by that."""

SHARD_ROWS: Final = 1 << 16
"""Persons of a shard, about."""

SALT_BYTES: Final = 32
DIGEST_BYTES: Final = 16
MARK_BYTES: Final = 8
"""Of a row's digest, by which the owner notices that it has changed."""

_MAX_BITS: Final = 16
_RUN: Final = 8192
"""Rows that a thread works on at a time: so many that one thread computes points while another seals."""

_PIECE: Final = 1 << 16

_KEEPING: Final = threading.Lock()
"""Held while the record of a key is read and written again: people rotate while sessions begin."""

_PRF: Final = np.dtype([("digest", f"S{DIGEST_BYTES}"), ("tag", f"S{TAG_BYTES}"), ("seed", f"V{SEED_BYTES}")])
_HEAD: Final = np.dtype([("tag", f"S{TAG_BYTES}"), ("build", f"V{BUILD_BYTES}")])
_SENT: Final = np.dtype([("tag", f"S{TAG_BYTES}"), ("build", f"V{BUILD_BYTES}"), ("mark", f"V{MARK_BYTES}")])


@dataclass(frozen=True, slots=True)
class OwnerKey:
    """The key of one table, as it lies on the owner's shelf.

    Attributes:
        dataset: whose rows it hides.
        version: counts from 1.
        pair: the OPRF key.
        salt: for digests of keys and rows on the shelf.
        bits: of a digest, by which PRF outputs are cut into shards.
        day: on which the job was created that it was drawn for.
        rotate: whether the next session draws another.
    """

    dataset: str
    version: int
    pair: KeyPair
    salt: bytes
    bits: int
    day: date
    rotate: bool = False

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json({
            "schema": KEY_SCHEMA,
            "dataset": self.dataset,
            "version": self.version,
            "secret": b64encode(self.pair.secret),
            "public": b64encode(self.pair.public),
            "salt": b64encode(self.salt),
            "bits": self.bits,
            "day": self.day.isoformat(),
            "rotate": self.rotate,
        })  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a key strictly.

        Raises:
            DecodeError: another form.
        """
        match decode_json(data):
            case {
                "schema": "minshu-lookup-key/1",
                "dataset": str(dataset),
                "version": int(version),
                "secret": str(secret),
                "public": str(public),
                "salt": str(salt),
                "bits": int(bits),
                "day": str(day),
                "rotate": bool(rotate),
            } as value if len(value) == 9:
                pair = KeyPair(b64decode(secret), b64decode(public))
                return cls(dataset, version, pair, b64decode(salt), bits, _day(day), rotate)
        raise DecodeError("not the key of a look-up table", code="bad-key")

    def __repr__(self) -> str:
        return f"OwnerKey({self.dataset!r}, version {self.version})"


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise DecodeError("a key of no day", code="bad-key") from None


def put(shelf: Shelf, name: str, data: bytes) -> None:
    """Put one blob."""
    with shelf.put(name) as write:
        write(data)


def rotate(shelf: Shelf, dataset: str) -> int:
    """Have the next session of every table of a dataset draw a new key; return how many tables there are.

    Sessions under way go on with the key that they have.
    """
    marked = 0
    for name in shelf.names():
        if not name.startswith("key."):
            continue
        with _KEEPING:
            key = _kept_key(shelf, name)
            if key is not None and key.dataset == dataset:
                put(shelf, name, replace(key, rotate=True).encode())
                marked += 1
    return marked


def _kept_key(shelf: Shelf, name: str) -> OwnerKey | None:
    blob = shelf.get(name)
    return None if blob is None else OwnerKey.decode(blob.tobytes())


def current_key(shelf: Shelf, lookup: Lookup, rand: Rand) -> OwnerKey:
    """Return the key of a table; a new one, durable, where there is none, it is old, or is to be rotated.

    What was computed with an older key is dropped.
    """
    with _KEEPING:
        old = _kept_key(shelf, f"key.{lookup.table}")
        if old is not None and not old.rotate and (lookup.day - old.day).days < KEY_DAYS:
            return old
        pair = oprf.derive_key_pair(rand(oprf.SEED_BYTES), b"minshu/lookup/1", lookup.mode)
        key = OwnerKey(lookup.dataset, old.version + 1 if old else 1, pair, rand(SALT_BYTES), 0, lookup.day)
        put(shelf, f"key.{lookup.table}", key.encode())
        for name in shelf.names():
            if name == f"last.{lookup.table}" or name.startswith(f"prf.{lookup.table}."):
                shelf.drop(name)
    return key


@dataclass(frozen=True, slots=True)
class Last:
    """The table that a clerk holds, as its owner remembers it; `records`: a blob with one of each row."""

    manifest: Manifest
    records: str

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return canonical_json({
            "schema": LAST_SCHEMA, "manifest": self.manifest.to_json(), "records": self.records
        })  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it strictly.

        Raises:
            DecodeError: another form.
        """
        match decode_json(data):
            case {"schema": "minshu-lookup-last/1", "manifest": manifest, "records": str(records)} as value:
                if len(value) == 3:
                    return cls(Manifest.from_json(manifest), records)
        raise DecodeError("not the memory of a look-up table", code="bad-last")


_UNDER_WAY: Final[weakref.WeakSet["Build"]] = weakref.WeakSet()
"""Tables being made in this process, whose blobs are not to be taken for what an end left behind."""


class Build:
    """One table being made for one clerk: `step` by step, then `settle`, then `messages`, then `commit`."""

    def __init__(self, lookup: Lookup, people: LookupList, shelf: Shelf, rand: Rand, have: bytes) -> None:
        """Begin, and clear away what tables left behind that were never finished.

        Args:
            lookup: the session.
            people: who is in the scope.
            shelf: the owner's.
            rand: draws keys and this build's number.
            have: identity of the clerk's table, empty for none.

        Raises:
            ProtocolAborted: `table-too-large`.
        """
        self._lookup, self._people, self._shelf = lookup, people, shelf
        self._width = width_of(people.longest)
        check_size(people.distinct_keys, self._width)
        self.key = current_key(shelf, lookup, rand)
        self.build = rand(BUILD_BYTES)
        self._last_name = f"last.{lookup.table}"
        self._records = f"sent.{lookup.table}.{self.build.hex()}"
        with _KEEPING:
            _UNDER_WAY.add(self)
        self._clear()
        self._base = self._known(have)
        self._cached_bits = self.key.bits
        shards = max(len(people.keys) - 1, 0) // SHARD_ROWS
        self._bits = max(self.key.bits, min(shards.bit_length(), _MAX_BITS))
        self._starts, self._items = self._sharded()
        self._tags = np.empty(len(people.keys), dtype=f"S{TAG_BYTES}")
        self._marks = np.empty(len(people.keys), dtype=f"V{MARK_BYTES}")
        self._next = 0
        self._changed: npt.NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        self._removed = b""
        self._order: npt.NDArray[np.uint32] = self._items  # places of shards in order of tags, once settled
        self.offer: Offer | None = None

    def _last(self) -> Last | None:
        blob = self._shelf.get(self._last_name)
        return None if blob is None else Last.decode(blob.tobytes())

    def _clear(self) -> None:
        """Drop drafts and records of this table that are of no build under way, nor of what the clerk has."""
        with _KEEPING:
            last = self._last()
            builds = {each.build.hex() for each in _UNDER_WAY}
            for name in self._shelf.names():
                kind, table, build = (*name.split(".", 3), "", "")[:3]
                ours = kind in ("draft", "sent") and table == self._lookup.table
                if ours and build not in builds and (last is None or name != last.records):
                    self._shelf.drop(name)

    def end(self) -> None:
        """Drop what only this build needed, finished or not. PRF outputs stay."""
        with _KEEPING:
            _UNDER_WAY.discard(self)
        self._clear()

    def _known(self, have: bytes) -> Last | None:
        """Return what the clerk has, if a change of it can be told."""
        last = self._last()
        if last is None:
            return None
        fits = (last.manifest.key_version, last.manifest.public, last.manifest.width) == (
            self.key.version, self.key.pair.public, self._width
        )  # fmt: skip
        same = fits and last.manifest.identity() == have
        return last if same and self._shelf.get(last.records) is not None else None

    # shards

    def _sharded(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """Return where each shard starts, one more for the end, and the places of its keys in the list."""
        count = len(self._people.keys)
        if not self._bits:
            return np.array([0, count]), np.arange(count, dtype=np.uint32)
        shard = np.empty(count, dtype=np.uint16)
        for start in range(0, count, _PIECE):
            keys: list[bytes] = self._people.keys[start : start + _PIECE].tolist()
            first = np.frombuffer(self._digests(keys), dtype=f"S{DIGEST_BYTES}").view(">u2")
            shard[start : start + len(keys)] = first[:: DIGEST_BYTES // 2] >> (16 - self._bits)
        sizes = np.bincount(shard, minlength=1 << self._bits)
        starts = np.concatenate(([0], np.cumsum(sizes)))
        return starts, np.argsort(shard, kind="stable").astype(np.uint32)

    def _digests(self, keys: Sequence[bytes]) -> bytes:
        sha256, salt = hashlib.sha256, self.key.salt
        return b"".join(sha256(salt + key).digest()[:DIGEST_BYTES] for key in keys)

    @property
    def rows_ready(self) -> int:
        """Persons whose PRF output is there."""
        return int(self._starts[self._next])

    @property
    def ready(self) -> bool:
        """Whether `settle` is next."""
        return self._next == len(self._starts) - 1

    def step(self) -> None:
        """Make the next shard."""
        shard, self._next = self._next, self._next + 1
        span = slice(int(self._starts[shard]), int(self._starts[shard + 1]))
        items = self._items[span]
        keys = self._people.keys[items]
        digests = np.frombuffer(self._digests(keys.tolist()), dtype=f"S{DIGEST_BYTES}")
        order = np.argsort(digests, kind="stable")
        self._items[span] = items = items[order]
        known = self._cached(shard)
        entries = np.empty(len(items), dtype=_PRF)
        entries["digest"] = digests = digests[order]
        at = np.searchsorted(known["digest"], digests)
        found = np.zeros(len(items), dtype=np.bool_)
        inside = at < len(known)
        found[inside] = known["digest"][at[inside]] == digests[inside]
        entries[found] = known[at[found]]
        sealed = self._fill(entries, found, keys[order], self._people.plain(items), self._marks[span])
        if self._bits != self._cached_bits or len(known) != len(items) or not found.all():
            put(self._shelf, self._prf_name(self._bits, shard), entries.tobytes())
        if self._base is None:
            put(self._shelf, self._draft_name(shard), sealed)
        self._tags[span] = entries["tag"]

    def _fill(
        self,
        entries: npt.NDArray[np.void],
        found: npt.NDArray[np.bool_],
        keys: npt.NDArray[np.bytes_],
        plain: list[bytes],
        marks: npt.NDArray[np.void],
    ) -> bytes:
        """Compute missing PRF outputs, every row's mark and, for a whole table, sealed rows."""
        raw = entries.view(np.uint8).reshape(len(entries), _PRF.itemsize)
        sha256, salt, build, width = hashlib.sha256, self.key.salt, self.build, self._width
        whole = self._base is None

        def work(start: int, stop: int) -> bytes:
            sealed: list[bytes] = []
            for first in range(start, stop, _RUN):
                run = slice(first, min(first + _RUN, stop))
                missing = first + np.flatnonzero(~found[run])
                outputs = oprf.evaluate(self.key.pair, keys[missing].tolist(), self._lookup.mode)
                secrets = b"".join(output[: TAG_BYTES + SEED_BYTES] for output in outputs)
                person = (len(missing), TAG_BYTES + SEED_BYTES)
                raw[missing, DIGEST_BYTES:] = np.frombuffer(secrets, dtype=np.uint8).reshape(person)
                rows = plain[run]
                joined = b"".join(sha256(salt + row).digest()[:MARK_BYTES] for row in rows)
                marks[run] = np.frombuffer(joined, dtype=marks.dtype)
                if whole:
                    persons = raw[run, DIGEST_BYTES:].tobytes()
                    for at, row in zip(range(0, len(persons), TAG_BYTES + SEED_BYTES), rows, strict=True):
                        tag, seed = split(persons, at)
                        sealed += (tag, build, seal(seed, build, row, width))
            return b"".join(sealed)

        return b"".join(_spread(work, len(entries)))

    def _prf_name(self, bits: int, shard: int) -> str:
        return f"prf.{self._lookup.table}.{self.key.version}.{bits}.{shard:04x}"

    def _draft_name(self, shard: int) -> str:
        return f"draft.{self._lookup.table}.{self.build.hex()}.{shard:04x}"

    def _cached(self, shard: int) -> npt.NDArray[np.void]:
        """Return known PRF outputs in order of digests: a shard's, or those of what it was part of."""
        before = shard >> self._bits - self._cached_bits
        blob = self._shelf.get(self._prf_name(self._cached_bits, before))
        if blob is None or len(blob) % _PRF.itemsize:
            return np.empty(0, dtype=_PRF)
        return np.frombuffer(blob, dtype=_PRF)

    # the table

    def settle(self) -> Offer:
        """Put all rows in order, compare with what the clerk has and return what it is to get.

        Raises:
            ProtocolAborted: `repeated-tag`, two persons have one tag, once in 2^50 tables of ten million.
        """
        if self._bits != self._cached_bits:
            self._refined()
        count = len(self._tags)
        order = np.argsort(self._tags, kind="stable").astype(np.uint32)
        self._tags = tags = self._tags[order]
        self._marks = marks = self._marks[order]
        self._order = order
        if bool((tags[1:] == tags[:-1]).any()):
            raise ProtocolAborted(
                "two persons have the same tag", code="repeated-tag", hint="rotate the key of the dataset"
            )
        old_count = self._base.manifest.rows if self._base is not None else 0
        old_at, removed, changed, digest = 0, [], np.ones(count, dtype=np.bool_), hashlib.sha256()
        with self._shelf.put(self._records) as write:
            for start in range(0, max(count, 1), _PIECE):
                stop = min(start + _PIECE, count)
                records = np.empty(stop - start, dtype=_SENT)
                records["tag"], records["mark"] = tags[start:stop], marks[start:stop]
                records["build"] = np.void(self.build)
                if self._base is not None:
                    old = self._old_records()  # mapped anew, so that no more of it than a piece is in memory
                    upto = old_count
                    if stop < count:
                        upto = lower_bound(old, _SENT.itemsize, old_count, _tag(tags[stop]))
                    before = np.frombuffer(
                        old, dtype=_SENT, count=upto - old_at, offset=old_at * _SENT.itemsize
                    )
                    old_at = upto
                    same, gone = _compared(before, records)
                    changed[start:stop] = ~same
                    removed.append(gone)
                digest.update(records[["tag", "build"]].astype(_HEAD).tobytes())
                write(records.tobytes())
        del marks
        self._marks = np.empty(0, dtype=self._marks.dtype)
        self._changed = np.flatnonzero(changed).astype(np.uint32)
        self._removed = b"".join(removed)
        self.offer = self._offered(count, digest.digest())
        return self.offer

    def _old_records(self) -> memoryview:
        blob = self._shelf.get(self._base.records) if self._base is not None else None
        if blob is None:
            raise _SHELF_CHANGED
        return blob

    def _offered(self, count: int, digest: bytes) -> Offer:
        lookup, key, base = self._lookup, self.key, self._base
        if base is not None and not self._removed and not len(self._changed):
            self._shelf.drop(self._records)
            return Offer("keep", 0, 0, base.manifest)
        version = 1 if base is None else base.manifest.version + 1
        manifest = Manifest(
            lookup.mode, key.version, key.pair.public, version, count, self._width, lookup.fields, digest
        )
        if base is None:
            return Offer("whole", 0, count, manifest)
        return Offer("delta", len(self._removed) // TAG_BYTES, len(self._changed), manifest)

    def _refined(self) -> None:
        """Remember that PRF outputs are cut into finer shards now.

        A rotation that was asked for meanwhile stays asked for; a key that took this one's place, in place.
        """
        self.key = replace(self.key, bits=self._bits)
        with _KEEPING:
            kept = _kept_key(self._shelf, f"key.{self._lookup.table}")
            if kept is not None and (kept.version, kept.pair) == (self.key.version, self.key.pair):
                kept = replace(kept, bits=self._bits)
                put(self._shelf, f"key.{self._lookup.table}", kept.encode())
        for shard in range(1 << self._cached_bits):
            self._shelf.drop(self._prf_name(self._cached_bits, shard))

    def removed(self) -> Iterator[bytes]:
        """Yield the tags that are gone, in order, in bodies of messages."""
        step = MAX_BODY_BYTES // TAG_BYTES * TAG_BYTES
        for start in range(0, len(self._removed), step):
            yield self._removed[start : start + step]

    def rows(self) -> Iterator[bytes]:
        """Yield the rows that the clerk is to get, in order, in bodies of messages."""
        assert self.offer is not None, "settled first"
        step = MAX_BODY_BYTES // row_bytes(self._width)
        for start in range(0, self.offer.sent, _PIECE):
            changed = self._changed[start : start + _PIECE]
            places = self._order[changed]
            body = self._drafted(places) if self._base is None else self._sealed(places, self._tags[changed])
            for at in range(0, len(places), step):
                yield body[at * row_bytes(self._width) : (at + step) * row_bytes(self._width)]

    def _drafted(self, places: npt.NDArray[np.uint32]) -> bytes:
        return self._gathered(places, np.dtype(f"V{row_bytes(self._width)}"), self._draft_name).tobytes()

    def _sealed(self, places: npt.NDArray[np.uint32], tags: npt.NDArray[np.bytes_]) -> bytes:
        entries = self._gathered(places, _PRF, lambda shard: self._prf_name(self._bits, shard))
        if not bool((entries["tag"] == tags).all()):
            raise _SHELF_CHANGED
        raw, build, sealed = entries.tobytes(), self.build, list[bytes]()
        plain = self._people.plain(self._items[places])
        for at, row in zip(range(DIGEST_BYTES, len(raw), _PRF.itemsize), plain, strict=True):
            tag, seed = split(raw, at)
            sealed += (tag, build, seal(seed, build, row, self._width))
        return b"".join(sealed)

    def _gathered(
        self, places: npt.NDArray[np.uint32], form: np.dtype[np.void], name: Callable[[int], str]
    ) -> npt.NDArray[np.void]:
        """Return records at these places of all shards together.

        Raises:
            ProtocolAborted: `shelf-changed`, a blob is gone.
        """
        result = np.empty(len(places), dtype=form)
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], self._starts)
        for shard, (start, stop) in enumerate(pairwise(ends.tolist())):
            if start == stop:
                continue
            blob = self._shelf.get(name(shard))
            if blob is None:
                raise _SHELF_CHANGED
            within = places[order[start:stop]] - int(self._starts[shard])
            result[order[start:stop]] = np.frombuffer(blob, dtype=form)[within]
        return result

    def sent(self) -> None:
        """Drop what waited to be sent, and the rows' order."""
        if self._base is None:
            for shard in range(len(self._starts) - 1):
                self._shelf.drop(self._draft_name(shard))

    def commit(self) -> None:
        """Remember durably that the clerk has this table."""
        assert self.offer is not None, "settled first"
        if self.offer.give != "keep":
            put(self._shelf, self._last_name, Last(self.offer.manifest, self._records).encode())
        self.end()


_SHELF_CHANGED: Final = ProtocolAborted(
    "a part of the table is no longer on the shelf as it was made",
    code="shelf-changed",
    hint="start the session again, one at a time for each table while it begins",
)


def _spread(work: Callable[[int, int], bytes], count: int) -> list[bytes]:
    """Run `work(start, stop)` over all of `count` on all cores and return what it returns, in order."""
    workers = group.WORKERS if count > _RUN else 1
    step = max(-(-count // workers), 1)
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    if len(spans) < 2:
        return [work(*span) for span in spans]
    with ThreadPoolExecutor(len(spans)) as pool:
        return list(pool.map(lambda span: work(*span), spans))


def _tag(item: np.bytes_) -> bytes:
    return bytes(item).ljust(TAG_BYTES, b"\0")  # numpy cuts trailing zeros of an item taken out


def _compared(
    before: npt.NDArray[np.void], records: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.bool_], bytes]:
    """Give unchanged records their old build; return which those are, and the tags that are gone."""
    old = before["tag"]
    at = np.searchsorted(old, records["tag"])
    inside = np.flatnonzero(at < len(old))
    held = inside[old[at[inside]] == records["tag"][inside]]
    same = np.zeros(len(records), dtype=np.bool_)
    same[held] = before["mark"][at[held]] == records["mark"][held]
    records["build"][same] = before["build"][at[same]]
    gone = np.ones(len(old), dtype=np.bool_)
    gone[at[held]] = False
    return same, old[gone].tobytes()
