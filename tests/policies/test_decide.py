from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from policies.approving import verify_approval
from policies.decide import MAX_JOB_LIFETIME, check_merged, decide
from policies.decision import Ask, Decision, Permit, Refuse
from policies.model import ActivePolicy
from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import sha256_digest
from protocols.envelope import JOB, sign
from protocols.errors import DecodeError, PolicyInvalid, SignatureInvalid
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    OutputClass,
    PlannedRelease,
    Separation,
    Statement,
)
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, JobSpec, RosterOrganisation, strictest

DEPARTMENTS = ["police", "human-resources", "health", "housing", "education"]


def answer(
    world: Any,
    spec: JobSpec | None = None,
    department: str = "human-resources",
    *,
    edits: Mapping[str, str] | None = None,
    active: ActivePolicy | None = None,
    **changes: Any,
) -> Decision:
    arguments = {
        "node": world.node(department),
        "roster": world.roster,
        "now": world.now,
        **changes,
    }
    policy = active if active is not None else world.active(department, edits)
    return decide(policy, spec if spec is not None else world.spec(), **arguments)


def refusal(decision: Decision) -> str:
    assert isinstance(decision, Refuse), decision
    assert decision.sentence
    assert decision.hint
    # Chinese sentences are Chinese, and as complete as the English ones.
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.zh)
    assert any("\u4e00" <= character <= "\u9fff" for character in decision.hint_zh)
    return decision.code


# --- what is allowed


@pytest.mark.parametrize("department", DEPARTMENTS)
def test_whoever_gives_data_is_asked_for_two_approvals(world: Any, department: str):
    decision = answer(world, department=department)
    assert isinstance(decision, Ask)
    assert (decision.rule, decision.missing, decision.approvers) == ("R1", 2, ("dpo", "owner"))


def test_the_matcher_needs_no_approval(world: Any):
    decision = answer(world, department="statistics")
    assert isinstance(decision, Permit)
    assert decision.approvals == ()


def test_with_both_approvals_the_job_is_permitted_and_they_are_used_up(world: Any):
    active, spec = world.active(), world.spec()
    decision = answer(world, spec, active=active, approvals=world.verified(active, spec))
    assert isinstance(decision, Permit)
    assert {given.approver for given in decision.approvals} == {"dpo", "owner"}


def test_the_permit_carries_the_strictest_of_rule_and_defaults(world: Any):
    edits = {"max_rows = 20000": "min_group_size = 50\nmax_runtime_s = 7200\nmax_rows = 20000"}
    decision = answer(world, edits=edits)
    assert isinstance(decision, Ask)
    assert decision.terms.constraints == Constraints(
        min_group_size=50,
        min_sources=2,
        max_rows=20000,
        max_fraction=Fraction(3, 10),
        min_coverage=Fraction(4, 5),
        max_runtime_s=3600,
    )


def test_a_rule_cannot_loosen_the_defaults(world: Any):
    decision = answer(world, edits={"max_rows = 20000": "min_group_size = 5\nmax_rows = 20000"})
    assert isinstance(decision, Ask)
    assert decision.terms.constraints.min_group_size == 10


def test_the_answer_says_what_leaves_and_who_learns_what(world: Any):
    decision = answer(world)
    assert isinstance(decision, Ask)
    releases = {r.name: (r.output_class, r.recipient) for r in decision.terms.releases}
    assert releases == {
        "records": (OutputClass.DIRECTED, "police.gz.example"),
        "street-table": (OutputClass.AGGREGATE, "data-bureau.gz.example"),
    }
    ours = {leak.coalition for leak in decision.terms.leaks if leak.ours}
    assert ours
    assert all("source-1" in coalition for coalition in ours)
    sizes = [len(leak.coalition) for leak in decision.terms.leaks]
    assert sizes == sorted(sizes)


def test_decide_is_a_function_of_its_arguments_alone(world: Any):
    assert answer(world) == answer(world)


# --- deny by default


def test_without_a_policy_everything_is_refused(world: Any):
    decision = decide(None, world.spec(), node=world.node("health"), roster=world.roster, now=world.now)
    assert refusal(decision) == "no-policy"


def test_with_an_untrusted_clock_everything_is_refused(world: Any):
    assert refusal(answer(world, department="statistics", now=None)) == "clock-untrusted"


