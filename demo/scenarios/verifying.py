"""Scenario 10, 以核代填: a clerk of one street verifies residents at the police, person by person.

Nobody fills in what a department knows already. The clerk's node asks about persons of its own street alone;
the police count and limit the look-ups, and learn of nobody who it was.
"""

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from demo.city import SNAPSHOT
from demo.collaboration import CommandFailed, Department, command
from demo.narration import Failed
from demo.scenarios.pictures import latencies
from demo.scenarios.play import DIRECTED, Play
from protocols.identifiers import demo_area_table, normalise

if TYPE_CHECKING:
    from coordinator.client.sdk import Job

POLICE: Final = Department("police", "公安 police", {"population": "population"})
STREET_OFFICE: Final = Department("street-office", "街道办 street office", asks=True)
DEPARTMENTS: Final = (
    POLICE,
    STREET_OFFICE,
    Department("human-resources", "人社 human resources (witness)"),
    Department("statistics", "统计 statistics (witness)"),
)
STREET: Final = "990101001"
"""The clerk's own."""

LISTED: Final = (120, 40)
"""How many of a list that is asked about are of the own street, and of others."""
ONE_BY_ONE: Final = 140
"""How many persons come to the window, one after the other."""
LOOKUPS: Final = sum(LISTED) + ONE_BY_ONE
"""What the session allows."""

FIELDS: Final = ("kind", "registered")

Row = dict[str, str]


class VerifyingScenario:
    """One session: a list, then persons one by one, then one too many."""

    number: Final = 10
    title: Final = "以核代填: a street clerk verifies instead of having forms filled in"
    departments: Sequence[Department] = DEPARTMENTS

    def play(self, play: Play) -> Mapping[str, Any]:
        """Ask for what is refused, then open the session; see `Scenario`."""
        refused = {name: play.refused(name) for name in ("another-street", "too-many", "another-field")}
        own, others = _residents(play.city)
        begun, job = play.submitted("session", approvers=(POLICE, STREET_OFFICE), roles=DIRECTED)
        home = play.collaboration.home(STREET_OFFICE)
        with play.children.watched(job.cancel):
            _await_session(job)
        play.seconds["open"] = time.perf_counter() - begun
        play.say(f"The session is open, {len(own):,} persons are in its table; nobody can read it.")

        listed = [*list(own)[: LISTED[0]], *others[: LISTED[1]]]
        found = _ask_list(play, home, job.id, listed)
        wrong = sum(found[key] != own.get(key) for key in listed)
        there = sum(row is not None for row in found.values())
        play.say(f"A list of {len(listed)}: {there} are of the street, {wrong} answers are wrong.")
        mistaken, took = _ask_one_by_one(home, job.id, _at_the_window(list(own), others), own)
        median, slow = _quantile(took, 0.5), _quantile(took, 0.99)
        play.say(
            f"{len(took)} persons at the window: {mistaken} answers are wrong; half within {median:.1f} ms, "
            f"99 of 100 within {slow:.1f} ms."
        )
        if wrong or mistaken or there != LISTED[0]:
            raise Failed("a look-up was answered otherwise than the register says")
        refused["one-too-many"] = _one_too_many(play, home, job.id, listed[0])

        command("minshu-node", "lookup", "close", job.id, "--home", home)
        with play.children.watched(job.cancel):
            view = job.wait(progress=False)
        if view.state != "SUCCEEDED":
            raise Failed(f"the session ended {view.state}: {view.code} {view.sentence}")
        play.seconds["session"] = time.perf_counter() - begun
        play.write_table(
            ("look-up", "milliseconds"), [(at, round(ms, 2)) for at, ms in enumerate(took, start=1)]
        )
        latencies(play.picture, took, people=len(own))
        return {
            "street": STREET,
            "people": len(own),
            "lookups": LOOKUPS,
            "found": there,
            "wrong": wrong + mistaken,
            "milliseconds": {"median": round(median, 2), "p99": round(slow, 2), "most": round(max(took), 2)},
            "refused": refused,
        }


