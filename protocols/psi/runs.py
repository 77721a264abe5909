"""Lists longer than memory: rows of one numpy type in a store, sorted by runs and put in random order.

Everything here holds some times `spill_rows` rows in memory at once, whatever the lists' lengths. Runs are
sorted in memory and written; `merge` then takes what is up to a common key from all of them, window by
window (external merge sort: Knuth, The Art of Computer Programming, volume 3, section 5.4).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from protocols.party import Rand
from protocols.psi import group
from protocols.resources import Resources, Store

Array: TypeAlias = npt.NDArray[Any]

MAX_BUCKETS: Final = 1 << 16


class Rows:
    """Rows of one type in a store, or a stretch of them."""

    def __init__(self, store: Store, dtype: npt.DTypeLike, start: int = 0, stop: int | None = None) -> None:
        """Take the rows from `start` to `stop` of a store; without a stop all there are, and to come."""
        self._store, self.dtype = store, np.dtype(dtype)
        self._start, self._stop = start, stop

    def __len__(self) -> int:
        """How many rows there are."""
        return (self._store.size // self.dtype.itemsize if self._stop is None else self._stop) - self._start

    def append(self, rows: Array) -> None:
        """Add rows at the end of the store.

        Raises:
            StateConflict: see `Store.append`.
        """
        plain = np.ascontiguousarray(rows, self.dtype)
        self._store.append(plain.reshape(-1).view(np.uint8).data)

    def read(self, start: int, stop: int) -> Array:
        """Return the rows from one place to another, read-only.

        Raises:
            ValueError: there are not so many.
            StateConflict: see `Store.read`.
        """
        width = self.dtype.itemsize
        data = self._store.read((self._start + start) * width, (stop - start) * width)
        return np.frombuffer(data, self.dtype)

    def part(self, start: int, stop: int) -> "Rows":
        """Return the stretch from one place to another."""
        return Rows(self._store, self.dtype, self._start + start, self._start + stop)

    def blocks(self, size: int) -> Iterator[Array]:
        """Yield all rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))

    def drop(self) -> None:
        """Give the store's room back."""
        self._store.drop()


