"""What changes between two versions of a policy, as sentences for the person who signs the new one.

Each change is marked: looser, if some job may be answered that was refused before; tighter, if some job may
be refused that was answered before; both; or other, if no job is answered differently. A mark may say looser
where in the end nothing is, never the other way round: where every mark says tighter or other, no job that
the old version refuses is permitted by the new one, whatever the old one has answered by then.

That a job's cost rests on no constraint but `max_rows` is part of that argument; a test holds every job type
to it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from enum import IntFlag
from fractions import Fraction
from functools import reduce
from operator import or_
from typing import Any, Final, TypeVar, get_args
from zoneinfo import ZoneInfo

import msgspec

from policies.explain import Language
from policies.model import (
    NEUTRAL_KINDS,
    Budget,
    Column,
    Dataset,
    Day,
    Grade,
    Policy,
    Quality,
    Quota,
    Rate,
    RoleKind,
    Rule,
    Sensitivity,
    Window,
    Witnessing,
)
from policies.quality import METRICS, key_fields_of
from policies.words import (
    GRADES,
    NOTIONS,
    SCOPES,
    SENSITIVITIES,
    USES,
    Words,
    count_words,
    figure,
    least_persons_words,
    limit_words,
    only_words,
    period_words,
    rate_words,
    share,
    stop_words,
    window_words,
)
from protocols.quality import Metric


class Effect(IntFlag):
    """What a change does to the jobs that are answered."""

    OTHER = 0
    LOOSER = 1
    TIGHTER = 2
    BOTH = 3


WORDS: Final[dict[Effect, Words]] = {
    Effect.LOOSER: ("looser", "放宽"),
    Effect.BOTH: ("both", "宽严兼有"),
    Effect.TIGHTER: ("tighter", "收紧"),
    Effect.OTHER: ("other", "其他"),
}
"""Each effect in English and Chinese, in the order in which a signer reads."""

_WEEK: Final = timedelta(days=7)
_DAY: Final = timedelta(days=1)

_WITHIN: Final = {
    "hour": {"hour"},
    "day": {"hour", "day"},
    "week": {"hour", "day", "week"},
    "month": {"hour", "day", "month"},
    "quarter": {"hour", "day", "month", "quarter"},
    "year": {"hour", "day", "month", "quarter", "year"},
}
"""Period → the periods that never straddle two of it: a week may lie in two months."""

_RISES_FALLS: Final = (("rises", "提高"), ("falls", "降低"))
_LATER_EARLIER: Final = (("moves", "推迟"), ("moves", "提前"))
_STAYS_SPENT: Final = ("; what was spent stays spent", "; 已用掉的不返还")
_NOTHING: Final = ("", "")

_RULE_LISTS: Final[tuple[tuple[str, Words, Words], ...]] = (
    ("requesters", ("{} may now ask, too", "增加申请方 {}"), ("{} may no longer ask", "取消申请方 {}")),
    ("purposes", ("now also serves {}", "增加用途 {}"), ("no longer serves {}", "取消用途 {}")),
    ("job_types", ("now also allows {}", "增加任务类型 {}"), ("no longer allows {}", "取消任务类型 {}")),
    ("columns", ("now also opens column {}", "增加列 {}"), ("no longer opens column {}", "取消列 {}")),
    (
        "recipes",
        ("now also lets models be made by {}", "增加训练方法 {}"),
        ("no longer lets models be made by {}", "取消训练方法 {}"),
    ),
)
"""Field, what came, what went; more of each lets more through."""

_RULE_BOUNDS: Final[tuple[tuple[str, Words, Callable[[Any], str]], ...]] = (
    ("min_group_size", ("the smallest group", "最小分组人数"), figure),
    (
        "min_organisations",
        ("the number of organisations that must give data", "提供数据的机构数下限"),
        figure,
    ),
    ("min_sources", ("the number of lists a person must be on", "人员须出现的清单数下限"), figure),
    ("max_rows", ("the row cap", "名单条数上限"), figure),
    ("max_fraction", ("the largest share that a list may name", "名单人数占比上限"), share),
    ("min_coverage", ("the least coverage of each source", "对每个来源的覆盖率下限"), share),
    ("max_runtime_s", ("the longest run in seconds", "运行秒数上限"), figure),
    ("max_per_minute", ("the number of look-ups a minute", "每分钟核验次数上限"), figure),
    ("max_duplicates", ("the largest share of repeated rows", "标识重复行占比上限"), share),
    ("max_cost", ("what one job may cost the budget", "每个任务占用预算的上限"), figure),
    ("approvals", ("the number of approvals", "审批份数"), figure),
)
"""Field, its name, how its value is written; `max_…` limits from above, the others from below."""

_QUALITY_BOUNDS: Final[tuple[tuple[str, Words, Callable[[Any], str]], ...]] = (
    ("min_completeness", ("the least share of rows with each key field", "关键字段完整率下限"), share),
    ("min_valid_keys", ("the least share of valid identifiers", "标识有效率下限"), share),
    ("max_age_days", ("the greatest age in days", "数据时效天数上限"), figure),
    ("max_drift", ("the largest drift from the catalogue", "与目录偏差上限"), share),
    ("max_repeated", ("the largest share of repeated rows", "标识重复行占比上限"), share),
)
"""As `_RULE_BOUNDS`, of a dataset's quality."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `clause` is where in the file, rules by their id: `rules.R5.max_rows`."""

    clause: str
    effect: Effect
    en: str
    zh: str


