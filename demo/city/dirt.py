"""What is wrong with the rows: repeats and spellings, added after the truth is fixed, each logged.

Spelling never changes the key a row normalises to; the one exception, a bad check digit, falls only on
repeats, whose first copy stays good. So no error here adds or loses a key, and the flagged set stays.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from demo.city.identity import Text, coded, text_array
from demo.city.plan import Ints

Flags = npt.NDArray[np.bool_]

REPEATS_PER_MILLE: Final = 153
"""Rows that repeat another row of the table."""

SEVERAL_FILES_PER_MILLE: Final = 120
"""People with two rows or more; 153 repeats among 1000 rows then means up to two repeats each."""

BAD_CHECK_PER_CENT: Final = 1
"""Ids with a check digit that does not hold, of those that have one."""

# Spellings, per mille of the rows; assumed.
_FULL_WIDTH: Final = 5
_TRAILING_BLANK: Final = 10
_FIFTEEN_DIGITS: Final = 20
_LOWER_CASE_PER_CENT: Final = 30  # of the ids that end in X

DOTS: Final = "·•‧・．"
"""The dots clerks write; the first is the right one, U+00B7."""

KINDS: Final = (
    "repeat",
    "bad-check-digit",
    "fifteen-digits",
    "full-width",
    "lower-case-x",
    "trailing-blank",
    "name-dot",
    "dead-phone",
    "no-residence-permit",
    "birth-mismatch",
    "stale-marital",
)


class Log:
    """What is wrong with which row of one part of a table."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._of_row = np.full(rows, -1, dtype=np.int64)
        self._entries: list[tuple[int, Ints]] = []

    def add(self, kind: str, rows: Ints) -> None:
        """Note that `rows` have the error `kind`."""
        self._entries.append((KINDS.index(kind), rows))

    def repeats(self, original: Ints) -> None:
        """Note which rows repeat which: -1 where a row repeats none."""
        self._of_row = original
        self.add("repeat", np.flatnonzero(original >= 0))

    def rows(self, kind: str) -> Ints:
        """Return the rows that have the error `kind`."""
        found = [rows for at, rows in self._entries if at == KINDS.index(kind)]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def table(self) -> pa.Table:
        """Return the log in row order: row, kind, and for repeats the row they repeat."""
        row = np.concatenate([rows for _, rows in self._entries])
        kind = np.repeat([kind for kind, _ in self._entries], [len(rows) for _, rows in self._entries])
        order = np.argsort(row, kind="stable")
        row, kind = row[order], kind[order]
        repeat = kind == KINDS.index("repeat")
        return pa.table(
            {
                "row": pa.array(row, type=pa.int64()),
                "kind": coded(KINDS, kind),
                "of_row": pa.array(self._of_row[row], mask=~repeat, type=pa.int64()),
            }
        )


def with_repeats(rng: np.random.Generator, count: int) -> tuple[Ints, Ints]:
    """Return (entry of each row, row that it repeats or -1) for a table of `count` entries.

    Every entry has a row; SEVERAL_FILES_PER_MILLE of them have two or three, REPEATS_PER_MILLE of the rows
    are the additional ones. Rows are in random order.
    """
    extra = count * REPEATS_PER_MILLE // (1000 - REPEATS_PER_MILLE)
    several = min(max(count * SEVERAL_FILES_PER_MILLE // 1000, (extra + 1) // 2), extra)
    chosen = rng.permutation(count)[:several]
    entry = np.concatenate((np.arange(count), chosen, chosen[: extra - several]))
    order = rng.permutation(len(entry))
    place = np.empty(len(entry), dtype=np.int64)
    place[order] = np.arange(len(entry))
    original = np.where(order < count, -1, place[entry[order]])
    return entry[order], original


def spell_ids(rng: np.random.Generator, ids: Text, repeated: Flags, born_19xx: Flags, log: Log) -> pa.Array:
    """Return the ids as clerks write them.

    Args:
        rng: the table's stream.
        ids: n x 18, valid.
        repeated: which rows have a first copy elsewhere: only they may get a bad check digit.
        born_19xx: whose id may be written in the fifteen digits of before 1999.
        log: takes every deviation.
    """
    count = len(ids)
    spelled = ids.copy()
    order = rng.permutation(count)
    free = np.ones(count, dtype=np.bool_)

    def take(eligible: Flags, wanted: int) -> Ints:
        """Return the first of `order`, up to `wanted` rows; a row is spelled wrong in one way only."""
        fits = eligible & free
        chosen = order[:0]
        looked = 0
        while len(chosen) < wanted and looked < count:
            looked = max(4 * looked, 2 * wanted)
            chosen = order[:looked][fits[order[:looked]]][:wanted]
        free[chosen] = False
        return np.sort(chosen)

    anybody = np.ones(count, dtype=np.bool_)
    short = take(born_19xx, count * _FIFTEEN_DIGITS // 1000)
    # Of the ids that have a check digit, so that the share that fails stays within one per cent.
    bad = take(repeated, (count - len(short)) * BAD_CHECK_PER_CENT // 100)
    wide = take(anybody, count * _FULL_WIDTH // 1000)
    blank = take(anybody, count * _TRAILING_BLANK // 1000)
    ends_x = ids[:, 17] == ord("X")
    lower = take(ends_x, int(ends_x.sum()) * _LOWER_CASE_PER_CENT // 100)
    for kind, rows in zip(
        ("fifteen-digits", "bad-check-digit", "full-width", "trailing-blank", "lower-case-x"),
        (short, bad, wide, blank, lower),
        strict=True,
    ):
        log.add(kind, rows)

    spelled[lower, 17] = ord("x")
    # One wrong digit of the sequence; MOD 11-2 detects every single substitution.
    digit = spelled[bad, 15] - 0x30
    spelled[bad, 15] = (digit + rng.integers(1, 10, len(bad))) % 10 + 0x30
    # Everybody else writes eighteen characters.
    other = np.concatenate((short, wide, blank))
    texts = pa.concat_arrays(
        [
            text_array(np.delete(spelled[short], (6, 7, 17), axis=1)),
            text_array(_full_width(spelled[wide])),
            text_array(np.pad(spelled[blank], ((0, 0), (0, 1)), constant_values=ord(" "))),
        ]
    )
    mask = np.zeros(count, dtype=np.bool_)
    mask[other] = True
    return pc.replace_with_mask(text_array(spelled), mask, texts.take(pa.array(np.argsort(other))))


def _full_width(texts: Text) -> Text:
    """Return the UTF-8 of the full-width forms (U+FF01 to U+FF5E) of printable ASCII."""
    out = np.empty((*texts.shape, 3), dtype=np.uint8)
    code = texts.astype(np.uint16) + 0xFEE0
    out[..., 0] = 0xE0 | code >> 12
    out[..., 1] = 0x80 | code >> 6 & 0x3F
    out[..., 2] = 0x80 | code & 0x3F
    return out.reshape(len(texts), 3 * texts.shape[1])


def respell_dots(rng: np.random.Generator, names: pa.Array, dotted: Ints, log: Log) -> pa.Array:
    """Return the names with the dots that clerks write; `dotted` are the rows whose name has one."""
    if not len(dotted):
        return names
    which = rng.integers(0, len(DOTS), len(dotted))
    log.add("name-dot", dotted[which > 0])
    parts = pc.split_pattern(names.take(pa.array(dotted)), DOTS[0])
    new = pc.binary_join(parts, pa.array(list(DOTS)).take(pa.array(which)))
    mask = np.zeros(len(names), dtype=np.bool_)
    mask[dotted] = True
    return pc.replace_with_mask(names, pa.array(mask), new)
