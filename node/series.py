"""Series of days at a node: what its shelf lets go on, and what goes when its days are over.

Keys and tagged lists stay on the shelf of their job type from day to day. How old they are is judged by this
node's own clock, before a day is admitted, again by the party, and whenever retention looks. Retention does
not ask whether that clock agrees with the coordinator's: by what it says, nobody keeps keys alive.
"""

from collections.abc import Callable
from datetime import datetime

from node.home import Home
from node.logs import Log
from node.shelf import shelf_of
from node.state import State
from policies.model import ActivePolicy
from protocols.errors import MinshuError
from protocols.ids import JobId, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import Serial
from protocols.wire import JobSpec


def check_kept(home: Home, spec: JobSpec, role: Role, *, now: datetime, most_days: int | None) -> None:
    """Check before admission that the shelf here lets a day of a series go on; of other jobs, nothing.

    Raises:
        StateConflict: `series-lost`, `series-other`, `series-day`; `shelf-unreadable`.
        Refused: `series-over`.
    """
    asked = job_type(spec.job_type)
    if isinstance(asked, Serial):
        asked.check_kept(spec, role, shelf=shelf_of(home, asked.name), now=now, most_days=most_days)


def lies_here(home: Home) -> bool:
    """Whether anything of a series is on a shelf here.

    Raises:
        StateConflict: `shelf-unreadable`.
    """
    return any(shelf_of(home, kind.name).names() for kind in JOB_TYPES if isinstance(kind, Serial))


def committed(state: State) -> Callable[[JobId], bool]:
    """Return what tells whether this node committed what it releases of a job: then its readers were told."""
    return lambda job: bool(state.outputs(job))


def delete_over(state: State, home: Home, active: ActivePolicy | None, now: datetime, log: Log) -> None:
    """Drop series whose days are over, as agreed when they began or by the policy in force.

    All of a type go that no rule allows any more, or where no policy is in force. What cannot be deleted now
    is logged, and due again at the next look; no party uses it meanwhile.

    Args:
        state: whose journal holds the newest time that this node has known: a clock set back revives nothing.
        home: where the shelves are.
        active: the policy in force.
        now: by this machine's clock, whatever others say of it.
        log: for what cannot be deleted.
    """
    try:
        now = max(now, state.newest_time() or now)
        gone = sum(
            kind.drop_over(shelf_of(home, kind.name), now=now, most_days=_most_days(active, kind.name))
            for kind in JOB_TYPES
            if isinstance(kind, Serial)
        )
        if gone:
            with state.change() as change:
                change.log("deletion.receipt", {"what": "shelf", "count": gone})
    except MinshuError as error:
        log.failure(error.code, sentence=error.message)


def _most_days(active: ActivePolicy | None, name: str) -> int | None:
    """Return how many days the most generous rule lets a series of a job type have; None: none does."""
    rules = () if active is None else active.policy.rules
    days = (rule.max_series_days for rule in rules if name in rule.job_types)
    return max((each for each in days if each is not None), default=None)