def _residents(city: Path) -> tuple[dict[str, Row], list[str]]:
    """Return what is true of everybody whom the police list in the street, and persons of other streets."""
    import pyarrow.parquet as pq

    rows = pq.read_table(
        city / "registers" / "police" / "population.parquet", columns=["resident_id", "street"]
    )
    keys = normalise(rows["resident_id"], "resident-id", as_of=SNAPSHOT, areas=demo_area_table())
    streets = rows["street"].to_pylist()
    listed = {
        key.decode().removeprefix("RIC:"): streets[row]
        for key, row in zip(keys.keys.tolist(), keys.rows.tolist(), strict=True)
    }
    truth = pq.read_table(
        city / "truth" / "persons.parquet", columns=["resident_id", "register_street"]
    ).to_pydict()
    registered = dict(zip(truth["resident_id"], truth["register_street"], strict=True))
    own = {
        person: {
            "kind": "floating" if registered[person] is None else "register",
            "registered": registered[person] or "",
        }
        for person in sorted(listed)
        if listed[person] == STREET
    }
    return own, [person for person in sorted(listed) if listed[person] != STREET]


def _at_the_window(own: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return who comes: every seventh lives elsewhere."""
    return [others[-1 - at] if at % 7 == 6 else own[-1 - at % len(own)] for at in range(ONE_BY_ONE)]


def _await_session(job: "Job") -> None:
    """Wait until the clerk's node has the table."""
    view = job.view()
    for view in job.events():
        if any(run.node == STREET_OFFICE.node and run.phase == "serving" for run in view.runs):
            return
    raise Failed(f"the session ended {view.state} before it began: {view.code} {view.sentence}")


def _ask_list(play: Play, home: Path, job: str, people: Sequence[str]) -> dict[str, Row | None]:
    """Ask about a list, as the clerk would with a file."""
    with _file(play, people) as (asked, answered):
        reason = play.jobs / "reason.txt"
        reason.write_text("年度核验\n", encoding="utf-8")
        command(
            "minshu-node", "lookup", job, "--batch", asked, "--out", answered, "--home", home,
            "--reason-file", reason,
        )  # fmt: skip
        reason.unlink()
        with answered.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    said = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    return {
        person: {name: row[name] for name in FIELDS} if row["found"] == "yes" else None
        for person, row in zip(people, said, strict=True)
    }


@contextmanager
def _file(play: Play, people: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Yield a file with a list and one for the answers; neither stays."""
    asked, answered = play.jobs / "asked.txt", play.jobs / "answered.csv"
    asked.write_text("\n".join(people) + "\n", encoding="ascii")
    try:
        yield asked, answered
    finally:
        for file in (asked, answered):
            file.unlink(missing_ok=True)


def _ask_one_by_one(
    home: Path, job: str, people: Sequence[str], own: Mapping[str, Row]
) -> tuple[int, list[float]]:
    """Ask about one person after the other; return how many answers are wrong, and milliseconds of each."""
    from node.asking import Wish, ask_one
    from node.counter import Caller
    from node.home import Home

    wrong, took = 0, []
    with Caller(Home(home)) as caller:
        wish = Wish(job, reason="窗口业务")
        for person in people:
            begun = time.perf_counter()
            answer = ask_one(caller, wish, person)
            took.append((time.perf_counter() - begun) * 1000)
            row = {name: answer["fields"].get(name) or "" for name in FIELDS} if answer["found"] else None
            wrong += row != own.get(person)
    return wrong, took


def _one_too_many(play: Play, home: Path, job: str, person: str) -> str:
    """Ask once more than the session allows; return the sentence that refuses it."""
    with _file(play, [person]) as (asked, answered):
        try:
            command("minshu-node", "lookup", job, "--batch", asked, "--out", answered, "--home", home)
        except CommandFailed as error:
            play.say(f"[green]refused[/green] one look-up more: {error.reason}")
            return error.reason
    raise Failed("a session answered more look-ups than it allows")


def _quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that a share of the values does not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