def test_a_policy_of_another_node_allows_nothing(world: Any):
    decision = answer(world, node=world.node("health"))
    assert refusal(decision) == "policy-of-another-node"


def test_a_policy_holds_from_its_first_moment_to_before_its_last(world: Any):
    active = world.active("statistics")
    begin, end = active.policy.not_before, active.policy.expires
    second = timedelta(seconds=1)
    roster = replace(world.roster, expires=end + timedelta(days=9))
    for now, expected in (
        (begin - second, "policy-not-yet-valid"),
        (begin, ""),
        (end - second, ""),
        (end, "policy-expired"),
    ):
        spec = world.spec(roster_digest=roster.digest, created=now, expires=now + second * 60)
        decision = answer(world, spec, "statistics", active=active, now=now, roster=roster)
        assert (refusal(decision) if expected else type(decision)) == (expected or Permit)


def test_a_node_that_the_job_does_not_name_refuses(world: Any):
    assert refusal(answer(world, world.spec(roles={}, inputs=()))) == "not-a-participant"


def test_an_unknown_job_type_is_refused(world: Any):
    assert refusal(answer(world, world.spec(job_type="retrain/1"))) == "unknown-job-type"


def test_what_is_not_well_formed_for_its_type_is_refused_with_the_types_own_words(world: Any):
    decision = answer(world, world.spec(params={"present_in": "sometimes"}))
    assert refusal(decision) == "bad-params"
    assert "present_in" in decision.sentence


# --- negative list


def test_a_negative_list_column_is_refused_before_anything_that_might_allow_it(world: Any):
    columns = {"key": "resident_id", "street": "bank_account"}
    # Everything else about this job is wrong as well: the negative list is still what is named.
    spec = world.with_columns(world.spec(job_type="lookup/1", purpose="Q"), "source-1", columns)
    decision = answer(world, spec)
    assert refusal(decision) == "negative-list"
    assert decision.rule == "negative-list-1"
    assert "负面清单 2.1" in decision.sentence


def test_a_column_of_the_negative_list_is_refused_however_it_is_spelt(world: Any):
    # DuckDB and most databases overlook case, so the file's bank_account would be read.
    spec = world.with_columns(world.spec(), "source-1", {"key": "resident_id", "street": "Bank_Account"})
    assert refusal(answer(world, spec)) == "negative-list"


def test_another_departments_column_is_not_ours_to_judge(world: Any):
    spec = world.with_columns(world.spec(), "source-2", {"key": "resident_id", "street": "bank_account"})
    assert isinstance(answer(world, spec), Ask)


# --- roster and time


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"collaboration": "other.example"}, "wrong-roster"),
        ({"roster_digest": sha256_digest(b"another")}, "wrong-roster"),
        ({"recipients": (Organisation("stranger.example"),)}, "unknown-member"),
        ({"created": datetime(2026, 12, 2, 3, 9, 6, tzinfo=UTC)}, "job-from-the-future"),
        ({"expires": datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)}, "job-expired"),
        ({"expires": datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC) + MAX_JOB_LIFETIME}, "job-too-long"),
        ({"requester": sha256_digest(b"stranger")}, "unknown-requester"),
        ({"purpose": "P-2026-002"}, "unknown-purpose"),
        ({"legal_basis": "DPIA-2026-002"}, "legal-basis-mismatch"),
    ],
)
def test_what_the_job_claims_must_hold(world: Any, change: dict[str, Any], code: str):
    assert refusal(answer(world, world.spec(**change))) == code


def test_an_expired_roster_is_refused(world: Any):
    roster = replace(world.roster, expires=world.now)
    decision = answer(world, world.spec(roster_digest=roster.digest), roster=roster)
    assert refusal(decision) == "roster-expired"


def test_a_node_outside_the_roster_is_refused(world: Any):
    roster = replace(world.roster, nodes=tuple(n for n in world.roster.nodes if "health" not in n.name))
    decision = answer(world, world.spec(roster_digest=roster.digest), roster=roster)
    assert refusal(decision) == "unknown-member"


def test_an_analyst_on_the_roster_but_not_in_the_policy_is_refused(world: Any):
    assert refusal(answer(world, world.spec(requester=world.key("policeman")))) == "unknown-requester"


