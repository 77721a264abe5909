"""What a spec of crosscheck/1 must be, and what follows from it before any party starts."""

from dataclasses import replace
from datetime import date
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from crosscheck_case import CROSSCHECK, LOOSE, ZERO, case, job_spec

from protocols.dp.cost import Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import resident_id
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.crosscheck import CONTENT_KEY, MATCHER, REGISTER, ROWS
from protocols.jobs.job_type import REQUESTER, OutputClass, source
from protocols.party import Finished
from protocols.statistics.differencing import differenced
from protocols.wire import Constraints, InputSummary, JobInput, JobSpec, parse_utc

BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        CROSSCHECK.check(spec)
    assert error.value.hint
    return error.value


@pytest.mark.parametrize(
    "spec",
    [
        job_spec(2),
        job_spec(3, k=1),
        job_spec(62, k=62),
        job_spec(1, present_in="all"),
        job_spec(3, present_in="all", key_holder=3),
    ],
)
def test_a_right_spec_passes_and_survives_its_encoding(spec):
    if "k" not in spec.params and spec.params["present_in"] == "at_least":
        spec = replace(spec, params={**spec.params, "k": 2})
    CROSSCHECK.check(spec)
    CROSSCHECK.check(JobSpec.decode(spec.encode()))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"present_in": "some"}, "bad-params"),
        ({"present_in": None}, "bad-params"),
        ({"present_in": ["all"]}, "bad-params"),
        ({"k": 0}, "bad-params"),
        ({"k": 4}, "bad-params"),
        ({"k": True}, "bad-params"),
        ({"k": "2"}, "bad-params"),
        ({"k": 2.0}, "bad-params"),
        ({"key_holder": "source-4"}, "bad-params"),
        ({"key_holder": "register"}, "bad-params"),
        ({"key_holder": "matcher"}, "bad-params"),
        ({"key_holder": ["source-1"]}, "bad-params"),
        ({"areas": "atlantis"}, "bad-params"),
        ({"areas": ["demo-city"]}, "bad-params"),
        ({"areas": None}, "bad-params"),
        ({"epsilon": 1}, "unknown-param"),
    ],
)
def test_a_wrong_param_is_refused(change, code):
    spec = job_spec(3, k=2)
    assert refused(replace(spec, params={**spec.params, **change})).code == code


def test_at_least_needs_k_and_all_takes_none():
    spec = job_spec(3, k=2)
    without = {name: value for name, value in spec.params.items() if name != "k"}
    assert refused(replace(spec, params=without)).code == "bad-params"
    assert refused(replace(spec, params={**spec.params, "present_in": "all"})).code == "unknown-param"


def test_the_national_table_is_the_default():
    spec = job_spec(3, k=2)
    plain = {name: value for name, value in spec.params.items() if name != "areas"}
    versions = {
        name: CROSSCHECK.builder(replace(spec, params=params), REGISTER).finish().rule_version
        for name, params in {
            "left out": plain,
            "national": {**plain, "areas": "national"},
            "demo": {**plain, "areas": "demo-city"},
        }.items()
    }
    assert versions["left out"] == versions["national"] != versions["demo"]


@pytest.mark.parametrize(("created", "listed"), [("2026-01-01T15:59:59Z", 0), ("2026-01-01T16:00:00Z", 1)])
def test_a_child_is_born_once_its_day_has_begun_in_china(created, listed):
    spec = replace(job_spec(2, k=1), created=parse_utc(created))
    builder = CROSSCHECK.builder(spec, REGISTER)
    builder.add({"key": pa.array([resident_id("990101", date(2026, 1, 2), 7)])})
    assert len(builder.finish().keys) == listed


def test_at_least_needs_two_sources():
    assert refused(job_spec(1, k=1)).code == "bad-params"


@pytest.mark.parametrize(
    "roles",
    [
        {"register": "a.example/a", "matcher": "b.example/a"},
        {"register": "a.example/a", "matcher": "b.example/a", "source-2": "c.example/a"},
        {
            "register": "a.example/a",
            "matcher": "b.example/a",
            "source-1": "c.example/a",
            "helper": "d.example/a",
        },
        {"register": "a.example/a", "source-1": "b.example/a", "source-2": "c.example/a"},
        {"register": "a.example/a", "matcher": "b.example/a", "source-01": "c.example/a"},
        {},
    ],
)
def test_other_roles_are_refused(roles):
    changed = {Role(role): NodeName(node) for role, node in roles.items()}
    assert refused(replace(job_spec(3, k=2), roles=changed)).code == "bad-roles"


