"""A page on the quality of a department's datasets: one HTML file that loads nothing and runs nothing.

It opens anywhere and prints on A4 in black and white, in the look of the audit's report. It is the
department's own: it holds counts. It holds no value of any row, and all that it says is text to it.
"""

import html
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from audit.report_words import STYLE
from node.quality_report import (
    ALL_MET,
    MISSING,
    NO_THRESHOLD,
    Report,
    completeness_words,
    days_words,
    distinct_words,
)
from policies.words import Words, figure
from protocols.ids import NodeName
from protocols.quality import THOUSAND, ColumnCounts, thousandths
from protocols.wire import utc_text

_BREAK: Final = "<br>"
_SOURCES: Final = "default-src 'none'; style-src 'unsafe-inline'"
_MORE_STYLE: Final = """
.zh { color: var(--soft); }
.verdict .zh { color: inherit; }
svg.share { width: 5.5rem; height: .62rem; margin: .28rem 0 0 auto; }
.verdict p + p { margin-top: .6rem; }
"""
_HEADS: Final[tuple[Words, ...]] = (
    ("column", "字段"),
    ("type", "类型"),
    ("complete", "完整率"),
    ("null", "空值"),
    ("blank", "空白"),
    ("placeholder", "占位符"),
    ("unmapped", "未映射"),
    ("not in table", "不在代码表"),
    ("distinct", "不同取值"),
    ("days: future / before 1900 / none", "日期: 未来 / 1900 年前 / 无法识别"),
)
_TEXTS: Final = ("column", "type")
_WORDS: Final[tuple[tuple[str, str], ...]] = (
    (
        "Complete: rows with a value, of all rows; a placeholder such as 无 or an unmapped value is none.",
        "完整率: 有值的行占全部行的比例。空值、空白、占位符 (如“无”) 和映射未收录的取值均视为无值。",
    ),
    (
        "Valid keys: identifiers that keep the rules (length, check digit, date), of rows with a value.",
        "标识有效率: 有值的行中, 符合规则 (长度、校验位、日期) 的标识所占比例。",
    ),
    (
        "Repeated rows: rows whose identifier an earlier row has, of those with a valid one.",
        "重复率: 标识有效的行中, 与在前的行标识相同者所占比例。",
    ),
    (
        "Drift: distinct identifiers against the number that the catalogue publishes.",
        "与目录的偏差: 不同标识数与目录公布数之差。",
    ),
    (
        "Shares are rounded to 0.1 %, to their bad side; others see them in the catalogue. Counts stay here.",
        "比例按不利方向取到 0.1%, 在目录中对其他机构公布; 计数仅留在本部门。",
    ),
)


class _Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _text(text: str) -> str:
    """Return text as HTML; what would turn a line around, or is no character at all, is spelt out."""
    return html.escape(text if text.isprintable() else ascii(text)[1:-1], quote=True)


