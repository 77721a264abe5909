"""A new journal after one that cannot be continued: `minshu-node journal successor`.

A node that was restored from a backup has a journal shorter than what others saw of it, and a ledger that has
forgotten what was spent since. It may go on, but not as if nothing had happened:

(1) Nobody runs the node. What it goes by is as it was activated; what a crash left open in the journal before
    is finished, as far as that can be read.
(2) The new journal begins, with the number after the old one's, and names the newest checkpoint of that; the
    old folder stays beside it (`audit.generations`).
(3) In one transaction the new journal states again what holds here: who signs policies, the chain of rosters,
    the policy, the stops. What was under way counts as answered. A stop of everything, signed by the node
    itself, comes into force.
(4) The node gets other keys to cosign with: it has forgotten what it cosigned after the backup, and must not
    say something else under the same key.
(5) Only now the home names the new journal. Before that no node runs in it: the journal that the home names
    is not the one in the database, and without the stop of (3) none goes on in the new one. Whatever was cut
    short, the same command finishes.

Then the roster has to list the new keys, and a policy that both officers signed has to lift the
stop: whoever signs it accepts that what was spent after the backup is unknown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from audit.folder import Folder
from audit.generations import succeed
from audit.log import Journal
from audit.note import Checkpoint, Note
from audit.statements import policy_ref
from node.activation import InForce, freshness_facts, policy_facts, roster_facts
from node.home import Enrolled, Home, write_durably
from node.journal import open_journal
from node.ledger import RowState
from node.rpc import Attempt
from node.state import RunState, State, open_state, read_state
from node.stops import HISTORY_GAP, begins, for_a_gap, gap_stop, held, in_force, log_applied
from policies.parse import parse_stop
from protocols import succession
from protocols.envelope import decode_envelope, key_id
from protocols.errors import DecodeError, InputError, StateConflict
from protocols.ids import Digest
from protocols.succession import Trusted

if TYPE_CHECKING:
    from node.state import Change

CARRIED_OVER: Final = "carried-over"
"""Why a new journal states what an earlier one states already."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A journal that follows another.

    Attributes:
        generation: its number.
        vkey: its verifier key, which a new roster has to list.
        before: the newest known checkpoint of the journal before.
        here: how many of its entries this copy of the node has, None where its folder does not say.
        archive: where that folder lies now.
        stop: digest of the stop that holds until a policy lifts it.
    """

    generation: int
    vkey: str
    before: Checkpoint
    here: int | None
    archive: Path
    stop: Digest


def begin(home: Home, reason: str, now: Callable[[], datetime], *, known: bytes | None = None) -> Begun:
    """Begin the next journal of the node in a home, or finish what an earlier call began.

    Args:
        home: the node's folder; no process may run it.
        reason: a kebab-case code, such as `restored-backup`.
        now: the clock.
        known: a checkpoint of the journal before that somebody else kept, signed by its key; it may be newer
            than what the folder holds.

    Raises:
        StateConflict: `journal-locked`: the node runs. A stored document is not what was activated. See
            `audit.generations.succeed`, too.
        InputError, DecodeError, SignatureInvalid: `reason` is no code, `known` no checkpoint of this journal,
            or the home is damaged.
    """
    # (1)
    with read_state(home.database):
        pass  # without one there is nothing to follow, and none is made
    _finish(home, now)
    enrolled = home.enrolled()
    with read_state(home.database) as reader:
        force = InForce.load(reader, home.name, home.signer.public_key)
        if reader.rosters():
            force.chain(reader, _required(enrolled))
        in_force(reader, force.identity_key)
    # (2)
    generation = home.generation + 1
    origin = f"{home.name}/journal/{generation}"
    signer = home.signer
    made = succeed(
        home.journal,
        home.database,
        origin_before=home.origin,
        origin_after=origin,
        signer=signer.sign,
        public_key=signer.public_key,
        now=now,
        reason=reason,
        known_checkpoint=known,
    )
    journal = Journal.open(
        home.journal,
        database=home.database,
        origin=origin,
        signer=signer.sign,
        public_key=signer.public_key,
        now=now,
    )
    try:
        state = open_state(journal, home.database)
    except BaseException:
        journal.close()
        raise
    try:
        # (3)
        if not _stopped(state, signer.public_key):
            _carry_over(state, force, home, enrolled, now)
        stop = next(one.digest for one in reversed(state.stops()) if one.lifted is None)
        vkey = journal.vkey
    finally:
        state.close()
    # (4)
    home.retire_cosigner(home.generation)
    # (5)
    try:
        write_durably(home.generation_file, b"%d\n" % generation)
    except OSError as error:
        raise InputError(
            f"{home.generation_file.name} cannot be written ({error.strerror})",
            code="home-unwritable",
            hint="check the disk, then run the same command again: it finishes what it began",
        ) from None
    return Begun(generation, vkey, made.before, _size_in(made.archive), made.archive, stop)


def require_begun(state: State, identity_key: bytes) -> None:
    """Refuse a journal that follows another and was begun without its stop.

    Args:
        state: of the node.
        identity_key: the node's, raw Ed25519.

    Raises:
        StateConflict: `successor-unfinished`; `stop-changed`: a stored stop is not what was applied.
    """
    origin = state.journal.origin
    if origin.endswith("/journal/1") or _stopped(state, identity_key):
        return
    before = int(origin.rpartition("/")[2]) - 1
    raise StateConflict(
        f"{origin} was begun, but the stop that has to stand at its beginning was never stored",
        code="successor-unfinished",
        hint=f"write {before} into journal.generation, or remove that file where this is 1, and run "
        "minshu-node journal successor --reason CODE again: it finishes what it began",
    )


def _stopped(state: State, identity_key: bytes) -> bool:
    """Tell whether the stop that a journal begins with was stored, lifted since or not."""
    return any(
        begins(decode_envelope(one.envelope).payload) == state.journal.origin
        and for_a_gap(held(one, state, identity_key)[0])
        for one in state.stops()
    )


def _finish(home: Home, now: Callable[[], datetime]) -> None:
    """Publish what was committed, and go over to a key that signs already, as a start of the node would."""
    try:
        open_journal(home, now).close()
    except StateConflict as error:
        # Put back, damaged, or followed by the next one already: that is why somebody asks for that.
        if error.code == "journal-locked":
            raise StateConflict(
                "the node runs, or another command has its journal open",
                code=error.code,
                hint="stop the node first: a journal that is written to cannot be followed by another",
            ) from None


def _required(enrolled: Enrolled | None) -> Enrolled:
    if enrolled is None:
        raise StateConflict(
            "this node holds rosters, but not the root keys that it pinned at enrolment",
            code="roster-changed",
            hint="restore enrolment.json, too; without it, make a new node and enrol it",
        )
    return enrolled


def _carry_over(
    state: State, force: InForce, home: Home, enrolled: Enrolled | None, now: Callable[[], datetime]
) -> None:
    """State again what holds, and stop everything: one transaction."""
    stops = [one for one in state.stops() if one.lifted is None]
    officers = {key_id(key) for keys in state.pins().values() for key in keys}
    gap = gap_stop(home.name, state.journal.origin, home.signer, now().replace(microsecond=0))
    facts, objects = _said_again(state, force, enrolled, now())
    for envelope in (*(decode_envelope(one.envelope) for one in stops), gap):
        objects += [envelope.encode(), envelope.payload]
    for data in objects:
        state.journal.put_object(data)
    with state.change() as change:
        for kind, body in facts:
            change.log(kind, body)
        for one in stops:
            halts, signers = held(one, state, force.identity_key)
            # What officers stopped is stated again; a gap that nobody lifted stays one.
            code = CARRIED_OVER if officers.issuperset(signers) else HISTORY_GAP
            log_applied(change, halts, one.envelope, signers, code)
        change.add_stop(gap.payload_digest, gap.encode())
        halts = parse_stop(gap.payload).stops
        log_applied(change, halts, gap.encode(), [key_id(force.identity_key)], HISTORY_GAP)
        _end(state, force, change)
        # They name a tree of the journal before, so that no journal can be handed over by them any more.
        change.forget_rotations()


def _said_again(
    state: State, force: InForce, enrolled: Enrolled | None, now: datetime
) -> tuple[list[tuple[str, dict[str, Any]]], list[bytes]]:
    """Return the entries on what holds here, in the order in which it came to hold, and their objects."""
    pins = state.pins()
    again = {"code": CARRIED_OVER}
    facts: list[tuple[str, dict[str, Any]]] = []
    objects = [key for keys in pins.values() for key in keys]
    if pins:
        roles = [role for role, keys in pins.items() for _ in keys]
        facts.append(("signers.pinned", {"signers": [*map(key_id, objects)], "roles": roles, **again}))
    if force.roster is not None:
        before = Trusted(_required(enrolled).pinned)
        # All of them: whoever begins with the root keys follows no roster whose predecessors are missing.
        for envelope, after in succession.walk(before, [one.envelope for one in state.rosters()], now):
            assert after.roster is not None
            facts.append(("roster.activate", roster_facts(before, after.roster, envelope) | again))
            objects.append(envelope)
            before = after
        word = state.freshness(force.roster.version)
        if force.freshness is not None and word:
            facts.append(("roster.fresh", freshness_facts(force.roster, force.freshness, word)))
            objects.append(word)
    stored = state.policy()
    if force.policy is not None and stored is not None:
        facts.append(("policy.activate", policy_facts(force.policy, stored.envelope, pins) | again))
        objects += [stored.envelope, decode_envelope(stored.envelope).payload]
    return facts, objects


def _end(state: State, force: InForce, change: "Change") -> None:
    """Charge what was under way as if it had been answered: nobody knows that it was not."""
    policy = policy_ref(force.policy)
    for row in state.ledger().under_way():
        attempt = Attempt(row.past.job, row.past.attempt)
        if row.state is RowState.RESERVED:
            change.charge(attempt, row.past.cost, row.lines, policy, code=HISTORY_GAP)
        change.answering(attempt)
    for run in state.runs_in(RunState.ACCEPTED, RunState.RUNNING):
        change.move(
            run.attempt,
            RunState.FAILED,
            code=HISTORY_GAP,
            sentence="the node was restored from a backup, and does not know how the attempt went on",
            hint="submit the job again once the department has lifted its stop",
        )
        body = {"code": HISTORY_GAP, "opened": True, "freed": False}
        change.log("job.failed", body, attempt=run.attempt, policy=policy)


def _size_in(archive: Path) -> int | None:
    """Return how many entries the old folder's checkpoint covers, None where it does not say."""
    try:
        note = Folder(archive).read_checkpoint()
        return None if note is None else Checkpoint.decode(Note.decode(note).text).size
    except (DecodeError, OSError):
        return None