def test_more_lists_than_bits_of_a_set_are_refused():
    assert refused(job_spec(63, k=2)).code == "bad-roles"


def test_each_owner_brings_one_list_with_the_slots_it_needs():
    spec = job_spec(3, k=2)
    assert refused(replace(spec, inputs=spec.inputs[1:])).code == "bad-inputs"
    matchers = JobInput(MATCHER, Organisation("statistics.example"), DatasetName("people"), {"key": "id"})
    assert refused(replace(spec, inputs=(*spec.inputs, matchers))).code == "bad-inputs"
    for columns in ({"key": "id"}, {"key": "id", "street": "s", "income": "i"}, {"street": "s"}, {}):
        changed = tuple(replace(i, columns=columns) if i.role == source(2) else i for i in spec.inputs)
        assert refused(replace(spec, inputs=changed)).code == "bad-inputs"
    extra = tuple(
        replace(i, columns={"key": "id", "street": "s"}) if i.role == REGISTER else i for i in spec.inputs
    )
    assert refused(replace(spec, inputs=extra)).code == "bad-inputs"
    fewer = tuple(
        replace(i, columns={"key": "id", "street": "s"}) if i.role == source(2) else i for i in spec.inputs
    )
    CROSSCHECK.check(replace(spec, inputs=fewer))  # last_seen may be left out


def with_node(spec: JobSpec, role: Role, node: str) -> JobSpec:
    return replace(spec, roles={**spec.roles, role: NodeName(node)})


@pytest.mark.parametrize("other", [source(2), REGISTER])
def test_one_organisation_gives_one_list(other):
    spec = job_spec(3, k=2)
    organisation = spec.roles[other].partition("/")[0]
    assert refused(with_node(spec, source(1), f"{organisation}/b")).code == "one-list-each"


def test_nobody_may_bear_the_name_that_stands_for_the_requester():
    # Else a release planned for the register's organisation would be taken for the requester's.
    spec = with_node(job_spec(3, k=2), REGISTER, f"{REQUESTER}/a")
    assert refused(replace(spec, recipients=(REQUESTER,))).code == "reserved-name"


@pytest.mark.parametrize(
    "recipients", [(), ("bureau.example",), ("police.example", "bureau.example"), ("police.example",) * 2]
)
def test_only_the_registers_organisation_receives_records(recipients):
    spec = replace(job_spec(3, k=2), recipients=tuple(Organisation(name) for name in recipients))
    assert refused(spec).code == "bad-recipients"


def test_the_register_and_the_named_source_are_key_holders():
    spec = job_spec(3, k=2, key_holder=2)
    assert {role: CROSSCHECK.kinds(spec, role) for role in spec.roles} == {
        REGISTER: {"register", "key-holder"},
        MATCHER: {"matcher"},
        source(1): {"source"},
        source(2): {"source", "key-holder"},
        source(3): {"source"},
    }


def test_columns_are_declared_with_the_use_a_policy_must_allow():
    spec = job_spec(3, k=2)

    def uses(role: Role) -> dict[str, tuple[str, bool]]:
        return {need.slot: (need.use, need.required) for need in CROSSCHECK.columns(spec, role)}

    assert uses(REGISTER) == {"key": ("join", True)}
    assert uses(source(3)) == {
        "key": ("join", True),
        "street": ("group", True),
        "last_seen": ("carry", False),
    }
    assert uses(MATCHER) == {}
    with pytest.raises(InputError):
        CROSSCHECK.builder(spec, MATCHER)


def test_records_go_to_the_register_and_a_table_to_the_requester():
    releases = CROSSCHECK.releases(job_spec(3, k=2))
    assert [(r.name, r.output_class, r.made_by, r.recipient) for r in releases] == [
        ("records", OutputClass.DIRECTED, REGISTER, "police.example"),
        ("street-table", OutputClass.AGGREGATE, REGISTER, REQUESTER),
    ]


