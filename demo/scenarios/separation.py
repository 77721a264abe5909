"""Scenario 3, 人户分离: how many are registered in one place and live in another.

Where a person is registered, the police know; where most nights are spent, the operator. Their lists are
joined without anybody seeing a row: districts exactly, streets with noise. The police's own word for where
people live gives two tables more, with noise, from one department alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from demo.city import Residents, Separation, load_residents, load_separation
from demo.collaboration import Department
from demo.scenarios.comparing import Cell, Released, accuracy, check_exact, read_figures
from demo.scenarios.pictures import Estimate, separation
from demo.scenarios.play import Play
from protocols.tables.released import PERSONS

POLICE: Final = Department("police", "公安 police", {"register": "register"})
TELECOM: Final = Department("telecom", "运营商 telecom", {"monthly": "monthly"})


@dataclass(frozen=True, slots=True)
class SecondNode(Department):
    """Another node of the statistics department, in a folder of its own."""

    @property
    def organisation(self) -> str:
        """The same as that of the first."""
        return STATISTICS.organisation

    @property
    def node(self) -> str:
        """`statistics.gz.example/node-b`."""
        return f"{self.organisation}/node-b"


STATISTICS: Final = Department("statistics", "统计 statistics (matcher)")
DEPARTMENTS: Final = (
    POLICE,
    TELECOM,
    STATISTICS,
    SecondNode("statistics-b", STATISTICS.title),
    Department("human-resources", "人社 human resources (helper)"),
    Department("health", "卫健 health (dealer)"),
)
MINIMUM: Final = 10


class SeparationScenario:
    """Two departments' lists joined: exact by district, with noise by street; and one department's alone."""

    number: Final = 3
    title: Final = "人户分离: registered in one place, living in another"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the questions; see `Scenario`."""
        expected, joined = load_separation(play.city), load_residents(play.city)
        districts, elsewhere = by_district(joined, play.codes.districts), by_street(expected)
        matrix, residents = (by_pair(each, play.codes.streets) for each in (expected, joined))

        refused = {name: play.refused(name) for name in ("opened", "one-house")}
        exact = read_figures(
            play.ask("districts", approvers=[POLICE, TELECOM]).to_arrow(), ("registered", "lives"), PERSONS
        )
        withheld = check_exact(exact, districts, MINIMUM)
        play.say(
            f"{len(exact) - withheld} cells are the truth rounded to 5, none of fewer than {MINIMUM} people; "
            f"{withheld} are withheld, and none of these follows from the others. {joined.persons:,} people "
            f"are on both lists; {joined.separated:,} of them sleep in another street than their register's."
        )
        refused["finer"] = play.refused("finer")
        nights = read_figures(play.ask("residents").to_arrow(), ("registered", "lives"), PERSONS)
        of_nights = accuracy(nights, residents, MINIMUM)
        play.say(f"{of_nights}.")
        streets = read_figures(play.ask("streets").to_arrow(), ("registered", "separated"), PERSONS)
        of_streets = accuracy(streets, elsewhere, MINIMUM)
        play.say(f"{of_streets}.")
        pairs = read_figures(play.ask("matrix").to_arrow(), ("registered", "lives"), PERSONS)
        of_pairs = accuracy(pairs, matrix, MINIMUM)
        play.say(f"{of_pairs}.")

        play.write_table(
            ("table", "registered", "lives", "value", "low", "high", "withheld", "truth"),
            [
                *_rows("districts, exact", exact, districts),
                *_rows("streets, separated", streets, elsewhere),
                *_rows("streets, joined", _shown(nights), residents),
                *_rows("streets", _shown(pairs), matrix),
            ],
        )
        separation(
            play.picture,
            play.codes.districts,
            {
                (registered, lives): None if figure.withheld else int(figure.value)
                for (registered, lives), figure in exact.items()
            },
            {
                street: Estimate.of(streets[street, "yes"], elsewhere[street, "yes"])
                for street in play.codes.streets
            },
            minimum=MINIMUM,
        )
        return {
            "persons": expected.persons,
            "separated": expected.separated,
            "joined": {"persons": joined.persons, "separated": joined.separated},
            "districts": {"cells": len(exact), "withheld": withheld},
            "refused": refused,
            "residents": asdict(of_nights),
            "streets": asdict(of_streets),
            "matrix": asdict(of_pairs),
        }


def by_pair(expected: Separation | Residents, streets: Sequence[str]) -> dict[Cell, int]:
    """Return persons by street of registration and of residence."""
    return {(r, c): expected.streets[r].get(c, 0) for r in streets for c in streets}


def by_district(expected: Separation | Residents, districts: Sequence[str]) -> dict[Cell, int]:
    """Return persons by district of registration and of residence, with margins as ""."""
    counts: Counter[Cell] = Counter()
    for registered, row in expected.streets.items():
        for lives, persons in row.items():
            for one in (registered[:6], ""):
                for other in (lives[:6], ""):
                    counts[one, other] += persons
    return {(one, other): counts[one, other] for one in (*districts, "") for other in (*districts, "")}


def by_street(expected: Separation) -> dict[Cell, int]:
    """Return persons by street of registration and whether they live in another street."""
    found: dict[Cell, int] = {}
    for street, row in expected.streets.items():
        found[street, "no"] = row.get(street, 0)
        found[street, "yes"] = sum(row.values()) - found[street, "no"]
    return found


def _shown(figures: Mapping[Cell, Released]) -> dict[Cell, Released]:
    return {cell: figure for cell, figure in figures.items() if not figure.withheld}


def _rows(
    table: str, released: Mapping[Cell, Released], truth: Mapping[Cell, int]
) -> list[tuple[object, ...]]:
    return [(table, *cell, *figure.row(), truth[cell]) for cell, figure in released.items()]
