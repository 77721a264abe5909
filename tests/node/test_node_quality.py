"""The preflight: a job over a dataset that is not good enough is refused with the figure and the rule."""

import asyncio
import os
import tracemalloc
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from auditing import audited, findings
from simulator import START, World, approve_all, person, running, until

from audit.canaries import forms
from audit.quality import MET
from node.datasets import open_dataset
from node.description import ColumnDescription, Description
from node.mapping import ColumnMapping
from node.quality import Look, Preflight, Quality, look, measure
from node.rpc import Attempt
from node.sources import DEFAULT_ACCESS, Access, FilePlace
from node.state import Dataset, RunState, read_state
from protocols.codes import GBT2260_PROVINCES
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError, InputError
from protocols.identifiers import resident_id
from protocols.ids import DatasetName, JobId
from protocols.wire import parse_utc

pytestmark = pytest.mark.alone  # whole nodes, 9 s together

NOW = START


def age(world: World, name: str, days: float) -> None:
    """Let a department's list have been written so many days ago."""
    written = (world.clock() - timedelta(days=days)).timestamp()
    os.utime(world.folder / f"{name}.csv", (written, written))


def dirtied(world: World, name: str, *, missing: int = 0, wrong: int = 0, again: int = 0) -> None:
    """Spoil rows of a department's list: without key, with a wrong check digit, repeated."""
    path = world.folder / f"{name}.csv"
    head, *rows = path.read_text("utf-8").splitlines()
    for number in range(missing):
        rows[number] = "," + rows[number].partition(",")[2]
    for number in range(missing, missing + wrong):
        key, _, rest = rows[number].partition(",")
        rows[number] = f"{key[:-1]}{'0' if key[-1] != '0' else '1'},{rest}"
    rows += rows[-again:] if again else []
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")


def stored(world: World, name: str) -> Preflight | None:
    with read_state(world.homes[name].database) as reader:
        found = reader.preflight("people")
    return None if found is None else Preflight(found[0], Quality.decode(found[1]))


async def asked(world: World, post: Any, stations: Any) -> tuple[JobId, Any]:
    """Ask the standard question until it ends, or health refuses it."""
    job = post.submit(world.spec())
    task = post.tasks[job]
    await until(lambda: len(task.verdicts) == 4)
    if task.verdicts["health"].answer != "refuse":
        await approve_all(post, stations, job)
        await until(lambda: task.verdicts["health"].answer == "refuse" or len(task.ended) == 4)
    return job, task


def outcome(world: World, **changes: Any) -> Any:
    """Return what health answered in the end, and leave its node stopped."""
    world.activate("health", **changes)
    found: dict[str, Any] = {}

    async def play() -> None:
        async with running(world) as (post, stations):
            job, task = await asked(world, post, stations)
            health = stations["health"]
            found.update(
                job=job,
                verdict=task.verdicts["health"],
                ended={name: end.state for name, end in task.ended.items()},
                run=health.run(job),
                kinds=[entry.kind for entry in health.entries() if entry.job == job],
                refused=[entry for entry in health.entries("job.refused") if entry.job == job],
                rows=list(health.state.ledger().of_job(job)),
                record=health.state.input_record(Attempt(job, 1)),
            )

    asyncio.run(play())
    return found


# -- jobs ----------------------------------------------------------------------------------------------------


def test_a_job_over_data_that_is_too_old_is_refused_with_the_figure_and_the_rule(world: World) -> None:
    age(world, "health", 9.2)
    found = outcome(world, quality="max_age_days = 7")
    verdict = found["verdict"]
    assert (verdict.answer, verdict.code, verdict.rule) == ("refuse", "quality-too-low", "R1")
    assert "it was written 10 days ago (asked: written at most 7 days ago)" in verdict.sentence
    assert "距今 10 天" in verdict.sentence_zh
    assert verdict.hint == "have the department mend its data, or sign a rule that accepts age"
    # Nothing was charged, nothing of the data left, and what happened is journaled.
    assert found["run"] is RunState.REFUSED
    assert (found["rows"], found["record"]) == ([], None)
    assert [entry.body["code"] for entry in found["refused"]] == ["quality-too-low"]
    assert found["refused"][0].policy.rule == "R1"
    assert not {"job.accepted", "job.admitted"} & set(found["kinds"])