def diff(old: Policy, new: Policy, *, follows: bool = False) -> tuple[Change, ...]:
    """Return every change from `old` to `new`, in the order of the file; none where both say the same.

    Where `new` follows `old`, another number and the digest of the one before go without saying.
    """
    if follows:
        old = msgspec.structs.replace(old, version=new.version, previous=new.previous)
    found: list[Change] = []
    page = _Page(found, "", ("The policy", "策略"))
    _header(page, old, new)
    _requesters(page, old, new)
    _purposes(page, old, new)
    _datasets(page, old, new)
    _limits(page, old, new)
    _rules(page, old, new)
    _approvers(page, old, new)
    _negative_list(page, old, new)
    _stops(page, old, new)
    if not found and old != new:
        page.add("", ("only the order of lists differs", "仅列表顺序不同"))
    return tuple(found)


def overall(changes: Iterable[Change]) -> Effect:
    """Return what all changes together do."""
    return reduce(or_, (change.effect for change in changes), Effect.OTHER)


def summary(changes: Collection[Change], language: Language) -> str:
    """Return one sentence: does the new version loosen, tighten, or both?"""
    looser = sum(Effect.LOOSER in change.effect for change in changes)
    tighter = sum(Effect.TIGHTER in change.effect for change in changes)

    def places(number: int) -> str:
        return count_words(number, "place", "places")

    sentences: dict[Effect, Words] = {
        Effect.LOOSER: (
            f"It loosens, in {places(looser)}: jobs that were refused may be answered.",
            f"放宽 {looser} 处: 原先拒绝的任务可能获得答复。",
        ),
        Effect.BOTH: (
            f"It loosens, in {places(looser)}, and tightens, in {figure(tighter)}.",
            f"放宽 {looser} 处, 收紧 {tighter} 处, 请逐条阅读。",
        ),
        Effect.TIGHTER: (
            f"It only tightens, in {places(tighter)}: no job that was refused is answered now.",
            f"仅收紧 {tighter} 处: 原先拒绝的任务仍不会获得答复。",
        ),
        Effect.OTHER: (
            "It neither loosens nor tightens: every job is answered as before.",
            "既不放宽也不收紧: 对所有任务的答复不变。",
        ),
    }
    return sentences[overall(changes)][language == "zh"]


def _either(*, looser: bool, tighter: bool) -> Effect:
    return (Effect.LOOSER if looser else Effect.OTHER) | (Effect.TIGHTER if tighter else Effect.OTHER)


def _tighter_if(condition: bool) -> Effect:
    return Effect.TIGHTER if condition else Effect.LOOSER


def _shared(old: Mapping[str, _T], new: Mapping[str, _T]) -> Iterator[tuple[str, _T, _T]]:
    """Yield what both versions have, by name."""
    return ((name, before, new[name]) for name, before in old.items() if name in new)


