"""A journal that cannot go on: a node put back from a backup begins a new one, and begins it stopped."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulator import World, approve_all, new_signer, over, running, until

from audit import generations
from audit.bundle import open_bundle
from audit.note import VerifierKey
from audit.review import review
from audit.trust import Trust
from audit.verify import verify_directory
from node import generation, rotation
from node.activation import InForce, activate_policy, activate_roster, take_freshness
from node.cli import main
from node.desk import desk_of
from node.gate import judge
from node.generation import CARRIED_OVER, Begun, begin
from node.home import Home
from node.ledger import Row, RowState
from node.logs import Log
from node.rpc import Attempt
from node.state import RunState, State
from node.stops import HISTORY_GAP, apply_stop, gap_stop, in_force
from policies.decision import Ask
from policies.history import Past
from policies.model import Stop
from policies.sign import sign_stop
from protocols.encoding import sha256_digest
from protocols.envelope import Envelope, KeySigner, decode_envelope, key_id
from protocols.errors import InputError, MinshuError, SignatureInvalid, StateConflict
from protocols.wire import Roster, Verdict

pytestmark = pytest.mark.alone  # whole nodes, 8 s together


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_back(home: Home, backup: Path) -> None:
    shutil.rmtree(home.path)
    shutil.copytree(backup, home.path)


class Node:
    """The health department's node, off."""

    def __init__(self, world: World) -> None:
        self.world, self.home = world, world.homes["health"]
        with self.opened() as (state, force):
            self.go_by(state, force)

    def opened(self) -> "Opened":
        return Opened(self)

    def go_by(self, state: State, force: InForce) -> None:
        enrolled = self.home.enrolled()
        assert enrolled is not None
        activate_roster(state, force, self.world.roster_envelope, enrolled, self.world.clock)
        take_freshness(state, force, self.world.fresh(), enrolled, self.world.clock)

    def begin(self, reason: str = "restored-backup", **how: Any) -> Begun:
        return begin(self.home, reason, self.world.clock, **how)

    def new_roster(self) -> None:
        """Have this node's present keys listed."""
        old = self.world.roster
        new = self.world.make_roster(old.version + 1, old.digest)
        self.world.roster_envelope = self.world.sign_roster(new)

    def activate(self, state: State, force: InForce, **changes: Any) -> None:
        newest = state.policy()
        assert newest is not None
        envelope = self.world.policy("health", version=newest.version + 1, previous=newest.digest, **changes)
        activate_policy(state, force, envelope, self.world.clock)

    def entries(self, kind: str = "") -> list[Any]:
        with self.opened() as (state, _):
            return [entry for entry in state.journal.entries() if entry.kind.startswith(kind)]


