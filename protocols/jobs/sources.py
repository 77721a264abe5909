"""What job types have in common that count what sources have: who gives what, by which rules."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import AGGREGATOR, REQUESTER, ColumnNeed, Separation, Statement, source
from protocols.statistics.cross_table import MAX_MINIMUM
from protocols.statistics.suppress import MIN_GROUP
from protocols.sums.plan import MAX_SOURCES
from protocols.tables.layout import Reader, bad
from protocols.tables.tally import LATEST
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, organisation_of

MAX_KEYS: Final = 1 << 27
"""Most distinct keys of a list: some 130 million, more than any province has people."""

_LIST_SIZE_PARTS: Final = 50
"""A list may differ from its catalogue by one part in so many: 2 %."""

RECENT: Final = ColumnNeed(LATEST, "filter", ("date", "month", "int"), required=False)
"""Which of a person's rows count first; a source may leave it out."""

TABLE_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, how far each node is, which guard "
    "failed if one did, and how large the sealed table is; number and size of frames follow from the job "
    "alone",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度、触发了哪项保护阈值、统计表密文的大小; "
    "帧的数量和大小仅取决于任务本身",
)
"""What passes the coordinator while several departments make a table of counts and sums."""

TABLE_NEUTRAL: Final = (
    "nothing new while masks hold; apart, nobody who has an interest in the table has the others' ciphertexts"
)
"""What the aggregator of such a table would learn that is also a source or a recipient."""


def sources_of(spec: JobSpec) -> tuple[Role, ...]:
    """Return the sources in order: one alone, or several with an aggregator.

    Raises:
        InputError: `bad-roles`.
    """
    owners = tuple(source(i + 1) for i in range(max(len(spec.roles) - 1, 1)))
    if set(spec.roles) != {*owners, *((AGGREGATOR,) if len(owners) > 1 else ())} or len(owners) > MAX_SOURCES:
        raise InputError(
            f"{len(spec.roles)} roles, expected source-1 alone, or source-1 to source-n and an aggregator",
            code="bad-roles",
            hint=f"number 1 to {MAX_SOURCES} departments without gaps; two or more need an aggregator",
        )
    return owners


def kinds_of(role: Role, key_holders: Collection[Role | None]) -> frozenset[str]:
    """Return the policy role names of a seat: some sources are key-holders, too; what is none has its own."""
    if not role.startswith("source-"):
        return frozenset({str(role)})
    return frozenset({"source", "key-holder"} if role in key_holders else {"source"})


def read_key_holders(reader: Reader, owners: Sequence[Role]) -> tuple[Role, Role]:
    """Read `key_holders`, two different sources; the first two where it is left out.

    Raises:
        InputError: `bad-params`.
    """
    if not reader.has("key_holders"):
        return owners[0], owners[1]
    named = tuple(map(Role, reader.texts("key_holders", 2)))
    if len(named) != 2 or not set(named) <= set(owners):
        raise bad(
            "params.key_holders does not name two sources of this job",
            'write key_holders = ["source-1", "source-2"], or leave it out',
        )
    return named[0], named[1]


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
    check_given(spec, owners)
    for given in spec.inputs:
        check_columns(given, required, known)
    # (2)
    if len({organisation_of(spec.roles[role]) for role in owners}) != len(owners):
        raise InputError(
            "one organisation is two sources, but sources count as organisations, each with its own noise",
            code="one-source-each",
            hint="let each organisation take one role",
        )
    check_names(spec)
    # (3)
    check_no_recipients(spec)


def check_given(spec: JobSpec, owners: Collection[Role]) -> None:
    """Check that each source brings one dataset, and nobody else any.

    Raises:
        InputError: `bad-inputs`.
    """
    if sorted(given.role for given in spec.inputs) != sorted(owners):
        raise InputError(
            f"{len(spec.inputs)} inputs, expected one each of {', '.join(owners)}",
            code="bad-inputs",
            hint="give every source one dataset; no other role brings any",
        )


def check_no_recipients(spec: JobSpec) -> None:
    """Check that nobody but the requester receives the table.

    Raises:
        InputError: `bad-recipients`.
    """
    if spec.recipients:
        raise InputError(
            f"{len(spec.recipients)} recipient(s), expected none: the table goes to the requester",
            code="bad-recipients",
            hint="leave recipients empty",
        )


def check_columns(given: JobInput, required: Collection[str], known: Collection[str]) -> None:
    """Check that an input maps every slot that is required, and none that is not known.

    Raises:
        InputError: `bad-inputs`.
    """
    if not set(required) <= set(given.columns) <= set(known):
        raise InputError(
            f"the input of {given.role} has {len(given.columns)} column slot(s), "
            f"expected {', '.join(sorted(required)) or 'none'} and no others than {', '.join(sorted(known))}",
            code="bad-inputs",
            hint="map each slot to a column of the dataset",
        )


def check_names(spec: JobSpec) -> None:
    """Check that no organisation bears the name that stands for the requester's.

    Raises:
        InputError: `reserved-name`.
    """
    if REQUESTER in {organisation_of(node) for node in spec.roles.values()}:
        raise InputError(
            f"an organisation bears the reserved name {REQUESTER}",
            code="reserved-name",
            hint="enrol the organisation under another name",
        )


