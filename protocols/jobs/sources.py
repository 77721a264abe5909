"""What job types have in common that count what sources have: who gives what, by which rules."""

from collections.abc import Collection, Mapping, Sequence

from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import REQUESTER, Separation
from protocols.wire import InputSummary, JobSpec, organisation_of


def check_sources(
    spec: JobSpec, owners: Collection[Role], required: Collection[str], known: Collection[str]
) -> None:
    """Check inputs, organisations and recipients of a spec whose requester receives one table.

    (1) Each source brings one dataset with the slots it needs; nobody else brings any. (2) One organisation
    is one source. (3) Nobody but the requester receives the table.

    Raises:
        InputError: what is wrong, what was expected, what to do.
    """
    # (1)
    if sorted(given.role for given in spec.inputs) != sorted(owners):
        raise InputError(
            f"{len(spec.inputs)} inputs, expected one each of {', '.join(owners)}",
            code="bad-inputs",
            hint="give every source one dataset; the aggregator brings none",
        )
    for given in spec.inputs:
        if not set(required) <= set(given.columns) <= set(known):
            raise InputError(
                f"the input of {given.role} has {len(given.columns)} column slot(s), expected "
                f"{', '.join(sorted(required)) or 'none'} and no others than {', '.join(sorted(known))}",
                code="bad-inputs",
                hint="map each slot of the params to a column of the dataset",
            )
    # (2)
    if len({organisation_of(spec.roles[role]) for role in owners}) != len(owners):
        raise InputError(
            "one organisation is two sources, but sources count as organisations, each with its own noise",
            code="one-source-each",
            hint="let each organisation take one role",
        )
    if REQUESTER in {organisation_of(node) for node in spec.roles.values()}:
        raise InputError(
            f"an organisation bears the reserved name {REQUESTER}",
            code="reserved-name",
            hint="enrol the organisation under another name",
        )
    # (3)
    if spec.recipients:
        raise InputError(
            f"{len(spec.recipients)} recipient(s), expected none: the table goes to the requester",
            code="bad-recipients",
            hint="leave recipients empty",
        )


def check_summaries(inputs: Mapping[Role, InputSummary], owners: Collection[Role]) -> None:
    """Check that there is a summary of every dataset and of nothing else, all made by the same rules.

    Raises:
        ProtocolAborted: `guard-inputs`, `guard-rules`.
    """
    if set(inputs) != set(owners):
        raise ProtocolAborted(
            f"{len(inputs)} input summaries, expected one of each source", code="guard-inputs"
        )
    if len({summary.rule_version for summary in inputs.values()}) != 1:
        raise ProtocolAborted(
            "the datasets were counted by different rules, so equal rows may count differently",
            code="guard-rules",
            hint="bring all nodes to one version and name the same area table",
        )


def one_each(owners: Sequence[Organisation], why: str) -> list[Separation]:
    """Return that every two of these must be different organisations."""
    return [
        Separation(why, frozenset({owner}), frozenset((*owners[:place], *owners[place + 1 :])))
        for place, owner in enumerate(owners)
    ]
