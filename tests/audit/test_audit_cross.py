"""Logs held against each other: what one of them leaves out or rewrites, another shows."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from several import ROOTS, Collaboration

from audit.bundle import open_bundle, open_bundles
from audit.cross import Crossed, Side, cross, gather
from audit.entries import Entry
from audit.findings import Answer
from audit.note import Note
from audit.trust import Trust
from protocols.encoding import b64encode, sha256_digest
from protocols.errors import InputError
from protocols.ids import NodeName, Role
from protocols.wire import JobSpec


@pytest.fixture
def city(tmp_path: Path) -> Iterator[Collaboration]:
    it = Collaboration(tmp_path)
    yield it
    it.close()


def crossed(city: Collaboration, *which: str, trust: Trust | None = None) -> Crossed:
    bundles = [city[short].bundle() for short in which or ("police", "health", "housing", "bureau")]
    return cross([gather(bundle, trust or city.trust) for bundle in bundles])


def found(result: Crossed) -> set[tuple[str, str, str]]:
    """What fails: question, code, bundle."""
    return {
        (name, finding.code, finding.where.partition(":")[0])
        for name, check in result.checks.items()
        for finding in check.findings
    }


def noticed(result: Crossed) -> set[tuple[str, str]]:
    return {(notice.code, notice.where) for notice in result.notices}


@pytest.mark.parametrize("by_roots", [False, True])
def test_honest_logs_agree_on_everything(city, by_roots):
    city.sign_roster()
    city.whole()
    result = crossed(city, trust=Trust(roots=ROOTS) if by_roots else None)
    assert result.ok
    assert {check.answer for check in result.checks.values()} == {Answer.HOLDS}
    assert not result.notices
    assert result.document()["ok"]
    assert result.checks["receipts"].evidence == [
        "police: entry 4, health: entry 4",
        "police: entry 4, housing: entry 4",
        "police: entry 4, bureau: entry 3",
    ]


# -- attempts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", ["health", "bureau"])
def test_an_attempt_that_a_log_leaves_out_is_one_sided_once_that_log_goes_on(city, silent):
    city.bureau.record("roster.published", {"version": 1, "sha256": sha256_digest(b"")})
    city.start(without=[silent])
    result = crossed(city)
    assert result.ok
    assert noticed(result) == {("under-way", silent)}
    city.clock.wait(minutes=6)
    city[silent].refuse()
    assert found(crossed(city)) == {("admissions", "one-sided", silent)}


def test_an_accepted_attempt_may_take_an_hour_to_be_admitted_or_ended(city):
    spec = city.start(without=["health"])
    accepted = {"admission_sha256": sha256_digest(b""), "envelope_sha256": sha256_digest(b"")}
    city["health"].record(
        "job.accepted", accepted | {"decided": "2026-12-01T00:00:00.000Z"}, job=spec.job_id, attempt=1
    )
    city.clock.wait(minutes=59)
    city["health"].refuse()
    result = crossed(city, "police", "health")
    assert result.ok
    assert noticed(result) == {("under-way", "health")}
    city.clock.wait(minutes=2)
    city["health"].refuse()
    assert found(crossed(city, "police", "health")) == {("admissions", "one-sided", "health")}
    city["health"].record("job.failed", {"code": "no-quorum"}, job=spec.job_id, attempt=1)
    result = crossed(city, "police", "health")
    assert result.ok
    assert not result.notices


def test_two_participants_with_different_admissions_of_one_attempt_are_found_out(city):
    """The bureau showed them different sets, and their guards against that had gone."""
    spec = city.start(without=["health"])
    body = {
        "admission_sha256": sha256_digest(b""),
        "envelope_sha256": sha256_digest(b""),
        "ctx": sha256_digest(b"others"),
    }
    city["health"].record("job.admitted", body, job=spec.job_id, attempt=1, refs=[sha256_digest(b"others")])
    assert found(crossed(city)) == {
        ("admissions", "another-admission", "police"),
        ("admissions", "another-admission", "housing"),
        ("admissions", "another-admission", "health"),
    }


def test_a_participant_whose_bundle_is_not_given_is_asked_for(city):
    city.whole()
    result = crossed(city, "police", "health")
    assert result.ok
    assert "the bundle of housing.gz.example/node-a" in result.checks["admissions"].missing
    assert result.checks["admissions"].answer is Answer.NOT_CHECKABLE


def test_a_job_whose_text_is_gone_cannot_be_crossed_and_is_said_to_be(city):
    city.whole()
    for path in city.home.glob("*/objects/sha256/*/*"):
        path.unlink()
    result = crossed(city)
    assert result.checks["receipts"].answer is Answer.NOT_CHECKABLE
    assert any("signed text of job" in missing for missing in result.checks["admissions"].missing)


# -- releases ----------------------------------------------------------------------------------------------


def test_a_missing_receipt_is_a_notice_with_its_age_until_both_logs_have_long_gone_on(city):
    spec = city.start()
    seq = city.release(spec)
    city.receipt(spec, seq, "police", ["housing", "bureau"])
    city.clock.wait(seconds=30)
    city["health"].refuse()
    result = crossed(city)
    assert result.ok
    assert noticed(result) == {("under-way", "health")}
    assert result.notices[0].what.endswith("yet, 30 s after it became final")
    # The police go down, the others go on: nobody could have handed the receipt over.
    city.clock.wait(hours=3)
    city["health"].refuse()
    assert crossed(city).ok
    # The police are back. Their receipt may just be on its way.
    city["police"].refuse()
    city.clock.wait(minutes=1)
    city["health"].refuse()
    assert crossed(city).ok
    city.clock.wait(hours=1)
    city["health"].refuse()
    assert found(crossed(city)) == {("receipts", "one-sided", "health")}


def test_the_bureau_owes_a_receipt_too(city):
    spec = city.start()
    city.receipt(spec, city.release(spec), "police", ["housing", "health"])
    city.clock.wait(hours=2)
    city["police"].refuse()
    city.clock.wait(hours=2)
    city["bureau"].refuse()
    assert found(crossed(city)) == {("receipts", "one-sided", "bureau")}


@pytest.mark.parametrize(
    "claimed",
    [
        {"release": "f" * 32},
        {"sha256": sha256_digest(b"another release")},
        {"seq": 2},
    ],
)
def test_a_receipt_of_what_does_not_stand_in_the_other_log_shows_a_rewritten_history(city, claimed):
    spec = city.start()
    seq = city.release(spec)
    city.receipt(spec, seq, "police", ["health"], **claimed)
    assert ("claims", "rewritten", "police") in found(crossed(city, "police", "health"))


def test_a_receipt_beyond_the_end_of_a_log_means_an_older_bundle_or_a_cut_one(city):
    spec = city.start()
    seq = city.release(spec)
    city.receipt(spec, seq + 5, "police", ["health"])
    result = crossed(city, "police", "health")
    assert result.ok
    assert ("older-bundle", "police") in noticed(result)
    city.clock.wait(minutes=6)
    city["police"].refuse()
    assert ("claims", "rewritten", "police") in found(crossed(city, "police", "health"))


def test_what_the_bureau_passed_on_and_took_in_stands_in_the_nodes_logs(city):
    spec = city.start()
    for kind, other in (("admission", {}), ("release", {"release": "0" * 32})):
        city["bureau"].record(
            "peer.receipt",
            {
                "peer": city["health"].name,
                "sha256": sha256_digest(b"no"),
                "envelope_sha256": sha256_digest(b"no"),
                "kind": kind,
                **other,
            },
            job=spec.job_id,
            attempt=1,
        )  # fmt: skip
    city.clock.wait(minutes=6)
    city["health"].refuse()
    assert found(crossed(city, "health", "bureau")) == {
        ("claims", "another-admission", "health"),
        ("claims", "one-sided", "health"),
    }


# -- one history -------------------------------------------------------------------------------------------


def test_a_fork_is_shown_by_whoever_witnessed_the_other_branch(city):
    city.whole()
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse()
    city.witnessed("police", by=["health"])
    twin.refuse(2)
    result = crossed(city, "forked police", "health")
    assert {("views", "split-view", "police")} <= found(result)
    (what,) = {f.what for f in result.checks["views"].findings}
    roots = [city[short].journal.root_at(6) for short in ("police", "forked police")]
    assert all(b64encode(root) in what for root in roots)
    assert what.startswith("two histories of police.gz.example/node-a/journal/1 at 6 entries")


def test_two_witnesses_of_different_branches_show_a_fork_without_the_log_itself(city):
    city.whole()
    twin = city.forked("police")
    city["police"].refuse()
    twin.refuse()
    city.witnessed("police", by=["health"])
    city.departments["police"] = twin
    city.witnessed("police", by=["housing"])
    assert ("views", "split-view", "health") in found(crossed(city, "health", "housing"))


def test_an_honest_older_bundle_is_a_notice_and_one_cut_after_it_was_seen_is_not(city, tmp_path):
    city.whole()
    older = tmp_path / "older" / "police"
    shutil.copytree(city["police"].directory, older)
    city["police"].refuse()
    city.witnessed()
    sides = [gather(open_bundle(older), city.trust), gather(city["health"].bundle(), city.trust)]
    result = cross(sides)
    assert result.ok
    assert ("older-bundle", "police") in noticed(result)
    # The folder is put back to an older state, all but what was witnessed here since.
    city.clock.wait(minutes=6)
    city["health"].refuse()
    city.witnessed("health")
    shutil.rmtree(older / "witnessed")
    shutil.copytree(city["police"].directory / "witnessed", older / "witnessed")
    sides = [gather(open_bundle(older), city.trust), gather(city["health"].bundle(), city.trust)]
    # By the word of one witness it may as well be that witness who lies.
    result = cross(sides)
    assert result.ok
    assert ("older-bundle", "police") in noticed(result)
    sides.append(gather(city["housing"].bundle(), city.trust))
    assert found(cross(sides)) == {("views", "shortened", "police")}


def test_a_checkpoint_that_nobody_known_signed_accuses_nobody(city):
    """Whoever makes one up in their own bundle only makes a fool of themselves."""
    city.whole()
    (path,) = (
        path
        for path in city["health"].directory.glob("witnessed/*")
        if path.read_text().startswith("police.")
    )
    text = path.read_text().split("\n")
    path.write_text("\n".join([text[0], text[1], "A" * 43 + "=", "", "— nobody AAAAAAAA", ""]))
    result = crossed(city, "police", "health")
    assert result.ok


def test_a_witness_cannot_make_up_a_checkpoint_of_another_log(city):
    """It cosigned what the police never signed."""
    city.whole()
    (path,) = (
        path
        for path in city["health"].directory.glob("witnessed/*")
        if path.read_text().startswith("police.")
    )
    text = Note.decode(path.read_bytes()).text.split(b"\n")
    made_up = b"\n".join([*text[:2], b"A" * 43 + b"=", b""])
    lines = city["health"].witness.sign(made_up, int(city.clock.at.timestamp()))
    path.write_bytes(Note(made_up, tuple(lines)).encode())
    result = crossed(city)
    assert not any(name == "views" for name, _, _ in found(result))
    assert ("not-signed", "health") in noticed(result)


def conflict(city: Collaboration, notes: list[bytes], code: str) -> None:
    digests = [city["health"].journal.put_object(note) for note in notes]
    names = dict(zip(("checkpoint_sha256", "conflicting_sha256"), digests, strict=True))
    body = {"log": city["police"].journal.origin, "code": code, **names}
    city["health"].record("witness.conflict", body)


def test_a_proof_that_was_spoiled_accuses_nobody_once_the_log_itself_is_there(city):
    first = city["police"].journal.checkpoint()
    city["police"].refuse()
    conflict(city, [first, city["police"].journal.checkpoint()], "no-consistency-proof")
    result = crossed(city)
    assert result.ok
    assert not result.notices
    result = crossed(city, "health", "housing")
    assert result.ok
    assert noticed(result) == {("unproven-conflict", "health")}


def test_two_histories_that_a_witness_was_shown_are_a_split_once_the_log_itself_is_there(city):
    city["police"].refuse()
    twin = city.forked("police")
    city["police"].refuse(2)
    twin.refuse(5)
    notes = [city["police"].journal.checkpoint(), twin.journal.checkpoint()]
    conflict(city, notes, "no-consistency-proof")
    city.departments["police"] = twin
    result = crossed(city)
    assert ("views", "split-view", "police") in found(result)
    assert {label for label, _ in result.blamed} == {"police"}


def test_whoever_takes_a_cost_back_although_another_has_the_result_is_found_out(city):
    spec = city.start()
    seq = city.release(spec)
    body = {"code": "timed-out", "opened": False, "freed": True}
    ended = city["health"].record("job.failed", body, job=spec.job_id, attempt=1)
    result = crossed(city)
    assert found(result) == {("admissions", "freed-but-answered", "health")}
    (finding,) = result.checks["admissions"].findings
    assert finding.where == f"health: entry {ended}"
    assert f"police has its result at entry {seq}" in finding.what


FREED = {"code": "guard-few-joined", "opened": True, "freed": True}


@pytest.mark.parametrize("committed", [False, True])
def test_a_job_that_a_guard_ends_after_some_were_done_is_a_lie_with_a_result_alone(city, committed):
    """Whoever brings a list to a joined job is done once it is sent; the guard on the joined comes later."""
    spec = city.start()
    city["housing"].record("job.done", {}, job=spec.job_id, attempt=1)
    if committed:
        city.release(spec)
    city["health"].record("job.aborted", FREED, job=spec.job_id, attempt=1)
    wrong = {("admissions", "freed-but-answered", "health")}
    assert found(crossed(city)) == (wrong if committed else set())


@pytest.fixture
def session(city: Collaboration) -> JobSpec:
    """A session in which police asks and health answers."""
    spec = city.spec()
    roles = {Role("owner"): NodeName(city["health"].name), Role("clerk"): NodeName(city["police"].name)}
    spec = replace(spec, roles=roles, inputs=(replace(spec.inputs[1], role=Role("owner")),))
    city.spec = lambda _number: spec  # type: ignore[method-assign]  # what `start` starts
    return city.start(without=["housing"])


def looked_up(city, spec, answered, asked):
    """Health answers so many look-ups a request; police has these in its log."""
    for name, kind, requests in (("health", "lookup.answered", answered), ("police", "lookup.asked", asked)):
        for count in requests:
            city[name].record(kind, {"lookups": count}, job=spec.job_id, attempt=1)


def about_lookups(result: Crossed) -> set[tuple[str, str, str]]:
    return {each for each in found(result) if each[1] == "lookups-left-out"}


LEFT_OUT = {("claims", "lookups-left-out", "police")}


@pytest.mark.parametrize(
    ("asked", "code", "wrong"),
    [
        ([3, 4, 5], "", set()),
        ([3, 4, 4], "", LEFT_OUT),
        ([3, 4, 5, 9], "", set()),
        ([], "", LEFT_OUT),
        ([5], "bad-row", set()),
        ([5], "rate-exceeded", LEFT_OUT),
    ],
)
def test_whoever_asked_has_as_many_look_ups_as_were_answered(city, session, asked, code, wrong):
    looked_up(city, session, [3, 4, 5], asked)
    if code:
        city["police"].record("lookup.refused", {"lookups": 7, "code": code}, job=session.job_id, attempt=1)
    city["police"].record("job.done", {}, job=session.job_id, attempt=1)
    assert about_lookups(crossed(city, "police", "health")) == wrong


@pytest.mark.parametrize(("asked", "wrong"), [([1, 1], set()), ([1], LEFT_OUT)])
def test_answers_that_were_on_their_way_when_a_session_broke_off_accuse_nobody(city, session, asked, wrong):
    looked_up(city, session, [1, 1, 9, 9, 9, 9], asked)
    city["police"].record("job.failed", {"code": "peer-lost", "opened": False}, job=session.job_id, attempt=1)
    assert about_lookups(crossed(city, "police", "health")) == wrong


@pytest.mark.parametrize("asked", [[], [3]])
def test_whoever_takes_back_a_session_that_was_used_is_found_out(city, session, asked):
    looked_up(city, session, asked, asked)
    city["police"].record("job.done", {}, job=session.job_id, attempt=1)
    city["health"].record("job.aborted", FREED, job=session.job_id, attempt=1)
    wrong = {("admissions", "freed-but-answered", "health")}
    assert found(crossed(city, "police", "health")) == (wrong if asked else set())


def test_a_session_that_goes_on_is_judged_by_what_is_an_hour_old(city, session):
    looked_up(city, session, [1] * 6, [])
    assert not about_lookups(crossed(city, "police", "health"))
    city.clock.wait(minutes=61)
    city["police"].refuse()
    assert about_lookups(crossed(city, "police", "health")) == LEFT_OUT


def test_without_the_log_of_whoever_asked_look_ups_cannot_be_compared(city, session):
    looked_up(city, session, [3], [])
    result = crossed(city, "health", "housing")
    assert not about_lookups(result)
    assert any("police" in each for each in result.checks["claims"].missing)


@pytest.mark.parametrize("kind", ["job.refused", "peer.receipt"])
def test_a_refusal_that_the_coordinator_knows_and_the_node_left_out_is_found_out(city, kind):
    peer, job = city["police"].name, "sha256:" + "cd" * 32
    body = {"peer": peer, "code": "no-rule"}
    if kind == "peer.receipt":
        body |= {"kind": "verdict", "sha256": sha256_digest(b"")}
    city.bureau.record("job.submitted", {"requester": "an", "job_type": "crosscheck/1"}, job=job)
    city.bureau.record(kind, body, job=job, attempt=1)
    result = crossed(city)
    assert result.ok
    assert noticed(result) == {("older-bundle", "police")}
    city.clock.wait(minutes=61)
    city["police"].refuse()
    assert found(crossed(city)) == {("claims", "refusal-left-out", "police")}
    city["police"].record("job.refused", {"code": "no-rule"}, job=job, attempt=1)
    result = crossed(city)
    assert result.ok
    assert not result.notices


def test_a_refusal_for_another_reason_than_the_coordinator_was_told_is_found_out(city):
    job = "sha256:" + "cd" * 32
    city.bureau.record("job.submitted", {"requester": "an", "job_type": "crosscheck/1"}, job=job)
    city["police"].record("job.refused", {"code": "rate-exceeded"}, job=job, attempt=1)
    city.bureau.record("job.refused", {"code": "no-rule", "peer": city["police"].name}, job=job, attempt=1)
    city.clock.wait(minutes=61)
    city["police"].refuse()
    assert found(crossed(city)) == {("claims", "refusal-left-out", "police")}


def test_an_attempt_that_one_log_dates_hours_apart_from_the_others_is_found_out(city):
    spec = city.start(without=["health"])
    body = {
        "admission_sha256": sha256_digest(b"payload of " + b"admission 0 of health.gz.example/node-a"),
        "envelope_sha256": sha256_digest(b""),
        "ctx": sha256_digest(b"".join(f"admission 0 of {node.name}".encode() for node in city.nodes)),
    }
    refs = sorted(sha256_digest(f"admission 0 of {node.name}".encode()) for node in city.nodes)
    city.clock.wait(hours=2)
    city["health"].record("job.admitted", body, job=spec.job_id, attempt=1, refs=refs)
    assert found(crossed(city, "police", "health", "housing")) == {("clocks", "clocks-apart", "health")}


def test_a_bundle_that_breaks_its_reading_does_not_keep_the_others_from_being_compared(city, monkeypatch):
    city.whole()
    read = Side.visit

    def broken(side: Side, entry: Entry) -> None:
        if side.label == "housing":
            raise OverflowError
        read(side, entry)

    monkeypatch.setattr(Side, "visit", broken)
    result = crossed(city)
    assert not result.ok
    assert [log["ok"] for log in result.document()["logs"]] == [True, True, False, True]
    assert result.checks["receipts"].looked_at


def test_two_texts_of_one_roster_version_are_found_out(city):
    roster = city.roster()
    city.sign_roster(roster)
    result = crossed(city, "police", "health", trust=Trust(roots=ROOTS))
    assert result.ok
    other = gather(city["health"].bundle(), Trust(roots=ROOTS))
    other.trust = replace(other.trust, rosters=(replace(roster, suite=2),))
    result = cross([gather(city["police"].bundle(), Trust(roots=ROOTS)), other])
    assert ("views", "roster-forked", "health") in found(result)


def test_a_receipt_minutes_before_what_it_is_about_shows_clocks_apart(city):
    spec = city.start()
    city.clock.wait(minutes=10)
    seq = city.release(spec)
    city.clock.wait(minutes=-9)
    city.receipt(spec, seq, "police", ["health"])
    assert ("clocks", "clocks-apart", "health") in found(crossed(city, "police", "health"))


def test_a_log_that_does_not_hold_together_does_not_agree_with_anything(city):
    city.whole()
    path = city["health"].directory / "tile/entries/000.p/4"
    path.write_bytes(path.read_bytes().replace(b"crosscheck/1", b"crosscheck/2"))
    result = crossed(city)
    assert not result.ok
    assert [log["ok"] for log in result.document()["logs"]] == [True, False, True, True]


def test_one_log_is_no_comparison_and_bundles_of_one_name_are_told_apart(city, tmp_path):
    city.whole()
    with pytest.raises(InputError) as caught:
        crossed(city, "police")
    assert caught.value.code == "too-few"
    places = [tmp_path / "a" / "journal", tmp_path / "b" / "journal"]
    for place, short in zip(places, ("police", "health"), strict=True):
        shutil.copytree(city[short].directory, place)
    bundles = open_bundles(places)
    assert [bundle.label for bundle in bundles] == [str(place) for place in places]
    with pytest.raises(InputError) as caught:
        open_bundles([places[0], places[0]])
    assert caught.value.code == "same-bundle"
