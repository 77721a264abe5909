"""Disclosure control for counts of persons in streets, districts and a city. SPEC.md.

Published are street cells, district totals and the city total, so a withheld cell could be got back by
subtraction. `protect_table` withholds cells until that fails, then rounds what is left.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MIN_GROUP: Final = 10
"""Default minimum group inside government."""

ROUNDING: Final = 5

TOP_SHARE: Final = Fraction(4375, 10_000)
"""Largest share of a total that one contributor may have."""

P_PERCENT: Final = 10


@dataclass(frozen=True, slots=True)
class ProtectedTable:
    """A table fit to be published. None is a withheld cell; all others are multiples of `base`.

    Rounded cells need not add up to their rounded totals: each was rounded alone.
    """

    streets: Mapping[str, int | None]
    districts: Mapping[str, int | None]
    total: int | None
    minimum: int
    base: int

    @property
    def withheld(self) -> int:
        """Number of withheld cells, totals included."""
        return [*self.streets.values(), *self.districts.values(), self.total].count(None)


def rounded(count: int, base: int) -> int:
    """Return the multiple of `base` nearest to `count`, the larger of two equally near."""
    return (2 * count + base) // (2 * base) * base


def protect_table(
    counts: Mapping[str, int],
    groups: Mapping[str, str],
    minimum: int,
    base: int,
    *,
    also: Collection[str] = (),
) -> ProtectedTable:
    """Return the table with small cells withheld, others withheld to shield them, and the rest rounded.

    (1) Primary: a street, district or city with more than 0 and fewer than `minimum` persons is withheld. A
    zero stays: it names nobody. (2) Secondary: withheld streets whose sum can be told from published totals
    form a group; a group must have two streets or more, and so many persons that each of them could, for all
    a reader knows, have `minimum`. Where it does not, the smallest other street of the district is withheld
    too, after the last one the district's total, beside that of the smallest other district, and after the
    last one the city's. Of equal cells the first by name. (3) Published cells are rounded to `base`.

    A reader is taken to know the exact totals (rounding only takes from that) and that no withheld cell is
    empty. Not shielded against: knowing the members of a cell, and another table of the same persons.

    Args:
        counts: persons by street.
        groups: district by street, for every street of `counts`.
        minimum: smallest published count above zero, 1 or more.
        base: 1 or more.
        also: streets, districts, and "" for the city, that are withheld like small ones though they are not.
            No street is called as a district, unless it is the only one there. What is withheld for a
            district or the city holds for all of its streets, too.

    Raises:
        ValueError: a negative count, a street without district, or a bound below 1.
    """
    if minimum < 1 or base < 1 or any(count < 0 for count in counts.values()):
        raise ValueError("counts must not be negative, minimum and base be 1 or more")
    members: dict[str, list[str]] = {}
    for street in sorted(counts):
        if street not in groups:
            raise ValueError("a street belongs to no district")
        members.setdefault(groups[street], []).append(street)
    totals = {district: sum(counts[s] for s in streets) for district, streets in sorted(members.items())}
    city = sum(totals.values())

    def small(count: int, name: str) -> bool:
        return 0 < count < minimum or (count > 0 and name in also)

    def shielded(streets: Iterable[str]) -> bool:
        sizes = [counts[street] for street in streets]
        # The largest that one can be is what the others leave when each of them is 1.
        return not sizes or (len(sizes) > 1 and sum(sizes) - (len(sizes) - 1) >= minimum)

    # (1)
    withheld = {street for street, count in counts.items() if small(count, street)}
    dark = {district for district, count in totals.items() if small(count, district)}

    def next_street(districts: Iterable[str]) -> str | None:
        """Return the smallest street of these districts that can still be withheld."""
        free = [s for d in districts for s in members[d] if s not in withheld and counts[s]]
        return min(free, key=lambda s: (counts[s], s), default=None)

    # (2) Within each district, by its published total.
    for district, streets in members.items():
        while district not in dark and not shielded(s for s in streets if s in withheld):
            partner = next_street([district])
            if partner is None:
                dark.add(district)
            else:
                withheld.add(partner)
    # (2) Across the districts without a total, by the city's.
    city_dark = small(city, "")
    while dark and not city_dark:
        unknown = [s for d in dark for s in members[d] if s in withheld]
        if len(dark) > 1 and shielded(unknown):
            break
        partner = next_street(dark) if len(dark) > 1 else None
        if partner is not None:
            withheld.add(partner)
            continue
        other = min(
            (d for d in totals if d not in dark and totals[d]), key=lambda d: (totals[d], d), default=None
        )
        if other is None:
            city_dark = True
        else:
            dark.add(other)
            if not withheld.intersection(members[other]):
                withheld.add(min((s for s in members[other] if counts[s]), key=lambda s: (counts[s], s)))
    # (3)
    return ProtectedTable(
        streets={s: None if s in withheld else rounded(counts[s], base) for s in sorted(counts)},
        districts={d: None if d in dark else rounded(totals[d], base) for d in totals},
        total=None if city_dark else rounded(city, base),
        minimum=minimum,
        base=base,
    )


def dominated(
    contributions: Sequence[int], *, top_share: Fraction = TOP_SHARE, p_percent: int = P_PERCENT
) -> bool:
    """Return whether one contributor stands out in a total of non-negative contributions.

    (1) Top-1: the largest is more than `top_share` of the total. (2) p % rule: without the two largest so
    little is left that the second could estimate the largest to within `p_percent` per cent. A total of zero
    is not dominated.

    Raises:
        ValueError: a negative contribution.
    """
    if any(value < 0 for value in contributions):
        raise ValueError("contributions must not be negative")
    largest = sorted(contributions, reverse=True)[:2]
    total = sum(contributions)
    if total == 0:
        return False
    return largest[0] > top_share * total or 100 * (total - sum(largest)) < p_percent * largest[0]
