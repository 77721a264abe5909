"""Who must have seen what a node did before anything leaves it: trust §5, where a policy says `cosigned`.

A witness keeps the newest checkpoint of a log that it cosigned and cosigns nothing that contradicts it, so a
history that was shown to a quorum cannot be replaced by another one before the next quorum: of w witness
organisations, two quorums of q have at least 2q - w in common, and one honest one among these is enough.
Therefore 2q > w, and fewer than 2q - w dishonest organisations are tolerated.

That holds between quorums of one set. Where policy or roster change the set, a quorum of the set before and
one of the set after need not have anybody in common; so the change itself has to be seen by both: joint
consensus (Ongaro and Ousterhout 2014, "In search of an understandable consensus algorithm", section 6).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from policies.index import Derived
from policies.matching import one_house
from policies.model import Policy
from protocols.ids import NodeName, Organisation
from protocols.wire import Roster, organisation_of


@dataclass(frozen=True, slots=True)
class Witnesses:
    """Whose cosignatures one log needs.

    Attributes:
        nodes: those that are asked, with their verifier key lines; all of other organisations.
        organisations: whose nodes they are. Each has one vote, however many nodes it runs.
        quorum: how many votes it takes.
    """

    nodes: Mapping[NodeName, tuple[str, ...]]
    organisations: frozenset[Organisation]
    quorum: int

    @property
    def possible(self) -> bool:
        """Whether a quorum can be reached, and any two have an organisation in common: w/2 < q ≤ w."""
        return self.quorum <= len(self.organisations) < 2 * self.quorum

    @property
    def code(self) -> str:
        """`no-quorum-possible` where it is not possible, else empty."""
        return "" if self.possible else "no-quorum-possible"

    @property
    def tolerated(self) -> int:
        """How many dishonest organisations cannot make a quorum cosign two histories; 0 where none can be."""
        return tolerated(self.quorum, len(self.organisations)) if self.possible else 0

    def left(self, roster: Roster) -> "Witnesses":
        """Return what a set that counted before can still say: of those on a later roster, as many as needed.

        The quorum is at most the number of those left, and at least 1, which nobody reaches if none is left.
        """
        nodes = {node.name: node.witness_vkeys for node in roster.nodes if node.witness_vkeys}
        there = {name: vkeys for name, vkeys in nodes.items() if organisation_of(name) in self.organisations}
        houses = frozenset(map(organisation_of, there))
        return replace(self, nodes=there, organisations=houses, quorum=max(1, min(self.quorum, len(houses))))

    def counts_like(self, other: "Witnesses") -> bool:
        """Tell whether the same organisations count, and as many are needed."""
        return (self.organisations, self.quorum) == (other.organisations, other.quorum)


def others(roster: Roster, own: Organisation) -> dict[NodeName, tuple[str, ...]]:
    """Return the nodes with witness keys of all other organisations: who is shown a log, counted or not."""
    return {
        node.name: node.witness_vkeys
        for node in roster.nodes
        if node.witness_vkeys and not one_house(organisation_of(node.name), own)
    }


def witnesses_of(policy: Policy | None, roster: Roster, own: Organisation) -> Witnesses:
    """Return who witnesses a log, as far as policy and roster say so.

    Every organisation counts whose nodes the roster lists with witness keys, or of these only those that the
    policy lists; never the log's own, nor one that is a part of it or that it is a part of. Of an
    organisation and a part of it, the whole has the vote. The quorum is the policy's, or `default_quorum`.

    Args:
        policy: the log's, None for the coordinator's log, or where no policy is in force.
        roster: the one in force.
        own: whose log it is.
    """
    clause = None if policy is None else policy.witnesses
    listed = None if clause is None or not clause.organisations else frozenset(clause.organisations)
    given = others(roster, own)
    there = {house for house in map(organisation_of, given) if listed is None or house in listed}
    whole = frozenset(
        house for house in there if not any(house != other and house.endswith(f".{other}") for other in there)
    )
    quorum = default_quorum(len(whole)) if clause is None or clause.quorum is None else clause.quorum
    return Witnesses(
        {name: vkeys for name, vkeys in given.items() if organisation_of(name) in whole}, whole, quorum
    )


def default_quorum(organisations: int) -> int:
    """Return q = w - f for w witness organisations, of which f = ⌊(w - 1)/3⌋ may be dishonest or away.

    Two quorums have w - 2f > f organisations in common, as in every quorum system that withstands f arbitrary
    faults (Malkhi and Reiter 1998, "Byzantine quorum systems"); and f may be silent without halting anything.
    Without witnesses it is 1, which nobody can reach.
    """
    return organisations - (organisations - 1) // 3


def tolerated(quorum: int, organisations: int) -> int:
    """Return how many dishonest organisations of w cannot make two quorums of q cosign two histories."""
    return max(0, 2 * quorum - organisations - 1)


def _of_node(policy: Policy, roster: Roster) -> Witnesses:
    return witnesses_of(policy, roster, organisation_of(NodeName(policy.policy_id)))


witnesses_of_node = Derived(_of_node, keep=8)
"""The witnesses of the node that a policy is written for."""
