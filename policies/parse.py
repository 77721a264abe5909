"""policy.toml → `Policy`, or the line that is wrong.

Two passes. `policies.strict` reads the file into typed values: every key known, every value of its form.
`_check` then asks what spans several places, in the numbered order below.
"""

import zoneinfo
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any, Final

import msgspec

from policies.lines import Path
from policies.matching import one_house
from policies.model import (
    LEAST_GROUP,
    NEUTRAL_KINDS,
    PUBLIC_KINDS,
    SCHEMA,
    STOP_SCHEMA,
    TWO_PEOPLE,
    WITHOUT_DATASET,
    Alias,
    Budget,
    Column,
    Dataset,
    DigestText,
    Policy,
    PurposeId,
    Quality,
    Quota,
    Rule,
    Stop,
    StopDocument,
    spelt_alike,
)
from policies.quality import identifying, key_fields_of, thresholds_of
from policies.strict import Document, build, read_toml
from policies.witnesses import default_quorum, tolerated
from policies.words import (
    shortened,
    weights_words,
)
from protocols.dp.cost import UNIT
from protocols.encoding import sha256_digest
from protocols.ids import Digest, NodeName
from protocols.jobs import JOB_TYPES
from protocols.jobs.job_type import (
    WEIGHTS,
    CountsAcross,
    ExactOrNoisy,
    Forecaster,
    InRounds,
    JobType,
    OutputClass,
    Serial,
    Standing,
    Trains,
)
from protocols.quality import THOUSAND
from protocols.wire import organisation_of

MAX_POLICY_BYTES: Final = 256 << 10
MAX_VALIDITY: Final = timedelta(days=180)
MAX_RULES: Final = 500

MAX_QUOTAS_PER_RULE: Final = 8
MAX_APPROVERS_PER_RULE: Final = 16
"""What a signed verdict has room for."""

MAX_DENOMINATOR: Final = 10**18
"""Finest share of a rule: an admission must carry it to all participants."""

TEXTS: Final = ("enum", "code", "text")
"""Column types whose values are told apart as texts, to the letter."""

RESTRICTING: Final = frozenset({"filter", "group"})
"""Uses of a column by which a job says which of its values count."""

FINEST_COST: Final = UNIT
"""Finest part of a limit: what the ledger counts in."""

MAX_DELTA: Final = Fraction(1, 1000)
"""Largest δ: beyond it, one person in a thousand may be given away whole."""

_CLASS_B_GUARDS: Final = ("min_sources", "max_rows", "max_fraction", "min_coverage")

_GUARD_EXAMPLES: Final = {
    "min_sources": "min_sources = 2",
    "max_rows": "max_rows = 20000",
    "max_fraction": 'max_fraction = "0.30"',
    "min_coverage": 'min_coverage = "0.80"',
    "rate": 'rate = { jobs = 10, per = "month" }',
    "max_per_minute": "max_per_minute = 30",
    "max_series_days": "max_series_days = 30",
}

_STOP_VALUES: Final[dict[str, tuple[Any, str]]] = {
    "requester": (Alias, "an alias such as bureau"),
    "purpose": (PurposeId, "a purpose such as P-2026-014"),
    "dataset": (Alias, "a dataset such as elder_subsidy"),
    "job": (DigestText, "a job id: sha256: and 64 hex digits"),
}
"""What a stop of each scope names."""


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
    _check_schema(document, SCHEMA)
    policy: Policy = build(document, Policy, document.root, ())
    _check(document, policy, _directed(job_types), _standing(job_types), _serial(job_types))
    return ParsedPolicy(policy, sha256_digest(data), document)


def parse_stop(data: bytes) -> StopDocument:
    """Parse a `minshu-stop/1` document: what it halts may be unknown here, what it says must be clear.

    Raises:
        PolicyInvalid: with the line.
    """
    document = read_toml(data, limit=MAX_POLICY_BYTES, what="the stop document")
    _check_schema(document, STOP_SCHEMA)
    stop: StopDocument = build(document, StopDocument, document.root, ())
    _check_stops(document, stop.stops)
    return stop


def _check_schema(document: Document, expected: str) -> None:
    """Refuse before all else, so that a newer format is named as such and not by its first unknown key."""
    found = document.root.get("schema")
    if found == expected:
        return
    hint = f'write schema = "{expected}"'
    if found == STOP_SCHEMA:
        hint = "this is a stop document: apply it with minshu-node stop"
    document.fail(("schema",), f"expected {expected}", code="unknown-schema", hint=hint)


@dataclass(frozen=True, slots=True)
class Caution:
    """Something a policy may say, and whoever signs it should know."""

    line: int
    en: str
    zh: str


def cautions(parsed: ParsedPolicy, *, job_types: Sequence[JobType] = JOB_TYPES) -> list[Caution]:
    """Return what is allowed and yet not safe, or allowed and yet never answered, in the file's order."""
    found = (
        *_watched_by_few(parsed),
        *_uncounted(parsed, job_types),
        *_in_vain(parsed, job_types),
        *_alone(parsed, job_types),
        *_pair_by_pair(parsed, job_types),
        *_untrained(parsed, job_types),
    )
    return sorted(found, key=lambda caution: caution.line)