def words(texts: npt.NDArray[np.bytes_]) -> list[npt.NDArray[np.uint64]]:
    """Return texts of bytes as numbers, the last eight bytes first: what `np.lexsort` sorts them by, fast."""
    count = -(-texts.dtype.itemsize // 8)
    filled = np.zeros(len(texts), dtype=f"S{8 * count}")
    filled[:] = texts
    columns = filled.view(">u8").reshape(len(texts), count)
    return [columns[:, place].astype(np.uint64) for place in reversed(range(count))]


def taken(rows: Array, order: npt.NDArray[np.intp]) -> Array:
    """Return rows in another order: as `rows[order]`, which moves rows of several columns slowly."""
    plain = np.ascontiguousarray(rows)
    raw = plain.view(np.uint8).reshape(len(plain), plain.dtype.itemsize)
    return np.take(raw, order, axis=0).reshape(-1).view(plain.dtype) if len(order) else plain[:0]


def merge(parts: Sequence[Rows], most: int, field: str | None = None) -> Iterator[list[Array]]:
    """Yield stretches of all parts, each up to a common key; one after the other they are all of the parts.

    At least one part's window of rows goes whole in each step, whatever the keys: skewed ones cost time, no
    memory.

    Args:
        parts: each ascends, and has no key twice.
        most: rows that the windows of all parts have together, about.
        field: the column that is the key; None where a row is its key.

    Raises:
        StateConflict: see `Store.read`.
    """
    total = sum(map(len, parts))
    sizes = [max(1, most * len(part) // max(total, 1)) for part in parts]
    windows: list[Array] = [np.empty(0, part.dtype) for part in parts]
    seen = [0] * len(parts)
    while any(map(len, windows)) or any(place < len(part) for place, part in zip(seen, parts, strict=True)):
        for i, part in enumerate(parts):
            stop = min(seen[i] + sizes[i] - len(windows[i]), len(part))
            if stop > seen[i]:
                more = part.read(seen[i], stop)
                windows[i] = np.concatenate([windows[i], more]) if len(windows[i]) else more
                seen[i] = stop
        ends = [_key(windows[i], field)[-1] for i, part in enumerate(parts) if seen[i] < len(part)]
        cuts = [len(window) for window in windows]
        if ends:
            # Whoever has more behind its window has nothing up to here behind it: keys ascend.
            cut = min(ends)
            cuts = [int(np.searchsorted(_key(window, field), cut, side="right")) for window in windows]
        yield [window[:stop] for window, stop in zip(windows, cuts, strict=True)]
        windows = [window[stop:] for window, stop in zip(windows, cuts, strict=True)]


def _key(rows: Array, field: str | None) -> Array:
    return rows if field is None else rows[field]


class Runs:
    """Collects rows in any order, and yields them sorted; each key once."""

    def __init__(
        self, resources: Resources, dtype: npt.DTypeLike, field: str, tidy: Callable[[Array], Array]
    ) -> None:
        """Start empty.

        Args:
            resources: room, and how many rows are held in memory.
            dtype: of a row.
            field: the column that is the key.
            tidy: sorts rows by key and leaves one of each. Applied to runs, and then to what it made of
                several: which row it leaves must not depend on that.
        """
        self._resources, self._field, self._tidy = resources, field, tidy
        self._dtype = np.dtype(dtype)
        self._waiting: list[Array] = []
        self._count = 0
        self._runs: list[Rows] = []
        self._store: Rows | None = None

    @property
    def spilled(self) -> bool:
        """Whether there are more rows than are held in memory."""
        return self._store is not None

    def add(self, rows: Array) -> None:
        """Take rows.

        Raises:
            StateConflict: see `Store.append`.
        """
        most = self._resources.spill_rows
        while self._count + len(rows) > most:
            room = max(most - self._count, 0)
            self._hold(rows[:room])
            rows = rows[room:]
            self._write()
        self._hold(rows)

    def _hold(self, rows: Array) -> None:
        if len(rows):
            self._waiting.append(rows)
            self._count += len(rows)

    def _held(self) -> Array:
        waiting, self._waiting, self._count = self._waiting, [], 0
        return self._tidy(np.concatenate(waiting) if waiting else np.empty(0, self._dtype))

    def _write(self) -> None:
        run = self._held()
        if self._store is None:
            self._store = Rows(self._resources.scratch.store(), self._dtype)
        start = len(self._store)
        self._store.append(run)
        self._runs.append(self._store.part(start, start + len(run)))

    def merged(self) -> Iterator[Array]:
        """Yield everything, sorted and each key once, block by block; called once.

        One block, perhaps empty, where nothing was written.

        Raises:
            StateConflict: see `Store`.
        """
        if self._store is None:
            yield self._held()
            return
        if self._count:
            self._write()
        for pieces in merge(self._runs, self._resources.spill_rows, self._field):
            yield self._tidy(np.concatenate(pieces))
        self._store.drop()


class Shuffle:
    """Puts rows in a uniformly random order, without an order of all of them in memory.

    Each row goes into a bucket drawn uniformly and independently of all else; then the rows of each bucket
    are put in a uniformly random order, and buckets come one after the other. *Every order of all rows is
    exactly equally likely.* For a permutation p of the rows, relabel them: the drawn buckets are as likely as
    before, since they are independent and alike, and so is each order in a bucket, since it is uniform. So
    the order o comes as often as p∘o; as that holds for every p, all orders come equally often. (It is the
    order of independent uniform reals, of which the bucket is the first digits.) Sizes of buckets vary, which
    costs memory and tells nobody anything: cuts of what is sent do not follow them.
    """

    def __init__(self, resources: Resources, dtype: npt.DTypeLike, count: int, rand: Rand) -> None:
        """Expect about `count` rows."""
        self._resources, self._rand, self._dtype = resources, rand, np.dtype(dtype)
        self._spills = resources.spills(count)
        buckets = 1
        # Half of what is held: a bucket is larger than expected at times, and is copied while it is sorted.
        while self._spills and 2 * count > buckets * resources.spill_rows and buckets < MAX_BUCKETS:
            buckets *= 2
        self._buckets = buckets
        self._waiting: list[Array] = []
        self._count = 0
        self._store: Rows | None = None
        self._bounds: list[npt.NDArray[np.int64]] = []  # of each piece written: where its buckets begin
        self._drawn: Iterator[Array] | None = None
        self._left: Array = np.empty(0, self._dtype)

    def add(self, rows: Array) -> None:
        """Take rows; none after the first `take`.

        Raises:
            StateConflict: see `Store.append`.
        """
        self._waiting.append(rows)
        self._count += len(rows)
        if self._spills and self._count >= self._resources.spill_rows:
            self._write()

    def _write(self) -> None:
        rows = np.concatenate(self._waiting)
        self._waiting, self._count = [], 0
        # A power of two divides 2^16: no bucket is likelier than another.
        drawn = np.frombuffer(self._rand(2 * len(rows)), dtype=np.uint16) & np.uint16(self._buckets - 1)
        if self._store is None:
            self._store = Rows(self._resources.scratch.store(), self._dtype)
        start = len(self._store)
        self._store.append(taken(rows, np.argsort(drawn, kind="stable")))
        sizes = np.bincount(drawn, minlength=self._buckets)
        self._bounds.append(start + np.concatenate([[0], np.cumsum(sizes)]))

    def take(self, count: int) -> Array:
        """Return the next `count` rows, or as many as are left.

        Raises:
            StateConflict: see `Store`.
        """
        if self._drawn is None:
            if self._store is not None and self._waiting:
                self._write()
            self._drawn = self._mixed()
        while len(self._left) < count and (more := next(self._drawn, None)) is not None:
            self._left = np.concatenate([self._left, more])
        found, self._left = self._left[:count], self._left[count:]
        return found

    def _mixed(self) -> Iterator[Array]:
        if self._store is None:
            rows = np.concatenate([np.empty(0, self._dtype), *self._waiting])
            self._waiting = []
            yield self._permuted(rows)
            return
        for bucket in range(self._buckets):
            pieces = [self._store.read(int(at[bucket]), int(at[bucket + 1])) for at in self._bounds]
            yield self._permuted(np.concatenate(pieces))
        self._store.drop()

    def _permuted(self, rows: Array) -> Array:
        return taken(rows, group.permutation(len(rows), self._rand).astype(np.intp))


class Reader:
    """Reads rows in order, up to a value of a column that ascends."""

    def __init__(self, rows: Rows, field: str, block: int) -> None:
        """Read `block` rows at a time."""
        self._rows, self._field, self._block = rows, field, block
        self._seen = 0
        self._held = np.empty(0, rows.dtype)

    def below(self, end: int) -> Array:
        """Return the next rows whose value is below `end`.

        Raises:
            StateConflict: see `Store.read`.
        """
        pieces = []
        while True:
            stop = int(np.searchsorted(self._held[self._field], end))
            pieces.append(self._held[:stop])
            whole = stop == len(self._held)
            self._held = self._held[stop:]
            if not whole or self._seen == len(self._rows):
                return np.concatenate(pieces)
            more = min(self._seen + self._block, len(self._rows))
            self._held = self._rows.read(self._seen, more)
            self._seen = more
