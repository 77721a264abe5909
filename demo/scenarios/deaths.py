"""Scenario 2, 应销未销 and 养老金续领: the dead who are still registered, or still paid a pension.

Each department is asked with the list of the dead that it is told by, and receives its own people alone. The
bureau receives two street tables, and how much was paid too much: one total over joined rows, with noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from demo.city import Deaths, Overpaid, Uncancelled, load_deaths, load_overpaid
from demo.collaboration import Department
from demo.narration import Failed
from demo.scenarios.comparing import Released, read_figures
from demo.scenarios.pictures import Estimate, Uncounted, uncancelled
from demo.scenarios.play import DIRECTED, Play
from protocols.jobs.crosscheck import street_table
from protocols.tables.released import PERSONS, sum_of

POLICE: Final = Department("police", "公安 police", {"register": "register"})
HUMAN_RESOURCES: Final = Department("human-resources", "人社 human resources", {"pension": "pension"})
HEALTH: Final = Department("health", "卫健 health", {"deaths": "deaths"})
CIVIL_AFFAIRS: Final = Department("civil-affairs", "民政 civil affairs", {"funeral": "funeral"})
DEPARTMENTS: Final = (
    POLICE,
    HUMAN_RESOURCES,
    HEALTH,
    CIVIL_AFFAIRS,
    Department("statistics", "统计 statistics (neutral)"),
)
MINIMUM: Final = 10
_NOISE_REACH: Final = 38
"""Twelve standard deviations, √10 each, of the noise on how many people the overpaid total is of."""

ASKED: Final[Mapping[str, tuple[Department, Department]]] = {
    "register": (POLICE, HEALTH),
    "pension": (HUMAN_RESOURCES, CIVIL_AFFAIRS),
}
"""Who holds the register and the list of the dead of each question."""

Area = tuple[str, str, str, int | None]
"""A released row: level, district, street, persons; None where they are withheld."""


class DeathsScenario:
    """Two cross-checks with a grace, a total with noise, and what the nodes refuse beside them."""

    number: Final = 2
    title: Final = "应销未销, 养老金续领: the dead on the register, and on the pension list"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask both questions; see `Scenario`."""
        expected = load_deaths(play.city)
        refused = {"cause": play.refused("cause")}
        released = {name: self._asked(play, name, expected) for name in ASKED}
        refused |= {name: play.refused(name) for name in ("no-grace", "overpaid-exact")}
        paid, counted, owed = self._overpaid(play)
        play.write_table(
            ("question", "level", "district", "street", "value", "withheld", "truth"),
            [
                (name, *row, row[-1] is None, _truth(expected.questions[name], row))
                for name, rows in released.items()
                for row in rows
            ]
            + [
                ("overpaid", unit, "", "", figure.row()[0], figure.withheld, truth)
                for unit, figure, truth in (
                    ("fen", owed, paid.bounded_fen),
                    ("persons", counted, paid.past_grace),
                )
            ],
        )
        uncancelled(
            play.picture,
            {name: _uncounted(one, released[name], play) for name, one in expected.questions.items()},
            minimum=MINIMUM,
            grace_days=expected.grace_days,
            overpaid=Estimate.of(owed, paid.bounded_fen),
        )
        return {
            "dead": expected.dead,
            "grace_days": expected.grace_days,
            "flagged": {name: one.flagged for name, one in expected.questions.items()},
            "within_grace": {name: one.within_grace for name, one in expected.questions.items()},
            "missed": {name: one.missed for name, one in expected.questions.items()},
            "overpaid_fen": {
                **dict(zip(("released", "low", "high", "withheld"), owed.row(), strict=True)),
                "truth_within_bounds": paid.bounded_fen,
                "truth": paid.past_grace_fen,
                "truth_within_grace_too": paid.total_fen,
            },
            "refused": refused,
        }

    @staticmethod
    def _overpaid(play: Play) -> tuple[Overpaid, Released, Released]:
        """Ask for the overpaid total, and hold it against the truth; return it with how many it is of.

        Of so few people it is withheld where the noise makes them fewer than the minimum.
        """
        truth = load_overpaid(play.city)
        table = play.ask("overpaid").to_arrow()
        (counted,) = read_figures(table, (), PERSONS).values()
        (owed,) = read_figures(table, (), sum_of("monthly*months")).values()
        for figure, right in ((counted, truth.past_grace), (owed, truth.bounded_fen)):
            # Six half-widths of a 95 % interval are some twelve deviations: noise does not reach so far.
            off, reach = abs(figure.value - right), 3 * (figure.high - figure.low)
            if figure.withheld:
                off, reach = truth.past_grace - MINIMUM, _NOISE_REACH
            if off > reach:
                raise Failed("the overpaid total, or how many people it is of, is not that of the truth")
        said = f"{_yuan(owed.value)} yuan (95 %: {_yuan(owed.low)} to {_yuan(owed.high)}) were"
        play.say(
            f"{'Withheld: what was' if owed.withheld else said} paid after the month of the funeral to "
            f"those past their grace. In truth {_yuan(truth.bounded_fen)}, to {truth.past_grace:,} people; "
            f"with all that {truth.bounded:,} of them had above 10,000 a month "
            f"{_yuan(truth.past_grace_fen)}, and with the {truth.persons - truth.past_grace:,} within their "
            f"grace {_yuan(truth.total_fen)}."
        )
        return truth, counted, owed

    @staticmethod
    def _asked(play: Play, name: str, expected: Deaths) -> list[Area]:
        """Ask one question and hold both of its answers against the truth; return the released table."""
        truth, (receiver, giver) = expected.questions[name], ASKED[name]
        job = play.answered(name, approvers=(receiver, giver), roles=DIRECTED)
        play.check_records(job, receiver, truth.flagged, truth.flagged_sha256)
        play.say(
            f"{truth.within_grace:,} more are on both lists, but within their grace, and not "
            f"told. {truth.missed:,} whom the list of the dead does not have yet are missed."
        )
        release = job.release()
        release.save(play.result / "releases" / name)
        table = release.to_arrow()
        right = street_table(truth.streets, MINIMUM).table
        if any(table[column].to_pylist() != values.tolist() for column, values in right.columns.items()):
            raise Failed(f"the street table of {name} is not that of the truth")
        return [
            (r["level"], r["district"], r["street"], None if r["withheld"] else r["count"])
            for r in table.to_pylist()
        ]


def _yuan(fen: float) -> str:
    return f"{fen / 100:,.0f}"


def _truth(truth: Uncancelled, row: Area) -> int:
    """Return how many people a released row is about."""
    level, district, street, _ = row
    area = {"city": "", "district": district, "street": street}[level]
    return sum(persons for code, persons in truth.streets.items() if code.startswith(area))


def _uncounted(truth: Uncancelled, rows: Sequence[Area], play: Play) -> Uncounted:
    shown = {district: persons for level, district, _, persons in rows if level == "district"}
    (city,) = (persons for level, _, _, persons in rows if level == "city")
    return Uncounted(
        city=city,
        districts={
            district: (shown.get(district), _truth(truth, ("district", district, "", None)))
            for district in play.codes.districts
        },
        ages=truth.ages,
        months={int(ago): (past, within) for ago, (past, within) in truth.months.items()},
    )