def _watched_by_few(parsed: ParsedPolicy) -> Iterator[Caution]:
    """Yield a quorum of listed organisations that not one of them may betray."""
    clause = parsed.policy.witnesses
    if clause is None or not clause.organisations:
        return
    listed = len(clause.organisations)
    quorum = default_quorum(listed) if clause.quorum is None else clause.quorum
    if tolerated(quorum, listed) == 0:
        yield Caution(
            parsed.document.lines.line(("witnesses",)),
            f"{quorum} of {listed} witnesses: a single dishonest one is enough to hide that this node was "
            "put back to an older state. List more organisations, or raise the quorum",
            f"{listed} 个见证机构中须 {quorum} 个见证: 只要有一个不诚实, 本节点退回旧状态就可能不被发现。"
            "请列出更多机构, 或提高 quorum",
        )


def _uncounted(parsed: ParsedPolicy, job_types: Sequence[JobType]) -> Iterator[Caution]:
    """Yield class-B rules over a dataset for which no quota of theirs is one that each such job spends."""
    policy = parsed.policy
    for index, rule in enumerate(policy.rules):
        kinds = [
            known
            for known in job_types
            if known.name in rule.job_types and known.output_class is OutputClass.DIRECTED
        ]
        quotas = [policy.quotas[name] for name in rule.quotas]
        without = [
            name
            for name in rule.datasets
            if any(
                not any(quota.dataset == name and _spends(known, rule, quota) for quota in quotas)
                for known in kinds
            )
        ]
        if without:
            names, line = ", ".join(without), parsed.document.lines.line(("rules", index))
            yield Caution(
                line,
                f"rule {rule.id} gives {names} to lists of persons, and no quota counts what is answered: "
                "only rate and approvals limit it. Add a quota for each of the rule's datasets",
                f"规则 {rule.id} 将 {names} 用于生成定向名单, 但没有配额计数, 仅受频次和审批限制。"
                "请为规则的每个数据集设定配额",
            )


def _in_vain(parsed: ParsedPolicy, job_types: Sequence[JobType]) -> Iterator[Caution]:
    """Yield rules that open personal data to jobs which are refused all the same, for want of something."""
    policy = parsed.policy
    counting = {known.name for known in job_types if known.counts_units}
    noisy = {
        known.name
        for known in job_types
        if isinstance(known, Forecaster) and not isinstance(known, ExactOrNoisy)
    }
    for index, rule in enumerate(policy.rules):
        personal = [name for name in rule.datasets if policy.datasets[name].personal != "none"]
        nobodys = ", ".join(name for name in personal if policy.datasets[name].unit is None)
        line = parsed.document.lines.line(("rules", index))
        if nobodys and (kinds := ", ".join(sorted(counting & set(rule.job_types)))):
            yield Caution(
                line,
                f"rule {rule.id} opens {nobodys} to {kinds}, which counts persons, and nothing says whom a "
                "row is about: every such job is refused. Add a unit to the dataset",
                f"规则 {rule.id} 允许 {kinds} 使用 {nobodys}, 该类任务按人计数, 而数据集未注明每行属于谁, "
                "此类任务将一律被拒绝。请为数据集补充 unit",
            )
        if personal and rule.budget is None and (kinds := ", ".join(sorted(noisy & set(rule.job_types)))):
            yield Caution(
                line,
                f"rule {rule.id} allows {kinds}, which adds noise, and names no budget to pay for it: every "
                "such job over personal data is refused. Name a budget of the rule's dataset",
                f"规则 {rule.id} 允许加噪输出的 {kinds}, 而未指定隐私预算, "
                "涉及个人信息的此类任务将一律被拒绝。请为规则指定该数据集的隐私预算",
            )


def _alone(parsed: ParsedPolicy, job_types: Sequence[JobType]) -> Iterator[Caution]:
    """Yield rules by which this department may publish numbers that nobody else's are added to."""
    across = {known.name for known in job_types if isinstance(known, CountsAcross)}
    for index, rule in enumerate(parsed.policy.rules):
        gives = bool(rule.datasets) and (not rule.roles or "source" in rule.roles)
        kinds = ", ".join(sorted(across & set(rule.job_types)))
        if gives and kinds and rule.min_organisations is None:
            yield Caution(
                parsed.document.lines.line(("rules", index)),
                f"rule {rule.id} allows {kinds} without min_organisations, so this department's own numbers "
                "may be published, too, with nobody else's added. Add min_organisations, for example "
                "min_organisations = 3, unless that is meant",
                f"规则 {rule.id} 允许 {kinds} 而未设 min_organisations, 本部门的数据也可单独公布, "
                "不与其他部门合计。如非本意, 请补充 min_organisations, 例如 min_organisations = 3",
            )


def _spends(known: JobType, rule: Rule, limit: Budget | Quota) -> bool:
    """Return whether jobs of a type under a rule ever take something of a limit of their dataset.

    Every one is a question. Records leave a source alone, of class B; noise has a price where there is any.
    """
    if isinstance(limit, Budget):
        return isinstance(known, Forecaster | ExactOrNoisy)
    if limit.counts == "queries":
        return True
    return known.output_class is OutputClass.DIRECTED and (not rule.roles or "source" in rule.roles)


