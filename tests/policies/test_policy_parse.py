import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from policies.model import COLUMN_TYPES, COLUMN_USES, Policy, Witnessing
from policies.parse import (
    MAX_POLICY_BYTES,
    MAX_RULES,
    cautions,
    overlap,
    parse_policy,
    parse_stop,
    shared_job,
)
from policies.schema import render
from protocols.encoding import sha256_digest
from protocols.errors import PolicyInvalid
from protocols.jobs import JOB_TYPES

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "policies.json").read_text("utf-8"))
KEYS = {"DPO": "sha256:" + "d" * 64, "OWNER": "sha256:" + "e" * 64}


def edited(vector: dict[str, Any]) -> str:
    text = (ROOT / VECTORS["base"]).read_text("utf-8")
    for old, new in (map(spelt_out, edit) for edit in vector["edits"]):
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text.replace("\n", "\r\n") if vector.get("crlf") else text


def spelt_out(text: str) -> str:
    for name, key in KEYS.items():
        text = text.replace(f'"{name}"', f'"{key}"')
    return text


def named(kind: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]


@pytest.mark.parametrize("vector", named("good"))
def test_a_good_vector_parses(vector: dict[str, Any]):
    data = edited(vector).encode()
    parsed = parse_policy(data)
    assert parsed.digest == sha256_digest(data)


@pytest.mark.parametrize("vector", named("bad"))
def test_a_bad_vector_is_refused_with_its_code_at_its_line(vector: dict[str, Any]):
    text = edited(vector)
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text.encode())
    error = caught.value
    line = text.split("\n")[error.line - 1] if error.line else ""
    assert (error.code, line.lstrip().startswith(spelt_out(vector["at"]))) == (vector["code"], True), (
        error.message
    )
    assert bool(error.line) == bool(vector["at"])
    assert error.hint


def test_the_digest_is_of_the_exact_bytes_comments_included():
    text = edited({"edits": []})
    assert parse_policy(text.encode()).digest != parse_policy((text + "# note\n").encode()).digest


def test_shares_are_exact():
    rule = parse_policy(edited({"edits": []}).encode()).policy.rules[0]
    assert rule.max_fraction == Fraction(3, 10)
    assert rule.min_coverage == Fraction(4, 5)


def test_a_float_is_refused_as_such_with_what_to_write_instead():
    with pytest.raises(PolicyInvalid, match="a number with a point") as caught:
        parse_policy(edited({"edits": [["max_rows = 20000", "max_rows = 20000.0"]]}).encode())
    assert '"0.30"' in caught.value.hint


def test_a_policy_of_more_than_256_kib_is_refused_before_it_is_parsed():
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(b"[" * (MAX_POLICY_BYTES + 1))
    assert caught.value.code == "too-long"


def test_text_that_is_not_utf8_is_refused_with_its_line():
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(b'schema = "minshu-policy/1"\n# \xff\n')
    assert (caught.value.code, caught.value.line) == ("not-utf8", 2)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "[" * 40 + "]" * 40, "a.b" * 20_000])
def test_a_deeply_nested_policy_is_a_clean_error(text: str):
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text.encode())
    assert caught.value.code in {"too-deep", "not-toml"}


def test_a_number_of_five_thousand_digits_is_a_clean_error():
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(b'schema = "minshu-policy/1"\nversion = ' + b"9" * 5000)
    assert caught.value.code == "bad-number"


def test_the_number_of_rules_is_bounded():
    text = edited({"edits": []})
    at = text.index("[[rules]]")
    rule = re.sub(r" +#.*", "", text[at : text.index("[approvers.dpo]")])
    many = "".join(rule.replace('"R1"', f'"R{n}"') for n in range(MAX_RULES + 1))
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy((text[:at] + many + text[text.index("[approvers.dpo]") :]).encode())
    assert caught.value.code == "too-many-rules"


OVERLAPS = """
[[rules]]
id = "R2"
requesters = ["{requester}"]
purposes = ["{purpose}"]
job_types = ["{job_type}"]
roles = ["{role}"]
recipients = ["police.gz.example"]
min_sources = 2
max_rows = 20000
max_fraction = "0.30"
min_coverage = "0.80"
approvals = 0

[requesters.other]
keys = ["sha256:0000000000000000000000000000000000000000000000000000000000000000"]

[purposes.Q]
title = "q"
legal_basis = "q"
valid_until = 2027-01-01
"""


