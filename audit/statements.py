"""What a node's entries say of jobs, policies and budgets, as it follows from the documents alone.

A node writes exactly this and an auditor expects exactly this, to the last digit. Texts that a requester
chose (a purpose, a column) go in as they are if they can be a name, else as their digest, so that no offer
can keep its own refusal from being recorded.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from audit.entries import FIELDS, KINDS_BY_VERSION, MAX_LIST, NAME, VERSION, PolicyRef, format_time
from policies.history import partners_of
from protocols.dp.cost import UNIT, Cost, decimal_up
from protocols.encoding import sha256_digest
from protocols.ids import Role
from protocols.jobs import job_type
from protocols.jobs.job_type import Serial
from protocols.wire import CostLine, JobSpec, ReleaseNote, organisation_of

if TYPE_CHECKING:
    from policies.history import Past
    from policies.model import ActivePolicy, Stop

_CUT: Final = frozenset({"created", "expires", "not_after"})
"""Times that a signed document cuts to whole seconds, where the entry of whoever wrote it need not."""

_SECONDS: Final = len("2026-12-01T08:00:00")


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


def series_facts(spec: JobSpec) -> dict[str, Any]:
    """Return what `job.admitted` says of a day of a series; of other jobs, nothing."""
    asked = job_type(spec.job_type)
    return {"first": asked.first(spec), "day": asked.day(spec)} if isinstance(asked, Serial) else {}


def cost_facts(cost: Cost) -> dict[str, Any]:
    """Return what an entry says of a whole cost; parts that are nothing are left out."""
    facts: dict[str, Any] = {"records": cost.rows, "queries": cost.queries}
    if cost.private_loss:
        facts["rho"] = decimal_up(cost.rho, 15)
        facts["delta"] = decimal_up(Fraction(cost.delta, UNIT), 15)
    return {key: value for key, value in facts.items() if value}


def published(kind: str, key: str, value: Any, v: int = VERSION) -> bool:
    """Return whether an entry of this kind and version may say so; what a requester wrote may not fit."""
    about = KINDS_BY_VERSION[v][kind]
    return key in about.required | about.optional and FIELDS[key].accepts(value)


def agrees(key: str, said: Any, follows: Any) -> bool:
    """Return whether an entry says of `key` what follows from a signed document."""
    if key in _CUT and isinstance(said, str) and isinstance(follows, str):
        return said[:_SECONDS] == follows[:_SECONDS]
    return bool(said == follows)


def stop_facts(stop: "Stop", digest: str) -> dict[str, Any]:
    """Return what an entry says of one halt; a subject that is no name goes in as its digest."""
    subject = {} if stop.value is None else {"subject": named(stop.value)}
    return {"scope": stop.scope, "sha256": digest, **subject}


def accepted_facts(spec: JobSpec, role: Role, cost: Cost) -> dict[str, Any]:
    """Return what `job.accepted` says of a job and of the most that this attempt may cost.

    `partners` are as the ledger has them, or left out where one of them is no name for a journal.
    """
    said = {**job_facts(spec, role), **cost_facts(cost)}
    if spec.input_of(role) is not None:
        said["partners"] = list(partners_of(spec, role))
    return {key: value for key, value in said.items() if published("job.accepted", key, value)}


def budget_facts(kind: str, past: "Past", line: CostLine, code: str = "") -> dict[str, Any]:
    """Return the body of a `budget.*` entry: what one attempt is to one budget or quota.

    Args:
        kind: `budget.reserved`, `budget.charged` or `budget.released`.
        past: the attempt, at its cost as it now is.
        line: what that is to the budget.
        code: why it was released.
    """
    body: dict[str, Any] = {
        "notion": line.notion,
        "limit": line.limit,
        "spent": decimal_up(Fraction(line.limit) - Fraction(line.remaining)),
        "not_after": format_time(line.until),
        "dataset": past.source,
        "unit": past.unit,
        "requester": past.requester,
        "purpose": past.purpose,
        **cost_facts(past.cost),
        **({"code": code} if code else {}),
    }
    known = {key: value for key, value in body.items() if published(kind, key, value)}
    return {"budget": line.budget, "cost": line.cost, **known}


def returned_facts(past: "Past", before: CostLine, after: CostLine) -> dict[str, Any] | None:
    """Return the body of a `budget.returned` entry: what an attempt in rounds is to one limit at its end.

    None where the limit gets nothing back.

    Args:
        past: the attempt, at its cost as it now is.
        before: what it was charged as.
        after: what its rounds are.
    """
    back = Fraction(before.cost) - Fraction(after.cost)
    if not back:
        return None
    return {**budget_facts("budget.returned", past, after), "returned": decimal_up(back)}


def release_facts(note: ReleaseNote, role: Role) -> Mapping[str, Any]:
    """Return what `output.commit` says of a release that its note says as well."""
    return {
        "release": note.release,
        "class": note.output_class,
        "sha256": note.sha256,
        "content_sha256": note.content_sha256,
        "recipient": note.recipient,
        "role": role,
        "expires": format_time(note.expires),
    }