class Opened:
    """The node's state and what it goes by, as its one process has them."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __enter__(self) -> tuple[State, InForce]:
        home = self.node.home
        self.state = self.node.world.open("health")
        return self.state, InForce.load(self.state, home.name, home.signer.public_key)

    def __exit__(self, *_: object) -> None:
        self.state.close()


@pytest.fixture
def node(world: World) -> Node:
    return Node(world)


# -- the whole way -----------------------------------------------------------------------------------------


def test_a_node_that_was_put_back_works_again_only_after_a_new_roster_and_a_policy_that_lifts_its_stop(
    world: World, folder: Path
) -> None:
    world.activate("health", queries=1, quorum=2)
    home, backup = world.homes["health"], folder / "backup"

    async def spend() -> None:
        async with running(world) as (post, stations):
            # The backup was made once the node had answered nothing yet.
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {ended.state for ended in task.ended.values()} == {"DONE"}

    async def asked() -> tuple[Verdict, list[Any]]:
        async with running(world, witness_wait_s=1.0) as (post, stations):
            task, station = post.tasks[post.submit(world.spec())], stations["health"]
            await until(lambda: "health" in task.verdicts or station.task.done())
            if station.task.done():
                raise station.task.exception() or AssertionError
            return task.verdicts["health"], station.entries("stop")

    async def spend_again() -> int:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {ended.state for ended in task.ended.values()} == {"DONE"}
            station = stations["health"]
            await until(lambda: station.agent.cosigning.covered == station.state.journal.size)
            return station.state.journal.cosigned_size

    shutil.copytree(home.path, backup)
    asyncio.run(spend())
    put_back(home, backup)
    before = contents(home.journal)
    with pytest.raises(StateConflict) as caught:
        asyncio.run(asked())
    assert caught.value.code == "journal-rolled-back"
    assert "journal successor" in caught.value.hint
    put_back(home, backup)

    begun = begin(home, "restored-backup", world.clock)
    assert contents(begun.archive) == before
    # The roster has another key for its journal: nobody would cosign it.
    verdict, _ = asyncio.run(asked())
    assert (verdict.answer, verdict.code) == ("refuse", "roster-keys-differ")
    new = world.make_roster(2, world.roster.digest)
    world.roster_envelope = world.sign_roster(new)
    # It is known again, and still nothing of it can be spent.
    verdict, stops = asyncio.run(asked())
    assert (verdict.answer, verdict.code) == ("refuse", "stopped")
    assert HISTORY_GAP in verdict.sentence
    assert [entry.kind for entry in stops] == ["stop.applied"]
    world.activate("health", queries=1, quorum=2, lifted=[begun.stop])
    covered = asyncio.run(spend_again())
    assert covered > 6
    assert contents(begun.archive) == before
    # Whoever brings the root keys and knows the officers takes every decision again, and finds nothing.
    staff, enrolled = world.staff["health"], home.enrolled()
    assert enrolled is not None
    officers = frozenset(key_id(key.public_key) for key in (staff.dpo, staff.owner))
    found = review(open_bundle(home.journal), Trust(roots=enrolled.pinned, officers=officers))
    assert found.ok


# -- what the new journal says -----------------------------------------------------------------------------


def test_the_new_journal_names_the_old_one_and_states_again_what_holds(node: Node) -> None:
    with node.opened() as (state, force):
        stop = node.world.stop("health", "purpose=P-1")
        apply_stop(state, force, stop, node.world.clock)
        lifted = node.world.stop("health", "all")
        apply_stop(state, force, lifted, node.world.clock)
        node.activate(state, force, lifted=[decode_envelope(lifted).payload_digest])
        said = {entry.kind: entry.body for entry in state.journal.entries()}
        size = state.journal.size
    begun = node.begin()
    assert (begun.generation, begun.before.size, begun.here) == (2, size, size)
    entries = node.entries()
    kinds = [entry.kind for entry in entries]
    assert kinds == [
        "log.open",
        "log.successor",
        "signers.pinned",
        "roster.activate",
        "roster.fresh",
        "policy.activate",
        "stop.applied",
        "stop.applied",
    ]
    opened, successor, pinned, roster, fresh, policy, theirs, own = (entry.body for entry in entries)
    assert {entry.log for entry in entries} == {f"{node.home.name}/journal/2"}
    assert opened["previous_vkey"].startswith(f"{node.home.name}/journal/1+")
    assert VerifierKey.parse(opened["vkey"]).name == f"{node.home.name}/journal/2"
    assert (successor["log"], successor["size"]) == (f"{node.home.name}/journal/1", size)
    assert successor["code"] == "restored-backup"
    again = {"code": CARRIED_OVER}
    assert pinned == said["signers.pinned"] | again
    assert roster == said["roster.activate"] | again
    assert fresh == said["roster.fresh"]
    assert policy == said["policy.activate"] | again
    assert theirs["sha256"] == decode_envelope(stop).payload_digest
    assert (theirs["scope"], theirs["subject"], theirs["code"]) == ("purpose", "P-1", CARRIED_OVER)
    assert theirs["signers"] == [key_id(node.world.staff["health"].dpo.public_key)]
    assert (own["scope"], own["code"], own["sha256"]) == ("all", HISTORY_GAP, begun.stop)
    assert own["signers"] == [key_id(node.home.signer.public_key)] == [entries[-1].actor]
    # All that the entries name stands beside them.
    with node.opened() as (state, force):
        named = [successor["checkpoint_sha256"], *pinned["signers"], policy["sha256"], own["sha256"]]
        named += [body["envelope_sha256"] for body in (roster, policy, theirs, own)]
        assert all(state.journal.get_object(digest) is not None for digest in named)
        assert [stop.scope for stop in force.policy.stops] == ["purpose", "all"]
    verdict = verify_directory(node.home.journal, [VerifierKey.parse(begun.vkey)])
    assert verdict.problems == ()


def test_every_roster_of_the_chain_is_stated_again_so_that_it_can_be_followed_from_the_root_keys(
    node: Node,
) -> None:
    for _ in range(2):
        node.new_roster()
        with node.opened() as (state, force):
            node.go_by(state, force)
    node.begin()
    rosters = node.entries("roster.activate")
    assert [entry.body["version"] for entry in rosters] == [1, 2, 3]
    with node.opened() as (state, force):
        texts = [state.journal.get_object(entry.body["envelope_sha256"]) for entry in rosters]
        assert [Roster.decode(decode_envelope(text or b"").payload).version for text in texts] == [1, 2, 3]


def test_a_node_without_policy_and_roster_may_begin_anew_too(world: World, folder: Path) -> None:
    from node.home import init_home

    home = init_home(folder / "new", "tax.gz.example/node-a", 2)
    with pytest.raises(StateConflict) as caught:
        begin(home, "restored-backup", world.clock)
    assert caught.value.code == "no-state"
    world.homes["tax"] = home
    world.open("tax").close()
    begun = begin(home, "restored-backup", world.clock)
    state = world.open("tax")
    assert [entry.kind for entry in state.journal.entries()] == ["log.open", "log.successor", "stop.applied"]
    assert list(in_force(state, home.signer.public_key)) == [begun.stop]
    state.close()


def test_what_was_under_way_counts_as_answered(node: Node) -> None:
    """It may have been, after the backup: what was set aside is never free again."""
    with node.opened() as (state, force):
        log = Log(None, node.world.clock)
        desk = desk_of(state, force, node.home, signer=node.home.signer, now=node.world.clock, log=log)
        spec = node.world.spec()
        attempt = Attempt(spec.job_id, 1)
        desk.gate.offer(attempt, node.world.sign_job(spec))
        decision = judge(state, force, spec, attempt, node.world.clock())
        assert isinstance(decision, Ask)
        terms = decision.terms
        past = Past(
            job=spec.job_id, attempt=1, time=node.world.clock(), requester=spec.requester,
            purpose=spec.purpose, job_type=spec.job_type, source=terms.source, unit=terms.unit,
            cost=terms.cost, query=terms.query, charged=False, exact=False, rule=terms.rule,
        )  # fmt: skip
        with state.change() as change:
            change.reserve(Row(past, terms.lines), 0, None)
            change.move(attempt, RunState.ACCEPTED)
    node.begin()
    with node.opened() as (state, force):
        [row] = state.ledger().rows("people")
        assert (row.state, row.answering, row.past.cost) == (RowState.CHARGED, True, terms.cost)
        run = state.run(attempt)
        assert run is not None
        assert (run.state, run.code) == (RunState.FAILED, HISTORY_GAP)
    charged = node.entries("budget.charged")
    assert {entry.body["budget"] for entry in charged} == {line.budget for line in terms.lines}
    assert {entry.body["code"] for entry in charged} == {HISTORY_GAP}
    [failed] = node.entries("job.failed")
    assert failed.body == {"code": HISTORY_GAP, "opened": True, "freed": False}


# -- the stop that a node makes itself ---------------------------------------------------------------------


def gap(node: Node, signer: KeySigner) -> Envelope:
    return gap_stop(node.home.name, f"{node.home.name}/journal/2", signer, node.world.clock())


def test_nobody_brings_a_node_its_own_stop(node: Node) -> None:
    """It is applied where a journal begins, and nowhere else: at the desk officers' keys alone count."""
    with node.opened() as (state, force), pytest.raises(SignatureInvalid) as caught:
        apply_stop(state, force, gap(node, node.home.signer).encode(), node.world.clock)
    assert caught.value.code == "too-few-signatures"


