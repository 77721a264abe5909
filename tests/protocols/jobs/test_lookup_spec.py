"""What a spec of lookup/1 must be, and what follows from it before any party starts."""

from dataclasses import replace

import pytest
from lookup_case import CLERK, LOOKUPS, OPEN, OWNER, STREETS, Office, lookup_spec, some

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import DatasetName, NodeName, Organisation, Role
from protocols.jobs import JOB_TYPES, job_type
from protocols.jobs.job_type import OutputClass, RequesterBound, Standing
from protocols.party import Serving
from protocols.psi.oprf import Mode
from protocols.wire import Constraints, JobInput, JobSpec

BUREAU = Organisation("bureau.example")


def refused(spec: JobSpec) -> InputError:
    with pytest.raises(InputError) as error:
        LOOKUPS.check(spec)
    assert error.value.hint
    return error.value


@pytest.mark.parametrize(
    "params",
    [
        {}, {"scope": None}, {"verified": True}, {"verified": False}, {"areas": None},
        {"lookups": 10_000_000}, {"session_s": 60}, {"fields": ["street"]},
        {"columns": {"last_seen": "seen"}},
    ],
)  # fmt: skip
def test_a_right_spec_passes_and_survives_its_encoding(params):
    spec = lookup_spec(**params)
    LOOKUPS.check(spec)
    LOOKUPS.check(JobSpec.decode(spec.encode()))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"lookups": 0}, "bad-params"),
        ({"lookups": True}, "bad-params"),
        ({"lookups": 10_000_001}, "bad-params"),
        ({"lookups": "5"}, "bad-params"),
        ({"session_s": 59}, "bad-params"),
        ({"session_s": 604_741}, "bad-params"),
        ({"verified": 1}, "bad-params"),
        ({"verified": "yes"}, "bad-params"),
        ({"scope": {}}, "bad-params"),
        ({"scope": {"street": ""}}, "bad-params"),
        ({"scope": {"street": " a"}}, "bad-params"),
        ({"scope": {"street": "a\n"}}, "bad-params"),
        ({"scope": {"street": ["a"]}}, "bad-params"),
        ({"scope": {"street": "a" * 65}}, "bad-params"),
        ({"scope": {"Street": "a"}}, "bad-params"),
        ({"scope": {"key": "a"}}, "bad-params"),
        ({"scope": {"other": "a"}}, "bad-inputs"),
        ({"fields": []}, "bad-params"),
        ({"fields": ["status", "status"]}, "bad-params"),
        ({"fields": ["key"]}, "bad-params"),
        ({"fields": ["unit"]}, "bad-params"),
        ({"fields": [f"f{i}" for i in range(17)]}, "bad-params"),
        ({"fields": ["status", "seen", "more"]}, "bad-inputs"),
        ({"areas": "moon"}, "bad-params"),
        ({"k": 2}, "unknown-param"),
    ],
)
def test_a_wrong_param_is_refused(change, code):
    spec = lookup_spec()
    assert refused(replace(spec, params={**spec.params, **change})).code == code


def test_roles_inputs_and_recipients_are_these_and_no_others():
    spec = lookup_spec()
    assert refused(replace(spec, roles={OWNER: spec.roles[OWNER]})).code == "bad-roles"
    more = {**spec.roles, Role("matcher"): NodeName("statistics.example/a")}
    assert refused(replace(spec, roles=more)).code == "bad-roles"
    assert refused(replace(spec, inputs=())).code == "bad-inputs"
    clerks = JobInput(CLERK, Organisation("street-office.example"), DatasetName("people"), {"key": "id"})
    assert refused(replace(spec, inputs=(*spec.inputs, clerks))).code == "bad-inputs"
    for columns in ({"key": "id"}, {**spec.inputs[0].columns, "more": "more"}):
        assert refused(replace(spec, inputs=(replace(spec.inputs[0], columns=columns),))).code == "bad-inputs"
    assert refused(replace(spec, recipients=())).code == "bad-recipients"
    assert refused(replace(spec, recipients=(BUREAU,))).code == "bad-recipients"
    assert refused(replace(spec, recipients=(*spec.recipients, BUREAU))).code == "bad-recipients"


def test_owner_and_clerk_are_two_organisations():
    spec = lookup_spec()
    same = replace(spec, roles={**spec.roles, CLERK: NodeName("civil-affairs.example/b")})
    assert refused(same).code == "owner-is-clerk"
    (pair,) = LOOKUPS.separation(same, BUREAU)
    assert pair.these & pair.those


