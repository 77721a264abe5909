"""Pictures of released tables, with what the noise leaves open: drawn by matplotlib without a display.

Every picture is written twice, as PNG and as SVG. Where a font with Chinese characters is installed, titles
and notes are in both languages, else in English.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from demo.scenarios.comparing import Released

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHINESE_FONTS: Final = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "SimHei",
)
"""Tried in this order."""

_INK, _FAINT, _GRID = "#22303c", "#8a96a3", "#dfe5ea"
_BLUE, _RED, _GREEN, _AMBER = "#2c6fbb", "#c8442d", "#3c8d5a", "#d99a2b"
_DPI: Final = 150

_CROSSES_ZH: Final = "× 为合成城市的登记真值, 真实城市中无人知晓。"
_CROSSES: Final = "Crosses: the registers' own count, known only because the city is synthetic."


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval, and what is true in a synthetic city; `shown` False where withheld."""

    value: float
    low: float
    high: float
    truth: float
    shown: bool = True

    @classmethod
    def of(cls, figure: Released, truth: float) -> Self:
        """Return a released figure beside the truth."""
        return cls(figure.value, figure.low, figure.high, truth, not figure.withheld)


@dataclass(frozen=True, slots=True)
class Gap:
    """One street's school places and children, with the verdict that the interval allows."""

    street: str
    places: float
    children: Estimate
    verdict: str


@dataclass(frozen=True, slots=True)
class Uncounted:
    """One register's dead: released by district beside the truth, and who they are by age and month.

    Args:
        city: released count of all, None where it is withheld.
        districts: released count, None where it is withheld, and the truth; of nobody there is no count.
        ages: persons by age, in truth.
        months: persons on both lists by months before the extract, past the grace and within it, in truth.
    """

    city: int | None
    districts: Mapping[str, tuple[int | None, int]]
    ages: Mapping[str, int]
    months: Mapping[int, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Course:
    """How a training run went.

    Args:
        loss, auc: measured after so many rounds: (round, figure).
        epsilon: spent of it after each round, at the job's δ.
        within: what noise and bins leave open of the last AUC, with 95 %; None where nothing is told of it.
    """

    loss: Sequence[tuple[float, float]]
    auc: Sequence[tuple[float, float]]
    epsilon: Sequence[tuple[float, float]]
    within: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Ability:
    """How well a model tells who is vaccinated: an area under the curve, and what chance leaves open.

    Args:
        zh, en: what it is trained on.
        value, low, high: the area and its interval.
        released: whether it is of a model that the bureau received; else of rows in one place.
    """

    zh: str
    en: str
    value: float
    low: float
    high: float
    released: bool


class Words:
    """Says things in both languages, or in English where no font has Chinese characters."""

    def __init__(self, font: str | None) -> None:
        """Take the font's name, None for none."""
        self.font = font

    def line(self, zh: str, en: str) -> str:
        """Return both on one line."""
        return f"{zh}  {en}" if self.font else en

    def lines(self, zh: str, en: str) -> str:
        """Return Chinese above English."""
        return f"{zh}\n{en}" if self.font else en


@contextmanager
def _drawing() -> Iterator[Words]:
    """Set the style of all pictures; yield how to say things in it."""
    import matplotlib as mpl
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in CHINESE_FONTS if name in there), None)
    style: dict[Any, Any] = {
        "font.family": [*([font] if font else []), "DejaVu Sans"],
        "font.size": 8.5,
        "text.color": _INK,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.unicode_minus": False,
        "svg.hashsalt": "minshu",
    }
    with mpl.rc_context(style):
        yield Words(font)


