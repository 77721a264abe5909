"""Which rows of tagged lists are about one person, and how a helper learns just that. SPEC.md, section 2.

A list is its tags in ascending order; a row of it is known by its place there, a u32. The matcher compares
tags and puts the persons found in random order; the helper gets their places, padded to a number of rows that
everybody knows, and brings its shares into that order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from protocols.errors import ProtocolAborted
from protocols.joined.field import Words
from protocols.party import Rand
from protocols.psi import group

Way = Literal["on", "may", "not"]
"""A person that is joined is on the list, may be on it, or is not on it."""

ABSENT: Final = 0xFFFFFFFF
"""The place of who is not on a list, and of rows that are padding. No list is so long."""

_SPREAD_WORDS: Final = 1 << 18
"""Words that are expanded and brought into order at a time, 2 MiB at most."""

Tags = npt.NDArray[np.bytes_]


class WordStream(Protocol):
    """Words of all rows of a list, of any modulus."""

    def take(self, rows: int, width: int) -> Words:
        """Return the next rows, rows x width words."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """The persons joined, group by group, in random order within each group.

    Attributes:
        positions: n x lists, uint32: the place in each list, `ABSENT` for none.
        sizes: persons in each group, int64; one group where nothing groups.
    """

    positions: npt.NDArray[np.uint32]
    sizes: npt.NDArray[np.int64]

    @property
    def n(self) -> int:
        """How many persons."""
        return len(self.positions)


def align(
    lists: Sequence[Tags],
    ways: Sequence[Way],
    rand: Rand,
    *,
    groups: int = 1,
    group_of: Callable[[npt.NDArray[np.uint32]], npt.NDArray[np.int64]] | None = None,
) -> Alignment:
    """Return the persons on every list that is "on" and on none that is "not", in random order.

    All rows of the shortest list go the same way, joined or not: the work does not say how many are.

    With one list "on", its stand-in and its keys that do not count are among them, for there is nothing to
    compare those with: whoever joins so needs a word that says who counts.

    Args:
        lists: tags of each list, ascending, each once (`streams.check_ascending`).
        ways: how each list is asked; at least one is "on".
        rand: draws the order.
        groups: how many groups there are.
        group_of: returns the group of each row of positions, below `groups`, whatever it is where one of them
            is `ABSENT`; None: all are of one group.
    """
    on = [i for i, way in enumerate(ways) if way == "on"]
    first = min(on, key=lambda i: len(lists[i]))
    base = lists[first]
    found = np.ones(len(base), dtype=np.bool_)
    places = np.full((len(base), len(lists)), ABSENT, dtype=np.uint32)
    places[:, first] = np.arange(len(base), dtype=np.uint32)
    for i, way in enumerate(ways):
        if i == first:
            continue
        at, same = _places(lists[i], base)
        if way == "not":
            found &= ~same
            continue
        places[same, i] = at[same]
        if way == "on":
            found &= same
    order = group.permutation(len(base), rand)
    places, found, of = places[order], found[order], np.zeros(len(base), dtype=np.int64)
    if group_of is not None:
        of = group_of(places)
        # Stable, so that within a group the order is the random one; of small words, a radix sort.
        by = np.argsort(of.astype(np.min_scalar_type(groups)), kind="stable")
        places, found, of = places[by], found[by], of[by]
    sizes = np.bincount(np.where(found, of, groups), minlength=groups + 1)[:groups]
    front, n = _first(found)
    joined = np.empty_like(places)
    joined[front] = places
    return Alignment(joined[:n], sizes)


def _first(chosen: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], int]:
    """Return where each row goes so that chosen ones come first, in their order, and how many these are."""
    before = np.cumsum(chosen)
    n = int(before[-1]) if len(before) else 0
    return np.where(chosen, before - 1, n + np.arange(len(before)) - before), n


def _places(tags: Tags, asked: Tags) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """Return the place of each asked tag in ascending tags, and whether it is there at all."""
    if not len(tags):
        return np.zeros(len(asked), dtype=np.uint32), np.zeros(len(asked), dtype=np.bool_)
    at = np.searchsorted(tags, asked).astype(np.uint32)
    np.minimum(at, np.uint32(len(tags) - 1), out=at)
    return at, tags[at] == asked


def check_positions(positions: npt.NDArray[np.uint32], counts: Sequence[int], ways: Sequence[Way]) -> int:
    """Check an alignment as it came, padding and all, and return how many rows are persons.

    Args:
        positions: rows x lists.
        counts: items of each list.
        ways: how each list is asked.

    Raises:
        ProtocolAborted: `bad-alignment`: a place that the list does not have, a place twice, a person that is
            on a list that is "not" or missing on one that is "on", or a person after padding.
    """
    here = positions != ABSENT
    first = ways.index("on")
    person = here[:, first]
    n = int(person.sum())
    for i, (way, count) in enumerate(zip(ways, counts, strict=True)):
        column, taken = positions[:, i], here[:, i]
        right = {"on": taken == person, "may": taken <= person, "not": ~taken}[way]
        if not bool(right.all()):
            raise _bad("does not keep to how the lists are asked")
        if bool((taken & (column >= count)).any()):
            raise _bad("has a place that its list does not have")
        once = np.zeros(count + 1, dtype=np.bool_)
        once[np.where(taken, column, count)] = True
        if int(once[:count].sum()) != int(taken.sum()):
            raise _bad("has a place twice")
    if bool(person[n:].any()):
        raise _bad("has a person after padding")
    return n


def check_sizes(sizes: npt.NDArray[np.int64], n: int) -> None:
    """Check that groups are all of the persons.

    Raises:
        ProtocolAborted: `bad-groups`.
    """
    if int(sizes.sum()) != n:
        raise ProtocolAborted(
            "the sizes of the groups are not those of all joined rows together", code="bad-groups"
        )


def filled(column: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.uint32]:
    """Return the column with unused places of the list where it has none, as far as there are any.

    Rows at such places are moved like all others and cleared afterwards (`cleared`): so the work does not say
    how many persons are joined. They are taken from all over the list, as places of persons are.

    Args:
        column: where each aligned row is in the list, `ABSENT` for nowhere.
        count: items of the list.
    """
    if not count:
        return column.copy()
    absent = column == ABSENT
    unused = np.ones(count + 1, dtype=np.bool_)
    unused[np.where(absent, count, column)] = False
    front, spare = _first(unused[:count])
    places = np.empty(count, dtype=np.uint32)
    places[front] = np.arange(count, dtype=np.uint32)
    stride = max(1, int(spare * 0.618))
    while gcd(stride, spare) > 1:
        stride += 1
    turn = np.cumsum(absent) - 1
    lent = places[np.maximum(turn, 0) * stride % max(spare, 1)]
    return np.where(absent, np.where(turn < spare, lent, np.uint32(ABSENT)), column)


def cleared(column: npt.NDArray[np.uint32], out: Words) -> Words:
    """Set the rows to zeros, in place, that are nowhere in the list: those of `ABSENT`."""
    out *= (column != ABSENT).astype(out.dtype)[:, np.newaxis]
    return out


def spread(
    column: npt.NDArray[np.uint32],
    count: int,
    stream: WordStream,
    out: Words,
) -> None:
    """Bring the rows of a list, as they come, to where the alignment has them.

    Args:
        column: where each aligned row is in the list, `ABSENT` for nowhere.
        count: items of the list.
        stream: its `take` returns the list's next rows, which are asked for in order.
        out: rows x width words, zeros, width at least 1: the aligned shares. Rows that are nowhere are zeros.
    """
    to = np.full(count, ABSENT, dtype=np.uint32)
    places = filled(column, count)
    rows = np.flatnonzero(places != ABSENT).astype(np.uint32)
    to[places[rows]] = rows
    step = max(1, _SPREAD_WORDS // out.shape[1])
    for start in range(0, count, step):
        target = to[start : start + step]
        words = stream.take(len(target), out.shape[1])
        wanted = target != ABSENT
        out[target[wanted]] = words[wanted]
    cleared(column, out)


def _bad(what: str) -> ProtocolAborted:
    return ProtocolAborted(
        f"the alignment {what}",
        code="bad-alignment",
        hint="the matcher runs another version, or not this job; compare versions and journals",
    )
