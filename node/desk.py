"""The desk: what people in the department ask of their node, whether it is running or not.

Only one process may write the journal. A command therefore takes the journal itself when the node is off,
and leaves a note in the database for the running node when it is on. Either way the same function does it.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from node import lookups
from node.activation import InForce, activate_policy, pin_signers
from node.approvals import record_approval
from node.catalogue import check_key, check_room, log_registered
from node.catalogue_import import entries_from_json, import_entries
from node.cosigning import cosigned_size, requires_cosigned
from node.description import Description
from node.gate import Gate
from node.generation import require_begun
from node.home import Home
from node.journal import open_journal
from node.logs import Log
from node.outcomes import Outcomes
from node.quality import Quality, stored_preflight
from node.retention import check_kept
from node.rotation import Announced, announce
from node.rpc import Attempt
from node.sources import SourceColumn, place_from_json
from node.state import Dataset, RunState, State, StoredOutput, ask_desk, open_state, read_state
from node.stops import apply_stop, covering
from policies.index import source_of
from protocols.encoding import b64decode, b64encode
from protocols.envelope import Signer, decode_envelope, key_id
from protocols.errors import InputError, MinshuError, Refused, StateConflict, Unreachable
from protocols.ids import DatasetName, JobId
from protocols.wire import JobSpec

WAIT_S: Final = 30.0
POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Desk:
    """Carries out commands on an opened state.

    `home` is the node's folder. `answered` is told of every verdict that changed, `registered` that the
    catalogue did, `halted` that a stop may cover what is under way; `announce` makes and announces the next
    identity key, `outcomes` files what came of a list. `unwitnessed` tells why nothing may be given out now,
    given whether that takes witnesses.
    """

    home: Home
    state: State
    force: InForce
    gate: Gate
    now: Callable[[], datetime]
    answered: Callable[[Attempt, bytes], None]
    registered: Callable[[], None]
    announce: Callable[[], Announced]
    halted: Callable[[], None]
    outcomes: Outcomes
    unwitnessed: Callable[[bool], Refused | None]

    def handle(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a command asks; return its result.

        Raises:
            MinshuError: it was refused; where a decision was taken, it is journaled.
        """
        match kind:
            case "pin":
                pin_signers(self.state, b64decode(body["dpo"]), b64decode(body["owner"]))
                return {}
            case "policy":
                return self._policy(b64decode(body["envelope"]))
            case "stop":
                return self._stop(b64decode(body["envelope"]))
            case "approve":
                return self._approve(JobId(body["job"]), b64decode(body["envelope"]), b64decode(body["key"]))
            case "reject":
                attempt, verdict = self.gate.reject(JobId(body["job"]), body["reason"], "")
                self.answered(attempt, verdict)
                return {"job": attempt.job}
            case "dataset":
                self._register(body)
                if "preflight" in body:
                    self._keep_look(body["preflight"])
                self.registered()
                return {}
            case "quality":
                if self._keep_look(body):
                    self.registered()
                return {}
            case "catalogue":
                return self._catalogue(body)
            case "open":
                return self._open(body["release"])
            case "outcome":
                job, checked, confirmed = JobId(body["job"]), body["checked"], body["confirmed"]
                self._check_witnessed(*self.state.outputs(job))
                return self.outcomes.file(job, checked, confirmed, body["note"])
            case "rotate":
                return rotation_to_json(self.announce())
            case "lookup-rotate":
                return lookups.rotate(self.home, self.state, body["dataset"])
        raise InputError("the desk does not know this command", code="unknown-command")

    def _register(self, body: Mapping[str, Any]) -> None:
        dataset = dataset_from_json(body)
        asked = self._asking(dataset.name)
        keep = body["description"] is None
        if register(self.state, dataset, keep=keep, asked=asked):
            # Codes stand for other rows than those that people approved.
            self._reconsider_all()

    def _asking(self, name: str) -> list[JobId]:
        """Return the jobs with approvals to come into their own that ask of a dataset, or may."""
        asking = []
        for job in self.state.approved_jobs():
            data = self.state.job(job)
            spec = None if data is None else JobSpec.decode(decode_envelope(data).payload)
            role = None if spec is None else spec.role_of(self.force.name)
            brings = None if spec is None or role is None else spec.input_of(role)
            if brings is None:
                continue
            active = self.force.policy
            opened = None if active is None else active.policy.datasets.get(brings.dataset)
            if opened is None or source_of(opened) == name:
                asking.append(job)
        return asking

    def _keep_look(self, body: Mapping[str, Any]) -> bool:
        """Keep what a look at a dataset found; tell whether its figures are others than before.

        Raises:
            InputError: `unknown-dataset`.
            DecodeError: it is no record of a look.
        """
        record = b64decode(body["record"])
        looked = Quality.decode(record)
        dataset = self.state.dataset(looked.dataset)
        if dataset is None:
            raise InputError(
                "no dataset of that name is registered here",
                code="unknown-dataset",
                hint="minshu-node dataset list names them",
            )
        before = stored_preflight(self.state, dataset)
        with self.state.change() as change:
            change.put_preflight(dataset.name, body["fingerprint"], record)
        keys, shown = dataset.published_keys, None if before is None else before.quality
        return shown is None or (shown.snapshot, shown.shares(keys)) != (looked.snapshot, looked.shares(keys))

    def _catalogue(self, body: Mapping[str, Any]) -> dict[str, Any]:
        found = import_entries(self.state, entries_from_json(body["entries"]), body["sha256"])
        self.registered()
        return {"described": len(found.described), "announced": len(found.announced)}

    def _policy(self, envelope: bytes) -> dict[str, Any]:
        active = activate_policy(self.state, self.force, envelope, self.now)
        # Under the new text every waiting job is decided again: old approvals are void.
        self._reconsider_all()
        return {"version": active.policy.version, "sha256": active.digest}

    def _stop(self, envelope: bytes) -> dict[str, Any]:
        signed = apply_stop(self.state, self.force, envelope, self.now)
        self._reconsider_all()
        halts = [{"scope": stop.scope, "value": stop.value} for stop in signed.document.stops]
        return {"sha256": signed.digest, "signed_by": signed.role, "stops": halts}

    def _reconsider_all(self) -> None:
        for job in {run.attempt.job for run in self.state.runs_in(RunState.AWAITING_APPROVAL)}:
            self._reconsider(job)
        self.halted()

    def _approve(self, job: JobId, envelope: bytes, key: bytes) -> dict[str, Any]:
        verified = record_approval(self.state, self.force, job, envelope=envelope, key=key, now=self.now)
        self._reconsider(job)
        newest = self.state.runs(job)[0]
        return {
            "job": job,
            "approver": verified.approver,
            "given": newest.given,
            "needed": newest.needed,
            "state": newest.state.value,
        }

    def _reconsider(self, job: JobId) -> None:
        changed = self.gate.reconsider(job)
        if changed is not None:
            self.answered(*changed)

    def _open(self, release: str) -> dict[str, Any]:
        found = self.state.outputs(release=release)
        if not found:
            raise InputError("no such release at this node", code="unknown-release")
        output = found[0]
        check_kept(output, self.now())
        self._check_witnessed(output)
        self._check_open(output)
        with self.state.change() as change:
            change.log(
                "output.released",
                {
                    "release": release,
                    "sha256": output.sha256,
                    "class": output.output_class,
                    "recipient": output.recipient,
                    "retry": output.stored,
                },
                attempt=output.attempt,
            )
            change.mark_stored(release)
        return {"release": release}

    def _check_witnessed(self, *outputs: StoredOutput) -> None:
        """Refuse while this node may be an older copy, that does not know what was stopped or filed since.

        Raises:
            Refused: `heads-unknown`, or `node-off`.
        """
        required = requires_cosigned(self.force.policy) or any(output.cosigned for output in outputs)
        no = self.unwitnessed(required)
        if no is not None:
            raise no

    def _check_open(self, output: StoredOutput) -> None:
        """Refuse to open a list of a run that was given up, or of a job that a stop in force covers.

        So is one that witnesses have not seen to be committed, where the policy in force asks for that, or
        the one that it was made under.

        Raises:
            StateConflict: `release-withdrawn`.
            Refused: `stopped`, or `not-cosigned`.
        """
        run = self.state.run(output.attempt)
        if run is None or run.state not in (RunState.RELEASING, RunState.DONE):
            raise StateConflict(
                "the attempt that made this list did not end well, so the list is not given out",
                code="release-withdrawn",
                hint="if it is still needed, have the question asked and approved again",
            )
        data = self.state.job(output.attempt.job)
        if data is None:  # its time is over, and whom a stop covers cannot be told without it
            active = self.force.policy
            halted = active is not None and bool(active.stops or active.policy.stops)
            sentence, hint = "a stop is in force, and what it covers cannot be told now", "talk to the DPO"
        else:
            no = covering(self.force, JobSpec.decode(decode_envelope(data).payload), self.now())
            halted = no is not None
            sentence, hint = ("", "") if no is None else (no.sentence, no.hint)
        if halted:
            raise Refused(sentence, code="stopped", hint=hint)
        if output.cosigned or requires_cosigned(self.force.policy):
            folder = self.home.journal_of(output.log)
            covered = cosigned_size(self.state, self.force, output.log, folder, self.now())
            if covered <= output.seq:
                raise Refused(
                    f"witnesses have seen {covered} entries of this node's journal, and the one that commits "
                    f"this list is number {output.seq + 1}",
                    code="not-cosigned",
                    hint="wait until minshu-node status shows it as cosigned; the node has to run for that",
                )


