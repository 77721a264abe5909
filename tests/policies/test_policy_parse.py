import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from policies.model import COLUMN_TYPES, COLUMN_USES, Policy
from policies.parse import MAX_POLICY_BYTES, MAX_RULES, parse_policy, parse_stop, unsupported_clauses
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
    assert unsupported_clauses(parsed) == []


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
    rule = text[at : text.index("[approvers.dpo]")]
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


WHOLE_FORMAT = """
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


def test_clauses_not_honoured_yet_parse_and_are_named_with_their_lines():
    edits = [["max_runtime_s = 3600", 'max_runtime_s = 3600\nrelease_requires = "cosigned"']]
    text = edited({"edits": edits}) + WHOLE_FORMAT
    parsed = parse_policy(text.encode())
    budget = parsed.policy.budgets["elder_quarter"]
    assert (budget.limit, budget.delta) == (Fraction(1, 2), Fraction(1, 10**9))
    lines = text.split("\n")
    found = [(lines[line - 1].partition(" =")[0], clause) for line, clause in unsupported_clauses(parsed)]
    assert found == [
        ("release_requires", 'release_requires = "cosigned"'),
        ("[budgets.elder_quarter]", "budgets.elder_quarter"),
        ("budget", "budget of rule R2"),
        ("max_cost", "max_cost of rule R2"),
        ("window", "window of rule R2"),
        ("rate", "rate of rule R2"),
        ("[[stops]]", "stops[0]"),
    ]


STOP = """schema = "minshu-stop/1"
policy_id = "health.gz.example/node-a"
issued = 2026-12-02T00:00:00Z
[[stops]]
scope = "dataset"
value = "patients"
reason = "under review"
"""


def test_a_stop_document_parses_strictly():
    assert parse_stop(STOP.encode()).stops[0].value == "patients"
    for old, new in (('value = "patients"\n', ""), ("issued", "signed"), ('"dataset"', '"everything"')):
        with pytest.raises(PolicyInvalid):
            parse_stop(STOP.replace(old, new).encode())


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