def test_what_one_look_found_refuses_the_next_job_at_once_and_a_mended_table_is_looked_at_again(
    world: World,
) -> None:
    dirtied(world, "health", missing=1)
    whole = (world.folder / "health.csv").read_text("utf-8")
    world.activate("health", quality='min_completeness = "0.99"')

    async def play() -> None:
        async with running(world) as (post, stations):
            _, task = await asked(world, post, stations)
            # 81 of 82 rows, rounded down.
            assert (
                "id is there in 98.7 % of the rows (asked: at least 99 %" in task.verdicts["health"].sentence
            )
            again = post.submit(world.spec())
            second = post.tasks[again]
            await until(lambda: "health" in second.verdicts)
            assert second.verdicts["health"].code == "quality-too-low"
            assert not second.admit_asked  # nobody was asked to approve it, and nothing was read for it
            path = world.folder / "health.csv"
            path.write_text(whole.replace("\n,", f"\n{person(9000)},"), encoding="utf-8")
            _, third = await asked(world, post, stations)
            assert {end.state for end in third.ended.values()} == {"DONE"}

    asyncio.run(play())
    assert stored(world, "health").quality.shares(82).completeness["id"] == 1000


def test_a_rule_that_accepts_it_lets_the_job_run_and_its_admission_cites_the_shares(world: World) -> None:
    age(world, "health", 30)
    dirtied(world, "health", again=2)
    found = outcome(
        world, quality='max_age_days = 7\nmax_repeated = "0.05"\nmin_valid_keys = "1"', accepts=["age"]
    )
    assert set(found["ended"].values()) == {"DONE"}
    _, record = found["record"]
    cited = decode_json(record)
    assert cited["schema"] == "minshu-quality/2"
    shares = cited["preflight"]["shares"]
    # 2 of 84, rounded up; 82 keys as the catalogue says.
    assert (shares["repeated"], shares["valid_keys"], shares["drift"]) == (24, 1000, 0)
    looked = stored(world, "health")
    assert cited["preflight"]["record_sha256"] == looked.quality.digest
    [admitted] = [e for e in world.open("health").journal.entries() if e.kind == "job.admitted"]
    assert admitted.body["quality_sha256"] == sha256_digest(record)


@pytest.mark.long
def test_without_thresholds_nothing_is_looked_at(world: World) -> None:
    dirtied(world, "health", missing=1)
    found = outcome(world)
    assert set(found["ended"].values()) == {"DONE"}
    assert stored(world, "health") is None
    assert "preflight" not in decode_json(found["record"][1])


def test_a_threshold_that_is_signed_meanwhile_is_not_got_round(world: World) -> None:
    """Between reading and accepting, the policy begins to ask for what nobody looked at."""
    world.activate("health", accepts=[])

    async def play() -> None:
        async with running(world) as (post, stations):
            health = stations["health"]
            prepare = health.agent.runner._prepare

            async def slowly(*given: Any) -> Any:
                found = await prepare(*given)
                active = health.agent.force.policy
                dataset = active.policy.datasets["people"]
                asks = world.policy_of("health", quality="max_age_days = 1")
                from policies.parse import parse_policy

                changed = parse_policy(asks.encode()).policy.datasets["people"]
                assert changed != dataset
                active.policy.datasets["people"] = changed
                return found

            health.agent.runner._prepare = slowly
            _, task = await asked(world, post, stations)
            assert task.ended["health"].code == "admission-outdated"

    asyncio.run(play())


# -- the auditor ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def admitted(founded: World, memory: Path) -> World:
    world = founded.clone(memory / "quality")
    assert set(outcome(world, quality='max_age_days = 7\nmax_drift = "0.02"')["ended"].values()) == {"DONE"}
    return world


def test_the_auditor_finds_that_thresholds_held(admitted: World) -> None:
    checks = audited(admitted, "health")
    assert findings(checks) == set()
    assert checks["inputs"].figures[MET] == 1