def register(state: State, dataset: Dataset, *, keep: bool = False, asked: Iterable[JobId] = ()) -> bool:
    """Put a dataset into the catalogue; policies and jobs may name it from here on.

    Args:
        state: the node's.
        dataset: as it was scanned.
        keep: whether it keeps the description that it has, or was announced with: the one it was scanned by.
        asked: jobs that ask of it and have approvals; these are void if its values become other codes.

    Returns:
        Whether values become other codes than before.

    Raises:
        InputError: `source-twice`: its table has another name already, and what was spent under that one
            would not count under this one; `unknown-column`: the description that it keeps names a column
            that it has no longer; `key-mapped`; `mapping-not-whole`: its mapping does not say of which tables
            it is; `catalogue-too-long`, or what no reader of catalogues would take.
        StateConflict: `description-changed`: while the table was scanned.
    """
    datasets, announced = state.datasets(), state.announced()
    for other in datasets:
        if other.name != dataset.name and dataset.place.same(other.place):
            raise InputError(
                f"this table is registered as {other.name} already, and a table has one name",
                code="source-twice",
                hint=f"name local:{other.name} in the policy; two aliases of it would share what is spent",
            )
    before = state.dataset(dataset.name)
    if keep:
        kept = state.described(dataset.name)
        kept.check(dataset.columns)
        types = {column.name: column.type for column in dataset.columns}
        if any(types[name] != "text" for name in kept.mapping):
            raise StateConflict(
                "the dataset's description was changed while its table was scanned",
                code="description-changed",
                hint="register it again",
            )
        unnamed = dataset.title == dataset.name
        title = (kept.title or dataset.title) if unnamed else dataset.title
        dataset = replace(dataset, title=title, description=kept)
    check_key(dataset.key, dataset.description)
    if any(each.sha256 is None for each in dataset.description.mapping.values()):
        raise InputError(
            "the dataset's mapping does not say of which code tables it is",
            code="mapping-not-whole",
            hint="register it with minshu-node dataset add --description FILE",
        )
    announced = [each for each in announced if each.name != dataset.name]
    check_room([dataset, *(each for each in datasets if each.name != dataset.name)], announced)
    mapped = {} if before is None else before.description.mapped
    changed = mapped != dataset.description.mapped
    with state.change() as change:
        change.put_dataset(dataset)
        change.drop_preflight(dataset.name)
        change.announce(announced)
        log_registered(state, change, dataset)
        if changed:
            change.void_approvals(asked)
    return changed


