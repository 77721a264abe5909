"""A series of days: the same persons are tagged once, and have another tag every day. SPEC.md, section 8.

Key-holders keep their k, list owners the V of their keys; only keys that are new go round. What others see
of a day is made of V and that day's ctx, so nobody who lacks V recognises a person from day to day but by
what numbers imply.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, ProtocolAborted, Refused, StateConflict
from protocols.ids import Digest, JobId, Role
from protocols.jobs.job_type import Shelf
from protocols.party import Incoming, Outgoing, Rand
from protocols.psi import group
from protocols.psi.group import POINT_BYTES, Points
from protocols.psi.tagging import TAG_BYTES, Plan, Tagged, Tagging

OPENING: Final = 0x01FF
"""Round: list owner → key-holder, the series and how many points go round. No list has this index."""
GO: Final = 0x02FF
"""Round: key-holder → list owner, empty: it knows how many points come of every list."""

MARK_BYTES: Final = 16
MARK_KEY_BYTES: Final = 32
TOLD_BYTES: Final = 2 * MARK_BYTES
"""What the register keeps of a person it was told of: mark ‖ hash of the key."""
LEAST_POINTS: Final = 256
"""Fewest points of a list that go round on a later day."""

_TAG_DOMAIN: Final = b"minshu/series-tag/1"
_MARK_DOMAIN: Final = b"minshu/series-mark/1"
_TOLD_DOMAIN: Final = b"minshu/series-told/1"
_FILLER: Final = b"FILLER:"
"""Before random digits, a key that is nobody's: the tag of no identifier type."""
_OPENING_BYTES: Final = 32 + 4
_FORMAT: Final = "minshu-series/1"
_HEAD_LIMIT: Final = 1 << 24
_FIELDS: Final = 14
_AT_ONCE: Final = 1 << 16
"""Rows of a list that are handled at a time, so that few of them are in memory twice."""
_NAME: Final = re.compile(r"([0-9a-f]{64})-([0-9]{10})-([0-9]{11})-([0-9]{11})-([0-9a-f]{16})")


def day_tags(values: Points, ctx: bytes) -> npt.NDArray[np.bytes_]:
    """Return the tag of each V on the day of `ctx`: n items of 16 bytes, as `tagging.tags` does."""
    return _hashes(values, _TAG_DOMAIN + ctx, TAG_BYTES)


def marks_of(values: Points, series: bytes) -> bytes:
    """Return the mark of each V, 16 bytes each, the same on every day of a series."""
    return _hashes(values, _MARK_DOMAIN + series, MARK_BYTES).tobytes()


def _hashes(values: Points, prefix: bytes, size: int) -> npt.NDArray[np.bytes_]:
    sha256, made = hashlib.sha256, np.empty(len(values), dtype=f"S{size}")
    for start, raw in zip(range(0, len(values), _AT_ONCE), _in_blocks(values), strict=True):
        hashes = b"".join(
            sha256(prefix + raw[at : at + POINT_BYTES]).digest()[:size]
            for at in range(0, len(raw), POINT_BYTES)
        )
        made[start : start + _AT_ONCE] = np.frombuffer(hashes, dtype=made.dtype)
    return made


def _in_blocks(rows: npt.NDArray[Any]) -> Iterator[bytes]:
    return (rows[start : start + _AT_ONCE].tobytes() for start in range(0, len(rows), _AT_ONCE))


def sealed_marks(marks: bytes, mark_key: bytes) -> bytes:
    """Return each mark as one block of AES-256: the same from every source that has the day's key.

    Args:
        marks: n x 16 bytes, no two the same.
        mark_key: 32 bytes.
    """
    return _blocks(mark_key).encryptor().update(marks)


def opened_marks(sealed: bytes, mark_key: bytes) -> bytes:
    """Return the marks in what `sealed_marks` made."""
    return _blocks(mark_key).decryptor().update(sealed)


def _blocks(mark_key: bytes) -> Cipher[modes.ECB]:
    # A permutation of marks, and no more is wanted: equal marks have to be equal sealed.
    return Cipher(algorithms.AES(mark_key), modes.ECB())  # noqa: S305  # one block each, all different


def told_of(key: bytes, series: bytes) -> bytes:
    """Return what stands beside a mark for the typed key that it came with, 16 bytes."""
    return hashlib.sha256(_TOLD_DOMAIN + series + key).digest()[:MARK_BYTES]


