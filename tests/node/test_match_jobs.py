"""Matches through real nodes: right answers, what is refused, what leaves and what an attempt costs."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from auditing import audited
from match_case import KKRT, MARITAL
from match_world import PAIR, RECEIVES, SENDS, STATUS, MatchWorld, differing, finished, held, opened
from simulator import Post, Station, World, answered, approve_all, over, person, running, until

from node.ledger import RowState
from node.rpc import Attempt
from node.state import RunState
from protocols.channel.frame import Header
from protocols.ids import JobId
from protocols.jobs import match
from protocols.jobs.match import RECEIVER, SENDER
from protocols.match import dh
from protocols.wire import JobSpec

pytestmark = pytest.mark.alone  # whole nodes, 11 s together

OURS, THEIRS = STATUS[RECEIVES], STATUS[SENDS]


@pytest.fixture(scope="module")
def matches(memory: Path) -> MatchWorld:
    return MatchWorld(memory / "matches")


@pytest.fixture
def world(matches: MatchWorld, folder: Path) -> MatchWorld:
    """A collaboration that matches, of whose files a test may make what it likes."""
    return matches.clone(folder / "world")  # type: ignore[return-value]  # a copy of its own kind


async def matched(post: Post, stations: dict[str, Station], spec: JobSpec) -> list[dict[str, Any]]:
    job = post.submit(spec)
    await approve_all(post, stations, job)
    return await finished(post, stations, job)


def states(stations: dict[str, Station], job: JobId) -> dict[str, RowState]:
    return {name: row.state for name in PAIR for row in stations[name].state.ledger().of_job(job)[-1:]}


def spent(station: Station) -> int:
    """Return how many records about persons are charged to a department's dataset."""
    return sum(row.cost.rows for row in station.state.ledger().of("status"))


# -- right answers -------------------------------------------------------------------------------------------


def test_the_receiver_learns_which_of_its_persons_the_sender_lists(world: MatchWorld) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rows = await matched(post, stations, world.match())
            assert {row["key"] for row in rows} == held(OURS, THEIRS)
            assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
            assert {row["organisation"] for row in rows} == {f"{SENDS}.gz.example"}
            [job] = post.tasks
            # Nothing comes to whoever asked, and the sender has made nothing.
            assert post.tasks[job].uploads == {}
            assert not stations[SENDS].state.outputs(job)
            assert spent(stations[SENDS]) == 200
            assert spent(stations[RECEIVES]) == 0

    asyncio.run(play())


def test_each_owner_learns_which_of_its_own_records_differ_and_nothing_else(world: MatchWorld) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rows = await matched(post, stations, world.match(values=MARITAL))
            assert {row["key"] for row in rows} == differing(OURS, THEIRS)
            assert 0 < len(rows) < len(held(OURS, THEIRS))
            own = {f"RIC:{person(n)}": value for n, value, _ in OURS}
            group = {value: each[0] for each in MARITAL for value in each}
            assert all(row["own_group"] == group[own[row["key"]]] for row in rows)
            assert {tuple(row) for row in rows} == {("key", "own_group", "organisation")}

    asyncio.run(play())


@pytest.mark.long
def test_a_person_with_several_rows_is_compared_by_the_latest(world: MatchWorld) -> None:
    married_since = [(1, "10", "2020-01"), (1, "20", "2026-01"), (2, "10", "2026-01"), (2, "40", "2019-12")]
    world.list_status(RECEIVES, married_since)
    world.list_status(SENDS, [(1, "22", "2026-02"), (2, "40", "2026-03"), (2, "90", "2026-04")])

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rows = await matched(post, stations, world.match(values=MARITAL))
            assert [(row["key"], row["own_group"]) for row in rows] == [(f"RIC:{person(2)}", "10")]
            [job] = post.tasks
            assert stations[SENDS].state.input_counts(job)[1]["other-value"] == 1

    asyncio.run(play())


@pytest.mark.parametrize(
    ("empty", "values"), [((SENDS,), {"values": MARITAL}), pytest.param(PAIR, {}, marks=pytest.mark.long)]
)
def test_an_empty_list_on_either_side_gives_an_empty_answer(
    world: MatchWorld, empty: tuple[str, ...], values: dict[str, Any]
) -> None:
    for name in empty:
        # Catalogues take no empty file: it was emptied since, and says so.
        world.write_status(name, [])
        world.published(name, 0)

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            assert await matched(post, stations, world.match(**values)) == []

    asyncio.run(play())