def test_a_requester_who_left_the_roster_is_refused(world: Any):
    roster = replace(world.roster, analysts=world.roster.analysts[1:])
    decision = answer(world, world.spec(roster_digest=roster.digest), roster=roster)
    assert refusal(decision) == "unknown-requester"


def test_a_requester_who_changed_organisation_is_refused(world: Any):
    moved = replace(world.roster.analysts[0], organisation=Organisation("health.gz.example"))
    roster = replace(world.roster, analysts=(moved, *world.roster.analysts[1:]))
    decision = answer(world, world.spec(roster_digest=roster.digest), roster=roster)
    assert refusal(decision) == "requester-moved"


def test_a_purpose_lasts_through_its_last_day_where_the_department_is(world: Any):
    def at(now: datetime) -> Decision:
        spec = world.spec(created=now, expires=now + timedelta(hours=1))
        edits = {"valid_until = 2027-02-28": "valid_until = 2026-12-02"}
        return answer(world, spec, "statistics", edits=edits, now=now)

    # Midnight in Shanghai is 16:00 UTC of the day before.
    assert isinstance(at(datetime(2026, 12, 2, 15, 59, 59, tzinfo=UTC)), Permit)
    assert refusal(at(datetime(2026, 12, 2, 16, 0, 0, tzinfo=UTC))) == "purpose-ended"


# --- rules


OTHER = '[requesters.other]\nkeys = ["sha256:' + "0" * 64 + '"]\n\n[[rules]]'
PURPOSE = '[purposes.Q]\ntitle = "q"\nlegal_basis = "q"\nvalid_until = 2027-02-28\n\n[[rules]]'


@pytest.mark.parametrize(
    ("edits", "code"),
    [
        ({"[[rules]]": OTHER, 'requesters = ["bureau"]': 'requesters = ["other"]'}, "requester-not-allowed"),
        ({"[[rules]]": PURPOSE, 'purposes = ["P-2026-001"]': 'purposes = ["Q"]'}, "purpose-not-allowed"),
        ({'job_types = ["crosscheck/1"]': 'job_types = ["table/1"]'}, "job-type-not-allowed"),
        ({'roles = ["source", "key-holder"]': 'roles = ["source"]'}, "role-not-allowed"),
        ({'roles = ["source", "key-holder"]': 'roles = ["register", "key-holder"]'}, "role-not-allowed"),
        ({'"resident_id", "street", "last_seen_month"]': '"resident_id", "street"]'}, "column-not-allowed"),
        ({'street = { type = "code", use = ["group"] }': ""}, "unknown-column"),
        (
            {'street = { type = "code", use = ["group"]': 'street = { type = "code", use = ["filter"]'},
            "column-use",
        ),
        ({'street = { type = "code"': 'street = { type = "int"'}, "column-type"),
        (
            {'recipients = ["police.gz.example"]': 'recipients = ["health.gz.example"]'},
            "recipient-not-allowed",
        ),
        ({"min_sources = 2": "min_sources = 3"}, "too-few-sources"),
        ({"min_sources = 2": "min_sources = 2\nmin_organisations = 6"}, "too-few-organisations"),
    ],
)
def test_a_job_fits_wholly_inside_one_rule_or_is_refused(world: Any, edits: dict[str, str], code: str):
    if code == "unknown-column":
        edits = {**edits, '"resident_id", "street", "last_seen_month"]': '"resident_id", "last_seen_month"]'}
    assert refusal(answer(world, edits=edits)) == code


def test_a_dataset_the_policy_does_not_describe_is_refused(world: Any):
    spec = world.spec()
    inputs = tuple(
        replace(i, dataset=DatasetName("pension")) if i.role == "source-1" else i for i in spec.inputs
    )
    assert refusal(answer(world, replace(spec, inputs=inputs))) == "unknown-dataset"


def test_a_described_dataset_that_no_rule_opens_is_refused(world: Any):
    extra = """[datasets.pension]
source = "local:pension"
grade = "general-2"
personal = "personal"
columns = { resident_id = { type = "resident-id", use = ["join"] } }

[[rules]]"""
    spec = world.spec()
    inputs = tuple(
        replace(i, dataset=DatasetName("pension")) if i.role == "source-1" else i for i in spec.inputs
    )
    decision = answer(world, replace(spec, inputs=inputs), edits={"[[rules]]": extra})
    assert refusal(decision) == "dataset-not-allowed"


