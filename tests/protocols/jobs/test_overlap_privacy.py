"""Regions against a plaintext count, and the noise of whole runs: its distribution and its intervals."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap_case import S1, S2, overlap_case, pair_spec, venn_spec
from scipy.stats import binomtest, chisquare

from protocols.dp import exact
from protocols.errors import ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import source
from protocols.jobs.overlap import MATCHER, Params
from protocols.overlap.parties import TAGS, Matcher, region_sizes
from protocols.party import Incoming, Sent, run
from protocols.psi.owner import plan_of
from protocols.psi.tagging import TAG_BYTES

SETS = st.lists(st.sets(st.integers(0, 20), max_size=12), min_size=2, max_size=6)


def plain(lists) -> list[int]:
    """Count every region by hand."""
    holders = Counter(
        sum(1 << i for i, people in enumerate(lists) if number in people) for number in set().union(*lists)
    )
    return [holders[region] for region in range(1, 1 << len(lists))]


def exact_sizes(case) -> list[int]:
    """Play it with a matcher that outputs what it counted."""
    plan = case.parties[MATCHER]._plan
    case.parties[MATCHER] = Matcher(plan, lambda sizes: sizes.tolist())
    return run(case.parties, observe=case.sent.append)[MATCHER]


@settings(max_examples=5, deadline=None)
@given(lists=SETS, seed=st.integers(0, 10**6))
def test_the_matcher_counts_the_regions_of_any_two_to_six_lists(lists, seed):
    spec = venn_spec(len(lists))
    case = overlap_case([sorted(people) for people in lists], spec=spec, seed=seed)
    assert exact_sizes(case) == plain(lists)


@pytest.mark.parametrize(
    "lists", [[[], []], [[], [], [1]], [range(9)] * 3, [[1], [2], [3], []], [range(300), [5], []]]
)
@pytest.mark.parametrize("key_holders", [["source-1", "source-2"], ["source-2", "source-1"]])
def test_empty_equal_and_disjoint_lists_have_their_regions(lists, key_holders):
    case = overlap_case(lists, spec=venn_spec(len(lists), key_holders=key_holders))
    assert exact_sizes(case) == plain([set(people) for people in lists])


def test_the_noise_of_regions_hides_one_person_on_one_list():
    """Joining one list moves a person from one region to another: two change by one."""
    lists = [set(range(9)), set(range(4, 12)), {1, 5, 30}]
    before = np.array(plain(lists))
    for i, people in enumerate(lists):
        for number in {*range(12), 30, 77} - people:
            joined = [theirs | ({number} if j == i else set()) for j, theirs in enumerate(lists)]
            moved = np.array(plain(joined)) - before
            assert np.abs(moved).sum() <= 2
            assert (moved**2).sum() <= 2
    noise = Params.of(venn_spec(3, epsilon="0.5")).noise
    assert (noise.kind, noise.spread, noise.honest) == ("laplace", 4, 1)
    noise = Params.of(venn_spec(3, rho="0.5")).noise
    assert noise.kind == "gaussian"
    assert 2 / (2 * noise.spread) == pytest.approx(0.5, rel=1e-12)


def test_exchanging_one_person_for_another_changes_an_overlap_by_one_and_regions_by_four():
    lists = [set(range(9)), set(range(4, 12)), {1, 5, 30}]
    before, most = np.array(plain(lists)), 0
    for out in lists[0]:
        for into in {*range(12), 30, 77} - lists[0]:
            changed = [lists[0] - {out} | {into}, *lists[1:]]
            moved = np.abs(np.array(plain(changed)) - before)
            most = max(most, int(moved.sum()))
            assert (moved**2).sum() <= 4
            assert abs(len(changed[0] & lists[1]) - len(lists[0] & lists[1])) <= 1
    assert most == 4


@pytest.mark.long  # hundreds of whole runs; that z is added as drawn, and how it is drawn, quick tests show
def test_whole_runs_of_two_departments_have_the_noise_they_say():
    # 600 runs of one question; the released number less the overlap against the masses of z - m/2, cells of
    # 5 or more expected. False alarm: 1e-6.
    spec = pair_spec(epsilon="2", delta="1/1000000")
    noise = Params.of(spec).dummies
    found = []
    for seed in range(600):
        case = overlap_case([range(12), range(4, 16)], spec=spec, seed=seed)
        found.append(int(case.value()) - 8)
    alpha = float(np.exp(-2.0))
    reach = np.arange(-noise.half, noise.half + 1)
    expected = alpha ** np.abs(reach)
    expected *= len(found) / expected.sum()
    counts = np.bincount(np.array(found) + noise.half, minlength=noise.pool + 1)
    kept = expected >= 5
    sides = [np.append(each[kept], each[~kept].sum()) for each in (counts, expected)]
    assert chisquare(*sides).pvalue > 1e-6


@pytest.mark.parametrize("budget", [{"rho": "0.1"}, {"epsilon": "1"}])
def test_intervals_of_regions_hold_as_often_as_they_say(budget, monkeypatch):
    # 40 tables of 63 regions that are large enough not to be cut: 2,520 intervals, each right with 95 % or
    # more. False alarm: 1e-6.
    monkeypatch.setattr(exact, "SMALL", 0)
    params = Params.of(venn_spec(6, **budget))
    rand = seeded(f"regions/{budget}")
    inside = total = 0
    for _ in range(40):
        drawn = params.noise.draw(rand)
        inside += int((np.abs(drawn) <= params.half_width).sum())
        total += drawn.size
    assert binomtest(inside, total, 0.95, alternative="less").pvalue > 1e-6
    assert params.noise.half_width() == params.half_width


def test_each_region_has_noise_of_its_own(monkeypatch):
    monkeypatch.setattr(exact, "SMALL", 0)
    drawn = Params.of(venn_spec(6, epsilon="0.1")).noise.draw(seeded("own"))
    assert len(drawn) == 63
    assert len(set(drawn.tolist())) > 30


# -- messages that are none ----------------------------------------------------------------------------------


def tags(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(TAG_BYTES, "big") for number in numbers)


@pytest.mark.parametrize(
    ("body", "last", "code"),
    [
        (tags(1, 2, 3), True, None),
        (tags(1, 3, 2), True, "bad-tags"),
        (tags(1, 2, 2), True, "bad-tags"),
        (tags(1, 2), True, "too-few-items"),
        (tags(1, 2, 3, 4), True, "too-many-items"),
        (tags(1, 2, 3), False, "bad-length"),
        (tags(1, 2, 3)[:-1], True, "bad-length"),
    ],
)
def test_tags_are_ascending_and_as_many_as_admitted(body, last, code):
    plan = plan_of((S1, S2), (S1, S2), (2, 0), bytes(32))
    matcher = Matcher(plan, lambda sizes: sizes.tolist())
    matcher.receive(Incoming(S2, TAGS, tags(2)))
    if code is None:
        # One of three stands for the first list, the other's only one for the second.
        assert matcher.receive(Incoming(S1, TAGS, body, last)).output == [1, -1, 1]
        return
    with pytest.raises(ProtocolAborted) as error:
        matcher.receive(Incoming(S1, TAGS, body, last))
    assert error.value.code == code


def test_a_matcher_listens_to_list_owners_only_and_to_each_once():
    plan = plan_of((S1, S2), (S1, S2), (0, 0), bytes(32))
    matcher = Matcher(plan, lambda sizes: sizes)
    for sender, number in ((Role("source-3"), TAGS), (S1, 0x3000)):
        with pytest.raises(ProtocolAborted, match="not due"):
            matcher.receive(Incoming(sender, number, tags(1)))
    matcher.receive(Incoming(S1, TAGS, tags(1)))
    with pytest.raises(ProtocolAborted, match="not due"):
        matcher.receive(Incoming(S1, TAGS, tags(1)))


def test_a_list_owner_answers_with_its_tags_and_not_before():
    """So an attempt that ends earlier has told nothing; the mark is durable before the first tag leaves."""
    case = overlap_case([range(30), range(20, 60), range(5)], spec=venn_spec(3))
    told: dict[Role, list[bool]] = {}

    class Watched:
        def __init__(self, role, party):
            self.role, self.party, self.answering = role, party, False
            told[role] = []

        def start(self):
            return self._seen(self.party.start())

        def receive(self, message):
            return self._seen(self.party.receive(message))

        def _seen(self, step):
            from protocols.party import Finished

            self.answering |= isinstance(step, Finished) or step.answering
            told[self.role].append(self.answering)
            return step

    watched = {role: Watched(role, party) for role, party in case.parties.items()}

    def observe(sent: Sent) -> None:
        if sent.round == TAGS:
            assert watched[sent.sender].answering
        elif sent.sender == source(3):
            assert not watched[sent.sender].answering

    run(watched, observe=observe)
    assert all(each[0] is False and each[-1] is True for each in told.values())


def test_sizes_of_tagged_lists_do_without_the_keys_that_stand_for_lists():
    lists = [np.array([b"a", b"c", b"x"]), np.array([b"b", b"c"])]
    assert region_sizes(lists).tolist() == [1, 0, 1]
    assert Params.of(venn_spec(2)).delta == Fraction(0)
