"""The differencing guard: two exact answers about overlapping groups give away the difference of the groups.

It decides from what queries select, never from data, so that a refusal tells nothing about anybody. Queries
over one dataset may both be answered exactly when they select the same rows, or rows that cannot overlap;
every other pair needs noise on one of the two. A code says which rows it stands for only together with how
local values become codes: under two mappings, neither are equal codes the same rows nor others other rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Self

from protocols.encoding import canonical_json, decode_json, digest_bytes
from protocols.errors import DecodeError, InputError
from protocols.ids import Digest

MAX_QUERY_BYTES: Final = 512 << 10
"""Bound on the text of a query: twice that of a job, whose values and columns it repeats. SPEC.md of dp."""

_MAX_BOUND: Final = 80
"""Most characters of a bound: a number of a job has up to 40, and as a quotient of whole numbers up to 79."""


@dataclass(frozen=True, slots=True)
class Between:
    """Values from `low` to `high`, both included; None: no bound.

    `months`: the values are months, as `protocols.months` numbers them. Numbers of a column and months of it
    are not compared with each other: 202511 and 2025-11 may be one row, before and after a policy called the
    column a month.
    """

    low: Fraction | None = None
    high: Fraction | None = None
    months: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        # Texts from before there were months do not name them.
        return {
            "low": None if self.low is None else str(self.low),
            "high": None if self.high is None else str(self.high),
            **({"months": True} if self.months else {}),
        }


@dataclass(frozen=True, slots=True)
class Query:
    """What one job selects of one dataset.

    Attributes:
        asks: what is computed of whom, beyond the filters: other departments' lists, thresholds. Two queries
            that differ here do not select the same rows. Only ever compared, so it may be a digest.
        filters: column → the values that are kept: a set of texts, or an interval.
        noisy: every number that leaves has calibrated noise and is charged to a budget.
        amounts: exact sums or means leave: asked once more, after a row has changed, the same question gives
            away that row's amount.
        mapped: of the columns that it filters by, those whose local values become codes → digest of how.
    """

    asks: str
    filters: Mapping[str, frozenset[str] | Between] = field(default_factory=dict)
    noisy: bool = False
    amounts: bool = False
    mapped: Mapping[str, Digest] = field(default_factory=dict)

    def encode(self) -> str:
        """Return the one text form.

        Raises:
            InputError: `query-too-long`: `decode` would refuse it.
        """
        plain = {
            column: {"values": sorted(kept)} if isinstance(kept, frozenset) else kept.to_json()
            for column, kept in self.filters.items()
        }
        # Texts from before there was such a thing as amounts or mappings do not name them.
        later: dict[str, Any] = {"amounts": True} if self.amounts else {}
        if self.mapped:
            later["mapped"] = dict(self.mapped)
        data = canonical_json({"asks": self.asks, "filters": plain, "noisy": self.noisy, **later})
        if len(data) > MAX_QUERY_BYTES:
            raise InputError(
                f"what the job selects takes {len(data)} bytes, at most {MAX_QUERY_BYTES} are kept",
                code="query-too-long",
                hint="list fewer values, or filter by a range",
            )
        return data.decode("utf-8")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read `encode`'s form strictly.

        Raises:
            DecodeError: another form.
        """
        bad = DecodeError("not the text form of a query", code="bad-query")
        value = decode_json(text.encode("utf-8"), limit=MAX_QUERY_BYTES)
        amounts = isinstance(value, dict) and value.pop("amounts", None) is True
        mapped = value.pop("mapped", {}) if isinstance(value, dict) else {}
        match value:
            case {"asks": str(asks), "filters": dict(filters), "noisy": bool(noisy)} if len(value) == 3:
                try:
                    kept = {column: _kept(each) for column, each in filters.items()}
                    found = cls(asks, kept, noisy, amounts, _digests(mapped))
                except (TypeError, ValueError, ZeroDivisionError):
                    raise bad from None
            case _:
                raise bad
        if found.encode() != text:
            raise bad
        return found


def _digests(value: Any) -> dict[str, Digest]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError
    for each in value.values():
        digest_bytes(each)
    return {column: Digest(each) for column, each in value.items()}


def _kept(value: Any) -> frozenset[str] | Between:
    match value:
        case {"values": list(values)} if len(value) == 1 and all(isinstance(v, str) for v in values):
            return frozenset(values)
        case {"low": low, "high": high} if len(value) == 2:
            return Between(_bound(low), _bound(high))
        case {"low": low, "high": high, "months": True} if len(value) == 3:
            return Between(_bound(low), _bound(high), months=True)
    raise ValueError


def _bound(text: Any) -> Fraction | None:
    # Bounded first: Fraction would also read an exponent and fill the memory.
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > _MAX_BOUND or "e" in text.lower():
        raise ValueError
    return Fraction(text)


def disjoint(one: Query, other: Query) -> bool:
    """Return whether no row can be in both: some column is filtered by both to values that exclude.

    A column that is mapped otherwise by now excludes nothing: the same row may have had another code.
    """
    shared = one.filters.keys() & other.filters.keys()
    return any(
        _exclude(one.filters[column], other.filters[column])
        for column in shared
        if one.mapped.get(column) == other.mapped.get(column)
    )


def _exclude(one: frozenset[str] | Between, other: frozenset[str] | Between) -> bool:
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return not one & other
    if isinstance(one, Between) and isinstance(other, Between) and one.months == other.months:
        return _before(one, other) or _before(other, one)
    return False


def _before(one: Between, other: Between) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def differenced(asked: Query, answered: Query) -> bool:
    """Return whether an exact answer to both would answer a third question nobody approved."""
    if asked.noisy or answered.noisy:
        return False
    same = (
        asked.asks == answered.asks
        and dict(asked.filters) == dict(answered.filters)
        and dict(asked.mapped) == dict(answered.mapped)
    )
    return not same and not disjoint(asked, answered)