@pytest.mark.parametrize("text", ['reason = "history-gap"\nscope = "all"', 'reason = "x"\nscope = "all"'])
def test_a_nodes_key_stops_nothing_but_everything_and_for_nothing_but_a_gap(node: Node, text: str) -> None:
    data = f'schema = "minshu-stop/1"\npolicy_id = "{node.home.name}"\nissued = 2026-11-22T08:00:00Z\n'
    signed = sign_stop(f"{data}[[stops]]\n{text}\n".encode(), node.home.signer)
    with node.opened() as (state, force):
        with state.change() as change:
            change.add_stop(signed.payload_digest, signed.encode())
        if HISTORY_GAP in text:
            assert list(in_force(state, force.identity_key).values()) == [
                (Stop(scope="all", reason=HISTORY_GAP),)
            ]
            return
        with pytest.raises(StateConflict) as caught:
            in_force(state, force.identity_key)
        assert caught.value.code == "stop-changed"


def test_a_gaps_stop_by_another_key_is_not_this_nodes(node: Node) -> None:
    forged = gap(node, new_signer())
    with node.opened() as (state, force):
        with state.change() as change:
            change.add_stop(forged.payload_digest, forged.encode())
        with pytest.raises(StateConflict) as caught:
            in_force(state, force.identity_key)
    assert caught.value.code == "stop-changed"


