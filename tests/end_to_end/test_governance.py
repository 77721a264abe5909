"""Quotas, stops, stored answers, dry answers, outcomes, metering, rosters: real nodes, and the commands."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crosscheck_case import person
from end_to_end.town import (
    EDUCATION,
    FLAGGED,
    HUMAN_RESOURCES,
    LISTS,
    POLICE,
    STATISTICS,
    Town,
    question,
    under,
)

from demo.collaboration import BUREAU, CommandFailed, Department, command, command_json
from demo.leaks import Scanner
from protocols.envelope import decode_envelope
from protocols.wire import Verdict

pytestmark = pytest.mark.alone  # a town of its own for half a minute; `.ci/run` runs it by itself

NODE = Path(sys.executable).with_name("minshu-node")
UNIT = 20_000
"""Records that human resources lend from one list in a quarter: as many as one job may take."""
ALL_LEFT, SET_ASIDE, ALL_SPENT = (0, 0, UNIT), (0, UNIT, 0), (UNIT, 0, 0)
UNITS = {"explained": 1, "raced": 1, "killed": 1, "answered": 2, "stopped": 2}
"""How often human resources lend the lists with a quota of their own."""
NAMES = ("drafted", "rostered", "revoked", *UNITS)
LENT = len(LISTS[HUMAN_RESOURCES]) + len(LISTS[EDUCATION])
READ = LENT + len(LISTS[POLICE])


class GovernedTown(Town):
    """A town whose human resources department lends some lists only so often in a quarter."""

    def text(self, department: Department, names: Sequence[object]) -> str:
        text = super().text(department, names)
        if department != HUMAN_RESOURCES:
            return text
        begins, ends = text.index("[quotas.records]"), text.index("[quotas.questions]")
        each = "".join(
            text[begins:ends]
            .replace("limit = 60000", f"limit = {units * UNIT}")
            .replace("quotas.records", f"quotas.{name}")
            .replace("insured", under(department, name))
            for name, units in UNITS.items()
        )
        quotas = "".join(f', "{name}"' for name in UNITS)
        return (text[:begins] + each + text[begins:]).replace(', "questions"]', f', "questions"{quotas}]')

    def stands(self, name: str) -> tuple[int, int, int]:
        """Return how many records of a list human resources have spent, set aside and left."""
        accounts = self.budget(HUMAN_RESOURCES)["accounts"]
        [account] = [one for one in accounts if one["name"] == name]
        return int(account["spent"]), int(account["reserved"]), int(account["remaining"])

    def until_stands(self, name: str, expected: tuple[int, int, int]) -> None:
        self.wait(lambda: self.stands(name) == expected, lambda: self.stands(name))

    def until_roster(self, version: int) -> None:
        """Wait until every node goes by a roster of that version."""

        def held() -> set[int | None]:
            return {self.roster(department) for department in self.departments}

        self.wait(lambda: held() == {version}, held)

    def nearly(self, text: str) -> str:
        """Submit a job and give every approval but that of human resources' owner; return its id."""
        job = self.submit(text)
        self.until_answered(job)
        for department in (POLICE, EDUCATION):
            for role in ("dpo", "owner"):
                self.approve(department, job, role)
        self.approve(HUMAN_RESOURCES, job, "dpo")
        return job

    def touched(self, job: str) -> list[str]:
        """Return the departments at which a job came as far as its data."""
        return [
            department.folder
            for department in self.departments
            if self.frames(department, job, 1)
            or any(kind in DATA for kind, _, _ in self.kinds(department, job))
        ]


DATA = {"job.admitted", "output.commit"}


def signed(envelope: str) -> Verdict:
    return Verdict.decode(decode_envelope(envelope.encode()).payload)


@pytest.fixture(scope="module")
def town(ground: Any) -> GovernedTown:
    folder, children = ground
    town = GovernedTown(folder, children, grace_s=1)
    town.open(*NAMES)
    return town