def test_a_neutral_office_does_not_play_another_part(world: Any):
    decision = answer(world, department="statistics", edits={'roles = ["matcher"]': 'roles = ["helper"]'})
    assert refusal(decision) == "role-not-allowed"


def test_the_matcher_may_not_belong_to_the_requester_or_to_a_department_that_gives_data(world: Any):
    spec = world.spec()
    for organisation in ("data-bureau", "health"):
        node = NodeName(f"{organisation}.gz.example/node-b")
        roster = replace(
            world.roster,
            nodes=(*world.roster.nodes, replace(world.roster.nodes[0], name=node, identity_key=b"b" * 32)),
        )
        changed = replace(spec, roles={**spec.roles, Role("matcher"): node}, roster_digest=roster.digest)
        assert refusal(answer(world, changed, roster=roster)) == "organisations-not-separate"


@pytest.mark.parametrize("name", ["lab.health.gz.example", "gz.example"])
def test_a_part_of_an_organisation_is_not_separate_from_it(world: Any, name: str):
    node = NodeName(f"{name}/node-a")
    roster = replace(
        world.roster,
        organisations=(*world.roster.organisations, RosterOrganisation(Organisation(name), "x")),
        nodes=(*world.roster.nodes, replace(world.roster.nodes[0], name=node, identity_key=b"b" * 32)),
    )
    spec = world.spec()
    spec = replace(spec, roles={**spec.roles, Role("matcher"): node}, roster_digest=roster.digest)
    assert refusal(answer(world, spec, roster=roster)) == "organisations-not-separate"


def test_a_requester_alias_as_recipient_means_its_organisation(world: Any):
    # The bureau's alias does not let records leave for the police.
    edits = {'recipients = ["police.gz.example"]': 'recipients = ["bureau"]'}
    assert refusal(answer(world, edits=edits)) == "recipient-not-allowed"
    police = '[requesters.police]\nkeys = ["' + world.key("policeman") + '"]\n\n[[rules]]'
    edits = {'recipients = ["police.gz.example"]': 'recipients = ["police"]'}
    for organisation, allowed in (("police.gz.example", True), ("health.gz.example", False)):
        declared = police.replace("\n\n", f'\norganisation = "{organisation}"\n\n')
        decision = answer(world, edits={**edits, "[[rules]]": declared})
        assert isinstance(decision, Ask) if allowed else refusal(decision) == "recipient-not-allowed"


def test_records_go_to_no_requester_whose_organisation_the_policy_leaves_open(world: Any):
    # Its keys could belong to two organisations, and a reader sees neither.
    police = '[requesters.police]\nkeys = ["' + world.key("policeman") + '"]\n\n[[rules]]'
    edits = {'recipients = ["police.gz.example"]': 'recipients = ["police"]', "[[rules]]": police}
    with pytest.raises(PolicyInvalid) as caught:
        world.active(edits=edits)
    assert caught.value.code == "one-recipient"


def test_an_organisation_called_like_the_alias_gains_nothing(world: Any):
    roster = replace(
        world.roster,
        organisations=(*world.roster.organisations, RosterOrganisation(Organisation("bureau"), "x")),
    )
    spec = world.spec(recipients=(Organisation("bureau"),), roster_digest=roster.digest)
    edits = {'recipients = ["police.gz.example"]': 'recipients = ["bureau"]'}
    assert isinstance(answer(world, spec, roster=roster, edits=edits), Refuse)


def test_present_in_all_counts_as_every_list(world: Any):
    spec = world.spec(params={"present_in": "all", "key_holder": "source-1"})
    assert isinstance(answer(world, spec, edits={"min_sources = 2": "min_sources = 5"}), Ask)
    assert refusal(answer(world, spec, edits={"min_sources = 2": "min_sources = 6"})) == "too-few-sources"


# --- what no job type of today does, but one of tomorrow may