def test_an_officer_may_stop_everything_for_a_gap_too(node: Node) -> None:
    stop = gap(node, node.world.staff["health"].owner)
    with node.opened() as (state, force):
        apply_stop(state, force, stop.encode(), node.world.clock)
        assert list(in_force(state, force.identity_key)) == [stop.payload_digest]


def test_the_stop_outlasts_a_change_of_the_nodes_key(node: Node) -> None:
    begun = node.begin()
    node.new_roster()
    with node.opened() as (state, force):
        node.go_by(state, force)
        current = rotation.CurrentSigner(node.home.signer)
        announced = rotation.announce(state, force, node.home, current, node.world.clock)
        old = node.world.roster
        mine = old.node(node.home.name)
        assert mine is not None
        key = announced.rotation.next_key
        vkey = str(VerifierKey(f"{node.home.name}/journal/2", 1, key))
        line = replace(mine, identity_key=key, journal_vkey=vkey)
        nodes = tuple(line if one is mine else one for one in old.nodes)
        new = replace(old, version=old.version + 1, previous=old.digest, nodes=nodes)
        node.world.roster_envelope = node.world.sign_roster(new)
        node.go_by(state, force)
        assert rotation.go_over(state, force, node.home, current)
        assert force.identity_key == key
    with node.opened() as (state, force):
        assert force.identity_key == key
        assert list(in_force(state, key)) == [begun.stop]
        node.activate(state, force, lifted=[begun.stop])
        assert force.policy.stops == ()


def test_two_signatures_lift_it_and_the_journal_says_so(node: Node) -> None:
    begun = node.begin()
    with node.opened() as (state, force):
        node.activate(state, force)
        assert [stop.reason for stop in force.policy.stops] == [HISTORY_GAP]
        node.activate(state, force, lifted=[begun.stop])
        assert force.policy.stops == ()
    [lifted] = node.entries("stop.lifted")
    assert (lifted.body["sha256"], lifted.body["scope"]) == (begun.stop, "all")


