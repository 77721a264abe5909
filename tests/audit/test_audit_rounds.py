"""Rounds, decided again: every one is journaled once, an end says how many, and what is left comes back."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lying import Trail, found, told, visited
from rounds_world import EVALUATE, SOURCES, TRAIN, Cut, RoundsWorld, Steps, registered
from simulator import over, running, until

from audit.bundle import open_bundle
from audit.cross import Side, cross, gather
from audit.entries import Entry
from audit.facts import Facts
from audit.findings import Answer
from node.state import RunState

FIRST = 2
"""Rounds of the first attempt."""


@pytest.fixture(scope="module")
def lived() -> Iterator[RoundsWorld]:
    """A run whose first attempt ended after two rounds, and whose second one had the others."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="minshu-rounds-", dir=shm if os.access(shm, os.W_OK) else None))

    async def live(world: RoundsWorld) -> None:
        mail = Cut(world)
        mail.after = {1: FIRST}
        async with running(world, mail) as (post, stations):
            job = post.submit(world.steps())
            sources = [stations[name] for name in SOURCES]
            await until(lambda: all(len(s.entries("training.round")) == FIRST for s in sources))
            post.stop(job, "coordinator-restarted", attempt=1)
            await until(lambda: all(s.run(job, 1) is RunState.CANCELLED for s in sources))
            post.again(job)
            await over(post, job)
            await until(lambda: all(s.run(job, 2) is RunState.DONE for s in sources))

    with registered(Steps()):
        world = RoundsWorld(folder)
        asyncio.run(live(world))
        yield world
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def trail(lived: RoundsWorld) -> Trail:
    return Trail.of(lived, "health")


def test_a_true_journal_of_a_run_in_two_attempts_is_found_right(trail: Trail) -> None:
    checks = visited(trail, trail.entries)
    assert told(checks) == []
    assert checks["budgets"].answer is Answer.HOLDS
    assert [e.body["rounds"] for e in trail.entries if "rounds" in e.body] == [
        FIRST,
        TRAIN + EVALUATE - FIRST,
    ]
    assert [e.body["cost"] for e in trail.entries if e.kind == "budget.returned"] == ["0.08"]
    rho = [e.body["rho"] for e in trail.entries if e.kind == "job.accepted"]
    assert rho == ["0.32", "0.24"]


def drop_round(trail: Trail) -> None:
    trail.drop("training.round", 1)


def repeat_number(trail: Trail) -> None:
    trail.say("training.round", 1, round=1)


def repeat_number_in_another_attempt(trail: Trail) -> None:
    trail.say("training.round", FIRST, round=FIRST)


def another_count(trail: Trail) -> None:
    trail.say("job.cancelled", 0, rounds=FIRST + 1)


def no_count(trail: Trail) -> None:
    entry = trail.one("job.cancelled")
    trail.alter("job.cancelled", body={k: v for k, v in entry.body.items() if k != "rounds"})


def more_at_the_good_end(trail: Trail) -> None:
    trail.say("job.done", 0, rounds=1)


def keep_it(trail: Trail) -> None:
    trail.drop("budget.returned")


def return_too_much(trail: Trail) -> None:
    trail.say("budget.returned", returned="0.28", cost="0.04")


def return_it_twice(trail: Trail) -> None:
    place = trail.at("budget.returned")
    trail.entries.insert(place, trail.entries[place])


def return_what_was_spent(trail: Trail) -> None:
    body = trail.one("budget.returned").body
    done = trail.one("job.done")
    trail.entries.insert(
        trail.at("job.done"), replace(trail.one("budget.returned"), attempt=2, time=done.time, body=body)
    )


def one_more(trail: Trail) -> None:
    place = trail.at("training.round", FIRST + 3)
    entry = trail.entries[place]
    again = [replace(entry, body={**entry.body, "round": 50 + n}) for n in range(1)]
    trail.entries[trail.at("job.done") : trail.at("job.done")] = [
        replace(each, time=trail.one("job.done").time) for each in again
    ]
    trail.say("job.done", 0, rounds=TRAIN + EVALUATE - FIRST + 1)


def without_one(trail: Trail) -> None:
    trail.say("training.round", 1, sources=2)


def with_a_stranger(trail: Trail) -> None:
    trail.say("training.round", 1, sources=4)


def before_it_answers(trail: Trail) -> None:
    place = trail.at("job.answering", 0)
    first = trail.at("training.round", 0)
    trail.entries[place], trail.entries[first] = trail.entries[first], trail.entries[place]


def after_its_end(trail: Trail) -> None:
    end = trail.entries.pop(trail.at("job.cancelled"))
    place = trail.at("training.round", 1)
    trail.entries.insert(place, replace(end, time=trail.entries[place - 1].time))


