"""What a look at a dataset comes to beside the policy in force: for a terminal, a page, and scripts.

Of a department's own data, for its own people: counts stand here that others never see. No value does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from node.quality import Quality
from node.state import Dataset
from policies.index import source_of
from policies.model import Dataset as Opened
from policies.model import Policy, Rule
from policies.quality import (
    METRICS,
    NEVER_WRITTEN,
    Shortfall,
    Threshold,
    shortfalls,
    thousandths_words,
    thresholds_of,
)
from policies.words import Words, count_words, figure
from protocols.errors import InputError
from protocols.quality import MOST_DISTINCT, ColumnCounts, Metric, thousandths

NO_THRESHOLD: Final = (
    "no policy in force asks anything of its quality, so nothing is refused for it",
    "现行策略未对其质量提出要求, 不会因质量拒绝任务",
)
ALL_MET: Final = ("meets all that the policy in force asks", "达到现行策略的全部质量要求")

MISSING: Final = ("null", "blank", "placeholder", "unmapped")
"""How a value can be missing, as `ColumnCounts` names it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A threshold of the policy in force that a dataset does not meet, and what that means.

    `refused`: the rules whose jobs are refused for it; `accepted`: those that accept it.
    """

    shortfall: Shortfall
    refused: tuple[str, ...]
    accepted: tuple[str, ...]

    def words(self) -> Words:
        """Return the figure, what is asked, and which rules refuse or accept it."""
        en, zh = self.shortfall.words()
        if self.refused:
            names = ", ".join(self.refused)
            en, zh = f"{en}; refuses jobs of: {names}", f"{zh}; 拒绝以下规则的任务: {names}"
        if self.accepted:
            names = ", ".join(self.accepted)
            en, zh = f"{en}; accepted by: {names}", f"{zh}; 以下规则接受: {names}"
        return en, zh

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        threshold, (en, zh) = self.shortfall.threshold, self.words()
        return {
            "metric": threshold.metric.value,
            "column": threshold.column,
            "found": self.shortfall.found,
            "asked": figure(threshold.bound),
            "refused": list(self.refused),
            "accepted": list(self.accepted),
            "sentence": en,
            "sentence_zh": zh,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """One dataset: what a look found, or why there was none. `asked`: whether the policy sets thresholds."""

    dataset: Dataset
    now: datetime
    quality: Quality | None = None
    problem: InputError | None = None
    findings: tuple[Finding, ...] = ()
    asked: bool = False

    @property
    def ok(self) -> bool:
        """Whether it could be looked at, and no rule's job is refused for it."""
        return self.problem is None and not any(finding.refused for finding in self.findings)

    def age_words(self) -> Words:
        """Return when the table was written, and how long that is ago."""
        assert self.quality is not None
        age, snapshot = self.quality.age_days(self.now), self.quality.snapshot
        if age is None:
            return NEVER_WRITTEN
        days = count_words(age, "day", "days")
        return f"written {snapshot} ({days} ago)", f"写入于 {snapshot} ({figure(age)} 天前)"

    def key_facts(self) -> list[tuple[Words, str]]:
        """Return what is known of the identifiers: what it is called, and the figure."""
        if self.quality is None or self.quality.counts.key is None:
            return []
        key, shares = self.quality.counts.key, self.quality.shares(self.dataset.published_keys)
        assert shares.valid_keys is not None
        assert shares.repeated is not None
        assert shares.drift is not None
        digit = key.rejected.get("bad-check-digit", 0)
        others = {code: count for code, count in key.rejected.items() if code != "bad-check-digit"}
        listed = ", ".join(f"{code} {figure(count)}" for code, count in sorted(others.items()))
        return [
            (("without a value", "缺失"), figure(key.missing)),
            (METRICS[Metric.VALID_KEYS], f"{thousandths_words(shares.valid_keys)} ({figure(key.valid)})"),
            (("wrong check digit", "校验位错误"), figure(digit)),
            (("rejected otherwise", "其他原因无效"), listed or "0"),
            (METRICS[Metric.REPEATED], f"{thousandths_words(shares.repeated)} ({figure(key.repeated)})"),
            (("distinct", "不同标识数"), figure(key.distinct)),
            (("published in the catalogue", "目录公布数"), figure(self.dataset.published_keys)),
            (METRICS[Metric.DRIFT], thousandths_words(shares.drift)),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        plain: dict[str, Any] = {"name": self.dataset.name, "title": self.dataset.title, "ok": self.ok}
        if self.problem is not None:
            said = {"code": self.problem.code, "message": self.problem.message, "hint": self.problem.hint}
            return {**plain, "error": said}
        assert self.quality is not None
        return {
            **plain,
            "key": self.dataset.key,
            "snapshot": self.quality.snapshot,
            "age_days": self.quality.age_days(self.now),
            "measured": self.quality.measured,
            "published_keys": self.dataset.published_keys,
            "counts": self.quality.counts.to_json(),
            "shares": self.quality.shares(self.dataset.published_keys).to_json(),
            "thresholds": self.asked,
            "findings": [finding.to_json() for finding in self.findings],
            "record_sha256": self.quality.digest,
        }


def completeness_words(counts: ColumnCounts) -> str:
    """Return the share of rows that have a value."""
    return thousandths_words(thousandths(counts.rows - counts.missing, counts.rows, up=False))


def distinct_words(counts: ColumnCounts) -> str:
    """Return how many different values there are."""
    return f"> {figure(MOST_DISTINCT)}" if counts.distinct is None else figure(counts.distinct)


def days_words(counts: ColumnCounts) -> str:
    """Return how many days are in the future, before 1900, or no days; empty for a column of others."""
    if counts.future is None or counts.early is None:
        return ""
    return " / ".join(map(figure, (counts.future, counts.early, counts.malformed)))


def reported(dataset: Dataset, quality: Quality, policy: Policy | None, now: datetime) -> Report:
    """Return what a look comes to under the policy in force."""
    opened = {} if policy is None else policy.datasets
    findings: list[Finding] = []
    asked = False
    for name, each in opened.items():
        if policy is None or source_of(each) != dataset.name:
            continue
        rules = [rule for rule in policy.rules if name in rule.datasets]
        asked = asked or any(thresholds_of(each, rule) for rule in [None, *rules])
        findings += _findings(dataset, quality, each, rules, now)
    return Report(dataset, now, quality, None, tuple(findings), asked)


def _findings(
    dataset: Dataset, quality: Quality, opened: Opened, rules: Sequence[Rule], now: datetime
) -> Iterator[Finding]:
    of_rules = {rule.id: thresholds_of(opened, rule) for rule in rules}
    every: dict[Threshold, None] = dict.fromkeys(thresholds_of(opened))
    for thresholds in of_rules.values():
        every |= dict.fromkeys(thresholds)
    shares, age = quality.shares(dataset.published_keys), quality.age_days(now)
    accepting = {rule.id: frozenset(rule.accepts_quality) for rule in rules}
    for shortfall in shortfalls(tuple(every), shares, age):
        missed = shortfall.threshold
        yield Finding(
            shortfall,
            tuple(name for name, thresholds in of_rules.items() if missed in thresholds),
            tuple(
                name
                for name, thresholds in of_rules.items()
                if missed not in thresholds and missed.metric.value in accepting[name]
            ),
        )