@dataclass(frozen=True, slots=True)
class _Page:
    """Collects what is said of one thing: `clause` in the file, `subject` of the sentences."""

    found: list[Change]
    clause: str
    subject: Words

    def at(self, clause: str, subject: Words) -> "_Page":
        """Return a page for another thing that goes to the same list."""
        return _Page(self.found, clause, subject)

    def add(self, key: str, says: Words, effect: Effect = Effect.OTHER) -> None:
        clause = ".".join(part for part in (self.clause, key) if part)
        en, zh = (f"{subject}: {text}" for subject, text in zip(self.subject, says, strict=True))
        self.found.append(Change(clause, effect, en, zh))

    def value(
        self,
        key: str,
        what: Words,
        old: _T | None,
        new: _T | None,
        effect: Effect = Effect.OTHER,
        *,
        words: Callable[[_T], Words] = lambda value: (str(value), str(value)),
        then: Words = _NOTHING,
    ) -> None:
        """Note a value that is another one now, in `words`; `then` is what follows from that."""
        if old != new:
            before, after = (("none", "无") if value is None else words(value) for value in (old, new))
            en, zh = (f"{w} {b} → {a}{t}" for w, b, a, t in zip(what, before, after, then, strict=True))
            self.add(key, (en, zh), effect)

    def bound(
        self,
        key: str,
        what: Words,
        old: Any,
        new: Any,
        *,
        tighter_up: bool,
        show: Callable[[Any], str] = figure,
        verbs: tuple[Words, Words] = _RISES_FALLS,
        then: tuple[Words, Words] = (_NOTHING, _NOTHING),
        besides: Effect = Effect.OTHER,
    ) -> None:
        """Note a limit that moved; None: there is none.

        `then` is what follows from going up, and from going down; `besides` adds to the move's own effect.
        """
        if old == new:
            return
        (en, zh), up = what, old is None or (new is not None and new > old)
        if old is None:
            says, effect = (
                (f"{en} is now {show(new)}; there was no limit", f"{zh}新设为 {show(new)}"),
                Effect.TIGHTER,
            )
        elif new is None:
            says, effect = (
                (f"{en} has no limit now; it was {show(old)}", f"{zh}取消, 原为 {show(old)}"),
                Effect.LOOSER,
            )
        else:
            verb, effect = verbs[not up], _tighter_if(up == tighter_up)
            before, after = show(old), show(new)
            says = (f"{en} {verb[0]} from {before} to {after}", f"{zh}由 {before} {verb[1]}到 {after}")
        more = then[not up]
        self.add(key, (says[0] + more[0], says[1] + more[1]), effect | besides)

    def members(
        self,
        key: str,
        old: Iterable[str],
        new: Iterable[str],
        came: Words,
        went: Words,
        *,
        more: Effect = Effect.LOOSER,
        besides: Effect = Effect.OTHER,
        words: Callable[[str], Words] = lambda name: (name, name),
    ) -> None:
        """Note what came into a list and what left it, `{}` in a sentence; `more`: what a longer one does."""

        def said(sentence: Words, name: str) -> Words:
            en, zh = (text.replace("{}", word) for text, word in zip(sentence, words(name), strict=True))
            return en, zh

        before, after = dict.fromkeys(old), dict.fromkeys(new)
        for name in after:
            if name not in before:
                self.add(key, said(came, name), more | besides)
        for name in before:
            if name not in after:
                self.add(key, said(went, name), (Effect.BOTH ^ more) | besides)

    def tables(
        self,
        table: str,
        what: Words,
        old: Mapping[str, _T],
        new: Mapping[str, _T],
        came: Effect = Effect.OTHER,
    ) -> Iterator[tuple["_Page", _T, _T]]:
        """Note named tables that came or went, and yield a page for each that stayed.

        Most count only where a rule names them, and rules that changed are said at the rules: effect other.
        """
        for name in new:
            if name not in old:
                page = self.at(f"{table}.{name}", (f"{what[0]} {name}", f"{what[1]} {name}"))
                page.add("", ("is new; rules say what for", "新增, 用处见规则"), came)
        for name in old:
            if name not in new:
                page = self.at(f"{table}.{name}", (f"{what[0]} {name}", f"{what[1]} {name}"))
                page.add("", ("is removed", "删除"), Effect.BOTH ^ came if came else came)
        for name, before, after in _shared(old, new):
            yield self.at(f"{table}.{name}", (f"{what[0]} {name}", f"{what[1]} {name}")), before, after


# -- the head of the file ----------------------------------------------------------------------------------


def _header(page: _Page, old: Policy, new: Policy) -> None:
    page.value("policy_id", ("for node", "适用节点"), old.policy_id, new.policy_id, Effect.BOTH)
    page.value("version", ("version", "版本"), old.version, new.version)
    page.value("previous", ("the version before it", "前一版本"), old.previous, new.previous)
    zone = ZoneInfo(new.timezone)

    def show(moment: datetime) -> str:
        local = moment.astimezone(zone)
        return f"{local:%Y-%m-%d %H:%M:%S}".removesuffix(":00")

    begins, ends = ("the beginning of its validity", "生效时间"), ("the end of its validity", "失效时间")
    times = (("not_before", begins, True), ("expires", ends, False))
    for key, what, tighter_up in times:
        before, after = getattr(old, key), getattr(new, key)
        page.bound(key, what, before, after, tighter_up=tighter_up, show=show, verbs=_LATER_EARLIER)
    # Another zone moves the ends of days, periods and windows.
    zones = ("days, hours and periods are those of", "日期、时段和周期所按时区")
    page.value("timezone", zones, old.timezone, new.timezone, Effect.BOTH)
    page.value("controller", ("who answers for it", "制定单位"), old.controller, new.controller)
    page = page.at("defaults", ("Where a rule says nothing", "规则未规定时"))
    group, runtime = ("the smallest group", "最小分组人数"), ("the longest run in seconds", "运行秒数上限")
    was, now = old.defaults, new.defaults
    page.bound("min_group_size", group, was.min_group_size, now.min_group_size, tighter_up=True)
    page.bound("max_runtime_s", runtime, was.max_runtime_s, now.max_runtime_s, tighter_up=False)
    page = page.at("defaults", ("Everywhere", "全部规则"))
    days = ("the days between exact answers about overlapping groups", "对重叠人群给出精确答案的间隔天数")
    page.bound("differencing_days", days, was.differencing_days, now.differencing_days, tighter_up=True)
    needs, stricter = ("a release waits for", "输出前须具备"), now.release_requires == "cosigned"
    page.value("release_requires", needs, was.release_requires, now.release_requires, _tighter_if(stricter))
    _witnesses(page, old, new)
    page, keep, kept = page.at("retention", ("Kept", "保存期限")), old.retention, new.retention
    page.value(
        "journal_days",
        ("job texts and approvals, days", "任务文本和审批天数"),
        keep.journal_days,
        kept.journal_days,
    )
    days, shorter = ("releases, days", "输出天数"), kept.release_days < keep.release_days
    page.value("release_days", days, keep.release_days, kept.release_days, _tighter_if(shorter))