def _pair_by_pair(parsed: ParsedPolicy, job_types: Sequence[JobType]) -> Iterator[Caution]:
    """Yield rules over a dataset of which a job spends limits for each pair alone: another name is another.

    A limit that a type of job never spends does not bound it.
    """
    policy = parsed.policy
    for index, rule in enumerate(policy.rules):
        named = {name: policy.quotas[name] for name in rule.quotas} | (
            {} if rule.budget is None else {rule.budget: policy.budgets[rule.budget]}
        )
        for dataset in rule.datasets:
            limits: set[str] = set()
            for known in job_types:
                if known.name not in rule.job_types:
                    continue
                spent = {
                    name: limit.scope
                    for name, limit in named.items()
                    if limit.dataset == dataset and _spends(known, rule, limit)
                }
                if set(spent.values()) == {"per-pair"}:
                    limits.update(spent)
            if not limits:
                continue
            names = ", ".join(sorted(limits))
            yield Caution(
                parsed.document.lines.line(("rules", index)),
                f"rule {rule.id} limits what {dataset} gives away only for each dataset it is joined with "
                f"({names}); a department that gives its data another name begins at zero. Add a quota or a "
                "budget that counts together, for example with scope all-requesters",
                f"规则 {rule.id} 对 {dataset} 的额度 ({names}) 仅按与之联合的每个数据集分别计算, "
                "对方将数据集另行命名即重新起算。请再设一项合并计算的额度, 例如 scope 为 all-requesters",
            )


def _untrained(parsed: ParsedPolicy, job_types: Sequence[JobType]) -> Iterator[Caution]:
    """Yield rules for models that are refused all the same, or that say something of no effect."""
    policy = parsed.policy
    training = {known.name for known in job_types if isinstance(known, Trains)}
    noisy = {known.name for known in job_types if isinstance(known, ExactOrNoisy)}
    for index, rule in enumerate(policy.rules):
        kinds, line = ", ".join(sorted(training & set(rule.job_types))), ("rules", index)
        personal = any(policy.datasets[name].personal != "none" for name in rule.datasets)
        if kinds and not rule.recipes:
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} allows {kinds} and names no recipe: every such job is refused. Add recipes, "
                'for example recipes = ["logistic"]',
                f"规则 {rule.id} 允许 {kinds}, 而未写明训练方法, 此类任务将一律被拒绝。"
                '请补充 recipes, 例如 recipes = ["logistic"]',
            )
        scores = ", ".join(sorted((training - noisy) & set(rule.job_types)))
        if scores and personal and WEIGHTS in rule.recipes:
            en, zh = weights_words()
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} lets jobs of {scores} bring weights: {en}. Compare them with a model's card "
                "before approving, or train a split model and leave weights out",
                f"规则 {rule.id} 允许 {scores} 自带权重: {zh}。审批前请与模型卡核对, "
                "或改为训练分持模型并去掉 weights",
            )
        # Of a score there is neither noise nor a run without.
        kinds = ", ".join(sorted(training & noisy & set(rule.job_types)))
        if kinds and personal and rule.budget is None and not rule.exact_training:
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} allows {kinds}, names no budget to pay for noise and does not let models be "
                "made without: every such job is refused. Name a budget of the rule's dataset",
                f"规则 {rule.id} 允许 {kinds}, 而既未指定隐私预算, 又未允许不加噪训练, 此类任务将一律被拒绝。"
                "请为规则指定该数据集的隐私预算",
            )
        if kinds and personal and rule.exact_training and rule.min_group_size == 1:
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} lets models be made without noise, with a smallest group of one: whoever "
                "leads the run, other departments and whoever gets the model can read off what single "
                "persons are whose codes are rare. Name a budget instead where rows are about people",
                f"规则 {rule.id} 允许不加噪训练, 且最小分组人数为 1: 汇总方、其他部门和取得模型者"
                "可读出取值少见的个别人员的信息。数据涉及个人时请改为指定隐私预算",
            )
        rounds = ", ".join(sorted(_summed_in_rounds(job_types) & set(rule.job_types)))
        if rounds and rule.budget is None and rule.exact_training and rule.min_group_size != 1:
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} lets models be made without noise, but {rounds} tells exact sums of every "
                "round, and with them of single persons: such jobs are refused unless the rule states "
                "min_group_size = 1",
                f"规则 {rule.id} 允许不加噪训练, 但 {rounds} 逐轮给出精确合计, 会透露个别人员: "
                "规则未写明 min_group_size = 1 的, 此类任务一律拒绝",
            )
        if kinds and rule.budget is not None and rule.exact_training:
            yield Caution(
                parsed.document.lines.line(line),
                f"rule {rule.id} names a budget, under which models of {kinds} carry noise: exact_training "
                "has no effect. Write one rule for either",
                f"规则 {rule.id} 指定了隐私预算, 其下的 {kinds} 均须加噪, exact_training 不起作用。"
                "请分写两条规则",
            )


def _summed_in_rounds(job_types: Iterable[JobType]) -> frozenset[str]:
    """Return the job types that make a model by sums of every round, which without noise are exact."""
    return frozenset(
        known.name for known in job_types if isinstance(known, Trains) and isinstance(known, InRounds)
    )


def _directed(job_types: Iterable[JobType]) -> frozenset[str]:
    """Return the job types that release records about persons."""
    return frozenset(known.name for known in job_types if known.output_class is OutputClass.DIRECTED)


def _standing(job_types: Iterable[JobType]) -> frozenset[str]:
    """Return the job types whose sessions answer about one person after another."""
    return frozenset(known.name for known in job_types if isinstance(known, Standing))


def _serial(job_types: Iterable[JobType]) -> frozenset[str]:
    """Return the job types whose jobs are days of a series, for which keys are kept."""
    return frozenset(known.name for known in job_types if isinstance(known, Serial))


