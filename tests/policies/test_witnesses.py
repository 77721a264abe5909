"""Who must have seen what a node did: whose nodes count, how many it takes, and what that is worth."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import msgspec
import pytest

from policies.decide import decide
from policies.decision import Refuse
from policies.model import ActivePolicy, Policy, Witnessing
from policies.witnesses import Witnesses, default_quorum, tolerated, witnesses_of
from protocols.ids import NodeName, Organisation
from protocols.wire import Roster

OWN = "human-resources"


def watched_by(world: Any, *nodes: str) -> Roster:
    """Return a roster on which these nodes, and no others, have witness keys."""
    node = world.roster.nodes[0]
    mute = (replace(known, witness_vkeys=()) for known in world.roster.nodes)
    return replace(world.roster, nodes=(*mute, *(replace(node, name=NodeName(name)) for name in nodes)))


def policy(world: Any, **clause: Any) -> Policy:
    return msgspec.structs.replace(
        world.active(OWN).policy, witnesses=Witnessing(**clause) if clause else None
    )


def counted(world: Any, roster: Roster, **clause: Any) -> Witnesses:
    return witnesses_of(policy(world, **clause), roster, Organisation(f"{OWN}.gz.example"))


def test_every_other_organisation_with_witness_keys_counts_unless_the_policy_lists_some(world: Any):
    everybody = counted(world, world.roster)
    assert everybody.organisations == {node.name.split("/")[0] for node in world.roster.nodes} - {
        f"{OWN}.gz.example"
    }
    assert {name: world.roster.node(name).witness_vkeys for name in everybody.nodes} == everybody.nodes
    assert (len(everybody.nodes), everybody.quorum, everybody.possible, everybody.code) == (6, 5, True, "")
    listed = ("police.gz.example", "tax.gz.example", "health.gz.example")
    some = counted(world, world.roster, organisations=listed)
    # The roster knows no node of the tax office.
    assert some.organisations == {"police.gz.example", "health.gz.example"}
    assert (some.quorum, some.possible) == (2, True)
    assert witnesses_of(None, world.roster, Organisation("data-bureau.gz.example")).quorum == 5


def test_nobody_is_a_witness_of_its_own_doings_nor_is_a_part_of_it(world: Any):
    roster = watched_by(
        world,
        f"{OWN}.gz.example/node-b",
        f"lab.{OWN}.gz.example/node-a",
        "gz.example/node-a",
        "x.example/node-a",
    )
    assert counted(world, roster).nodes.keys() == {"x.example/node-a"}


def test_a_house_has_one_vote_however_many_nodes_and_parts_it_has(world: Any):
    roster = watched_by(
        world,
        "police.example/node-a",
        "police.example/node-b",
        "lab.police.example/node-a",
        "xpolice.example/node-a",
    )
    found = counted(world, roster)
    assert found.organisations == {"police.example", "xpolice.example"}
    assert found.nodes.keys() == {"police.example/node-a", "police.example/node-b", "xpolice.example/node-a"}
    # Where the policy lists the part, that one has the vote.
    part = counted(world, roster, organisations=("lab.police.example",))
    assert part.nodes.keys() == {"lab.police.example/node-a"}


@pytest.mark.parametrize(
    ("there", "quorum", "possible"),
    [(0, 0, False), (1, 0, True), (5, 0, True), (3, 4, False), (4, 4, True), (7, 4, True), (8, 4, False),
     (2, 1, False)],
)  # fmt: skip
def test_a_quorum_that_cannot_be_reached_or_that_two_could_share_nobody_of_is_refused(
    world: Any, there: int, quorum: int, possible: bool
):
    roster = watched_by(world, *(f"o{number}.example/node" for number in range(there)))
    clause = {"quorum": quorum} if quorum else {}
    found = counted(world, roster, **clause)
    assert found.possible is possible
    assert found.code == ("" if possible else "no-quorum-possible")
    spec = world.spec(roster_digest=roster.digest)
    active = ActivePolicy(policy(world, **clause), world.active(OWN).digest)
    decision = decide(active, spec, node=world.node(OWN), roster=roster, now=world.now)
    if possible:
        assert decision.code == "approval-needed"
        return
    assert isinstance(decision, Refuse)
    assert decision.code == "no-quorum-possible"
    why = "no quorum can be reached" if there < (quorum or 1) else "two such groups need share nobody"
    assert f"{there} can witness" in decision.sentence
    assert why in decision.sentence
    assert f"{there} 家" in decision.zh
    assert "witness keys" in decision.hint
    assert "见证" in decision.hint_zh


def test_where_nothing_waits_for_witnesses_nobody_needs_any(world: Any):
    nobody = watched_by(world)
    for answer, expected in (("checkpoint", "permitted"), ("cosigned", "no-quorum-possible")):
        plain = world.active("statistics").policy
        defaults = msgspec.structs.replace(plain.defaults, release_requires=answer)
        active = ActivePolicy(
            msgspec.structs.replace(plain, defaults=defaults), world.active("statistics").digest
        )
        spec = world.spec(roster_digest=nobody.digest)
        assert (
            decide(active, spec, node=world.node("statistics"), roster=nobody, now=world.now).code == expected
        )


def forks(quorum: int, organisations: int) -> Iterator[int]:
    """Yield how many liars it takes for each two quorums to cosign two histories: all whom they share."""
    everybody = range(organisations)
    for one, other in product(combinations(everybody, quorum), repeat=2):
        yield len(set(one) & set(other))


@pytest.mark.parametrize("organisations", range(1, 8))
def test_no_fork_is_cosigned_while_fewer_lie_than_two_quorums_share(organisations: int):
    for quorum in range(1, organisations + 1):
        fewest = min(forks(quorum, organisations))
        assert fewest == max(0, 2 * quorum - organisations)
        assert tolerated(quorum, organisations) == max(0, fewest - 1)
        found = Witnesses({}, frozenset(Organisation(f"o{n}") for n in range(organisations)), quorum)
        assert found.possible is (fewest > 0)
        assert found.tolerated == max(0, fewest - 1)


@pytest.mark.parametrize("organisations", range(1, 65))
def test_by_default_a_third_may_lie_and_a_third_may_be_away(organisations: int):
    quorum, third = default_quorum(organisations), (organisations - 1) // 3
    assert quorum == organisations - third
    assert tolerated(quorum, organisations) >= third
    assert 3 * quorum > 2 * organisations