def dataset_to_json(dataset: Dataset) -> dict[str, Any]:
    """Return a catalogue entry as plain JSON."""
    return {
        "name": dataset.name,
        "title": dataset.title,
        "place": dataset.place.to_json(),
        "key": dataset.key,
        "columns": [[column.name, column.type] for column in dataset.columns],
        "rows": dataset.rows,
        "distinct_keys": dataset.distinct_keys,
        "published_keys": dataset.published_keys,
        "snapshot": dataset.snapshot,
        "description": dataset.description.to_json(),
    }


def dataset_from_json(plain: Mapping[str, Any]) -> Dataset:
    """Return the catalogue entry of `dataset_to_json`'s output; one without a description keeps its own."""
    return Dataset(
        name=DatasetName(plain["name"]),
        title=plain["title"],
        place=place_from_json(plain["place"]),
        key=plain["key"],
        columns=tuple(SourceColumn(name, kind) for name, kind in plain["columns"]),
        rows=plain["rows"],
        distinct_keys=plain["distinct_keys"],
        published_keys=plain["published_keys"],
        snapshot=plain["snapshot"],
        description=Description.from_json(plain["description"] or {}),
    )


def rotation_to_json(announced: Announced) -> dict[str, Any]:
    """Return an announced change of the identity key as the desk hands it back."""
    return {
        "identity": key_id(announced.rotation.previous_key),
        "next": key_id(announced.rotation.next_key),
        "next_key": announced.rotation.next_key.hex(),
        "stored": announced.stored,
    }


