"""The store on SQLAlchemy Core; SQLite, write-ahead log, synchronous FULL."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from coordinator.lifecycle import JOB_ENDS, Job, JobState, Planned, Run, RunState
from coordinator.store import (
    MAX_DUE,
    DueEntry,
    Enrolment,
    Entry,
    JobRecord,
    Meter,
    StoredOutcome,
    StoredReceipt,
    StoredRelease,
    StoredRoster,
    StoredRotation,
    Token,
    Usage,
)
from protocols.encoding import canonical_json, decode_json
from protocols.errors import Refused, StateConflict
from protocols.ids import Digest, JobId, NodeName, Organisation
from protocols.outcomes import too_many

_BUSY_TIMEOUT_S: Final = 5.0
_TOKEN_MEMORY: Final = timedelta(days=1)
"""How long a used or expired token is kept, so that its second use is told from an unknown one."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Moment(sa.TypeDecorator[datetime]):
    """A moment as whole microseconds since 1970 UTC: exact, and comparable in SQL."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class _Whole(sa.TypeDecorator[int]):
    """A whole number of any size, as text: what a node claims must not overflow a column."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> int | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else int(value)


class _Lines(sa.TypeDecorator[tuple[str, ...]]):
    """A few lines of text."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else "\n".join(value)

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> tuple[str, ...] | None:  # noqa: ARG002  # SQLAlchemy's signature
        return None if value is None else tuple(value.splitlines())


_metadata = sa.MetaData()

_tokens = sa.Table(
    "token",
    _metadata,
    sa.Column("secret_sha256", sa.LargeBinary, primary_key=True),
    sa.Column("prefix", sa.String, nullable=False, index=True),
    sa.Column("node", sa.String, nullable=False),
    sa.Column("issued", _Moment, nullable=False, server_default="0"),
    sa.Column("expires", _Moment, nullable=False),
    sa.Column("used", _Moment),
)
_enrolments = sa.Table(
    "enrolment",
    _metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("identity_key", sa.LargeBinary, nullable=False),
    sa.Column("tls_spki_sha256", sa.String, nullable=False),
    sa.Column("journal_vkey", sa.String, nullable=False),
    sa.Column("recipient_key", sa.LargeBinary, nullable=False),
    sa.Column("suite", sa.Integer, nullable=False),
    sa.Column("certificate_sha256", sa.String, nullable=False),
    sa.Column("enrolled", _Moment, nullable=False),
    sa.Column("witness_vkeys", _Lines, nullable=False, server_default=""),
)
_rosters = sa.Table(
    "roster",
    _metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
)
_freshness = sa.Table(
    "freshness",
    _metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("issued", _Moment, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
)
_rotations = sa.Table(
    "rotation",
    _metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("previous_key", sa.LargeBinary, primary_key=True),
    sa.Column("next_key", sa.LargeBinary, primary_key=True),
    sa.Column("arrived", _Moment, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("refused", sa.Boolean, nullable=False),
)
_catalogues = sa.Table(
    "catalogue",
    _metadata,
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
)
_jobs = sa.Table(
    "job",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("requester", sa.String, nullable=False),
    sa.Column("analyst", sa.String, nullable=False),
    sa.Column("organisation", sa.String, nullable=False, index=True),
    sa.Column("job_type", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("legal_basis", sa.String, nullable=False, server_default=""),
    sa.Column("expected_use", sa.String, nullable=False, server_default=""),
    sa.Column("submitted", _Moment, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("expires", _Moment, nullable=False),
    sa.Column("deadline", _Moment),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("sentence", sa.String, nullable=False),
    sa.Column("hint", sa.String, nullable=False),
    sa.Column("answered_by", sa.String, nullable=False, server_default=""),
)
_runs = sa.Table(
    "run",
    _metadata,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("role", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("code", sa.String, nullable=False),
    sa.Column("sentence", sa.String, nullable=False),
    sa.Column("hint", sa.String, nullable=False),
    sa.Column("verdict", sa.LargeBinary, nullable=False),
    sa.Column("approvals_needed", sa.Integer, nullable=False),
    sa.Column("approvals_given", sa.Integer, nullable=False),
    sa.Column("admission", sa.LargeBinary, nullable=False),
    sa.Column("max_runtime_s", sa.Integer),
    sa.Column("answered", sa.String, nullable=False, server_default=""),
)
_planned = sa.Table(
    "planned_release",
    _metadata,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("stored", sa.Boolean, nullable=False),
)
_releases = sa.Table(
    "release",
    _metadata,
    sa.Column("release", sa.String, primary_key=True),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("node", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("output_class", sa.String, nullable=False),
    sa.Column("sealed_to", sa.String, nullable=False),
    sa.Column("note", sa.LargeBinary, nullable=False),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("expires", _Moment, nullable=False),
    sa.UniqueConstraint("job", "attempt", "node", "name"),
)
_meters = sa.Table(
    "meter",
    _metadata,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("rows", _Whole, nullable=False),
    sa.Column("records", _Whole, nullable=False),
    sa.Column("rho", _Whole, nullable=False),
    sa.Column("started", _Moment, nullable=False),
)
_outcomes = sa.Table(
    "outcome",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("digest", sa.String, nullable=False, unique=True),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("filed", _Moment, nullable=False),
)
_receipts = sa.Table(
    "receipt",
    _metadata,
    sa.Column("job", sa.String, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("node", sa.String, primary_key=True),
    sa.Column("release", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
)
_nonces = sa.Table(
    "nonce",
    _metadata,
    sa.Column("nonce", sa.String, primary_key=True),
    sa.Column("expires", _Moment, nullable=False, index=True),
)
_due = sa.Table(
    "due_entry",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
_due_objects = sa.Table(
    "due_object",
    _metadata,
    sa.Column("entry", sa.Integer, primary_key=True),
    sa.Column("place", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

_JOB_COLUMNS: Final = ("state", "attempt", "expires", "deadline", "code", "sentence", "hint", "answered_by")
_RECORD_COLUMNS: Final = (
    "envelope",
    "requester",
    "analyst",
    "organisation",
    "job_type",
    "purpose",
    "legal_basis",
    "expected_use",
    "submitted",
)


class SqlStore:
    """The store in one SQLite file; several processes may have it open."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the database at `path`; None keeps it in memory, for tests."""
        if path is None:
            self._engine = sa.create_engine(
                "sqlite://",
                poolclass=sa.StaticPool,
                connect_args={"check_same_thread": False},
                hide_parameters=True,
            )
        else:
            self._engine = sa.create_engine(
                f"sqlite:///{path}",
                connect_args={"timeout": _BUSY_TIMEOUT_S},
                # An error text must not quote what was to be stored.
                hide_parameters=True,
            )
        self._reader = self._engine.execution_options(reads=True)
        sa.event.listen(self._engine, "connect", _set_up)
        sa.event.listen(self._engine, "begin", _begin)
        _metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            _add_columns(connection)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    @contextmanager
    def _write(self, entries: Iterable[Entry] = ()) -> Iterator[sa.Connection]:
        with self._engine.begin() as connection:
            yield connection
            _make_due(connection, entries)

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._reader.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def add_token(self, token: Token) -> None:
        """Remember a token."""
        with self._write() as connection:
            connection.execute(_tokens.insert().values(prefix=token.secret_sha256.hex()[:8], **asdict(token)))

    def tokens(self, prefix: str) -> Sequence[Token]:
        """Return the tokens whose hash begins with these 8 hex digits."""
        return [
            Token(row["secret_sha256"], NodeName(row["node"]), row["issued"], row["expires"], row["used"])
            for row in self._rows(sa.select(_tokens).where(_tokens.c.prefix == prefix))
        ]

    def enrol(self, secret_sha256: bytes, enrolment: Enrolment, entries: Iterable[Entry] = ()) -> None:
        """Use up a token and store the enrolment, or refuse."""
        mine = (_tokens.c.secret_sha256 == secret_sha256) & (_tokens.c.node == enrolment.node)
        with self._write(entries) as connection:
            # The UPDATE itself asks whether the token is unused, so two racing requests can't both have it.
            used = connection.execute(
                _tokens.update()
                .where(
                    mine,
                    _tokens.c.used.is_(None),
                    _tokens.c.issued <= enrolment.enrolled,
                    _tokens.c.expires > enrolment.enrolled,
                )
                .values(used=enrolment.enrolled)
            )
            if used.rowcount != 1:
                row = connection.execute(sa.select(_tokens).where(mine)).mappings().first()
                raise _token_refused(row, enrolment.enrolled)
            values = asdict(enrolment)
            connection.execute(
                insert(_enrolments).values(**values).on_conflict_do_update(["node"], set_=values)
            )

    def enrolments(self) -> Sequence[Enrolment]:
        """Return every node's latest enrolment, by name."""
        return [Enrolment(**row) for row in self._rows(sa.select(_enrolments).order_by(_enrolments.c.node))]

    def enrolment(self, node: NodeName) -> Enrolment | None:
        """Return the latest enrolment of `node`."""
        rows = self._rows(sa.select(_enrolments).where(_enrolments.c.node == node))
        return Enrolment(**rows[0]) if rows else None

    def publish(self, roster: StoredRoster, previous: Digest | None, entries: Iterable[Entry] = ()) -> None:
        """Make `roster` the current one, or refuse."""
        with self._write(entries) as connection:
            current = connection.execute(_newest_roster()).mappings().first()
            version, digest = (0, None) if current is None else (current["version"], current["digest"])
            # Before the first one here, the chain may have begun elsewhere: a coordinator that starts anew.
            if roster.version <= version or (current is not None and previous != digest):
                raise StateConflict(
                    f"version {roster.version} does not follow the published roster, version {version}",
                    code="roster-rollback",
                    hint="draft the roster again: minshu-coordinator roster draft",
                )
            connection.execute(_rosters.insert().values(**asdict(roster)))

    def roster(self) -> StoredRoster | None:
        """Return the newest roster."""
        rows = self._rows(_newest_roster())
        return StoredRoster(**rows[0]) if rows else None

    def rosters_after(self, version: int) -> Sequence[StoredRoster]:
        """Return the rosters above `version`, oldest first."""
        query = sa.select(_rosters).where(_rosters.c.version > version).order_by(_rosters.c.version)
        return [StoredRoster(**row) for row in self._rows(query)]

    def put_freshness(
        self, version: int, issued: datetime, envelope: bytes, entries: Iterable[Entry] = ()
    ) -> bool:
        """Keep a freshness statement; return False, changing nothing, if one as new is kept."""
        values = {"version": version, "issued": issued, "envelope": envelope}
        with self._engine.begin() as connection:
            # The statement itself compares the times, so that two racing commands cannot go back.
            kept = connection.execute(
                insert(_freshness)
                .values(**values)
                .on_conflict_do_update(["version"], set_=values, where=_freshness.c.issued < issued)
            )
            if kept.rowcount == 1:
                _make_due(connection, entries)
            return kept.rowcount == 1

    def freshness(self, version: int) -> bytes:
        """Return the newest freshness statement about that roster version, empty for none."""
        rows = self._rows(sa.select(_freshness.c.envelope).where(_freshness.c.version == version))
        return rows[0]["envelope"] if rows else b""

    def put_rotation(self, rotation: StoredRotation, entries: Iterable[Entry] = ()) -> None:
        """Keep an announcement in place of the node's earlier one between the same two keys."""
        values = asdict(rotation)
        with self._write(entries) as connection:
            connection.execute(
                insert(_rotations)
                .values(**values)
                .on_conflict_do_update([column.name for column in _rotations.primary_key], set_=values)
            )

    def rotations(self) -> Sequence[StoredRotation]:
        """Return the announcements by node, then in the order in which they arrived."""
        query = sa.select(_rotations).order_by(_rotations.c.node, _rotations.c.arrived)
        return [StoredRotation(**row) for row in self._rows(query)]

    def put_catalogue(self, node: NodeName, envelope: bytes) -> None:
        """Remember a node's catalogue in place of its earlier one."""
        values = {"node": node, "envelope": envelope}
        with self._write() as connection:
            connection.execute(
                insert(_catalogues).values(**values).on_conflict_do_update(["node"], set_=values)
            )

    def catalogues(self) -> Mapping[NodeName, bytes]:
        """Return every node's catalogue envelope."""
        rows = self._rows(sa.select(_catalogues).order_by(_catalogues.c.node))
        return {NodeName(row["node"]): row["envelope"] for row in rows}

    def add_job(self, record: JobRecord, entries: Iterable[Entry] = ()) -> bool:
        """Store a new job; return False, changing nothing, for one that is known."""
        job = record.job
        with self._engine.begin() as connection:
            added = connection.execute(
                insert(_jobs)
                .values(
                    id=job.id,
                    **{name: getattr(record, name) for name in _RECORD_COLUMNS},
                    **{name: getattr(job, name) for name in _JOB_COLUMNS},
                )
                .on_conflict_do_nothing(["id"])
            )
            if added.rowcount != 1:
                return False
            _put_parts(connection, job)
            _make_due(connection, entries)
        return True

    def save_job(self, job: Job, entries: Iterable[Entry] = (), meter: Meter | None = None) -> None:
        """Store a job's new state, and where it is being started, what the attempt uses."""
        with self._write(entries) as connection:
            changed = connection.execute(
                _jobs.update()
                .where(_jobs.c.id == job.id)
                .values(**{name: getattr(job, name) for name in _JOB_COLUMNS})
            )
            if changed.rowcount != 1:
                raise StateConflict("the job is not in the store", code="unknown-job")
            for table in (_runs, _planned):
                connection.execute(table.delete().where(table.c.job == job.id))
            _put_parts(connection, job)
            if meter is not None:
                connection.execute(insert(_meters).values(**asdict(meter)).on_conflict_do_nothing())

    def job(self, job: JobId) -> JobRecord | None:
        """Return a job."""
        found = self._jobs(sa.select(_jobs).where(_jobs.c.id == job))
        return found[0] if found else None

    def live_jobs(self) -> Sequence[JobRecord]:
        """Return the jobs that have not ended, oldest first."""
        ends = sorted(JOB_ENDS)
        return self._jobs(sa.select(_jobs).where(_jobs.c.state.not_in(ends)).order_by(_jobs.c.number))

    def jobs_of(self, organisation: Organisation, limit: int) -> Sequence[JobRecord]:
        """Return an organisation's jobs, newest first."""
        return self._jobs(
            sa.select(_jobs)
            .where(_jobs.c.organisation == organisation)
            .order_by(_jobs.c.number.desc())
            .limit(limit)
        )

    def _jobs(self, query: sa.Select[Any]) -> list[JobRecord]:
        with self._reader.connect() as connection:
            rows = connection.execute(query).mappings().all()
            ids = [row["id"] for row in rows]
            runs: dict[str, list[Run]] = {name: [] for name in ids}
            for row in connection.execute(
                sa.select(_runs).where(_runs.c.job.in_(ids)).order_by(_runs.c.place)
            ).mappings():
                found = {f.name: row[f.name] for f in fields(Run)}
                runs[row["job"]].append(Run(**{**found, "state": RunState(row["state"])}))
            planned: dict[str, list[tuple[bool, Planned]]] = {name: [] for name in ids}
            for row in connection.execute(sa.select(_planned).where(_planned.c.job.in_(ids))).mappings():
                planned[row["job"]].append((row["stored"], Planned(NodeName(row["node"]), row["name"])))
        return [
            JobRecord(
                job=Job(
                    id=JobId(row["id"]),
                    runs=tuple(runs[row["id"]]),
                    awaited=frozenset(item for stored, item in planned[row["id"]] if not stored),
                    stored=frozenset(item for stored, item in planned[row["id"]] if stored),
                    **{
                        **{name: row[name] for name in _JOB_COLUMNS},
                        "state": JobState(row["state"]),
                    },
                ),
                **{name: row[name] for name in _RECORD_COLUMNS},
            )
            for row in rows
        ]

    def usage(self, organisation: Organisation | None = None) -> Sequence[Usage]:
        """Return what an organisation, None for all, has asked and spent, by organisation and purpose."""

        def count(state: JobState) -> sa.ColumnElement[int]:
            return sa.func.count().filter(_jobs.c.state == state.value)

        whose = (_jobs.c.organisation, _jobs.c.purpose)
        asked = (
            sa.select(
                *whose,
                sa.func.count().label("jobs"),
                count(JobState.SUCCEEDED).label("succeeded"),
                count(JobState.REFUSED).label("refused"),
                sa.func.max(_jobs.c.submitted, type_=_Moment).label("last"),
            )
            .group_by(*whose)
            .order_by(*whose)
        )
        used = sa.select(*whose, _meters.c.rows, _meters.c.records, _meters.c.rho).join(
            _jobs, _jobs.c.id == _meters.c.job
        )
        if organisation is not None:
            asked, used = (query.where(_jobs.c.organisation == organisation) for query in (asked, used))
        sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        with self._reader.begin() as connection:
            for row in connection.execute(used).mappings():
                sums[row["organisation"], row["purpose"]].update(_figures(row))
            rows = connection.execute(asked).mappings().all()
        return [Usage(**{**row, **_figures(sums[row["organisation"], row["purpose"]])}) for row in rows]

    def add_outcome(self, outcome: StoredOutcome, limit: int, entries: Iterable[Entry] = ()) -> bool:
        """Store an outcome; return False, changing nothing, for one that is known."""
        with self._engine.begin() as connection:
            same = sa.select(_outcomes.c.number).where(_outcomes.c.digest == outcome.digest)
            if connection.execute(same).first() is not None:
                return False
            count = sa.select(sa.func.count()).where(_outcomes.c.job == outcome.job)
            if connection.execute(count).scalar_one() >= limit:
                raise too_many(limit)
            connection.execute(_outcomes.insert().values(**asdict(outcome)))
            _make_due(connection, entries)
        return True

    def outcomes_of(self, job: JobId) -> Sequence[StoredOutcome]:
        """Return a job's outcomes, as they came in."""
        rows = self._rows(sa.select(_outcomes).where(_outcomes.c.job == job).order_by(_outcomes.c.number))
        return [StoredOutcome(**{f.name: row[f.name] for f in fields(StoredOutcome)}) for row in rows]

    def add_release(self, release: StoredRelease, entries: Iterable[Entry] = ()) -> None:
        """Store a release; the same one again changes nothing."""
        with self._engine.begin() as connection:
            added = connection.execute(insert(_releases).values(**asdict(release)).on_conflict_do_nothing())
            if added.rowcount == 1:
                _make_due(connection, entries)
                return
            known = (
                connection.execute(sa.select(_releases).where(_releases.c.release == release.release))
                .mappings()
                .first()
            )
        if known is None or StoredRelease(**known) != release:
            raise StateConflict(
                "another release is stored under this id or name",
                code="release-conflict",
                hint="a release is sent again with the same bytes and the same note, or not at all",
            )

    def release(self, release: str) -> StoredRelease | None:
        """Return a release."""
        found = self._releases(_releases.c.release == release)
        return found[0] if found else None

    def releases_of(self, job: JobId) -> Sequence[StoredRelease]:
        """Return a job's releases, by name."""
        return self._releases(_releases.c.job == job)

    def expired_releases(self, now: datetime) -> Sequence[StoredRelease]:
        """Return the releases to delete."""
        return self._releases(_releases.c.expires <= now)

    def _releases(self, condition: sa.ColumnElement[bool]) -> list[StoredRelease]:
        rows = self._rows(sa.select(_releases).where(condition).order_by(_releases.c.name))
        return [StoredRelease(**row) for row in rows]

    def all_releases(self) -> frozenset[str]:
        """Return the ids of all releases."""
        return frozenset(row["release"] for row in self._rows(sa.select(_releases.c.release)))

    def delete_release(self, release: str, entries: Iterable[Entry] = ()) -> None:
        """Forget a release; an unknown one is no error."""
        with self._write(entries) as connection:
            connection.execute(_releases.delete().where(_releases.c.release == release))

    def started(self, job: JobId, attempt: int) -> bool:
        """Return whether that attempt was started."""
        here = (_meters.c.job == job) & (_meters.c.attempt == attempt)
        return bool(self._rows(sa.select(_meters.c.job).where(here)))

    def add_receipt(self, receipt: StoredReceipt, limit: int, entries: Iterable[Entry] = ()) -> bool:
        """Keep a node's receipt; return False, changing nothing, for one that is kept."""
        mine = (
            (_receipts.c.job == receipt.job)
            & (_receipts.c.attempt == receipt.attempt)
            & (_receipts.c.node == receipt.node)
        )
        with self._engine.begin() as connection:
            kept = {
                row.release: row.digest
                for row in connection.execute(sa.select(_receipts.c.release, _receipts.c.digest).where(mine))
            }
            if receipt.release in kept:
                if kept[receipt.release] != receipt.digest:
                    raise StateConflict(
                        "the node has handed in another receipt for this release", code="other-receipt"
                    )
                return False
            if len(kept) >= limit:
                raise Refused(
                    f"the node has handed in {limit} receipts for this attempt, which plans no more releases"
                    " of it",
                    code="too-many-receipts",
                )
            connection.execute(_receipts.insert().values(**asdict(receipt)))
            _make_due(connection, entries)
            return True

    def use_nonce(self, nonce: str, expires: datetime) -> bool:
        """Remember a request's nonce; return False if it was seen before."""
        with self._engine.begin() as connection:
            added = connection.execute(
                insert(_nonces).values(nonce=nonce, expires=expires).on_conflict_do_nothing()
            )
            return added.rowcount == 1

    def forget(self, now: datetime) -> None:
        """Delete nonces and tokens whose time is over."""
        with self._engine.begin() as connection:
            connection.execute(_nonces.delete().where(_nonces.c.expires <= now))
            connection.execute(_tokens.delete().where(_tokens.c.expires <= now - _TOKEN_MEMORY))

    def add_entry(self, entry: Entry) -> None:
        """Make one entry due that changes nothing else."""
        with self._write([entry]):
            pass  # the entry is all there is to write

    def due_entries(self, after: int = 0) -> Sequence[DueEntry]:
        """Return entries the journal does not have yet, above that id, oldest first, at most `MAX_DUE`."""
        rows = self._rows(sa.select(_due).where(_due.c.id > after).order_by(_due.c.id).limit(MAX_DUE))
        if not rows:
            return []
        objects: dict[int, list[bytes]] = defaultdict(list)
        of_these = _due_objects.c.entry.between(rows[0]["id"], rows[-1]["id"])
        for row in self._rows(
            sa.select(_due_objects).where(of_these).order_by(_due_objects.c.entry, _due_objects.c.place)
        ):
            objects[row["entry"]].append(row["data"])
        return [
            DueEntry(row["id"], Entry(**decode_json(row["entry"]), objects=tuple(objects.get(row["id"], ()))))
            for row in rows
        ]

    def recorded(self, entry_id: int) -> None:
        """Forget an entry that the journal has."""
        with self._engine.begin() as connection:
            connection.execute(_due.delete().where(_due.c.id == entry_id))
            connection.execute(_due_objects.delete().where(_due_objects.c.entry == entry_id))


