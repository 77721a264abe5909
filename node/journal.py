"""This node's journal: `audit.log.Journal` under the node's name and key, and the words its entries use."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from audit.log import Journal
from audit.statements import job_facts, named, names, policy_ref

if TYPE_CHECKING:
    from node.home import Home

__all__ = ["job_facts", "named", "names", "open_journal", "policy_ref"]


def open_journal(home: "Home", now: Callable[[], datetime]) -> Journal:
    """Open the node's journal, which is also the lock on its home.

    A change of the identity key that a crash cut short is finished: the journal says which key signs.

    Raises:
        StateConflict: another process has it open, or what is stored contradicts itself.
        InputError: a key cannot be read, or not put in its place.
    """
    signer, following = home.signer, home.next_signer()
    journal = Journal.open(
        home.journal,
        database=home.database,
        origin=home.origin,
        signer=signer.sign,
        public_key=signer.public_key,
        now=now,
        next_signer=following,
    )
    if following is not None and journal.public_key == following.public_key:
        try:
            home.adopt_next_identity()
        except BaseException:
            journal.close()
            raise
    return journal