def _witnesses(page: _Page, old: Policy, new: Policy) -> None:
    if old.witnesses == new.witnesses:
        return
    page = page.at("witnesses", ("Witnesses", "见证"))
    was, now = old.witnesses or Witnessing(), new.witnesses or Witnessing()
    listed = bool(was.organisations and now.organisations)
    if old.defaults.release_requires != new.defaults.release_requires:
        # Nothing waited for witnesses, or nothing does any more: all that is said of them goes with that.
        quorum = others = _tighter_if(new.defaults.release_requires == "cosigned")
    elif listed and was.quorum and now.quorum:
        quorum, others = _tighter_if(was.quorum < now.quorum), Effect.OTHER
    else:
        # A quorum that is not stated goes with the number of witnesses. One that is too small for their
        # number is refused, since two need share nobody: then a larger one lets more through.
        quorum = others = Effect.BOTH
    seen_by = ("what this node did must have been seen by", "本节点的操作记录须经见证的机构数")
    page.value("quorum", seen_by, _seen_by(old), _seen_by(new), quorum, words=lambda said: said)
    if listed:
        came, went = ("{} now counts, too", "增加见证机构 {}"), ("{} no longer counts", "取消见证机构 {}")
        page.members("organisations", was.organisations, now.organisations, came, went, besides=others)
    else:
        counts = ("who counts", "见证机构")
        page.value("organisations", counts, _counting(old), _counting(new), others, words=lambda said: said)


def _seen_by(policy: Policy) -> Words:
    if policy.defaults.release_requires != "cosigned":
        return ("nobody", "无")
    if policy.witnesses is None or policy.witnesses.quorum is None:
        return ("more than two thirds of them", "超过三分之二")
    return (figure(policy.witnesses.quorum),) * 2


def _counting(policy: Policy) -> Words:
    if policy.defaults.release_requires != "cosigned":
        return ("nobody", "无")
    if policy.witnesses is None or not policy.witnesses.organisations:
        return ("every other organisation that witnesses", "其他所有见证机构")
    return (", ".join(policy.witnesses.organisations),) * 2


# -- who, what for, which data -----------------------------------------------------------------------------


def _requesters(page: _Page, old: Policy, new: Policy) -> None:
    # What a key that is listed nowhere has spent counts against everybody, so listing it frees the others.
    came = Effect.LOOSER
    for here, was, now in page.tables(
        "requesters", ("Requester", "申请方"), old.requesters, new.requesters, came
    ):
        _keys(here, was.keys, now.keys, ("may now ask with key {}, too", "增加密钥 {}"))
        # What it means for rules that name the alias as a recipient is said at those rules.
        effect = _either(looser=was.organisation is not None, tighter=now.organisation is not None)
        here.value("organisation", ("must belong to", "须属于"), was.organisation, now.organisation, effect)


def _approvers(page: _Page, old: Policy, new: Policy) -> None:
    for here, was, now in page.tables("approvers", ("Approver", "审批人"), old.approvers, new.approvers):
        _keys(here, was.keys, now.keys, ("may now approve with key {}, too", "增加密钥 {}"))


def _keys(here: _Page, old: Iterable[str], new: Iterable[str], came: Words) -> None:
    here.members("keys", old, new, came, ("key {} counts no longer", "取消密钥 {}"))


def _purposes(page: _Page, old: Policy, new: Policy) -> None:
    # What was spent for a purpose that is listed nowhere counts for every other, as with keys.
    came = Effect.LOOSER
    for here, was, now in page.tables("purposes", ("Purpose", "用途"), old.purposes, new.purposes, came):
        here.value("title", ("title", "名称"), was.title, now.title)
        here.value("legal_basis", ("legal basis", "依据"), was.legal_basis, now.legal_basis, Effect.BOTH)
        until = ("its last day", "截止日")
        verbs = _LATER_EARLIER
        here.bound(
            "valid_until", until, was.valid_until, now.valid_until, tighter_up=False, show=str, verbs=verbs
        )