def test_keys_of_another_type_in_a_list_are_counted_and_match_nobody(world: MatchWorld) -> None:
    for name in PAIR:
        path = world.write_status(name, STATUS[name])
        with path.open("a", encoding="utf-8") as file:
            file.write("E12345678,10,2026-01,\n91440101MA5CQ8R01X,10,2026-01,\nH1234567890,10,2026-01,\n")
        world.catalogue(name, path)

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rows = await matched(post, stations, world.match())
            assert {row["key"] for row in rows} == held(OURS, THEIRS)
            [job] = post.tasks
            for name in PAIR:
                counts = stations[name].state.input_counts(job)[1]
                assert counts["rows"] - counts["distinct-keys"] == 3

    asyncio.run(play())


def test_a_list_of_another_type_alone_is_no_input(world: MatchWorld) -> None:
    world.folder.joinpath(f"{SENDS}-status.csv").write_text("id,marital,seen\nE12345678,10,2026-01\n")

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            job = post.submit(world.match())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert task.ended[SENDS].code == "no-usable-key"
            await until(lambda: RowState.CHARGED not in states(stations, job).values())

    asyncio.run(play())


# -- limits --------------------------------------------------------------------------------------------------


def refused_before_data_left(world: MatchWorld, spec: JobSpec, code: str) -> None:
    """Play a job that everybody approves and that a guard on sizes ends, at no cost."""

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            job = post.submit(spec)
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert code in {end.code for end in task.ended.values()}
            assert {end.state for end in task.ended.values()} <= {"FAILED", "CANCELLED"}
            assert post.frames == []
            await until(lambda: set(states(stations, job).values()) <= {RowState.RELEASED})
            assert not stations[RECEIVES].state.outputs(job)

    asyncio.run(play())


def test_a_receiver_that_lists_more_keys_than_were_approved_gets_nothing(world: MatchWorld) -> None:
    refused_before_data_left(world, world.match(receiver_keys=119), "guard-rows")


def test_a_short_list_of_chosen_persons_is_not_what_the_catalogue_says(world: MatchWorld) -> None:
    world.write_status(RECEIVES, OURS[:3])
    refused_before_data_left(world, world.match(), "guard-list-size")


@pytest.mark.long
def test_where_values_are_compared_the_whole_catalogue_has_to_be_listed_too(world: MatchWorld) -> None:
    world.write_status(RECEIVES, OURS[:117])
    refused_before_data_left(world, world.match(values=MARITAL), "guard-list-size")


def test_admissions_say_as_much_of_lists_whichever_values_are_compared(world: MatchWorld) -> None:
    """Else whoever has a seat would count the persons with a value, for nothing."""

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rare = post.submit(world.match(values=[["40"], ["30"]]))
            await approve_all(post, stations, rare)
            rows = await finished(post, stations, rare)
            ours, theirs = ({n: v for n, v, _ in rows if v in ("30", "40")} for rows in (OURS, THEIRS))
            assert {row["key"] for row in rows} == {
                f"RIC:{person(n)}" for n, v in ours.items() if theirs.get(n, v) != v
            }
            for name, listed in zip(PAIR, (OURS, THEIRS), strict=True):
                counts = stations[name].state.input_counts(rare)[1]
                assert (counts["rows"], counts["distinct-keys"]) == (len(listed), len(listed))
                assert counts["other-value"] == sum(v not in ("30", "40") for _, v, _ in listed)

    asyncio.run(play())


