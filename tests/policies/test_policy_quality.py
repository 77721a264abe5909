"""Thresholds of quality: met at the edge and missed just before it, accepted by rules, soundly diffed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.diff import Effect, diff, overall
from policies.explain import explain_policy
from policies.model import Dataset, Policy, Quality, QualityMetric, Rule
from policies.parse import parse_policy
from policies.quality import check_quality, key_fields_of, thousandths_words, thresholds_of
from protocols.errors import PolicyInvalid
from protocols.quality import (
    ColumnCounts,
    KeyCounts,
    Metric,
    QualityCounts,
    Shares,
    age_in_days,
    shares_of,
    thousandths,
)

EXAMPLE = (Path(__file__).parents[2] / "policies" / "examples" / "health.toml").read_text("utf-8")
ASKED = """min_completeness = "0.99"                 # of the columns that join
min_valid_keys = "0.99"                   # check digit and the other rules
max_age_days = 7
max_drift = "0.02"                        # from the number of keys in the catalogue
"""
GOOD = Shares({"resident_id": 1000, "street": 1000}, valid_keys=1000, repeated=0, drift=0)


def parsed(asked: str = ASKED, rule: str = "") -> Policy:
    assert ASKED in EXAMPLE
    text = EXAMPLE.replace(ASKED, asked).replace("rate = {", f"{rule}rate = {{", 1)
    return parse_policy(text.encode()).policy


def answered(policy: Policy, shares: Shares, age: int | None = 0) -> Any:
    return check_quality("patients", policy.datasets["patients"], policy.rules[0], shares, age)


def test_the_metrics_of_a_policy_are_those_that_are_measured():
    assert set(get_args(QualityMetric)) == {metric.value for metric in Metric}


@pytest.mark.parametrize(
    ("shares", "age", "word"),
    [
        (replace(GOOD, completeness={"resident_id": 989}), 0, "resident_id is there in 98.9 % of the rows"),
        (replace(GOOD, valid_keys=989), 0, "98.9 % of the identifiers are valid"),
        (replace(GOOD, drift=21), 0, "differ from the catalogue's by 2.1 %"),
        (GOOD, 8, "it was written 8 days ago"),
        (GOOD, None, "nothing says when it was written (asked: written at most 7 days ago)"),
        (replace(GOOD, completeness={}), 0, "resident_id was not found in it"),
        (Shares({"resident_id": 1000}), 0, "it has no identifiers to count"),
    ],
)
def test_what_misses_a_threshold_is_refused_with_figure_and_rule(shares: Shares, age: int | None, word: str):
    no = answered(parsed(), shares, age)
    assert (no.code, no.rule) == ("quality-too-low", "R1")
    assert word in no.sentence
    assert no.zh != no.sentence
    assert "accepts" in no.hint
    assert "accepts_quality" in no.hint_zh


def test_what_is_just_good_enough_passes():
    edge = Shares({"resident_id": 990}, valid_keys=990, repeated=999, drift=20)
    assert answered(parsed(), edge, 7) is None


def test_columns_that_are_no_key_fields_may_be_missing():
    assert answered(parsed(), replace(GOOD, completeness={"resident_id": 1000, "street": 0})) is None
    asked = 'min_completeness = "0.5"\nkey_fields = ["street"]\n'
    assert answered(parsed(asked), replace(GOOD, completeness={"resident_id": 0, "street": 500})) is None
    assert answered(parsed(asked), replace(GOOD, completeness={"street": 499})) is not None


def test_a_rule_accepts_what_it_names_and_nothing_else():
    policy = parsed(rule='accepts_quality = ["age", "valid-keys"]\n')
    assert answered(policy, replace(GOOD, valid_keys=1), 900) is None
    assert answered(policy, replace(GOOD, drift=30), 900) is not None


def test_a_rule_may_bound_repeated_rows_otherwise_than_the_dataset():
    few = parsed('max_repeated = "0.1"\n', 'max_duplicates = "0.05"\n')
    assert answered(few, replace(GOOD, repeated=50)) is None
    assert answered(few, replace(GOOD, repeated=51)) is not None
    more = parsed('max_repeated = "0.1"\n', 'accepts_quality = ["repeated"]\nmax_duplicates = "0.16"\n')
    assert answered(more, replace(GOOD, repeated=160)) is None
    assert answered(more, replace(GOOD, repeated=161)) is not None


def test_without_thresholds_nothing_is_asked():
    policy = parsed().datasets["patients"]
    assert thresholds_of(msgspec.structs.replace(policy, quality=None)) == ()


counts = st.integers(1, 10**6).flatmap(lambda whole: st.tuples(st.integers(0, whole), st.just(whole)))


@given(counts, st.integers(1, 1000))
def test_a_share_meets_a_threshold_if_and_only_if_the_exact_figure_does(figure: tuple[int, int], asked: int):
    part, whole = figure
    least = Fraction(asked, 1000)
    assert (thousandths(part, whole, up=False) >= asked) == (Fraction(part, whole) >= least)
    assert (thousandths(part, whole, up=True) <= asked) == (Fraction(part, whole) <= least)


@given(st.integers(-3, 10**7), st.integers(1, 365))
def test_an_age_is_within_its_days_if_and_only_if_no_more_time_went_by(seconds: int, days: int):
    now = datetime(2026, 11, 22, tzinfo=UTC)
    written = now - timedelta(seconds=seconds)
    assert (age_in_days(written, now) <= days) == (seconds <= days * 86_400)


def test_of_an_empty_table_nothing_is_complete_and_its_keys_have_all_gone():
    key = KeyCounts(rows=0, missing=0, valid=0, distinct=0)
    shares = shares_of(QualityCounts(0, {"resident_id": ColumnCounts(0)}, key), 4000)
    assert shares == Shares({"resident_id": 0}, valid_keys=0, repeated=0, drift=1000)
    assert answered(parsed(), shares) is not None


@pytest.mark.parametrize(
    ("found", "text"), [(0, "0.0 %"), (989, "98.9 %"), (1000, "100.0 %"), (12345, "1,234.5 %")]
)
def test_shares_are_said_in_percent(found: int, text: str):
    assert thousandths_words(found) == text


# -- what no policy may say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "rule", "code", "word"),
    [
        ('min_completeness = "1.01"\n', "", "bad-number", "more than 0 and at most 1"),
        ('min_valid_keys = "0"\n', "", "bad-number", "more than 0 and at most 1"),
        ('max_drift = "1"\n', "", "bad-number", "less than 1"),
        ('max_repeated = "-0.1"\n', "", "bad-number", "less than 1"),
        ('min_completeness = "0.9995"\n', "", "bad-number", "three places"),
        ("max_age_days = 0\n", "", "policy-invalid", "days, from 1"),
        ("", "", "bad-quality", "no threshold"),
        ('key_fields = ["street"]\nmax_age_days = 1\n', "", "bad-quality", "min_completeness is missing"),
        ('min_completeness = "1"\nkey_fields = ["name"]\n', "", "unknown-column", "no column of that name"),
        ("max_age_days = 7\n", 'accepts_quality = ["drift"]\n', "bad-quality", "no dataset of the rule has"),
        (ASKED, 'accepts_quality = ["freshness"]\n', "policy-invalid", "one of completeness"),
        ('max_repeated = "0.1"\n', 'max_duplicates = "0.1"\n', "bad-quality", "has no effect"),
        (ASKED, 'max_duplicates = "1"\n', "bad-number", "less than 1"),
    ],
)
def test_a_threshold_that_nobody_can_meet_or_miss_is_refused(asked: str, rule: str, code: str, word: str):
    with pytest.raises(PolicyInvalid) as caught:
        parsed(asked, rule)
    assert caught.value.code == code
    assert word in caught.value.message
    assert caught.value.line > 0


def test_a_dataset_without_identifiers_has_none_to_ask_about():
    bare = EXAMPLE.replace('use = ["join"]', 'use = ["carry"]').replace(ASKED, 'max_drift = "0.02"\n')
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(bare.encode())
    assert "nothing meets this" in caught.value.message


# -- what officers read --------------------------------------------------------------------------------------


def test_officers_read_what_is_asked_and_what_is_accepted():
    text = EXAMPLE.replace("rate = {", 'accepts_quality = ["age"]\nmax_duplicates = "0.16"\nrate = {', 1)
    found = parse_policy(text.encode())
    english, chinese = explain_policy(found, "en"), explain_policy(found, "zh")
    for line in (
        "    Only while at least 99 % of the rows have resident_id\n",
        "    Only while as many distinct keys as the catalogue says, to 2 %\n",
        "    Only while at most 16 % of the rows repeat another's key\n",
        "    Not asked here: written at most 7 days ago\n",
    ):
        assert line in english
    for line in ("    前提: resident_id 完整率不低于 99 %\n", "    本规则不要求: 最近一次写入不超过 7 天\n"):
        assert line in chinese


shares = st.builds(
    Shares,
    st.fixed_dictionaries({name: st.integers(0, 1000) for name in ("resident_id", "street")}),
    valid_keys=st.integers(0, 1000),
    repeated=st.integers(0, 1000),
    drift=st.integers(0, 1500),
)
bounds = st.none() | st.sampled_from([Fraction(n, 10) for n in range(1, 10)])
qualities = st.none() | st.builds(
    Quality,
    min_completeness=bounds,
    min_valid_keys=bounds,
    max_age_days=st.none() | st.integers(1, 9),
    max_drift=bounds,
    max_repeated=bounds,
    key_fields=st.sampled_from([(), ("street",), ("resident_id", "street")]),
)
metrics = st.lists(st.sampled_from(get_args(QualityMetric)), unique=True, max_size=2).map(tuple)
halves = st.tuples(qualities, st.sampled_from([("join",), ("carry",)]), metrics, bounds)


def made(base: Policy, half: Any) -> Policy:
    quality, use, accepts, most = half
    dataset: Dataset = base.datasets["patients"]
    column = msgspec.structs.replace(dataset.columns["resident_id"], use=use)
    columns = {**dataset.columns, "resident_id": column}
    dataset = msgspec.structs.replace(dataset, quality=quality, columns=columns)
    rule: Rule = msgspec.structs.replace(base.rules[0], accepts_quality=accepts, max_duplicates=most)
    return msgspec.structs.replace(base, datasets={"patients": dataset}, rules=(rule,))


@settings(max_examples=60)
@given(halves, halves, shares, st.integers(0, 12))
def test_a_version_that_only_tightens_lets_no_worse_data_through(was: Any, now: Any, found: Shares, age: int):
    base = parsed()
    old, new = made(base, was), made(base, now)
    if Effect.LOOSER in overall(diff(old, new)):
        return
    if answered(old, found, age) is not None:
        assert answered(new, found, age) is not None


@settings(max_examples=40)
@given(qualities, qualities)
def test_every_change_of_what_is_asked_is_mentioned(was: Any, now: Any):
    base = parsed()
    old, new = (made(base, (quality, ("join",), (), None)) for quality in (was, now))
    asked = [
        (thresholds_of(p.datasets["patients"]), key_fields_of(p.datasets["patients"])) for p in (old, new)
    ]
    if asked[0][0] != asked[1][0]:
        assert diff(old, new)
