"""What this node writes into its journal: a thin layer over `audit.log.Journal` that knows jobs and policies.

Texts that a requester chose (a purpose, a column) go in as they are if they can be a name, else as their
digest, so that no offer can keep its own refusal from being recorded.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from audit.entries import MAX_LIST, NAME, PolicyRef, format_time
from audit.log import Journal
from protocols.encoding import sha256_digest
from protocols.ids import Role
from protocols.wire import JobSpec, organisation_of

if TYPE_CHECKING:
    from node.home import Home
    from policies.model import ActivePolicy


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


def named(text: str) -> str:
    """Return `text` if a journal may carry it as a name, else its digest."""
    return text if NAME.accepts(text) else sha256_digest(text.encode("utf-8", "surrogatepass"))


def names(texts: Iterable[str]) -> list[str]:
    """Return what `named` makes of the first texts, as many as a list may hold."""
    return [named(text) for text in texts][:MAX_LIST]


def policy_ref(active: "ActivePolicy | None", rule: str = "") -> PolicyRef | None:
    """Return what an entry says of the policy that decided."""
    if active is None:
        return None
    return PolicyRef(active.policy.version, active.digest, rule if NAME.accepts(rule) else "")


def job_facts(spec: JobSpec, role: Role | None) -> dict[str, Any]:
    """Return what an entry says of a job: who asks what of whom, for which purpose; no parameter."""
    facts: dict[str, Any] = {
        "requester": spec.requester,
        "job_type": spec.job_type,
        "purpose": named(spec.purpose),
        "legal_basis": named(spec.legal_basis),
        "collaboration": named(spec.collaboration),
        "roster_sha256": spec.roster_digest,
        "recipients": names(spec.recipients),
        "participants": names(sorted({organisation_of(node) for node in spec.roles.values()})),
        "created": format_time(spec.created),
        "expires": format_time(spec.expires),
    }
    if role is not None:
        facts["role"] = named(role)
        brings = spec.input_of(role)
        if brings is not None:
            facts["datasets"] = [named(brings.dataset)]
            facts["columns"] = names(sorted(brings.columns.values()))
    return facts