def test_an_announced_change_of_key_is_announced_again(node: Node) -> None:
    """The statement names a tree of the old journal, by which the new one cannot be handed over."""
    with node.opened() as (state, force):
        before = rotation.announce(state, force, node.home, node.home.signer, node.world.clock)
    node.begin()
    node.new_roster()
    with node.opened() as (state, force):
        node.go_by(state, force)
        assert rotation.under_way(state, force.identity_key) is None
        after = rotation.announce(state, force, node.home, node.home.signer, node.world.clock)
    assert after.rotation.next_key == before.rotation.next_key
    assert after.rotation.journal_root != before.rotation.journal_root
    assert len(node.entries("key.announced")) == 1


# -- step by step ------------------------------------------------------------------------------------------


class Cut(Exception):
    """The process ends here."""


def cut(monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool) -> None:
    module = generation if hasattr(generation, name) else generations
    whole: Callable[..., Any] = getattr(module, name)

    def fails(*args: Any, **kwargs: Any) -> None:
        if after:
            whole(*args, **kwargs)
        raise Cut

    monkeypatch.setattr(module, name, fails)


@pytest.mark.parametrize(
    ("name", "after", "began"),
    [
        ("_finish", True, False),
        ("succeed", False, False),
        ("_names", False, True),  # the new tables are there, the old folder still in its place
        ("_flush", False, True),  # and now it is not
        ("succeed", True, True),
        ("open_state", False, True),
        ("_carry_over", False, True),
        ("_end", True, True),
        ("_carry_over", True, True),
        ("write_durably", False, True),
        ("write_durably", True, False),
        ("_size_in", False, False),
    ],
)
def test_what_was_cut_short_keeps_the_node_from_running_and_the_same_command_finishes_it(
    node: Node, monkeypatch: pytest.MonkeyPatch, name: str, after: bool, began: bool
) -> None:
    before = contents(node.home.journal)
    with monkeypatch.context() as patched:
        cut(patched, name, after=after)
        with pytest.raises(Cut):
            node.begin()
    whole = (name, after) in {("write_durably", True), ("_size_in", False)}
    if began:
        with pytest.raises(StateConflict) as caught:
            node.world.open("health")
        assert caught.value.code == "journal-identity"
    if not whole:
        node.begin("another-word")
    assert node.home.generation == 2
    assert contents(node.home.path / "journal.1") == before
    kinds = [entry.kind for entry in node.entries()]
    assert kinds.count("stop.applied") == kinds.count("policy.activate") == kinds.count("log.successor") == 1
    with node.opened() as (_, force):
        assert [stop.reason for stop in force.policy.stops] == [HISTORY_GAP]
    [successor] = node.entries("log.successor")
    assert successor.body["code"] == ("restored-backup" if began or whole else "another-word")


def test_a_running_nodes_journal_is_not_followed(node: Node) -> None:
    with node.opened():
        with pytest.raises(StateConflict) as caught:
            node.begin()
        assert caught.value.code == "journal-locked"
        assert "stop the node" in caught.value.hint
    assert node.home.generation == 1
    assert not (node.home.path / "journal.1").exists()


def test_a_node_may_be_put_back_more_than_once(node: Node) -> None:
    first = node.begin()
    with node.opened() as (state, force):
        node.activate(state, force, lifted=[first.stop])
    second = node.begin()
    assert (second.generation, second.before.origin) == (3, f"{node.home.name}/journal/2")
    assert [path.name for path in sorted(node.home.path.glob("journal.*"))] == [
        "journal.1",
        "journal.2",
        "journal.generation",
    ]
    with node.opened() as (state, force):
        assert list(in_force(state, force.identity_key)) == [second.stop]
    # The first gap, where nobody lifted it, stays a reason of its own.
    third = node.begin()
    with node.opened() as (state, force):
        assert list(in_force(state, force.identity_key)) == [second.stop, third.stop]