def _check(
    document: Document,
    policy: Policy,
    directed: frozenset[str],
    standing: frozenset[str] = frozenset(),
    serial: frozenset[str] = frozenset(),
) -> None:
    """Check what spans several places.

    (1) Validity: at most 180 days, a known timezone.
    (2) `previous` is absent exactly in version 1.
    (3) A key belongs to one requester or one approver role, never to both: one person, one capacity.
    (4) Datasets: none of grade core, no source twice; columns well-formed, no two that differ in case alone;
        the unit's column exists. Quality: thresholds that a dataset can meet and miss, and about columns that
        it has.
    (5) Budgets and quotas: of a dataset that is described, no name twice, limits above 0 that the ledger can
        count; a budget's dataset says whom a row is about, and δ fits the notion. Where there is one,
        releases are cosigned.
    (6) Witnesses: only where releases are cosigned, other organisations than this node's own, no house twice,
        a quorum that they can reach, and of which no two share nobody.
    (7) Rule ids are unique; all that a rule names exists.
    (8) Neutral roles bring no dataset, but an aggregator may bring a public one; other roles bring one;
        `persons_in` is for those.
    (9) `only` names columns that the rule opens in each of its datasets, by which jobs can be restricted to
        texts, and values that the policy lists, if it lists any.
    (10) A rule spends from a budget and quotas of its own datasets; its cost can fit the limit.
    (11) Approvals: as many people as are asked for exist; important data takes two.
    (12) Class B: every guard is set, one recipient that is one organisation, explicit roles; where data is
        given, a rate and two approvals; where one list is enough (k = 1, nothing locked), two approvals of
        neutral seats, too. Where a session answers about one person after another, a rate of look-ups, and a
        quota that counts them for each dataset. Where keys are kept for a series, for how many days.
    (13) Numbers are in range, a window is open at some time. A rule accepts only what a threshold of its
        datasets asks for, and bounds repeated rows otherwise than they do.
    (14) The negative list speaks of datasets that are described; no rule names a column of it, and no row is
        about whom a column of it says.
    (15) No two rules overlap.
    (16) Stops name what this policy knows.
    """
    _check_header(document, policy)  # (1) (2)
    _check_keys(document, policy)  # (3)
    _check_datasets(document, policy)  # (4)
    _check_limits(document, policy)  # (5)
    _check_witnesses(document, policy)  # (6)
    if len(policy.rules) > MAX_RULES:
        document.fail(
            ("rules", MAX_RULES),
            f"{len(policy.rules)} rules, at most {MAX_RULES}",
            code="too-many-rules",
            hint="join rules that differ in one place only: each place takes a list",
        )
    ids: set[str] = set()
    for index, rule in enumerate(policy.rules):
        path = ("rules", index)
        if rule.id in ids:
            document.fail((*path, "id"), f"a second rule {rule.id}", code="rule-twice", hint="rename one")
        ids.add(rule.id)
        _check_references(document, policy, rule, path)  # (7)
        _check_seats(document, policy, rule, path)  # (8)
        _check_only(document, policy, rule, path)  # (9)
        _check_spending(document, policy, rule, path)  # (10)
        _check_approvals(document, policy, rule, path)  # (11)
        _check_directed(document, policy, rule, path, directed)  # (12)
        _check_standing(document, policy, rule, path, standing)  # (12)
        _check_series(document, rule, path, serial)  # (12)
        _check_numbers(document, rule, path)  # (13)
        _check_accepted(document, policy, rule, path)  # (13)
    _check_negative_list(document, policy)  # (14)
    _check_overlaps(document, policy)  # (15)
    _check_stops(document, policy.stops, policy)  # (16)


def _check_header(document: Document, policy: Policy) -> None:
    if policy.expires <= policy.not_before:
        document.fail(
            ("expires",),
            "expected a time after not_before",
            code="bad-validity",
            hint="write when the policy ends, at most 180 days after it begins",
        )
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
    asking = {key for who in policy.requesters.values() for key in who.keys}
    for name, approver in policy.approvers.items():
        for index, key in enumerate(approver.keys):
            if key in asking:
                document.fail(
                    ("approvers", name, "keys", index),
                    "the key stands under requesters, too",
                    code="key-twice",
                    hint="whoever asks does not approve: list another person's key here",
                )
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
                (*path, "unit"),
                "its column is not among the dataset's columns",
                code="unknown-column",
                hint="name the column that says whom a row is about, as it is listed below",
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
        if dataset.quality is not None:
            _check_quality(document, dataset, dataset.quality, (*path, "quality"))


def _check_quality(document: Document, dataset: Dataset, quality: Quality, path: Path) -> None:
    """Refuse thresholds that no data meets, that all data meets, or that are about nothing."""
    for key, least in (
        ("min_completeness", quality.min_completeness),
        ("min_valid_keys", quality.min_valid_keys),
    ):
        if least is not None:
            _check_share(document, (*path, key), least, Fraction(0) < least <= 1, "more than 0 and at most 1")
    for key, most in (("max_drift", quality.max_drift), ("max_repeated", quality.max_repeated)):
        if most is not None:
            _check_share(document, (*path, key), most, Fraction(0) <= most < 1, "0 or more and less than 1")
    about_keys = () if identifying(dataset) else ("min_valid_keys", "max_drift", "max_repeated")
    nothing = () if key_fields_of(dataset) else ("min_completeness",)
    for key in (*nothing, *about_keys):
        if getattr(quality, key) is not None:
            document.fail(
                (*path, key),
                "no column of the dataset is used to join or says whom a row is about, so nothing meets this",
                code="bad-quality",
                hint="remove it, or name columns under key_fields" if key in nothing else "remove it",
            )
    for index, name in enumerate(quality.key_fields):
        if quality.min_completeness is None:
            document.fail(
                (*path, "key_fields"),
                "nothing is asked of these columns, as min_completeness is missing",
                code="bad-quality",
                hint='add min_completeness, for example min_completeness = "0.99"',
            )
        _refer_one(document, (*path, "key_fields", index), name, dataset.columns, "column")
    if quality == Quality():
        document.fail(
            path,
            "no threshold",
            code="bad-quality",
            hint='add one, for example min_completeness = "0.99", or remove the table',
        )


