"""From a column of identifiers as people typed them to typed keys, one canonical spelling each."""

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from protocols.errors import InputError
from protocols.identifiers.areas import AreaTable
from protocols.identifiers.columns import (
    I64,
    U8,
    Column,
    Mask,
    Values,
    blocks,
    categories,
    require_text,
)
from protocols.identifiers.reasons import Reason
from protocols.identifiers.rules import Limits, Rule, rule_for

RULES: Final = "identifiers/1"
"""Version of the rules in SPEC.md; a change that gives any row another key or reason raises it."""

MAX_VALUE_BYTES: Final = 256
"""Longer values are refused for their length before anything else is done with them."""

WEAK_TYPES: Final = frozenset({"phone"})
"""Types that several people share and change: fit to support a match, never to make one alone."""


@dataclass(frozen=True, slots=True, eq=False)
class TypedKeys:
    """The keys of a column, and why the other rows have none. Prints counts only."""

    keys: npt.NDArray[np.bytes_]  # one per accepted row, in row order; repeats are kept
    rows: I64  # index of each accepted row in the column
    reasons: U8  # one per row of the column: a Reason, 0 where accepted
    rule_version: str = field(kw_only=True)

    def counts(self) -> dict[str, int]:
        """Return the number of rejected rows by reason code, in the order of the rules; no zeros."""
        numbers = np.bincount(self.reasons, minlength=len(Reason))
        return {reason.code: int(numbers[reason]) for reason in Reason if reason and numbers[reason]}

    def __repr__(self) -> str:
        return (
            f"TypedKeys({len(self.rows)} of {len(self.reasons)} rows, {self.counts()}, {self.rule_version!r})"
        )


def type_tag(kind: str) -> str:
    """Return the tag that keys of a type begin with: `RIC:` for `resident-id`, `PP:FRA:` for `passport:FRA`.

    Raises:
        InputError: no such type.
    """
    return rule_for(kind).tag.decode("ascii")


def rule_version(areas: AreaTable) -> str:
    """Return what names the rules and the table: departments whose versions differ may disagree on rows."""
    return f"{RULES}+areas:{areas.digest[:16]}"


def normalise(column: Column, kind: str, *, as_of: date, areas: AreaTable) -> TypedKeys:
    """Return the typed keys of a column whose rows all have one type.

    Args:
        column: text, or bytes in UTF-8; nulls allowed.
        kind: `resident-id`, `hmt-permit`, `foreign-permanent-resident`, `passport:CCC`, `uscc` or `phone`.
        as_of: the day on which ages are reckoned, usually the snapshot's.
        areas: area codes that were ever valid.

    Raises:
        InputError: the column is not text, or the type is unknown.
    """
    rule = rule_for(kind)
    limits = Limits(as_of, areas)
    total = require_text(column)
    reasons = np.zeros(total, dtype=np.uint8)
    out = np.zeros((total, rule.width), dtype=np.uint8)
    for block in blocks(column):
        span = slice(block.first, block.first + len(block.values))
        reasons[span] = _normalise_values(block.values, block.valid, rule, limits, out[span])
    return _finish(out, reasons, areas)


def normalise_mixed(column: Column, kinds: Column, *, as_of: date, areas: AreaTable) -> TypedKeys:
    """Return the typed keys of a column in which each row names its own type.

    A row whose type is missing or unknown is rejected as `unknown-type`.

    Args:
        column: as in `normalise`.
        kinds: a type name per row, as long as `column`.
        as_of: as in `normalise`.
        areas: as in `normalise`.

    Raises:
        InputError: a column is not text, or their lengths differ.
    """
    limits = Limits(as_of, areas)
    total, named = require_text(column), require_text(kinds, "type column")
    if total != named:
        raise InputError(
            f"column of {total} rows with a type column of {named}, expected one type per row",
            code="length-mismatch",
            hint="read both columns in one query",
        )
    names, type_of_row = categories(kinds, "type column")
    rules = [_known_rule(name) for name in names]
    width = max((rule.width for rule in rules if rule), default=1)
    reasons = np.full(total, Reason.UNKNOWN_TYPE, dtype=np.uint8)
    out = np.zeros((total, width), dtype=np.uint8)
    for block in blocks(column):
        types = type_of_row[block.first : block.first + len(block.values)]
        for number in np.unique(types):
            rule = rules[number]
            if rule is None:
                continue
            rows = np.flatnonzero(types == number)
            body = np.zeros((rows.size, rule.width), dtype=np.uint8)
            valid = None if block.valid is None else block.valid[rows]
            reasons[block.first + rows] = _normalise_values(
                block.values.select(rows), valid, rule, limits, body
            )
            out[block.first + rows, : rule.width] = body
    return _finish(out, reasons, areas)


def _known_rule(name: bytes | None) -> Rule | None:
    if name is None:
        return None
    try:
        return rule_for(name.decode("ascii"))
    except (InputError, UnicodeDecodeError):
        return None


def _finish(out: U8, reasons: U8, areas: AreaTable) -> TypedKeys:
    keys = out.view(f"S{out.shape[1]}").ravel()
    rows = np.flatnonzero(reasons == Reason.ACCEPTED)
    if rows.size < reasons.size:
        keys = keys[rows]
    for array in (keys, rows, reasons):
        array.setflags(write=False)
    return TypedKeys(keys, rows, reasons, rule_version=rule_version(areas))


