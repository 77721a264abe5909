"""Scenario 3, 人户分离: how many are registered in one place and live in another.

Both places stand in one register, the police's, so one department answers alone: by district exactly, by
street with noise.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from demo.city import Separation, load_separation
from demo.collaboration import Department
from demo.scenarios.comparing import Cell, Released, accuracy, check_exact, read_figures
from demo.scenarios.pictures import Estimate, separation
from demo.scenarios.play import Play
from protocols.tables.released import PERSONS

POLICE: Final = Department("police", "公安 police", {"register": "register"})
DEPARTMENTS: Final = (
    POLICE,
    Department("human-resources", "人社 human resources (witness)"),
    Department("statistics", "统计 statistics (witness)"),
)
MINIMUM: Final = 10


class SeparationScenario:
    """Exact by district; with noise by street."""

    number: Final = 3
    title: Final = "人户分离: registered in one place, living in another"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the questions; see `Scenario`."""
        expected = load_separation(play.city)
        districts, elsewhere = by_district(expected, play.codes.districts), by_street(expected)
        matrix: dict[Cell, int] = {
            (r, c): expected.streets[r].get(c, 0) for r in play.codes.streets for c in play.codes.streets
        }

        exact = read_figures(
            play.ask("districts", approvers=[POLICE]).to_arrow(), ("registered", "lives"), PERSONS
        )
        withheld = check_exact(exact, districts, MINIMUM)
        play.say(
            f"{len(exact) - withheld} cells are the truth rounded to 5, none of fewer than {MINIMUM} people; "
            f"{withheld} are withheld, and none of these follows from the others."
        )
        code = play.refused("finer")
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
                *_rows("streets", {cell: f for cell, f in pairs.items() if not f.withheld}, matrix),
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
            "districts": {"cells": len(exact), "withheld": withheld},
            "finer": code,
            "streets": asdict(of_streets),
            "matrix": asdict(of_pairs),
        }


def by_district(expected: Separation, districts: Sequence[str]) -> dict[Cell, int]:
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


def _rows(
    table: str, released: Mapping[Cell, Released], truth: Mapping[Cell, int]
) -> list[tuple[object, ...]]:
    return [(table, *cell, *figure.row(), truth[cell]) for cell, figure in released.items()]
