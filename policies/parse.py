"""policy.toml → `Policy`, or the line that is wrong.

Two passes. `policies.strict` reads the file into typed values: every key known, every value of its form.
`_check` then asks what spans several places, in the numbered order below. What parses here may still be
refused at activation, where clauses that this version does not honour are named: `unsupported_clauses`.
"""

import zoneinfo
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import combinations
from typing import Final

from policies.lines import Path
from policies.model import (
    NEUTRAL_KINDS,
    SCHEMA,
    Column,
    Policy,
    Rule,
    Stop,
    StopDocument,
    spelt_alike,
)
from policies.strict import Document, build, read_toml
from protocols.encoding import sha256_digest
from protocols.ids import Digest
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import JobType, OutputClass

MAX_POLICY_BYTES: Final = 256 << 10
MAX_VALIDITY: Final = timedelta(days=180)
MAX_RULES: Final = 500

MAX_DENOMINATOR: Final = 10**18
"""Finest share of a rule: an admission must carry it to all participants."""

CLASS_B_APPROVALS: Final = 2
"""Fewest approvals wherever records about persons may leave."""

_CLASS_B_GUARDS: Final = ("min_sources", "max_rows", "max_fraction", "min_coverage")


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """A well-formed policy, the digest of its exact bytes, and where each clause stands."""

    policy: Policy
    digest: Digest
    document: Document


def parse_policy(data: bytes, *, job_types: Sequence[JobType] = JOB_TYPES) -> ParsedPolicy:
    """Parse and check the exact bytes of a policy.toml.

    Args:
        data: the file as it is, at most 256 KiB.
        job_types: the registry that says which job types release records about persons.

    Raises:
        PolicyInvalid: with the 1-based line, what was found and what was expected.
    """
    document = read_toml(data, limit=MAX_POLICY_BYTES, what="policy.toml")
    # Before anything else, so that a newer format is named as such and not by its first unknown key.
    if document.root.get("schema") != SCHEMA:
        document.fail(
            ("schema",), f"expected {SCHEMA}", code="unknown-schema", hint=f'write schema = "{SCHEMA}"'
        )
    policy: Policy = build(document, Policy, document.root, ())
    directed = frozenset(t.name for t in job_types if t.output_class is OutputClass.DIRECTED)
    _check(document, policy, directed)
    return ParsedPolicy(policy, sha256_digest(data), document)


def parse_stop(data: bytes) -> StopDocument:
    """Parse a `minshu-stop/1` document.

    Raises:
        PolicyInvalid: with the line.
    """
    document = read_toml(data, limit=MAX_POLICY_BYTES, what="the stop document")
    stop: StopDocument = build(document, StopDocument, document.root, ())
    _check_stops(document, stop.stops)
    return stop


def unsupported_clauses(parsed: ParsedPolicy) -> list[tuple[int, str]]:
    """Return (line, clause) of everything this version parses but cannot honour, in the file's order.

    A clause that restricts and is then ignored would be worse than none: such a policy is not activated.
    """
    policy = parsed.policy
    found: list[tuple[Path, str]] = [(("budgets", name), f"budgets.{name}") for name in policy.budgets]
    for index, rule in enumerate(policy.rules):
        found += [
            (("rules", index, clause), f"{clause} of rule {rule.id}")
            for clause in ("budget", "max_cost", "window", "rate")
            if getattr(rule, clause) is not None
        ]
    found += [(("stops", index), f"stops[{index}]") for index in range(len(policy.stops))]
    if policy.defaults.release_requires == "cosigned":
        found.append((("defaults", "release_requires"), 'release_requires = "cosigned"'))
    return sorted((parsed.document.lines.line(path), clause) for path, clause in found)


