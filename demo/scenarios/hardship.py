"""Scenario 7, 因病致贫: leads to people whom an illness may have made poor, for whoever has to help them.

Four departments' lists are joined without anybody seeing a row; civil affairs receive whom a rule holds for,
and none of the amounts it is about. Whether a lead is right, only a visit shows: here the truth is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from demo.city import Hardship, load_hardship
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.pictures import hardship
from demo.scenarios.play import DIRECTED, Play

CIVIL_AFFAIRS: Final = Department("civil-affairs", "民政 civil affairs", {"low_income": "low_income"})
SOURCES: Final = (
    Department("medical-insurance", "医保 medical insurance", {"settlements": "settlements"}),
    CIVIL_AFFAIRS,
    Department("education", "教育 education", {"enrolment": "enrolment"}),
    Department("housing", "住建 housing", {"leases": "leases"}),
)
DEPARTMENTS: Final = (
    *SOURCES,
    Department("statistics", "统计 statistics (matcher)"),
    Department("cyberspace", "网信 cyberspace (helper)"),
    Department("archives", "档案 archives (dealer)"),
)
TOLD: Final = frozenset({"key", "street", "last_seen", "source", "organisation", "mark"})
"""What a record says of a person; no amount is among it."""


class HardshipScenario:
    """One rule over four lists, and what the nodes refuse beside it."""

    number: Final = 7
    title: Final = "困境识别, 因病致贫: leads to people whom an illness has made poor"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask the question; see `Scenario`."""
        expected = load_hardship(play.city)
        refused = {"disease": play.refused("disease")}
        job = play.answered("leads", approvers=DEPARTMENTS, roles=DIRECTED)
        play.check_records(job, CIVIL_AFFAIRS, expected.flagged, expected.flagged_sha256)
        told = play.collaboration.open_records(CIVIL_AFFAIRS, job.id).column_names
        if not TOLD.issuperset(told):
            raise Failed("a record tells more than who it is about and where the person lives")
        if job.view().releases:
            raise Failed("the bureau received a release, but records go to one department alone")
        refused["threshold"] = play.refused("threshold")
        not_helped = expected.in_hardship - expected.helped
        play.say(
            f"Precision [bold]{100 * expected.precision:.1f} %[/bold]: of {expected.flagged:,} leads "
            f"{expected.found:,} are in hardship. Recall [bold]{100 * expected.recall:.1f} %[/bold]: of "
            f"{not_helped:,} in hardship and not helped yet {not_helped - expected.found:,} are missed."
        )
        play.write_table(
            ("threshold_yuan", "leads", "in hardship", "precision", "recall"),
            [
                (int(least) // 100, leads, found, round(found / leads, 4), round(found / not_helped, 4))
                for least, (leads, found) in expected.thresholds.items()
                if leads
            ],
        )
        hardship(play.picture, outcomes(expected), curve(expected), (expected.recall, expected.precision))
        return {
            "settled": expected.settled,
            "joined": expected.joined,
            "flagged": expected.flagged,
            "in_hardship": expected.in_hardship,
            "helped_already": expected.helped,
            "found": expected.found,
            "precision": round(expected.precision, 4),
            "recall": round(expected.recall, 4),
            "refused": refused,
        }


def outcomes(expected: Hardship) -> dict[str, int]:
    """Return how many people are what: in hardship and found, missed, or helped already; and wrong leads."""
    return {
        "found": expected.found,
        "missed": expected.in_hardship - expected.helped - expected.found,
        "helped": expected.helped,
        "wrong": expected.flagged - expected.found,
    }


def curve(expected: Hardship) -> list[tuple[float, float]]:
    """Return recall and precision for each threshold of the rule's last clause."""
    not_helped = expected.in_hardship - expected.helped
    return [(found / not_helped, found / leads) for leads, found in expected.thresholds.values() if leads]
