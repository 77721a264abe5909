"""Scenario 4, 学位缺口: do the streets have school places enough for the children who will enter?

Children come from three lists, each of which counts those that the others do not; the places from a fourth
department, whose rows are about nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from demo.city import PRIMARY_YEARS, load_school_places
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.comparing import Cell, Released, accuracy, read_figures
from demo.scenarios.pictures import Estimate, Gap, school_places
from demo.scenarios.play import Play
from protocols.tables.released import PERSONS, sum_of

DEPARTMENTS: Final = (
    Department("health", "卫健 health", {"births": "births"}),
    Department("police", "公安 police", {"register": "register"}),
    Department("housing", "住建 housing", {"leases": "leases"}),
    Department("education", "教育 education", {"places": "places"}, frozenset({"places"})),
    Department("statistics", "统计 statistics (neutral)"),
)
STAGE: Final = "primary"
MINIMUM: Final = 3


@dataclass(frozen=True, slots=True)
class Demand:
    """Places of an area, and the children who will want one."""

    places: int
    children: Estimate

    @property
    def verdict(self) -> str:
        """`lacking` or `enough` where the whole interval says so, else `open`."""
        if not self.children.shown:
            return "open"
        if self.children.low > self.places:
            return "lacking"
        return "enough" if self.children.high <= self.places else "open"

    @property
    def right(self) -> bool:
        """Whether the verdict is true."""
        lacks = self.children.truth > self.places
        return self.verdict == "open" or lacks == (self.verdict == "lacking")


class SchoolPlacesScenario:
    """Children by street and year, and by street and district; places; what is lacking."""

    number: Final = 4
    title: Final = "学位缺口: school places and children"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the three questions; see `Scenario`."""
        expected = load_school_places(play.city)
        streets = play.codes.streets
        cohorts: dict[Cell, int] = {
            (s, year): expected.children[s].get(year, 0) for s in streets for year in PRIMARY_YEARS
        }
        totals = _totals(cohorts)

        by_year = read_figures(play.ask("children").to_arrow(), ("street", "year"), PERSONS)
        of_years = accuracy(by_year, cohorts, MINIMUM)
        play.say(f"{of_years}.")
        demand = read_figures(play.ask("demand").to_arrow(), ("street",), PERSONS)
        of_demand = accuracy(demand, totals, MINIMUM)
        play.say(f"{of_demand}.")
        places = read_figures(play.ask("places").to_arrow(), ("street", "stage"), sum_of("places"))
        _check_places(places, expected.places)
        play.say("The places are exact: none of their rows is about a person.")

        found = {
            area: Demand(
                sum(by_stage[STAGE] for s, by_stage in expected.places.items() if s.startswith(area)),
                Estimate.of(demand[(area,)], totals[(area,)]),
            )
            for area in ("", *play.codes.districts, *streets)
        }
        gaps = {street: found[street] for street in streets}
        verdicts = {
            word: [street for street, one in gaps.items() if one.verdict == word]
            for word in ("lacking", "enough", "open")
        }
        right = sum(one.right for one in gaps.values())
        play.say(
            f"Of {len(streets)} streets {len(verdicts['lacking'])} lack places, the whole interval says so; "
            f"{len(verdicts['enough'])} have enough; {len(verdicts['open'])} cannot be told. "
            f"{right} of these verdicts agree with the truth."
        )
        living = sum(sum(row.values()) for row in expected.living.values())
        play.say(
            f"The lists know {sum(expected.lists.values()):,} children, {living:,} of that age live in the "
            "city: those without a register or a lease here are on none."
        )
        play.write_table(
            ("street", "year", "children", "low", "high", "withheld", "truth", "places", "gap", "gap low",
             "gap high", "verdict"),
            [
                *_gap_rows(found),
                *((*cell, *figure.row(), cohorts[cell]) for cell, figure in by_year.items()),
            ],
        )  # fmt: skip
        school_places(
            play.picture,
            {area: (found[area].places, found[area].children) for area in play.codes.districts},
            [Gap(street, one.places, one.children, one.verdict) for street, one in gaps.items()],
            years=PRIMARY_YEARS,
        )
        return {
            "children": sum(expected.lists.values()),
            "by_list": dict(expected.lists),
            "living": living,
            "cohorts": asdict(of_years),
            "demand": asdict(of_demand),
            "streets": {word: len(found) for word, found in verdicts.items()},
            "right_verdicts": right,
            "lacking": verdicts["lacking"],
        }


def _totals(cohorts: Mapping[Cell, int]) -> dict[Cell, int]:
    """Return children of all years by street, by district, and of the whole city as ""."""
    found: dict[Cell, int] = {}
    for (street, _), children in cohorts.items():
        for area in (street, street[:6], ""):
            found[(area,)] = found.get((area,), 0) + children
    return found


def _check_places(released: Mapping[Cell, Released], truth: Mapping[str, Mapping[str, int]]) -> None:
    for street, by_stage in truth.items():
        for stage, places in by_stage.items():
            if released[street, stage].value != places:
                raise Failed(f"the places of {street}, {stage} are not those of the register")


def _gap_rows(found: Mapping[str, Demand]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for area, one in found.items():
        children = one.children
        gap = (
            (one.places - children.value, one.places - children.high, one.places - children.low)
            if children.shown
            else (None, None, None)
        )
        figures = (children.value, children.low, children.high) if children.shown else (None, None, None)
        rows.append((area, "", *figures, not children.shown, children.truth, one.places, *gap, one.verdict))
    return rows