def test_a_job_may_ask_for_the_form_in_which_the_sender_counts(
    world: MatchWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(match, "Match", partial(match.Match, sizing=KKRT))  # by size, the other form

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            spec = world.match(values=MARITAL)
            rows = await matched(post, stations, replace(spec, params={**spec.params, "form": "dh"}))
            assert {row["key"] for row in rows} == differing(OURS, THEIRS)
            assert {header.round for header, _ in post.frames} == {dh.BLINDED, dh.RAISED, dh.OWN}

    asyncio.run(play())


@pytest.mark.long
def test_no_more_of_the_senders_list_can_be_found_than_a_rule_lends(folder: Path) -> None:
    class Careful(MatchWorld):
        max_fraction = "0.5"  # of 200

    refused_before_data_left(careful := Careful(folder / "world"), careful.match(), "guard-fraction")


def test_membership_is_not_fished_for_by_job_after_job(world: MatchWorld) -> None:
    """Each job would tell of up to 600 persons; what is charged is who was asked about, not who was found."""

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            found: list[set[str]] = []
            for first in (0, 100, 200):
                world.write_status(RECEIVES, [(first + n, "10", "2026-01") for n in range(120)])
                found.append(
                    {r["key"] for r in await matched(post, stations, world.match(receiver_keys=600))}
                )
            assert [len(keys) for keys in found] == [60, 120, 60]
            assert spent(stations[SENDS]) == 1800
            fourth = post.submit(world.match(receiver_keys=600))
            task = await answered(post, fourth)
            assert task.verdicts[SENDS].code == "budget-exceeded"
            assert task.verdicts[SENDS].answer == "refuse"
            fits = post.submit(world.match(receiver_keys=200))
            assert (await answered(post, fits)).verdicts[SENDS].answer == "ask"

    asyncio.run(play())


def test_held_and_differs_together_are_refused(world: MatchWorld) -> None:
    """Both answers would tell whose values are the same, which neither was approved for."""

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            await matched(post, stations, world.match())
            other = post.submit(world.match(values=MARITAL))
            task = await answered(post, other)
            assert {verdict.code for verdict in task.verdicts.values()} == {"differencing"}

    asyncio.run(play())


# -- what people have to say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("department", [SENDS, pytest.param(RECEIVES, marks=pytest.mark.long)])
def test_with_one_approval_of_two_nothing_runs(world: MatchWorld, department: str) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            job = post.submit(world.match())
            task = await answered(post, job)
            assert {verdict.answer for verdict in task.verdicts.values()} == {"ask"}
            [other] = set(PAIR) - {department}
            stations[other].approve_fully(job)
            stations[department].approve(job, world.staff[department].dpo)
            await until(lambda: task.verdicts[other].answer == "permit")
            await asyncio.sleep(0.1)
            assert task.verdicts[department].answer == "ask"
            assert stations[department].run(job) is RunState.AWAITING_APPROVAL
            assert (task.admissions, post.frames) == ({}, [])
            stations[department].approve(job, world.staff[department].owner)
            assert {row["key"] for row in await finished(post, stations, job)} == held(OURS, THEIRS)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"values": [["10"], ["20", "90"]]}, "column-values"),
        ({"columns": {"key": "phone"}}, "negative-list"),
        ({"columns": {"key": "marital"}}, "column-use"),
        ({"params": {"receiver_keys": 0}}, "bad-params"),
    ],
)
def test_what_no_rule_opens_is_refused_before_anybody_approves(
    world: MatchWorld, change: dict[str, Any], code: str
) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, _):
            job = post.submit(world.match(**change))
            task = await answered(post, job)
            assert {verdict.answer for verdict in task.verdicts.values()} == {"refuse"}
            assert {verdict.code for verdict in task.verdicts.values()} == {code}

    asyncio.run(play())


def test_a_job_for_more_keys_than_the_senders_rule_allows_is_refused_by_it(world: MatchWorld) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, _):
            job = post.submit(world.match(receiver_keys=1001))
            task = await answered(post, job)
            assert (task.verdicts[SENDS].answer, task.verdicts[SENDS].code) == ("refuse", "rows-above-rule")
            assert task.verdicts[RECEIVES].answer == "ask"

    asyncio.run(play())


# -- attempts ------------------------------------------------------------------------------------------------


class Cutting(Post):
    """A relay that loses frames of some kind."""

    def __init__(self, world: World, lost: Callable[[Header], bool]) -> None:
        super().__init__(world)
        self.lost_frame = lost

    def carried(self, header: Header, frame: bytes) -> Iterable[bytes]:
        return () if self.lost_frame(header) else (frame,)


async def running_streams(post: Post, stations: dict[str, Station], job: JobId) -> None:
    await approve_all(post, stations, job)
    await until(lambda: all((name, Attempt(job, 1)) in post.streams for name in PAIR))


def test_an_attempt_cut_before_the_sender_answers_costs_nothing_and_is_tried_again(world: MatchWorld) -> None:
    async def play() -> None:
        async with running(
            world, Cutting(world, lambda h: h.attempt == 1 and h.to == SENDER), names=PAIR
        ) as (post, stations):
            job = post.submit(world.match())
            await running_streams(post, stations, job)
            await until(lambda: bool(post.frames))
            post.stop(job, "peer-lost", 1)
            await until(lambda: all(stations[name].run(job) is RunState.CANCELLED for name in PAIR))
            assert set(states(stations, job).values()) == {RowState.RELEASED}
            assert not stations[SENDS].entries("job.answering")
            assert spent(stations[SENDS]) == 0
            post.again(job)
            await approve_all(post, stations, job)
            await until(lambda: set(post.tasks[job].ended) == set(PAIR))
            assert {row["key"] for row in opened(stations[RECEIVES], job)} == held(OURS, THEIRS)
            assert spent(stations[SENDS]) == 200

    asyncio.run(play())