def check_recipient(spec: JobSpec, recipient: Organisation, whose: str) -> None:
    """Check that records go to one organisation alone; `whose` is its role, for the error.

    Raises:
        InputError: `bad-recipients`.
    """
    if spec.recipients != (recipient,):
        raise InputError(
            f"{len(spec.recipients)} recipient(s) that are not exactly the {whose}'s organisation",
            code="bad-recipients",
            hint=f"name the {whose}'s organisation as the only recipient",
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


def check_sizes(inputs: Mapping[Role, InputSummary]) -> None:
    """Check that the stated sizes are those a list can have, before anything is set aside for so many keys.

    For job types whose admissions state sizes; of others they are the catalogue's, and rounded.

    Raises:
        ProtocolAborted: `guard-sizes`.
    """
    if any(not summary.distinct_keys <= min(summary.rows, MAX_KEYS) for summary in inputs.values()):
        raise ProtocolAborted(
            f"a list is said to have more distinct keys than rows, or than {MAX_KEYS}",
            code="guard-sizes",
            hint="ask the department whose admission says so; its software may be broken",
        )


def check_catalogue(summary: InputSummary, whose: str) -> None:
    """Check that the list by which records are selected is as long as its catalogue says, to 2 %.

    Args:
        summary: of the list.
        whose: its role, for the error.

    Raises:
        ProtocolAborted: `guard-list-size`.
    """
    if abs(summary.distinct_keys - summary.catalogue_keys) * _LIST_SIZE_PARTS > summary.catalogue_keys:
        raise ProtocolAborted(
            f"the {whose}'s list is not within {100 // _LIST_SIZE_PARTS} % of its catalogue",
            code="guard-list-size",
            hint="refresh the catalogue, or find out why the list differs from it",
        )


def check_enough(
    constraints: Constraints, *, organisations: int, sources: int, more: str, without: str
) -> None:
    """Check that enough organisations give data, and that a person counts from enough of them on.

    Args:
        constraints: the strictest limits of all rules.
        organisations: how many give data.
        sources: in how many of them a person has to be at least, to count.
        more: what to do where organisations are too few.
        without: what to do where sources are.

    Raises:
        ProtocolAborted: `guard-organisations`, `guard-sources`.
    """
    if constraints.min_organisations is not None and organisations < constraints.min_organisations:
        raise ProtocolAborted(
            f"{organisations} organisation(s) give data, a participant asks for "
            f"{constraints.min_organisations}",
            code="guard-organisations",
            hint=more,
        )
    if constraints.min_sources is not None and sources < constraints.min_sources:
        raise ProtocolAborted(
            f"a person counts from {sources} source(s) on, a participant asks for {constraints.min_sources}",
            code="guard-sources",
            hint=without,
        )


def minimum_of(limits: Constraints) -> int:
    """Return how many persons a published cell has at the least: the strictest participant's, 1 or more."""
    return min(MIN_GROUP if limits.min_group_size is None else max(limits.min_group_size, 1), MAX_MINIMUM)


def seats_apart(
    spec: JobSpec, owners: Sequence[Role], outside: Collection[Organisation], *, neutral: str, each: str
) -> list[Separation]:
    """Return what holds of the seats of several sources, nothing for one alone.

    The aggregator is none of the sources, and nobody who receives the table; every two sources are different.

    Args:
        spec: the job.
        owners: its sources.
        outside: requester and recipients.
        neutral: what the aggregator would learn that is one of them.
        each: what an organisation would learn that is two sources.
    """
    if len(owners) == 1:
        return []
    aggregator = frozenset({organisation_of(spec.roles[AGGREGATOR])})
    names = [organisation_of(spec.roles[role]) for role in owners]
    return [
        Separation(neutral, aggregator, frozenset(names)),
        Separation(neutral, aggregator, frozenset(outside)),
        *(
            Separation(each, frozenset({name}), frozenset((*names[:place], *names[place + 1 :])))
            for place, name in enumerate(names)
        ),
    ]


def check_records(
    inputs: Mapping[Role, InputSummary],
    constraints: Constraints,
    *,
    owners: Sequence[Role],
    recipient: Role,
    sources: int,
) -> None:
    """Check what all admissions say of joined lists of which records go to one department.

    (1) A summary of every list and of nothing else, made by the same rules, with sizes that a list can have.
    (2) The two limits of such records are set. (3) The recipient's own list is within 2 % of its catalogue,
    and at least `min_coverage` of it. (4) Enough lists that a person has to be on, and enough organisations.

    Args:
        inputs: by role.
        constraints: the strictest limits of all rules.
        owners: of the lists.
        recipient: who gets the records; it need not have a list.
        sources: lists that a person has to be on.

    Raises:
        ProtocolAborted: with the guard that failed.
    """
    # (1)
    check_summaries(inputs, owners)
    check_sizes(inputs)
    # (2)
    if constraints.max_rows is None or constraints.max_fraction is None:
        raise ProtocolAborted(
            "no participant's rule sets max_rows and max_fraction",
            code="guard-missing",
            hint="directed records need both limits in the rule of at least one department",
        )
    # (3)
    own, coverage = inputs.get(recipient), constraints.min_coverage
    if own is not None:
        check_catalogue(own, "recipient")
        if coverage is not None and own.distinct_keys < coverage * own.catalogue_keys:
            raise ProtocolAborted(
                f"the recipient lists less than {coverage} of its catalogue's keys",
                code="guard-coverage",
                hint="refresh the catalogue, or find out which keys are missing",
            )
    # (4)
    check_enough(
        constraints,
        organisations=len(owners),
        sources=sources,
        more="add sources",
        without='join more lists as "on"',
    )