def _datasets(page: _Page, old: Policy, new: Policy) -> None:
    for here, was, now in page.tables("datasets", ("Dataset", "数据集"), old.datasets, new.datasets):
        # The ledger's rows are of a source: another one has none yet.
        then = ("; what is spent begins at zero", "; 已用额度从零起算")
        here.value("source", ("comes from", "来源"), was.source, now.source, Effect.BOTH, then=then)
        grades, kinds = get_args(Grade)[::-1], get_args(Sensitivity)
        higher = grades.index(now.grade) > grades.index(was.grade)
        effect = _tighter_if(higher)
        here.value("grade", ("grade", "分级"), was.grade, now.grade, effect, words=GRADES.__getitem__)
        higher = kinds.index(now.personal) > kinds.index(was.personal)
        here.value(
            "personal",
            ("personal information", "个人信息"),
            was.personal,
            now.personal,
            _tighter_if(higher),
            words=SENSITIVITIES.__getitem__,
        )
        _unit(here, was, now)
        _quality(here, was, now)
        name = here.clause.removeprefix("datasets.")
        # A rule over several datasets may name a column that this one had not.
        named = {c for rule in (*old.rules, *new.rules) if name in rule.datasets for c in rule.columns}
        for column in now.columns:
            if column not in was.columns:
                effect = Effect.LOOSER if column in named else Effect.OTHER
                here.add(f"columns.{column}", (f"now also lists column {column}", f"增列 {column}"), effect)
        for column in was.columns:
            if column not in now.columns:
                effect = Effect.TIGHTER if column in named else Effect.OTHER
                here.add(
                    f"columns.{column}", (f"no longer lists column {column}", f"不再列出列 {column}"), effect
                )
        for column, before, after in _shared(was.columns, now.columns):
            subject = (f"Column {name}.{column}", f"列 {name}.{column}")
            _column(here.at(f"datasets.{name}.columns.{column}", subject), before, after)


def _unit(here: _Page, old: Dataset, new: Dataset) -> None:
    was, now = old.unit, new.unit
    column = ("the column that says whom a row is about", "个人标识列")
    # Where persons are counted, no job is answered without one; another one counts other persons.
    here.value(
        "unit",
        column,
        None if was is None else was.column,
        None if now is None else now.column,
        Effect.BOTH,
    )
    if was is not None and now is not None:
        here.bound(
            "unit",
            ("the most rows of one person", "每人行数上限"),
            was.max_rows,
            now.max_rows,
            tighter_up=False,
        )


def _quality(here: _Page, old: Dataset, new: Dataset) -> None:
    none, subject = Quality(), here.subject
    was, now = old.quality or none, new.quality or none
    here = here.at(f"{here.clause}.quality", (f"{subject[0]}, quality", f"{subject[1]}质量"))
    for key, what, show in _QUALITY_BOUNDS:
        tighter_up = key.startswith("min")
        here.bound(key, what, getattr(was, key), getattr(now, key), tighter_up=tighter_up, show=show)
    if was.min_completeness is None or now.min_completeness is None:
        return
    # Without a list they follow from how columns are used, and change with that.
    before, after = key_fields_of(old), key_fields_of(new)
    asked = ("column {} must be complete, too", "增加关键字段 {}")
    free = ("column {} need no longer be complete", "取消关键字段 {}")
    here.members("key_fields", before, after, asked, free, more=Effect.TIGHTER)
    if set(before) == set(after):
        says = ("lists the columns that must be complete", "列明关键字段")
        lists = (", ".join(was.key_fields) or None, ", ".join(now.key_fields) or None)
        here.value("key_fields", says, *lists)


def _column(here: _Page, old: Column, new: Column) -> None:
    here.value("type", ("type", "类型"), old.type, new.type, Effect.BOTH)
    came, went = ("now also for: {}", "增加用法 {}"), ("no longer for: {}", "取消用法 {}")
    here.members("use", old.use, new.use, came, went, words=USES.__getitem__)
    if old.values is None or new.values is None:
        effect = _tighter_if(new.values is not None)
        here.value("values", ("values", "取值"), _listed(old.values), _listed(new.values), effect)
    else:
        came, went = ("now also with value {}", "增加取值 {}"), ("no longer with value {}", "取消取值 {}")
        here.members("values", old.values, new.values, came, went)
    # A wider range keeps more values, and fewer jobs have bounds that hold all of it; without one no exact
    # sum is answered.
    here.value("range", ("range", "范围"), _listed(old.range), _listed(new.range), Effect.BOTH)
    # Finer groups tell more; which of two groupings is finer is left to the reader.
    here.value("bins", ("groups begin at", "分组起点"), _listed(old.bins), _listed(new.bins), Effect.BOTH)


def _listed(items: Iterable[str | Fraction] | None) -> str | None:
    return None if items is None else ", ".join(i if isinstance(i, str) else figure(i) for i in items)


# -- budgets and quotas ------------------------------------------------------------------------------------