def test_a_newer_checkpoint_that_somebody_kept_is_named_and_shows_how_much_is_missing(
    node: Node, folder: Path
) -> None:
    backup = folder / "backup"
    shutil.copytree(node.home.path, backup)
    with node.opened() as (state, force):
        here = state.journal.size
        node.activate(state, force)
        newest = state.journal.checkpoint()
    put_back(node.home, backup)
    begun = node.begin(known=newest)
    assert (begun.here, begun.before.size) == (here, here + 1)
    [successor] = node.entries("log.successor")
    assert successor.body["checkpoint_sha256"] == sha256_digest(newest)


def test_what_is_no_checkpoint_of_this_journal_or_no_code_changes_nothing(node: Node, world: World) -> None:
    other = (world.homes["police"].journal / "checkpoint").read_bytes()
    before = contents(node.home.path)
    for how, code in (
        ({"known": other}, "no-known-signature"),
        ({"known": b"nothing"}, "malformed-note"),
        ({"reason": "Restored backup"}, "bad-reason"),
    ):
        with pytest.raises(MinshuError) as caught:
            node.begin(**how)
        assert caught.value.code == code
    assert contents(node.home.journal) == {
        name.removeprefix("journal/"): data for name, data in before.items() if name.startswith("journal/")
    }


def test_rosters_that_are_not_those_that_were_activated_are_not_carried_over(node: Node) -> None:
    node.home.enrolment.unlink()
    with pytest.raises(StateConflict) as caught:
        node.begin()
    assert caught.value.code == "roster-changed"
    assert node.home.generation == 1
    node.world.open("health").close()


def test_a_database_of_another_release_is_left_as_it_is(node: Node) -> None:
    with contextlib.closing(sqlite3.connect(node.home.database)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(StateConflict) as caught:
        node.begin()
    assert caught.value.code == "state-format"
    assert not (node.home.path / "journal.1").exists()


@pytest.mark.parametrize("text", ["", "0\n", "02\n", "two\n", "2", "2\n\n", "-2\n", "9999999999\n"])
def test_a_damaged_generation_is_said_and_never_guessed(node: Node, text: str) -> None:
    node.home.generation_file.write_text(text)
    with pytest.raises(InputError) as caught:
        _ = node.home.origin
    assert caught.value.code == "bad-home"


# -- the command -------------------------------------------------------------------------------------------


def successor(node: Node, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["journal", "successor", "--home", str(node.home.path), *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_says_what_it_will_do_and_does_it_only_when_told_to(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = successor(node, "--reason", "restored-backup", capsys=capsys)
    assert (code, out) == (1, "")
    assert "This cannot be undone" in err
    assert "此操作不可撤销" in err
    assert "add --yes" in err
    assert node.home.generation == 1
    code, out, err = successor(node, "--reason", "restored-backup", "--yes", capsys=capsys)
    assert (code, err) == (0, "")
    assert f"{node.home.name}/journal/2 begins, after {node.home.name}/journal/1" in out
    assert "lifted_stops" in out
    main(["status", "--home", str(node.home.path)])
    assert "by this node itself, for a gap in its history" in capsys.readouterr().out


def test_the_command_in_json_names_the_stop_and_the_key(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = node.home.path / "kept"
    kept.write_bytes((node.home.journal / "checkpoint").read_bytes())
    words = ("--reason", "restored-backup", "--checkpoint", str(kept), "--yes", "--json")
    code, out, _ = successor(node, *words, capsys=capsys)
    said = json.loads(out)
    assert code == 0
    assert said["generation"] == 2
    assert said["previous"]["size"] == said["previous"]["here"]
    with node.opened() as (state, force):
        assert (said["vkey"], [said["stop"]]) == (state.journal.vkey, [*in_force(state, force.identity_key)])
