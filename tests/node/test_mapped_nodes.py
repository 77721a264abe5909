"""How values become codes is journaled, approved and guarded: who changes it begins anew."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from auditing import audited, findings
from simulator import START, World, answered, over, person, running
from table_world import TableWorld

from node import catalogue
from node.activation import InForce, activate_roster
from node.description import Description
from node.desk import dataset_to_json, desk_of, register
from node.gate import judge
from node.logs import Log
from node.mapping import ColumnMapping, pinned
from node.rpc import Attempt
from node.sources import Access, FilePlace
from node.state import Dataset
from protocols.codes.record import decode_record
from protocols.encoding import decode_json, sha256_digest
from protocols.errors import InputError, StateConflict

SEX = {"sex": ColumnMapping(table="gbt2261.1@2003", values={"男": "1", "女": "2"})}
SWAPPED = {"sex": ColumnMapping(table="gbt2261.1@2003", values={"男": "2", "女": "1"})}


class CodedTables(TableWorld):
    """Three departments whose cases say sex in words."""

    def policy_of(self, name: str, **changes: Any) -> str:
        text = super().policy_of(name, **changes)
        before, cases, after = text.partition("[datasets.cases]")
        after = after.replace("street", "sex").replace('["S0", "S1", "S2"]', '["1", "2"]')
        before = before.replace('columns = ["street", "age"', 'columns = ["sex", "age"')
        return before + cases + after

    def _furnish(self, name: str) -> None:
        super()._furnish(name)
        if name not in ("police", "health", "human-resources"):
            return
        path = self.folder / f"{name}-coded.csv"
        rows = [f"{person(400 + n)},{'男' if n % 3 else '女'},{n},10.50,2026-05-01" for n in range(60)]
        path.write_text("id,sex,age,paid,day\n" + "\n".join(rows) + "\n", encoding="utf-8")
        state = self.open(name)
        register(state, scanned(path, "cases", Description(mapping=SEX)))
        state.close()


def scanned(path: Path, name: str, description: Description, **more: Any) -> Dataset:
    return catalogue.scan(
        name,
        FilePlace(path),
        title="",
        key=more.pop("key", "id"),
        published_keys=None,
        access=Access(),
        today=START.date(),
        description=description,
        **more,
    )


def by_sex(world: CodedTables, value: str) -> Any:
    params = {
        "axes": [{"slot": "age", "bins": ["0", "18", "60"]}],
        "filters": [{"slot": "sex", "values": [value]}],
        "measures": None,
        "key_holder": None,
    }
    return world.table(["health"], params=params, columns={"sex": "sex", "age": "age"})


def test_a_filter_excludes_nothing_that_was_answered_under_another_mapping(memory: Path) -> None:
    world = CodedTables(memory / "mapped")

    async def play() -> None:
        async with running(world) as (post, stations):
            health = stations["health"]
            job = post.submit(by_sex(world, "1"))
            task = await over(post, job)
            assert {end.state for end in task.ended.values()} == {"DONE"}, task.ended

            # Codes of one mapping that exclude each other exclude each other's rows.
            other = await answered(post, post.submit(by_sex(world, "2")))
            assert {verdict.answer for verdict in other.verdicts.values()} == {"permit"}, other.verdicts

            state = health.state
            known = state.dataset("cases")
            assert known is not None
            changed = Description(mapping=pinned(SWAPPED, None))
            assert register(state, replace(known, description=changed))
            # The same words, and other rows: what stands beside would tell the difference.
            refused = await answered(post, post.submit(by_sex(world, "2")))
            assert {verdict.code for verdict in refused.verdicts.values()} == {"differencing"}
            entries = health.entries()
            first, second = [
                e for e in entries if e.kind == "dataset.registered" and e.body["dataset"] == "cases"
            ][-2:]
            assert first.body["mapping_sha256"] != second.body["mapping_sha256"]
            for entry in entries:
                if entry.kind in ("job.accepted", "job.admitted"):
                    assert entry.body["mapping_sha256"] == first.body["mapping_sha256"]
            [digest] = first.refs
            record = decode_record(state.journal.get_object(digest))
            assert record == known.description.mapped
            admitted = next(e for e in entries if e.kind == "job.admitted")
            quality = decode_json(state.journal.get_object(admitted.body["quality_sha256"]))
            assert quality["mapping"] == admitted.body["mapping_sha256"] == digest

    asyncio.run(play())
    assert findings(audited(world, "health")) == set()


def test_an_auditor_finds_values_that_became_codes_otherwise_than_registered(memory: Path) -> None:
    world = CodedTables(memory / "lied")
    kept: list[Any] = []

    async def play() -> None:
        async with running(world) as (post, stations):
            job = post.submit(by_sex(world, "1"))
            await over(post, job)
            kept.extend(stations["health"].entries())

    asyncio.run(play())
    registered = next(n for n, e in enumerate(kept) if "mapping_sha256" in e.body)
    state = world.open("health")
    record = Description(mapping=pinned(SWAPPED, None)).mapping_record
    state.journal.put_object(record)
    state.close()
    body = {**kept[registered].body, "mapping_sha256": sha256_digest(record)}
    lied = [*kept]
    lied[registered] = replace(kept[registered], body=body, refs=(sha256_digest(record),))
    assert ("inputs", "other-mapping") in findings(audited(world, "health", lied))
    assert findings(audited(world, "health", kept)) == set()


# -- what may be mapped, and what is kept --------------------------------------------------------------------


def test_the_column_of_identifiers_is_never_mapped(world: World) -> None:
    mapped = Description(mapping={"id": ColumnMapping(table="gbt2261.1@2003")})
    state = world.open("health")
    [people] = state.datasets()
    for key in ("id", ""):
        with pytest.raises(InputError) as caught:
            scanned(people.place.path, "people", mapped, key=key)
        assert caught.value.code in ("key-mapped", "no-key-column")
    size = state.journal.size
    whole = Description(mapping=pinned(mapped.mapping, None))
    with pytest.raises(InputError) as caught:
        register(state, replace(people, description=whole))
    assert (caught.value.code, state.journal.size) == ("key-mapped", size)
    state.close()


def test_a_job_that_counts_persons_by_a_mapped_column_is_refused(memory: Path) -> None:
    world = CodedTables(memory / "unit")
    state = world.open("health")
    home = world.homes["health"]
    force = InForce.load(state, home.name, home.signer.public_key)
    enrolled = home.enrolled()
    assert enrolled is not None
    activate_roster(state, force, world.roster_envelope, enrolled, world.clock)
    spec = by_sex(world, "1")
    attempt = Attempt(spec.job_id, 1)
    assert judge(state, force, spec, attempt, world.clock()).code == "permitted"
    cases = state.dataset("cases")
    assert cases is not None
    mapped = Description(mapping=pinned({"id": ColumnMapping(table="gbt2261.1@2003")}, None))
    with state.change() as change:
        change.put_dataset(replace(cases, key="", description=mapped))
    assert judge(state, force, spec, attempt, world.clock()).code == "unit-mapped"
    state.close()


def test_a_mapping_is_registered_with_the_digests_of_its_tables(world: World) -> None:
    state = world.open("health")
    [people] = state.datasets()
    street = {"street": ColumnMapping(table="gbt2261.1@2003", values={"S0": "1"})}
    with pytest.raises(InputError) as caught:
        register(state, replace(people, description=Description(mapping=street)))
    assert caught.value.code == "mapping-not-whole"
    found = scanned(people.place.path, "people", Description(mapping=street))
    assert found.description.mapping == pinned(street, None)
    register(state, found)
    stored = state.dataset("people")
    assert stored is not None
    assert stored.description == found.description
    state.close()


def test_a_description_is_kept_or_replaced_as_the_letter_says(world: World) -> None:
    home = world.homes["health"]
    state = world.open("health")
    force = InForce.load(state, home.name, home.signer.public_key)
    desk = desk_of(state, force, home, signer=home.signer, now=world.clock, log=Log(None, world.clock))
    [people] = state.datasets()
    street = {"street": ColumnMapping(table="gbt2261.1@2003", values={"S0": "1"})}
    said = scanned(people.place.path, "people", Description(title="人口", mapping=street))

    def now() -> Description:
        known = state.dataset("people")
        assert known is not None
        return known.description

    desk.handle("dataset", dataset_to_json(said))
    assert now() == said.description
    desk.handle("dataset", {**dataset_to_json(said), "description": None})
    assert now() == said.description
    # It was scanned by a description that maps nothing, and keeps one that does.
    other = replace(said, columns=tuple(replace(c, type="integer") for c in said.columns))
    with pytest.raises(StateConflict) as caught:
        desk.handle("dataset", {**dataset_to_json(other), "description": None})
    assert caught.value.code == "description-changed"
    desk.handle("dataset", {**dataset_to_json(people), "description": {}})
    assert now() == Description()
    bodies = [e.body for e in state.journal.entries() if e.kind == "dataset.registered"][-3:]
    assert ["mapping_sha256" in body for body in bodies] == [True, True, False]
    assert ["description_sha256" in body for body in bodies] == [True, True, False]
    state.close()


def test_another_table_with_the_same_version_is_not_the_registered_one(world: World) -> None:
    street = {"street": ColumnMapping(table="gbt2261.1@2003", sha256="sha256:" + "0" * 64)}
    state = world.open("health")
    [people] = state.datasets()
    with pytest.raises(InputError) as caught:
        scanned(people.place.path, "people", Description(mapping=street))
    assert caught.value.code == "code-table-changed"
    state.close()
