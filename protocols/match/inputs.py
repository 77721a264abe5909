"""One department's list as `match/1` compares it: distinct typed keys, each perhaps with a group of values.

Built batch by batch from Arrow columns, about 50 bytes per row at the most; no row becomes a Python object.
SPEC.md, "`match/1`".
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers import AreaTable, normalise, rule_version
from protocols.ids import Digest
from protocols.months import UNKNOWN_MONTH, months_of
from protocols.psi.keyed_list import COMMIT_ROWS, commit, texts_of

MAX_VALUES: Final = 255
"""Most values that groups may list together: a value's rank takes one byte, and one stands for no group."""

NOT_COMPARABLE: Final = 0
"""Mark of a key of which no row has a value of a group."""

_BEHIND: Final = 3  # bytes behind a key while its rows are sorted: u16 month, u8 rank of the value
_NEWEST: Final = 0xFFFF


@dataclass(frozen=True, slots=True, eq=False)
class MatchList:
    """A list, sorted by key, each key once. Implements `PreparedInput`.

    Where values are compared, the keys without a value of a group stand in it, too, as `NOT_COMPARABLE`: how
    many keys there are says nothing about values.
    """

    rows: int
    keys: npt.NDArray[np.bytes_]  # n, ascending
    marks: npt.NDArray[np.uint8]  # n: number of the value's group, from 1; 0 where no values are compared
    valued: bool  # whether values are compared
    rule_version: str
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats."""
        return len(self.keys)

    def quality(self) -> Mapping[str, int]:
        """Return rows without key by reason code, and `repeated-key` rows.

        Where values are compared, also rows with a key that have `no-value` or, in no group, an
        `other-value`, whose keys are part of the list all the same; and comparable keys with `no-month`. A
        reason that never applies is left out.
        """
        return dict(self.reasons)

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt ‖ every item in order of keys, each after its length as u16).

        An item is the key; where values are compared, key ‖ `=` ‖ the mark as a digit.

        Args:
            salt: 32 random bytes, which the node keeps for auditors.

        Raises:
            ValueError: the salt has another length.
        """
        return commit(self._items(), salt)

    def _items(self) -> Iterator[npt.NDArray[np.bytes_]]:
        for start in range(0, len(self.keys), COMMIT_ROWS):
            keys, marks = self.keys[start : start + COMMIT_ROWS], self.marks[start : start + COMMIT_ROWS]
            yield np.strings.add(np.strings.add(keys, b"="), marks.astype("S1")) if self.valued else keys

    def __repr__(self) -> str:
        return f"MatchList({self.rows} rows, {self.distinct_keys} keys)"