def _check_share(document: Document, path: Path, value: Fraction, fits: bool, expected: str) -> None:
    if not fits:
        document.fail(
            path,
            f"expected {expected}",
            code="bad-number",
            hint='write a share of one, for example "0.99" for 99 %',
        )
    if THOUSAND % value.denominator:
        document.fail(
            path,
            "expected at most three places after the point",
            code="bad-number",
            hint="round it to a tenth of a percent, as figures of quality are",
        )


def _check_accepted(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    """Refuse exceptions to nothing, and a bound on repeated rows that another one makes needless."""
    opened = [policy.datasets[name] for name in rule.datasets]
    asked = {str(each.metric) for dataset in opened for each in thresholds_of(dataset)}
    for index, metric in enumerate(rule.accepts_quality):
        if metric not in asked:
            document.fail(
                (*path, "accepts_quality", index),
                f"no dataset of the rule has a threshold of {metric} that could be missed",
                code="bad-quality",
                hint="remove it; thresholds of its datasets: " + (", ".join(sorted(asked)) or "none"),
            )
    most = rule.max_duplicates
    if most is None:
        return
    where = (*path, "max_duplicates")
    _check_share(document, where, most, Fraction(0) <= most < 1, "0 or more and less than 1")
    if not any(map(identifying, opened)):
        document.fail(
            where,
            "no dataset of the rule has identifiers that could repeat",
            code="bad-quality",
            hint="remove it",
        )
    bounds = [bound.bound for each in opened for bound in thresholds_of(each) if bound.metric == "repeated"]
    needless = len(bounds) == len(opened) and all(bound <= most for bound in bounds)
    if needless and "repeated" not in rule.accepts_quality:
        document.fail(
            where,
            "the rule's datasets have max_repeated as low as this or lower, so it has no effect",
            code="bad-quality",
            hint='write a lower number, or accepts_quality = ["repeated"] to allow more repeats here',
        )


def _check_column(document: Document, column: Column, path: Path) -> None:
    if (column.type == "enum") != (column.values is not None):
        document.fail(
            path,
            "type enum and values belong together",
            code="bad-column",
            hint='list the values, or use type = "code" for a long code list',
        )
    for key, numbers in (("range", column.range), ("bins", column.bins)):
        if numbers is None:
            continue
        where = (*path, key)
        if column.type not in ("int", "decimal"):
            document.fail(
                where,
                f"{column.type} has no {key}, only int and decimal do",
                code="bad-column",
                hint=f"remove {key}, or correct the type",
            )
        if column.type == "int" and any(n.denominator != 1 for n in numbers):
            document.fail(
                where,
                "expected whole numbers, as the column is int",
                code="bad-column",
                hint='write whole numbers, or type = "decimal"',
            )
        if any(lower >= upper for lower, upper in pairwise(numbers)):
            document.fail(
                where, "expected ascending numbers", code="bad-column", hint="write the smallest number first"
            )
    if column.range is not None and len(column.range) != 2:
        document.fail(
            (*path, "range"),
            f"{len(column.range)} numbers, expected the least and the greatest",
            code="bad-column",
            hint="for example range = [60, 120]",
        )
    if column.range is not None and column.bins is not None:
        least, greatest = column.range
        if not all(least <= n <= greatest for n in column.bins):
            document.fail(
                (*path, "bins"),
                "a bin starts outside the range",
                code="bad-column",
                hint="start every bin within the range, or widen the range",
            )


def _check_limits(document: Document, policy: Policy) -> None:
    for name, budget in policy.budgets.items():
        path = ("budgets", name)
        _refer_one(document, (*path, "dataset"), budget.dataset, policy.datasets, "dataset")
        if policy.datasets[budget.dataset].unit is None:
            example = 'unit = { column = "person_id", max_rows = 12 }'
            document.fail(
                (*path, "dataset"),
                f"dataset {budget.dataset} has no unit, and a privacy budget protects whom a row is about",
                code="missing-unit",
                hint=f"under [datasets.{budget.dataset}] add the column that names the person and the most "
                f"rows of one, for example {example}",
            )
        _check_cost(document, (*path, "limit"), budget.limit)
        _check_delta(document, budget, path)
    for name, quota in policy.quotas.items():
        path = ("quotas", name)
        _refer_one(document, (*path, "dataset"), quota.dataset, policy.datasets, "dataset")
        if name in policy.budgets:
            document.fail(
                path,
                "a budget has this name, too",
                code="name-twice",
                hint="rename one: verdicts and journals name budgets and quotas alike",
            )
    requires = policy.defaults.release_requires
    if (policy.budgets or policy.quotas) and requires != "cosigned":
        stated = "release_requires" in document.root["defaults"]
        document.fail(
            ("defaults", "release_requires") if stated else ("defaults",),
            f"{requires}{'' if stated else ', since the key is missing'}, but this policy limits what may be "
            "spent: a node put back to an older state would spend it again",
            code="cosigned-required",
            hint='write release_requires = "cosigned": others then hold this node to what it did',
        )


def _check_witnesses(document: Document, policy: Policy) -> None:
    clause = policy.witnesses
    if clause is None:
        return
    path: Path = ("witnesses",)
    if policy.defaults.release_requires != "cosigned":
        document.fail(
            path,
            f"nothing waits for witnesses, as release_requires is {policy.defaults.release_requires}",
            code="witnesses-unused",
            hint='under [defaults] write release_requires = "cosigned", or remove [witnesses]',
        )
    own = organisation_of(NodeName(policy.policy_id))
    for index, name in enumerate(clause.organisations):
        if one_house(name, own):
            document.fail(
                (*path, "organisations", index),
                "this node's own organisation, or a part of it",
                code="own-witness",
                hint="list other organisations: nobody is a witness of its own doings",
            )
        if part := next((whole for whole in clause.organisations if name.endswith(f".{whole}")), None):
            document.fail(
                (*path, "organisations", index),
                f"a part of {part}, which is listed, too",
                code="witness-twice",
                hint="list one of the two: a house has one vote",
            )
    listed = len(clause.organisations)
    if clause.quorum is None and not listed:
        document.fail(
            path,
            "neither quorum nor organisations",
            code="missing-key",
            hint="add quorum, for example quorum = 4, or list organisations; or remove [witnesses]",
        )
    if clause.quorum is not None and listed and not listed // 2 < clause.quorum <= listed:
        least = listed // 2 + 1
        document.fail(
            (*path, "quorum"),
            f"{clause.quorum} of {listed} organisations"
            + (" can never be reached" if clause.quorum > listed else ": two such quorums need share nobody"),
            code="bad-quorum",
            hint=f"write {least} to {listed}, or leave quorum out for {default_quorum(listed)}",
        )


def _check_cost(document: Document, path: Path, value: Fraction) -> None:
    if value <= 0:
        document.fail(
            path,
            "expected more than 0",
            code="bad-number",
            hint='write a decimal as text, for example "0.50"',
        )
    if FINEST_COST % value.denominator:
        document.fail(
            path,
            "expected at most 15 places after the point",
            code="bad-number",
            hint="round it: the ledger counts in parts of 1e-15",
        )


def _check_delta(document: Document, budget: Budget, path: Path) -> None:
    if budget.notion == "approximate-dp" and budget.delta is None:
        document.fail(
            path,
            "the key delta is missing: approximate-dp is an epsilon at a delta",
            code="missing-delta",
            hint='add delta, for example delta = "1e-9"',
        )
    if budget.delta is None:
        return
    where = (*path, "delta")
    if budget.notion == "pure-dp":
        document.fail(
            where,
            "pure-dp has no delta",
            code="needless-delta",
            hint='remove it, or write notion = "approximate-dp"',
        )
    _check_cost(document, where, budget.delta)
    if budget.delta > MAX_DELTA:
        document.fail(
            where,
            "expected at most 0.001",
            code="bad-number",
            hint='write a delta far below one over the number of people, for example "1e-9"',
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
    if rule.budget is not None:
        _refer_one(document, (*path, "budget"), rule.budget, policy.budgets, "budget")
    _refer(document, (*path, "quotas"), rule.quotas, policy.quotas, "quota")


def _check_seats(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    neutral = NEUTRAL_KINDS & set(rule.roles)
    personal = [name for name in rule.datasets if policy.datasets[name].personal != "none"]
    if rule.datasets and (neutral - PUBLIC_KINDS or (neutral and personal)):
        document.fail(
            (*path, "roles"),
            f"{', '.join(sorted(neutral))}: a neutral role brings no dataset"
            + (f", least of all {personal[0]}, which is about persons" if personal else ""),
            code="neutral-with-dataset",
            hint="write a rule of its own for the neutral role, without datasets and columns; an aggregator "
            'may bring a public test set, a dataset with personal = "none"',
        )
    if not rule.datasets and (not rule.roles or set(rule.roles) - WITHOUT_DATASET):
        document.fail(
            (*path, "roles") if rule.roles else path,
            "a rule without datasets is for neutral roles and recipients only",
            code="role-without-dataset",
            hint=f"name datasets, or roles among {', '.join(sorted(WITHOUT_DATASET))}",
        )
    if rule.min_group_size is not None and rule.min_group_size < LEAST_GROUP:
        # Nothing but exact sums of rounds is of groups of whatever size.
        rounds = _summed_in_rounds(JOB_TYPES)
        if rule.min_group_size != 1 or not rule.exact_training or set(rule.job_types) - rounds:
            document.fail(
                (*path, "min_group_size"),
                f"a smallest group of {rule.min_group_size}: figures about so few tell of single persons",
                code="group-too-small",
                hint=f"write {LEAST_GROUP} or more; 1 says that exact sums may tell of single persons, in a "
                f"rule for {', '.join(sorted(rounds))} alone, with exact_training = true",
            )
    if not rule.datasets and rule.persons_in is not None:
        document.fail(
            (*path, "persons_in"),
            "whoever brings no dataset has nobody to hide",
            code="persons-in-without-dataset",
            hint="remove it: those who give data say how many departments one person may be in",
        )
    if rule.datasets and not rule.columns:
        document.fail(
            path, "datasets without columns", code="no-columns", hint="list the columns a job may use"
        )


def _check_only(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    if rule.only and not rule.datasets:
        document.fail(
            (*path, "only"),
            "whoever brings no dataset has no rows to keep to",
            code="bad-only",
            hint="remove it: those who give data say which rows their rule is for",
        )
    for name, values in rule.only.items():
        where = (*path, "only", name)
        if name not in rule.columns:
            document.fail(
                where,
                "not among the rule's columns, so no job could name it, and each would be refused",
                code="bad-only",
                hint=f"add {name} to the rule's columns; they are: {', '.join(rule.columns)}",
            )
        for dataset in rule.datasets:
            column = policy.datasets[dataset].columns.get(name)
            if column is None:
                document.fail(
                    where,
                    f"dataset {dataset} has no such column, so every job over it would be refused",
                    code="bad-only",
                    hint="write one rule for each dataset",
                )
            if column.type not in TEXTS or RESTRICTING.isdisjoint(column.use):
                document.fail(
                    where,
                    f"column {name} of {dataset} is of type {column.type} for {', '.join(column.use)}: "
                    "no job could be restricted by it",
                    code="bad-only",
                    hint=f"use a column of type {', '.join(TEXTS)} that has the use filter or group",
                )
            for index, value in enumerate(values):
                if column.values is not None and value not in column.values:
                    document.fail(
                        (*where, index),
                        f"column {name} of {dataset} has no such value in this policy",
                        code="bad-only",
                        hint=f"its values are: {shortened(column.values)}",
                    )


def _check_spending(document: Document, policy: Policy, rule: Rule, path: Path) -> None:
    if rule.budget is None:
        if rule.max_cost is not None:
            document.fail(
                (*path, "max_cost"),
                "no budget that a cost could be charged to",
                code="no-budget",
                hint="name a budget of the rule's dataset, or remove max_cost",
            )
    else:
        budget = policy.budgets[rule.budget]
        # With a second dataset, a job over that one would go uncharged.
        if rule.datasets != (budget.dataset,):
            document.fail(
                (*path, "budget"),
                f"the budget is for dataset {budget.dataset}, the rule for "
                + (", ".join(rule.datasets) or "none at all"),
                code="bad-budget",
                hint="write one rule for each dataset, each with a budget of its own",
            )
        if rule.max_cost is not None:
            _check_cost(document, (*path, "max_cost"), rule.max_cost)
            if rule.max_cost > budget.limit:
                document.fail(
                    (*path, "max_cost"),
                    f"more than the whole limit of budget {rule.budget}",
                    code="bad-number",
                    hint="write what one job may cost, at most the limit",
                )
    if len(rule.quotas) > MAX_QUOTAS_PER_RULE:
        document.fail(
            (*path, "quotas"),
            f"{len(rule.quotas)} quotas, at most {MAX_QUOTAS_PER_RULE}",
            code="too-many-quotas",
            hint="keep the strictest ones",
        )
    for index, name in enumerate(rule.quotas):
        dataset = policy.quotas[name].dataset
        if dataset not in rule.datasets:
            document.fail(
                (*path, "quotas", index),
                f"the quota is for dataset {dataset}, which the rule does not name",
                code="bad-quota",
                hint="name a quota of one of the rule's datasets: " + (", ".join(rule.datasets) or "none"),
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
    if len(rule.approvers) > MAX_APPROVERS_PER_RULE:
        document.fail(
            (*path, "approvers"),
            f"{len(rule.approvers)} capacities, at most {MAX_APPROVERS_PER_RULE}",
            code="too-many-approvers",
            hint="put several people's keys under one capacity",
        )
    important = [name for name in rule.datasets if policy.datasets[name].grade == "important"]
    if important:
        _check_two_people(document, rule, path, f"a job over important data ({', '.join(important)})")


def _check_two_people(document: Document, rule: Rule, path: Path, what: str) -> None:
    if rule.approvals < TWO_PEOPLE:
        document.fail(
            (*path, "approvals"),
            f"{rule.approvals} approvals, but {what} takes at least {TWO_PEOPLE}",
            code="too-few-approvals",
            hint=f"write approvals = {TWO_PEOPLE}, and approvers who can give them",
        )


def _check_directed(
    document: Document, policy: Policy, rule: Rule, path: Path, directed: frozenset[str]
) -> None:
    class_b = directed & set(rule.job_types)
    if not class_b:
        return
    kinds = ", ".join(sorted(class_b))
    for guard in (*_CLASS_B_GUARDS, "rate") if rule.datasets else _CLASS_B_GUARDS:
        if getattr(rule, guard) is None:
            document.fail(
                path,
                f"{kinds} releases records about persons, so {guard} is required",
                code="missing-guard",
                hint=f"add {guard}, for example {_GUARD_EXAMPLES[guard]}",
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
    if rule.datasets:
        _check_two_people(document, rule, path, f"giving data to {kinds}")
    if rule.min_sources == 1:
        # Whoever is on one list alone stands under no lock, so the matcher could open every record.
        _check_two_people(document, rule, path, f"{kinds} with min_sources = 1, at any seat,")


def _check_series(document: Document, rule: Rule, path: Path, serial: frozenset[str]) -> None:
    """Refuse a rule by which keys of a series would be kept for nobody knows how long."""
    kinds = ", ".join(sorted(serial & set(rule.job_types)))
    if kinds and rule.datasets and rule.max_series_days is None:
        document.fail(
            path,
            f"{kinds} keeps keys and lists from day to day, so max_series_days is required",
            code="missing-guard",
            hint=f"add max_series_days, for example {_GUARD_EXAMPLES['max_series_days']}",
        )


def _check_standing(
    document: Document, policy: Policy, rule: Rule, path: Path, standing: frozenset[str]
) -> None:
    """Refuse a rule by which a session could look up everybody: a number and a rate stand against that."""
    kinds = ", ".join(sorted(standing & set(rule.job_types)))
    if not kinds or not rule.datasets:
        return
    if rule.max_per_minute is None:
        document.fail(
            path,
            f"{kinds} answers about one person after another, so max_per_minute is required",
            code="missing-guard",
            hint=f"add max_per_minute, for example {_GUARD_EXAMPLES['max_per_minute']}",
        )
    quotas = [policy.quotas[name] for name in rule.quotas]
    counted = {quota.dataset for quota in quotas if quota.counts == "rows"}
    if without := [name for name in rule.datasets if name not in counted]:
        document.fail(
            (*path, "quotas") if rule.quotas else path,
            f"{kinds} answers about one person after another, so a quota of rows is required for "
            + ", ".join(without),
            code="missing-guard",
            hint='add a quota with counts = "rows", for example one of scope per-requester and period day',
        )


def _check_numbers(document: Document, rule: Rule, path: Path) -> None:
    for key, value in (("max_fraction", rule.max_fraction), ("min_coverage", rule.min_coverage)):
        if value is not None and not Fraction(0) < value <= 1:
            document.fail(
                (*path, key),
                "expected more than 0 and at most 1",
                code="bad-number",
                hint=f"write a share of one, for example {_GUARD_EXAMPLES[key]} for "
                + ("30 %" if key == "max_fraction" else "80 %"),
            )
        if value is not None and value.denominator > MAX_DENOMINATOR:
            document.fail(
                (*path, key),
                "expected at most 18 places after the point",
                code="bad-number",
                hint="round it: every participant must be told this share exactly",
            )
    if rule.window is not None and rule.window.from_ == rule.window.to:
        document.fail(
            (*path, "window"),
            "from and to are the same time: never open, or always?",
            code="bad-window",
            hint="write when it closes; for whole days write from = 00:00:00, to = 23:59:59",
        )


def _check_negative_list(document: Document, policy: Policy) -> None:
    for number, entry in enumerate(policy.negative_list):
        # A slip of the pen here would forbid nothing, and nobody would notice.
        path = ("negative_list", number, "dataset")
        _refer_one(document, path, entry.dataset, policy.datasets, "dataset")
        unit = policy.datasets[entry.dataset].unit
        if unit is not None and spelt_alike(entry.column, unit.column):
            document.fail(
                ("datasets", entry.dataset, "unit"),
                f"its column is on the negative list ({entry.reason}), and read wherever persons are counted",
                code="negative-list",
                hint="let another column say whom a row is about, or remove unit: then nobody is counted",
            )
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
        if (job := shared_job(first, second)) is not None:
            requester, purpose, job_type, seat = job
            document.fail(
                ("rules", index),
                f"rules {first.id} and {second.id} both fit one job, for example requester {requester}, "
                f"purpose {purpose}, job type {job_type}, {seat}",
                code="rules-overlap",
                hint="make them differ in requester, purpose, job type or dataset, or join them",
            )


def shared_job(first: Rule, second: Rule) -> tuple[str, str, str, str] | None:
    """Return requester, purpose, job type and `dataset NAME` of a job that fits both rules, None without one.

    Rules without datasets are told apart by their roles: `role NAME`.
    """
    word, *seats = (
        ("dataset", first.datasets, second.datasets)
        if first.datasets or second.datasets
        else ("role", first.roles, second.roles)
    )
    found: list[str] = []
    for ours, theirs in (
        (first.requesters, second.requesters),
        (first.purposes, second.purposes),
        (first.job_types, second.job_types),
        seats,
    ):
        both = set(ours) & set(theirs)
        if not both:
            return None
        found.append(min(both))
    requester, purpose, job_type, seat = found
    return requester, purpose, job_type, f"{word} {seat}"


def overlap(first: Rule, second: Rule) -> bool:
    """Return whether one job could fit both rules: requester × purpose × job type × dataset, or role."""
    return shared_job(first, second) is not None


def _check_stops(document: Document, stops: Sequence[Stop], policy: Policy | None = None) -> None:
    for index, stop in enumerate(stops):
        path = ("stops", index)
        if stop.scope == "all":
            if stop.value is not None:
                document.fail(
                    path,
                    "a stop of all has no value",
                    code="bad-stop",
                    hint="remove value, or name in scope what is to be stopped",
                )
            continue
        form, words = _STOP_VALUES[stop.scope]
        if stop.value is None:
            document.fail(
                path, f"value is missing: expected {words}", code="bad-stop", hint="add value, or stop all"
            )
        try:
            msgspec.convert(stop.value, form)
        except msgspec.ValidationError:
            document.fail(
                (*path, "value"),
                f"expected {words}",
                code="bad-stop",
                hint=f"write the {stop.scope} as the policy or the job list names it",
            )
        if policy is None or stop.scope == "job":
            continue
        known: dict[str, Iterable[str]] = {
            "requester": policy.requesters,
            "purpose": policy.purposes,
            "dataset": policy.datasets,
        }
        _refer_one(document, (*path, "value"), stop.value, known[stop.scope], stop.scope)
