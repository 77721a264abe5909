"""Bad input, from a department's file to the analyst's screen: one clear sentence, nothing half-done."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import crosscheck_case
import pyarrow as pa
import pyarrow.parquet as pq
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
    rows,
    under,
)

from demo.collaboration import CommandFailed, Department, command, command_json
from demo.leaks import Scanner
from demo.run import two_source_job_text
from policies.keyfile import load_signer
from protocols.envelope import JOB, decode_envelope, sign
from protocols.errors import MinshuError
from protocols.ids import Digest
from protocols.psi import group
from protocols.psi.tagging import is_tagging
from protocols.wire import JobSpec, Roster

pytestmark = pytest.mark.alone

INSURED = LISTS[HUMAN_RESOURCES]
GOOD = rows(INSURED)
HEADER, *LINES = GOOD.splitlines()


def text(*lines: str) -> bytes:
    return "\n".join([HEADER, *lines, ""]).encode()


def parquet(ids: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    months = ["2026-01"] * len(ids)
    pq.write_table(pa.table({"resident_id": ids, "street": months, "last_seen_month": months}), sink)
    return bytes(sink.getvalue())


TEXT_IDS = parquet([person(n) for n in INSURED])
NUMBER_IDS = parquet([int(person(n)[:17]) for n in INSURED])
INVALID = text(*(f"A{n:06d},990101001,2026-01" for n in range(100)))
NOT_UTF8 = text(*LINES[:3], "@", *LINES[4:]).replace(b"@", f"{person(3)},东山街道,2026-01".encode("gb18030"))
EMPTY = text()
TWICE = text(*LINES, *LINES, *reversed(LINES))
NO_STREET = GOOD.replace("street", "road", 1).encode()


@dataclass(frozen=True)
class Case:
    """A file that goes bad after its registration, and how the job that meets it must end."""

    whose: Department
    bad: bytes
    state: str
    code: str
    names: Department
    kind: str
    ending: str = "csv"
    registered: bytes = GOOD.encode()


CASES: Mapping[str, Case] = {
    "column_gone": Case(
        HUMAN_RESOURCES, NO_STREET, "FAILED", "schema-drift", HUMAN_RESOURCES, "job.failed"
    ),
    "column_missing": Case(
        HUMAN_RESOURCES, NO_STREET, "REFUSED", "unknown-column", HUMAN_RESOURCES, "job.refused",
        registered=NO_STREET,
    ),
    "ids_as_numbers": Case(
        HUMAN_RESOURCES, NUMBER_IDS, "FAILED", "not-text", HUMAN_RESOURCES, "job.failed",
        ending="parquet", registered=TEXT_IDS,
    ),
    "ids_invalid": Case(
        HUMAN_RESOURCES, INVALID, "REFUSED", "quality-too-low", HUMAN_RESOURCES, "job.refused"
    ),
    "empty": Case(HUMAN_RESOURCES, EMPTY, "REFUSED", "quality-too-low", HUMAN_RESOURCES, "job.refused"),
    "not_utf8": Case(HUMAN_RESOURCES, NOT_UTF8, "FAILED", "not-utf8", HUMAN_RESOURCES, "job.failed"),
    "one_row_left": Case(POLICE, rows([5]).encode(), "FAILED", "guard-list-size", POLICE, "job.aborted",
                         registered=rows(LISTS[POLICE]).encode()),
    "one_row": Case(POLICE, rows([5]).encode(), "FAILED", "guard-coverage", STATISTICS, "job.aborted",
                    registered=rows([5]).encode()),
    "duplicates": Case(HUMAN_RESOURCES, TWICE, "SUCCEEDED", "", HUMAN_RESOURCES, "job.admitted",
                       registered=TWICE),
}  # fmt: skip
ROLE = {POLICE: "register", HUMAN_RESOURCES: "source-1", EDUCATION: "source-2", STATISTICS: "matcher"}


@pytest.fixture(scope="module")
def town(ground) -> Town:
    folder, children = ground
    town = Town(folder, children)
    town.open(*CASES)
    return town


@pytest.fixture(scope="module")
def ended(town) -> dict[str, dict[str, Any]]:
    """Every case's job, all under way at the same time; their views at the end."""
    for name, case in CASES.items():
        file = town.folder / f"{name}.{case.ending}"
        file.write_bytes(case.registered)
        town.add_dataset(case.whose, under(case.whose, name), file)
        file.write_bytes(case.bad)
    jobs = {
        # What the policy refuses nobody is asked to approve; data is looked at once people have.
        name: (town.submit if case.code == "unknown-column" else town.ask)(question(name))
        for name, case in CASES.items()
    }
    return {name: town.end(job) for name, job in jobs.items()}


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail, and return what it says: one sentence, one hint."""
    with pytest.raises(CommandFailed) as failed:
        command(*arguments)
    assert failed.value.code == 1
    assert failed.value.output == ""
    sentence, hint = failed.value.error.splitlines()
    assert sentence.startswith(f"{arguments[0]}: error: ")
    assert hint.startswith("hint: ")
    return failed.value.reason


# ---------------------------------------------------------------- a file that no node takes in


@pytest.mark.parametrize(
    ("file", "data", "options", "says"),
    [
        ("list.csv", EMPTY, (), "the table has no rows"),
        ("list.csv", INVALID, (), "no column of text holds identifiers in most of its rows"),
        ("list.csv", INVALID, ("--key", "resident_id"), "none of the 100 rows has a usable identifier"),
        ("list.csv", NOT_UTF8, ("--encoding", "utf-8"), "the file is not UTF-8 text, line 5"),
        (
            "list.csv",
            GOOD.encode(),
            ("--key", "resident"),
            "the dataset has no column resident, closest: resident_id",
        ),
        (
            "list.parquet",
            NUMBER_IDS,
            ("--key", "resident_id"),
            "column is of type int64, expected string or binary",
        ),
        ("list.parquet", GOOD.encode(), (), "the dataset's file is not what its ending says"),
        ("list.xlsx", GOOD.encode(), (), "the dataset's file is not what its ending says"),
        ("list.ods", GOOD.encode(), (), "the file's ending names no format this node reads"),
        ("gone/list.csv", None, (), "the dataset's file cannot be read (No such file or directory)"),
    ],
    ids=[
        "empty",
        "invalid-ids",
        "invalid-ids-named",
        "not-utf8",
        "unknown-column",
        "ids-as-numbers",
        "not-parquet",
        "not-a-workbook",
        "unknown-format",
        "no-file",
    ],
)
def test_a_bad_file_is_refused_when_it_is_registered(town, tmp_path, file, data, options, says):  # noqa: PLR0917  # pytest's own
    path = tmp_path / file
    if data is not None:
        path.write_bytes(data)
    home = town.home(HUMAN_RESOURCES)
    before = command_json("minshu-node", "dataset", "list", "--home", home)
    assert refused("minshu-node", "dataset", "add", "list", path, *options, "--home", home).startswith(says)
    assert command_json("minshu-node", "dataset", "list", "--home", home) == before


# ---------------------------------------------------------------- a file that went bad later


@pytest.mark.parametrize("name", CASES)
def test_a_job_on_bad_data_ends_by_name_and_stands_in_the_deciding_nodes_journal(town, ended, name):
    case, view = CASES[name], ended[name]
    assert (view["state"], view["code"]) == (case.state, case.code)
    if case.state != "SUCCEEDED":
        assert case.names.node in view["sentence"] or ROLE[case.names] in view["sentence"]
        assert view["hint"]
    assert (case.kind, 1, case.code) in town.kinds(case.names, view["job"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.state != "SUCCEEDED"])
def test_a_job_on_bad_data_leaves_no_output_and_spends_no_second_attempt(town, ended, name):
    job = ended[name]["job"]
    assert ended[name]["attempt"] == 1
    assert ended[name]["releases"] == []
    for department in town.departments:
        assert not any(kind.startswith("output.") for kind, _, _ in town.kinds(department, job))
    # Before the matcher's guard nothing derived from data has left: no node has admitted the job.
    if CASES[name].code != "guard-coverage":
        assert not any(town.frames(department, job, 1) for department in town.departments)
        assert "job.admitted" not in {k for d in town.departments for k, _, _ in town.kinds(d, job)}


def test_duplicates_count_once(town, ended):
    assert sorted(town.people(ended["duplicates"]["job"])) == sorted(f"RIC:{person(n)}" for n in FLAGGED)


def test_no_message_quotes_a_value_of_the_bad_files(town, ended):
    values = [person(n) for people in LISTS.values() for n in people]
    said = town.folder / "said.txt"
    said.write_text("\n".join(str(view) for view in ended.values()))
    logs = [town.home(d) / "node.log" for d in town.departments]
    assert Scanner(values).scan([said, town.logs, *logs]) == []
    for log in [said, *logs]:
        assert not re.search(r"A0000\d\d|东山", log.read_text("utf-8"))


# ---------------------------------------------------------------- jobs


def test_a_column_that_no_policy_lists_is_refused_by_every_node_it_concerns(town):
    view = town.end(town.submit(two_source_job_text().replace('key = "resident_id"', 'key = "resident_no"')))
    assert (view["state"], view["code"]) == ("REFUSED", "unknown-column")
    assert "resident_no" in view["sentence"]
    # The first to refuse ends the job; the others say so a moment later.
    said, waiting = ("job.refused", 1, "unknown-column"), [POLICE, HUMAN_RESOURCES, EDUCATION]
    town.wait(
        lambda: all(said in town.kinds(department, view["job"]) for department in waiting),
        lambda: f"not refused by all of {', '.join(each.name for each in waiting)}",
    )


def test_a_job_of_ten_megabytes_is_refused_at_every_door(town):
    big = town.folder / "big.toml"
    big.write_text(two_source_job_text() + "# " + "x" * 10_000_000)
    before = command_json("minshu", "list", "--home", town.analyst)
    assert "is longer than the 262144 bytes accepted" in refused(
        "minshu", "submit", big, "--home", town.analyst
    )
    for size in (600_000, 10_000_000):
        with pytest.raises(
            MinshuError, match=r"at most 524288 accepted|longer than the coordinator accepts"
        ) as error:
            town.submit_raw(b"x" * size)
        assert error.value.code == "too-long"
        assert error.value.hint
    assert command_json("minshu", "list", "--home", town.analyst) == before


# ---------------------------------------------------------------- rosters


def next_roster(town: Town, change: Callable[[Roster], Roster] = lambda r: r) -> Path:
    """Draft the next roster and return its file."""
    path = town.folder / "next.json"
    command("minshu-coordinator", "roster", "draft", "--home", town.coordinator, "--out", path)
    path.write_bytes(change(Roster.decode(path.read_bytes())).encode())
    return path


def signed(town: Town, draft: Path, *keys: Path) -> Path:
    out = draft.with_suffix(".dsse")
    for n, key in enumerate(keys):
        command("minshu-coordinator", "roster", "sign", out if n else draft, "--key", key, "--out", out)
    return out


def test_a_wrong_roster_is_refused_and_the_one_in_force_stays(town):
    roots = [town.folder / "roots" / f"root-{n}.pem" for n in (1, 2, 3)]
    strangers = [town.folder / f"stranger-{n}.pem" for n in (1, 2)]
    for key in strangers:
        command("minshu-policy", "key", "new", "--role", "root", key)
    in_force = command_json("minshu-coordinator", "roster", "show", "--home", town.coordinator)

    def publish(file: Path) -> str:
        return refused("minshu-coordinator", "roster", "publish", file, "--home", town.coordinator)

    draft = next_roster(town)
    assert "0 valid signatures" in publish(signed(town, draft, *strangers))
    assert "1 valid signatures" in publish(signed(town, draft, roots[0], strangers[0]))
    signed(town, draft, roots[0])
    again = draft.with_suffix(".dsse")
    assert "signed the roster already" in refused(
        "minshu-coordinator", "roster", "sign", again, "--key", roots[0], "--out", again
    )
    other = next_roster(town, lambda r: replace(r, collaboration="other.example"))
    assert "other.example" in publish(signed(town, other, *roots[:2]))
    same = next_roster(
        town, lambda r: replace(r, version=1, previous=None, expires=r.expires - timedelta(days=1))
    )
    assert "version 1" in publish(signed(town, same, *roots[:2]))
    torn = next_roster(town, lambda r: replace(r, previous=Digest("sha256:" + "0" * 64)))
    assert "roster version 2 does not continue the chain of rosters seen here" in publish(
        signed(town, torn, *roots[:2])
    )
    assert command_json("minshu-coordinator", "roster", "show", "--home", town.coordinator) == in_force


def test_a_job_under_another_roster_is_refused_before_any_node_hears_of_it(town):
    template = decode_envelope(town.kept_job(town.submit(two_source_job_text()))).payload
    spec = replace(JobSpec.decode(template), roster_digest=Digest("sha256:" + "1" * 64), nonce="ab" * 16)
    signer = load_signer(town.analyst / "keys" / "analyst.pem")
    with pytest.raises(MinshuError) as error:
        town.submit_raw(sign(JOB, spec.encode(), [signer]).encode())
    assert error.value.code == "roster-outdated"
    assert error.value.hint
    town.wait(lambda: bool(town.kinds(None, spec.job_id)), lambda: "the coordinator journals no refusal")
    assert town.kinds(None, spec.job_id) == [("job.refused", 0, "roster-outdated")]
    assert not any(town.entries(department, spec.job_id) for department in town.departments)


def test_a_node_does_not_enrol_under_roots_it_was_not_told(town, tmp_path):
    home = tmp_path / "node"
    command("minshu-node", "init", "--home", home, "--name", "tax.gz.example/node-a")
    token = command(
        "minshu-coordinator", "token", "tax.gz.example/node-a", "--home", town.coordinator
    ).strip()
    refused("minshu-node", "enrol", token, "--roots", "sha256:" + "0" * 64, "--home", home)
    with pytest.raises(CommandFailed) as doctor:
        command("minshu-node", "doctor", "--home", home)
    assert re.search(r"(?m)^error +enrolment: not enrolled\n +hint: ask for a token", doctor.value.output)


# ---------------------------------------------------------------- the doctor


def test_the_doctor_finds_a_healthy_node_healthy(town):
    found = command_json("minshu-node", "doctor", "--home", town.home(EDUCATION))["findings"]
    # How full this machine's disk is says nothing about the node.
    assert {finding["state"] for finding in found if finding["what"] != "disk"} == {"ok"}
    looked_at = {finding["what"] for finding in found}
    assert looked_at >= {
        "keys",
        "temporary directory",
        "disk",
        "certificate",
        "network",
        "roster",
        "clock",
        "policy",
    }


def test_the_doctor_finds_what_went_bad(town, ended, tmp_path):
    with pytest.raises(CommandFailed) as doctor:
        command("minshu-node", "doctor", "--home", town.home(HUMAN_RESOURCES))
    said = doctor.value.output
    assert re.search(r"(?m)^error +dataset insured_column_gone: column street is gone", said)
    assert re.search(r"(?m)^ok +dataset insured: ", said)
    copy = tmp_path / "copy"
    shutil.copytree(town.home(EDUCATION), copy)
    (copy / "tls" / "leaf.pem").unlink()
    with pytest.raises(CommandFailed) as doctor:
        command("minshu-node", "doctor", "--home", copy)
    assert re.search(r"(?m)^error +certificate: tls/leaf.pem is missing", doctor.value.output)


# ---------------------------------------------------------------- what the leak scan searches


def test_recorded_bodies_hold_every_stream_of_a_run_whole(town, ended):
    job = ended["duplicates"]["job"]
    recorded = {}
    for department in town.departments:
        for file in town.frames(department, job, 1):
            sender, to, number = re.fullmatch(
                r"frame-\w+-1-(.+)-to-(.+)-round-(\d+)\.bin", file.name
            ).groups()
            assert sender == ROLE[department]
            recorded[sender, to, int(number)] = file.read_bytes()
    lists = [dict.fromkeys(people, ("990101001", "2026-01")) for people in LISTS.values()]
    in_memory = crosscheck_case.case(lists, k=2)
    in_memory.run()
    streams: dict[tuple[str, str, int], int] = {}
    for sent in in_memory.sent:
        stream = (sent.sender, sent.to, sent.round)
        streams[stream] = streams.get(stream, 0) + len(sent.body)
    assert recorded.keys() == streams.keys()
    tagged = {stream: body for stream, body in recorded.items() if is_tagging(stream[2])}
    assert len(tagged) > 3
    for stream, body in tagged.items():
        assert len(body) == streams[stream]
        assert len(group.points(body)) in {len(people) for people in LISTS.values()}
    values = [person(n) for people in LISTS.values() for n in people]
    assert Scanner(values).scan([town.recorded]) == []