def _limits(page: _Page, old: Policy, new: Policy) -> None:
    for here, was, now in page.tables("budgets", ("Budget", "预算"), old.budgets, new.budgets):
        _limit(here, was, now)
        here.value(
            "notion", ("counts", "计量"), was.notion, now.notion, Effect.BOTH, words=NOTIONS.__getitem__
        )
        none = Fraction(0)
        here.bound("delta", ("δ", "δ "), was.delta or none, now.delta or none, tighter_up=False)
    for there, quota, changed in page.tables("quotas", ("Quota", "配额"), old.quotas, new.quotas):
        _limit(there, quota, changed)
        there.value(
            "counts", ("counts", "计量"), quota.counts, changed.counts, Effect.BOTH, words=NOTIONS.__getitem__
        )


def _period(period: str) -> Words:
    en, zh = period_words(period)
    return en, zh.removeprefix("个")


def _limit(here: _Page, old: Budget | Quota, new: Budget | Quota) -> None:
    here.value("dataset", ("dataset", "数据集"), old.dataset, new.dataset, Effect.BOTH)
    then = (_STAYS_SPENT, _STAYS_SPENT)
    here.bound("limit", ("the limit", "上限"), old.limit, new.limit, tighter_up=False, then=then)
    was, now = (limit.period.removeprefix("calendar-") for limit in (old, new))
    effect = _either(looser=was not in _WITHIN[now], tighter=now not in _WITHIN[was])
    here.value("period", ("in each", "周期"), old.period, new.period, effect, words=_period)
    # Together is the strictest way to count; by requester and by purpose each allow what the other does not.
    effect = _either(looser=new.scope != "all-requesters", tighter=old.scope != "all-requesters")
    here.value("scope", ("counted", "计算对象"), old.scope, new.scope, effect, words=SCOPES.__getitem__)


# -- rules -------------------------------------------------------------------------------------------------


def _rules(page: _Page, old: Policy, new: Policy) -> None:
    before, after = {rule.id: rule for rule in old.rules}, {rule.id: rule for rule in new.rules}
    for name, rule in after.items():
        if name not in before:
            page.at(f"rules.{name}", (f"Rule {name}", f"规则 {name}")).add("", _new_rule(rule), Effect.LOOSER)
    for name in before:
        if name not in after:
            gone = ("is removed, nothing it allowed is allowed any more", "删除, 其允许的一切不再允许")
            page.at(f"rules.{name}", (f"Rule {name}", f"规则 {name}")).add("", gone, Effect.TIGHTER)
    for name, was, now in _shared(before, after):
        _rule(page.at(f"rules.{name}", (f"Rule {name}", f"规则 {name}")), (old, was), (new, now))


def _new_rule(rule: Rule) -> Words:
    lists = (rule.requesters, rule.purposes, rule.job_types, rule.datasets or rule.roles, rule.recipients)
    who, what_for, types, seat, to = map(", ".join, lists)
    return (
        f"is new: {who} may ask {types} of {seat} for {what_for}; to {to}; approvals: {rule.approvals}",
        f"新增: {who} 可为 {what_for} 对 {seat} 提出 {types}; 输出给 {to}; 审批 {rule.approvals} 份",
    )


