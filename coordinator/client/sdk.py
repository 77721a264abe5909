"""The analyst's SDK: ask, watch, receive. Synchronous; every call can be stopped with Ctrl-C.

```python
from minshu import Bureau

with Bureau.connect("my-home") as bureau:
    bureau.explain("job.toml")          # what every node would answer; nothing runs
    job = bureau.submit("job.toml")
    job.wait()
    table = job.release().to_pandas()
```

Nothing the coordinator says is believed as such: the roster counts through the pinned root keys, a catalogue,
a verdict and a release through their node's key in the roster, an outcome through its signer's, and a release
opens with the analyst's own key alone.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

from coordinator.client.catalogue import Catalogues
from coordinator.client.connection import Connection
from coordinator.client.explanation import Explanation, explained
from coordinator.client.home import AnalystHome
from coordinator.client.outcomes import recipients
from coordinator.client.release import Release, open_release
from coordinator.client.verdicts import checked
from coordinator.client.view import Catalogue, View
from coordinator.files import read_bounded, replace_file
from protocols import succession
from protocols.envelope import CATALOGUE, EXPLAIN, JOB, OUTCOME, decode_envelope, key_id, sign, verify
from protocols.errors import (
    DecodeError,
    InputError,
    MinshuError,
    ProtocolAborted,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.ids import JobId, NodeName
from protocols.outcomes import new_outcome
from protocols.succession import Trusted
from protocols.wire import MAX_JOB_BYTES, JobSpec, Roster, Verdict

if TYPE_CHECKING:
    from minshu.v1 import jobs_pb2

T = TypeVar("T")

MAX_RELEASE_BYTES: Final = 1 << 30
PATIENCE_S: Final = 120.0
"""How long `events` keeps trying to reach a coordinator that went away."""

_RETRY_S: Final = 1.0


class Bureau:
    """A connection to the coordinator, for one analyst. Safe to use from several threads."""

    def __init__(self, home: AnalystHome, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Use `connect`."""
        self._home = home
        self._now = now
        self._roots = home.roots()
        self._signer = home.signer()
        self._connection = Connection(home, now)
        self._trusted: Trusted | None = None
        self._updating = threading.Lock()

    @classmethod
    def connect(cls, home: str | Path | None = None) -> Self:
        """Open the analyst's home, by default the one that MINSHU_HOME names.

        Raises:
            InputError: no such home, or it is not connected to a coordinator.
        """
        named = home if home is not None else os.environ.get("MINSHU_HOME")
        if not named:
            raise InputError(
                "no home folder is named", code="no-home", hint='Bureau.connect("DIR"), or set MINSHU_HOME'
            )
        return cls(AnalystHome(Path(named)))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        config = self._home.config
        return f"<Bureau {self._roots.collaboration} at {config.address} as {config.name}>"

    @property
    def home(self) -> AnalystHome:
        """The analyst's home."""
        return self._home

    # -- what can be asked ---------------------------------------------------------------------------

    def roster(self) -> Roster:
        """Fetch the newest roster, follow the chain to it from the pinned root keys, and remember it.

        Raises:
            SignatureInvalid, DecodeError, InputError, StateConflict: see `succession.advance`, `freshen`; or
                what this home kept is not what it was.
            Refused: `roster-expired`, `roster-stale`: the coordinator has none that may be gone by.
            Unreachable: no coordinator.
        """
        with self._updating:
            trusted = self._trusted or self._home.chain()
            trusted = self._follow(trusted)
            self._trusted = trusted
        return succession.fresh(trusted.roster, trusted.freshness, self._now())

    def _follow(self, trusted: Trusted) -> Trusted:
        """Go on to the newest roster; one answer may not carry all that lie in between."""
        while True:
            answer = self._connection.call("Roster", str(trusted.version or ""))
            after = trusted
            try:
                for envelope, step in succession.walk(trusted, [*answer.between, answer.roster], self._now()):
                    self._home.keep_roster(step.version, envelope)
                    after = step
            except StateConflict as error:
                if error.code != "roster-fast-forward" or after is trusted:
                    raise
                trusted = after
                continue
            if not answer.freshness:
                return after
            fresher = succession.freshen(after, answer.freshness, self._now())
            if fresher is not after:
                self._home.keep_freshness(after.version, answer.freshness)
            return fresher

    def catalogue(self) -> Catalogues:
        """Return every member's catalogue, each checked with its node's key in the roster.

        `bureau.catalogue().search("婚姻")` finds datasets. One that its node signed and that
        cannot be read, or that is older than what this home has seen of that node, is left out and named in
        `unreadable`, and so are the signers of one with several signatures (`several-signers`): no member
        decides whether the others' are seen.

        Raises:
            SignatureInvalid: a catalogue is no member's own.
            DecodeError: an envelope is none, or there are two of the same node.
            Unreachable: no coordinator.
        """
        roster = self.roster()
        answer = self._connection.call("Catalogue")
        keys = {key_id(node.identity_key): node for node in roster.nodes}
        found: list[Catalogue] = []
        unreadable: list[tuple[NodeName, str]] = []
        seen, nodes = self._home.catalogues_seen(), set[NodeName]()
        for envelope in answer.catalogues:
            document = decode_envelope(envelope)
            signers = verify(
                document, CATALOGUE, {identifier: node.identity_key for identifier, node in keys.items()}
            )
            node, *others = sorted(keys[signer].name for signer in signers)
            if len(document.signatures) != 1:
                # Of whom it is nobody knows; a catalogue that one of them signed alone is read all the same.
                unreadable += [(each, "several-signers") for each in (node, *others)]
                continue
            if node in nodes:
                raise DecodeError("two catalogues of one node", code="bad-catalogue")
            nodes.add(node)
            try:
                catalogue = Catalogue.decode(document.payload)
            except DecodeError as error:
                unreadable.append((node, error.code))
                continue
            if node != catalogue.node:
                raise SignatureInvalid("a catalogue is not signed by the node it names", code="wrong-node")
            if node in seen and catalogue.issued < seen[node]:
                unreadable.append((node, "older-catalogue"))
                continue
            # A node whose clock was ahead once is not refused for that until it is caught up with.
            seen[node] = min(catalogue.issued, max(self._now(), seen.get(node, catalogue.issued)))
            found.append(catalogue)
        self._home.keep_catalogues_seen(seen)
        titles = {each.name: each.title for each in roster.organisations}
        members = tuple(sorted(found, key=lambda one: one.node))
        return Catalogues(members, titles, tuple(sorted(set(unreadable))))

    def submit(self, job: str | Path | JobSpec) -> "Job":
        """Sign and submit a job: the path of a job.toml, or a finished spec.

        Raises:
            InputError: the file or the job is not usable, with the line where there is one.
            StateConflict: `roster-outdated`: a spec names another roster than the one in force.
            Refused: the coordinator takes no more jobs.
            Unreachable: no coordinator.
        """
        roster = self.roster()
        if isinstance(job, JobSpec):
            return self._submit(job)
        return self._from_file(Path(job), roster, lambda spec, _: self._submit(spec))

    def explain(self, job: str | Path | JobSpec) -> Explanation:
        """Ask every node what it would answer to a job; nothing is run, read or charged, and nothing is kept.

        Raises:
            InputError: the file or the job is not usable, with the line where there is one.
            StateConflict: `roster-outdated`: a spec names another roster than the one in force.
            SignatureInvalid, DecodeError: a verdict is not its node's own answer to this question.
            Refused: too many questions are open.
            Unreachable: no coordinator.
        """
        roster = self.roster()
        if isinstance(job, JobSpec):
            # A question is asked once: an answer to it can be no other's.
            now = self._now().replace(microsecond=0)
            return self._explain(replace(job, created=now, nonce=secrets.token_hex(16)), roster)
        return self._from_file(Path(job), roster, self._explain)

    def _explain(self, spec: JobSpec, roster: Roster) -> Explanation:
        from protocols.jobs import job_type

        job_type(spec.job_type).check(spec)
        question = sign(EXPLAIN, spec.encode(), [self._signer]).encode()
        return explained(spec, roster, self._connection.explain(question))

    def usage(self) -> list[dict[str, str | int]]:
        """Return what the analyst's organisation has asked and spent: one row for each purpose.

        `rows` read by all nodes in all attempts, `records` the most about persons that may have left, `rho`
        the zCDP cost, decimal text, summed over datasets.
        """
        return [
            {field.name: getattr(row, field.name) for field in row.DESCRIPTOR.fields}
            for row in self._connection.call("Usage").rows
        ]

    def _from_file(self, path: Path, roster: Roster, act: Callable[[JobSpec, Roster], T]) -> T:
        try:
            return act(self._load(path, roster), roster)
        except StateConflict as error:
            if error.code != "roster-outdated":
                raise
        # A newer roster came into force in between; the file says nothing about rosters.
        roster = self.roster()
        return act(self._load(path, roster), roster)

    def _load(self, path: Path, roster: Roster) -> JobSpec:
        from policies.jobfile import load_job

        data = read_bounded(path, MAX_JOB_BYTES)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path} is not UTF-8 text", code="not-utf8", hint="save it as UTF-8") from None
        return load_job(
            text,
            requester=key_id(self._signer.public_key),
            roster_digest=roster.digest,
            now=self._now(),
            nonce=secrets.token_hex(16),
        )

    def _submit(self, spec: JobSpec) -> "Job":
        from protocols.jobs import job_type

        job_type(spec.job_type).check(spec)
        envelope = sign(JOB, spec.encode(), [self._signer]).encode()
        # Kept before it is sent: what was asked is known here even if the answer is lost.
        kept = self._home.job(spec.job_id)
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(kept, envelope)
        self._connection.submit(envelope)
        return Job(self, self._connection, spec.job_id)

    def job(self, job: str) -> "Job":
        """Return a job by its id, or by at least the first 6 digits of it if they fit one job only.

        Raises:
            InputError: none, or several.
        """
        digits = job.removeprefix("sha256:")
        if len(digits) == 64:
            return Job(self, self._connection, JobId(f"sha256:{digits}"))
        fitting = [view.job for view in self.jobs() if view.job.removeprefix("sha256:").startswith(digits)]
        if len(digits) < 6 or len(fitting) != 1:
            raise InputError(
                f"{len(fitting)} jobs begin with {digits}, expected one"
                if len(digits) >= 6
                else "a job id has 64 hex digits, or at least the first 6 of them",
                code="unknown-job",
                hint="minshu list shows your organisation's jobs",
            )
        return Job(self, self._connection, fitting[0])

    def outcome(self, job: JobId, checked: int, confirmed: int, note: str) -> bytes:
        """Return a signed outcome; `Job.file` hands it in.

        Raises:
            InputError: figures or note cannot be used.
        """
        by = key_id(self._signer.public_key)
        outcome = new_outcome(job, by, checked=checked, confirmed=confirmed, note=note, filed=self._now())
        return sign(OUTCOME, outcome.encode(), [self._signer]).encode()

    def jobs(self) -> list[View]:
        """Return the newest jobs of the analyst's organisation, without their runs."""
        return [View.of(view) for view in self._connection.call("List").views]