def test_an_answer_that_was_under_way_stays_charged_and_is_not_given_twice(world: MatchWorld) -> None:
    """The receiver may have it by then, whatever its node says became of the attempt."""

    async def play() -> None:
        answer: list[Header] = []

        def lost(header: Header) -> bool:
            if header.to == RECEIVER and stations_seen and stations_seen[0].entries("job.answering"):
                answer.append(header)
                return True
            return False

        stations_seen: list[Station] = []
        async with running(world, Cutting(world, lost), names=PAIR) as (post, stations):
            stations_seen.append(stations[SENDS])
            job = post.submit(world.match())
            await running_streams(post, stations, job)
            await until(lambda: bool(answer))
            post.stop(job, "peer-lost")
            await over(post, job)
            await until(lambda: stations[RECEIVES].run(job) is RunState.CANCELLED)
            assert states(stations, job)[SENDS] is RowState.CHARGED
            assert not stations[RECEIVES].state.outputs(job)
            assert spent(stations[SENDS]) == 200
            post.again(job)
            task = await answered(post, job)
            assert task.verdicts[SENDS].code == "answered-once"

    asyncio.run(play())


# -- what leaves ---------------------------------------------------------------------------------------------

PLANTED = [person(row[0]) for row in (*OURS[:8], *OURS[60:75], *THEIRS[70:75])]


def found_in(data: bytes) -> bool:
    for identifier in PLANTED:
        raw = identifier.encode()
        spellings = [raw, raw.hex().encode()]
        for known in (raw, b"RIC:" + raw):
            for name in ("sha256", "md5", "sm3"):
                digest = hashlib.new(name, known).digest()
                spellings += [digest, digest.hex().encode()]
        if any(spelling in data for spelling in spellings):
            return True
    return b"1390000" in data


@pytest.mark.parametrize(("form", "values"), [("dh", {}), ("kkrt", {"values": MARITAL})])
def test_no_identifier_leaves_or_stands_in_logs_and_journals(
    world: MatchWorld, monkeypatch: pytest.MonkeyPatch, form: str, values: dict[str, Any]
) -> None:
    record = world.folder / "recorded"
    if form == "kkrt":  # the form for long lists, with short ones
        monkeypatch.setattr(match, "Match", partial(match.Match, sizing=KKRT))

    async def play() -> Post:
        async with running(world, names=PAIR, record=record) as (post, stations):
            rows = await matched(post, stations, world.match(**values))
            assert {row["key"] for row in rows} == (differing if values else held)(OURS, THEIRS)
            return post

    post = asyncio.run(play())
    assert not found_in(b"".join(post.control))
    assert not found_in(b"".join(frame for _, frame in post.frames))
    files = [file for home in world.homes.values() for file in home.path.rglob("*") if file.is_file()]
    bodies = [file for file in record.rglob("*") if file.is_file()]
    assert len(bodies) == (5 if form == "kkrt" else 3)  # one of each stream
    assert [file.name for file in (*files, *bodies) if found_in(file.read_bytes())] == []
    assert found_in((world.folder / f"{SENDS}-status.csv").read_bytes())  # the scan does find


def test_an_auditor_takes_every_decision_again_and_finds_it_right(world: MatchWorld) -> None:
    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            await matched(post, stations, world.match(values=MARITAL))

    asyncio.run(play())
    for name in PAIR:
        checks = audited(world, name)
        assert [(check.question, f.code, f.where) for check in checks for f in check.findings] == []


@pytest.mark.long
@pytest.mark.parametrize("values", [{}, {"values": MARITAL}])
def test_long_lists_go_through_nodes_in_the_form_for_them(folder: Path, values: dict[str, Any]) -> None:
    class Large(MatchWorld):
        max_rows = rows = 100_000

    world = Large(folder / "world")
    ours = [(n, ("10", "20", "30")[n % 3], "") for n in range(66_000)]
    theirs = [(n, ("10", "22", "40", "30")[n % 4], "") for n in range(60_000, 90_000)]
    world.list_status(RECEIVES, ours)
    world.list_status(SENDS, theirs)

    async def play() -> None:
        async with running(world, names=PAIR) as (post, stations):
            rows = await matched(post, stations, world.match(receiver_keys=66_000, **values))
            assert {row["key"] for row in rows} == (differing if values else held)(ours, theirs)
            assert len({header.round for header, _ in post.frames}) == 5

    asyncio.run(play())
