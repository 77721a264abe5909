"""What a policy must not say: each slip is refused with its code, its line, its key and a way out.

The base is the human-resources example; an edit replaces a text that stands there once.
"""
# ruff: noqa: E501  # a table is read by its columns: one case, one line

from dataclasses import dataclass
from typing import Any

import pytest

from policies.parse import parse_policy
from protocols.errors import PolicyInvalid

UNIT = (
    'personal = "sensitive"\n',
    'personal = "sensitive"\nunit = { column = "resident_id", max_rows = 12 }\n',
)
RULE = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["table/1"]
datasets = ["insured"]
columns = ["street"]
recipients = ["bureau"]
EXTRA
approvals = 0 # R2

"""
BUDGET = """[budgets.quarter]
dataset = "insured" # budget
notion = "zcdp"
limit = "0.50"
delta = "1e-9"
period = "calendar-quarter"
scope = "all-requesters"

"""
OTHER = """[datasets.other]
source = "local:other"
grade = "general-1"
personal = "none"
columns = { x = { type = "int", use = ["sum"] } }

"""
QUOTAS = """[quotas.records]                          # at most so many records about persons, for each purpose
dataset = "insured"
counts = "rows"
limit = 60000
period = "calendar-quarter"
scope = "per-purpose"

[quotas.questions]                        # answered questions
dataset = "insured"
counts = "queries"
limit = 12
period = "calendar-quarter"
scope = "per-purpose"

"""
NO_QUOTAS = ((QUOTAS, ""), ('quotas = ["records", "questions"]\n', ""))
STOP = """[[stops]]
scope = "purpose"
value = "P-2026-001"
reason = "under review"

"""
RETENTION = '[retention]\njournal_days = 1095\nrelease_days = 30\nintermediate = "job-end"\n'
ZEROS = "sha256:" + "0" * 64
WHOLE_RULE = """[[rules]] # again
id = "R9"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["crosscheck/1"]
roles = ["source"]
datasets = ["insured"]
columns = ["resident_id"]
recipients = ["police.gz.example"]
min_sources = 2
max_rows = 10
max_fraction = "0.1"
min_coverage = "0.9"
rate = { jobs = 1, per = "year" }
approvals = 2
approvers = ["dpo", "owner"]

