"""`minshu-demo scenario N`: one question put to a city's departments, its answer held against the truth."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.outfolder import whole
from demo.processes import Children
from protocols.errors import InputError

if TYPE_CHECKING:
    from demo.scenarios.play import Scenario

NUMBERS: Final = (2, 3, 4, 5, 6, 7, 8, 9, 10)


def run(number: int, out: Path, *, profile: str = "demo", seed: int = 1) -> int:
    """Play a scenario and leave its results in `out`; return the exit code.

    Everything is built in a hidden folder beside `out` and renamed at the end: `out` is whole or as before.

    Raises:
        InputError: there is no such scenario.
        MinshuError: something is off; nothing is left but the message.
    """
    from demo.scenarios.play import Play

    scenario = scenario_numbered(number)
    with whole(out) as work, Children() as children:
        Play(work, children, scenario, profile=profile, seed=seed).run()
    return 0


def scenario_numbered(number: int) -> "Scenario":
    """Return a scenario.

    Raises:
        InputError: there is none of that number.
    """
    from demo.scenarios.deaths import DeathsScenario
    from demo.scenarios.flexible_work import FlexibleWorkScenario
    from demo.scenarios.hardship import HardshipScenario
    from demo.scenarios.marital import MaritalScenario
    from demo.scenarios.school_places import SchoolPlacesScenario
    from demo.scenarios.separation import SeparationScenario
    from demo.scenarios.vaccination import VaccinationScenario
    from demo.scenarios.verifying import VerifyingScenario
    from demo.scenarios.villages import VillagesScenario

    known: list[Scenario] = [
        DeathsScenario(),
        SeparationScenario(),
        SchoolPlacesScenario(),
        FlexibleWorkScenario(),
        VaccinationScenario(),
        HardshipScenario(),
        MaritalScenario(),
        VillagesScenario(),
        VerifyingScenario(),
    ]
    for scenario in known:
        if scenario.number == number:
            return scenario
    raise InputError(
        f"scenario {number} is not among those that are played: {', '.join(map(str, NUMBERS))}",
        code="unknown-scenario",
        hint="minshu-demo run plays scenario 1 with every attack; docs/scenarios.md describes the others",
    )
