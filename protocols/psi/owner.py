"""A list owner of several: its list is tagged, others' lists pass here, and then its answer goes out."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from protocols.ids import Role
from protocols.party import Finished, Incoming, Outgoing, Progress, Rand, Step, Waiting
from protocols.psi.streams import unexpected
from protocols.psi.tagging import Plan, Tagged, Tagging, is_tagging


class ListOwner:
    """A list owner as holder and perhaps as key-holder. Its output is `()`."""

    def __init__(
        self,
        plan: Plan,
        role: Role,
        keys: npt.NDArray[np.bytes_],
        rand: Rand,
        *,
        stand_in: bytes,
        answer: Callable[[Tagged], Iterable[Outgoing]],
    ) -> None:
        """Take a list of distinct typed keys, in any order.

        Args:
            plan: who tags what, from `plan_of`.
            role: whose list it is.
            keys: distinct typed keys.
            rand: draws scalars and orders.
            stand_in: what the key that stands for a list begins with; no typed key does.
            answer: what goes out once the list is tagged; the stand-in is its last key. From its first
                message on, others could make an answer out of this list.

        Raises:
            ProtocolAborted: `count-changed`, the list does not have the admitted number of keys.
        """
        # A list without a key has no points to send around; with this one, every list has some.
        last = np.array([stand_in + role.encode()])
        self._tagging = Tagging(plan, role, np.concatenate([keys, last]), rand)
        self._answer: Callable[[Tagged], Iterable[Outgoing]] | None = answer

    def start(self) -> Step:
        """Return the first window of blinded points."""
        return Waiting(self._tagging.start(), self._progress())

    def _progress(self) -> Progress:
        return Progress("tagging", self._tagging.done, self._tagging.total)

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message; once the own list is tagged, the answer goes out.

        Raises:
            ProtocolAborted: a message that is not due, or not what it has to be.
        """
        if not is_tagging(message.round):
            raise unexpected(message)
        outgoing = self._tagging.receive(message)
        tagged, answer, answering = self._tagging.tagged, self._answer, False
        if tagged is not None and answer is not None:
            self._answer, answering = None, True
            outgoing = chain(outgoing, answer(tagged))
        if self._answer is None and not self._tagging.serving:
            return Finished(outgoing, ())
        return Waiting(outgoing, self._progress(), answering=answering)


def plan_of(owners: Sequence[Role], key_holders: Sequence[Role], counts: Sequence[int], ctx: bytes) -> Plan:
    """Return who tags what: every list has one more key than was admitted, which stands for the list.

    Args:
        owners: who brings a list, at most six.
        key_holders: two of them.
        counts: distinct keys of each list, as admitted.
        ctx: 32 bytes.
    """
    return Plan(tuple(owners), tuple(key_holders), tuple(count + 1 for count in counts), ctx)