def test_who_asks_for_the_session_is_of_the_clerks_organisation():
    spec = lookup_spec()
    assert isinstance(LOOKUPS, RequesterBound)
    LOOKUPS.check_requester(spec, Organisation("street-office.example"))
    for other in (BUREAU, "civil-affairs.example", "a.street-office.example"):
        with pytest.raises(InputError) as error:
            LOOKUPS.check_requester(spec, Organisation(other))
        assert error.value.code == "requester-not-clerk"


def test_the_owner_needs_a_key_the_scopes_value_and_the_fields():
    needs = {need.slot: need for need in LOOKUPS.columns(lookup_spec(), OWNER)}
    assert {slot: need.use for slot, need in needs.items()} == {
        "key": "join", "street": "filter", "status": "carry", "seen": "carry", "last_seen": "filter"
    }  # fmt: skip
    assert needs["street"].domain.values == (STREETS[0],)
    assert not needs["last_seen"].required
    assert LOOKUPS.columns(lookup_spec(), CLERK) == ()
    both = LOOKUPS.columns(lookup_spec(fields=["street"]), OWNER)
    assert [need.use for need in both if need.slot == "street"] == ["filter", "carry"]


def test_every_look_up_that_may_be_asked_is_charged_at_the_owner():
    spec = lookup_spec(lookups=250)
    assert LOOKUPS.cost(spec, OWNER, OPEN) == Cost(rows=250, queries=1)
    assert LOOKUPS.cost(spec, CLERK, OPEN) == NOTHING


def test_the_clerks_node_closes_the_session():
    assert LOOKUPS.session_s(lookup_spec(session_s=900), CLERK) == 900
    assert LOOKUPS.session_s(lookup_spec(), OWNER) is None
    assert isinstance(LOOKUPS, Standing)


@pytest.mark.parametrize("role", [OWNER, CLERK])
def test_a_session_is_about_no_group_that_another_answer_could_differ_by(role):
    assert LOOKUPS.query(lookup_spec(), role) is None
    with pytest.raises(InputError):
        LOOKUPS.query(lookup_spec(lookups=0), role)


def test_the_release_is_the_clerks_and_for_its_organisation():
    (release,) = LOOKUPS.releases(lookup_spec())
    assert (release.made_by, release.recipient, release.output_class) == (
        CLERK, "street-office.example", OutputClass.DIRECTED
    )  # fmt: skip


@pytest.mark.parametrize(
    ("constraints", "code"),
    [
        (Constraints(), "guard-missing"),
        (Constraints(max_rows=499), "guard-rows"),
        (Constraints(max_rows=500, max_runtime_s=3659), "guard-session"),
        (Constraints(max_rows=500, min_sources=2), "guard-sources"),
        (Constraints(max_rows=500, min_organisations=2), "guard-sources"),
    ],
)
def test_a_guard_that_fails_ends_the_attempt_before_a_party_starts(constraints, code):
    with pytest.raises(ProtocolAborted) as error:
        Office().session(some(3), constraints=constraints)
    assert error.value.code == code


def test_limits_that_just_fit_pass():
    Office().session(some(3), constraints=Constraints(max_rows=500, max_runtime_s=3660, min_sources=1))


def test_the_admissions_name_the_owners_list_and_no_other():
    session = Office().session(some(3))
    for inputs in ({}, {**session.setup.inputs, CLERK: session.setup.inputs[OWNER]}):
        with pytest.raises(ProtocolAborted) as error:
            LOOKUPS.check_inputs(session.spec, inputs, OPEN)
        assert error.value.code == "guard-inputs"


def test_a_session_is_served_and_not_played():
    session = Office().session(some(1))
    with pytest.raises(TypeError):
        LOOKUPS.party(OWNER, session.setup, session.people, bytes)
    with pytest.raises(TypeError):
        LOOKUPS.serving(OWNER, session.setup, None, bytes, shelf=Office().owner, monotonic=lambda: 0.0)
    assert all(hasattr(session.parties[role], name) for role in (OWNER, CLERK) for name in Serving.__dict__
               if name in ("start", "receive", "ask", "close"))  # fmt: skip


def test_it_is_registered_and_says_nothing_before_it_answers():
    assert job_type("lookup/1") in JOB_TYPES
    assert LOOKUPS.silent_until_answering
    params = lookup_spec(verified=False)
    from protocols.jobs.lookup import Params

    assert Params.of(params).mode is Mode.OPRF
    assert Params.of(lookup_spec()).mode is Mode.VOPRF
