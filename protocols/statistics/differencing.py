"""The differencing guard: two exact answers about overlapping groups give away the difference of the groups.

It decides from what queries select, never from data, so that a refusal tells nothing about anybody. Queries
over one dataset may both be answered exactly when they select the same rows, or rows that cannot overlap;
every other pair needs noise on one of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError


@dataclass(frozen=True, slots=True)
class Between:
    """Values from `low` to `high`, both included; None: no bound."""

    low: Fraction | None = None
    high: Fraction | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "low": None if self.low is None else str(self.low),
            "high": None if self.high is None else str(self.high),
        }


@dataclass(frozen=True, slots=True)
class Query:
    """What one job selects of one dataset.

    Attributes:
        asks: what is computed of whom, beyond the filters: other departments' lists, thresholds. Two queries
            that differ here do not select the same rows.
        filters: column → the values that are kept: a set of texts, or an interval.
        noisy: every number that leaves has calibrated noise and is charged to a budget.
    """

    asks: str
    filters: Mapping[str, frozenset[str] | Between] = field(default_factory=dict)
    noisy: bool = False

    def encode(self) -> str:
        """Return the one text form."""
        plain = {
            column: {"values": sorted(kept)} if isinstance(kept, frozenset) else kept.to_json()
            for column, kept in self.filters.items()
        }
        return canonical_json({"asks": self.asks, "filters": plain, "noisy": self.noisy}).decode("utf-8")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read `encode`'s form strictly.

        Raises:
            DecodeError: another form.
        """
        bad = DecodeError("not the text form of a query", code="bad-query")
        value = decode_json(text.encode("utf-8"), limit=256 << 10)
        match value:
            case {"asks": str(asks), "filters": dict(filters), "noisy": bool(noisy)} if len(value) == 3:
                try:
                    found = cls(asks, {column: _kept(kept) for column, kept in filters.items()}, noisy)
                except (TypeError, ValueError, ZeroDivisionError):
                    raise bad from None
            case _:
                raise bad
        if found.encode() != text:
            raise bad
        return found


def _kept(value: Any) -> frozenset[str] | Between:
    match value:
        case {"values": list(values)} if len(value) == 1 and all(isinstance(v, str) for v in values):
            return frozenset(values)
        case {"low": low, "high": high} if len(value) == 2:
            return Between(_bound(low), _bound(high))
    raise ValueError


def _bound(text: Any) -> Fraction | None:
    # Bounded first: Fraction would also read an exponent and fill the memory.
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > 64 or "e" in text.lower():
        raise ValueError
    return Fraction(text)


def disjoint(one: Query, other: Query) -> bool:
    """Return whether no row can be in both: some column is filtered by both to values that exclude."""
    shared = one.filters.keys() & other.filters.keys()
    return any(_exclude(one.filters[column], other.filters[column]) for column in shared)


def _exclude(one: frozenset[str] | Between, other: frozenset[str] | Between) -> bool:
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return not one & other
    if isinstance(one, Between) and isinstance(other, Between):
        return _before(one, other) or _before(other, one)
    return False


def _before(one: Between, other: Between) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def differenced(asked: Query, answered: Query) -> bool:
    """Return whether an exact answer to both would answer a third question nobody approved."""
    if asked.noisy or answered.noisy:
        return False
    same = asked.asks == answered.asks and dict(asked.filters) == dict(answered.filters)
    return not same and not disjoint(asked, answered)
