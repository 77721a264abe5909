"""Scenario 9, 城中村实有人口: people in urban villages, as three departments know them together.

Nobody is matched: the number is how many records the departments have, and a person whom all three know is
in it three times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from demo.city import load_villages
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.comparing import accuracy, read_figures
from demo.scenarios.pictures import Estimate, villages
from demo.scenarios.play import Play
from protocols.tables.released import PERSONS

DEPARTMENTS: Final = (
    Department("police", "公安 police", {"population": "population"}),
    Department("telecom", "运营商 telecom", {"monthly": "monthly"}),
    Department("housing", "住建 housing", {"leases": "leases"}),
    Department("statistics", "统计 statistics (neutral)"),
)
MINIMUM: Final = 50
SOURCES: Final = 3


class VillagesScenario:
    """A tree: city, district, street, village."""

    number: Final = 9
    title: Final = "城中村实有人口: people in urban villages"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the question; see `Scenario`."""
        expected = load_villages(play.city)
        truth: dict[tuple[str, ...], int] = {}
        for village, lists in expected.villages.items():
            for area in ("", village[:6], village[:9], village):
                truth[(area,)] = truth.get((area,), 0) + sum(lists.values())
        found = read_figures(play.ask("villages").to_arrow(), ("village",), PERSONS)
        # A person may count in every department.
        of_tree = accuracy(found, truth, MINIMUM * SOURCES)
        play.say(f"{of_tree}.")
        _check_sums({area: figure.value for (area,), figure in found.items() if not figure.withheld})
        records, living = truth[("",)], sum(expected.living.values())
        play.say(
            f"{records:,} records of {SOURCES} departments, {records / SOURCES:,.0f} for each on average; a "
            f"person may count {SOURCES} times. "
            f"In truth {living:,} people live in the {len(expected.villages)} villages."
        )
        play.write_table(
            ("area", "level", "records", "low", "high", "withheld", "per department", "truth", "living"),
            [
                (
                    area,
                    _LEVELS[len(area)],
                    *figure.row(),
                    None if figure.withheld else round(figure.value / SOURCES, 1),
                    truth[(area,)],
                    sum(people for village, people in expected.living.items() if village.startswith(area)),
                )
                for (area,), figure in found.items()
            ],
        )
        estimates = {area: Estimate.of(figure, truth[(area,)]) for (area,), figure in found.items()}
        villages(
            play.picture,
            {area: estimates[area] for area in play.codes.districts if area in estimates},
            {village: estimates[village] for village in play.codes.villages},
            minimum=MINIMUM,
            departments=SOURCES,
        )
        levels = {name: len([a for a in estimates if len(a) == n]) for n, name in _LEVELS.items()}
        return {
            "records": records,
            "per_department": round(records / SOURCES, 1),
            "living": living,
            "areas": levels,
            "shown_villages": sum(estimates[village].shown for village in play.codes.villages),
            "figures": asdict(of_tree),
        }


_LEVELS: Final = {0: "city", 6: "district", 9: "street", 12: "village"}


def _check_sums(shown: Mapping[str, float]) -> None:
    """Check that released parts never exceed their whole."""
    for length, above in ((6, 0), (9, 6), (12, 9)):
        sums: dict[str, float] = {}
        for area, value in shown.items():
            if len(area) == length:
                sums[area[:above]] = sums.get(area[:above], 0) + value
        if any(total > shown[area] for area, total in sums.items() if area in shown):
            raise Failed("released parts of an area are together more than the area")
