"""`crosscheck-series/1`, class B: the question of `crosscheck/1` day after day, told of who is new.

Day 1 is a cross-check whose keys stay; on a later day only keys that are new to a list go round, and the
register is told of persons whom it was not told of before. Key-holders keep their keys for as many days as
every list owner's rule allows, by their own clocks. Messages, what is kept and what each coalition learns:
`protocols/psi/SPEC.md`, section 8.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import InputError, ProtocolAborted, Refused, StateConflict
from protocols.ids import Digest, JobId, Organisation, Role
from protocols.jobs import crosscheck
from protocols.jobs.crosscheck import (
    CONTENT_KEY,
    ENVELOPES,
    MATCHER,
    REGISTER,
    ROW_BYTES,
    Crosscheck,
    Params,
    plan_of,
    room_of,
)
from protocols.jobs.job_type import (
    ColumnNeed,
    Content,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Shelf,
    Statement,
    Unit,
)
from protocols.party import Finished, Incoming, Outgoing, Party, Progress, Rand, Step, Waiting
from protocols.psi.envelopes import CONTENT_KEY_BYTES, ENVELOPE_BYTES, RECORD_BYTES, padded
from protocols.psi.keyed_list import KeyedList
from protocols.psi.runs import Shuffle
from protocols.psi.series import (
    MARK_BYTES,
    MARK_KEY_BYTES,
    TOLD_BYTES,
    DayTagging,
    Kept,
    Place,
    drop_over,
    load,
    lost,
    marks_of,
    opened_marks,
    points_for,
    sealed_marks,
    told_of,
    wanted_bits,
    wanted_places,
)
from protocols.psi.streams import Stream, messages, single, unexpected
from protocols.psi.tagging import Plan, SpilledTags, Tagged
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, InputSummary, JobSpec

MAX_DAY: Final = 36_500

MARK_KEY: Final = 0x1500
"""Round: register → source, the day's mark key."""
MARKS: Final = 0x1600
"""Round: matcher → register, sealed marks of the selected in random order, then padding."""
WANTED: Final = 0x1700
"""Round: register → matcher, a bit for each place of these: whether the envelope is wanted."""

CHUNK_MARKS: Final = 32768
CHUNK_WANTED: Final = 65536

