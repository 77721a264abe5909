"""How long what a run was admitted under lasts: its policy, its purpose, and the roster.

An attempt is decided once; a session may stay open for days after. So before each record of one it is
compared with the earliest of these moments, which is computed again only where one of them is another.
"""

from collections.abc import Iterator
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from node.activation import InForce
from policies.calendar import first_moment
from policies.model import ActivePolicy
from protocols.errors import Refused
from protocols.succession import fresh_until
from protocols.wire import Freshness, Roster, utc_text

_Documents = tuple[ActivePolicy, Roster, Freshness | None]
_End = tuple[datetime, Refused]


class Lasting:
    """Tells whether the policy in force, a purpose and the roster still hold. One per run."""

    def __init__(self, force: InForce, purpose: str) -> None:
        """Compare with what is in force at each check."""
        self._force, self._purpose = force, purpose
        self._known: _Documents | None = None
        self._end: _End | None = None

    def check(self, now: datetime | None) -> None:
        """Refuse to go on once the first of them has ended.

        Args:
            now: the time, None where the clock cannot be trusted.

        Raises:
            Refused: `clock-untrusted`, `no-policy`, `policy-expired`, `purpose-ended`, `roster-expired`,
                `roster-stale`.
        """
        if now is None:
            raise Refused(
                "this node's clock cannot be trusted, so nothing that expires can be judged",
                code="clock-untrusted",
                hint="synchronise the clock and run minshu-node doctor; then submit the job again",
            )
        policy, roster, freshness = self._force.policy, self._force.roster, self._force.freshness
        if policy is None or roster is None:
            raise Refused("no policy or roster is in force", code="no-policy")
        documents = (policy, roster, freshness)
        if self._end is None or self._known is None or not _same(self._known, documents):
            self._end = min(self._ends(documents), key=lambda end: end[0])
            self._known = documents
        moment, why = self._end
        if now >= moment:
            raise why

    def _ends(self, documents: _Documents) -> Iterator[_End]:
        active, roster, freshness = documents
        policy = active.policy
        yield (
            policy.expires,
            Refused(
                f"the policy expired at {utc_text(policy.expires)}",
                code="policy-expired",
                hint="activate the policy's next version, then submit the job again",
            ),
        )
        zone = ZoneInfo(policy.timezone)
        last = policy.purposes[self._purpose].valid_until
        if last < policy.expires.astimezone(zone).date():
            # The last day counts whole, where the department is.
            after = datetime.combine(last + timedelta(days=1), time.min)
            yield (
                first_moment(after, zone),
                Refused(
                    f"the purpose was valid until {last.isoformat()}",
                    code="purpose-ended",
                    hint="have the purpose prolonged in a new policy version, then submit the job again",
                ),
            )
        yield (
            roster.expires,
            Refused(
                f"roster version {roster.version} expired at {utc_text(roster.expires)}",
                code="roster-expired",
                hint="the coordinator's operator drafts the next one, the root key holders sign it",
            ),
        )
        until = fresh_until(roster, freshness)
        yield (
            until,
            Refused(
                f"roster version {roster.version} was fresh until {utc_text(until)}, nobody has confirmed"
                " since that it is the newest",
                code="roster-stale",
                hint="the owner of a freshness key signs a statement: minshu-coordinator roster freshen",
            ),
        )


def _same(known: _Documents, documents: _Documents) -> bool:
    # By identity: what is in force is replaced whole, and comparing texts would take longer than deciding.
    return all(a is b for a, b in zip(known, documents, strict=True))
