"""Is a dataset good enough for a rule's jobs? Its thresholds against what a look at the whole of it found.

A pure function of the policy and of shares that the catalogue publishes as well: never of a job's columns,
filters or answer. So a refusal tells whoever asks nothing that is not there to read, and an auditor who has
the record of the look comes to the same answer. Shares are in thousandths, rounded to their bad side, and
thresholds have at most three places: a share meets one if and only if the exact figure does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from policies.decision import Refuse
from policies.model import Dataset, Quality, Rule
from policies.words import Words, count_words, figure, share
from protocols.quality import THOUSAND, Metric, Shares

CODE: Final = "quality-too-low"

_SHOWN: Final = 4
"""How many failing thresholds a refusal spells out."""

METRICS: Final[dict[Metric, Words]] = {
    Metric.COMPLETENESS: ("completeness", "完整率"),
    Metric.VALID_KEYS: ("valid keys", "标识有效率"),
    Metric.AGE: ("age", "数据时效"),
    Metric.DRIFT: ("drift from the catalogue", "与目录的偏差"),
    Metric.REPEATED: ("repeated rows", "重复率"),
}
"""What each metric is called."""

_BOUNDS: Final[dict[Metric, Words]] = {
    Metric.COMPLETENESS: ("at least {} of the rows have {}", "{1} 完整率不低于 {0}"),
    Metric.VALID_KEYS: ("at least {} of the identifiers are valid", "标识有效率不低于 {}"),
    Metric.AGE: ("written at most {} ago", "最近一次写入不超过 {}"),
    Metric.DRIFT: (
        "as many distinct keys as the catalogue says, to {}",
        "不同标识数与目录相差不超过 {}",
    ),
    Metric.REPEATED: ("at most {} of the rows repeat another's key", "标识重复的行不超过 {}"),
}
"""What each threshold asks for; `{}` is the bound, after it the column."""

_FOUND: Final[dict[Metric, Words]] = {
    Metric.COMPLETENESS: ("{1} is there in {0} of the rows", "{1} 完整率为 {0}"),
    Metric.VALID_KEYS: ("{} of the identifiers are valid", "标识有效率为 {}"),
    Metric.AGE: ("it was written {} ago", "最近一次写入距今 {}"),
    Metric.DRIFT: ("its distinct keys differ from the catalogue's by {}", "不同标识数与目录相差 {}"),
    Metric.REPEATED: ("{} of the rows repeat another's key", "标识重复的行占 {}"),
}

_NO_KEYS: Final = ("it has no identifiers to count", "没有可供统计的标识")
NEVER_WRITTEN: Final = ("nothing says when it was written", "无法得知最近一次写入时间")
"""What is said of a table of which nobody knows its age."""

_NOT_THERE: Final = ("{} was not found in it", "未找到列 {}")


@dataclass(frozen=True, slots=True)
class Threshold:
    """One thing that a dataset has to show. `bound`: a share, or days; `column`: of completeness."""

    metric: Metric
    bound: Fraction
    column: str = ""

    def words(self) -> Words:
        """Return what it asks for."""
        return _say(_BOUNDS[self.metric], self._bound(), self.column)

    def _bound(self) -> Words:
        return _days(int(self.bound)) if self.metric is Metric.AGE else (share(self.bound),) * 2


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A threshold that is not met. `found`: thousandths, or days; None where there is nothing to measure."""

    threshold: Threshold
    found: int | None

    def words(self) -> Words:
        """Return the figure, and what is asked for."""
        metric, column = self.threshold.metric, self.threshold.column
        if self.found is None:
            unknown = NEVER_WRITTEN if metric is Metric.AGE else _NO_KEYS
            said = _say(_NOT_THERE, (column, column)) if column else unknown
        else:
            shown = _days(self.found) if metric is Metric.AGE else (thousandths_words(self.found),) * 2
            said = _say(_FOUND[metric], shown, column)
        asked = self.threshold.words()
        return f"{said[0]} (asked: {asked[0]})", f"{said[1]} (要求: {asked[1]})"