_CROSSCHECK: Final = Crosscheck()
_JOB_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Day:
    """Which day of which series a job is.

    Attributes:
        first: the job of day 1; the job itself on that day.
        number: from 1.
        asked: the job as the `crosscheck/1` that it is a day of.
    """

    first: JobId
    number: int
    asked: JobSpec

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read the params that are not those of `crosscheck/1`.

        Raises:
            InputError: `bad-params`.
        """
        params = dict(spec.params)
        if "grace_days" in params or "as_of" in params:
            raise InputError(
                "a series takes no grace",
                code="bad-params",
                hint="ask with grace_days in a crosscheck/1, month by month",
            )
        continues = "first" in params or "day" in params
        first, number = params.pop("first", None), params.pop("day", None)
        asked = replace(spec, job_type=_CROSSCHECK.name, params=params)
        if not continues:
            return cls(spec.job_id, 1, asked)
        if not isinstance(first, str) or not _JOB_ID.fullmatch(first):
            raise InputError(
                "params.first is no job id",
                code="bad-params",
                hint="give the id of the job that was day 1, or neither first nor day to begin a series",
            )
        if not isinstance(number, int) or isinstance(number, bool) or not 2 <= number <= MAX_DAY:
            raise InputError(
                f"params.day is no whole number from 2 to {MAX_DAY}",
                code="bad-params",
                hint="count the days of a series from its first job, which is day 1 and does not say so",
            )
        return cls(JobId(Digest(first)), number, asked)


def question_of(spec: JobSpec) -> Digest:
    """Return the digest of what every day of a series asks alike; who asks and why in words may differ.

    Every day names the roster of day 1, too, which is kept beside it.
    """
    asked = Day.of(spec).asked
    return sha256_digest(
        canonical_json(
            {
                "params": dict(asked.params),
                "inputs": [[i.role, i.organisation, i.dataset, dict(i.columns)] for i in asked.inputs],
                "roles": dict(asked.roles),
                "recipients": list(asked.recipients),
                "purpose": asked.purpose,
                "collaboration": asked.collaboration,
            }
        )
    )


class CrosscheckSeries:
    """The job type `crosscheck-series/1`."""

    name: Final = "crosscheck-series/1"
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = False

    def check(self, spec: JobSpec) -> None:
        """Check that it is a day, and what `crosscheck/1` checks.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        _CROSSCHECK.check(Day.of(spec).asked)

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: register and one source are key-holders, too."""
        return _CROSSCHECK.kinds(Day.of(spec).asked, role)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a list: a key, and from sources the street and perhaps when last seen."""
        return _CROSSCHECK.columns(Day.of(spec).asked, role)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the records for the register's organisation and the street table for the requester."""
        return _CROSSCHECK.releases(Day.of(spec).asked)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation: who must not in any one day."""
        return _CROSSCHECK.separation(Day.of(spec).asked, requester)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md, section 8: what all days of one series tell together.

        A coalition that is not listed learns the union of what its listed parts learn.
        """
        params = Params.of(Day.of(spec).asked)
        table = {
            members: tuple(_over_days(statement, params) for statement in statements)
            for members, statements in _CROSSCHECK.learns(Day.of(spec).asked).items()
        }
        for role in params.owners:
            holds = role in (REGISTER, params.key_holder)
            kept = _KEPT_BY_REGISTER if role == REGISTER else _KEPT_WITH_KEY if holds else _KEPT
            table[frozenset({role})] += (_CHURN, kept) if holds else (kept,)
            if role != REGISTER:
                table[frozenset({MATCHER, role})] += (_linked(params),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        """Return one question, and from a source every record that the row cap lets leave, each day anew."""
        return _CROSSCHECK.cost(Day.of(spec).asked, role, constraints)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return whose lists are compared at which threshold: one question on all days of all its series."""
        asked = _CROSSCHECK.query(Day.of(spec).asked, role)
        if asked is None:
            return None
        return Query(canonical_json({"job_type": self.name, "asks": asked.asks}).decode("utf-8"))

    def sources_asked(self, spec: JobSpec) -> int:
        """Return k, or the number of all lists."""
        return _CROSSCHECK.sources_asked(Day.of(spec).asked)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what `crosscheck/1` checks, and that every rule lets keys live until this day.

        Raises:
            ProtocolAborted: with the guard that failed, or `series-over`.
        """
        day = Day.of(spec)
        _CROSSCHECK.check_inputs(day.asked, inputs, constraints)
        if constraints.max_series_days is None:
            raise ProtocolAborted(
                "no participant's rule sets max_series_days",
                code="guard-missing",
                hint="a series needs the number of days that keys may live in the rules of all list owners",
            )
        if day.number > constraints.max_series_days:
            raise ProtocolAborted(
                f"day {day.number} of a series, which a participant ends after {constraints.max_series_days}",
                code="series-over",
                hint="begin a new series",
            )

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder; ages are judged as of the day the job was created."""
        return _CROSSCHECK.builder(Day.of(spec).asked, role, unit)

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Refuse: a day of a series needs a shelf and a clock, see `party_of_day`.

        Raises:
            TypeError: always.
        """
        del role, setup, prepared, rand
        raise TypeError("a day of a series has a shelf: its parties are made by `party_of_day`")

    # Serial

    def day(self, spec: JobSpec) -> int:
        """Return which day of its series a job is, from 1."""
        return Day.of(spec).number

    def first(self, spec: JobSpec) -> JobId:
        """Return the job of day 1, by which a series is known."""
        return Day.of(spec).first

    def check_kept(
        self, spec: JobSpec, role: Role, *, shelf: Shelf, now: datetime, most_days: int | None
    ) -> None:
        """Check by a list owner's shelf that this day may be; the matcher keeps nothing.

        Raises:
            StateConflict: `series-lost`, `series-other`, `series-day`.
            Refused: `series-over`.
        """
        if role != MATCHER:
            kept_for(spec, shelf=shelf, now=now, most_days=most_days)

    def party_of_day(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        shelf: Shelf,
        now: datetime,
        committed: Callable[[JobId], bool],
    ) -> Party:
        """Return the state machine of `role`; only the register's has outputs: records and street table.

        Raises:
            ProtocolAborted: a guard on the lists' sizes fails.
            StateConflict, Refused: see `check_kept`.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        spec = setup.spec
        params = Params.of(Day.of(spec).asked)
        self.check_inputs(spec, setup.inputs, setup.constraints)
        if role == MATCHER:
            return Matcher(params, setup, rand)
        if not isinstance(prepared, KeyedList):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        most_days = setup.constraints.max_series_days
        assert most_days is not None  # else `check_inputs` has refused
        found = kept_for(spec, shelf=shelf, now=now, most_days=most_days)
        day = Day.of(spec)
        place, kept = Place(shelf, day.first, day.number, found), found if day.number > 1 else None
        plan = plan_of(params, setup)
        tagging = DayTagging(plan, role, prepared.keys, kept, rand, spend=place.spend)
        keeper = Keeper(
            setup, plan, prepared, tagging, place, now, now + timedelta(days=most_days), committed
        )
        kind = Register if role == REGISTER else Source
        return kind(role, params, setup, prepared, rand, keeper=keeper)

    def drop_over(self, shelf: Shelf, *, now: datetime, most_days: int | None) -> int:
        """Drop the series whose days are over; every one where none is allowed."""
        return drop_over(shelf, now, most_days)


def kept_for(spec: JobSpec, *, shelf: Shelf, now: datetime, most_days: int | None) -> Kept | None:
    """Return what a list owner's shelf has of the series, which lets this day be; None for nothing.

    (1) Day 1 begins what has not gone on yet; it takes nothing of another attempt of day 1. (2) Of a later
    day something is there. (3) It was begun by this question, under this roster. (4) It may be that old, and
    began before now. (5) Its day is not ahead of the calendar: nobody uses up days that have not come.
    (6) Its day comes after all that have ended here.

    Raises:
        StateConflict: `series-lost`, `series-other`, `series-day`.
        Refused: `series-over`.
    """
    day = Day.of(spec)
    kept = load(shelf, day.first)
    # (1)
    if day.number == 1:
        if kept is not None and kept.day > 1:
            raise _past(kept.day, 1)
        return kept
    # (2)
    if kept is None:
        raise lost("this node has nothing of the series that the job goes on with")
    # (3)
    if (kept.question, kept.roster) != (question_of(spec), spec.roster_digest):
        raise StateConflict(
            "the job asks another question than the series it goes on with, or under another roster",
            code="series-other",
            hint="ask as day 1 did, or begin a new series",
        )
    # (4)
    days = most_days or 0
    ends = min(kept.until, kept.begun + timedelta(days=days))
    if day.number > days or not kept.begun <= now < ends:
        raise Refused(
            f"the series is beyond the {days} day(s) that its keys may live, by its number or the clock here",
            code="series-over",
            hint="begin a new series: submit the question without first and day",
        )
    # (5)
    latest = 2 + (now - kept.begun) // timedelta(days=1)
    if day.number > latest:
        raise StateConflict(
            f"day {day.number} of a series that can be at day {latest} now",
            code="series-day",
            hint=f"go on with day {kept.day + 1} when it has come, or begin a new series",
        )
    # (6)
    if day.number < kept.day or (day.number == kept.day and kept.job != spec.job_id):
        raise _past(kept.day, day.number)
    return kept


def _past(ended: int, asked: int) -> StateConflict:
    return StateConflict(
        f"day {asked} of a series whose day {ended} has ended here",
        code="series-day",
        hint=f"go on with day {ended + 1}",
    )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Keeper:
    """What a list owner's part does with its shelf: it says who was told, and keeps the day at its end."""

    setup: Setup
    plan: Plan
    listed: KeyedList
    tagging: DayTagging
    place: Place
    now: datetime
    until: datetime
    committed: Callable[[JobId], bool]

    def told(self) -> dict[JobId, bytes]:
        """Return who was told in other jobs that ended well; of a job that did not, nobody was."""
        place, job = self.place, self.setup.spec.job_id
        told = {} if place.found is None or place.day == 1 else place.found.told
        return {by: persons for by, persons in told.items() if by != job and self.committed(by)}

    def check(self) -> None:
        """Check that the series is where this day began from.

        Raises:
            StateConflict: `series-day`, `series-lost`.
        """
        self.place.check()

    def keep(self, told: Mapping[JobId, bytes]) -> None:
        """Put the day in the place of the one before; the register says whom each job told it of.

        Raises:
            StateConflict: see `check`.
        """
        tagging, spec = self.tagging, self.setup.spec
        kept = Kept(
            series=tagging.series,
            attempt=self.setup.attempt,
            question=question_of(spec),
            roster=spec.roster_digest,
            begun=self.now.replace(microsecond=0),
            until=self.until.replace(microsecond=0),
            day=self.place.day,
            job=spec.job_id,
            tag_key=tagging.tag_key,
            points=[points_for(count) for count in self.plan.counts] if tagging.tag_key else [],
            keys=self.listed.keys,
            values=tagging.values,
            told=told,
        )
        self.place.put(kept)


def mark_differs() -> ProtocolAborted:
    """Return the error of a person who has two marks; nothing tells who it is, or which is the right one."""
    return ProtocolAborted(
        "a person comes with two marks",
        code="mark-differs",
        hint="a source or the register runs another version or altered what it sent; nothing tells which",
    )


class Source(crosscheck.Source):
    """A source: its rows as in `crosscheck/1`, with a mark in each lock that the register alone can read."""

    def __init__(
        self,
        role: Role,
        params: Params,
        setup: Setup,
        listed: KeyedList,
        rand: Rand,
        *,
        keeper: Keeper,
    ) -> None:
        super().__init__(role, params, setup, listed, rand, tagging=keeper.tagging)
        self._keeper = keeper
        self._mark_key = b""
        self._checked: Tagged | SpilledTags | None = None

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message, the mark key, or `ready`; with both of these rows and content key go."""
        if message.round == MARK_KEY:
            if message.sender != REGISTER or self._mark_key:
                raise unexpected(message)
            self._mark_key = single(message, MARK_KEY_BYTES)
        elif 1 <= message.round >> 8 <= 3:
            return self._tag(message)
        else:
            self._checked = self._take_ready(message)
        if self._checked is None or not self._mark_key:
            return Waiting((), self._progress())
        self._keeper.check()
        content_key = self.rand(CONTENT_KEY_BYTES)
        key = Outgoing(REGISTER, CONTENT_KEY, content_key)
        return Finished(chain(self._rows(self._checked, content_key), (key,), self._kept()), ())

    def _inside(self, values: bytes, envelopes: Iterator[bytes]) -> Iterator[bytes]:
        points = np.frombuffer(values, dtype=np.uint8).reshape(-1, 32)
        sealed = sealed_marks(marks_of(points, self._keeper.tagging.series), self._mark_key)
        for place, envelope in enumerate(envelopes):
            yield envelope + sealed[place * MARK_BYTES : (place + 1) * MARK_BYTES]

    def _kept(self) -> Iterator[Outgoing]:
        """Keep the day, once all has been sent."""
        self._keeper.keep({})
        return
        yield


class Register(crosscheck.Register):
    """The register: asks for the envelopes of those it was not told of. Outputs records and street table."""

    def __init__(
        self,
        role: Role,
        params: Params,
        setup: Setup,
        listed: KeyedList,
        rand: Rand,
        *,
        keeper: Keeper,
    ) -> None:
        super().__init__(role, params, setup, listed, rand, tagging=keeper.tagging)
        self._keeper = keeper
        self._mark_key = rand(MARK_KEY_BYTES)
        self._room = room_of(params, setup)
        self._stream = Stream(MARKS, self._room, MARK_BYTES, CHUNK_MARKS)
        self._told = keeper.told()
        self._new: bytes | None = None  # marks of the newly flagged, once it is known who they are

    def start(self) -> Step:
        """Return the mark key for every source, and what tagging begins with."""
        keys = [Outgoing(role, MARK_KEY, self._mark_key) for role in self.params.owners[1:]]
        return Waiting(chain(keys, self.tagging.start()), self._progress())

    def receive(self, message: Incoming) -> Step:
        """Take what a register takes in `crosscheck/1`, and before envelopes the marks of the selected."""
        if message.round == ENVELOPES and self._new is None:
            raise unexpected(message)
        if message.round != MARKS:
            return super().receive(message)
        if message.sender != MATCHER:
            raise unexpected(message)
        self._stream.keep(self._stream.take(message))
        progress = Progress("opening", self._stream.seen, self._room)
        if not self._stream.complete:
            return Waiting((), progress)
        return Waiting(self._ask(self._stream.raw()), progress)

    def _ask(self, sealed: npt.NDArray[np.uint8]) -> Iterable[Outgoing]:
        """Open the marks, and say which envelopes are wanted.

        Raises:
            ProtocolAborted: `bad-marks`, `mark-repeated`, `guard-rows`.
        """
        there: npt.NDArray[np.bool_] = np.asarray(sealed.any(axis=1))
        count = int(there.sum())
        if not there[:count].all():
            raise ProtocolAborted("padding stands before a mark", code="bad-marks")
        limit = self.setup.constraints.max_rows
        if limit is not None and count > limit:
            raise ProtocolAborted(f"more than the {limit} persons that all rules allow", code="guard-rows")
        marks = opened_marks(sealed[:count].tobytes(), self._mark_key)
        pieces = [marks[at : at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES)]
        if len(set(pieces)) != count:
            raise ProtocolAborted(
                "two selected persons have one mark",
                code="mark-repeated",
                hint="a source runs another version or altered its rows; nothing tells which",
            )
        known = {told[:MARK_BYTES] for told in self._persons()}
        wanted = [piece not in known for piece in pieces]
        self._new = b"".join(piece for piece, new in zip(pieces, wanted, strict=True) if new)
        bits = wanted_bits(wanted, self._room)
        return messages(MATCHER, WANTED, len(bits), CHUNK_WANTED, lambda start, stop: bits[start:stop])

    def _persons(self) -> Iterator[bytes]:
        """Yield everybody who was told before: mark ‖ hash of the key."""
        for told in self._told.values():
            yield from (told[at : at + TOLD_BYTES] for at in range(0, len(told), TOLD_BYTES))

    def _open(self) -> tuple[Content, Content]:
        """Open and check all envelopes, keep the day, and return records and street table.

        Raises:
            ProtocolAborted: with the step that failed; `too-few-items`, `too-many-items`: not those wanted.
        """
        contents = super()._open()
        new = self._new or b""
        found, asked = contents[0].table.rows, len(new) // MARK_BYTES
        if found != asked:
            raise ProtocolAborted(
                "other envelopes came than were asked for",
                code="too-few-items" if found < asked else "too-many-items",
            )
        self._keeper.keep({**self._told, self.setup.spec.job_id: self._now_told(contents[0], new)})
        return contents

    def _now_told(self, records: Content, marks: bytes) -> bytes:
        """Return whom this day tells of: their marks and the hashes of their keys, each lot in its own order.

        Which mark came with which key is not needed: neither may be among those told before.

        Raises:
            ProtocolAborted: `mark-differs`, a person was told of before, under another mark.
        """
        known = {told[MARK_BYTES:] for told in self._persons()}
        series = self._keeper.tagging.series
        keys = [told_of(key.encode(), series) for key in records.table.columns["key"].tolist()]
        if not known.isdisjoint(keys):
            raise mark_differs()
        pairs = zip(range(0, len(marks), MARK_BYTES), sorted(keys), strict=True)
        return b"".join(marks[at : at + MARK_BYTES] + key for at, key in pairs)


class Matcher(crosscheck.Matcher):
    """The matcher: hands the register sealed marks of the selected, then the envelopes it asks for.

    So it learns of each selected row, and with it of each combination of lists, who is new.
    """

    row_bytes = ROW_BYTES + MARK_BYTES

    def __init__(self, params: Params, setup: Setup, rand: Rand) -> None:
        super().__init__(params, setup, rand)
        self._room = room_of(params, setup)
        self._chosen: list[bytes] | None = None
        self._wanted = Stream(WANTED, -(-self._room // 8), 1, CHUNK_WANTED)

    def receive(self, message: Incoming) -> Step:
        """Take tags, rows, or which envelopes are wanted."""
        if message.round != WANTED:
            return super().receive(message)
        if message.sender != REGISTER or self._chosen is None:
            raise unexpected(message)
        self._wanted.keep(self._wanted.take(message))
        if not self._wanted.complete:
            return Waiting((), self._row_progress())
        places = wanted_places(self._wanted.raw().tobytes(), len(self._chosen))
        records = b"".join(self._chosen[place][:RECORD_BYTES] for place in places)
        return Finished(padded(REGISTER, ENVELOPES, records, self._room), ())

    def _taken(self, rows: Mapping[int, tuple[int, bytes]], weights: Mapping[int, int], index: int) -> bytes:
        """Return the envelope and sealed mark of one source; every source that holds the person marks alike.

        Else one of them could give a person the mark of another, who would not be told of any more; and a
        register that gave each its own mark key would learn which sources they are.

        Raises:
            ProtocolAborted: `mark-differs`, `lock-broken`.
        """
        taken = super()._taken(rows, weights, index)
        for other in rows:
            if other not in (0, index):
                beside = super()._taken(rows, weights, other)
                if beside[ENVELOPE_BYTES:] != taken[ENVELOPE_BYTES:]:
                    raise mark_differs()
        return taken

    def _answer(self, drawn: Shuffle) -> Step:
        """Return the step that all locks being off leads to; a record is followed by its sealed mark."""
        self._chosen = chosen = [each.tobytes() for each in drawn.take(self._room)]
        marks = b"".join(each[RECORD_BYTES:] for each in chosen).ljust(self._room * MARK_BYTES, b"\0")
        return Waiting(
            messages(
                REGISTER,
                MARKS,
                self._room,
                CHUNK_MARKS,
                lambda start, stop: marks[start * MARK_BYTES : stop * MARK_BYTES],
            ),
            self._row_progress(),
        )


_CHURN: Final = Statement(
    "churn",
    "for every list and every day but the first, how many keys are new on it, rounded up to a power of two",
    "除首日外, 每份清单每天新增的条数(向上取为 2 的幂)",
)
_UNTIL_EN: Final = (
    "at its node until the series is over, in backups and on a disk that is not encrypted for longer; who "
    "steals it is a member of the coalitions below, for the days gone by, too"
)
_UNTIL_ZH: Final = (
    "在系列结束前保存在本方节点, 在备份中或未加密的磁盘上则可能更久; 窃得者视同参与下列合谋, 且可追溯此前各日"
)
_KEPT: Final = Statement(
    "kept",
    f"its own list, with a meaningless value for each person, stays {_UNTIL_EN}",
    f"本方清单及每人对应的一个无意义数值, {_UNTIL_ZH}",
)
_KEPT_WITH_KEY: Final = Statement(
    "kept",
    f"its own list, with a meaningless value for each person and its tag key, stays {_UNTIL_EN}",
    f"本方清单、每人对应的一个无意义数值以及标记密钥, {_UNTIL_ZH}",
)
_KEPT_BY_REGISTER: Final = Statement(
    "kept",
    f"{_KEPT_WITH_KEY.en}; and so do hashes by which a thief who guesses can tell whom it was told of",
    f"{_KEPT_WITH_KEY.zh}; 另存有散列值, 窃得者可据以逐一猜测得知哪些人已被告知",
)
_DAYS_EN: Final = "on every day of the series"
_DAYS_ZH: Final = "系列的每一天"


def _linked(params: Params) -> Statement:
    if params.everywhere:
        who, who_zh = "on all lists", "出现在全部清单中的"
    else:
        who, who_zh = f"in at least {params.k} source(s)", f"至少 {params.k} 个来源持有的"
    return Statement(
        "linked-days",
        f"persons {who}, nameless, but known again from day to day: on which days they are, and which lists "
        "hold them then",
        f"{who_zh}人员: 不知其身份, 但可逐日认出同一人, 得知其在哪些天、出现在哪些清单",
    )


def _over_days(statement: Statement, params: Params) -> Statement:
    """Return what a statement about one `crosscheck/1` becomes when its days are put together."""
    match statement.key:
        case "flagged-rows":
            return Statement(
                statement.key,
                f"{statement.en}; each person once in the series, on the first day this holds; later only "
                "whether it holds that day, and every day how many persons it holds of. A day whose list its "
                "node does not keep does not count: whoever was on it comes again, perhaps from another "
                "source",
                f"{statement.zh}; 系列内每人只在首次符合的当天给出一次, 此后每天仅知其是否仍符合; "
                "另知每天符合的总人数。如其节点未保存某日名单, 则该日不计: "
                "名单上的人会再次给出, 且可能来自另一来源",
            )
        case "crafted-list":
            return Statement(
                statement.key,
                f"{statement.en}; {_DAYS_EN}. And a register that asks again, day after day, for persons it "
                "was told of learns all sources that hold them",
                f"{statement.zh}; {_DAYS_ZH}均如此。此外, 若登记方每天重复索取已给出的人员, "
                "可得知持有该人的全部来源",
            )
        case "venn":
            return Statement(
                statement.key,
                f"{statement.en}, {_DAYS_EN}, and for each combination how many of the selected are new and "
                "how many were told of before; beyond what these numbers imply it knows nobody again from "
                "day to day. Where they are small they can imply on which other lists a person told of, "
                "nameless, is now",
                f"{statement.zh}; {_DAYS_ZH}均如此, 并知每一种组合的所选人员中新增和此前已给出的各有多少; "
                "除这些数字本身所能推出者外, 不能逐日认出同一人。人数很少时, 可据以推出某个此前已给出的人"
                "(不知其身份)现在改列于哪些清单",
            )
        case "own-rows-elsewhere" | "opened-envelopes" if params.k > 1 or statement.key != "opened-envelopes":
            return Statement(
                statement.key,
                f"{statement.en}; {_DAYS_EN}, of persons who were on that list on any of them",
                f"{statement.zh}; 只要某人曾在其中某天列入该清单, 即涉及{_DAYS_ZH}",
            )
        case "street-table":
            return Statement(
                statement.key,
                "the newly flagged persons of each day counted by street, after minimum group, suppression "
                "and rounding",
                "每天新增人员按街道统计的人数, 经最小分组、主次抑制和取整处理",
            )
        case "traffic":
            return Statement(
                statement.key,
                f"{statement.en}; and how many keys are new on each list each day, to a power of two",
                f"{statement.zh}; 以及每份清单每天新增的条数(向上取为 2 的幂)",
            )
        case _:
            return Statement(
                statement.key, f"{statement.en}; {_DAYS_EN}", f"{statement.zh}; {_DAYS_ZH}均如此"
            )