def _figure(title: str, subtitle: str, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # The blank lines keep room for the subtitle.
    figure.suptitle(f"{title}\n\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.01, 1 - 0.36 / height, subtitle, fontsize=8.5, color=_FAINT, va="top")
    return figure


def _save(figure: "Figure", stem: Path) -> None:
    # A fixed day: the same figures give the same bytes.
    moment = {"Date": datetime(2026, 1, 1, tzinfo=UTC)}
    figure.savefig(stem.with_suffix(".png"), dpi=_DPI, facecolor="white")
    figure.savefig(stem.with_suffix(".svg"), facecolor="white", metadata=moment)


def _note(figure: "Figure", text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=_INK, linespacing=1.5)


def separation(
    stem: Path,
    districts: Sequence[str],
    exact: Mapping[tuple[str, str], int | None],
    streets: Mapping[str, Estimate],
    *,
    minimum: int,
) -> None:
    """Draw scenario 3: districts as an exact heat map, and how many each street has who live elsewhere.

    Args:
        stem: path without its ending.
        districts: codes, in order.
        exact: persons by (registered, lives), "" for a margin; None where withheld.
        streets: by street of registration, who live in another one.
        minimum: smallest published group.
    """
    with _drawing() as words:
        figure = _figure(
            words.line("人户分离", "Registered in one place, living in another"),
            words.line(
                "左: 公安户籍 × 运营商过夜地, 两家名单隐私求交后制表; 右: 公安户籍一张表",
                "left: the police's register joined with an operator's places of most nights; "
                "right: the police's own register alone",
            ),
            14.2,
            7.2,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
        _districts(left, districts, exact, words)
        _each(right, streets, minimum, words)
        right.set_ylabel(words.line("住在其他街道的人数", "people who live in another street"))
        right.set_title(
            words.line(
                f"户籍在各街道而住在别处, {len(streets)} 个街道, 加噪",
                f"{len(streets)} streets of registration, with noise",
            )
        )
        _note(
            figure,
            words.lines(
                f"左: 精确数, 小于 {minimum} 的组及为其遮蔽的组不公布 (×), 其余四舍五入到 5; 对角线不着色。"
                f"右: 加噪数与 95 % 区间, 加噪后小于 {minimum} 的不公布; {_CROSSES_ZH}",
                f"Left: exact; groups below {minimum}, and others that would give one away, are withheld "
                "(×), the rest is rounded to 5; the diagonal has no colour.\n"
                f"Right: noisy, with 95 % intervals; noisy figures below {minimum} are withheld. {_CROSSES}",
            ),
        )
        _save(figure, stem)


def _districts(
    axes: "Axes", districts: Sequence[str], exact: Mapping[tuple[str, str], int | None], words: Words
) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    apart = [exact[r, c] or 0 for r in districts for c in districts if r != c]
    norm = LogNorm(5, max(*apart, 10))
    colours = np.array([[_shade(exact, r, c) for c in districts] for r in districts], dtype=float)
    axes.imshow(np.ma.masked_invalid(colours), cmap="Blues", norm=norm)
    size = len(districts)
    for row, registered in enumerate((*districts, "")):
        for column, lives in enumerate((*districts, "")):
            value = exact[registered, lives]
            dark = registered != lives and value is not None and norm(max(value, 5)) > 0.62
            edge = "" in (registered, lives)
            axes.text(
                column,
                row,
                "×" if value is None else f"{value:,}",
                ha="center",
                va="center",
                fontsize=6.6,
                color="white" if dark and not edge else _RED if value is None else _INK,
                fontweight="bold" if edge else "normal",
            )
    for at in range(size):
        axes.add_patch(Rectangle((at - 0.5, at - 0.5), 1, 1, fill=False, edgecolor=_FAINT, linewidth=0.8))
    axes.set_xlim(-0.5, size + 0.5)
    axes.set_ylim(size + 0.5, -0.5)
    names = [*districts, words.line("合计", "all")]
    axes.set_xticks(range(size + 1), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(size + 1), names, fontsize=7)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_xlabel(words.line("过夜最多的区", "district of most nights"))
    axes.set_ylabel(words.line("户籍登记区", "district of registration"))
    axes.set_title(words.line("区 × 区, 精确, 人", "districts, exact, people"))


def _shade(exact: Mapping[tuple[str, str], int | None], row: str, column: str) -> float:
    value = exact[row, column]
    return float("nan") if row == column or value is None or value < 5 else value


def school_places(
    stem: Path,
    districts: Mapping[str, tuple[float, Estimate]],
    gaps: Sequence[Gap],
    *,
    years: Sequence[str],
) -> None:
    """Draw scenario 4: places beside children by district, and what each street lacks or has to spare.

    Args:
        stem: path without its ending.
        districts: primary school places and children per district.
        gaps: one per street; verdict `lacking`, `enough` or `open`.
        years: years of entry that are counted together.
    """
    span = f"{years[0]}–{years[-1]}"
    with _drawing() as words:
        figure = _figure(
            words.line("学位缺口", "Will there be primary school places enough?"),
            words.line(
                f"{span} 年入学的儿童 (卫健新生儿 + 公安本地户籍 + 住建租住非户籍) 与现有小学学位",
                f"children who enter school in {span} (health + police + housing, each child in one list) "
                "beside the places of today (education)",
            ),
            13.6,
            7.2,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
        at = list(range(len(districts)))
        left.barh([y - 0.2 for y in at], [places for places, _ in districts.values()], 0.38, color=_GRID,
                  edgecolor=_FAINT, linewidth=0.6, label=words.line("现有学位", "places"))  # fmt: skip
        left.barh([y + 0.2 for y in at], [c.value for _, c in districts.values()], 0.38, color=_BLUE,
                  label=words.line("将入学儿童", "children"))  # fmt: skip
        for y, (_, children) in zip(at, districts.values(), strict=True):
            _interval(left, children, y + 0.2, _INK)
        left.set_yticks(at, list(districts), fontsize=7.5)
        left.invert_yaxis()
        left.set_xlabel(words.line("人 / 学位", "children / places"))
        left.set_title(words.line("按区", "by district"))
        left.legend(frameon=False, fontsize=7.5, loc="lower right")
        _gaps(right, gaps, words)
        _note(
            figure,
            words.lines(
                "横线为 95 % 区间: 噪声使真值落在其外的机会为 5 %。整段在零线左侧的街道缺学位; "
                f"跨零线者仅凭此表不能断定。{_CROSSES_ZH}",
                "Lines are 95 % intervals: of a hundred, the noise lets five miss the registers' own count. "
                "A street whose whole line is left of zero lacks places;\n"
                f"one that crosses zero cannot be told from this table. {_CROSSES}",
            ),
        )
        _save(figure, stem)


def _gaps(axes: "Axes", gaps: Sequence[Gap], words: Words) -> None:
    said = {
        "lacking": (_RED, words.line("缺学位", "lacks places")),
        "open": (_AMBER, words.line("不能断定", "cannot be told")),
        "enough": (_GREEN, words.line("足够", "has enough")),
    }
    shown = [gap for gap in gaps if gap.children.shown]
    ordered = sorted(shown, key=lambda gap: gap.places - gap.children.value)
    for verdict, (colour, label) in said.items():
        rows = [(y, gap) for y, gap in enumerate(ordered) if gap.verdict == verdict]
        y = [at for at, _ in rows]
        spare = [gap.places - gap.children.value for _, gap in rows]
        low = [gap.places - gap.children.high for _, gap in rows]
        high = [gap.places - gap.children.low for _, gap in rows]
        axes.hlines(y, low, high, color=colour, linewidth=1.1, alpha=0.75)
        axes.scatter(spare, y, s=8, color=colour, zorder=3, label=f"{label}: {len(rows)}")
        _crosses(axes, [gap.places - gap.children.truth for _, gap in rows], y)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(ordered), -1)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(words.line("学位 - 儿童", "places minus children"))
    axes.set_title(
        words.line(
            f"按街道: {len(ordered)} 个, 从最缺到最宽裕; 不公布 {len(gaps) - len(ordered)} 个",
            f"{len(ordered)} streets, scarcest first; {len(gaps) - len(ordered)} withheld",
        )
    )
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")


def villages(
    stem: Path,
    districts: Mapping[str, Estimate],
    each: Mapping[str, Estimate],
    *,
    minimum: int,
    departments: int,
) -> None:
    """Draw scenario 9: records per district as bars, and every village with its interval.

    Args:
        stem: path without its ending.
        districts: records per district.
        each: records per village.
        minimum: fewest people of a published figure.
        departments: whose records these are, how many.
    """
    least = minimum * departments
    with _drawing() as words:
        figure = _figure(
            words.line("城中村实有人口", "People in urban villages"),
            words.line(
                f"{departments} 个部门 (公安, 运营商, 住建) 在册人次之和: 一人最多计 {departments} 次",
                f"records of {departments} departments (police, telecom, housing) together: "
                f"one person may count up to {departments} times",
            ),
            13.6,
            6.6,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
        at = list(range(len(districts)))
        left.barh(at, [d.value for d in districts.values()], 0.62, color=_BLUE)
        for y, one in zip(at, districts.values(), strict=True):
            _interval(left, one, y, _INK)
            _crosses(left, [one.truth], [y])
        left.set_yticks(at, list(districts), fontsize=7.5)
        left.invert_yaxis()
        left.set_xlabel(words.line("人次", "records"))
        left.set_title(words.line("按区", "by district"))
        _each(right, each, least, words)
        right.set_ylabel(words.line("人次", "records"))
        right.set_title(words.line(f"{len(each)} 个城中村", f"{len(each)} urban villages"))
        _note(
            figure,
            words.lines(
                f"线段为 95 % 区间。一人最多计 {departments} 次, 故 {minimum} 人即 {least} 人次: "
                "加噪后不足此数的村不公布。人次除以部门数是每个部门平均掌握的人数, 不是实有人口。"
                f"{_CROSSES_ZH}",
                f"Lines are 95 % intervals. A person may count {departments} times, so {minimum} people are "
                f"{least} records: villages with a noisy figure below that are withheld.\n"
                "Records divided by the number of departments is what one department knows on average, "
                f"not how many people live there. {_CROSSES}",
            ),
        )
        _save(figure, stem)


def uncancelled(
    stem: Path,
    questions: Mapping[str, Uncounted],
    *,
    minimum: int,
    grace_days: int,
    overpaid: Estimate,
) -> None:
    """Draw scenario 2: what the bureau is told of each register's dead, and what only the truth says.

    Args:
        stem: path without its ending.
        questions: by name, `register` and `pension`.
        minimum: smallest published group.
        grace_days: days of grace.
        overpaid: what was paid after the month of the funeral to those past the grace, in fen.
    """
    from matplotlib.ticker import MaxNLocator

    with _drawing() as words:
        figure = _figure(
            words.line("应销未销与养老金续领", "The dead on the register, and on the pension list"),
            words.line(
                "卫健死亡证明 × 公安户籍, 民政殡葬 × 人社养老金",
                "death certificates (health) on the household register (police); "
                "funerals (civil affairs) on the pension list (human resources)",
            ),
            13.6,
            8.6,
        )
        grid = figure.add_gridspec(
            len(questions) + 1, 3, width_ratios=(1.5, 1, 1.4), height_ratios=(*[4] * len(questions), 1)
        )
        rows = [[figure.add_subplot(grid[row, at]) for at in range(3)] for row in range(len(questions))]
        _overpaid(figure.add_subplot(grid[len(questions), :]), overpaid, words)
        titles = {
            "register": words.line("仍在户籍, 按区", "still registered, by district"),
            "pension": words.line("仍领养老金, 按区", "still paid a pension, by district"),
        }
        for (name, one), (left, middle, right) in zip(questions.items(), rows, strict=True):
            _uncounted_districts(left, one, words)
            left.set_title(titles[name])
            at = list(range(len(one.ages)))
            middle.bar(at, list(one.ages.values()), 0.62, color=_FAINT)
            middle.set_xticks(at, list(one.ages), fontsize=7.5)
            middle.set_title(words.line("按年龄, 真值", "by age, in truth"))
            months = sorted(one.months)
            past, within = ([one.months[ago][side] for ago in months] for side in (0, 1))
            right.bar(months, past, 0.7, color=_RED, label=words.line("在密封名单上", "on the sealed list"))
            right.bar(months, within, 0.7, bottom=past, color=_GRID, edgecolor=_FAINT, linewidth=0.6,
                      label=words.line("宽限期内, 不告知", "within the grace, not told"))  # fmt: skip
            right.set_xlabel(words.line("死亡距数据时点的月数", "months from death to the extracts"))
            right.set_title(words.line("按死亡时间, 真值", "by time of death, in truth"))
            right.set_ylim(0, 1.35 * max(1, *(sum(each) for each in one.months.values())))
            right.legend(frameon=False, fontsize=7.5, loc="upper right")
            for axes in (left, middle, right):
                axes.grid(axis="y", color=_GRID, linewidth=0.6)
                axes.set_axisbelow(True)
                axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        _note(
            figure,
            words.lines(
                f"左: 公布的数 (小于 {minimum} 的组及为其遮蔽的组不公布, 其余四舍五入到 5); × 为真值。"
                "中、右: 真值, 真实城市中只有名单接收方知晓; "
                f"死亡距当月一日未满 {grace_days} 天的不在名单上。",
                f"Left: groups below {minimum}, and others that would give one away, are withheld; the rest "
                "is rounded to 5. Crosses: the truth.\n"
                "Middle and right: the truth, which in a real city only the list's recipient learns; "
                f"whose death is less than {grace_days} days before the month of the extracts is not on it.",
            ),
        )
        _save(figure, stem)


def flexible_work(
    stem: Path,
    exact: Mapping[str, Estimate],
    noisy: Mapping[tuple[str, ...], Estimate],
    *,
    persons: tuple[int, int],
) -> None:
    """Draw scenario 5: coefficients without noise, and figures with noise as a share of the truth.

    Args:
        stem: path without its ending.
        exact: bands of income per month, by predictor, with confidence intervals.
        noisy: figures by measure and columns, with what noise leaves open.
        persons: joined for the one and for the other.
    """
    chinese = {"insured": "参保年数", "open": "开业年数", "base": "缴费基数", "tax": "扣税额"}
    measures = {
        "persons": "人数",
        "mean": "均值",
        "variance": "方差",
        "correlation": "相关系数",
        "coefficient": "回归系数",
    }
    with _drawing() as words:
        figure = _figure(
            words.line("灵活就业: 社保 × 收入 × 经营", "Insurance, income and businesses of the same people"),
            words.line(
                "人社参保 × 税务扣税 × 市场监管登记, 逐人关联而无人见到一行",
                "three departments' lists joined person by person; nobody sees a row",
            ),
            13.6,
            5.4,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
        at = list(range(len(exact)))
        for y, one in zip(at, exact.values(), strict=True):
            year = Estimate(12 * one.value, 12 * one.low, 12 * one.high, 12 * one.truth)
            _interval(left, year, y, _BLUE)
            left.scatter([year.value], [y], s=22, color=_BLUE, zorder=3)
            _crosses(left, [year.truth], [y])
        left.axvline(0, color=_INK, linewidth=0.8)
        left.set_yticks(at, [words.lines(chinese[slot], slot) for slot in exact], fontsize=8)
        left.set_ylim(len(exact) - 0.4, -0.6)
        left.set_xlabel(words.line("每多一年, 收入档相差", "bands of income per year more"))
        left.set_title(
            words.line(
                f"三部门共有 {persons[0]:,} 人, 精确", f"exact: {persons[0]:,} people on all three lists"
            )
        )
        shown = {cell: one for cell, one in noisy.items() if one.shown and one.truth}
        at = list(range(len(shown)))
        for y, one in zip(at, shown.values(), strict=True):
            by = 100 / one.truth
            share = Estimate(by * one.value, by * one.low, by * one.high, 100)
            _interval(right, share, y, _BLUE)
            right.scatter([share.value], [y], s=22, color=_BLUE, zorder=3)
        right.axvline(100, color=_INK, linewidth=0.8)
        labels = [
            words.lines(
                " ".join([measures[cell[0]], *(chinese[slot] for slot in cell[1:] if slot)]),
                " ".join(part for part in cell if part),
            )
            for cell in shown
        ]
        right.set_yticks(at, labels, fontsize=8)
        right.set_ylim(len(shown) - 0.4, -0.6)
        right.ticklabel_format(axis="x", useOffset=False)
        right.set_xlabel(words.line("占真值的百分比", "per cent of the truth"))
        right.set_title(
            words.line(
                f"两部门共有 {persons[1]:,} 人, 加噪", f"with noise: {persons[1]:,} people on two lists"
            )
        )
        for axes in (left, right):
            axes.grid(axis="x", color=_GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        _note(
            figure,
            words.lines(
                "左: 系数与 95 % 置信区间 (抽样误差), × 为合并明细后的拟合结果, 与公布值重合; "
                "右: 噪声造成的 95 % 区间。系数按 AdaSSP 估计, 噪声越大越向零收缩。",
                "Left: coefficients with confidence intervals, as if people were drawn at random; crosses: "
                "the same fit on pooled rows, which is the released one.\n"
                "Right: what noise leaves open, 95 %. The coefficient is shrunk towards zero the more, "
                "the more noise there is.",
            ),
        )
        _save(figure, stem)


def hardship(
    stem: Path,
    outcomes: Mapping[str, int],
    curve: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
) -> None:
    """Draw scenario 7: whom the rule finds, misses and takes for somebody else, and what thresholds would do.

    Args:
        stem: path without its ending.
        outcomes: people `found`, `missed`, `helped` already, and `wrong` leads; in truth.
        curve: recall and precision of each threshold.
        chosen: those of the rule that was asked.
    """
    with _drawing() as words:
        figure = _figure(
            words.line("困境识别: 因病致贫", "Leads to people whom an illness has made poor"),
            words.line(
                "医保自付 × 低保名单 × 学籍 × 租金: 民政只得名单, 不得数值",
                "bills, low-income list, schooling, rent: civil affairs receive who, and no amount",
            ),
            12.6,
            5.2,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        bars = (
            (
                words.lines("处于困境的人", "in hardship"),
                (
                    ("found", _GREEN, words.line("找到", "found")),
                    ("missed", _AMBER, words.line("漏掉", "missed")),
                    ("helped", _GRID, words.line("已在低保", "helped already")),
                ),
            ),
            (
                words.lines("名单上的人", "on the sealed list"),
                (
                    ("found", _GREEN, None),
                    ("wrong", _RED, words.line("不属实", "not in hardship")),
                ),
            ),
        )
        for y, (_, parts) in enumerate(bars):
            begins = 0
            for name, colour, label in parts:
                left.barh([y], [outcomes[name]], 0.5, left=begins, color=colour, label=label)
                if outcomes[name] * 12 > sum(outcomes.values()):
                    left.text(begins + outcomes[name] / 2, y, f"{outcomes[name]:,}", ha="center", va="center",
                              fontsize=8.5, color="white")  # fmt: skip
                begins += outcomes[name]
        left.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
        left.set_ylim(len(bars) - 0.2, -0.6)
        left.set_xlabel(words.line("人", "people"))
        left.set_title(words.line("规则找到谁, 漏掉谁", "whom the rule finds, and whom not"))
        left.legend(frameon=False, fontsize=7.5, ncols=2, loc="lower right")
        right.plot(
            [x for x, _ in curve], [y for _, y in curve], marker="o", markersize=3, linewidth=1, color=_BLUE
        )
        right.scatter([chosen[0]], [chosen[1]], s=60, color=_RED, zorder=4)
        right.annotate(
            words.lines(
                f"所问规则: 查准 {100 * chosen[1]:.0f} %, 查全 {100 * chosen[0]:.0f} %",
                f"the rule asked: precision {100 * chosen[1]:.0f} %, recall {100 * chosen[0]:.0f} %",
            ),
            chosen,
            xytext=(-8, -14),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )
        right.set_xlim(0, 1)
        right.set_ylim(0, 1.02)
        right.set_xlabel(words.line("查全率", "recall"))
        right.set_ylabel(words.line("查准率", "precision"))
        right.set_title(words.line("其他门槛会怎样", "what other thresholds would do"))
        for axes, along in ((left, "x"), (right, "both")):
            axes.grid(axis="x" if along == "x" else "both", color=_GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        _note(
            figure,
            words.lines(
                "均为合成城市的真值, 真实城市中须逐户核实才能得知。规则看不到收入: "
                "自付高而家境好的人在名单上, 自付不高但无收入的人不在。",
                "All of it is the truth, which in a real city only visits show. The rule does not see "
                "incomes: who pays much and is well off is on the list;\n"
                "who pays less and earns nothing is not.",
            ),
        )
        _save(figure, stem)


def differing(
    stem: Path,
    pairs: Mapping[tuple[str, str], int | None],
    districts: Mapping[str, int | None],
    *,
    minimum: int,
) -> None:
    """Draw scenario 8: of how many people two departments have another marital status, and which.

    Args:
        stem: path without its ending.
        pairs: people by what the one and the other department has, in truth; None for too few.
        districts: the same people by district; None for too few.
        minimum: fewest people that are shown.
    """
    chinese = {"single": "未婚", "married": "已婚", "widowed": "丧偶", "divorced": "离婚"}
    with _drawing() as words:
        figure = _figure(
            words.line("婚姻状况校核", "Marital status, as two departments have it"),
            words.line(
                "公安人口登记 × 民政婚姻登记: 各部门只得知本部门哪些记录与对方不一致",
                "police and marriage register: each learns which of its own records differ, and no value",
            ),
            12.6,
            5.6,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
        shown = {pair: persons for pair, persons in pairs.items() if persons is not None}
        ordered = sorted(shown, key=lambda pair: -shown[pair])
        names = [
            words.line(f"公安 {chinese[one]}, 民政 {chinese[other]}", f"police {one}, civil affairs {other}")
            for one, other in ordered
        ]
        for axes, labels, values, title in (
            (left, names, [shown[pair] for pair in ordered], words.line("按两部门取值", "by what each has")),
            (
                right,
                list(districts),
                [persons or 0 for persons in districts.values()],
                words.line("按居住区", "by district of residence"),
            ),
        ):
            at = list(range(len(labels)))
            bars = axes.barh(at, values, 0.62, color=_BLUE)
            axes.bar_label(
                bars, [f"{value:,}" if value else "×" for value in values], padding=3, fontsize=7.5
            )
            axes.set_yticks(at, labels, fontsize=7.5)
            axes.invert_yaxis()
            axes.margins(x=0.12)
            axes.set_xlabel(words.line("人", "people"))
            axes.set_title(title)
        _note(
            figure,
            words.lines(
                "两图均为合成城市的真值, 真实城市中无人知晓: 每个部门只有自己的密封名单。"
                f"少于 {minimum} 人的不列出 (×)。",
                "Both are the truth, which nobody has in a real city: each department has its sealed list, "
                f"the bureau nothing. Fewer than {minimum} people are not shown (×).",
            ),
        )
        _save(figure, stem)


def latencies(stem: Path, milliseconds: Sequence[float], *, people: int) -> None:
    """Draw scenario 10: how long look-ups took, one after the other.

    Args:
        stem: path without its ending.
        milliseconds: of each look-up, in order.
        people: whom the table has.
    """
    with _drawing() as words:
        figure = _figure(
            words.line("以核代填", "Verify instead of filling in"),
            words.line(
                f"街道窗口逐人核验本街道 {people:,} 名登记人口; 公安只知次数, 不知查询了谁",
                f"a street's clerk asks about its {people:,} residents one by one; the police count the "
                "look-ups, and learn of nobody who it was",
            ),
            12.6,
            5.2,
        )
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
        left.hist(milliseconds, bins=24, color=_BLUE, edgecolor="white", linewidth=0.5)
        left.set_xlabel(words.line("毫秒", "milliseconds"))
        left.set_ylabel(words.line("查询次数", "look-ups"))
        left.set_title(words.line("单人核验用时分布", "time of one look-up"))
        right.plot(range(1, len(milliseconds) + 1), milliseconds, linewidth=0.9, color=_BLUE)
        right.set_ylim(0)
        right.set_xlabel(words.line("第几次查询", "look-up"))
        right.set_ylabel(words.line("毫秒", "milliseconds"))
        right.set_title(words.line("依次用时", "one after the other"))
        for axes in (left, right):
            axes.grid(axis="y", color=_GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        _note(
            figure,
            words.lines(
                "从窗口提交到得到答案, 含两个节点写入日志; 全部进程在同一台机器上, 互相争用。",
                "From the window to the answer, both nodes' journal entries included; all processes share "
                "one machine.",
            ),
        )
        _save(figure, stem)


def vaccination(
    stem: Path,
    runs: Mapping[str, Course],
    abilities: Sequence[Ability],
    calibrated: Mapping[str, Sequence[tuple[float, float]]],
    uptake: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ages: Sequence[str],
) -> None:
    """Draw scenario 6: how the runs went, what the models can tell, and what they say of groups.

    Args:
        stem: path without its ending.
        runs: by name of the question.
        abilities: from top to bottom.
        calibrated: by name of the question, chance given and part found; `` for what every model should say.
        uptake: by kind of registration, for each age: what the model says on average, and the truth.
        ages: bands of age, in order.
    """
    named = {
        "districts": ("逻辑回归, 三区", "logistic, three districts", _BLUE),
        "boost": ("提升树, 三区", "boosted trees, three districts", _AMBER),
        "joined": ("逻辑回归, 跨部门", "logistic, joined departments", _GREEN),
    }
    with _drawing() as words:
        figure = _figure(
            words.line("接种率模型", "A model of who is vaccinated"),
            words.line(
                "三个区的卫健各有本区居民; 公安 × 卫健 × 医保各有同一批人的不同字段。出部门的只有模型",
                "three districts have the same columns of different people; three departments have different "
                "columns of the same people",
            ),
            14.6,
            9.4,
        )
        (loss, auc, epsilon), (able, calibration, groups) = figure.subplots(2, 3, height_ratios=(1, 1.15))
        for name, course in runs.items():
            zh, en, colour = named[name]
            for axes, points in ((loss, course.loss), (auc, course.auc), (epsilon, course.epsilon)):
                if points:
                    marker = "" if len(points) > _DENSE else "o"
                    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.3,
                              marker=marker, markersize=3.5, label=words.line(zh, en))  # fmt: skip
            if course.within and course.auc:
                auc.vlines([course.auc[-1][0]], *course.within, color=colour, linewidth=1.0, alpha=0.6)
        for axes, zh, en in (
            (loss, "对数损失", "log loss"),
            (auc, "AUC", "AUC"),
            (epsilon, "已用隐私预算 ε", "ε spent"),
        ):
            axes.set_title(words.line(zh, en) if zh != en else en)
            axes.set_xlabel(words.line("轮次", "round"))
            axes.set_xlim(0, None)
            axes.grid(color=_GRID, linewidth=0.6)
            axes.set_axisbelow(True)
        epsilon.set_ylim(0, None)
        epsilon.legend(frameon=False, fontsize=7.5, loc="lower right")
        _abilities(able, abilities, words)
        _calibrated(calibration, {named[name]: points for name, points in calibrated.items()}, words)
        _uptake(groups, uptake, ages, words)
        _note(
            figure,
            words.lines(
                "上: 每隔若干轮在未参与训练的人 (加噪计数) 或公开测试集上评估; ε 含评估。"
                "左下: 蓝为交付的模型, 灰为把明细集中一处且不加噪的同一配方, 横线为 95 % 区间。"
                "右下: × 为合成城市的真值, 真实城市中无人知晓。",
                "Above: measured now and then on people who were not trained on, counted with noise, or on a "
                "public test set; ε includes that. Lower left: blue, models that were released;\n"
                "grey, the same recipe on everybody's rows in one place, without noise; lines are 95 % "
                "intervals. Lower right: crosses are the truth, known only because the city is synthetic.",
            ),
        )
        _save(figure, stem)


_DENSE: Final = 12
"""Points from which on a line has no markers."""


def _abilities(axes: "Axes", abilities: Sequence[Ability], words: Words) -> None:
    for y, one in enumerate(abilities):
        axes.barh([y], [one.value - 0.5], 0.58, left=0.5, color=_BLUE if one.released else _GRID,
                  edgecolor=_FAINT, linewidth=0.6)  # fmt: skip
        axes.hlines([y], [one.low], [one.high], color=_INK, linewidth=1.1)
        axes.text(0.508, y, f"{one.value:.3f}", va="center", fontsize=8,
                  color="white" if one.released else _INK)  # fmt: skip
    axes.set_yticks(range(len(abilities)), [words.lines(one.zh, one.en) for one in abilities], fontsize=7.5)
    axes.set_ylim(len(abilities) - 0.4, -0.6)
    axes.set_xlim(0.5, 1)
    axes.set_xlabel("AUC")
    axes.set_title(words.line("区分能力", "how well it tells who is vaccinated"))
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _calibrated(
    axes: "Axes",
    calibrated: Mapping[tuple[str, str, str], Sequence[tuple[float, float]]],
    words: Words,
) -> None:
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8, linestyle="--")
    for (zh, en, colour), points in calibrated.items():
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.1, marker="o",
                  markersize=3.5, label=words.line(zh, en))  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(words.line("模型给出的概率", "chance that the model gives"))
    axes.set_ylabel(words.line("其中实际接种比例", "part that is vaccinated"))
    axes.set_title(words.line("校准", "calibration"))
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")


def _uptake(
    axes: "Axes", uptake: Mapping[str, Sequence[tuple[float, float]]], ages: Sequence[str], words: Words
) -> None:
    chinese = {"register": "户籍", "floating": "流动"}
    width = 0.8 / len(uptake)
    for at, ((kind, pairs), colour) in enumerate(zip(uptake.items(), (_BLUE, _AMBER), strict=True)):
        x = [place + (at + 0.5) * width - 0.4 for place in range(len(pairs))]
        axes.bar(x, [100 * said for said, _ in pairs], width * 0.92, color=colour,
                 label=words.line(chinese[kind], kind))  # fmt: skip
        _crosses(axes, x, [100 * truth for _, truth in pairs])
    axes.set_xticks(range(len(ages)), list(ages), fontsize=7.5)
    axes.set_xlabel(words.line("年龄", "age"))
    axes.set_ylabel("%")
    axes.set_title(words.line("接种率: 模型与真值", "vaccinated: model, truth"))
    axes.legend(frameon=False, fontsize=7.5, loc="upper left")
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _uncounted_districts(axes: "Axes", one: Uncounted, words: Words) -> None:
    at = list(range(len(one.districts)))
    shown = [
        (x, count) for x, (count, _) in zip(at, one.districts.values(), strict=True) if count is not None
    ]
    axes.bar([x for x, _ in shown], [count for _, count in shown], 0.62, color=_BLUE,
             label=words.line("公布", "published"))  # fmt: skip
    _crosses(axes, at, [truth for _, truth in one.districts.values()], words.line("真值", "truth"))
    hidden = sum(count is None and truth > 0 for count, truth in one.districts.values())
    axes.set_xticks(at, list(one.districts), rotation=60, ha="right", fontsize=7)
    axes.set_ylim(0, 1.35 * max(1, *(max(count or 0, truth) for count, truth in one.districts.values())))
    city = "withheld" if one.city is None else f"{one.city:,}"
    axes.set_xlabel(
        words.lines(
            f"公布: 全市 {'不公布' if one.city is None else city}; 不公布 {hidden} 个区",
            f"published: city {city}; {hidden} districts withheld",
        )
    )
    axes.legend(frameon=False, fontsize=7.5, ncols=2, loc="upper right")


def _overpaid(axes: "Axes", one: Estimate, words: Words) -> None:
    yuan = Estimate(one.value / 100, one.low / 100, one.high / 100, one.truth / 100)
    if one.shown:
        _interval(axes, yuan, 0, _BLUE)
        axes.scatter([yuan.value], [0], s=16, color=_BLUE, zorder=3)
    _crosses(axes, [yuan.truth], [0])
    axes.set_xlim(min(0, yuan.low) if one.shown else 0, 1.1 * max(yuan.high if one.shown else 1, yuan.truth))
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(words.line("元", "yuan"))
    axes.set_title(
        words.line(
            f"过宽限期者殡葬当月之后仍发的养老金, 加噪{', 95 % 区间' if one.shown else ': 不公布'}, × 为真值",
            "pensions paid after the month of the funeral to those past the grace, with noise: "
            f"{'95 % interval' if one.shown else 'withheld'}; cross: the truth",
        )
    )


def _each(axes: "Axes", each: Mapping[str, Estimate], minimum: int, words: Words) -> None:
    """Draw many figures, the largest first, each with its interval."""
    shown = sorted((one for one in each.values() if one.shown), key=lambda one: -one.value)
    hidden = len(each) - len(shown)
    x = list(range(len(shown)))
    low, high = [one.low for one in shown], [one.high for one in shown]
    axes.vlines(x, low, high, color=_BLUE, linewidth=1, alpha=0.6)
    released = words.line("公布值与 95 % 区间", "released, with 95 % interval")
    axes.scatter(x, [one.value for one in shown], s=6, color=_BLUE, zorder=3, label=released)
    _crosses(axes, x, [one.truth for one in shown], words.line("登记真值", "registers' own count"))
    axes.axhline(minimum, color=_RED, linewidth=0.9, linestyle="--")
    axes.text(0, minimum, f"{minimum}", color=_RED, va="bottom", ha="left", fontsize=7.5)
    axes.set_xlim(-2, max(len(shown), 1) + 1)
    axes.set_ylim(0)
    axes.set_xticks([])
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(
        words.line(
            f"{len(shown)} 个, 从多到少; 不公布 {hidden} 个",
            f"{len(shown)} shown, largest first; {hidden} withheld",
        )
    )
    axes.legend(frameon=False, fontsize=7.5, loc="upper right")


def _crosses(axes: "Axes", x: Sequence[float], y: Sequence[float], label: str | None = None) -> None:
    """Mark what is true."""
    axes.scatter(x, y, marker="x", s=11, linewidths=0.8, color=_INK, zorder=4, label=label)


def _interval(axes: "Axes", one: Estimate, at: float, colour: str) -> None:
    axes.hlines([at], [one.low], [one.high], color=colour, linewidth=1.4, zorder=3)
    axes.vlines([one.low, one.high], at - 0.12, at + 0.12, color=colour, linewidth=1.4, zorder=3)