@pytest.fixture(scope="module")
def answered(town: GovernedTown) -> str:
    """A job that was answered."""
    job = town.ask(question("answered"))
    assert town.end(job)["state"] == "SUCCEEDED"
    return job


# ---------------------------------------------------------------- before a job, and beside it


def test_a_dry_answer_reads_nothing_and_charges_nothing(town: GovernedTown) -> None:
    for department in (POLICE, HUMAN_RESOURCES, EDUCATION):
        town.list_file(department, "explained").unlink()
    before = town.budgets(), command_json("minshu", "usage", "--home", town.analyst)
    said, code = town.explain(question("explained"))
    assert code == 0
    assert not said["refused"]
    answers = {answer["role"]: answer["verdict"] for answer in said["answers"]}
    assert {role: verdict["answer"] for role, verdict in answers.items()} == {
        "matcher": "permit",
        "register": "ask",
        "source-1": "ask",
        "source-2": "ask",
    }
    [cost] = [line for line in answers["source-1"]["costs"] if line["budget"] == "explained"]
    assert (cost["cost"], cost["remaining"], cost["limit"]) == (str(UNIT), str(UNIT), str(UNIT))
    assert {(leaves["name"], leaves["recipient"]) for leaves in answers["source-1"]["leaves"]} == {
        ("records", POLICE.organisation),
        ("street-table", BUREAU),
    }
    assert (town.budgets(), command_json("minshu", "usage", "--home", town.analyst)) == before
    job = answers["matcher"]["job"]
    assert job not in {
        known["job"] for known in command_json("minshu", "list", "--home", town.analyst)["jobs"]
    }
    for department in town.departments:
        assert [kind for kind, _, _ in town.kinds(department, job)] == ["job.explained"]
    assert not any(kind in DATA or kind.startswith("job.") for kind, _, _ in town.kinds(None, job))


def test_a_dry_answer_says_what_the_job_would_then_be_told(town: GovernedTown, answered: str) -> None:
    beside = question("answered").replace(under(EDUCATION, "answered"), under(EDUCATION, "drafted"))
    said, code = town.explain(beside)
    assert (code, said["refused"]) == (1, True)
    would = {answer["role"]: signed(answer["envelope"]) for answer in said["answers"]}
    refusing = {role for role, verdict in would.items() if verdict.code == "differencing"}
    assert refusing == {"register", "source-1"}
    view = town.end(town.submit(beside))
    assert (view["state"], view["code"]) == ("REFUSED", "differencing")
    told = {run["role"]: signed(run["verdict"]) for run in view["runs"] if run["state"] == "REFUSED"}
    assert told
    for role, verdict in told.items():
        assert verdict == replace(would[role], job=verdict.job, attempt=1)
    assert town.touched(view["job"]) == []


def test_the_same_question_over_the_same_data_is_answered_from_the_store_at_no_cost(
    town: GovernedTown, answered: str
) -> None:
    before = town.budgets()
    assert town.stands("answered") == (UNIT, 0, UNIT)
    assert town.explain(question("answered"))[0]["answered_before"] == answered
    view = town.end(town.submit(question("answered")))
    assert (view["state"], view["code"], view["answered_by"]) == ("SUCCEEDED", "answered-before", answered)
    assert town.budgets() == before
    assert town.touched(view["job"]) == []
    tables = [
        Path(command_json("minshu", "fetch", job, "--home", town.analyst)["releases"]["street-table"][0])
        for job in (answered, view["job"])
    ]
    assert tables[0].read_bytes() == tables[1].read_bytes()


# ---------------------------------------------------------------- quotas


