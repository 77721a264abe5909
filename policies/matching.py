"""What a job asks of one seat, and whether one rule covers all of it: `decide`, steps (13) to (21)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from functools import reduce
from operator import or_
from typing import Final, Self

from policies.decision import Leak, Refuse
from policies.index import Clause, Derived, Index, Members
from policies.model import NEUTRAL_KINDS, PUBLIC_KINDS, Column, Dataset, Rule
from policies.words import (
    USES,
    count_words,
    figure,
    recipe_words,
    shortened,
)
from protocols.dp.cost import Cost
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    REQUESTER,
    WEIGHTS,
    ColumnNeed,
    CountsAcross,
    CountsEveryRow,
    Domain,
    ExactOrNoisy,
    JobType,
    OutputClass,
    PlannedRelease,
    RequesterBound,
    Separation,
    Serial,
    Standing,
    Trains,
)
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, JobInput, JobSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """What a well-formed job of a known type asks of one role, for a requester of that organisation.

    `needs` are by slot: a slot that is asked for several uses has to meet every one of them. `together` is
    what one organisation would learn that holds two seats which must be apart, empty where none does;
    `organisations` give data, `sources` is the smallest number of them that a record takes; `persons_in` is
    in how many of how many departments one person is taken to be at most; `spared` tells that the job could
    carry noise and does not; `lasting` is for how long a session answers people; `recipe` is by which a
    model is made, empty where none is; `day` is which day of a series the job is, 0 where there is none;
    `rows_of_one` is how many rows of one person the job reckons with, None where the node bounds them.
    """

    kinds: frozenset[str]
    needs: Mapping[str, tuple[ColumnNeed, ...]]
    releases: tuple[PlannedRelease, ...]
    together: str
    organisations: int
    sources: int
    query: Query | None
    persons_in: tuple[int, int] | None
    spared: bool
    lasting: timedelta
    recipe: str
    day: int
    rows_of_one: int | None

    @classmethod
    def of(cls, spec: JobSpec, job_type: JobType, role: Role, requester: Organisation) -> Self:
        """Ask the job type.

        Raises:
            InputError: the job is not well-formed for it.
        """
        job_type.check(spec)
        if isinstance(job_type, RequesterBound):
            job_type.check_requester(spec, requester)
        return cls(
            job_type.kinds(spec, role),
            _by_slot(job_type.columns(spec, role)),
            tuple(
                replace(release, recipient=requester) if release.recipient == REQUESTER else release
                for release in job_type.releases(spec)
            ),
            _together(job_type.separation(spec, requester)),
            len({given.organisation for given in spec.inputs}),
            job_type.sources_asked(spec),
            job_type.query(spec, role),
            job_type.persons_in(spec) if isinstance(job_type, CountsAcross) else None,
            isinstance(job_type, ExactOrNoisy) and job_type.exact(spec),
            _lasting(spec, job_type),
            job_type.recipe(spec) if isinstance(job_type, Trains) else "",
            job_type.day(spec) if isinstance(job_type, Serial) else 0,
            job_type.rows_of_one(spec) if isinstance(job_type, CountsEveryRow) else None,
        )


def _lasting(spec: JobSpec, job_type: JobType) -> timedelta:
    """Return how long a session of the job is open; for a job that answers once, no time."""
    if not isinstance(job_type, Standing):
        return timedelta(0)
    return timedelta(seconds=max(job_type.session_s(spec, role) or 0 for role in spec.roles))


def _by_slot(needs: Iterable[ColumnNeed]) -> dict[str, tuple[ColumnNeed, ...]]:
    found: dict[str, tuple[ColumnNeed, ...]] = {}
    for need in needs:
        found[need.slot] = (*found.get(need.slot, ()), need)
    return found


def _cost(job_type: JobType, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
    return job_type.cost(spec, role, constraints)


# A node decides about one job again and again, from offer to start, and job types read the spec each time.
asked_of: Final = Derived(Asked.of, keep=128)
cost_of: Final = Derived(_cost, keep=128)


def leaks_of(job_type: JobType, spec: JobSpec, role: Role) -> tuple[Leak, ...]:
    """Return the leakage statement, single roles first, so that the smallest coalitions are read first."""
    ordered = sorted(job_type.learns(spec).items(), key=lambda item: (len(item[0]), sorted(item[0])))
    return tuple(
        Leak(tuple(sorted(coalition)), statement, role in coalition)
        for coalition, statements in ordered
        for statement in statements
    )


# --- (13)


def fitting_clause(
    index: Index, spec: JobSpec, alias: str, brings: JobInput | None, kinds: Iterable[str]
) -> Clause | Refuse:
    """Return the one rule that fits, or say which dimension left none over."""
    if brings is None:
        seat = reduce(or_, (index.neutral.get(kind, 0) for kind in kinds), 0)
    else:
        seat = index.datasets.get(brings.dataset, 0)
    left = -1
    for those, code, word, word_zh in (
        (index.requesters.get(alias, 0), "requester-not-allowed", "requester", "申请方"),
        (index.purposes.get(spec.purpose, 0), "purpose-not-allowed", "purpose", "用途"),
        (index.job_types.get(spec.job_type, 0), "job-type-not-allowed", "job type", "任务类型"),
        (seat, "role-not-allowed", "role", "角色")
        if brings is None
        else (seat, "dataset-not-allowed", "dataset", "数据集"),
    ):
        left &= those
        if not left:
            return Refuse(
                code,
                f"No rule allows this {word}.",
                f"没有规则允许该{word_zh}。",
                "have a rule for it added to the policy, or ask within the rules there are",
                "请在策略中增加相应规则, 或在现有规则范围内申请",
            )
    # Rules cannot overlap; where two neutral ones are left, each covers a part of the seat, and (14) refuses.
    return index.clauses[(left & -left).bit_length() - 1]


# --- (14)


def check_roles(clause: Clause, kinds: frozenset[str]) -> Refuse | None:
    """Check that the rule covers everything the seat plays."""
    # A rule with datasets that names no roles opens them to data-giving roles, never to neutral ones.
    outside = kinds - clause.roles if clause.roles else kinds & NEUTRAL_KINDS
    if not outside and kinds:
        return None
    return Refuse(
        "role-not-allowed",
        f"The rule does not let this node play: {', '.join(sorted(outside)) or 'no known role'}.",
        f"规则不允许本节点担任: {', '.join(sorted(outside)) or '未知角色'}。",
        "give the seat to another node, or have the rule's roles extended",
        "请由其他节点担任, 或在规则中增加角色",
        clause.rule.id,
    )


def check_training(rule: Rule, asked: Asked) -> Refuse | None:
    """Check that the rule names the recipe of a model, and lets data be trained on without noise if it is."""
    listed = ", ".join(map(recipe_words, rule.recipes))
    if asked.recipe == WEIGHTS and asked.recipe not in rule.recipes:
        return Refuse(
            "recipe-not-allowed",
            "The job brings the weights of a score, and the rule does not say that it may.",
            "任务自带评分权重, 而规则未明确允许。",
            f"recipes of the rule: {listed or 'none'}; by weights, whoever asks chooses what a score is of",
            f"规则列明的训练方法: {listed or '无'}; 列入 weights 即由申请方决定评分说明什么",
            rule.id,
        )
    if asked.recipe and asked.recipe not in rule.recipes:
        return Refuse(
            "recipe-not-allowed",
            f"The rule does not let a model be made by this recipe: {recipe_words(asked.recipe)}.",
            f"规则不允许使用该训练方法: {recipe_words(asked.recipe)}。",
            f"recipes of the rule: {listed or 'none'}",
            f"规则允许的训练方法: {listed or '无'}",
            rule.id,
        )
    if asked.recipe and asked.spared and "source" in asked.kinds and not rule.exact_training:
        return Refuse(
            "exact-training",
            "The job trains without noise, and the rule does not say that it may.",
            "任务不加噪训练模型, 而规则未明确允许。",
            "ask with noise: give rho or epsilon; or have exact_training = true added to the rule",
            "请申请加噪训练: 填写 rho 或 epsilon; 或在规则中明确写入 exact_training = true",
            rule.id,
        )
    return None


def check_series(rule: Rule, asked: Asked, *, brings: bool) -> Refuse | None:
    """Check that the rule lets whoever keeps keys and lists for a series keep them until this day.

    A neutral seat keeps nothing. How old a series is by this node's clock, its shelf says to the party.
    """
    if not asked.day or (not brings and rule.max_series_days is None):
        return None
    if rule.max_series_days is None:
        return Refuse(
            "series-not-allowed",
            "The rule does not say for how many days the keys of a series may live.",
            "规则未写明逐日系列的密钥可保存多少天。",
            "have max_series_days added to the rule, or ask the question anew each time",
            "请在规则中写明 max_series_days, 或每次重新提问",
            rule.id,
        )
    if asked.day > rule.max_series_days:
        return Refuse(
            "series-over",
            f"This would be day {figure(asked.day)} of a series; the rule ends it after "
            f"{count_words(rule.max_series_days, 'day', 'days')}.",
            f"这将是系列的第 {figure(asked.day)} 天, 规则规定至多 {figure(rule.max_series_days)} 天。",
            "begin a new series: submit the question without first and day",
            "请开始新的系列: 提交不含 first 和 day 的任务",
            rule.id,
        )
    return None


def check_smallest_group(clause: Clause, asked: Asked) -> Refuse | None:
    """Check that whoever takes part in exact sums of every round has said that a group may be one person.

    A sum has one word for each code, however rare: of a code that one person has, it is that person's.
    """
    least = clause.constraints.min_group_size
    if not asked.spared or least is None or least <= 1:
        return None
    return Refuse(
        "guard-min-group",
        "Without noise each round's sums tell of single persons whose codes are rare; this rule asks for "
        f"groups of at least {figure(least)}.",
        f"不加噪训练时, 每轮合计会透露取值少见的个别人员; 本规则要求分组人数不少于 {figure(least)}。",
        "ask with noise: give rho or epsilon; or have exact_training = true and min_group_size = 1 stated in "
        "the rule",
        "请申请加噪训练: 填写 rho 或 epsilon; 或在规则中明确写入 exact_training = true 和 min_group_size = 1",
        clause.rule.id,
    )


def check_public(asked: Asked, dataset: Dataset | None, rule: str) -> Refuse | None:
    """Check that a neutral seat brings nothing but public data: it sees what sources see masked."""
    if dataset is None or dataset.personal == "none" or not asked.kinds & PUBLIC_KINDS:
        return None
    return Refuse(
        "not-public",
        "The dataset of this seat has to be about nobody; the policy says that it is personal.",
        "该角色只能提供公开数据, 而策略注明该数据集含个人信息。",
        'bring a dataset with personal = "none", or leave it out: sources then hold people out',
        '请改用 personal = "none" 的数据集, 或不提供数据集, 由各来源留出人员检验',
        rule,
    )


# --- (15)


def check_columns(
    dataset: Dataset,
    clause: Clause,
    job_type: str,
    brings: JobInput,
    needs: Mapping[str, tuple[ColumnNeed, ...]],
) -> Refuse | None:
    """Check that every column exists, is in the rule, of a fitting type, used as allowed, in its values."""
    rule = clause.rule
    for slot, name in sorted(brings.columns.items()):
        wanted, column = needs.get(slot, ()), dataset.columns.get(name)
        if not wanted:
            return Refuse(
                "unknown-slot",
                f"{job_type} has no column slot {slot} for this role.",
                f"{job_type} 的该角色没有列位 {slot}。",
                f"known slots: {', '.join(sorted(needs)) or 'none'}",
                f"可用列位: {', '.join(sorted(needs)) or '无'}",
                rule.id,
            )
        if column is None:
            return Refuse(
                "unknown-column",
                f"The policy does not list column {name}, so it does not exist for jobs.",
                f"策略未列出列 {name}, 对任务而言该列不存在。",
                "use a column that the catalogue lists",
                "请使用目录中列出的列",
                rule.id,
            )
        if name not in clause.columns:
            return Refuse(
                "column-not-allowed",
                f"The rule does not open column {name}.",
                f"规则没有开放列 {name}。",
                f"columns of the rule: {', '.join(rule.columns)}",
                f"规则开放的列: {', '.join(rule.columns)}",
                rule.id,
            )
        for need in wanted:
            if (no := _check_need(name, column, need, rule.id)) is not None:
                return no
    return None


def _check_need(name: str, column: Column, need: ColumnNeed, rule: str) -> Refuse | None:
    if need.use not in column.use:
        return Refuse(
            "column-use",
            f"Column {name} may not be used this way: {USES[need.use][0]}.",
            f"列 {name} 不可用于{USES[need.use][1]}。",
            f"its uses are: {', '.join(USES[use][0] for use in column.use)}",
            f"允许的用法: {'、'.join(USES[use][1] for use in column.use)}",
            rule,
        )
    if column.type not in need.types:
        return Refuse(
            "column-type",
            f"Column {name} is of type {column.type}, slot {need.slot} takes {', '.join(need.types)}.",
            f"列 {name} 的类型是 {column.type}, 列位 {need.slot} 需要 {', '.join(need.types)}。",
            "map the slot to a column of a fitting type",
            "请选择类型相符的列",
            rule,
        )
    return None if need.domain is None else _check_domain(name, column, need.domain, rule)


def _check_domain(name: str, column: Column, asked: Domain, rule: str) -> Refuse | None:
    """Hold what the job says of a column's values against the policy's words of it.

    The sentences say how many of the job's own values do not fit, not which: whoever wrote them knows.
    """
    said = {*asked.values, *asked.named}
    if column.values is not None and (strange := len(said.difference(column.values))):
        listed = shortened(column.values)
        return Refuse(
            "column-values",
            f"The job names {count_words(strange, 'value', 'values')} of column {name} "
            "that the policy does not list.",
            f"任务使用了 {strange} 个策略未列出的列 {name} 的取值。",
            f"use the values that the policy lists: {listed}",
            f"请使用策略列出的取值: {listed}",
            rule,
        )
    if asked.whole and said != set(column.values or ()):
        listed = shortened(column.values or ()) or "none / 无"
        return Refuse(
            "column-values",
            f"The job names other values of column {name} than all that the policy lists: chosen ones would "
            "count persons by them.",
            f"任务所列取值不是策略为列 {name} 列出的全部取值; 自行选定的取值等于按该列计数。",
            f"name a national code table, or just the policy's values: {listed}",
            f"请使用国家标准代码表, 或恰好列出策略的全部取值: {listed}",
            rule,
        )
    if column.bins is not None and (strange := len(set(asked.bins) - set(column.bins))):
        listed = shortened(map(figure, column.bins))
        return Refuse(
            "column-bins",
            f"{count_words(strange, 'group', 'groups')} of column {name} would begin where the policy lets "
            "none begin.",
            f"列 {name} 有 {strange} 个分组的起点不在策略允许之列。",
            f"begin groups at some of: {listed}",
            f"分组起点只能取自: {listed}",
            rule,
        )
    if column.bins is not None and asked.kept is not None and not _between_bins(column, asked.kept):
        listed = shortened(map(figure, column.bins))
        return Refuse(
            "column-bins",
            f"A filter of column {name} would cut where the policy lets no group begin.",
            f"列 {name} 的筛选边界不在策略允许的分组起点上。",
            "keep whole groups: let low begin one, and high end one (one less than where the next begins, "
            f"whole numbers only); groups begin at: {listed}",
            f"请筛选完整的分组: low 取分组起点, high 取下一分组起点减 1 (仅限整数列); 分组起点: {listed}",
            rule,
        )
    if not asked.covering and not asked.stated:
        return None
    if column.range is None:
        return Refuse(
            "column-range",
            f"The policy states no range for column {name}, so an exact sum of it has no bound.",
            f"策略未注明列 {name} 的范围, 其精确总和没有界限。",
            "have the column's range added to the policy, or ask for a release with noise",
            "请在策略中补充该列的范围, 或改用加噪结果",
            rule,
        )
    least, greatest = column.range
    if asked.bounds is None or not asked.bounds[0] <= least <= greatest <= asked.bounds[1]:
        within = f"{figure(least)} … {figure(greatest)}"
        return Refuse(
            "column-range",
            f"The job's bounds for column {name} leave out a part of the range that the policy states.",
            f"任务为列 {name} 设定的上下界未能涵盖策略注明的范围。",
            f"write bounds that hold all of {within}",
            f"请将上下界设为涵盖 {within}",
            rule,
        )
    if asked.stated and asked.bounds != column.range:
        within = f"{figure(least)} … {figure(greatest)}"
        return Refuse(
            "column-range",
            f"The job's bounds for column {name} are not the range that the policy states.",
            f"任务为列 {name} 设定的上下界与策略注明的范围不同。",
            f"write just {within}: bounds chosen otherwise would tell who is beyond them",
            f"请将上下界设为 {within}; 自行选定的界限会暴露超出者",
            rule,
        )
    return None


def _between_bins(column: Column, kept: tuple[Fraction | None, Fraction | None]) -> bool:
    """Whether a filter keeps whole groups: filters hold both their ends, groups not where the next begins."""
    low, high = kept
    begins = column.bins or ()
    # Of numbers with decimals, none is the last one before the next group.
    ends = high is None or (column.type == "int" and high + 1 in begins)
    return (low is None or low in begins) and ends


# --- (16)


def check_only(rule: Rule, brings: JobInput, needs: Mapping[str, tuple[ColumnNeed, ...]]) -> Refuse | None:
    """Check that the job keeps to the rows that the rule is for.

    Of each column of `only`, some part of the job says which values count, and no part names another one.
    Column names are compared to the letter, as everywhere: what is spelt otherwise is another column.
    """
    for name, allowed in rule.only.items():
        slots = [slot for slot, column in brings.columns.items() if column == name]
        asked = [
            need.domain.values
            for slot in slots
            for need in needs.get(slot, ())
            if need.domain is not None and need.domain.values
        ]
        outside = len({value for values in asked for value in values}.difference(allowed))
        if asked and not outside:
            continue
        listed = shortened(allowed)
        if outside:
            what = f"The job names {count_words(outside, 'value', 'values')} of column {name} outside them"
            what_zh = f"任务使用了其中未列出的 {outside} 个取值"
        else:
            what, what_zh = (
                f"The job does not say which values of column {name} count",
                "任务未限定该列的取值",
            )
        return Refuse(
            "outside-scope",
            f"The rule is only for rows whose {name} is one of: {listed}. {what}.",
            f"规则仅适用于列 {name} 取值为 {listed} 的记录, {what_zh}。",
            f"filter by column {name}, and name only values of the rule",
            f"请按列 {name} 筛选, 且只使用规则列出的取值",
            rule.id,
        )
    return None


# --- (17)


def check_unit(
    dataset: Dataset, brings: JobInput, job_type: JobType, rule: str, *, rows_of_one: int | None = None
) -> Refuse | None:
    """Refuse to count persons in data of which nobody says whom a row is about, or who may have more rows.

    `rows_of_one`: see `Asked`.
    """
    if rows_of_one is not None and dataset.unit is not None and dataset.unit.max_rows > rows_of_one:
        return Refuse(
            "unit-rows",
            f"The job reckons with {count_words(rows_of_one, 'row', 'rows')} of one person; in "
            f"{brings.dataset} one may have {figure(dataset.unit.max_rows)}, so small groups would show.",
            f"任务按每人至多 {rows_of_one} 行计, 而数据集 {brings.dataset} 每人可有 "
            f"{figure(dataset.unit.max_rows)} 行, 不足以掩护一个人的全部记录。",
            f"write unit_rows = {dataset.unit.max_rows}, or more where another department has more; or ask "
            "with noise",
            f"请填写 unit_rows = {dataset.unit.max_rows} (其他部门更大时取更大者), 或改用加噪结果",
            rule,
        )
    if not job_type.counts_units or dataset.personal == "none" or dataset.unit is not None:
        return None
    return Refuse(
        "missing-unit",
        f"{job_type.name} counts persons; the policy does not say whom a row of {brings.dataset} is about.",
        f"{job_type.name} 按人计数, 而策略未注明数据集 {brings.dataset} 每行属于谁。",
        f"have unit = {{ column = …, max_rows = … }} added under [datasets.{brings.dataset}]",
        f"请在策略的 [datasets.{brings.dataset}] 下补充 unit = {{ column = …, max_rows = … }}",
        rule,
    )


# --- (18)


def check_persons_in(asked: Asked, rule: Rule) -> Refuse | None:
    """Check how many departments share one person, by the job's word, against what the rule takes it for.

    Fewer departments mean less noise and smaller groups; where the word is wrong, persons are not hidden. A
    neutral seat's data are about nobody, see `check_public`.
    """
    if asked.persons_in is None or asked.kinds & PUBLIC_KINDS:
        return None
    stated, departments = asked.persons_in
    least = departments if rule.persons_in is None else min(rule.persons_in, departments)
    if stated >= least:
        return None
    return Refuse(
        "persons-in",
        f"The job takes a person to be in at most {stated} of {departments} departments; the rule asks for "
        f"at least {least}.",
        f"任务假定一人至多出现在 {departments} 个部门中的 {stated} 个, 规则要求至少按 {least} 个计。",
        f"write persons_in = {least}, or have persons_in lowered in the rule if people cannot be in more",
        f"请填写 persons_in = {least}; 若同一人确实不会出现在更多部门, 可在新版本规则中调低 persons_in",
        rule.id,
    )


# --- (19)


def check_recipients(
    clause: Clause,
    members: Members,
    spec: JobSpec,
    releases: Iterable[PlannedRelease],
    requester: Organisation,
) -> Refuse | None:
    """Check that nothing leaves for anybody whom the rule does not name."""
    allowed = _allowed(clause, members)
    outside = set(spec.recipients) - allowed
    for release in releases:
        if release.recipient in spec.recipients:
            continue
        # What is about groups may go to whom the rule lets ask; records only to whom it names.
        if release.recipient != requester or release.output_class is OutputClass.DIRECTED:
            outside.add(release.recipient)
    if not outside:
        return None
    return Refuse(
        "recipient-not-allowed",
        f"The rule does not let anything leave for: {', '.join(sorted(outside))}.",
        f"规则不允许向以下机构输出: {', '.join(sorted(outside))}。",
        f"recipients of the rule: {', '.join(sorted(allowed)) or 'none'}",
        f"规则允许的接收方: {', '.join(sorted(allowed)) or '无'}",
        clause.rule.id,
    )


def _allowed(clause: Clause, members: Members) -> frozenset[str]:
    """Return the organisations the rule names: outright, or as the organisation of a requester alias."""
    if not clause.recipient_keys:
        return clause.recipients
    analysts = (members.analysts.get(key) for key in clause.recipient_keys)
    return clause.recipients.union(analyst.organisation for analyst in analysts if analyst is not None)


# --- (20)


def check_separation(together: str, rule: str) -> Refuse | None:
    """Check that nobody holds two seats which must be apart."""
    if not together:
        return None
    return Refuse(
        "organisations-not-separate",
        "One organisation, or one and a part of it, holds two seats that must be apart; "
        f"which would learn {together}.",
        "同一机构(或其下属机构)占据了必须分离的两个角色, 合谋会泄露信息。",
        "give the seats to different organisations",
        "请由互不隶属的机构担任这些角色",
        rule,
    )


def _together(separation: Iterable[Separation]) -> str:
    """Return what one organisation would learn that holds two seats which must be apart; empty: none does."""
    for apart in separation:
        if any(one_house(this, that) for this in apart.these for that in apart.those):
            return apart.why
    return ""


def one_house(one: str, other: str) -> bool:
    """Whether two names are of one organisation, or of one and a part: `lab.police.example` is the police."""
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


# --- (21)


def check_enough(organisations: int, asked: int, constraints: Constraints, rule: str) -> Refuse | None:
    """Check that enough organisations give data, and that a record takes enough sources."""
    if constraints.min_organisations is not None and organisations < constraints.min_organisations:
        return Refuse(
            "too-few-organisations",
            f"{organisations} organisations give data, {constraints.min_organisations} are required.",
            f"提供数据的机构有 {organisations} 家, 至少需要 {constraints.min_organisations} 家。",
            "ask more organisations to take part",
            "请增加参与机构",
            rule,
        )
    if constraints.min_sources is not None and asked < constraints.min_sources:
        return Refuse(
            "too-few-sources",
            f"The job asks for persons on at least {count_words(asked, 'list', 'lists')}, "
            f"{constraints.min_sources} are required.",
            f"任务要求至少在 {asked} 份清单中出现, 规则要求 {constraints.min_sources} 份。",
            f"set k to {constraints.min_sources} or more",
            f"请将 k 设为 {constraints.min_sources} 或更大",
            rule,
        )
    return None