@dataclass(frozen=True)
class Sketch:
    """A job type that says whatever a test wants it to say."""

    played: frozenset[str]
    needs: tuple[ColumnNeed, ...] = ()
    planned: tuple[PlannedRelease, ...] = ()
    name: str = "sketch/1"
    output_class: OutputClass = OutputClass.AGGREGATE
    states_sizes: bool = True
    counts_units: bool = False

    def check(self, spec: JobSpec) -> None:
        pass

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        return self.played

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        return self.needs

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        return self.planned

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        return ()

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        return {}

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        return NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        return None

    def sources_asked(self, spec: JobSpec) -> int:
        return len(spec.inputs)


def sketched(world: Any, sketch: Sketch, department: str, **edits: str) -> Decision:
    spec = world.with_columns(world.spec(job_type="sketch/1"), "source-1", {"key": "resident_id"})
    edits = {'job_types = ["crosscheck/1"]': 'job_types = ["sketch/1"]', **edits}
    return answer(world, spec, department, edits=edits, job_types=(sketch,))


def test_one_seat_needs_one_rule_for_everything_it_plays(world: Any):
    rule = """[[rules]]
id = "R2"
requesters = ["bureau"]
purposes = ["P-2026-001"]
job_types = ["sketch/1"]
roles = ["helper"]
recipients = ["police.gz.example"]
approvals = 0

[retention]"""
    both = Sketch(frozenset({"matcher", "helper"}))
    assert refusal(sketched(world, both, "statistics", **{"[retention]": rule})) == "role-not-allowed"
    widened = {'roles = ["matcher"]': 'roles = ["matcher", "helper"]'}
    assert isinstance(sketched(world, both, "statistics", **widened), Permit)


def test_a_seat_that_plays_nothing_known_is_refused(world: Any):
    for department in ("statistics", "human-resources"):
        assert refusal(sketched(world, Sketch(frozenset()), department)) == "role-not-allowed"


def test_a_rule_that_names_no_roles_opens_its_data_to_no_neutral_role(world: Any):
    no_roles = {'roles = ["source", "key-holder"]     # what this node may play\n': ""}
    needs = (ColumnNeed("key", "join", ("resident-id",)),)
    for kind, expected in (("source", Ask), ("aggregator", Refuse)):
        decision = sketched(world, Sketch(frozenset({kind}), needs), "human-resources", **no_roles)
        assert isinstance(decision, expected)


def test_a_column_for_which_the_job_type_has_no_slot_is_refused(world: Any):
    decision = sketched(world, Sketch(frozenset({"source"})), "human-resources")
    assert refusal(decision) == "unknown-slot"


@pytest.mark.parametrize(
    ("output_class", "recipient", "passes"),
    [
        (OutputClass.AGGREGATE, REQUESTER, True),
        (OutputClass.MODEL, REQUESTER, True),
        (OutputClass.DIRECTED, REQUESTER, False),
        (OutputClass.DIRECTED, Organisation("police.gz.example"), True),
        (OutputClass.AGGREGATE, Organisation("health.gz.example"), False),
        (OutputClass.DIRECTED, Organisation("health.gz.example"), False),
    ],
)
def test_records_go_to_named_recipients_numbers_also_to_whoever_may_ask(
    world: Any, output_class: OutputClass, recipient: Organisation, *, passes: bool
):
    release = PlannedRelease("x", output_class, Role("register"), recipient)
    decision = sketched(world, Sketch(frozenset({"matcher"}), (), (release,)), "statistics")
    assert isinstance(decision, Permit) if passes else refusal(decision) == "recipient-not-allowed"


# --- approvals


def test_two_approvals_in_one_capacity_are_not_two_people_of_two(world: Any):
    second = world.key("another dpo")
    edits = {f'"{world.key("human-resources dpo")}"': f'"{world.key("human-resources dpo")}", "{second}"'}
    active, spec = world.active(edits=edits), world.spec()
    first = world.verified(active, spec, ("dpo",))[0]
    decision = answer(world, spec, active=active, approvals=[first, replace(first, key=second)])
    assert isinstance(decision, Ask)
    assert (decision.missing, decision.approvers) == (1, ("owner",))