def error_to_json(error: MinshuError) -> dict[str, Any]:
    """Return an error as the desk hands it back."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def encoded(data: bytes) -> str:
    """Return bytes as a command carries them."""
    return b64encode(data)


def ask(
    home: Home, kind: str, body: Mapping[str, Any], *, signer: Signer, now: Callable[[], datetime]
) -> dict[str, Any]:
    """Have a command carried out, here or by the running node, and return its result.

    Raises:
        MinshuError: as `Desk.handle`; or the running node did not answer in time.
    """
    log = Log(home.log, now)
    try:
        journal = open_journal(home, now)
    except StateConflict as error:
        if error.code != "journal-locked":
            raise
        return _wait(home, ask_desk(home.database, kind, body))
    state = open_state(journal, home.database)
    if signer.public_key != journal.public_key:
        signer = home.signer  # opening the journal finished a change of the identity key
    try:
        require_begun(state, signer.public_key)
        force = InForce.load(state, home.name, signer.public_key)
        return desk_of(state, force, home, signer=signer, now=now, log=log).handle(kind, body)
    finally:
        state.close()
        log.close()


def desk_of(
    state: State, force: InForce, home: Home, *, signer: Signer, now: Callable[[], datetime], log: Log
) -> Desk:
    """Return the desk of a node that is off: nobody is to be told of anything, nothing is under way."""
    return Desk(
        home,
        state,
        force,
        Gate(state, force, signer, now, log, access=home.config.access),
        now,
        lambda _attempt, _verdict: None,
        lambda: None,
        lambda: announce(state, force, home, signer, now),
        lambda: None,  # the next start looks at stops
        Outcomes(state, force, signer, now=now, log=log, post=lambda _message: None),
        lambda required: _node_off() if required else None,
    )


def heads_unknown() -> Refused:
    """Return why a node gives nothing out that has just started."""
    return Refused(
        "other departments' nodes have not said yet what they saw last of this node's journal",
        code="heads-unknown",
        hint="try again in a moment; if it lasts, this node's link is down, or the others do not answer",
    )


def _node_off() -> Refused:
    return Refused(
        "only a running node can tell from its witnesses that it is no older copy of itself",
        code="node-off",
        hint="start it with minshu-node run, and ask again while it runs",
    )


def _wait(home: Home, number: int) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    with read_state(home.database) as reader:
        while True:
            answer = reader.desk_answer(number)
            if answer is not None:
                break
            if time.monotonic() > deadline:
                raise Unreachable(
                    f"the running node has not answered for {WAIT_S:.0f} s",
                    code="node-busy",
                    hint="it will still carry the command out; see minshu-node status",
                )
            time.sleep(POLL_S)
    if "error" in answer:
        raise MinshuError(
            answer["error"]["message"], code=answer["error"]["code"], hint=answer["error"]["hint"]
        )
    return dict(answer)
