"""What each coalition can compute of a joint release, from messages actually sent, and what it cannot.

A view is what its members sent and received, their own vectors and, of the key-holder, the totals. In mode
`mask` every word can be taken apart here; that ciphertexts under the key-holder's key tell the aggregator
nothing is BFV's promise, and the rest of the view is the same.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from crosscheck_case import CTX, seeded
from release_case import (
    OPEN,
    RELEASE,
    STREETS,
    Row,
    SourcesCase,
    case_of,
    params_of,
    release_case,
    release_spec,
    tallied,
)
from scipy.stats import chisquare

from protocols.dp import exact
from protocols.ids import Role
from protocols.jobs import release
from protocols.jobs.job_type import AGGREGATOR, COORDINATOR, REQUESTER, source
from protocols.party import Incoming, Party, Progress, Sent, Step, Waiting
from protocols.releases.figures import content
from protocols.releases.plan import counted, plan
from protocols.sums.masks import RING, Masks, stream_key
from protocols.sums.parties import MASKED, SEED, Contributor
from protocols.sums.plan import CHECKS

S1, S2, S3 = (source(i) for i in (1, 2, 3))  # source-1 is the key-holder
SOURCES = (S1, S2, S3)
ROLES = (*SOURCES, AGGREGATOR)
COALITIONS = [frozenset(members) for size in range(1, 5) for members in combinations(ROLES, size)]
MASKING = {"axes": [{"slot": "street", "values": list(STREETS)}], "mode": "mask"}


def people(count: int, street: int) -> list[Row]:
    return [{"unit": f"{street}/{i}", "street": STREETS[(street + i // 40) % 5]} for i in range(count)]


TABLES = (people(130, 0), people(90, 1), people(170, 3))


@dataclass
class Played:
    """A release after its end: what everybody has."""

    case: SourcesCase
    totals: np.ndarray
    table: np.ndarray

    def vector(self, role: Role) -> np.ndarray:
        """Return what a source added: its cells, scaled, with its share of the noise."""
        party = self.case.parties[role]
        assert isinstance(party, Contributor)
        return party._vector

    def true(self, role: Role) -> np.ndarray:
        """Return its cells without noise."""
        made = plan(params_of(self.case.spec))
        (cells,) = counted(made.params, self.case.tallies[role])
        return cells * made.noises[0].scale


@pytest.fixture
def play(monkeypatch):
    """Return a function that plays a release; noise comes from `rand` alone, so it can be played again."""
    monkeypatch.setattr(exact, "SMALL", 0)
    seen = []

    def watched(made, totals, minimum, *keys):
        seen.append(totals.copy())
        return content(made, totals, minimum, *keys)

    monkeypatch.setattr(release, "content", watched)

    def played(tables=TABLES, *, noise=SOURCES, **params) -> Played:
        """`noise`: whose seed each source uses."""
        spec = release_spec("histogram", len(tables), **{**MASKING, "epsilon": "0.5", **params})
        tallies = {source(i): tallied(spec, rows, number=i) for i, rows in enumerate(tables, start=1)}
        case = case_of(spec, tallies)
        for role, seed in zip(tallies, noise, strict=False):
            case.parties[role] = RELEASE.party(role, case.setup, tallies[role], seeded(seed))
        return Played(case, table=case.released().table.columns["value"], totals=seen.pop())

    return played


@dataclass
class View:
    """What a coalition has."""

    members: frozenset[Role]
    played: Played
    messages: list[Sent]

    @property
    def outside(self) -> list[Role]:
        return [role for role in self.played.case.tallies if role not in self.members]

    def rest(self) -> np.ndarray | None:
        """Return the totals less what its members added."""
        if S1 not in self.members:
            return None
        own = [self.played.vector(role) for role in self.played.case.tallies if role in self.members]
        return self.played.totals - sum(own)

    def seeds(self) -> dict[frozenset[Role], bytes]:
        return {frozenset({m.sender, m.to}): m.body for m in self.messages if m.round == SEED}

    def opened(self, target: Role) -> np.ndarray | None:
        """Take every mask off that the coalition has the seed of, and see whether words are left."""
        sent = [m.body for m in self.messages if (m.round, m.sender) == (MASKED, target)]
        if AGGREGATOR not in self.members:
            return None
        words = np.frombuffer(b"".join(sent), "<u8").view(np.int64).copy()
        sources, added, subtracted = [*self.played.case.tallies], [], []
        for other in sources:
            seed = self.seeds().get(frozenset({target, other}))
            if seed is None:
                continue
            pair = sorted((target, other), key=sources.index)
            (subtracted if target == pair[0] else added).append(stream_key(seed, CTX, *pair, b"cancel"))
            if other == S1:
                subtracted.append(stream_key(seed, CTX, *pair, b"cover"))
        Masks(added, subtracted, RING).add_to(words)
        # Every block begins with words that say 1.
        return words[CHECKS:] if (words[:CHECKS] == 1).all() else None


def view(played: Played, members: frozenset[Role]) -> View:
    return View(members, played, [m for m in played.case.sent if {m.sender, m.to} & members])


def by_name(members: frozenset[Role]) -> str:
    return "+".join(sorted(members))


@pytest.mark.parametrize("members", COALITIONS, ids=by_name)
def test_a_coalition_learns_the_noisy_sum_of_all_others_with_the_key_holder_and_else_nothing(play, members):
    seen = view(play(), members)
    rest = seen.rest()
    alone = seen.outside if {AGGREGATOR, S1} <= members and len(seen.outside) == 1 else []
    for target in seen.outside:
        found = seen.opened(target)
        assert (found is not None) == (target in alone)
        if found is not None:
            # No more than the totals say: its vector, with its noise.
            assert rest is not None
            assert found.tolist() == rest.tolist()
    if rest is not None and seen.outside:
        assert rest.tolist() == sum(seen.played.vector(role) for role in seen.outside).tolist()
        assert (rest != sum(seen.played.true(role) for role in seen.outside)).any()


def test_to_the_key_holder_the_others_may_have_changed_places(play):
    one = play()
    other = play((TABLES[0], TABLES[2], TABLES[1]), noise=(S1, S3, S2))
    assert one.vector(S2).tolist() == other.vector(S3).tolist() != other.vector(S2).tolist()
    assert one.totals.tolist() == other.totals.tolist()
    assert shape(one, S1) == shape(other, S1)


def shape(played: Played, *members: Role) -> list[tuple[str, str, int, int, bool]]:
    """Everything in a view but the bytes themselves, of each pair and round in order."""
    messages = view(played, frozenset(members)).messages
    return sorted((m.sender, m.to, m.round, len(m.body), m.last) for m in messages)


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_to_everybody_but_the_key_holder_all_data_look_the_same(play, mode):
    one, other = play(mode=mode), play(([], people(999, 2), people(1, 0)), mode=mode)
    for role in (S2, S3, AGGREGATOR):
        mine, theirs = shape(one, role), shape(other, role)
        if mode == "bfv":  # ciphertexts are packed with their own length, which depends on the encoding alone
            mine, theirs = ([(*each[:3], each[4]) for each in seen] for seen in (mine, theirs))
        assert mine == theirs


def test_to_the_aggregator_words_and_their_sums_look_random(play):
    # 256 values of 20 · 4 · 40 bytes. False alarm: 1e-6.
    runs = [play(noise=(f"{i}/1", f"{i}/2", f"{i}/3")) for i in range(20)]
    bodies = b"".join(
        m.body for run in runs for m in run.case.sent if AGGREGATOR in (m.sender, m.to) and m.round >= MASKED
    )
    counts = np.bincount(np.frombuffer(bodies, np.uint8), minlength=256)
    assert counts.sum() > 3000
    assert chisquare(counts).pvalue > 1e-6


def test_what_the_requester_sees_follows_from_the_noisy_totals_alone(play):
    one = play(rho="0.5", epsilon=None)
    again = content(plan(params_of(one.case.spec)), one.totals, OPEN.min_group_size or 0)
    assert np.array_equal(again.table.columns["value"], one.table, equal_nan=True)


@pytest.mark.parametrize("role", [S2, S3])
def test_the_requester_and_a_source_take_its_share_off_and_no_more(play, role):
    one = play()
    others = [other for other in SOURCES if other != role]
    shown = ~np.isnan(one.table)
    assert shown.sum() > 2
    left = (one.table - one.vector(role))[shown]
    assert left.tolist() == sum(one.vector(other) for other in others)[shown].tolist()


def test_the_key_holder_of_two_departments_learns_a_noisy_table_of_the_other(play):
    one = play(TABLES[:2], persons_in=1)
    rest = view(one, frozenset({S1})).rest()
    assert rest is not None
    assert rest.tolist() == one.vector(S2).tolist()
    # The other adds by itself what a department adds that publishes alone.
    (noise,) = plan(params_of(one.case.spec)).noises
    (alone,) = plan(params_of(release_spec("histogram", **{**MASKING, "mode": None}, epsilon="0.5"))).noises
    assert (noise.kind, noise.scale, noise.spread) == (alone.kind, alone.scale, alone.spread)
    assert (rest != one.true(S2)).any()


@dataclass
class Watched:
    """A party whose progress, which its node tells the coordinator, is written down."""

    party: Party
    told: list[Progress | None]

    def start(self) -> Step:
        return self._seen(self.party.start())

    def receive(self, message: Incoming) -> Step:
        return self._seen(self.party.receive(message))

    def _seen(self, step: Step) -> Step:
        self.told.append(step.progress if isinstance(step, Waiting) else None)
        return step


@pytest.mark.parametrize("mode", ["bfv", "mask"])
def test_to_the_relay_all_data_look_the_same(mode):
    def seen(*tables: list[Row]) -> tuple[object, object]:
        case = release_case(release_spec("histogram", 3, **{**MASKING, "mode": mode}), tables)
        told: dict[Role, list[Progress | None]] = {role: [] for role in case.parties}
        case.parties = {role: Watched(party, told[role]) for role, party in case.parties.items()}
        case.released()
        return told, [(m.sender, m.to, m.round, m.last) for m in case.sent]

    assert seen(*TABLES) == seen([], [], people(999, 2))


# the table says just that

SIZES = {"published-sizes"}
SHOWN = {
    frozenset({S1}): SIZES | {"noisy-totals"},
    frozenset({S2}): SIZES,
    frozenset({S3}): SIZES,
    frozenset({AGGREGATOR}): SIZES | {"masked-vectors"},
    frozenset({Role(REQUESTER)}): {"noisy-table"},
    frozenset({Role(COORDINATOR)}): SIZES | {"traffic"},
    frozenset({Role(REQUESTER), S2}): {"share-off"},
    frozenset({Role(REQUESTER), S3}): {"share-off"},
    frozenset({S1, S2}): {"less-noise"},
    frozenset({S1, S3}): {"less-noise"},
}
"""What the tests above establish, by coalition."""


def keys(spec) -> dict[frozenset[Role], set[str]]:
    return {members: {s.key for s in said} for members, said in RELEASE.learns(spec).items()}


def test_the_leakage_statement_is_what_these_tests_establish():
    assert keys(release_spec("histogram", 3)) == SHOWN
    of_two = {
        members: said for members, said in SHOWN.items() if S3 not in members and said != {"less-noise"}
    }
    assert keys(release_spec("histogram", 2)) == of_two
    assert keys(release_spec("histogram")) == {
        frozenset({S1}): SIZES | {"own-noise"},
        frozenset({Role(REQUESTER)}): {"noisy-table"},
        frozenset({Role(COORDINATOR)}): SIZES | {"traffic"},
    }


def test_the_statement_says_how_much_and_whom_it_takes_into_account():
    said = {s.key: s for each in RELEASE.learns(release_spec("count", 4, rho="0.2")).values() for s in each}
    assert "ρ = 0.2" in said["noisy-table"].en
    assert "4 row(s)" in said["noisy-table"].en
    assert "of which 3 are enough" in said["noisy-totals"].en
    assert "more than ρ = 0.2" in said["less-noise"].en
    spec = release_spec("count", 4, epsilon="1", colluding=1, persons_in=2, unit_rows=3)
    said = {s.key: s for each in RELEASE.learns(spec).values() for s in each}
    assert "6 row(s)" in said["noisy-table"].en
    assert "2 of the 4 departments" in said["noisy-table"].en
    assert "of which 2 are enough" in said["noisy-totals"].en
    assert "no more than ε = 1" in said["less-noise"].en
    for each in said.values():
        assert each.en
        assert any("\u4e00" <= letter <= "\u9fff" for letter in each.zh)