def _normalise_values(values: Values, valid: Mask | None, rule: Rule, limits: Limits, out: U8) -> U8:
    """Write n x rule.width key bytes into `out`, which is zero, and return n reasons.

    Bytes of rejected rows are left as they come: nobody reads them.
    """
    # (1) Nearly all values need no cleaning, and the extremes of the block tell.
    data = values.data
    if valid is None and data.size and data.min() >= _CLEAN[0] and data.max() <= _CLEAN[1]:
        return _apply(values, rule, limits, out)
    reasons = np.zeros(len(values), dtype=np.uint8)
    live = np.ones(len(values), dtype=np.bool_)
    if valid is not None:
        live = valid
        reasons[~valid] = Reason.NULL
    dirty, foreign = _needs_cleaning(values, rule)
    plain = np.flatnonzero(live & ~dirty)
    if plain.size:
        reasons[plain], out[plain] = _keyed(values.select(plain), rule, limits)
    # (2) ASCII is what Unicode would make of it.
    untidy = np.flatnonzero(live & dirty & ~foreign)
    if untidy.size:
        reasons[untidy], out[untidy] = _keyed(_tidied(values.select(untidy), rule), rule, limits)
    # (3) The others go through Unicode one by one.
    spoilt = np.flatnonzero(live & dirty & foreign)
    if spoilt.size:
        cleaned = [_clean(values.item(int(row)), rule) for row in spoilt]
        reasons[spoilt] = Reason.NOT_UTF8
        kept = spoilt[[text is not None for text in cleaned]]
        texts = Values.of([text for text in cleaned if text is not None])
        reasons[kept], out[kept] = _keyed(texts, rule, limits)
    return reasons


def _keyed(values: Values, rule: Rule, limits: Limits) -> tuple[U8, U8]:
    """Return n reasons and n x rule.width key bytes of clean values."""
    out = np.zeros((len(values), rule.width), dtype=np.uint8)
    return _apply(values, rule, limits, out), out


def _apply(values: Values, rule: Rule, limits: Limits, out: U8) -> U8:
    reasons = rule.check(values, out[:, len(rule.tag) :], limits)
    out[:, : len(rule.tag)] = np.frombuffer(rule.tag, dtype=np.uint8)
    empty = values.lengths == 0
    if empty.any():
        reasons[empty] = Reason.EMPTY
    return reasons


def _needs_cleaning(values: Values, rule: Rule) -> tuple[Mask, Mask]:
    """Return which values hold a byte that is not printable ASCII, a lower-case letter or a separator.

    Values that are too long for any type are left alone; the rule refuses their length.

    Returns:
        Which values they are, and which values hold a byte that is not ASCII.
    """
    unclean, _ = _kinds_of_bytes(rule.separators)
    # Looking a byte up takes ten times as long as comparing it.
    at = np.flatnonzero((values.data < _CLEAN[0]) | (values.data > _CLEAN[1]))
    at = at[unclean[values.data[at]]]
    # Rows ascend without overlap; bytes between selected rows belong to none of them.
    row = np.searchsorted(values.starts, at, side="right") - 1
    row_is = (row >= 0) & (at < values.starts[row] + values.lengths[row])
    dirty, foreign = np.zeros((2, len(values)), dtype=np.bool_)
    dirty[row[row_is]] = True
    foreign[row[row_is & (values.data[at] >= _FIRST_FOREIGN)]] = True
    return dirty & (values.lengths <= MAX_VALUE_BYTES), foreign


_CLEAN: Final = (ord("0"), ord("Z"))
"""Digits, capitals and what lies between: for no type a separator."""

_FIRST_FOREIGN: Final = 0x80
"""The first byte that is not ASCII."""


@cache
def _kinds_of_bytes(separators: re.Pattern[str]) -> tuple[Mask, Mask]:
    """Return 256 flags each, by byte: what needs cleaning, and which ASCII characters are separators."""
    dropped = np.zeros(256, dtype=np.bool_)
    unclean = np.ones(256, dtype=np.bool_)
    for byte in range(_FIRST_FOREIGN):
        dropped[byte] = separators.fullmatch(chr(byte)) is not None
        unclean[byte] = dropped[byte] or chr(byte).islower() or not 0x20 < byte < 0x7F
    return unclean, dropped


_UPPER: Final = np.frombuffer(bytes(range(256)).upper(), dtype=np.uint8)


def _tidied(values: Values, rule: Rule) -> Values:
    """Return ASCII values, none of them empty, in upper case without separators: as `_clean` does it."""
    joined = values.joined()
    _, dropped = _kinds_of_bytes(rule.separators)
    kept = ~dropped[joined.data]
    lengths = np.add.reduceat(kept, joined.starts, dtype=np.int64)
    return Values(_UPPER[joined.data[kept]], np.cumsum(lengths) - lengths, lengths)


def _clean(raw: bytes, rule: Rule) -> bytes | None:
    """Return a value in upper-case ASCII without separators, `?` for any other character; None if no text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = rule.separators.sub("", unicodedata.normalize("NFKC", text))
    return text.encode("ascii", "replace").upper()