def _check(document: Document, policy: Policy, directed: frozenset[str]) -> None:
    """Check what spans several places.

    (1) Validity: at most 180 days, a known timezone.
    (2) `previous` is absent exactly in version 1.
    (3) A key belongs to one requester or one approver role: one person, one capacity.
    (4) Datasets: none of grade core, no source twice; columns well-formed, no two that differ in case alone;
        the unit's column exists.
    (5) Budgets refer to datasets and are positive; where one exists, releases need witnesses.
    (6) Rule ids are unique; all that a rule names exists.
    (7) Neutral roles bring no dataset, other roles bring one.
    (8) Approvals: at most as many as the approvers have keys.
    (9) Class B: every guard is set, one recipient that is one organisation, explicit roles, two approvals
        where data is given.
    (10) The negative list speaks of datasets that are described, and no rule names a column of it.
    (11) No two rules overlap.
    (12) Numbers are in range.
    """
    _check_header(document, policy)  # (1) (2)
    _check_keys(document, policy)  # (3)
    _check_datasets(document, policy)  # (4)
    _check_budgets(document, policy)  # (5)
    if len(policy.rules) > MAX_RULES:
        document.fail(
            ("rules", MAX_RULES), f"{len(policy.rules)} rules, at most {MAX_RULES}", code="too-many-rules"
        )
    ids: set[str] = set()
    for index, rule in enumerate(policy.rules):
        path = ("rules", index)
        if rule.id in ids:
            document.fail((*path, "id"), f"a second rule {rule.id}", code="rule-twice", hint="rename one")
        ids.add(rule.id)
        _check_references(document, policy, rule, path)  # (6)
        _check_seats(document, rule, path)  # (7)
        _check_approvals(document, policy, rule, path)  # (8)
        _check_directed(document, policy, rule, path, directed)  # (9)
        _check_numbers(document, rule, path)  # (12)
    _check_negative_list(document, policy)  # (10)
    _check_overlaps(document, policy)  # (11)
    _check_stops(document, policy.stops)