def _rule(here: _Page, then: tuple[Policy, Rule], today: tuple[Policy, Rule]) -> None:
    (old_policy, old), (new_policy, new) = then, today
    for key, came, went in _RULE_LISTS:
        here.members(key, getattr(old, key), getattr(new, key), came, went)
    # A rate counts the jobs over every dataset of the rule, so that a dataset comes or goes with its jobs.
    both = old.rate is not None and new.rate is not None
    opens, closes = ("now also opens {}", "增加数据集 {}"), ("no longer opens {}", "取消数据集 {}")
    if both:
        counts = ("; what ran over it counts against the rate", "; 其已执行的任务计入频次")
        opens = (opens[0] + counts[0], opens[1] + counts[1])
        counts = ("; what ran over it counts no longer against the rate", "; 其已执行的任务不再计入频次")
        closes = (closes[0] + counts[0], closes[1] + counts[1])
    here.members(
        "datasets", old.datasets, new.datasets, opens, closes, besides=Effect.BOTH if both else Effect.OTHER
    )
    roles = (
        ("now also lets this node play {}", "增加角色 {}"),
        ("no longer lets this node play {}", "取消角色 {}"),
    )
    here.members("roles", _seats(old), _seats(new), *roles)
    to = ("{} may now receive, too", "增加接收方 {}"), ("{} may no longer receive", "取消接收方 {}")
    here.members("recipients", _receivers(old_policy, old), _receivers(new_policy, new), *to)
    if set(old.recipients) != set(new.recipients):
        names = (", ".join(old.recipients), ", ".join(new.recipients))
        here.value("recipients", ("writes its recipients as", "接收方写作"), *names)
    held = (
        ("is now held to quota {}", "受配额 {} 约束"),
        ("is no longer held to quota {}", "不再受配额 {} 约束"),
    )
    here.members("quotas", old.quotas, new.quotas, *held, more=Effect.TIGHTER)
    # A lower cap makes each job count for less, so that more of them fit into a quota, and vice versa.
    quotas = ", ".join(name for name in new.quotas if new_policy.quotas[name].counts == "rows")
    fit = (
        (f"; fewer jobs fit into quota {quotas}", f"; 配额 {quotas} 可容纳的任务减少"),
        (f"; more jobs fit into quota {quotas}", f"; 配额 {quotas} 可容纳的任务增多"),
    )
    for key, what, show in _RULE_BOUNDS:
        was, now, tighter_up = getattr(old, key), getattr(new, key), not key.startswith("max")
        if key == "min_group_size" and 1 in (was, now):
            # It takes the place of the default, which a larger one only adds to.
            before, after = _group_words(was), _group_words(now)
            here.value(key, what, before, after, _tighter_if(was == 1), words=lambda said: said)
        elif key == "max_rows" and quotas:
            here.bound(key, what, was, now, tighter_up=tighter_up, then=fit, besides=Effect.BOTH)
        else:
            here.bound(key, what, was, now, tighter_up=tighter_up, show=show)
    # Without a number of days there is no series.
    days, days_now = old.max_series_days, new.max_series_days
    effect = _tighter_if(days_now is None or (days is not None and days_now < days))
    lasts = ("the days of a series", "逐日系列的天数上限")
    here.value("max_series_days", lasts, days, days_now, effect)
    least, least_now = old.persons_in, new.persons_in
    # Without a number, everybody is taken to be everywhere: no number asks for more.
    effect = _tighter_if(least_now is None or (least is not None and least_now > least))
    reckon = ("a job has to reckon with one person being in", "任务须按一人可能出现于多少部门计算:")
    then_now = least_persons_words(least), least_persons_words(least_now)
    here.value("persons_in", reckon, *then_now, effect, words=lambda said: said)
    here.value(
        "exact_training",
        ("lets models be made without noise:", "允许不加噪训练:"),
        old.exact_training,
        new.exact_training,
        _tighter_if(old.exact_training),
        words=lambda allowed: ("yes", "是") if allowed else ("no", "否"),
    )
    may_miss = ("accepts now that {} is missed", "增加可不达标项: {}")
    must_meet = ("no longer accepts that {} is missed", "取消可不达标项: {}")
    here.members(
        "accepts_quality",
        old.accepts_quality,
        new.accepts_quality,
        may_miss,
        must_meet,
        words=lambda metric: METRICS[Metric(metric)],
    )
    _only(here, old.only, new.only)
    _charged(here, then, today)
    _capacities(here, old, new)
    _pace(here, old.rate, new.rate)
    _hours(here, old.window, new.window)


def _group_words(least: int | None) -> Words:
    if least == 1:
        return "1, so that figures may be about single persons", "1 (即结果可涉及个别人员)"
    return ("as where rules say nothing", "按默认") if least is None else (figure(least), figure(least))


def _seats(rule: Rule) -> tuple[str, ...]:
    """Return what the rule lets this node play; a rule over data that names no role means every such role."""
    if rule.roles:
        return rule.roles
    return (*(role for role in get_args(RoleKind) if role not in NEUTRAL_KINDS), "any other role with data")


def _receivers(policy: Policy, rule: Rule) -> Iterator[str]:
    """Yield whom the recipients mean: an organisation, or wherever the roster puts a requester's key."""
    for name in rule.recipients:
        who = policy.requesters.get(name)
        if who is None:
            yield name
        elif who.organisation is not None:
            yield who.organisation
        else:
            yield from (f"the organisation of key {key}" for key in who.keys)