def _tag(name: str, *children: str, **attributes: str) -> _Html:
    said = "".join(f' {key.rstrip("_")}="{_text(value)}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, _Html) else _text(child) for child in children)
    return _Html(f"<{name}{said}>{inner}</{name}>")


def _both(words: Words, between: str = " ") -> _Html:
    return _Html(_text(words[0]) + between + _tag("span", words[1], class_="zh", lang="zh"))


def render(reports: Sequence[Report], node: NodeName, made: datetime) -> str:
    """Return the page.

    Args:
        reports: one of each dataset.
        node: whose they are.
        made: when the page was made.
    """
    title = ("Quality of the datasets", "数据集质量报告")
    head = _tag(
        "head",
        _Html('<meta charset="utf-8">'),
        _Html(f'<meta http-equiv="Content-Security-Policy" content="{_text(_SOURCES)}">'),
        _Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        _tag("title", f"{title[0]} {title[1]}: {node}"),
        _tag("style", _Html(STYLE + _MORE_STYLE)),
    )
    body = _tag(
        "body",
        _tag("p", "民数 MINSHU", class_="brand"),
        _tag("h1", _both(title)),
        _tag("p", f"{node}, {utc_text(made)}", class_="soft"),
        *map(_dataset, reports),
        _tag("h2", _both(("What the words mean", "名词说明"))),
        _tag("ul", *(_tag("li", _both(words)) for words in _WORDS)),
    )
    return f"<!DOCTYPE html>\n{_tag('html', head, body, lang='en')}\n"


def _dataset(report: Report) -> _Html:
    dataset = report.dataset
    name = dataset.name if dataset.title == dataset.name else f"{dataset.name} {dataset.title}"
    parts = [_tag("h2", name)]
    if report.problem is not None:
        said = _tag("p", report.problem.message, _Html("<br>"), report.problem.hint)
        return _tag("section", *parts, _tag("div", _tag("b", "✗"), said, class_="verdict bad"))
    parts += [_verdict(report), _facts(report), _columns(report)]
    return _tag("section", *parts)


def _verdict(report: Report) -> _Html:
    if not report.findings:
        sign, words = ("✓", ALL_MET) if report.asked else ("–", NO_THRESHOLD)
        return _tag("div", _tag("b", sign), _tag("p", _both(words, _BREAK)), class_="verdict")
    said = _tag("div", *(_tag("p", _both(finding.words(), _BREAK)) for finding in report.findings))
    bad = {} if report.ok else {"class_": "verdict bad"}
    return _tag("div", _tag("b", "–" if report.ok else "✗"), said, **{"class_": "verdict", **bad})


def _facts(report: Report) -> _Html:
    quality = report.quality
    assert quality is not None
    written = report.age_words()
    facts: list[tuple[Words, str]] = [
        (("rows", "行数"), figure(quality.counts.rows)),
        (("age", "数据时效"), _both(written)),
        (("looked at", "检查时间"), quality.measured),
    ]
    shown = [_tag("h3", _both(("The table", "数据表"))), _pairs(facts)]
    if of_key := report.key_facts():
        words = (f"The identifiers, column {report.dataset.key}", f"标识字段 {report.dataset.key}")
        shown += [_tag("h3", _both(words)), _pairs(of_key)]
    return _Html("".join(shown))


def _pairs(facts: Iterable[tuple[Words, str]]) -> _Html:
    rows = (_tag("tr", _tag("th", _both(words)), _tag("td", value)) for words, value in facts)
    return _tag("table", _tag("tbody", *rows), class_="facts")


def _columns(report: Report) -> _Html:
    quality = report.quality
    assert quality is not None
    heads = [_tag("th", _both(words, _BREAK), **_side(words[0])) for words in _HEADS]
    rows = []
    for name, kind in quality.types:
        counts = quality.counts.columns[name]
        said = [
            name,
            kind,
            _Html(_text(completeness_words(counts)) + _bar(counts)),
            *(_number(getattr(counts, each)) for each in MISSING),
            _number(counts.outside) if name in quality.tables else "",
            distinct_words(counts),
            days_words(counts),
        ]
        cells = (_tag("td", cell, **_side(head[0])) for cell, head in zip(said, _HEADS, strict=True))
        rows.append(_tag("tr", *cells))
    table = _tag("table", _tag("thead", _tag("tr", *heads)), _tag("tbody", *rows))
    return _Html(_tag("h3", _both(("The columns", "字段"))) + table)


def _side(head: str) -> dict[str, str]:
    return {} if head in _TEXTS else {"class_": "n"}


def _number(count: int) -> str:
    """Return a count; of nothing, what the eye passes over."""
    return figure(count) if count else "·"


def _bar(counts: ColumnCounts) -> _Html:
    share = thousandths(counts.rows - counts.missing, counts.rows, up=False)
    frame = _tag("rect", x="1", y="1", width="998", height="98", fill="#fff", stroke="#111")
    full = _tag("rect", x="1", y="1", width=str(998 * share // THOUSAND), height="98", fill="#111")
    drawn = {"viewBox": "0 0 1000 100", "preserveAspectRatio": "none", "aria-hidden": "true"}
    return _tag("svg", frame, full, class_="share", **drawn)