@pytest.mark.parametrize(
    ("change", "overlaps"),
    [
        ({}, True),
        ({"requester": "other"}, False),
        ({"purpose": "Q"}, False),
        ({"job_type": "table/1"}, False),
        ({"role": "helper"}, False),
    ],
)
def test_rules_without_datasets_overlap_only_where_their_roles_do(change: dict[str, str], overlaps: bool):
    same = {"requester": "bureau", "purpose": "P-2026-001", "job_type": "crosscheck/1", "role": "matcher"}
    text = (ROOT / "policies" / "examples" / "statistics.toml").read_text("utf-8")
    text += OVERLAPS.format(**same | change)
    if not overlaps:
        assert len(parse_policy(text.encode()).policy.rules) == 2
        return
    with pytest.raises(PolicyInvalid, match="R1 and R2") as caught:
        parse_policy(text.encode())
    assert caught.value.code == "rules-overlap"


UNIT = [
    'personal = "sensitive"\n',
    'personal = "sensitive"\nunit = { column = "resident_id", max_rows = 12 }\n',
]
WHOLE_FORMAT = """
[witnesses]
quorum = 2
organisations = ["health.gz.example", "tax.gz.example"]

[budgets.elder_quarter]
dataset = "insured"
notion = "zcdp"
limit = "0.50"
delta = "1e-9"
period = "calendar-quarter"
scope = "all-requesters"

[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["table/1", "release/1"]
datasets = ["insured"]
columns = ["street"]
budget = "elder_quarter"
max_cost = "0.10"
quotas = ["questions"]
min_group_size = 50
min_organisations = 3
recipients = ["bureau"]
approvals = 2
approvers = ["dpo", "owner"]
window = { days = ["mon", "fri"], from = 08:00:00, to = 20:00:00 }
rate = { jobs = 2, per = "day" }

[[stops]]
scope = "purpose"
value = "P-2026-001"
reason = "under review"
"""


def test_every_clause_of_the_format_is_honoured():
    parsed = parse_policy((edited({"edits": [UNIT]}) + WHOLE_FORMAT).encode())
    budget = parsed.policy.budgets["elder_quarter"]
    assert (budget.limit, budget.delta) == (Fraction(1, 2), Fraction(1, 10**9))
    assert parsed.policy.rules[1].max_cost == Fraction(1, 10)
    assert parsed.policy.witnesses == Witnessing(
        quorum=2, organisations=("health.gz.example", "tax.gz.example")
    )


def test_only_a_policy_without_limits_may_do_without_witnesses():
    text = edited({"edits": [['"cosigned"             #', '"checkpoint"           #']]})
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text.encode())
    assert caught.value.code == "cosigned-required"
    assert text.split("\n")[caught.value.line - 1].startswith("release_requires")
    start, end = text.index("[quotas.records]"), text.index("[[rules]]")
    without = (text[:start] + text[end:]).replace('quotas = ["records", "questions"]\n', "")
    assert parse_policy(without.encode()).policy.defaults.release_requires == "checkpoint"


@pytest.mark.parametrize(
    ("clause", "said"),
    [
        ('organisations = ["a.example"]', "1 of 1"),
        ('organisations = ["a.example", "b.example"]', ""),
        ('quorum = 2\norganisations = ["a.example", "b.example", "c.example"]', "2 of 3"),
        ('organisations = ["a.example", "b.example", "c.example", "d.example"]', ""),
        ('quorum = 3\norganisations = ["a.example", "b.example", "c.example", "d.example"]', ""),
        ("quorum = 1", ""),
    ],
)
def test_whoever_lists_witnesses_of_whom_one_may_betray_all_is_told_so(clause: str, said: str):
    text = edited({"edits": [["[requesters.bureau]", f"[witnesses]\n{clause}\n\n[requesters.bureau]"]]})
    found = cautions(parse_policy(text.encode()))
    if not said:
        assert found == []
        return
    (caution,) = found
    assert text.split("\n")[caution.line - 1] == "[witnesses]"
    assert caution.en.startswith(said)
    assert "一个不诚实" in caution.zh