def _only(here: _Page, old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> None:
    for column, values in new.items():
        if column not in old:
            en, zh = only_words(column, values)
            here.add("only", (f"is now {en}", zh), Effect.TIGHTER)
    for column, values in old.items():
        if column not in new:
            en, zh = only_words(column, values)
            here.add("only", (f"is no longer {en}", f"不再{zh}"), Effect.LOOSER)
    for column, before, after in _shared(old, new):
        came = (f"now also for rows whose {column} is {{}}", f"增加列 {column} 取值为 {{}} 的记录")
        went = (f"no longer for rows whose {column} is {{}}", f"取消列 {column} 取值为 {{}} 的记录")
        here.members("only", before, after, came, went)


def _charged(here: _Page, then: tuple[Policy, Rule], today: tuple[Policy, Rule]) -> None:
    (old_policy, old), (new_policy, new) = then, today
    if old.budget == new.budget:
        return
    before = None if old.budget is None else old_policy.budgets[old.budget]
    after = None if new.budget is None else new_policy.budgets[new.budget]
    terms = _NOTHING if after is None else limit_words(after)
    says = (
        f"privacy budget {old.budget or 'none'} → {new.budget or 'none'} {terms[0]}".rstrip(),
        f"隐私预算 {old.budget or '无'} → {new.budget or '无'} {terms[1]}".rstrip(),
    )
    # Answers with noise need a budget, so that a first one lets through what none did.
    here.add("budget", says, Effect.OTHER if before == after else Effect.BOTH)


def _capacities(here: _Page, old: Rule, new: Rule) -> None:
    may = ("{} may now approve, too", "增加审批人 {}"), ("{} may no longer approve", "取消审批人 {}")
    here.members("approvers", old.approvers, new.approvers, *may)
    was, now = (min(rule.approvals, len(rule.approvers)) for rule in (old, new))
    if old.approvals == new.approvals:
        # With one capacity fewer, two people of the same one may be enough.
        what = ("the number of different capacities that must approve", "须审批的不同身份数")
        here.bound("approvers", what, was, now, tighter_up=True)


def _pace(here: _Page, old: Rate | None, new: Rate | None) -> None:
    looser = old is not None and (new is None or new.jobs > old.jobs or old.per not in _WITHIN[new.per])
    tighter = new is not None and (old is None or old.jobs > new.jobs or new.per not in _WITHIN[old.per])
    before, after = (("any", "不限") if rate is None else rate_words(rate) for rate in (old, new))
    if old != new:
        says = (f"pace {before[0]} → {after[0]}", f"频次 {before[1]} → {after[1]}")
        here.add("rate", says, _either(looser=looser, tighter=tighter))


def _hours(here: _Page, old: Window | None, new: Window | None) -> None:
    before, after = (("any", "不限") if w is None else window_words(w) for w in (old, new))
    was, now = _open(old), _open(new)
    if old != new:
        says = (f"hours {before[0]} → {after[0]}", f"时段 {before[1]} → {after[1]}")
        here.add("window", says, _either(looser=not _covers(was, now), tighter=not _covers(now, was)))


Hours = tuple[timedelta, timedelta]
"""From, to: counted from Monday, 0:00."""


def _open(window: Window | None) -> list[Hours]:
    """Return when the window is open in a week, merged and ascending."""
    if window is None:
        return [(timedelta(0), _WEEK)]
    pieces: list[Hours] = []
    for day in window.days:
        midnight = get_args(Day).index(day) * _DAY
        begin, end = midnight + _since_midnight(window.from_), midnight + _since_midnight(window.to)
        if end <= begin:
            end += _DAY
        pieces.append((begin, min(end, _WEEK)))
        if end > _WEEK:
            pieces.append((timedelta(0), end - _WEEK))
    merged: list[Hours] = []
    for begin, end in sorted(pieces):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _since_midnight(at: time) -> timedelta:
    return timedelta(hours=at.hour, minutes=at.minute, seconds=at.second, microseconds=at.microsecond)


def _covers(outer: list[Hours], inner: list[Hours]) -> bool:
    return all(any(o[0] <= i[0] and i[1] <= o[1] for o in outer) for i in inner)


# -- the negative list and stops ---------------------------------------------------------------------------


def _negative_list(page: _Page, old: Policy, new: Policy) -> None:
    here = page.at("negative_list", ("Negative list", "负面清单"))
    was, now = (
        {f"{entry.dataset}.{entry.column}": entry.reason for entry in policy.negative_list}
        for policy in (old, new)
    )
    says = ("no job may use {} any more", "增加 {}"), ("{} is off the list", "删除 {}")
    here.members("", was, now, *says, more=Effect.TIGHTER)
    for name, before, after in _shared(was, now):
        here.value("", (f"why not {name}:", f"{name} 的理由"), before, after)


def _stops(page: _Page, old: Policy, new: Policy) -> None:
    here = page.at("stops", ("Stopped", "停止"))
    was, now = ({(stop.scope, stop.value): stop for stop in policy.stops} for policy in (old, new))
    for key, stop in now.items():
        en, zh = stop_words(stop)
        if key not in was:
            here.add("", (f"{en}: {stop.reason}", f"{zh}: {stop.reason}"), Effect.TIGHTER)
        else:
            here.value("", (f"{en}, because:", f"{zh}, 理由"), was[key].reason, stop.reason)
    for key, stop in was.items():
        if key not in now:
            en, zh = stop_words(stop)
            here.add("", (f"no longer {en}", f"不再停止{zh}"), Effect.LOOSER)
    lifted = page.at("lifted_stops", ("Stop documents", "停止令"))
    for digest in (d for d in new.lifted_stops if d not in old.lifted_stops):
        lifted.add("", (f"lifts {digest}", f"解除 {digest}"), Effect.LOOSER)
    for digest in (d for d in old.lifted_stops if d not in new.lifted_stops):
        lifted.add("", (f"no longer names {digest}, which stays lifted", f"不再列出 {digest}, 其仍为已解除"))
