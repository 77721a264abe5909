"""Words for what a policy says, in English and in Chinese: figures, times, periods, limits, uses, stops.

One word for one thing: refusals, pages for officers, differences of two versions and verdicts as analysts
read them all take theirs from here.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, tzinfo
from fractions import Fraction
from typing import Final

from policies.history import ALONE
from policies.model import Budget, Column, Quota, Rate, Stop, Unit, Window
from protocols.dp.cost import decimal_up

Words = tuple[str, str]
"""One thing said in English and in Chinese."""

SHOWN: Final = 12
"""How many items of a list are read out before it is cut short."""

USES: Final[Mapping[str, Words]] = {
    "join": ("join", "匹配"),
    "group": ("group", "分组"),
    "filter": ("filter", "筛选"),
    "carry": ("carry or compare for each person", "随名单携带或逐人比对"),
    "sum": ("sum", "求和"),
    "mean": ("mean", "求均值"),
    "count": ("count", "计数"),
    "quantile": ("quantile", "求分位数"),
    "open-to-matcher": (
        "open to matcher and helper, who see it of each person without knowing whom",
        "对匹配方和协助方逐人公开 (其不知是谁)",
    ),
    "train": ("train a model on it", "训练模型"),
    "quality": ("count missing, wrong and repeated values", "统计缺失、错误和重复的取值"),
}

_TURNS: Final[Mapping[str, Words]] = {"train": ("training", "训练"), "evaluate": ("evaluation", "评估")}

_PERIODS: Final = {
    "hour": ("hour", "个整点小时"),
    "day": ("day", "自然日"),
    "week": ("week", "自然周"),
    "month": ("month", "自然月"),
    "quarter": ("quarter", "自然季度"),
    "year": ("year", "自然年"),
}

GRADES: Final[Mapping[str, Words]] = {
    "core": ("core", "核心数据"),
    "important": ("important", "重要数据"),
    "general-4": ("general, level 4", "一般数据 4 级"),
    "general-3": ("general, level 3", "一般数据 3 级"),
    "general-2": ("general, level 2", "一般数据 2 级"),
    "general-1": ("general, level 1", "一般数据 1 级"),
}

SENSITIVITIES: Final[Mapping[str, Words]] = {
    "none": ("none", "无"),
    "personal": ("personal", "个人信息"),
    "sensitive": ("sensitive", "敏感个人信息"),
}

NOTIONS: Final[Mapping[str, Words]] = {
    "rows": ("records about persons", "个人记录"),
    "queries": ("questions", "查询次数"),
    "zcdp": ("privacy loss ρ (zCDP)", "隐私损失 ρ (zCDP)"),
    "pure-dp": ("privacy loss ε", "隐私损失 ε"),
    "approximate-dp": ("privacy loss ε at a δ", "隐私损失 ε (含 δ)"),
}

SCOPES: Final[Mapping[str, Words]] = {
    "all-requesters": ("for everybody together", "全部申请方合计"),
    "per-requester": ("for each requester", "每个申请方分别计算"),
    "per-purpose": ("for each purpose", "每项用途分别计算"),
    "per-pair": (
        "for each dataset of others that it is joined with",
        "按与之联合的每个他方数据集分别计算",
    ),
}

_MEASURES: Final = {
    "rows": ("{} records about persons", "{} 条个人记录"),
    "queries": ("{} questions", "{} 次查询"),
    "zcdp": ("ρ = {}", "ρ = {}"),
    "pure-dp": ("ε = {}", "ε = {}"),
    "approximate-dp": ("ε = {}", "ε = {}"),
}
_ONE: Final = {"rows": "one record about a person", "queries": "one question"}

_STOPS: Final = {
    "all": ("every job", "全部任务"),
    "requester": ("every job that {} asks", "申请方 {} 的全部任务"),
    "purpose": ("every job for purpose {}", "用途 {} 的全部任务"),
    "dataset": ("every job over dataset {}", "涉及数据集 {} 的全部任务"),
    "job": ("job {}", "任务 {}"),
}

_DAYS: Final = {
    "mon": ("Mon", "周一"),
    "tue": ("Tue", "周二"),
    "wed": ("Wed", "周三"),
    "thu": ("Thu", "周四"),
    "fri": ("Fri", "周五"),
    "sat": ("Sat", "周六"),
    "sun": ("Sun", "周日"),
}


def figure(value: int | Fraction) -> str:
    """Return a number as people read it: `20,000`, or an exact decimal such as `0.5`."""
    return f"{value:,}" if isinstance(value, int) else decimal_up(value, places=18)


def share(value: Fraction) -> str:
    """Return a share as a percentage with no more digits than it needs."""
    percent = value * 100
    return f"{percent.numerator} %" if percent.denominator == 1 else f"{float(percent):.4g} %"


def grouped(decimal: str) -> str:
    """Return a decimal text with its whole part in groups of three; anything else as it is."""
    whole, point, rest = decimal.partition(".")
    return f"{int(whole):,}{point}{rest}" if whole.isdigit() else decimal


def count_words(number: int, one: str, many: str) -> str:
    """Return how many there are of something: `1 list`, `2 lists`."""
    return f"{figure(number)} {one if number == 1 else many}"


def shortened(items: Iterable[str]) -> str:
    """Return a list as people read it: all of a short one, else its beginning and how long it is."""
    every = list(items)
    if len(every) <= SHOWN:
        return ", ".join(every)
    return f"{', '.join(every[:SHOWN])}, … ({len(every)})"


def wall_time(moment: datetime, zone: tzinfo) -> str:
    """Return a moment as the clock on a wall of the zone shows it: `2027-01-01 00:00 (Asia/Shanghai)`."""
    name = "UTC" if zone is UTC else str(zone)
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M} ({name})"


def period_words(period: str) -> Words:
    """Return the calendar period of a limit or a rate: `calendar month`, with its measure word in Chinese."""
    en, zh = _PERIODS[period.removeprefix("calendar-")]
    return f"calendar {en}", zh


def limit_words(limit: Budget | Quota) -> Words:
    """Return what a budget or a quota allows: how much, in which period, counted for whom."""
    notion = limit.counts if isinstance(limit, Quota) else limit.notion
    most = figure(limit.limit)
    delta = "" if isinstance(limit, Quota) or limit.delta is None else f", δ = {figure(limit.delta)}"
    period, scope = period_words(limit.period), SCOPES[limit.scope]
    en, zh = measure(notion, most)
    return (
        f"at most {en}{delta} in a {period[0]}, {scope[0]}",
        f"每{period[1]}最多 {zh}{delta}, {scope[1]}",
    )


def only_words(column: str, values: Iterable[str]) -> Words:
    """Return which rows a rule is for: every value, since whoever signs decides about each."""
    listed = list(values)
    one = "is" if len(listed) == 1 else "is one of"
    return (
        f"only for rows whose {column} {one} {', '.join(listed)}",
        f"仅限列 {column} 取值为 {'、'.join(listed)} 的记录",
    )


def pair_words(pair: str) -> Words:
    """Return with what a dataset is joined, for a limit that counts for each pair."""
    if pair == ALONE:
        return "for jobs over this dataset alone", "单独使用本数据集的任务, "
    return f"with {pair}", f"与 {pair} 联合的任务, "


def column_words(column: Column) -> Words:
    """Return what a column may be used for, and over which values."""
    en, zh = ([USES[use][language] for use in column.use] for language in (0, 1))
    said = [(", ".join(en), ", ".join(zh))]
    if column.values is not None:
        values = shortened(column.values)
        said.append((f"values {values}", f"取值 {values}"))
    if column.range is not None:
        least, greatest = map(figure, column.range)
        said.append((f"from {least} to {greatest}", f"范围 {least} 至 {greatest}"))
    if column.bins is not None:
        bins = shortened(map(figure, column.bins))
        said.append((f"groups may begin at {bins}", f"分组起点限于 {bins}"))
    return "; ".join(each[0] for each in said), "; ".join(each[1] for each in said)


def unit_words(unit: Unit) -> Words:
    """Return whom a row is about."""
    rows = count_words(unit.max_rows, "row", "rows")
    return (
        f"one person for each {unit.column}, with at most {rows}",
        f"按 {unit.column} 认定为同一人, 每人最多 {figure(unit.max_rows)} 行",
    )


def measure(notion: str, amount: str) -> Words:
    """Return an amount, a decimal text, with what it is an amount of."""
    en, zh = _MEASURES.get(notion, (f"{{}} {notion}", f"{{}} {notion}"))
    amount = grouped(amount)
    return _ONE.get(notion, en.format(amount)) if amount == "1" else en.format(amount), zh.format(amount)


def recipe_words(recipe: str) -> str:
    """Return a recipe as people compare it: a name, or how a digest begins."""
    return recipe if len(recipe) <= 20 or not recipe.startswith("sha256:") else f"{recipe[:19]}…"


def weights_words() -> Words:
    """Return what follows where a job may bring the weights of a score."""
    en = (
        "whoever asks chooses the weights of a score; by weights made for it the recipient reads off the "
        "value of a column, from the step that a person reaches, and nothing shows what weights were made for"
    )
    zh = (
        "评分权重由申请方自定: 若权重为此设计, 接收方由人员所达到的档次即可读出某列的取值, "
        "而从权重本身看不出其用意"
    )
    return en, zh


def persons_words(persons_in: tuple[int, int]) -> Words:
    """Return in how many of how many departments a job takes one person to be at most."""
    stated, departments = persons_in
    whole = stated == departments
    return (
        f"one person is taken to be in at most {stated} of the {departments} departments that give data"
        + ("" if whole else "; where that is wrong, noise and smallest groups hide them less than stated"),
        f"假定一人至多出现在提供数据的 {departments} 个部门中的 {stated} 个"
        + ("" if whole else "; 如不属实, 噪声和最小分组的保护将低于所述程度"),
    )


def least_persons_words(least: int | None) -> Words:
    """Return in how many departments a rule wants one person taken to be: a number, or all of them."""
    if least is None:
        return "every department that gives data", "全部提供数据的部门"
    return count_words(least, "department", "departments"), f"{figure(least)} 个部门"


def rate_words(rate: Rate) -> Words:
    """Return how many jobs may run in which period."""
    period = period_words(rate.per)
    jobs = "one job" if rate.jobs == 1 else f"{figure(rate.jobs)} jobs"
    return (
        f"at most {jobs} in a {period[0]}",
        f"每{period[1]}最多 {figure(rate.jobs)} 个任务",
    )


def rounds_words(turns: Mapping[str, int]) -> Words:
    """Return how many rounds of each turn; two empty texts where there are none."""
    some = [(*_TURNS.get(turn, (turn, turn)), number) for turn, number in sorted(turns.items()) if number]
    en = [f"{count_words(number, 'round', 'rounds')} of {word}" for word, _, number in reversed(some)]
    zh = [f"{word} {figure(number)} 轮" for _, word, number in reversed(some)]
    return " and ".join(en), "、".join(zh)


def window_words(window: Window) -> Words:
    """Return when jobs may run."""
    days = [_DAYS[day] for day in window.days]
    hours = f"{_clock(window.from_)}-{_clock(window.to)}"
    night = window.to <= window.from_
    return (
        f"{', '.join(en for en, _ in days)} {hours}" + (" (into the next day)" if night else ""),
        f"{'、'.join(zh for _, zh in days)} {hours}" + (" (至次日)" if night else ""),
    )


def _clock(moment: time) -> str:
    return moment.isoformat(timespec="auto" if moment.second or moment.microsecond else "minutes")


def stop_words(stop: Stop) -> Words:
    """Return what a stop halts."""
    en, zh = _STOPS[stop.scope]
    return en.format(stop.value), zh.format(stop.value)