def test_the_auditor_finds_a_node_that_admitted_what_its_policy_refuses(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(world, "health", 9)
    monkeypatch.setattr("node.quality.Demand.refusal", lambda *_: None)
    assert set(outcome(world, quality="max_age_days = 7")["ended"].values()) == {"DONE"}
    assert findings(audited(world, "health")) == {("inputs", "quality-too-low")}


@pytest.mark.long
def test_the_auditor_finds_a_record_that_leaves_the_figures_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.admission.cited", lambda *_, **__: {})
    assert set(outcome(world, quality="max_age_days = 7")["ended"].values()) == {"DONE"}
    assert findings(audited(world, "health")) == {("inputs", "no-quality")}


# -- the look itself -----------------------------------------------------------------------------------------


def registered(folder: Path, table: pa.Table, *, key: str = "id", **changes: Any) -> Dataset:
    """Return the catalogue entry of a Parquet file that was written at NOW."""
    path = folder / "table.parquet"
    pq.write_table(table, path)
    os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    entry = Dataset(
        DatasetName("people"),
        "people",
        FilePlace(path),
        key,
        (),
        table.num_rows,
        1,
        1,
        "2026-11-22T08:00:00Z",
    )
    entry = replace(entry, **changes)
    with open_dataset(entry, Access()) as source:
        return replace(entry, columns=source.columns())


def looked(entry: Dataset, access: Access = DEFAULT_ACCESS, **named: Any) -> Quality:
    with open_dataset(entry, access) as source:
        return measure(
            source,
            entry,
            access,
            now=NOW + timedelta(days=2, hours=1),
            rand=os.urandom,
            go_on=named.pop("go_on", lambda: None),
            **named,
        )


def test_what_is_missing_wrong_and_there_twice_is_counted_apart(folder: Path) -> None:
    ids = [person(1), person(1), person(2).lower(), person(3)[:-1], None, "  ", "无", "ＮＵＬＬ", person(4)]
    wrong = person(5)
    ids.append(f"{wrong[:-1]}{'0' if wrong[-1] != '0' else '1'}")
    table = pa.table(
        {
            "id": ids,
            "sex": ["1", "男", "2", "7", "9", None, "-", "1", "女", "2"],
            "born": pa.array([date(1980, 1, 1)] * 7 + [date(1899, 12, 31), date(2026, 11, 23), None]),
            "seen": ["2026-01-02", "20270101", "31/12/2020", "", "-", *["2025-05-05"] * 5],
            "note": [f"n{number % 3}" for number in range(10)],
        }
    )
    said = Description(mapping={"sex": ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "女": "2"})})
    found = looked(registered(folder, table, description=said, published_keys=4), days=["seen"])
    columns, key = found.counts.columns, found.counts.key
    assert (key.missing, key.valid, key.distinct, key.repeated) == (4, 4, 3, 1)
    assert dict(key.rejected) == {"bad-length": 1, "bad-check-digit": 1}
    assert [getattr(columns["id"], name) for name in ("null", "blank", "placeholder")] == [1, 1, 2]
    assert (columns["sex"].null, columns["sex"].unmapped, columns["sex"].missing) == (1, 2, 3)
    assert columns["sex"].outside == 0  # what the mapping does not know is null by then
    assert (columns["born"].future, columns["born"].early, columns["born"].null) == (1, 1, 1)
    seen = columns["seen"]
    assert (seen.future, seen.malformed, seen.blank, seen.placeholder) == (1, 1, 1, 1)
    assert columns["note"].distinct == 3
    assert (found.shares(4).drift, found.shares(4).valid_keys) == (250, 666)
    assert found.age_days(NOW + timedelta(days=2, hours=1)) == 3
    assert Quality.decode(found.record()) == found


def test_what_a_mapping_keeps_as_it_is_counts_among_what_its_table_does_not_have(folder: Path) -> None:
    table = pa.table({"id": [person(n) for n in range(4)], "sex": ["男", "1", "待定人员", "x9"]})
    values = {"男": "1"}
    said = Description(mapping={"sex": ColumnMapping(table="gbt2261.1@2003", values=values, default="keep")})
    found = looked(registered(folder, table, description=said))
    sex = found.counts.columns["sex"]
    assert (sex.outside, sex.unmapped, sex.null, sex.missing) == (2, 0, 0, 0)
    assert dict(found.tables) == {"sex": "gbt2261.1@2003"}


def test_a_column_with_a_code_table_is_held_against_it(folder: Path) -> None:
    table = pa.table({"id": [person(n) for n in range(4)], "area": ["990101", "110000", "11", "999999"]})
    said = Description(columns={"area": ColumnDescription(code_table=GBT2260_PROVINCES.id)})
    found = looked(registered(folder, table, description=said))
    assert dict(found.tables) == {"area": GBT2260_PROVINCES.id}
    assert found.counts.columns["area"].outside == 2


def test_the_day_of_a_table_is_that_of_china(folder: Path) -> None:
    born = resident_id("990101", date(2026, 11, 22), 1)
    entry = registered(folder, pa.table({"id": [born, born], "seen": [20261122, 20261123]}))
    for moment, valid, future in (("2026-11-21T15:59:59Z", 0, 2), ("2026-11-21T23:30:00Z", 2, 1)):
        os.utime(folder / "table.parquet", (parse_utc(moment).timestamp(),) * 2)
        counts = looked(entry, days=["seen"]).counts
        assert (counts.key.valid, counts.columns["seen"].future) == (valid, future)


def test_a_look_can_be_broken_off(folder: Path) -> None:
    class Over(Exception):
        pass

    def over_now() -> None:
        raise Over

    entry = registered(folder, pa.table({"id": [person(1)]}))
    with pytest.raises(Over):
        looked(entry, go_on=over_now)


def test_a_table_whose_key_is_gone_is_not_looked_at(folder: Path) -> None:
    entry = registered(folder, pa.table({"id": [person(1)]}))
    with pytest.raises(InputError) as caught:
        looked(replace(entry, key="gone"))
    assert caught.value.code == "unknown-column"