def test_more_approvals_than_capacities_take_different_people(world: Any):
    second = world.key("another dpo")
    edits = {
        f'"{world.key("human-resources dpo")}"': f'"{world.key("human-resources dpo")}", "{second}"',
        "approvals = 2": "approvals = 3",
    }
    active, spec = world.active(edits=edits), world.spec()
    both = world.verified(active, spec)
    decision = answer(world, spec, active=active, approvals=both)
    assert isinstance(decision, Ask)
    assert (decision.missing, decision.approvers) == (1, ("dpo",))
    decision = answer(world, spec, active=active, approvals=[*both, replace(both[0], key=second)])
    assert isinstance(decision, Permit)


def test_one_approval_handed_in_twice_counts_once(world: Any):
    active, spec = world.active(), world.spec()
    one = world.verified(active, spec, ("dpo",))
    decision = answer(world, spec, active=active, approvals=one * 3)
    assert isinstance(decision, Ask)
    assert decision.missing == 1


@pytest.mark.parametrize(
    "change",
    [
        {"job": sha256_digest(b"another job")},
        {"node": NodeName("health.gz.example/node-a")},
        {"policy_digest": sha256_digest(b"the version before")},
        {"rule": "R2"},
        {"cost": "0.1"},
        {"expires": datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)},
    ],
)
def test_an_approval_of_something_else_is_not_counted(world: Any, change: dict[str, Any]):
    active, spec = world.active(), world.spec()
    approvals = world.verified(active, spec, **change)
    decision = answer(world, spec, active=active, approvals=approvals)
    assert isinstance(decision, Ask)
    assert decision.missing == 2


def approved_by_the_analyst(world: Any) -> ActivePolicy:
    """A policy as no text has it: the parser refuses a key that both asks and approves."""
    active = world.active()
    dpo = msgspec.structs.replace(active.policy.approvers["dpo"], keys=(world.key("analyst"),))
    approvers = {**active.policy.approvers, "dpo": dpo}
    return replace(active, policy=msgspec.structs.replace(active.policy, approvers=approvers))


def test_the_requesters_own_approval_is_not_counted(world: Any):
    active, spec = approved_by_the_analyst(world), world.spec()
    approvals = [replace(a, key=world.key("analyst")) for a in world.verified(active, spec, ("dpo",))]
    decision = answer(world, spec, active=active, approvals=approvals)
    assert isinstance(decision, Ask)
    assert decision.missing == 2


def verified(world: Any, active: ActivePolicy, spec: JobSpec, envelope: Any, **changes: Any) -> str:
    keys = [world.signer(f"human-resources {role}").public_key for role in ("dpo", "owner")]
    arguments = {
        "spec": spec,
        "node": world.node("human-resources"),
        "now": world.now,
        "keys": [*keys, world.signer("stranger").public_key, world.signer("analyst").public_key],
        **changes,
    }
    try:
        given = verify_approval(envelope, active, **arguments)
    except SignatureInvalid as error:
        return error.code
    return given.approver


def test_a_signed_approval_is_verified_down_to_the_person(world: Any):
    active, spec = world.active(), world.spec()
    approval = world.approval(active, spec)
    for role in ("dpo", "owner"):
        assert verified(world, active, spec, world.signed(approval, f"human-resources {role}")) == role


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"job": sha256_digest(b"another job")}, "approval-of-another-job"),
        ({"node": NodeName("health.gz.example/node-a")}, "approval-of-another-job"),
        ({"policy_digest": sha256_digest(b"before")}, "approval-of-another-policy"),
        ({"rule": "R9"}, "approver-not-listed"),
        ({"cost": NOTHING.encode()}, "approval-cost"),
        ({"expires": datetime(2026, 12, 2, 3, 4, 5, tzinfo=UTC)}, "approval-expired"),
        ({"expires": datetime(2026, 12, 9, 2, 59, 6, tzinfo=UTC)}, "approval-too-long"),
        ({"expires": datetime(2026, 12, 1, tzinfo=UTC)}, "approval-too-long"),
        ({"issued": datetime(2026, 12, 2, 3, 9, 6, tzinfo=UTC)}, "approval-not-yet-valid"),
    ],
)
def test_an_approval_is_void_unless_it_is_for_exactly_this(world: Any, change: dict[str, Any], code: str):
    active, spec = world.active(), world.spec()
    envelope = world.signed(world.approval(active, spec, **change), "human-resources dpo")
    assert verified(world, active, spec, envelope) == code