def violated(spec: JobSpec, requester: Organisation = BUREAU) -> bool:
    return any(apart.these & apart.those for apart in CROSSCHECK.separation(spec, requester))


def test_seats_of_different_organisations_are_separate_enough():
    assert not violated(job_spec(3, k=2))
    # The register may ask itself, and a source may ask: both learn what they learn in their seats.
    assert not violated(job_spec(3, k=2), Organisation("police.example"))
    assert not violated(job_spec(3, k=2), Organisation("department-1.example"))


@pytest.mark.parametrize("role", [REGISTER, source(1), source(2), source(3)])
def test_the_matcher_shares_no_organisation_with_a_list_owner(role):
    spec = job_spec(3, k=2)
    assert violated(with_node(spec, MATCHER, spec.roles[role].replace("/a", "/b")))


def test_the_matcher_shares_no_organisation_with_the_requester():
    assert violated(job_spec(3, k=2), Organisation("statistics.example"))


def test_every_two_list_owners_are_different_organisations():
    spec = job_spec(3, k=2)
    for role in (source(1), source(2)):
        for other in (REGISTER, source(3)):
            assert violated(with_node(spec, role, spec.roles[other].replace("/a", "/b")))


def summaries(sources: int = 3, **changed: InputSummary) -> dict[Role, InputSummary]:
    plain = InputSummary(110, 100, 100, ZERO, "2026-01-01", ZERO, "rules")
    roles = (REGISTER, *(source(i + 1) for i in range(sources)))
    return {role: changed.get(role.replace("-", "_"), plain) for role in roles}


def guard(spec: JobSpec, inputs: dict[Role, InputSummary], constraints: Constraints = LOOSE) -> str | None:
    try:
        CROSSCHECK.check_inputs(spec, inputs, constraints)
    except ProtocolAborted as aborted:
        return aborted.code
    return None


@pytest.mark.parametrize(
    ("distinct", "catalogue", "code"),
    [
        (100, 100, None),
        (98, 100, None),
        (102, 100, None),
        (97, 100, "guard-list-size"),
        (103, 100, "guard-list-size"),
        (0, 100, "guard-list-size"),
        (1, 100, "guard-list-size"),
        (0, 0, "guard-empty-list"),
        (1, 1, None),
        (1, 0, "guard-list-size"),
    ],
)
def test_the_registers_list_is_within_two_per_cent_of_its_catalogue(distinct, catalogue, code):
    register = InputSummary(200, distinct, catalogue, ZERO, "2026-01-01", ZERO, "rules")
    assert guard(job_spec(3, k=2), summaries(register=register)) == code


def test_an_empty_source_is_refused():
    empty = InputSummary(10, 0, 100, ZERO, "2026-01-01", ZERO, "rules")
    assert guard(job_spec(3, k=2), summaries(source_2=empty)) == "guard-empty-list"


def test_a_summary_is_needed_of_each_list_and_of_no_other():
    spec = job_spec(3, k=2)
    assert guard(spec, summaries(2)) == "guard-inputs"
    assert guard(spec, {**summaries(), MATCHER: summaries()[REGISTER]}) == "guard-inputs"


def test_lists_normalised_by_different_rules_are_not_compared():
    other = InputSummary(110, 100, 100, ZERO, "2026-01-01", ZERO, "other rules")
    assert guard(job_spec(3, k=2), summaries(source_2=other)) == "guard-rules"


@pytest.mark.parametrize(
    ("rows", "distinct"), [(99, 100), ((1 << 27) + 1, (1 << 27) + 1), (1 << 53, 1 << 52)]
)
def test_a_size_that_no_list_has_is_refused_before_room_is_made_for_it(rows, distinct):
    for role in ("source_2", "register"):
        stated = InputSummary(rows, distinct, distinct, ZERO, "2026-01-01", ZERO, "rules")
        assert guard(job_spec(3, k=2), summaries(**{role: stated})) == "guard-sizes"
    largest = InputSummary(1 << 27, 1 << 27, 1 << 27, ZERO, "2026-01-01", ZERO, "rules")
    assert guard(job_spec(3, k=2), summaries(source_2=largest)) is None


