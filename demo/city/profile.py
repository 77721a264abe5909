"""Sizes of the synthetic city, and the published figures it is built to meet.

Figures with a source are quoted as integers per the unit named beside them, so that every count follows
from integer arithmetic. What has no source is marked assumed, here and in docs/city.md.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

from protocols.errors import InputError

SNAPSHOT: Final = date(2025, 12, 31)
"""Day the registers are extracted. The last day of a year, so an age is a calendar year of birth."""

AREA_CODES: Final = tuple(f"9901{district:02d}" for district in range(1, 12))
"""Area codes of the eleven districts. No province has the prefix 99, so no id here can be a person's."""

DISTRICT_SHARES: Final = (36668, 28229, 22380, 17683, 17287, 15867, 12221, 11330, 9679, 9600, 7326)
"""Residents per district, in hundreds of persons."""

REGISTER_PER_MILLE: Final = 448
"""Residents with a household register in the city; the other 552 per mille are floating."""

AGE_BANDS: Final = (1387, 7472, 1141)
"""Residents aged 0-14, 15-59 and 60+, per ten thousand."""

MALE_PER_10K: Final = 5283
BIRTHS_PER_100K: Final = 1107
DEATHS_PER_100K: Final = 735

SEPARATED_PER_10K: Final = 828
"""Registered residents who live in another street of the city, per ten thousand residents: 116.95 million of
1,411.78 million in the seventh national census (2020); assumed for this city."""

NO_PERMIT_PER_MILLE: Final = 342
"""Floating people without residence-permit data."""

NO_HEALTH_RECORD_PER_MILLE: Final = 285
"""People of 60 and more without a health record."""

BIRTH_MISMATCH_PER_MILLE: Final = 83
"""Birth certificates that differ from the household register."""

FLAGGED_PER_10K_FLOATING: Final = 1036
"""Suspected unregistered: 134.74 of 1,300 (ten thousand persons)."""

CONFIRMED_PER_10K_FLAGGED: Final = 5861

UNTRUE_SHARES: Final = (55, 20, 15, 10)
"""Flagged but not unregistered: departed, typo or alternative id, lag, duplicate; per cent."""

POLICE_PER_MILLE: Final = 920
"""Distinct keys on the police's list, per mille of the residents; assumed."""

MARITAL_STALE_PER_MILLE: Final = 300
"""Of those who married or divorced within MARITAL_STALE_YEARS, whom the police have as before; assumed."""

MARITAL_STALE_YEARS: Final = 3

WIDOWED_ON_RECORD_PER_MILLE: Final = 250
"""Widowed people whom the marriage register still has as married: nobody tells it of a death; assumed."""

VILLAGERS_PER_MILLE: Final = (450, 80)
"""Of those who live in a street with urban villages, who lives in one of them: floating, and with a household
register in the city; assumed."""

SOURCES: Final = ("human-resources", "health", "education", "housing")
"""The lists matched against the police's; bit i of a membership pattern is SOURCES[i]."""

SOURCE_PER_MILLE: Final = (450, 400, 180, 350)
"""Distinct keys of each list in SOURCES, per mille of the residents; assumed."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A size of the city.

    Args:
        name: what the command line calls it.
        population: living residents.
        block: residents generated at a time; memory is bounded by it.
        streets: streets in all districts together.
        villages: urban villages (城中村) in all streets together.
        uncancelled_per_mille: of last year's dead, those still on the register; assumed.
        low_income_per_mille: residents on the low-income list; assumed.
        owners_per_cent: of those aged 23 to 59, who runs a business; assumed.
        inflated: names of the rates that are larger here than elsewhere, so that a small city shows them.
    """

    name: str
    population: int
    block: int
    streets: int
    villages: int = 271
    uncancelled_per_mille: int = 40
    low_income_per_mille: int = 15
    owners_per_cent: int = 5
    inflated: tuple[str, ...] = ()


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile(
            "ci",
            10_000,
            2_500,
            33,
            villages=27,
            uncancelled_per_mille=300,
            low_income_per_mille=60,
            owners_per_cent=20,
            inflated=("uncancelled_per_mille", "low_income_per_mille", "owners_per_cent"),
        ),
        Profile("demo", 100_000, 25_000, 176),
        Profile("bench", 1_000_000, 50_000, 176),
        Profile("city", 23_000_000, 50_000, 176),
    )
}


def profile_named(name: str) -> Profile:
    """Return the profile called `name`.

    Raises:
        InputError: there is none.
    """
    profile = PROFILES.get(name)
    if profile is None:
        raise InputError(
            f"no profile is called {name!r}; there are {', '.join(PROFILES)}",
            code="unknown-profile",
            hint="choose demo for a first look, ci for tests",
        )
    return profile