def charge_the_next_one_whole(trail: Trail) -> None:
    trail.say("job.accepted", 1, rho="0.32", queries=1)


def free_what_was_spent(trail: Trail) -> None:
    trail.say("job.cancelled", 0, freed=True)


LIES: list[tuple[Callable[[Trail], None], tuple[str, str]]] = [
    (drop_round, ("budgets", "wrong-rounds")),
    (drop_round, ("budgets", "wrong-figure")),
    (repeat_number, ("executed", "round-repeated")),
    (repeat_number_in_another_attempt, ("executed", "round-repeated")),
    (another_count, ("budgets", "wrong-rounds")),
    (no_count, ("budgets", "wrong-rounds")),
    (more_at_the_good_end, ("budgets", "wrong-rounds")),
    (keep_it, ("budgets", "not-booked")),
    (return_too_much, ("budgets", "wrong-figure")),
    (return_it_twice, ("budgets", "unfounded")),
    (return_what_was_spent, ("budgets", "unfounded")),
    (one_more, ("budgets", "turn-spent")),
    (without_one, ("executed", "wrong-members")),
    (with_a_stranger, ("executed", "wrong-members")),
    (before_it_answers, ("executed", "without-answer")),
    (after_its_end, ("executed", "after-its-end")),
    (charge_the_next_one_whole, ("budgets", "wrong-figure")),
    (free_what_was_spent, ("budgets", "freed-after-it-left")),
]


@pytest.mark.parametrize(("lie", "code"), LIES, ids=[f"{lie.__name__}-{code[1]}" for lie, code in LIES])
def test_whoever_miscounts_rounds_or_what_they_cost_is_found(
    trail: Trail, lie: Callable[[Trail], None], code: tuple[str, str]
) -> None:
    lie(trail)
    assert code in found(visited(trail, trail.entries))


def test_what_is_wrong_with_one_attempt_shows_in_what_the_next_one_had_left(trail: Trail) -> None:
    """A round left out at both places leaves a cost that the next decision does not follow from."""
    trail.drop("training.round", 1)
    trail.say("job.cancelled", 0, rounds=1)
    trail.say("budget.returned", returned="0.28", cost="0.04", rho="0.04")
    assert ("budgets", "wrong-figure") in found(visited(trail, trail.entries))


def test_a_report_counts_rounds_and_subtracts_what_came_back(trail: Trail) -> None:
    facts = Facts()
    for seq, entry in enumerate(trail.entries):
        facts.visit(replace(entry, seq=seq))
    [job] = [job for job in facts.jobs.values() if job.job_type == "steps/1"]
    assert job.rounds == TRAIN + EVALUATE
    assert sum(step.kind == "training.round" for step in job.steps) == 1
    [privacy] = [each for each in facts.budgets.values() if each.budget == "privacy"]
    assert (privacy.charges, str(privacy.charged)) == (2, "0.32")


# -- across logs ---------------------------------------------------------------------------------------------


def sides(
    lived: RoundsWorld, folder: Path, lie: Callable[[str, Entry], Entry] = lambda _, entry: entry
) -> Iterator[Side]:
    """Yield what the sources' logs say of others, each signed by its owner as `lie` has it."""
    for name in SOURCES:
        trail = Trail.of(lived, name)
        trail.entries = [lie(name, entry) for entry in trail.entries]
        with open_bundle(trail.signed(folder / name)) as bundle:
            yield gather(bundle, replace(trail.trust, keys=(trail.key,)))


def rounds_found(several: Iterable[Side]) -> set[str]:
    return {finding.code for finding in cross(list(several)).checks["claims"].findings}


def of_three(entry: Entry) -> Entry:
    """Let the third round have two sources."""
    if entry.kind == "training.round" and entry.body["round"] == 3:
        return replace(entry, body={**entry.body, "sources": 2})
    return entry


def test_all_sources_of_a_round_say_the_same_of_it(lived: RoundsWorld, tmp_path: Path) -> None:
    every = list(sides(lived, tmp_path))
    assert all(len(side.rounds) == TRAIN + EVALUATE for side in every)
    crossed = cross(every)
    assert not crossed.checks["claims"].findings
    assert crossed.checks["claims"].looked_at >= TRAIN + EVALUATE


def test_a_lead_that_told_sources_of_a_round_different_things_is_found(
    lived: RoundsWorld, tmp_path: Path
) -> None:
    told_one = sides(
        lived, tmp_path / "one", lambda name, entry: of_three(entry) if name == "health" else entry
    )
    assert rounds_found(told_one) == {"another-round"}
    told_all = sides(lived, tmp_path / "all", lambda _, entry: of_three(entry))
    assert rounds_found(told_all) == {"another-round"}