def test_memory_is_the_distinct_keys_not_the_rows(folder: Path) -> None:
    """Four times the rows over the same keys and values take no more memory."""

    people = [person(number) for number in range(2000)]

    def peak(rows: int) -> int:
        keys = pa.array([people[number % 2000] for number in range(rows)])
        note = pa.array([f"{number % 10_000:0100d}" for number in range(rows)])
        entry = registered(folder, pa.table({"id": keys, "note": note}))
        access = Access(limits=replace(Access().limits, batch_rows=2048))
        tracemalloc.start()
        found = looked(entry, access)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.counts.key.distinct == 2000
        return used

    assert peak(40_000) < 1.5 * peak(10_000)


def test_neither_record_nor_database_nor_log_holds_a_value_of_a_row(world: World) -> None:
    dirtied(world, "health", missing=2, wrong=3, again=2)
    planted = [row.split(",")[0] for row in (world.folder / "health.csv").read_text("utf-8").splitlines()[1:]]
    found = outcome(world, quality='min_valid_keys = "0.99"')
    assert found["verdict"].code == "quality-too-low"
    assert "of the identifiers are valid" in found["verdict"].sentence
    home = world.homes["health"]
    for file in home.path.rglob("*"):
        data = file.read_bytes() if file.is_file() else b""
        assert not any(spelt in data for key in planted if key for spelt in forms(key)), file.name
    assert b"1390000" not in stored(world, "health").quality.record()


def test_a_look_is_of_one_state_of_a_table(folder: Path) -> None:
    entry = registered(folder, pa.table({"id": [person(1)]}))
    with open_dataset(entry, Access()) as source:
        before = Preflight("sha256:of-another-state", looked(entry))
        known = Look(None, before, NOW)
        assert known.at(source, entry, Access(), rand=os.urandom, go_on=lambda: None) is None
        same = Preflight(source.fingerprint(), before.quality)
        known = Look(None, same, NOW)
        assert known.at(source, entry, Access(), rand=os.urandom, go_on=lambda: None) is same
        by_other_rules = replace(same, quality=replace(same.quality, rule_version="identifiers/0"))
        known = Look(None, by_other_rules, NOW)
        assert known.at(source, entry, Access(), rand=os.urandom, go_on=lambda: None) is None


def test_a_file_that_is_replaced_under_a_look_is_not_taken_for_what_was_looked_at(folder: Path) -> None:
    entry = registered(folder, pa.table({"id": [person(1)]}))
    given: dict[str, Any] = {"now": NOW, "rand": os.urandom, "go_on": lambda: None}

    def replaced(_rows: int) -> None:
        pq.write_table(pa.table({"id": [person(2), person(3)]}), folder / "other.parquet")
        (folder / "other.parquet").rename(folder / "table.parquet")

    with open_dataset(entry, Access()) as source:
        mark = source.fingerprint()
        assert look(source, entry, Access(), **given).fingerprint == mark
        with pytest.raises(InputError) as caught:
            look(source, entry, Access(), tell=replaced, **given)
    assert caught.value.code == "changed-while-reading"


@pytest.mark.parametrize("written", [True, False])
def test_a_record_says_where_nothing_tells_when_a_table_was_written(folder: Path, *, written: bool) -> None:
    found = replace(looked(registered(folder, pa.table({"id": [person(1)]}))), written=written)
    assert Quality.decode(found.record()) == found
    assert (found.age_days(NOW) is None) != written
    assert (b'"written":false' in found.record()) != written


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "minshu-preflight/9"},
        {"types": ["id"]},
        {"counts": {"rows": "1"}},
        {"more": 1},
        {"snapshot": "now"},
    ],
)
def test_a_record_of_another_form_is_refused(folder: Path, change: dict[str, Any]) -> None:
    from protocols.encoding import canonical_json

    record = decode_json(looked(registered(folder, pa.table({"id": [person(1)]}))).record())
    with pytest.raises(DecodeError):
        Quality.decode(canonical_json({**record, **change}))


# -- what others see -----------------------------------------------------------------------------------------


def test_the_catalogue_publishes_the_shares_and_no_count(world: World) -> None:
    dirtied(world, "health", missing=1)
    outcome(world, quality='min_completeness = "0.5"')
    hello: dict[str, Any] = {}

    async def play() -> None:
        async with running(world, None, ["health"]) as (post, _):
            await until(lambda: bool(post.hellos))
            hello.update(decode_json(decode_envelope(post.hellos[0].catalogue).payload))

    asyncio.run(play())
    [said] = hello["datasets"]
    assert said["quality"] == {
        "snapshot": said["quality"]["snapshot"],
        "completeness": {"id": "98.7 %", "phone": "100.0 %", "seen": "100.0 %", "street": "100.0 %"},
        "valid_keys": "100.0 %",
        "repeated": "0.0 %",
        "drift": "1.3 %",
    }
