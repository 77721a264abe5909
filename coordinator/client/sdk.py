"""The analyst's SDK: ask, watch, receive. Synchronous; every call can be stopped with Ctrl-C.

```python
from minshu import Bureau

with Bureau.connect("my-home") as bureau:
    job = bureau.submit("job.toml")
    job.wait()
    table = job.release().to_pandas()
```

Nothing the coordinator says is believed as such: the roster counts through the pinned root keys, a catalogue
and a release through their node's key in the roster, and a release opens with the analyst's own key alone.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from coordinator.client.connection import Connection
from coordinator.client.home import AnalystHome
from coordinator.client.release import Release, open_release
from coordinator.client.view import Catalogue, View
from coordinator.files import read_bounded, replace_file
from coordinator.roots import follows, open_roster
from protocols.encoding import sha256_digest
from protocols.envelope import CATALOGUE, JOB, decode_envelope, key_id, sign, verify
from protocols.errors import (
    InputError,
    MinshuError,
    ProtocolAborted,
    Refused,
    SignatureInvalid,
    StateConflict,
    Unreachable,
)
from protocols.ids import JobId
from protocols.wire import MAX_JOB_BYTES, JobSpec, Roster

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
        self._seen: Roster | None = None

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
        """Fetch the roster in force, check it against the pinned roots, and remember it.

        Raises:
            SignatureInvalid, DecodeError: not signed by the roots, or not a roster.
            InputError: another collaboration's, or expired.
            StateConflict: `roster-rollback`: older than one seen before.
            Unreachable: no coordinator.
        """
        answer = self._connection.call("Roster")
        roster = open_roster(self._roots, answer.roster, self._now())
        follows(roster, self._seen_roster())
        replace_file(self._home.roster, answer.roster)
        self._seen = roster
        return roster

    def catalogue(self) -> tuple[Catalogue, ...]:
        """Return every member's catalogue, each checked with its node's key in the roster.

        Raises:
            SignatureInvalid: a catalogue is no member's own.
            Unreachable: no coordinator.
        """
        roster = self.roster()
        answer = self._connection.call("Catalogue")
        keys = {key_id(node.identity_key): node for node in roster.nodes}
        found = []
        for envelope in answer.catalogues:
            document = decode_envelope(envelope)
            signers = verify(
                document, CATALOGUE, {identifier: node.identity_key for identifier, node in keys.items()}
            )
            catalogue = Catalogue.decode(document.payload)
            if {keys[signer].name for signer in signers} != {catalogue.node}:
                raise SignatureInvalid("a catalogue is not signed by the node it names", code="wrong-node")
            found.append(catalogue)
        return tuple(sorted(found, key=lambda one: one.node))

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
        spec = self._load(Path(job), roster)
        try:
            return self._submit(spec)
        except StateConflict as error:
            if error.code != "roster-outdated":
                raise
        # A newer roster came into force in between; the file says nothing about rosters.
        return self._submit(self._load(Path(job), self.roster()))

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

    def jobs(self) -> list[View]:
        """Return the newest jobs of the analyst's organisation, without their runs."""
        return [View.of(view) for view in self._connection.call("List").views]

    def _seen_roster(self) -> Roster | None:
        if self._seen is None:
            with contextlib.suppress(FileNotFoundError):
                # It was checked before it was kept; by now it may have expired, and still counts as seen.
                self._seen = Roster.decode(decode_envelope(self._home.roster.read_bytes()).payload)
        return self._seen


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
        return View.of(self._connection.call("Show", self.id).view)

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
                    view = View.of(answer.view)
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
        return View.of(self._connection.call("Cancel", self.id).view)

    def releases(self) -> Mapping[str, Release]:
        """Fetch, check and open every release of the job, by name.

        Raises:
            MinshuError: the job did not succeed (its own code and hint), or a release does not hold.
        """
        view = self.view()
        _succeeded(view)
        return {release.name: self._fetch(release.release) for release in view.releases}

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
        return self._fetch(fitting[0].release)

    def _fetch(self, release: str) -> Release:
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
            job=self.id,
            spec=self._spec(),
            roster=roster,
            organisation=home.config.organisation,
            private=home.recipient_private(),
        )

    def _spec(self) -> JobSpec | None:
        """Return what was asked, for a job submitted from this home."""
        try:
            envelope = self._bureau.home.job(self.id).read_bytes()
        except FileNotFoundError:
            return None
        payload = decode_envelope(envelope).payload
        if JobId(sha256_digest(payload)) != self.id:
            raise StateConflict("the kept job is not the one of this id", code="wrong-subject")
        return JobSpec.decode(payload)

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