def test_another_area_table_is_another_question():
    # It reads other keys as valid: the difference of two answers is whoever lives in the areas of one alone.
    one, other = (
        CROSSCHECK.query(job_spec(3, k=2, areas=areas), source(1)) for areas in ("demo-city", "national")
    )
    assert one is not None
    assert other is not None
    assert differenced(one, other)
    assert one == CROSSCHECK.query(job_spec(3, k=2), source(1))


@pytest.mark.parametrize("missing", ["max_rows", "max_fraction", "min_coverage"])
def test_without_a_limit_nothing_runs(missing):
    changed: dict[str, Any] = {missing: None}
    assert guard(job_spec(3, k=2), summaries(), replace(LOOSE, **changed)) == "guard-missing"


@pytest.mark.parametrize(
    ("spec", "limit", "code"),
    [
        (job_spec(3, k=2), {"min_sources": 2}, None),
        (job_spec(3, k=2), {"min_sources": 3}, "guard-sources"),
        (job_spec(3, present_in="all"), {"min_sources": 4}, None),
        (job_spec(3, present_in="all"), {"min_sources": 5}, "guard-sources"),
        (job_spec(3, k=2), {"min_organisations": 4}, None),
        (job_spec(3, k=2), {"min_organisations": 5}, "guard-organisations"),
        (job_spec(3, k=2), {"max_fraction": Fraction(1, 10)}, None),
    ],
)
def test_sources_and_organisations_are_enough_for_the_strictest_rule(spec, limit, code):
    assert guard(spec, summaries(), replace(LOOSE, **limit)) == code


def test_the_registry_knows_it():
    assert job_type("crosscheck/1") in JOB_TYPES


# ---------------------------------------------------------------- cost, query, answers


def test_a_source_counts_every_record_the_cap_lets_leave():
    spec = job_spec(3, k=2)
    for role in (source(1), source(2), source(3)):
        assert CROSSCHECK.cost(spec, role, LOOSE) == Cost(rows=1000, queries=1)
    assert CROSSCHECK.cost(spec, REGISTER, LOOSE) == Cost(queries=1)
    assert CROSSCHECK.cost(spec, MATCHER, LOOSE) == Cost()


def test_another_threshold_or_another_set_of_lists_is_another_group():
    spec = job_spec(3, k=2)
    asked = CROSSCHECK.query(spec, source(1))
    assert asked is not None
    swapped = {source(2): spec.roles[source(3)], source(3): spec.roles[source(2)]}
    inputs = tuple(
        replace(i, organisation=swapped[i.role].partition("/")[0]) if i.role in swapped else i
        for i in spec.inputs
    )
    for same in (
        replace(spec, params={**spec.params, "key_holder": "source-2"}),
        replace(spec, inputs=spec.inputs[::-1]),
        replace(spec, roles={**spec.roles, **swapped}, inputs=inputs),
        replace(spec, roles={**spec.roles, MATCHER: NodeName("other.example/a")}),
    ):
        other = CROSSCHECK.query(same, source(1))
        assert other is not None
        assert not differenced(other, asked)
    for another in (job_spec(3, k=3), job_spec(2, k=2), job_spec(3, present_in="all")):
        other = CROSSCHECK.query(another, source(1))
        assert other is not None
        assert differenced(other, asked)


class Watched:
    """A party whose every step is noted: which rounds it sent, and whether it said that it answers."""

    def __init__(self, party):
        self.party, self.answering, self.quiet = party, set(), set()

    def note(self, step):
        step = replace(step, outgoing=list(step.outgoing))
        answers = isinstance(step, Finished) or step.answering
        (self.answering if answers else self.quiet).update(message.round for message in step.outgoing)
        return step

    def start(self):
        return self.note(self.party.start())

    def receive(self, message):
        return self.note(self.party.receive(message))


@pytest.mark.parametrize("params", [{"k": 2}, {"present_in": "all"}])
def test_whoever_gives_rows_or_shares_says_first_that_it_answers(params):
    rows = dict.fromkeys(range(4), ("东街", "2026-01"))
    played = case([rows, rows, rows], **params)
    played.parties = {role: Watched(party) for role, party in played.parties.items()}
    played.run()
    for role, watched in played.parties.items():
        if role == MATCHER:
            continue
        assert not watched.quiet & {ROWS, CONTENT_KEY}, f"{role} gave rows away without a word"
        if role != REGISTER or params.get("present_in"):
            assert ROWS in watched.answering