def thousandths_words(found: int) -> str:
    """Return a share in thousandths as a percentage with one place: `98.9 %`."""
    whole, tenths = divmod(found, THOUSAND // 100)
    return f"{figure(whole)}.{tenths} %"


def key_fields_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that `min_completeness` is about, in the dataset's order."""
    named = () if dataset.quality is None else dataset.quality.key_fields
    return named or identifying(dataset)


def identifying(dataset: Dataset) -> tuple[str, ...]:
    """Return the columns that are used to join, and the one that says whom a row is about."""
    unit = None if dataset.unit is None else dataset.unit.column
    return tuple(name for name, column in dataset.columns.items() if "join" in column.use or name == unit)


def thresholds_of(dataset: Dataset, rule: Rule | None = None) -> tuple[Threshold, ...]:
    """Return what jobs over a dataset ask of it: under a rule, or of the dataset alone.

    A rule leaves out the thresholds it accepts not to be met, and may add its own bound on repeated rows.
    """
    accepted = frozenset[str]() if rule is None else frozenset(rule.accepts_quality)
    bounds = [] if dataset.quality is None else _of_dataset(dataset, dataset.quality)
    held = [each for each in bounds if each.metric.value not in accepted]
    if rule is not None and rule.max_duplicates is not None:
        held.append(Threshold(Metric.REPEATED, rule.max_duplicates))
    return tuple(held)


def _of_dataset(dataset: Dataset, quality: Quality) -> list[Threshold]:
    found = []
    if (least := quality.min_completeness) is not None:
        found += [Threshold(Metric.COMPLETENESS, least, column) for column in key_fields_of(dataset)]
    for metric, bound in (
        (Metric.VALID_KEYS, quality.min_valid_keys),
        (Metric.AGE, None if quality.max_age_days is None else Fraction(quality.max_age_days)),
        (Metric.DRIFT, quality.max_drift),
        (Metric.REPEATED, quality.max_repeated),
    ):
        if bound is not None:
            found.append(Threshold(metric, bound))
    return found


def shortfalls(
    thresholds: tuple[Threshold, ...], shares: Shares, age_days: int | None
) -> Iterator[Shortfall]:
    """Yield the thresholds that a dataset does not meet; what cannot be measured meets none."""
    for threshold in thresholds:
        found = _measured(threshold, shares, age_days)
        if found is None or not _meets(threshold, found):
            yield Shortfall(threshold, found)


def _measured(threshold: Threshold, shares: Shares, age_days: int | None) -> int | None:
    match threshold.metric:
        case Metric.COMPLETENESS:
            return shares.completeness.get(threshold.column)
        case Metric.VALID_KEYS:
            return shares.valid_keys
        case Metric.AGE:
            return age_days
        case Metric.DRIFT:
            return shares.drift
        case Metric.REPEATED:
            return shares.repeated


def _meets(threshold: Threshold, found: int) -> bool:
    match threshold.metric:
        case Metric.AGE:
            return found <= threshold.bound
        case Metric.COMPLETENESS | Metric.VALID_KEYS:
            return found >= threshold.bound * THOUSAND
        case Metric.DRIFT | Metric.REPEATED:
            return found <= threshold.bound * THOUSAND


def check_quality(
    name: str, dataset: Dataset, rule: Rule, shares: Shares, age_days: int | None
) -> Refuse | None:
    """Return why a dataset is not good enough for a rule's jobs, None where it is.

    Args:
        name: what the policy calls the dataset.
        dataset: as the policy opens it.
        rule: that allows the job.
        shares: of the whole dataset as it is now.
        age_days: days begun since it was written, None where nothing tells.
    """
    found = list(shortfalls(thresholds_of(dataset, rule), shares, age_days))
    if not found:
        return None
    said = [shortfall.words() for shortfall in found[:_SHOWN]]
    rest = len(found) - len(said)
    en = "; ".join(each[0] for each in said) + (f"; and {figure(rest)} more" if rest else "")
    zh = "; ".join(each[1] for each in said) + (f"; 另有 {figure(rest)} 项" if rest else "")
    metrics = sorted({shortfall.threshold.metric.value for shortfall in found})
    return Refuse(
        CODE,
        f"Dataset {name} does not meet what the policy asks of its quality: {en}.",
        f"数据集 {name} 未达到策略规定的质量要求: {zh}。",
        f"have the department mend its data, or sign a rule that accepts {', '.join(metrics)}",
        f"请该部门改善数据质量, 或在规则中以 accepts_quality 接受 {'、'.join(metrics)}",
        rule.id,
    )


def _days(days: int) -> Words:
    return count_words(days, "day", "days"), f"{figure(days)} 天"


def _say(words: Words, bound: Words, column: str = "") -> Words:
    # Column names come from the policy and have no braces; they are put in, never read as a form.
    return words[0].format(bound[0], column), words[1].format(bound[1], column)