def test_of_two_jobs_for_the_last_unit_one_runs_and_a_third_is_refused_at_once_p2(town: GovernedTown) -> None:
    jobs = [town.nearly(question("raced")) for _ in range(2)]
    assert town.stands("raced") == ALL_LEFT
    key, home = town.officer(HUMAN_RESOURCES, "owner"), town.home(HUMAN_RESOURCES)
    over = f"The job would take {UNIT:,} records about persons of quota raced"
    racing = {
        job: subprocess.Popen(
            [str(NODE), "approve", job, "--key", str(key), "--yes", "--home", str(home)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in jobs
    }
    told = {job: process.communicate(timeout=60)[1] for job, process in racing.items()}

    def states() -> dict[str, str]:
        return {town.show(job)["state"]: job for job in jobs}

    town.wait(lambda: "SUCCEEDED" in states(), states)
    [late] = set(jobs) - {states()["SUCCEEDED"]}
    if racing[late].returncode:  # the officer came too late, and signed nothing
        assert over in told[late]
        command("minshu", "cancel", late, "--home", town.analyst)
        town.wait(lambda: "CANCELLED" in states(), states)
    else:
        town.wait(lambda: "REFUSED" in states(), states)
        assert over in town.show(late)["sentence"]
    assert town.touched(late) == []
    assert town.stands("raced") == ALL_SPENT
    # Over changed data it is a new question, and there is nothing left for it.
    with town.list_file(HUMAN_RESOURCES, "raced").open("a") as file:
        file.write("\n")
    third = town.end(town.submit(question("raced")))
    assert (third["state"], third["code"]) == ("REFUSED", "budget-exceeded")
    assert over in third["sentence"]
    assert third["hint"]
    assert town.kinds(HUMAN_RESOURCES, third["job"])[-1] == ("job.refused", 1, "budget-exceeded")
    assert town.touched(third["job"]) == []
    [spent] = [
        entry for entry in town.entries(HUMAN_RESOURCES)
        if entry["kind"] == "budget.charged" and entry["body"]["budget"] == "raced"
    ]  # fmt: skip
    assert (spent["job"], spent["body"]["cost"]) == (states()["SUCCEEDED"], str(UNIT))


def test_a_killed_node_gives_back_what_it_set_aside_and_nothing_that_it_charged_p2(
    town: GovernedTown,
) -> None:
    job = town.nearly(question("killed"))
    with town.frozen(EDUCATION):  # so nothing starts: what the others accept stays set aside
        town.approve(HUMAN_RESOURCES, job, "owner")
        town.until_stands("killed", SET_ASIDE)
        town.kill("human-resources")
        assert town.stands("killed") == SET_ASIDE
        town.start_node(HUMAN_RESOURCES)
        town.until_stands("killed", ALL_LEFT)
    town.until_sending(HUMAN_RESOURCES, job, 2)
    with town.frozen(EDUCATION):
        town.kill("human-resources")
        assert town.stands("killed") == ALL_SPENT
        town.start_node(HUMAN_RESOURCES)
    view = town.end(job)
    assert (view["state"], view["code"]) == ("FAILED", "node-lost")
    assert town.stands("killed") == ALL_SPENT
    budget = [(e["kind"], e["attempt"]) for e in town.entries(HUMAN_RESOURCES, job) if "budget." in e["kind"]]
    assert budget == [
        ("budget.reserved", 1),
        ("budget.released", 1),
        ("budget.reserved", 2),
        ("budget.charged", 2),
    ]


# ---------------------------------------------------------------- stops


def test_one_officer_stops_a_running_job_and_two_let_jobs_through_again(town: GovernedTown) -> None:
    job = town.ask(question("stopped"))
    town.until_sending(HUMAN_RESOURCES, job, 1)
    with town.frozen(EDUCATION):  # a job that takes its time
        stop = town.stop(HUMAN_RESOURCES, "dataset", under(HUMAN_RESOURCES, "stopped"))
    view = town.end(job)
    assert (view["state"], view["code"]) == ("FAILED", "stopped")
    assert view["sentence"].startswith(f"{HUMAN_RESOURCES.node}: The department has stopped jobs")
    assert view["releases"] == []
    assert not any(kind.startswith("output.") for d in town.departments for kind, _, _ in town.kinds(d, job))
    assert ("job.cancelled", 1, "stopped") in town.kinds(HUMAN_RESOURCES, job)
    assert town.stands("stopped") == (UNIT, 0, UNIT)  # some of it had left
    later = town.end(town.submit(question("stopped")))
    assert (later["state"], later["code"]) == ("REFUSED", "stopped")
    assert town.touched(later["job"]) == []
    town.amend(HUMAN_RESOURCES, ("timezone = ", f'lifted_stops = ["{stop}"]\ntimezone = '))
    resumed = town.ask(question("stopped"))
    assert town.end(resumed)["state"] == "SUCCEEDED"
    assert sorted(town.people(resumed)) == sorted(f"RIC:{person(n)}" for n in FLAGGED)
    said = [entry["kind"] for entry in town.entries(HUMAN_RESOURCES) if stop == entry["body"].get("sha256")]
    assert said == ["stop.applied", "stop.lifted"]
    assert town.stands("stopped") == (2 * UNIT, 0, 0)


# ---------------------------------------------------------------- afterwards


def file_outcome(town: GovernedTown, job: str, note: str) -> dict[str, Any]:
    """File at the police's node that everybody was confirmed; return what the analyst then sees."""
    everybody = str(len(FLAGGED))
    figures = ["--checked", everybody, "--confirmed", everybody, "--note", note]
    command("minshu-node", "outcome", job, *figures, "--home", town.home(POLICE))

    def seen() -> dict[str, dict[str, Any]]:
        return {outcome["note"]: outcome for outcome in town.show(job)["outcomes"]}

    town.wait(lambda: note in seen(), seen)
    return seen()[note]


def test_an_outcome_filed_at_the_polices_node_is_shown_with_the_job_and_in_both_journals(
    town: GovernedTown, answered: str
) -> None:
    with pytest.raises(CommandFailed) as small:
        command(
            "minshu-node", "outcome", answered, "--checked", "12", "--confirmed", "3",
            "--home", town.home(POLICE),
        )  # fmt: skip
    assert "between 1 and 9" in small.value.reason
    seen = file_outcome(town, answered, "核实完毕")
    assert (seen["by"], seen["checked"], seen["confirmed"]) == (POLICE.node, len(FLAGGED), len(FLAGGED))
    line = "outcome: 12 of 12 confirmed (100.0 %), police.gz.example/node-a, "
    assert line in command("minshu", "show", answered, "--home", town.analyst)
    digests = []
    for whose in (POLICE, None):

        def filed(whose: Department | None = whose) -> list[dict[str, Any]]:
            return [e["body"] for e in town.entries(whose, answered) if e["kind"] == "outcome.filed"]

        town.wait(lambda filed=filed: len(filed()) == len(town.show(answered)["outcomes"]), filed)
        assert {(body["checked"], body["confirmed"]) for body in filed()} == {(len(FLAGGED), len(FLAGGED))}
        digests.append({body["sha256"] for body in filed()})
    assert digests[0] == digests[1]


def test_usage_adds_up_to_what_the_journals_say(town: GovernedTown, answered: str) -> None:
    again = town.end(town.submit(question("answered")))
    assert again["answered_by"] == answered
    jobs = command_json("minshu", "list", "--home", town.analyst)["jobs"]
    ran = {
        (entry["job"], entry["attempt"])
        for department in town.departments
        for entry in town.entries(department)
        if entry["kind"] == "job.admitted"
    }
    [row] = command_json("minshu", "usage", "--home", town.analyst)["usage"]
    states = [job["state"] for job in jobs]
    assert row | {"last": ""} == {
        "organisation": BUREAU,
        "purpose": "P-2026-001",
        "jobs": len(jobs),
        "succeeded": states.count("SUCCEEDED"),
        "refused": states.count("REFUSED"),
        "rows": READ * len(ran),
        "records": LENT * len(ran),  # fewer than the cap lets through
        "rho": "0",
        "last": "",
    }
    assert command_json("minshu-coordinator", "usage", "--home", town.coordinator)["usage"] == [row]


def test_no_identifier_is_in_anything_that_is_said_or_kept_about_a_job(
    town: GovernedTown, answered: str
) -> None:
    said, _ = town.explain(question("drafted"))
    file_outcome(town, answered, "再次核实")
    job = town.submit(question("drafted"))
    town.until_answered(job)
    home, draft = town.home(HUMAN_RESOURCES), town.folder / "draft.json"
    command("minshu-node", "approve", job, "--draft", draft, "--home", home)
    for department in town.departments:
        said[department.folder] = [
            command("minshu-node", *words, "--home", town.home(department))
            for words in (["budget"], ["status"], ["show", job], ["show", answered, "--json"])
        ]
    said["bureau"] = [
        command("minshu", *words, "--home", town.analyst)
        for words in (["show", job], ["show", answered, "--json"], ["usage"], ["list"])
    ]
    command("minshu", "cancel", job, "--home", town.analyst)
    heard = town.folder / "heard.json"
    heard.write_text(json.dumps(said, ensure_ascii=False))
    values = [person(n) for people in LISTS.values() for n in people]
    kept = [town.home(department) for department in town.departments]
    assert (kept[0] / "node.db").exists()
    written = [heard, draft, town.coordinator, town.analyst, town.logs, town.recorded, *kept]
    assert Scanner(values).scan(written) == []


# ---------------------------------------------------------------- rosters


def test_root_keys_and_a_nodes_key_change_and_everybody_follows(town: GovernedTown) -> None:
    home, former = town.home(STATISTICS), town.holders
    rotated = command_json("minshu-node", "key", "rotate", "--home", home)["fingerprint"]
    town.wait(lambda: key(home)["stored"], lambda: key(home))
    following = [f"{town.root(number)}.pub" for number in (4, 5, 6)]
    town.publish_roster(*(word for key in following for word in ("--next-root", key)), joining=(4, 5))
    town.until_roster(town.publish_roster())
    town.wait(lambda: key(home)["fingerprint"] == rotated, lambda: key(home))
    job = town.ask(question("rostered"))
    assert town.end(job)["state"] == "SUCCEEDED"
    # The journal goes on under the new key, and the old root keys sign nothing any more.
    assert ("job.admitted", 1, "") in town.kinds(STATISTICS, job)
    holders, town.holders = town.holders, former
    with pytest.raises(CommandFailed) as old:
        town.publish_roster()
    assert "0 valid signatures" in old.value.reason
    town.holders = holders


def key(home: Path) -> dict[str, Any]:
    shown: dict[str, Any] = {"stored": False} | command_json("minshu-node", "key", "show", "--home", home)
    return shown


def test_a_node_taken_off_the_roster_is_cut_off_at_once_and_may_come_back(town: GovernedTown) -> None:
    job = town.ask(question("revoked"))
    town.until_sending(HUMAN_RESOURCES, job, 1)
    log = town.home(EDUCATION) / "node.log"
    with town.frozen(POLICE):  # so the attempt cannot end by itself
        town.publish_roster("--without", EDUCATION.node)
        town.wait(lambda: {"not-accepted", "run-ended"} <= set(log.read_text().split()), log.read_text)
    view = town.end(job)
    assert (view["state"], view["code"]) == ("FAILED", "not-in-roster")
    assert view["sentence"].startswith(f"{EDUCATION.node}: ")
    with pytest.raises(CommandFailed) as unlisted:
        town.submit(question("revoked"))
    assert f"the job names {EDUCATION.node}, which the roster does not list" in unlisted.value.reason
    town.until_roster(town.publish_roster("--with", EDUCATION.node))
    again = town.ask(question("revoked"))
    assert town.end(again)["state"] == "SUCCEEDED"
