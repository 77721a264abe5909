"""What an attempt costs, as a value: privacy loss on fixed Rényi orders, and counts that leak as well.

Everything is an integer, rounded up where it is a cost and down where it is a limit, so that four quarters
of a budget are the budget. SPEC.md, "Cost".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache, reduce
from operator import add, le
from typing import Final, Literal, Self

from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError, InputError

ORDERS: Final = tuple(
    Fraction(order)
    for order in (
        "5/4", "3/2", "7/4", "2", "5/2", "3", "4", "5", "6", "8", "10", "12",
        "16", "20", "24", "32", "48", "64", "96", "128", "256", "512",
    )
)  # fmt: skip
"""The Rényi orders every cost is kept on. Another set would be another format of the ledger."""

UNIT: Final = 10**15
"""Parts of one that a stored number counts: Rényi divergence and δ are kept in 1e-15."""

Notion = Literal["zcdp", "pure-dp", "approximate-dp", "rows", "queries"]
"""What a limit is about: ρ, ε, ε at δ, records about persons, or questions."""

_MAX: Final = 10**30
_DIGITS: Final = 40


@dataclass(frozen=True, slots=True)
class Cost:
    """What one attempt, or several together, cost one dataset.

    Attributes:
        rdp: Rényi divergence at each of `ORDERS`, in 1e-15, rounded up.
        pure: ε at order infinity in 1e-15, None where no such bound holds (Gaussian noise).
        delta: δ in 1e-15, rounded up.
        rows: most records about persons that may leave.
        queries: questions answered from the dataset.
    """

    rdp: tuple[int, ...] = (0,) * len(ORDERS)
    pure: int | None = 0
    delta: int = 0
    rows: int = 0
    queries: int = 0

    @classmethod
    def zcdp(cls, rho: Fraction, delta: Fraction = Fraction(0)) -> Self:
        """Return the cost of a ρ-zCDP mechanism: Rényi divergence ρ·α at order α (Bun and Steinke 2016)."""
        _not_negative(rho, delta)
        return cls(tuple(_up(rho * order) for order in ORDERS), _zero(rho), _up(delta))

    @classmethod
    def pure_dp(cls, epsilon: Fraction, delta: Fraction = Fraction(0)) -> Self:
        """Return the cost of an ε-DP mechanism: min(ε, α·ε²/2) at order α (Bun and Steinke 2016, 1.4)."""
        _not_negative(epsilon, delta)
        return cls(
            tuple(_up(min(epsilon, order * epsilon**2 / 2)) for order in ORDERS), _up(epsilon), _up(delta)
        )

    def __add__(self, other: "Cost") -> "Cost":
        """Compose: costs of attempts on one dataset add up, order by order."""
        return Cost(
            tuple(mine + theirs for mine, theirs in zip(self.rdp, other.rdp, strict=True)),
            None if self.pure is None or other.pure is None else self.pure + other.pure,
            self.delta + other.delta,
            self.rows + other.rows,
            self.queries + other.queries,
        )

    @property
    def private_loss(self) -> bool:
        """Whether it is a privacy loss at all, and not only counts."""
        return any(self.rdp) or self.pure != 0 or self.delta > 0

    @property
    def rho(self) -> Fraction:
        """The least ρ whose zCDP bound covers every order."""
        return max(Fraction(loss, UNIT) / order for loss, order in zip(self.rdp, ORDERS, strict=True))

    def within(self, notion: Notion, limit: Fraction, delta: Fraction = Fraction(0)) -> bool:
        """Return whether this total keeps to a limit.

        `zcdp`: at every order at most limit·α, and δ at most `delta`. `pure-dp`: ε at most the limit, no δ.
        `approximate-dp`: some order converts to at most ε = limit at what is left of `delta`
        (Canonne, Kamath and Steinke 2020, proposition 12). `rows`, `queries`: the count.
        """
        match notion:
            case "rows":
                return self.rows <= limit
            case "queries":
                return self.queries <= limit
            case "pure-dp":
                return self.pure is not None and self.pure <= limit * UNIT and self.delta == 0
            case "zcdp":
                return self.delta <= delta * UNIT and all(map(le, self.rdp, _bounds(limit)))
            case "approximate-dp":
                epsilon = self._epsilon(delta)
                return epsilon is not None and epsilon <= limit

    def amount(self, notion: Notion, delta: Fraction = Fraction(0)) -> Fraction | None:
        """Return the cost in the notion's own measure; None where it has none (no pure bound, δ used up)."""
        match notion:
            case "rows":
                return Fraction(self.rows)
            case "queries":
                return Fraction(self.queries)
            case "pure-dp":
                return None if self.pure is None else Fraction(self.pure, UNIT)
            case "zcdp":
                return self.rho
            case "approximate-dp":
                return self._epsilon(delta)

    def _epsilon(self, delta: Fraction) -> Fraction | None:
        """Return ε at `delta`, over all orders the least, rounded up; None where δ is used up."""
        if not any(self.rdp) and self.delta <= delta * UNIT:
            return Fraction(0)
        left = delta - Fraction(self.delta, UNIT)
        if left <= 0:
            return None
        found = [
            Fraction(loss, UNIT) + conversion(order, left)
            for loss, order in zip(self.rdp, ORDERS, strict=True)
        ]
        return max(Fraction(0), min(found))

    def encode(self) -> str:
        """Return the one text form: what approvals sign and ledgers store."""
        return canonical_json(
            {
                "rdp": [str(loss) for loss in self.rdp] if any(self.rdp) else [],
                "pure": None if self.pure is None else str(self.pure),
                "delta": str(self.delta),
                "rows": str(self.rows),
                "queries": self.queries,
            }
        ).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read `encode`'s form strictly.

        Raises:
            DecodeError: another form, or a number below zero.
        """
        value = decode_json(text.encode("utf-8"), limit=4096)
        match value:
            case {"rdp": list(rdp), "pure": pure, "delta": delta, "rows": rows, "queries": int(queries)} if (
                len(value) == 5
                and len(rdp) in (0, len(ORDERS))
                and type(queries) is int
                and 0 <= queries < 2**53
            ):
                read = tuple(_integer(loss) for loss in rdp) or (0,) * len(ORDERS)
                found = cls(
                    read, None if pure is None else _integer(pure), _integer(delta), _integer(rows), queries
                )
            case _:
                raise _BAD
        if found.encode() != text:
            raise _BAD
        return found


NOTHING: Final = Cost()
"""What a job without any cost costs."""

_BAD: Final = DecodeError("not the text form of a cost", code="bad-cost")


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs."""
    return reduce(add, costs, NOTHING)


