"""The measurements do the work that their figures count, on both sides."""

from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import pytest

from bench import crosscheck, relay, rows, tagging
from bench.rig.turns import take_turns
from bench.rig.worker import Talk, Worker
from bench.rows import Results
from demo.collaboration import DEPARTMENTS, for_a_city_of
from protocols.party import run
from protocols.psi import group


def test_the_tagging_path_does_exactly_the_exponentiations_it_is_credited_with(monkeypatch):
    done = []
    power = group.power
    monkeypatch.setattr(group, "power", lambda base, scalar: done.append(len(base)) or power(base, scalar))
    tagged = run({owner: tagging.party(owner, {"keys": 60}) for owner in tagging.OWNERS})
    assert sum(done) == tagging.POWERS * 60
    tags = [set(tagged[owner][0].tags.tolist()) for owner in tagging.OWNERS]
    assert [len(one & following) for one, following in pairwise(tags)] == [30] * 4


def test_the_bare_loop_does_the_same_group_operations(monkeypatch):
    calls = {"scalarmult": 0, "from_hash": 0}
    sodium = group._sodium()

    def counted(name):
        def call(*arguments):
            calls[name] += 1
            return getattr(sodium, name)(*arguments)

        return call

    counting = replace(sodium, **{name: counted(name) for name in calls})
    monkeypatch.setattr(group, "WORKERS", 1)  # the counters are not for two threads
    monkeypatch.setattr(group, "_sodium", lambda: counting)
    assert tagging.bare_rate(7) > 0
    assert calls == {"scalarmult": tagging.POWERS * 7, "from_hash": len(tagging.OWNERS) * 7}


def test_the_turn_of_median_ratio_counts():
    ours = iter([10.0, 30.0, 20.0])
    peer = iter([40.0, 40.0, 40.0, 20.0])
    assert take_turns(lambda: next(ours), lambda: next(peer), 3) == (20.0, 30.0)


def test_in_a_larger_city_an_example_policy_lends_more_and_is_else_the_same():
    for department in DEPARTMENTS:
        text = files("policies.examples").joinpath(f"{department.folder}.toml").read_text("utf-8")
        assert for_a_city_of(100_000, text) == for_a_city_of(10_000, text) == text
        larger = for_a_city_of(1_000_000, text)
        assert larger.count("max_rows = 200000\n") == 1
        lent = larger.count('counts = "rows"\nlimit = 600000\n')
        assert lent == text.count('counts = "rows"\n')
        changed = [n for n, line in enumerate(text.splitlines()) if larger.splitlines()[n] != line]
        assert len(changed) == 1 + lent


@pytest.mark.long  # a bench, not a promise
def test_frames_cross_the_relay_and_the_bare_relay(tmp_path):
    ours, bare = relay.compare(tmp_path, messages=3, turns=1)
    assert ours > 0
    assert bare > 0


async def breaks(talk: Talk) -> None:
    await talk.hear()
    raise ValueError("the reason")


def test_a_worker_that_breaks_ends_the_measurement_with_its_reason(tmp_path):
    with Worker(breaks, log=tmp_path / "log") as worker:
        worker.tell(go=True)
        with pytest.raises(RuntimeError, match="the reason"):
            worker.answer()


def test_a_resumed_crosscheck_runs_only_what_it_has_no_rows_of(tmp_path, monkeypatch):
    ran = []

    def run_once(profile, seed):
        ran.append((profile, seed))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return crosscheck.Measured(20.0, 250.0)

    monkeypatch.setattr(rows, "OUT", tmp_path)
    monkeypatch.setattr(rows, "commit", lambda: "abc1234")
    monkeypatch.setattr(crosscheck, "run", run_once)
    with pytest.raises(KeyboardInterrupt):
        crosscheck.measure(Results("crosscheck-long", resume=True), long=True)
    resumed = Results("crosscheck-long", resume=True)
    crosscheck.measure(resumed, long=True)
    assert ran == [("bench", 1), ("bench", 2), ("bench", 2), ("bench", 3)]
    short = Results("crosscheck")
    crosscheck.measure(short, long=False)
    assert [row.what for row in short.rows] == ["wall 1e5", "rss 1e5", "wall 1e6", "rss 1e6"]