class Job:
    """A job at the coordinator."""

    def __init__(self, bureau: Bureau, connection: Connection, job: JobId) -> None:
        """Use `Bureau.submit` or `Bureau.job`."""
        self._bureau = bureau
        self._connection = connection
        self.id = job

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def view(self) -> View:
        """Return the job as it stands.

        Raises:
            InputError: no such job of this organisation.
            Unreachable: no coordinator.
        """
        return self._read(self._connection.call("Show", self.id).view)

    def events(self) -> Iterator[View]:
        """Yield the job's view now and after every change, until it has ended.

        A coordinator that goes away is tried again for two minutes.

        Raises:
            InputError: no such job of this organisation.
            Unreachable: no coordinator.
        """
        last_heard = time.monotonic()
        while True:
            try:
                for answer in self._connection.stream("Watch", self.id):
                    last_heard = time.monotonic()
                    view = self._read(answer.view)
                    yield view
                    if view.ended:
                        return
            except Unreachable:
                if time.monotonic() - last_heard > PATIENCE_S:
                    raise
            time.sleep(_RETRY_S)

    def wait(self, progress: bool | Callable[[View], None] = True) -> View:
        """Wait for the job's end and return its last view; whether it succeeded stands there.

        Args:
            progress: True shows bars in a terminal and lines elsewhere, on stderr; False shows nothing; a
                function is called with every view.
        """
        if callable(progress):
            tell: contextlib.AbstractContextManager[Callable[[View], None]] = contextlib.nullcontext(progress)
        elif progress:
            from coordinator.client.progress import bars

            tell = bars()
        else:
            tell = contextlib.nullcontext(lambda _: None)
        with tell as show:
            for view in self.events():
                show(view)
        return view

    def cancel(self) -> View:
        """Withdraw the job; one that has ended stays as it ended.

        Raises:
            InputError: no such job of this organisation.
        """
        return self._read(self._connection.call("Cancel", self.id).view)

    def _read(self, view: "jobs_pb2.JobView") -> View:
        """Return the coordinator's view of the job with its outcomes checked."""
        if not view.outcomes:
            return View.of(view)
        spec = self._spec()
        receiving = None if spec is None else recipients(spec, self._bureau.home.config.organisation)
        return View.of(view, self._vouching(self._bureau.roster(), self.id), receiving)

    def verdicts(self, view: View | None = None) -> Mapping[NodeName, Verdict]:
        """Return what the nodes have answered so far, each checked with its node's key in the roster.

        Raises:
            SignatureInvalid, DecodeError: a verdict is not its node's own answer to this attempt.
            Unreachable: no coordinator.
        """
        view = view or self.view()
        roster = self._vouching(self._bureau.roster(), self.id)
        return {
            run.node: checked(run.verdict, roster, node=run.node, job=self.id, attempt=view.attempt)
            for run in view.runs
            if run.verdict
        }

    def file(self, checked: int, confirmed: int, note: str = "") -> View:
        """File what became of the releases that this organisation's analysts received; return the view then.

        Args:
            checked: how many persons or figures of the releases were verified.
            confirmed: how many of those turned out right.
            note: one sentence that names nobody.

        Raises:
            InputError: figures or note cannot be used.
            Refused: `small-count`, `not-a-recipient`, `too-many-outcomes`.
            StateConflict: the job did not succeed (yet), or with another job's releases.
        """
        envelope = self._bureau.outcome(self.id, checked, confirmed, note)
        return self._read(self._connection.file(envelope).view)

    def releases(self) -> Mapping[str, Release]:
        """Fetch, check and open every release of the job, by name.

        Raises:
            MinshuError: the job did not succeed (its own code and hint), or a release does not hold.
        """
        view = self.view()
        _succeeded(view)
        source = self._source(view)
        return {release.name: self._fetch(release.release, source) for release in view.releases}

    def release(self, name: str | None = None) -> Release:
        """Fetch, check and open one release; `name` may be left out where there is only one.

        Raises:
            InputError: no such release, or several and no name.
            MinshuError: see `releases`.
        """
        view = self.view()
        _succeeded(view)
        fitting = [release for release in view.releases if name in (None, release.name)]
        if len(fitting) != 1:
            names = ", ".join(release.name for release in view.releases) or "none"
            raise InputError(
                f"{len(fitting)} releases fit, expected one",
                code="unknown-release",
                hint=f"releases of this job: {names}",
            )
        return self._fetch(fitting[0].release, self._source(view))

    def _source(self, view: View) -> JobId:
        """Return the job that made the releases: this one, or the one that answered the question before.

        That one counts only if every node of the job, as it was submitted from here, has signed that it did:
        else the coordinator could pass off an answer to another question.

        Raises:
            SignatureInvalid, DecodeError: not every node says so.
            InputError: the job was not submitted from this home.
        """
        if not view.answered_by:
            return self.id
        spec = self._spec()
        if spec is None:
            raise InputError(
                "the job was submitted from another home, so its nodes cannot be checked here",
                code="job-not-kept",
                hint=f"fetch the releases of the earlier job {view.answered_by}",
            )
        said = self.verdicts(view)
        if set(said) != set(spec.roles.values()) or any(
            verdict.answered != view.answered_by for verdict in said.values()
        ):
            raise SignatureInvalid(
                "not every node of the job says that the earlier job has answered it",
                code="not-answered-before",
                hint="tell the coordinator's operator; the releases it names are not this job's",
            )
        return JobId(view.answered_by)

    def _fetch(self, release: str, job: JobId) -> Release:
        roster = self._bureau.roster()
        home = self._bureau.home
        note = b""
        sealed = bytearray()
        for answer in self._connection.stream("Fetch", release):
            note = note or answer.note
            sealed += answer.piece
            if len(sealed) > MAX_RELEASE_BYTES:
                raise ProtocolAborted("the coordinator sends more than a release may hold", code="too-long")
        return open_release(
            note=note,
            sealed=bytes(sealed),
            release=release,
            job=job,
            # The same question plans the same releases, by the same nodes.
            spec=self._spec(),
            roster=self._vouching(roster, job),
            organisation=home.config.organisation,
            private=home.recipient_private(),
        )

    def _vouching(self, roster: Roster, job: JobId) -> Roster:
        return self._bureau.home.vouching(roster, job)

    def _spec(self) -> JobSpec | None:
        """Return what was asked, for a job submitted from this home."""
        return self._bureau.home.asked(self.id)

    def _repr_html_(self) -> str:
        from coordinator.client.notebook import job_html

        return job_html(self.view())


def _succeeded(view: View) -> None:
    """Raise what ended the job, unless it succeeded."""
    if view.state == "SUCCEEDED":
        return
    if not view.ended:
        raise StateConflict(
            f"the job is {view.state}, it has no releases yet",
            code="job-not-ended",
            hint="wait for its end: job.wait(), or minshu watch JOB",
        )
    kinds: Mapping[str, type[MinshuError]] = {"REFUSED": Refused, "FAILED": ProtocolAborted}
    raise kinds.get(view.state, StateConflict)(
        f"the job is {view.state}: {view.sentence}", code=view.code, hint=view.hint
    )