"""


@dataclass(frozen=True)
class Case:
    """`at`: how the reported line begins; `key`: what the message names."""

    code: str
    at: str
    key: str
    edits: tuple[tuple[str, str], ...]


def case(code: str, at: str, key: str, *edits: tuple[str, str]) -> Case:
    return Case(code, at, key, edits)


def before(anchor: str, text: str) -> tuple[str, str]:
    return (anchor, text + anchor)


def rule(extra: str) -> tuple[str, str]:
    return before("[approvers.dpo]", RULE.replace("EXTRA", extra))


def budget(old: str = "", new: str = "") -> tuple[str, str]:
    assert BUDGET.count(old) >= 1
    return before("[approvers.owner]", BUDGET.replace(old, new) if old else BUDGET)


def witnesses(clause: str) -> tuple[str, str]:
    return before("[requesters.bureau]", f"[witnesses]\n{clause}\n\n")


def stop(old: str, new: str) -> tuple[str, str]:
    return before("[approvers.owner]", STOP.replace(old, new))


def column(clause: str) -> tuple[str, str]:
    return ('street = { type = "code", use = ["group"] }', f"street = {{ {clause} }}")


# fmt: off
CASES = {
    # The file.
    "a byte-order mark": case("unreadable-character", "\ufeff", "cannot be seen", ("# 人社", "\ufeff# 人社")),
    "text that runs from right to left": case("unreadable-character", "controller", "turns the text", ("信息中心", "信息中心\u202e")),
    "a zero-width blank through an escape": case("unreadable-character", "title", "cannot be seen", ("疑似漏登人口核查", "疑似\\u200b漏登人口核查")),
    "a key written twice": case("not-toml", "max_rows = 2", "Cannot overwrite", ("max_rows = 20000", "max_rows = 1\nmax_rows = 2")),
    "a table written twice": case("not-toml", "[defaults]", "twice", before("[[rules]]", "[defaults]\n\n")),
    "an open bracket": case("not-toml", "recipients", "not TOML", ('"last_seen_month"]\n', '"last_seen_month"\n')),
    "deep nesting": case("too-deep", "timezone", "nested deeper", ('timezone = "Asia/Shanghai"', f"timezone = {'[' * 20}{']' * 20}")),
    "a number nobody can read": case("bad-number", "", "too long", ("version = 1 ", f"version = {'9' * 5000} ")),
    "another schema": case("unknown-schema", "schema", "schema", ("minshu-policy/1", "minshu-policy/9")),
    "a stop document": case("unknown-schema", "schema", "schema", ("minshu-policy/1", "minshu-stop/1")),
    "an unknown key at the top": case("unknown-key", "owner", "owner", before("timezone", 'owner = "x"\n')),
    "an unknown key in a rule": case("unknown-key", "max_row =", "rules[0].max_row:", ("max_rows = 20000", "max_row = 20000")),
    "an unknown key in a quota": case("unknown-key", "max =", "quotas.records.max", ("limit = 60000", "max = 60000")),
    "an unknown key in a column": case("unknown-key", "street", "uses", column('type = "code", uses = ["group"]')),
    "no retention": case("missing-key", "", "retention", (RETENTION, "")),
    # Form.
    "a float budget": case("policy-invalid", "limit = 0.5", "budgets.quarter.limit", UNIT, budget('"0.50"', "0.5")),
    "a float share": case("policy-invalid", "max_fraction", "rules[0].max_fraction", ('"0.30" ', "0.30 ")),
    "a float for a count": case("policy-invalid", "max_rows", "rules[0].max_rows", ("= 20000", "= 2e4")),
    "a percentage": case("policy-invalid", "min_coverage", "min_coverage", ('"0.80"', '"80 %"')),
    "a quota in text": case("policy-invalid", "limit", "quotas.records.limit", ("60000", '"60000"')),
    "a quota of nothing": case("policy-invalid", "limit", "quotas.records.limit", ("60000", "0")),
    "k = 1": case("policy-invalid", "min_group_size", "defaults.min_group_size", ("size = 10", "size = 1")),
    "k = 1 in a rule": case("group-too-small", "min_group_size = 1", "rules[1].min_group_size", rule("min_group_size = 1")),
    "k = 0 in a rule": case("policy-invalid", "min_group_size = 0", "rules[1].min_group_size", rule("min_group_size = 0")),
    "k = 2 in a rule": case("group-too-small", "min_group_size = 2", "rules[1].min_group_size", rule("min_group_size = 2")),
    "a path as source": case("policy-invalid", "source", "datasets.insured.source", ("local:insured", "local:/data/insured.csv")),
    "a query as source": case("policy-invalid", "source", "datasets.insured.source", ("local:insured", "SELECT * FROM insured")),
    "a bad timezone": case("unknown-timezone", "timezone", "timezone", ("Asia/Shanghai", "Asia/Guangzhou")),
    "a time without its offset": case("policy-invalid", "expires", "expires", ("2027-03-01T00:00:00+08:00", "2027-03-01T00:00:00")),
    "a purpose that ends at an hour": case("policy-invalid", "valid_until", "valid_until", ("2027-02-28 ", "2027-02-28T00:00:00Z ")),
    "a name that is no node": case("policy-invalid", "policy_id", "policy_id", ("human-resources.gz.example/node-a", "human resources")),
    "a key that is no digest": case("policy-invalid", '"sha256:12"', "approvers.owner.keys[0]", ("OWNER", "sha256:12")),
    "an approver without a key": case("empty-list", "keys = []", "approvers.owner.keys", ('[\n  "OWNER",\n]', "[]")),
    "a role nobody plays": case("policy-invalid", "roles", "rules[0].roles[0]", ('"source", "key-h', '"guest", "key-h')),
    "a negative number of approvals": case("policy-invalid", "approvals", "approvals", ("approvals = 2", "approvals = -1")),
    # Validity, versions, keys.
    "181 days": case("bad-validity", "expires", "180", ("2027-03-01T", "2027-05-31T")),
    "an end before the beginning": case("bad-validity", "expires", "not_before", ("2027-03-01T", "2026-11-30T")),
    "version 2 of nothing": case("bad-previous", "version", "previous", ("version = 1 ", "version = 2 ")),
    "one person in two capacities": case("key-twice", '"OWNER", "DPO"', "approvers.owner.keys[1]", ('"OWNER",', '"OWNER", "DPO",')),
    "whoever asks approves": case("key-twice", '"OWNER", "ANALYST"', "approvers.owner.keys[1]", ('"OWNER",', '"OWNER", "ANALYST",')),
    # Datasets.
    "core data": case("core-data", "grade", "datasets.insured.grade", ("general-4", "core")),
    "one source under two names": case("source-twice", "source", "datasets.other.source", before("[[rules]]", OTHER.replace("local:other", "local:insured"))),
    "a unit that is no column": case("unknown-column", "unit", "datasets.insured.unit", (UNIT[0], UNIT[1].replace("resident_id", "person_id"))),
    "an enum without values": case("bad-column", "street", "values", column('type = "enum", use = ["group"]')),
    "a range of text": case("bad-column", "street", "range", column('type = "code", use = ["group"], range = [1, 2]')),
    "bins out of order": case("bad-column", "street", "bins", column('type = "int", use = ["group"], bins = [9, 1]')),
    "columns that differ in case alone": case("column-twice", "street", "STREET", before("street = {", 'STREET = { type = "code", use = ["group"] }\n')),
    # Budgets and quotas.
    "a missing unit": case("missing-unit", 'dataset = "insured" # budget', "budgets.quarter.dataset", budget()),
    "a budget of nothing": case("bad-number", "limit", "budgets.quarter.limit", UNIT, budget('"0.50"', '"0"')),
    "a negative budget": case("bad-number", "limit", "budgets.quarter.limit", UNIT, budget('"0.50"', '"-0.5"')),
    "a budget of sixteen places": case("bad-number", "limit", "15 places", UNIT, budget('"0.50"', '"0.5000000000000001"')),
    "an epsilon without its delta": case("missing-delta", "[budgets.quarter]", "delta", UNIT, budget('"zcdp"\nlimit = "0.50"\ndelta = "1e-9"', '"approximate-dp"\nlimit = "1"')),
    "a pure epsilon with a delta": case("needless-delta", "delta", "budgets.quarter.delta", UNIT, budget("zcdp", "pure-dp")),
    "a delta of one in two": case("bad-number", "delta", "budgets.quarter.delta", UNIT, budget("1e-9", "0.5")),
    "a delta of nothing": case("bad-number", "delta", "budgets.quarter.delta", UNIT, budget("1e-9", "0")),
    "a delta finer than the ledger counts": case("bad-number", "delta", "15 places", UNIT, budget("1e-9", "1e-16")),
    "a budget of a dataset nobody described": case("unknown-dataset", 'dataset = "insred"', "budgets.quarter.dataset", UNIT, budget('"insured"', '"insred"')),
    "a quota of a dataset nobody described": case("unknown-dataset", 'dataset = "insred"', "quotas.records.dataset", ('"insured"\ncounts = "rows"', '"insred"\ncounts = "rows"')),
    "a budget and a quota of one name": case("name-twice", "[quotas.records]", "quotas.records", UNIT, budget("budgets.quarter", "budgets.records")),
    "limits without release_requires": case("cosigned-required", "[defaults]", "defaults: checkpoint, since the key is missing", ("release_requires = ", "# ")),
    "quotas that nobody watches over": case("cosigned-required", "release_requires", "defaults.release_requires: checkpoint, but", ('"cosigned"', '"checkpoint"')),
    "a budget that nobody watches over": case("cosigned-required", "release_requires", "defaults.release_requires", ('"cosigned"', '"checkpoint"'), UNIT, budget()),
    # Witnesses.
    "witnesses nobody waits for": case("witnesses-unused", "[witnesses]", "witnesses: nothing waits", *NO_QUOTAS, ('"cosigned"', '"checkpoint"'), ("[defaults]", "[witnesses]\nquorum = 2\n\n[defaults]")),
    "an empty table of witnesses": case("missing-key", "[witnesses]", "neither quorum nor organisations", witnesses("")),
    "a quorum of nobody": case("policy-invalid", "quorum", "witnesses.quorum", witnesses("quorum = 0")),
    "a quorum of sixty-five": case("policy-invalid", "quorum", "witnesses.quorum", witnesses("quorum = 65")),
    "a quorum in words": case("policy-invalid", "quorum", "witnesses.quorum", witnesses('quorum = "most"')),
    "no witness in the list": case("empty-list", "organisations", "witnesses.organisations", witnesses("organisations = []")),
    "one witness listed twice": case("listed-twice", "organisations", "witnesses.organisations[1]", witnesses('organisations = ["tax.gz.example", "tax.gz.example"]')),
    "a witness and a part of it": case("witness-twice", "organisations", "a part of tax.gz.example", witnesses('organisations = ["audit.tax.gz.example", "tax.gz.example"]')),
    "a node as witness": case("policy-invalid", "organisations", "witnesses.organisations[0]", witnesses('organisations = ["tax.gz.example/node-a"]')),
    "its own organisation as witness": case("own-witness", "organisations", "witnesses.organisations[1]", witnesses('organisations = ["tax.gz.example", "human-resources.gz.example"]')),
    "a part of its own organisation as witness": case("own-witness", "organisations", "witnesses.organisations[0]", witnesses('organisations = ["lab.human-resources.gz.example"]')),
    "a whole that its own organisation is a part of": case("own-witness", "organisations", "witnesses.organisations[0]", witnesses('organisations = ["gz.example"]')),
    "a quorum that nobody can reach": case("bad-quorum", "quorum", "3 of 2 organisations can never be reached", witnesses('quorum = 3\norganisations = ["tax.gz.example", "water.gz.example"]')),
    "a quorum of half": case("bad-quorum", "quorum", "1 of 2 organisations: two such quorums need share nobody", witnesses('quorum = 1\norganisations = ["tax.gz.example", "water.gz.example"]')),
    "a key of witnesses nobody knows": case("unknown-key", "threshold", "witnesses.threshold", witnesses("threshold = 3")),
    "a scope nobody counts by": case("policy-invalid", "scope", "budgets.quarter.scope", UNIT, budget("all-requesters", "per-person")),
    "a period nobody counts by": case("policy-invalid", "period", "budgets.quarter.period", UNIT, budget("calendar-quarter", "90 days")),
    # Rules: references.
    "a dataset nobody described": case("unknown-dataset", "datasets", "rules[0].datasets[0]", ('["insured"]', '["pension"]')),
    "a column nobody described": case("unknown-column", "columns", "rules[0].columns[1]", ('["resident_id", "street",', '["resident_id", "age",')),
    "a requester nobody described": case("unknown-requester", "requesters", "rules[0].requesters[0]", ('["bureau"]', '["tax"]')),
    "a purpose nobody described": case("unknown-purpose", "purposes", "rules[0].purposes[0]", ('["P-2026-001"]', '["P-2026-002"]')),
    "an approver nobody described": case("unknown-approver", "approvers", "rules[0].approvers[1]", ('["dpo", "owner"]', '["dpo", "boss"]')),
    "a quota nobody described": case("unknown-quota", "quotas", "rules[0].quotas[1]", ('["records", "questions"]', '["records", "answers"]')),
    "a budget nobody described": case("unknown-budget", "budget", "rules[1].budget", rule('budget = "year"')),
    "two rules of one id": case("rule-twice", 'id = "R1"', "rules[1].id", before("[approvers.dpo]", RULE.replace("R2", "R1").replace("EXTRA", ""))),
    # Rules: what they may not allow.
    "overlapping rules": case("rules-overlap",
        "[[rules]] # again",
        "rules R1 and R9 both fit one job, for example requester bureau, purpose P-2026-001, job type crosscheck/1, dataset insured",
        before("[approvers.dpo]", WHOLE_RULE)),
    "a quota of another dataset": case("bad-quota", "quotas = ", "rules[0].quotas[0]", ('"insured"\ncounts = "rows"', '"other"\ncounts = "rows"'), before("[[rules]]", OTHER)),
    "a budget of another dataset": case("bad-budget", "budget = ", "rules[1].budget", UNIT, budget(),
        before("[approvers.dpo]", OTHER + RULE.replace('["insured"]', '["other"]').replace('["street"]', '["x"]').replace("EXTRA", 'budget = "quarter"'))),
    "a budget for one of two datasets": case("bad-budget", "budget = ", "rules[1].budget", UNIT, budget(),
        before("[approvers.dpo]", OTHER + RULE.replace('["insured"]', '["insured", "other"]').replace("EXTRA", 'budget = "quarter"'))),
    "a cost without a budget": case("no-budget", "max_cost", "rules[1].max_cost", rule('max_cost = "0.1"')),
    "a job dearer than the budget": case("bad-number", "max_cost", "rules[1].max_cost", UNIT, budget(), rule('budget = "quarter"\nmax_cost = "0.51"')),
    "nine quotas of one rule": case("too-many-quotas",
        "quotas = ",
        "rules[0].quotas",
        ('quotas = ["records", "questions"]', f"quotas = [{', '.join(f'{chr(34)}q{n}{chr(34)}' for n in range(9))}]"),
        before(
            "[[rules]]",
            "".join(
                f'[quotas.q{n}]\ndataset = "insured"\ncounts = "rows"\nlimit = 1\nperiod = "day"\nscope = "per-purpose"\n\n'
                for n in range(9)
            ),
        )),
    "a window that opens when it closes": case("bad-window", "window", "rules[1].window", rule('window = { days = ["mon"], from = 08:00:00, to = 08:00:00 }')),
    "a window without days": case("empty-list", "window", "rules[1].window.days", rule("window = { days = [], from = 08:00:00, to = 09:00:00 }")),
    "a window in words": case("policy-invalid", "window", "rules[1].window", rule('window = "office hours"')),
    "a window without an end": case("missing-key", "window", "the key to is missing", rule('window = { days = ["mon"], from = 08:00:00 }')),
    "a rate of nothing": case("policy-invalid", "rate", "rules[0].rate.jobs", ("jobs = 10", "jobs = 0")),
    "a rate of no period": case("missing-key", "rate", "the key per is missing", (', per = "month"', "")),
    "class B without a rate": case("missing-guard", "[[rules]]", "rate is required", ("rate = { jobs = 10", "max_runtime_s = 60 # { jobs = 10")),
    "class B without a row cap": case("missing-guard", "[[rules]]", "max_rows is required", ("max_rows = 20000\n", "")),
    "class B without a share": case("missing-guard", "[[rules]]", "max_fraction is required", ("max_fraction = ", "# ")),
    "class B without coverage": case("missing-guard", "[[rules]]", "min_coverage is required", ('min_coverage = "0.80"\n', "")),
    "class B for two": case("one-recipient", "recipients", "rules[0].recipients", ('["police.gz.example"]', '["police.gz.example", "tax.gz.example"]')),
    "class B without roles": case("missing-roles", "[[rules]]", "roles are required", ("roles = [", "# [")),
    "class B with one approval": case("too-few-approvals", "approvals = 1", "rules[0].approvals", ("approvals = 2", "approvals = 1")),
    "k = 1 at a neutral seat that asks nobody": case("too-few-approvals",
        "approvals = 0 # R3",
        "min_sources = 1",
        before(
            "[approvers.dpo]",
            WHOLE_RULE.replace("R9", "R3").replace('["source"]\ndatasets = ["insured"]\ncolumns = ["resident_id"]', '["matcher"]')
            .replace("min_sources = 2", "min_sources = 1").replace('approvals = 2\napprovers = ["dpo", "owner"]', "approvals = 0 # R3"),
        )),
    "important data and nobody is asked": case("too-few-approvals", "approvals = 0 # R2", "important data", ("general-4", "important"), rule("")),
    "approvals without people": case("too-few-approvers", "approvals = 2", "rules[0].approvals", ('approvers = ["dpo", "owner"]\n', "")),
    "more approvals than people": case("too-few-approvers", "approvals = 3", "2 key(s)", ("approvals = 2", "approvals = 3")),
    "a neutral role with data": case("neutral-with-dataset", "roles", "rules[0].roles", ('"source", "key-holder"', '"source", "helper"')),
    "a source without data": case("role-without-dataset", "roles", "rules[0].roles", ('datasets = ["insured"]\ncolumns = ["resident_id", "street", "last_seen_month"]\n', "")),
    "a share above one": case("bad-number", "max_fraction", "rules[0].max_fraction", ('"0.30" ', '"1.01" ')),
    "rows of nobody": case("bad-only", "only", "rules[0].only: whoever brings no dataset", ('roles = ["source", "key-holder"]', 'roles = ["matcher"]\nonly = { street = ["A"] }'), ('datasets = ["insured"]\ncolumns = ["resident_id", "street", "last_seen_month"]\n', ""), *NO_QUOTAS),
    "only of a column the rule does not open": case("bad-only", "only", "rules[1].only.district", rule('only = { district = ["A"] }')),
    "only of a column that is spelt otherwise": case("bad-only", "only", "rules[1].only.Street", rule('only = { Street = ["A"] }')),
    "only by a column no job filters by": case("bad-only", "only", "no job could be restricted", rule('only = { last_seen_month = ["2026-11"] }'), ('columns = ["street"]', 'columns = ["street", "last_seen_month"]')),
    "only by identifiers": case("bad-only", "only", "no job could be restricted", rule('only = { resident_id = ["x"] }'), ('columns = ["street"]', 'columns = ["street", "resident_id"]')),
    "only of a value the policy does not list": case("bad-only", "only", "rules[1].only.street[1]", rule('only = { street = ["A", "C"] }'), column('type = "enum", use = ["group"], values = ["A", "B"]')),
    "only of a column that one dataset lacks": case("bad-only", "only", "dataset other has no such column", rule('only = { street = ["A"] }'), before("[approvers.owner]", OTHER), ('datasets = ["insured"]\ncolumns = ["street"]', 'datasets = ["insured", "other"]\ncolumns = ["street"]')),
    "only of no value": case("empty-list", "only", "rules[1].only.street", rule("only = { street = [] }")),
    "only of one value twice": case("listed-twice", "only", "rules[1].only.street[1]", rule('only = { street = ["A", "A"] }')),
    "no look-up in a minute": case("policy-invalid", "max_per_minute", "rules[1].max_per_minute", rule("max_per_minute = 0")),
    "a series of no day": case("policy-invalid", "max_series_days", "rules[1].max_series_days", rule("max_series_days = 0")),
    "a series of more than a year": case("policy-invalid", "max_series_days", "1 to 366", rule("max_series_days = 367")),
    "a series that nothing ends": case("missing-guard", "[[rules]]", "max_series_days is required", ('["crosscheck/1"]', '["crosscheck-series/1"]')),
    "a limit for each trio": case("policy-invalid", "scope", "quotas.records.scope", ('limit = 60000\nperiod = "calendar-quarter"\nscope = "per-purpose"', 'limit = 60000\nperiod = "calendar-quarter"\nscope = "per-trio"')),
    "nobody to hide": case("persons-in-without-dataset", "persons_in", "rules[0].persons_in", ('roles = ["source", "key-holder"]', 'roles = ["matcher"]\npersons_in = 1'), ('datasets = ["insured"]\ncolumns = ["resident_id", "street", "last_seen_month"]\n', ""), *NO_QUOTAS),
    "persons in no department": case("policy-invalid", "persons_in", "1 to 64", ("min_sources = 2", "persons_in = 0\nmin_sources = 2")),
    "a unit of the negative list": case("negative-list", "unit", "datasets.insured.unit", UNIT, ('column = "bank_account"', 'column = "Resident_ID"')),
    "a negative list hit": case("negative-list", "columns", "rules[0].columns[1]", ('column = "bank_account"', 'column = "Street"')),
    "a negative list of nothing": case("unknown-dataset", 'dataset = "insred"', "negative_list[0].dataset", ('"insured"\ncolumn = "bank', '"insred"\ncolumn = "bank')),
    # Stops.
    "a stop of a requester nobody described": case("unknown-requester", "value", "stops[0].value", stop('"purpose"\nvalue = "P-2026-001"', '"requester"\nvalue = "tax"')),
    "a stop of a dataset nobody described": case("unknown-dataset", "value", "stops[0].value", stop('"purpose"\nvalue = "P-2026-001"', '"dataset"\nvalue = "pension"')),
    "a stop of nothing in particular": case("bad-stop", "[[stops]]", "stops[0]", stop('value = "P-2026-001"\n', "")),
    "a stop of a job by its name": case("bad-stop", "value", "stops[0].value", stop('"purpose"\nvalue = "P-2026-001"', '"job"\nvalue = "the one of Monday"')),
    "a stop without a reason": case("missing-key", "[[stops]]", "reason", stop('reason = "under review"\n', "")),
    "a stop document lifted twice": case("listed-twice", "lifted_stops", "lifted_stops[1]", before("timezone", f'lifted_stops = ["{ZEROS}", "{ZEROS}"]\n')),
}
# fmt: on


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_slip_is_refused_with_its_code_line_key_and_a_way_out(case: Case, world: Any):
    keys = {
        "DPO": world.key("human-resources dpo"),
        "OWNER": world.key("human-resources owner"),
        "ANALYST": world.key("analyst"),
    }

    def spelt_out(text: str) -> str:
        for name, key in keys.items():
            text = text.replace(name, key)
        return text

    text = world.text()
    for old, new in case.edits:
        text = world.edited(text, {spelt_out(old): spelt_out(new)})
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(text.encode())
    error = caught.value
    assert error.code == case.code, error.message
    line = text.split("\n")[error.line - 1] if error.line else ""
    assert line.lstrip().startswith(spelt_out(case.at)), (error.message, line)
    assert bool(error.line) == bool(case.at)
    assert case.key in error.message
    assert error.hint


def test_there_are_at_least_sixty(world: Any):
    assert len(CASES) >= 60
    assert parse_policy(world.text().encode()).policy.rules