def points_for(new: int) -> int:
    """Return how many points go round for so many new keys: a power of two, so that it tells little."""
    return max(LEAST_POINTS, 1 << (new - 1).bit_length() if new else 0)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Kept:
    """What a list owner's node keeps of a series between its days.

    Attributes:
        series: 32 bytes, the ctx of day 1's attempt.
        attempt: the number of that attempt.
        question: digest of what every day asks alike.
        roster: digest of the roster that every day names.
        begun: when day 1 began, by the node's own clock.
        until: when all of this goes at the latest, as agreed on day 1.
        day: the last day that ended here.
        job: its job.
        tag_key: of a key-holder its k, else empty.
        points: of a key-holder, by list, how many points of later days it may still raise, beside
            LEAST_POINTS for each day after the first; else empty.
        keys: the list of that day, n, ascending.
        values: n x 32, the V of each.
        told: of the register, by job, whom it was told of, TOLD_BYTES each.
    """

    series: bytes
    attempt: int
    question: Digest
    roster: Digest
    begun: datetime
    until: datetime
    day: int
    job: JobId
    tag_key: bytes
    points: Sequence[int]
    keys: npt.NDArray[np.bytes_]
    values: Points
    told: Mapping[JobId, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Kept(day {self.day}, {len(self.keys)} keys)"

    @property
    def at(self) -> tuple[bytes, int, JobId]:
        """How far the series is: another day, or another attempt of day 1, is elsewhere."""
        return self.series, self.day, self.job

    def pieces(self) -> Iterator[bytes]:
        """Yield the blob: u32 length ‖ head ‖ keys ‖ values ‖ told ‖ SHA-256 of all before."""
        head = canonical_json(
            {
                "format": _FORMAT,
                "series": self.series.hex(),
                "attempt": self.attempt,
                "question": self.question,
                "roster": self.roster,
                "begun": int(self.begun.timestamp()),
                "until": int(self.until.timestamp()),
                "day": self.day,
                "job": self.job,
                "tag_key": self.tag_key.hex(),
                "points": list(self.points),
                "width": self.keys.dtype.itemsize,
                "count": len(self.keys),
                "told": [[job, len(persons) // TOLD_BYTES] for job, persons in self.told.items()],
            }
        )
        digest = hashlib.sha256()
        start = len(head).to_bytes(4, "big"), head
        for piece in chain(start, _in_blocks(self.keys), _in_blocks(self.values), self.told.values()):
            digest.update(piece)
            yield piece
        yield digest.digest()

    @classmethod
    def read(cls, blob: memoryview) -> Self:
        """Read what `pieces` wrote; keys and values stay where they lie.

        Raises:
            DecodeError: it is not whole, or of another form.
        """
        bad = DecodeError("not what a series keeps", code="bad-series")
        body, end = blob[:-32], blob[-32:]
        if len(blob) < 36 or hashlib.sha256(body).digest() != end:
            raise bad
        at = 4 + int.from_bytes(body[:4], "big")
        head = decode_json(bytes(body[4:at]), limit=_HEAD_LIMIT)
        match head:
            case {
                "format": "minshu-series/1",
                "series": str(series),
                "attempt": int(attempt),
                "question": str(question),
                "roster": str(roster),
                "begun": int(begun),
                "until": int(until),
                "day": int(day),
                "job": str(job),
                "tag_key": str(tag_key),
                "points": list(points),
                "width": int(width),
                "count": int(count),
                "told": list(told),
            } if len(head) == _FIELDS and min(width, count + 1) > 0 and all(type(p) is int for p in points):
                pass
            case _:
                raise bad
        split = at + width * count
        told_at = split + POINT_BYTES * count
        by_job: dict[JobId, bytes] = {}
        for told_by, number in told:
            stop = told_at + TOLD_BYTES * number
            by_job[JobId(told_by)] = bytes(body[told_at:stop])
            told_at = stop
        if told_at != len(body):
            raise bad
        return cls(
            series=bytes.fromhex(series),
            attempt=attempt,
            question=Digest(question),
            roster=Digest(roster),
            begun=datetime.fromtimestamp(begun, UTC),
            until=datetime.fromtimestamp(until, UTC),
            day=day,
            job=JobId(job),
            tag_key=bytes.fromhex(tag_key),
            points=tuple(points),
            keys=np.frombuffer(body[at:split], dtype=f"S{width}"),
            values=np.frombuffer(body[split : split + POINT_BYTES * count], dtype=np.uint8).reshape(
                count, -1
            ),
            told=by_job,
        )


def lost(why: str) -> StateConflict:
    """Return the error of a series that cannot go on."""
    return StateConflict(
        why,
        code="series-lost",
        hint="begin a new series: submit the question without first and day",
    )


def load(shelf: Shelf, first: JobId) -> Kept | None:
    """Return what the shelf has of a series, None where nothing is there.

    Raises:
        StateConflict: `series-lost`, it is damaged.
    """
    names = _names(shelf, first)
    blob = shelf.get(names[-1]) if names else None  # of two that a crash left, the later attempt of day 1
    if blob is None:
        return None
    try:
        return Kept.read(blob)
    except (DecodeError, ValueError):
        raise lost("what this node kept of the series is damaged") from None


def store(shelf: Shelf, first: JobId, kept: Kept) -> None:
    """Put the state of a series in the place of what was there, whole.

    The name says what has to be known without opening it, for whoever opens a blob uses it: which series,
    the attempt of day 1, when that began, when all of it goes, and which question it is.
    """
    begun, until = int(kept.begun.timestamp()), int(kept.until.timestamp())
    name = f"{_digits(first)}-{kept.attempt:010d}-{begun:011d}-{until:011d}-{_digits(kept.question)[:16]}"
    with shelf.put(name) as write:
        for piece in kept.pieces():
            write(piece)
    for other in _names(shelf, first):
        if other != name:
            shelf.drop(other)


def drop_over(shelf: Shelf, now: datetime, most_days: int | None) -> int:
    """Drop every series whose days are over: as agreed on day 1, or by the days that are allowed today.

    Args:
        shelf: of the job type.
        now: by the node's own clock.
        most_days: how many days a series may live; None: no series may.

    Returns:
        How many went.
    """
    moment, gone = int(now.timestamp()), 0
    for name in shelf.names():
        said = _NAME.fullmatch(name)
        if said is not None and most_days is not None:
            allowed = int(said[3]) + most_days * int(timedelta(days=1).total_seconds())
            if moment < min(allowed, int(said[4])):
                continue
        shelf.drop(name)
        gone += 1
    return gone


def drop_others(shelf: Shelf, first: JobId, question: Digest) -> None:
    """Drop the series of a question but that one."""
    for name in shelf.names():
        if name.endswith(_digits(question)[:16]) and not name.startswith(_digits(first)):
            shelf.drop(name)


def _names(shelf: Shelf, first: JobId) -> list[str]:
    return [name for name in shelf.names() if name.startswith(_digits(first))]


def _digits(digest: Digest | JobId) -> str:
    return digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Place:
    """A series on a list owner's shelf, as an attempt of a day found it there.

    Attributes:
        shelf: of the job type at the owner's node.
        first: the job of day 1.
        day: which one the attempt is of.
        found: what was there when the attempt began, None for nothing.
    """

    shelf: Shelf
    first: JobId
    day: int
    found: Kept | None

    def check(self) -> Kept | None:
        """Return what is there now, which has to be what the attempt began from.

        Raises:
            StateConflict: `series-day`, another day has ended in between, or the series is gone;
                `series-lost`.
        """
        there = load(self.shelf, self.first)
        if (there and there.at) != (self.found and self.found.at):
            raise StateConflict(
                "the series went on or was deleted while this day was under way",
                code="series-day",
                hint="submit one day at a time, each under the number after the last",
            )
        return there

    def spend(self, counts: Sequence[int]) -> None:
        """Make it durable that so many points of each list are raised, before any of them is.

        Points that stand for no key of a list tell whoever sent them V of a person guessed: over a series
        they are as many as the lists themselves, and no more.

        Raises:
            Refused: `series-over`, they are more than may still go round.
            StateConflict: see `check`.
        """
        kept = self.check()
        assert kept is not None
        extra = LEAST_POINTS * (self.day - 1)
        left = [rest - count for rest, count in zip(kept.points, counts, strict=True)]
        if min(left) + extra < 0:
            raise Refused(
                "more points of a list would go round than one series may raise",
                code="series-over",
                hint="begin a new series; if a list has not changed much, ask its owner why it says so",
            )
        store(self.shelf, self.first, replace(kept, points=left))

    def put(self, kept: Kept) -> None:
        """Put the day in the place of the one before; day 1 ends other series of its question.

        Raises:
            StateConflict: see `check`.
        """
        there = self.check()
        store(self.shelf, self.first, kept if there is None or self.day == 1 else _going_on(kept, there))
        if self.day == 1:
            drop_others(self.shelf, self.first, kept.question)


def _going_on(kept: Kept, there: Kept) -> Kept:
    """Return a day with what day 1 settled, and the points that were counted while it ran."""
    return replace(kept, attempt=there.attempt, begun=there.begun, until=there.until, points=there.points)


class _RoundTrip(Tagging):
    """The tagging of what is new; the own list may be taken from it while others still pass."""

    def take_back(self) -> Tagged | None:
        """Return the own list once it is back, and keep nothing of it."""
        tagged, self.tagged = self.tagged, None
        if tagged is not None:
            del self._own
        return tagged


class DayTagging:
    """A list owner's part in the tagging of one day: what `Tagging` is for a job of its own.

    On day 1 everything goes round, on a later day what the shelf has no V of, under the scalars of day 1.
    """

    def __init__(
        self,
        plan: Plan,
        role: Role,
        keys: npt.NDArray[np.bytes_],
        kept: Kept | None,
        rand: Rand,
        *,
        spend: Callable[[Sequence[int]], object],
    ) -> None:
        """Take the day's list.

        Args:
            plan: of the day: whole lists as admitted, and the day's ctx.
            role: whose list it is.
            keys: distinct typed keys, ascending.
            kept: of the days before; None on day 1.
            rand: draws scalars and orders.
            spend: told by a key-holder, before it raises any, how many points of each list come on a later
                day; see `Place.spend`.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        self._plan, self._role, self._keys, self._rand = plan, role, keys, rand
        self._spend = spend
        self._index = plan.owners.index(role)
        if len(keys) != plan.counts[self._index]:
            raise ProtocolAborted("own list does not have the admitted number of keys", code="count-changed")
        holds = role in plan.key_holders
        self.series = plan.ctx if kept is None else kept.series
        self.tag_key = b""
        if holds:
            self.tag_key = group.random_scalar(rand) if kept is None else kept.tag_key
        self.values = np.empty((len(keys), POINT_BYTES), dtype=np.uint8)
        self._new = np.ones(len(keys), dtype=np.bool_)
        if kept is not None and len(kept.keys):
            places = np.minimum(np.searchsorted(kept.keys, keys), len(kept.keys) - 1)
            self._new = kept.keys[places] != keys
            self.values[~self._new] = kept.values[places[~self._new]]
        self._points = dict(enumerate(plan.counts)) if kept is None else {}
        self._awaited = {r for r in plan.key_holders if r != role} if kept is not None else set()
        self._inner: _RoundTrip | None = None
        if kept is not None:
            self._points[self._index] = points_for(int(self._new.sum()))
        if kept is None or not holds:
            self._inner = self._round_trip()
        self.tagged: Tagged | None = None
        """The whole list under its tags of the day, once the new keys are back."""

    @property
    def serving(self) -> bool:
        """Whether lists of others still have to pass here."""
        return self._inner is None or self._inner.serving

    @property
    def done(self) -> int:
        """Points handled so far, of `total`."""
        return 0 if self._inner is None else self._inner.done

    @property
    def total(self) -> int:
        """Points to be handled, as far as it is known how many there are."""
        return self._points.get(self._index, 0) if self._inner is None else self._inner.total

    def start(self) -> Iterable[Outgoing]:
        """Return the first window of own points on day 1, later how many there will be."""
        if not self._awaited:
            return self._begun()
        body = self.series + self._points[self._index].to_bytes(4, "big")
        return [Outgoing(role, OPENING, body) for role in self._plan.key_holders if role != self._role]

    def _begun(self) -> Iterable[Outgoing]:
        assert self._inner is not None
        return self._inner.start()

    def receive(self, message: Incoming) -> Iterable[Outgoing]:
        """Take a message of tagging, or one of those before it.

        Raises:
            ProtocolAborted: `unexpected-message`, `bad-length`, `bad-count`, `series-lost`, or as `Tagging`.
            Refused, StateConflict: see `Place.spend`.
        """
        if message.round == OPENING:
            return self._take_opening(message)
        if message.round == GO:
            return self._take_go(message)
        if self._inner is None or (self.tagged is not None and message.round & 0xFF == self._index):
            raise _unexpected(message)
        outgoing = self._inner.receive(message)
        if self._inner.tagged is not None:
            self._put_back(self._inner)
            self._finish()
        return outgoing

    def _take_opening(self, message: Incoming) -> Iterable[Outgoing]:
        """Take how many points come of another list; with the last of these, say that they may."""
        owners = self._plan.owners
        index = owners.index(message.sender) if message.sender in owners else self._index
        if self._inner is not None or index in self._points:
            raise _unexpected(message)
        if len(message.body) != _OPENING_BYTES or not message.last:
            raise ProtocolAborted(
                f"an opening of {len(message.body)} bytes, expected {_OPENING_BYTES}", code="bad-length"
            )
        if message.body[:32] != self.series:
            raise ProtocolAborted(
                "nodes keep parts of different attempts of day 1",
                code="series-lost",
                hint="begin a new series: submit the question without first and day",
            )
        count = int.from_bytes(message.body[32:], "big")
        if count != points_for(count) or count > points_for(self._plan.counts[index]):
            raise ProtocolAborted(
                "the number of points of a list is no power of two that fits the list", code="bad-count"
            )
        self._points[index] = count
        if len(self._points) < len(owners):
            return ()
        self._spend([self._points[i] for i in range(len(owners))])
        self._inner = self._round_trip()
        go = (Outgoing(owner, GO, b"") for owner in owners if owner != self._role)
        return go if self._awaited else chain(go, self._begun())

    def _take_go(self, message: Incoming) -> Iterable[Outgoing]:
        if message.sender not in self._awaited:
            raise _unexpected(message)
        if message.body or not message.last:
            raise ProtocolAborted("a key-holder's go is not empty", code="bad-length")
        self._awaited.remove(message.sender)
        return () if self._awaited or self._inner is None else self._begun()

    def _round_trip(self) -> _RoundTrip:
        """Return the tagging of what is new, filled up with keys that are nobody's."""
        owners, sent = self._plan.owners, self._keys if self._new.all() else self._keys[self._new]
        missing = self._points[self._index] - len(sent)
        if missing:
            sent = np.concatenate([sent, self._fillers(missing)])
        counts = tuple(self._points.get(i, 0) for i in range(len(owners)))
        plan = Plan(owners, self._plan.key_holders, counts, self.series)
        return _RoundTrip(plan, self._role, sent, self._rand, key=self.tag_key)

    def _fillers(self, count: int) -> npt.NDArray[np.bytes_]:
        """Return keys that are nobody's: 16 random bytes in hexadecimal behind what no identifier has."""
        size = len(_FILLER) + 32
        fillers = np.empty((count, size), dtype=np.uint8)
        fillers[:, : len(_FILLER)] = np.frombuffer(_FILLER, dtype=np.uint8)
        for start in range(0, count, _AT_ONCE):
            drawn = fillers[start : start + _AT_ONCE, len(_FILLER) :]
            digits = self._rand(16 * len(drawn)).hex().encode()
            drawn[:] = np.frombuffer(digits, dtype=np.uint8).reshape(-1, 32)
        return fillers.view(f"S{size}").reshape(count)

    def _put_back(self, inner: _RoundTrip) -> None:
        """Put V of each new key in its place; those of fillers go."""
        back, places = inner.take_back(), np.flatnonzero(self._new)
        assert back is not None
        for start in range(0, len(back), _AT_ONCE):
            order = back.order[start : start + _AT_ONCE]
            own = order < len(places)
            self.values[places[order[own]]] = back.values[start : start + _AT_ONCE][own]

    def _finish(self) -> None:
        """Make the day's tags of all V.

        Raises:
            ProtocolAborted: `repeated-tag`.
        """
        tags = day_tags(self.values, self._plan.ctx)
        order = np.argsort(tags, kind="stable")
        tags = tags[order]
        if bool((tags[1:] == tags[:-1]).any()):
            raise ProtocolAborted(
                "two keys of the own list came back as one tag",
                code="repeated-tag",
                hint="a key-holder did not raise every point to its key; compare versions and journals",
            )
        self.tagged = Tagged(tags, self.values[order], order.astype(np.uint32))


def _unexpected(message: Incoming) -> ProtocolAborted:
    return ProtocolAborted(f"round {message.round} from {message.sender}: not due", code="unexpected-message")


def wanted_bits(wanted: Sequence[bool] | npt.NDArray[np.bool_], room: int) -> bytes:
    """Return a bit for each of `room` places, first bit highest, those beyond `wanted` zero."""
    bits = np.zeros(room, dtype=np.bool_)
    bits[: len(wanted)] = wanted
    return np.packbits(bits).tobytes()


def wanted_places(bits: bytes, count: int) -> npt.NDArray[np.int64]:
    """Return the places whose bit is set.

    Raises:
        ProtocolAborted: `bad-marks`, one at or beyond `count`.
    """
    places = np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8)))
    if len(places) and int(places[-1]) >= count:
        raise ProtocolAborted("an envelope is wanted of a place that has none", code="bad-marks")
    return places