class MatchListBuilder:
    """Takes the slot `key`, and where values are compared `value` and perhaps `last_seen`, batch by batch.

    Rows without key are left out. Of each key's rows with a value of a group the one last seen stays; of
    equals the one whose value sorts first. A key that has no such row stays as one that is not comparable.
    """

    def __init__(
        self,
        *,
        as_of: date,
        areas: AreaTable,
        groups: Sequence[Sequence[str]] = (),
        kind: str = "resident-id",
    ) -> None:
        """Start an empty list.

        Args:
            as_of: the day as of which identifiers are judged.
            areas: area codes that were ever valid.
            groups: the values of each group, no value twice, `MAX_VALUES` in all; none: none are compared.
            kind: the keys' type.

        Raises:
            ValueError: more values.
        """
        self._as_of, self._areas, self._kind = as_of, areas, kind
        ranked = sorted((value, number) for number, group in enumerate(groups, start=1) for value in group)
        if len(ranked) > MAX_VALUES:
            raise ValueError(f"{len(ranked)} values, at most {MAX_VALUES}")
        self._rank = {value: rank for rank, (value, _) in enumerate(ranked)}
        self._group_of = np.full(_NO_GROUP + 1, NOT_COMPARABLE, dtype=np.uint8)
        self._group_of[: len(ranked)] = [number for _, number in ranked]
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._dated = False
        self._kept: list[npt.NDArray[np.bytes_]] = []  # keys; with groups, see `_packed`

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            batch: slot → pyarrow array; `key` and `value` text, `last_seen` a date, a time, or a month such
                as 2026-11 or 202611, as text or as a number.

        Raises:
            InputError: a slot too many or too few, a column of another type or length.
        """
        slots = {"key", "value"} if self._rank else {"key"}
        if not slots <= set(batch) <= slots | ({"last_seen"} if self._rank else set()):
            raise InputError(
                f"a batch with {len(batch)} slot(s), expected {', '.join(sorted(slots))}", code="unknown-slot"
            )
        if len({len(array) for array in batch.values()}) != 1:
            raise InputError("columns of a batch differ in length", code="length-mismatch")
        found = normalise(batch["key"], self._kind, as_of=self._as_of, areas=self._areas)
        self._rows += len(batch["key"])
        self._reasons.update(found.counts())
        if not self._rank:
            self._kept.append(found.keys)
            return
        self._dated = self._dated or "last_seen" in batch
        ranks = self._ranks(batch["value"])[found.rows]
        self._reasons["no-value"] += int((ranks == _NO_VALUE).sum())
        self._reasons["other-value"] += int((ranks == _OTHER_VALUE).sum())
        months = months_of(batch.get("last_seen"), len(batch["key"]), "last_seen")[found.rows]
        self._kept.append(_packed(found.keys, months, ranks))

    def _ranks(self, column: Any) -> npt.NDArray[np.int16]:
        """Return the place of each row's value among all that groups list, in order; or why it has none."""
        texts, places = texts_of(column, "value")
        ranks = np.full(len(texts) or 1, _OTHER_VALUE, dtype=np.int16)
        for place, text in enumerate(text.strip() for text in texts):
            ranks[place] = self._rank.get(text, _OTHER_VALUE) if text else _NO_VALUE
        return ranks[places]

    def finish(self) -> MatchList:
        """Return the list."""
        items = self._sorted()
        reasons = self._reasons.copy()
        width = items.dtype.itemsize - (_BEHIND if self._rank else 0)
        marks = np.zeros(len(items), dtype=np.uint8)
        keys = items
        if self._rank and len(items):
            behind = items.view(np.uint8).reshape(len(items), -1)
            keys = np.ascontiguousarray(behind[:, :width]).view(f"S{width}").ravel()
            marks = self._group_of[behind[:, -1]]
        first = np.ones(len(keys), dtype=np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        if not first.all():
            keys, marks = keys[first], marks[first]
        reasons["repeated-key"] = len(first) - len(keys)
        if self._dated and len(items):
            unknown = (behind[:, width : width + 2] == 0xFF).all(axis=1)
            reasons["no-month"] = int((unknown[first] & (marks != NOT_COMPARABLE)).sum())
        return MatchList(
            rows=self._rows,
            keys=keys,
            marks=marks,
            valued=bool(self._rank),
            rule_version=rule_version(self._areas),
            reasons={code: count for code, count in reasons.items() if count},
        )

    def _sorted(self) -> npt.NDArray[np.bytes_]:
        """Return all that was kept, ascending; every block is let go of as soon as it is copied."""
        if not self._kept:
            return np.empty(0, dtype="S1")
        items = np.empty(sum(map(len, self._kept)), dtype=self._kept[0].dtype)
        at = 0
        while self._kept:
            block = self._kept.pop()
            items[at : at + len(block)] = block
            at += len(block)
        items.sort()
        return items


_OTHER_VALUE: Final = -1
_NO_VALUE: Final = -2
_NO_GROUP: Final = 0xFF  # rank of both while rows are sorted


def _packed(
    keys: npt.NDArray[np.bytes_], months: npt.NDArray[np.uint16], ranks: npt.NDArray[np.int16]
) -> npt.NDArray[np.bytes_]:
    """Return each key, padded, with what decides which of its rows stays: the least of equal keys.

    Behind the key: u16 0xFFFF less the month, so that the latest comes first and the unknown one last; u8
    rank of the value. Rows without a value of a group come behind all others, whatever their month.
    """
    none = ranks < 0
    months, ranks = np.where(none, UNKNOWN_MONTH, months), np.where(none, _NO_GROUP, ranks)
    width = keys.dtype.itemsize
    packed = np.empty((len(keys), width + _BEHIND), dtype=np.uint8)
    packed[:, :width] = keys.view(np.uint8).reshape(len(keys), width)
    packed[:, width : width + 2] = (_NEWEST - months).astype(">u2").view(np.uint8).reshape(-1, 2)
    packed[:, -1] = ranks
    return packed.view(f"S{width + _BEHIND}").ravel()
