"""The departments of one scenario, up and running, for somebody who wants to ask questions of his own.

A coordinator, the departments' nodes and an analyst's home, each as a real one would have it, and officers'
keys to approve with; all of it in a folder that is gone afterwards.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demo.collaboration import Department
from demo.narration import explained
from demo.processes import Children
from demo.run import await_questions
from demo.scenario import scenario_numbered

if TYPE_CHECKING:
    from coordinator.client.sdk import Job
    from demo.scenarios.play import Play
    from minshu import Bureau


@dataclass(frozen=True)
class Town:
    """A collaboration that runs.

    Attributes:
        folder: of all homes, and of the city that departments have their registers from.
        departments: who takes part.
    """

    folder: Path
    departments: Sequence[Department]
    _play: "Play"

    @property
    def analyst(self) -> Path:
        """The analyst's home: `minshu --home`, `Bureau.connect`."""
        return self._play.collaboration.analyst

    @property
    def city(self) -> Path:
        """The synthetic city; what stands in its folder `truth` no node has."""
        return self._play.city

    def home(self, department: Department) -> Path:
        """Return a node's home: `minshu-node --home`."""
        return self._play.collaboration.home(department)

    def connect(self) -> "Bureau":
        """Return the analyst's connection; the town closes it."""
        return self._play.bureau

    def approve(self, job: "Job", *departments: Department, roles: Sequence[str] = ("dpo",)) -> None:
        """Approve a job as officers of some departments do, once every node has answered."""
        await_questions(job)
        for department in departments:
            for role in roles:
                self._play.collaboration.approve(department, job.id, role)


@contextmanager
def open_town(
    number: int,
    *,
    profile: str = "ci",
    seed: int = 1,
    policies: Callable[[Department, str], str] = lambda department, text: text,  # noqa: ARG005
) -> Iterator[Town]:
    """Start the departments of a scenario, and stop them in the end.

    Args:
        number: of the scenario.
        profile: size of the city.
        seed: of the city.
        policies: what each department makes of the policy that it has in the scenario, before it is signed.

    Raises:
        InputError: there is no such scenario or size.
        MinshuError: a step could not be done.
    """
    from demo.scenarios.play import Play

    scenario = scenario_numbered(number)
    with tempfile.TemporaryDirectory(prefix="minshu-town-") as name, Children() as children:
        play = Play(Path(name), children, scenario, profile=profile, seed=seed, policies=policies)
        with explained(play.collaboration.folder):
            play.open()
            try:
                yield Town(Path(name), scenario.departments, play)
            finally:
                play.bureau.close()