def _check_header(document: Document, policy: Policy) -> None:
    if policy.expires <= policy.not_before:
        document.fail(("expires",), "expected a time after not_before", code="bad-validity")
    if policy.expires - policy.not_before > MAX_VALIDITY:
        document.fail(
            ("expires",),
            f"{(policy.expires - policy.not_before).days} days after not_before, at most 180 are allowed",
            code="bad-validity",
            hint="shorten the validity and plan the next version before it ends",
        )
    try:
        zoneinfo.ZoneInfo(policy.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        document.fail(
            ("timezone",),
            "not a timezone this machine knows",
            code="unknown-timezone",
            hint='write a name such as "Asia/Shanghai"; if it is right, install the tzdata package',
        )
    if policy.version == 1 and policy.previous is not None:
        document.fail(("previous",), "version 1 follows no other", code="bad-previous", hint="remove it")
    if policy.version > 1 and policy.previous is None:
        document.fail(
            ("version",),
            "previous is missing, only version 1 has none",
            code="bad-previous",
            hint="write previous = the digest that minshu-policy check prints for the version before",
        )


def _check_keys(document: Document, policy: Policy) -> None:
    for table, groups in (("requesters", policy.requesters), ("approvers", policy.approvers)):
        seen: set[str] = set()
        for name, group in groups.items():
            for index, key in enumerate(group.keys):
                if key in seen:
                    document.fail(
                        (table, name, "keys", index),
                        f"the key stands under another of {table}, too",
                        code="key-twice",
                        hint="one person has one key in one capacity: remove it here or there",
                    )
                seen.add(key)


def _check_datasets(document: Document, policy: Policy) -> None:
    sources: dict[str, str] = {}
    for name, dataset in policy.datasets.items():
        path = ("datasets", name)
        if dataset.source in sources:
            document.fail(
                (*path, "source"),
                f"dataset {sources[dataset.source]} has this source already",
                code="source-twice",
                hint="describe it once: else the laxer of two rules counts, and half the negative list",
            )
        sources[dataset.source] = name
        if dataset.grade == "core":
            document.fail(
                (*path, "grade"),
                "core data takes no part in joint computation",
                code="core-data",
                hint="remove the dataset from this policy",
            )
        if not dataset.columns:
            document.fail((*path, "columns"), "no column", code="no-columns", hint="list at least one")
        if dataset.unit is not None and dataset.unit.column not in dataset.columns:
            document.fail(
                (*path, "unit"), "its column is not among the dataset's columns", code="unknown-column"
            )
        for one, other in combinations(dataset.columns, 2):
            if spelt_alike(one, other):
                document.fail(
                    (*path, "columns", other),
                    f"hardly differs from column {one}",
                    code="column-twice",
                    hint="databases overlook case: list the column once, as the source spells it",
                )
        for column_name, column in dataset.columns.items():
            _check_column(document, column, (*path, "columns", column_name))


def _check_column(document: Document, column: Column, path: Path) -> None:
    if (column.type == "enum") != (column.values is not None):
        document.fail(
            path,
            "type enum and values belong together",
            code="bad-column",
            hint='list the values, or use type = "code" for a long code list',
        )
    numeric = column.type in ("int", "decimal")
    for key, numbers in (("range", column.range), ("bins", column.bins)):
        if numbers is None:
            continue
        if not numeric:
            document.fail(
                (*path, key), f"{column.type} has no {key}, only int and decimal do", code="bad-column"
            )
        if column.type == "int" and any(n.denominator != 1 for n in numbers):
            document.fail((*path, key), "expected whole numbers, as the column is int", code="bad-column")
        if list(numbers) != sorted(numbers):
            document.fail((*path, key), "expected ascending numbers", code="bad-column")
    if column.range is not None and len(column.range) != 2:
        document.fail((*path, "range"), "expected two numbers, the least and the greatest", code="bad-column")
    if column.range is not None and column.bins is not None:
        least, greatest = column.range
        if not all(least <= n <= greatest for n in column.bins):
            document.fail((*path, "bins"), "a bin starts outside the range", code="bad-column")


def _check_budgets(document: Document, policy: Policy) -> None:
    for name, budget in policy.budgets.items():
        path = ("budgets", name)
        _refer_one(document, (*path, "dataset"), budget.dataset, policy.datasets, "dataset")
        if budget.limit <= 0:
            document.fail((*path, "limit"), "expected more than 0", code="bad-number")
        if budget.delta is not None and not 0 < budget.delta < 1:
            document.fail((*path, "delta"), "expected more than 0 and less than 1", code="bad-number")
    if policy.budgets and policy.defaults.release_requires != "cosigned":
        document.fail(
            ("defaults", "release_requires"),
            "a policy with a budget must require cosigned releases",
            code="needs-cosigned",
            hint='write release_requires = "cosigned": a restored backup could spend the budget again',
        )


def _refer(document: Document, path: Path, names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names of the list at `path` that are not known."""
    there = sorted(known)
    for index, name in enumerate(names):
        _refer_one(document, (*path, index), name, there, what)


def _refer_one(document: Document, path: Path, name: str, known: Iterable[str], what: str) -> None:
    if name not in known:
        document.fail(
            path,
            f"no {what} of that name in this policy",
            code=f"unknown-{what}",
            hint=f"known: {', '.join(known) or 'none'}",
        )


def _check_references(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    _refer(document, (*path, "requesters"), rule.requesters, policy.requesters, "requester")
    _refer(document, (*path, "purposes"), rule.purposes, policy.purposes, "purpose")
    _refer(document, (*path, "datasets"), rule.datasets, policy.datasets, "dataset")
    _refer(document, (*path, "approvers"), rule.approvers, policy.approvers, "approver")
    columns = [column for name in rule.datasets for column in policy.datasets[name].columns]
    _refer(document, (*path, "columns"), rule.columns, columns, "column")
    if rule.budget is None:
        if rule.max_cost is not None:
            document.fail((*path, "max_cost"), "no budget that a cost could be charged to", code="no-budget")
        return
    _refer_one(document, (*path, "budget"), rule.budget, policy.budgets, "budget")
    if rule.datasets != (policy.budgets[rule.budget].dataset,):
        document.fail(
            (*path, "budget"), "the budget is for another dataset than the rule's", code="bad-budget"
        )


def _check_seats(document: Document, rule: Rule, path: Path) -> None:
    neutral = NEUTRAL_KINDS & set(rule.roles)
    if rule.datasets and neutral:
        document.fail(
            (*path, "roles"),
            f"{', '.join(sorted(neutral))}: a neutral role brings no dataset",
            code="neutral-with-dataset",
            hint="write a rule of its own for the neutral role, without datasets and columns",
        )
    if not rule.datasets and (not rule.roles or set(rule.roles) - NEUTRAL_KINDS):
        document.fail(
            (*path, "roles") if rule.roles else path,
            "a rule without datasets is for neutral roles only",
            code="role-without-dataset",
            hint=f"name datasets, or roles among {', '.join(sorted(NEUTRAL_KINDS))}",
        )
    if rule.datasets and not rule.columns:
        document.fail(
            path, "datasets without columns", code="no-columns", hint="list the columns a job may use"
        )


def _check_approvals(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    keys = sum(len(policy.approvers[name].keys) for name in rule.approvers)
    if rule.approvals > keys:
        document.fail(
            (*path, "approvals"),
            f"{rule.approvals} approvals, but the rule's approvers have {keys} key(s) together",
            code="too-few-approvers",
            hint="list more approvers in the rule, or more keys under [approvers]",
        )


def _check_directed(
    document: Document, policy: Policy, rule: Rule, path: Path, directed: frozenset[str]
) -> None:
    class_b = directed & set(rule.job_types)
    if not class_b:
        return
    kinds = ", ".join(sorted(class_b))
    for guard in _CLASS_B_GUARDS:
        if getattr(rule, guard) is None:
            document.fail(
                path,
                f"{kinds} releases records about persons, so {guard} is required",
                code="missing-guard",
                hint=f"add {guard}",
            )
    if len(rule.recipients) != 1:
        document.fail(
            (*path, "recipients"),
            f"{len(rule.recipients)} recipients, but records of {kinds} go to exactly one",
            code="one-recipient",
            hint="write one rule per recipient",
        )
    who = policy.requesters.get(rule.recipients[0])
    if who is not None and who.organisation is None:
        document.fail(
            (*path, "recipients", 0),
            "names a requester, and nothing in this policy says which organisation that is",
            code="one-recipient",
            hint=f"name the organisation, or add organisation under [requesters.{rule.recipients[0]}]",
        )
    if not rule.roles:
        document.fail(
            path,
            f"{kinds} releases records about persons, so roles are required",
            code="missing-roles",
            hint='say what this node plays, for example roles = ["source"]',
        )
    if rule.datasets and rule.approvals < CLASS_B_APPROVALS:
        document.fail(
            (*path, "approvals"),
            f"{rule.approvals} approvals, but giving data to {kinds} takes at least {CLASS_B_APPROVALS}",
            code="too-few-approvals",
            hint=f"write approvals = {CLASS_B_APPROVALS}",
        )


def _check_numbers(document: Document, rule: Rule, path: Path) -> None:
    for key, value in (("max_fraction", rule.max_fraction), ("min_coverage", rule.min_coverage)):
        if value is not None and not Fraction(0) < value <= 1:
            document.fail((*path, key), "expected more than 0 and at most 1", code="bad-number")
        if value is not None and value.denominator > MAX_DENOMINATOR:
            document.fail((*path, key), "expected at most 18 places after the point", code="bad-number")
    if rule.max_cost is not None and rule.max_cost <= 0:
        document.fail((*path, "max_cost"), "expected more than 0", code="bad-number")


def _check_negative_list(document: Document, policy: Policy) -> None:
    for number, entry in enumerate(policy.negative_list):
        # A slip of the pen here would forbid nothing, and nobody would notice.
        path = ("negative_list", number, "dataset")
        _refer_one(document, path, entry.dataset, policy.datasets, "dataset")
        for index, rule in enumerate(policy.rules):
            if entry.dataset not in rule.datasets:
                continue
            for at, column in enumerate(rule.columns):
                if spelt_alike(entry.column, column):
                    document.fail(
                        ("rules", index, "columns", at),
                        f"rule {rule.id} names a column of the negative list ({entry.reason})",
                        code="negative-list",
                        hint="remove the column from the rule",
                    )


def _check_overlaps(document: Document, policy: Policy) -> None:
    for (_, first), (index, second) in combinations(enumerate(policy.rules), 2):
        if overlap(first, second):
            document.fail(
                ("rules", index),
                f"rules {first.id} and {second.id} both fit one job",
                code="rules-overlap",
                hint="make them differ in requester, purpose, job type or dataset",
            )


def overlap(first: Rule, second: Rule) -> bool:
    """Return whether one job could fit both rules: requester × purpose × job type × dataset.

    Rules without datasets are told apart by their roles.
    """
    seats = (
        (first.datasets, second.datasets)
        if first.datasets or second.datasets
        else (first.roles, second.roles)
    )
    return all(
        set(ours) & set(theirs)
        for ours, theirs in (
            (first.requesters, second.requesters),
            (first.purposes, second.purposes),
            (first.job_types, second.job_types),
            seats,
        )
    )


def _check_stops(document: Document, stops: Sequence[Stop]) -> None:
    for index, stop in enumerate(stops):
        if (stop.scope == "all") != (stop.value is None):
            document.fail(
                ("stops", index), "a stop of all has no value, every other stop has one", code="bad-stop"
            )