@pytest.mark.parametrize("change", [{"job_type": "lookup/1"}, {"params": {}}, {"roles": {}, "inputs": ()}])
def test_what_nobody_could_be_asked_to_approve_has_no_approval(world: Any, change: dict[str, Any]):
    active, spec = world.active(), world.spec(**change)
    assert verified(
        world, active, spec, world.signed(world.approval(active, spec), "human-resources dpo")
    ) == ("approval-cost")


def test_an_approval_names_the_cost_under_its_rule(world: Any):
    edits = {"max_rows = 20000": "max_rows = 100"}
    active, spec = world.active(edits=edits), world.spec()
    for rows, expected in ((100, "dpo"), (20_000, "approval-cost")):
        approval = world.approval(active, spec, cost=Cost(rows=rows, queries=1).encode())
        assert verified(world, active, spec, world.signed(approval, "human-resources dpo")) == expected


def test_an_approval_may_last_exactly_seven_days(world: Any):
    active, spec = world.active(), world.spec()
    issued = world.now - timedelta(minutes=5)
    approval = world.approval(active, spec, issued=issued, expires=issued + timedelta(days=7))
    assert verified(world, active, spec, world.signed(approval, "human-resources dpo")) == "dpo"


def test_a_key_that_the_policy_does_not_list_approves_nothing(world: Any):
    active, spec = world.active(), world.spec()
    envelope = world.signed(world.approval(active, spec), "stranger")
    assert verified(world, active, spec, envelope) == "too-few-signatures"


def test_two_people_cannot_share_one_approval(world: Any):
    active, spec = world.active(), world.spec()
    envelope = world.signed(world.approval(active, spec), "human-resources dpo", "human-resources owner")
    assert verified(world, active, spec, envelope) == "approval-shared"


def test_an_approval_is_used_once(world: Any):
    active, spec = world.active(), world.spec()
    envelope = world.signed(world.approval(active, spec), "human-resources dpo")
    used = {envelope.payload_digest}
    assert verified(world, active, spec, envelope, used=used) == "approval-used"


def test_a_requester_listed_as_approver_cannot_approve_their_own_job(world: Any):
    active, spec = approved_by_the_analyst(world), world.spec()
    envelope = world.signed(world.approval(active, spec), "analyst")
    assert verified(world, active, spec, envelope) == "approver-is-requester"


def test_another_document_never_passes_as_an_approval(world: Any):
    active, spec = world.active(), world.spec()
    payload = world.approval(active, spec).encode()
    envelope = sign(JOB, payload, [world.signer("human-resources dpo")])
    assert verified(world, active, spec, envelope) == "wrong-payload-type"
    approval = world.signed(world.approval(active, spec), "human-resources dpo")
    with pytest.raises(DecodeError):
        verified(
            world,
            active,
            spec,
            sign(approval.payload_type, b"{}", [world.signer("human-resources dpo")]),
        )


# --- after everyone's admission


def permit(world: Any) -> Permit:
    active, spec = world.active(), world.spec()
    decision = answer(world, spec, active=active, approvals=world.verified(active, spec))
    assert isinstance(decision, Permit)
    return decision


def test_the_strictest_constraints_of_all_still_let_a_fitting_job_run(world: Any):
    ours = permit(world)
    stricter = Constraints(min_group_size=30, max_rows=10, min_sources=2, min_organisations=5)
    assert check_merged(ours, strictest((ours.terms.constraints, stricter)), world.spec()) is None


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        (Constraints(min_sources=3), "too-few-sources"),
        (Constraints(min_organisations=6), "too-few-organisations"),
    ],
)
def test_another_participants_demand_can_stop_the_job(world: Any, theirs: Constraints, code: str):
    ours = permit(world)
    decision = check_merged(ours, strictest((ours.terms.constraints, theirs)), world.spec())
    assert decision is not None
    assert refusal(decision) == code
    assert decision.rule == "R1"


def test_a_merge_that_weakens_our_constraints_is_refused(world: Any):
    ours = permit(world)
    for weaker in (
        Constraints(),
        replace(ours.terms.constraints, max_rows=20001),
        replace(ours.terms.constraints, min_group_size=None),
        replace(ours.terms.constraints, min_coverage=Fraction(1, 2)),
    ):
        decision = check_merged(ours, weaker, world.spec())
        assert decision is not None
        assert refusal(decision) == "constraints-weakened"