def test_a_rule_that_lends_persons_without_a_quota_on_each_of_its_datasets_is_named():
    text = edited({"edits": []})
    assert not any("no quota counts" in caution.en for caution in cautions(parse_policy(text.encode())))
    start, end = text.index("[quotas.records]"), text.index("[[rules]]")
    without = (text[:start] + text[end:]).replace('quotas = ["records", "questions"]\n', "")
    (caution,) = cautions(parse_policy(without.encode()))
    assert "rule R1 gives insured to" in caution.en
    assert "规则 R1" in caution.zh
    assert without.split("\n")[caution.line - 1] == "[[rules]]"
    both = text.replace('datasets = ["insured"]', 'datasets = ["insured", "other"]')
    both = both.replace("[[rules]]", ANOTHER_DATASET + "[[rules]]", 1)
    named = [caution.en for caution in cautions(parse_policy(both.encode()))]
    assert any("rule R1 gives other to" in each for each in named)


ANOTHER_DATASET = """[datasets.other]
source = "local:other"
grade = "general-4"
personal = "personal"
[datasets.other.columns]
resident_id = { type = "resident-id", use = ["join"] }

"""


def test_an_overlap_is_named_with_both_rules_and_a_job_that_fits_both():
    text = edited({"edits": [UNIT]}) + WHOLE_FORMAT
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy((text + WHOLE_FORMAT[WHOLE_FORMAT.index("[[rules]]") : WHOLE_FORMAT.index("[[stops]]")]
                      .replace('"R2"', '"R3"').replace('"table/1", ', "")).encode())  # fmt: skip
    assert caught.value.message.endswith(
        "rules R2 and R3 both fit one job, for example requester bureau, purpose P-2026-001, "
        "job type release/1, dataset insured"
    )
    rules = parse_policy(text.encode()).policy.rules
    assert not overlap(*rules)
    assert shared_job(rules[0], rules[0]) == ("bureau", "P-2026-001", "crosscheck/1", "dataset insured")


STOP = """schema = "minshu-stop/1"
policy_id = "health.gz.example/node-a"
issued = 2026-12-02T00:00:00Z
[[stops]]
scope = "dataset"
value = "patients"
reason = "under review"
"""


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ('value = "patients"\n', "", "bad-stop", 4),
        ("issued", "signed", "unknown-key", 3),
        ('"dataset"', '"everything"', "policy-invalid", 5),
        ('"dataset"', '"all"', "bad-stop", 4),
        ('"dataset"', '"job"', "bad-stop", 6),
        ('"patients"', '"Patients of 2026"', "bad-stop", 6),
        ('"under review"', '"under\\u202e review"', "unreadable-character", 7),
        ("minshu-stop/1", "minshu-policy/1", "unknown-schema", 1),
        ("2026-12-02T00:00:00Z", "2026-12-02", "policy-invalid", 3),
        ("[[stops]]", "[[stop]]", "unknown-key", 4),
    ],
)
def test_a_stop_document_parses_strictly(old: str, new: str, code: str, line: int):
    assert parse_stop(STOP.encode()).stops[0].value == "patients"
    with pytest.raises(PolicyInvalid) as caught:
        parse_stop(STOP.replace(old, new).encode())
    assert (caught.value.code, caught.value.line) == (code, line)
    assert caught.value.hint


def test_a_policy_may_be_as_narrow_as_no_rule_at_all():
    text = edited({"edits": []})
    start, end = text.index("[[rules]]"), text.index("[approvers.dpo]")
    policy: Policy = parse_policy((text[:start] + text[end:]).encode()).policy
    assert policy.rules == ()


def test_every_column_that_a_job_type_needs_can_be_described(world: Any):
    spec = world.spec()
    needs = [
        need
        for job_type in JOB_TYPES
        if job_type.name == spec.job_type
        for role in spec.roles
        for need in job_type.columns(spec, role)
    ]
    assert needs
    for need in needs:
        assert set(need.types) <= COLUMN_TYPES
        assert need.use in COLUMN_USES


def test_the_published_schema_is_the_models():
    assert (ROOT / "policies" / "schema" / "policy.schema.json").read_text("utf-8") == render()