def _add_columns(connection: sa.Connection) -> None:
    """Give tables of an earlier version the columns that they lack; each has a default."""
    known = sa.inspect(connection)
    for table in _metadata.sorted_tables:
        there = {column["name"] for column in known.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")


def _newest_roster() -> sa.Select[Any]:
    return sa.select(_rosters).order_by(_rosters.c.version.desc()).limit(1)


def _figures(sums: Mapping[Any, Any]) -> dict[str, int]:
    return {name: sums[name] for name in ("rows", "records", "rho")}


def _put_parts(connection: sa.Connection, job: Job) -> None:
    connection.execute(
        _runs.insert(), [{"job": job.id, "place": at, **asdict(run)} for at, run in enumerate(job.runs)]
    )
    planned = [
        {"job": job.id, "node": item.node, "name": item.name, "stored": stored}
        for stored, items in ((False, job.awaited), (True, job.stored))
        for item in items
    ]
    if planned:
        connection.execute(_planned.insert(), planned)


def _make_due(connection: sa.Connection, entries: Iterable[Entry]) -> None:
    for entry in entries:
        said = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "objects"}
        number = connection.scalar(_due.insert().values(entry=canonical_json(said)).returning(_due.c.id))
        objects = [{"entry": number, "place": at, "data": data} for at, data in enumerate(entry.objects)]
        if objects:
            connection.execute(_due_objects.insert(), objects)


def _token_refused(row: sa.RowMapping | None, now: datetime) -> Refused:
    hint = "ask the coordinator's operator for a new one: minshu-coordinator token NODE"
    if row is not None and row["used"] is not None:
        return Refused("the token was used before", code="token-used", hint=hint)
    if row is not None and now < row["issued"]:
        return Refused(
            "the coordinator's clock went back since the token was made, so its age is not known",
            code="clock-moved",
            hint=hint,
        )
    if row is not None:
        return Refused("the token has expired, it was good for 15 minutes", code="token-expired", hint=hint)
    return Refused("the token is unknown, or another node's", code="token-unknown", hint=hint)


def _set_up(connection: Any, _record: Any) -> None:
    # SQLAlchemy begins transactions itself (below); the driver's own way would begin them too late.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    # A writer takes the lock at once: taken at the first write, it could fail halfway.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
