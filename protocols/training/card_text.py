"""A model's card in words, for people who decide whether to use it: English and Chinese."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from protocols.training.card import Card, Dataset, Feature, Label, Limits, Metrics

LANGUAGES: Final = ("en", "zh")

_SHOWN: Final = 12
"""Codes or edges of a column that are shown."""


class Both(NamedTuple):
    """A text in both languages."""

    en: str
    zh: str


_TURNS: Final = {"train": Both("training", "训练"), "evaluate": Both("evaluation", "评估")}
_ON: Final = {
    "held-out, noisy": Both(
        "rows held out from training, counted with noise", "训练外保留的数据, 计数加噪声"
    ),
    "held-out": Both("rows held out from training, counted exactly", "训练外保留的数据, 精确计数"),
    "public test set": Both("a public test set", "公开测试集"),
}


def limits(card: Card) -> Limits:
    """Return what to know before a model is used; the card carries it, whoever shows it."""
    found = [*_limits(card)]
    return Limits(tuple(each.en for each in found), tuple(each.zh for each in found))


def _limits(card: Card) -> Iterator[Both]:
    yield Both(
        "It gives chances, not findings. A score of a single person is class B: 疑似, 需人工核实 (suspected, "
        "needs human verification). Nothing may be decided about anybody by a score alone.",
        "模型给出的是可能性, 不是结论。对个人的评分属于 B 类: 疑似, 需人工核实; "
        "不得仅凭评分对任何人作出决定。",
    )
    yield Both(
        "It holds for people like those it was trained on, as they were then. Elsewhere and later it has to "
        "be measured again.",
        "模型仅适用于与训练数据相似的人群及当时的情况; 用于其他地区或更晚时间须重新评估。",
    )
    yield Both(
        "It finds what goes together in the data, not what causes what.",
        "模型反映数据中的相关性, 不说明因果。",
    )
    if card.privacy.notion == "none":
        yield Both(
            "It was trained without noise, by a rule that allows it. Whoever has it may be able to tell that "
            "a certain person was in the data, or to rebuild something of what is rare in it.",
            "经规则明确允许, 训练未加噪声。持有模型者可能判断某人是否在训练数据中, 或还原其中罕见的内容。",
        )
    else:
        factor, chance = f"e^{card.privacy.epsilon}", card.privacy.delta
        yield Both(
            "What ε means: whether any one person was in the data or not changes the chance of any outcome "
            f"by a factor of at most {factor}, but for a chance of {chance}. It does not hide what is true "
            "of a whole group.",
            f"ε 的含义: 任何一个人是否在数据中, 至多使任何结果的概率变为 {factor} 倍, "
            f"例外的概率不超过 {chance}。它不隐藏整个群体的共性。",
        )
    if card.group is not None:
        yield Both(
            "Errors differ between groups. Of a group with few rows no errors are stated: that says nothing "
            "good of them.",
            "各组的误差不同; 数据很少的组不给出误差, 这并不表示误差小。",
        )
    if card.job_type == "train-joined/1":
        yield Both(
            "How well an attacker tells who was trained on was not measured: rows that are trained on are "
            "not scored again in shares, which would take several times what counting held-out ones takes.",
            "未测量成员推断攻击的效果: 参与训练的数据不再以份额形式重新评分, 其计算量为留出数据评估的数倍。",
        )
    elif card.metrics is None or card.metrics.membership_auc is None:
        yield Both(
            "How well an attacker tells who was trained on was not measured in this run.",
            "本次训练未测量成员推断攻击的效果。",
        )


def describe(card: Card, lang: str = "zh") -> list[str]:
    """Return the card as lines of text.

    Args:
        card: what is described.
        lang: `en` or `zh`.
    """
    return [line[LANGUAGES.index(lang)] for line in _lines(card)]


def _lines(card: Card) -> Iterator[Both]:
    # A recipe from elsewhere is named with the package that it comes from.
    package = "" if isinstance(card.recipe, str) else f" ({card.recipe.distribution} {card.recipe.version})"
    yield Both("A model (class C)", "模型 (C 类)")
    yield _line("recipe", "配方", card.recipe_name + package)
    yield _line("job", "任务", f"{card.job}, {card.job_type}")
    yield _line("purpose", "用途", f"{card.purpose}; {card.legal_basis}")
    yield _line("use", "预期使用", card.expected_use)
    yield _line("predicts", "预测", _label(card.label))
    yield _line("from", "依据", f"{len(card.features)} columns", f"{len(card.features)} 列")
    for feature in card.features:
        yield _feature(feature)
    yield Both("  data", "  数据")
    for dataset in card.datasets:
        yield _dataset(dataset)
    run = card.training
    held = [
        _turn(turn, run.rounds.get(turn, 0), most)
        for turn, most in sorted(run.most_rounds.items(), reverse=True)
    ]
    yield _line("rounds", "轮次", ", ".join(each.en for each in held), ", ".join(each.zh for each in held))
    loss = card.privacy
    if loss.notion == "none":
        yield _line("privacy", "隐私", "no noise", "未加噪声")
    else:
        yield _line(
            "privacy",
            "隐私",
            f"ε = {loss.epsilon} at δ = {loss.delta} (ρ = {loss.rho}) for the whole run; "
            f"the rounds that were held: ε = {loss.spent_epsilon}",
            f"全程 ε = {loss.epsilon} (δ = {loss.delta}, ρ = {loss.rho}); 实际轮次 ε = {loss.spent_epsilon}",
        )
    if card.metrics is None:
        yield _line("measured", "评估", "not measured", "未评估")
    else:
        yield from _metrics(card.metrics)
    yield Both("  before use", "  使用前须知")
    for en, zh in zip(card.limits.en, card.limits.zh, strict=True):
        yield Both(f"    - {en}", f"    - {zh}")
    yield _line("made with", "软件", ", ".join(" ".join(each) for each in sorted(card.versions.items())))
    yield _line("sha256", "摘要", card.model_sha256)


def _line(en: str, zh: str, value: str, value_zh: str | None = None) -> Both:
    # A Chinese character takes two columns.
    return Both(
        f"  {en:<11}{value}", f"  {zh}{' ' * (10 - 2 * len(zh))}{value if value_zh is None else value_zh}"
    )


def _metrics(found: Metrics) -> Iterator[Both]:
    yield _line("measured", "评估", *_ON[found.on])
    if found.auc is None:
        yield Both("    too few rows for an AUC, above their noise", "    数据过少 (相对于噪声), 不给出 AUC")
    if found.auc is not None:
        yield Both(*2 * [f"    AUC {found.auc:.4f}{_between(found.auc_low, found.auc_high)}"])
    if found.loss is not None:
        yield Both(f"    mean logarithmic loss {found.loss:.4f}", f"    平均对数损失 {found.loss:.4f}")
    if found.calibration_error is not None:
        yield Both(
            f"    chances are off by {found.calibration_error:.3f} on average",
            f"    概率平均偏差 {found.calibration_error:.3f}",
        )
    if found.membership_auc is not None:
        told = f"AUC {found.membership_auc:.3f}{_between(found.membership_low, found.membership_high)}"
        yield Both(
            f"    telling who was trained on: {told}, where 0.5 is mere chance",
            f"    成员推断 {told}, 0.5 即无法判断",
        )
    for each in found.groups:
        alarms, misses = _percent(each.false_alarms), _percent(each.misses)
        yield Both(
            f"    {each.code or 'others'}: false alarms {alarms.en}, misses {misses.en}",
            f"    {each.code or '其他'}: 误报 {alarms.zh}, 漏报 {misses.zh}",
        )


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.3f} … {high:.3f})"


def _percent(share: float | None) -> Both:
    return Both("of too few rows", "数据过少") if share is None else Both(*2 * [f"{100 * share:.1f} %"])


def _turn(turn: str, held: int, most: int) -> Both:
    name = _TURNS.get(turn, Both(turn, turn))
    return Both(f"{held} of {most} for {name.en}", f"{name.zh} {held}/{most} 轮")


def _dataset(each: Dataset) -> Both:
    name = f"    {each.role}: {each.organisation}, {each.dataset}"
    return Both(
        f"{name}: {each.rows:,} rows published, as of {each.snapshot}",
        f"{name}: 目录公布 {each.rows:,} 条, 截至 {each.snapshot}",
    )


def _label(label: Label) -> str:
    name = label.slot if label.source is None else f"{label.source}.{label.slot}"
    return f"{name} ≥ {label.at_least}" if label.positive is None else f"{name} = {_listed(label.positive)}"


def _feature(feature: Feature) -> Both:
    if feature.codes is not None:
        return Both(*2 * [f"    {feature.name}: {_listed(feature.codes)}"])
    if feature.edges is not None:
        cut = f"    {feature.name}: | {_listed(feature.edges, ' | ')} |"
        return Both(f"{cut}, or empty", f"{cut}, 或空") if feature.missing == "yes" else Both(cut, cut)
    return Both(*2 * [f"    {feature.name}: {feature.low} … {feature.high}"])


def _listed(items: Sequence[str], between: str = ", ") -> str:
    shown = between.join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} … ({len(items)})"
