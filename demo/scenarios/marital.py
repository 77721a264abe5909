"""Scenario 8, 婚姻状况校核: whose marital status two departments have differently.

Each department asks in turn, and learns which of its own records differ: not how, nor of whom they agree. The
bureau that asks for both learns that it was done.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from demo.city import load_marital
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.pictures import differing
from demo.scenarios.play import DIRECTED, Play

POLICE: Final = Department("police", "公安 police", {"population": "population"})
CIVIL_AFFAIRS: Final = Department("civil-affairs", "民政 civil affairs", {"marriage": "marriage"})
DEPARTMENTS: Final = (
    POLICE,
    CIVIL_AFFAIRS,
    Department("human-resources", "人社 human resources (witness)"),
    Department("statistics", "统计 statistics (witness)"),
)
QUESTIONS: Final[Mapping[str, Department]] = {"police": POLICE, "civil-affairs": CIVIL_AFFAIRS}
"""Each question and who receives its answer."""

MINIMUM: Final = 10
"""Fewer people of one kind are in no table and no picture."""


class MaritalScenario:
    """The same two lists compared in both directions."""

    number: Final = 8
    title: Final = "婚姻状况校核: marital status, as two departments have it"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask in both directions; see `Scenario`."""
        expected = load_marital(play.city)
        refused = {"spouse": play.refused("spouse")}
        for name, receiver in QUESTIONS.items():
            job = play.answered(name, approvers=(POLICE, CIVIL_AFFAIRS), roles=DIRECTED)
            play.check_records(job, receiver, expected.differing, expected.differing_sha256)
            if job.view().releases:
                raise Failed("the bureau received a release, but records go to one department alone")
        refused["held"] = play.refused("held")
        play.say(
            f"Of {expected.both:,} people on both lists {expected.differing:,} differ. In truth the police "
            f"are wrong in {expected.police_wrong:,} cases, the marriage register in "
            f"{expected.marriages_wrong:,}: people find out, as neither has seen the other's value."
        )
        pairs = {
            (one, other): persons if persons >= MINIMUM else None
            for one, row in expected.pairs.items()
            for other, persons in row.items()
        }
        districts = {
            district: persons if persons >= MINIMUM else None
            for district, persons in ((d, expected.districts.get(d, 0)) for d in play.codes.districts)
        }
        play.write_table(
            ("level", "police", "civil affairs", "persons", "withheld"),
            [("pair", one, other, persons, persons is None) for (one, other), persons in pairs.items()]
            + [
                ("district", district, "", persons, persons is None)
                for district, persons in districts.items()
            ],
        )
        differing(play.picture, pairs, districts, minimum=MINIMUM)
        return {
            "both": expected.both,
            "differing": expected.differing,
            "police_wrong": expected.police_wrong,
            "marriages_wrong": expected.marriages_wrong,
            "refused": refused,
        }