@lru_cache(maxsize=256)
def _bounds(rho: Fraction) -> tuple[int, ...]:
    """Return the largest stored divergence that ρ allows at each order."""
    return tuple(rho * order * UNIT // 1 for order in ORDERS)


@lru_cache(maxsize=4096)
def conversion(order: Fraction, delta: Fraction) -> Fraction:
    """Return what an order adds to its Rényi divergence for ε at `delta`, rounded up.

    log((α−1)/α) − (log δ + log α)/(α−1): Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12.
    """
    with localcontext(Context(prec=_DIGITS)):
        alpha, probability = _decimal(order), _decimal(delta)
        value = ((alpha - 1) / alpha).ln() - (probability.ln() + alpha.ln()) / (alpha - 1)
        # Every step is correct to 40 digits; 25 places after the point, rounded up, cover their errors.
        return Fraction(value.quantize(Decimal(1).scaleb(-25), rounding=ROUND_CEILING)) + Fraction(1, 10**25)


def decimal_up(value: Fraction, places: int = 6) -> str:
    """Return a decimal text that is not below `value`, without trailing zeros."""
    return _text(value, places, ROUND_CEILING)


def decimal_down(value: Fraction, places: int = 6) -> str:
    """Return a decimal text that is not above `value`, without trailing zeros."""
    return _text(value, places, ROUND_FLOOR)


def _text(value: Fraction, places: int, rounding: str) -> str:
    scaled = value * 10**places
    whole = -(-scaled.numerator // scaled.denominator) if rounding == ROUND_CEILING else (
        scaled.numerator // scaled.denominator
    )  # fmt: skip
    sign, digits = ("-" if whole < 0 else ""), str(abs(whole)).rjust(places + 1, "0")
    text = f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".") if places else digits
    return sign + text


def _up(value: Fraction) -> int:
    scaled = value * UNIT
    return -(-scaled.numerator // scaled.denominator)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def _zero(rho: Fraction) -> int | None:
    return 0 if rho == 0 else None


def _not_negative(*values: Fraction) -> None:
    if any(value < 0 or value > _MAX for value in values):
        raise InputError("a privacy cost is not below zero", code="bad-cost")


def _integer(text: object) -> int:
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 60:
        raise _BAD
    return int(text)
