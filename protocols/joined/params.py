"""What a joined job says of seats, lists, columns and rows: read here once for every job type that joins.

axes     = [{ source = "source-1", slot = "street", values = ["S1", "S2"], open = "yes" }]
measures = [{ source = "source-2", slot = "paid", low = "0", high = "5000", decimals = 2 }]
filters  = [{ source = "source-2", slot = "died", from = "2025-01", to = "2025-09" }]
key_holders = ["source-1", "source-2"]
areas    = "national"
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any, Final

from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import InputError
from protocols.identifiers import area_table
from protocols.identifiers.areas import AREA_TABLES
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import ColumnNeed, Domain, PreparedInput, Separation, Unit, source
from protocols.jobs.sources import (
    RECENT,
    check_columns,
    check_enough,
    check_given,
    check_names,
    check_sizes,
    check_summaries,
    read_key_holders,
)
from protocols.joined.lists import LAST_SEEN, STREET, Amount, JoinedList, JoinedListBuilder, Wanted
from protocols.months import month_text
from protocols.overlap.lists import KEY
from protocols.statistics.differencing import Query
from protocols.tables.layout import (
    MAX_AXES,
    MAX_BOUND,
    MAX_CELLS,
    MAX_DECIMALS,
    MAX_FILTERS,
    MONTH_TYPES,
    NUMBER_TYPES,
    TEXT_TYPES,
    Axis,
    Filter,
    Layout,
    Reader,
    bad,
    read_axis,
    read_filter,
    read_slot,
)
from protocols.tables.questions import check_filters
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

MATCHER: Final = Role("matcher")
HELPER: Final = Role("helper")
DEALER: Final = Role("dealer")
NEUTRAL: Final = (MATCHER, HELPER, DEALER)

MIN_LISTS: Final = 2
MAX_LISTS: Final = 6

MAX_OPEN: Final = 1 << 16
"""Most values of an open axis: where a person stands along it takes two bytes."""

_OUTSIDE: Final = ("clip", "refuse")
_KEY_NEED: Final = ColumnNeed(KEY, "join", ("resident-id", "identifier"))
_OWN_SLOTS: Final = frozenset({KEY, LAST_SEEN})
"""Slots that every list or envelope has of its own, beside those that no axis may have either."""


@dataclass(frozen=True, slots=True)
class OwnAxis:
    """An axis of one source; `open`: the matcher sees where a person without a name stands along it."""

    source: Role
    axis: Axis
    open: bool = False

    @property
    def needs(self) -> tuple[ColumnNeed, ...]:
        """The column it takes, once for each use."""
        need = self.axis.need
        if not self.open:
            return (need,)
        return (need, ColumnNeed(need.slot, "open-to-matcher", need.types, domain=need.domain))


@dataclass(frozen=True, slots=True)
class OwnAmount:
    """A column of one source whose amounts are counted on.

    Attributes:
        source: whose it is.
        amount: slot, bounds, digits.
        of: what is asked of it, as uses of a column; none where it only multiplies another one.
        times: slot of another source's amount that it is multiplied by, person by person; else empty.
    """

    source: Role
    amount: Amount
    of: tuple[str, ...]
    times: str = ""

    def needed(self, *, exact: bool = False) -> tuple[ColumnNeed, ...]:
        """Return the column it takes, once for each use.

        Bounds that refuse, or of exact sums, have to be the range that the policy states. Chosen freely, they
        would tell who is beyond them: by the refusal, or by the sum itself. A policy states no range of
        dates, so none answers an exact question about them.
        """
        amount = self.amount
        uses = self.of or ("sum",)
        if amount.until is not None:
            domain = Domain(stated=True) if exact else None
            return tuple(ColumnNeed(amount.slot, use, MONTH_TYPES, domain=domain) for use in uses)
        step = 10**amount.decimals
        bounds = Fraction(amount.low, step), Fraction(amount.high, step)
        domain = Domain(bounds=bounds, stated=exact or amount.outside == "refuse")
        return tuple(ColumnNeed(amount.slot, use, NUMBER_TYPES, domain=domain) for use in uses)


@dataclass(frozen=True, slots=True)
class OwnFilter:
    """A filter of one source's rows."""

    source: Role
    kept: Filter


@dataclass(frozen=True, slots=True)
class Lists:
    """What a job wants of the sources' lists, in the job's own order.

    Attributes:
        owners: the sources.
        key_holders: which two hold a tag key.
        areas: name of the area table that identifiers are read with.
        axes, amounts, filters: of all sources.
        records_from: the source that also tells street and last sight of a person; None: no one does.
    """

    owners: tuple[Role, ...]
    key_holders: tuple[Role, Role]
    areas: str
    axes: tuple[OwnAxis, ...] = ()
    amounts: tuple[OwnAmount, ...] = ()
    filters: tuple[OwnFilter, ...] = ()
    records_from: Role | None = None

    def wanted(self, role: Role) -> Wanted:
        """Return one source's part. Its axes and amounts are in the job's order."""
        own = [each for each in self.axes if each.source == role]
        return Wanted(
            source=role,
            open=tuple(each.axis for each in own if each.open),
            hidden=tuple(each.axis for each in own if not each.open),
            amounts=tuple(each.amount for each in self.amounts if each.source == role),
            filters=tuple(each.kept for each in self.filters if each.source == role),
            envelope=role == self.records_from,
        )

    @property
    def wholes(self) -> tuple[Wanted, ...]:
        """Every source's part, in order."""
        return tuple(map(self.wanted, self.owners))

    def needs(self, role: Role, *, exact: bool = False) -> tuple[ColumnNeed, ...]:
        """Return every column that the dataset of a source has to offer, once for each use.

        Args:
            role: whose dataset.
            exact: whether the bounds of amounts have to be what the policy states, see `OwnAmount.needed`.
        """
        if role not in self.owners:
            return ()
        return (
            _KEY_NEED,
            *(need for part in self.axes if part.source == role for need in part.needs),
            *(need for part in self.amounts if part.source == role for need in part.needed(exact=exact)),
            *(each.kept.need for each in self.filters if each.source == role),
            *(_ENVELOPE if role == self.records_from else ()),
            RECENT,
        )

    def check_columns(self, spec: JobSpec) -> None:
        """Check that every source brings one dataset with the slots of its part, and filters a column once.

        And that each is of another organisation: here, so that `separation` can be asked of any spec.

        Raises:
            InputError: `bad-inputs`, `one-list-each`, `filters-on-one-column`, `reserved-name`.
        """
        check_given(spec, self.owners)
        if len({organisation_of(spec.roles[role]) for role in self.owners}) != len(self.owners):
            raise InputError(
                "one organisation brings two lists, but it needs no protocol to join them",
                code="one-list-each",
                hint="let each organisation bring one list",
            )
        for given in spec.inputs:
            wanted = self.wanted(given.role)
            check_columns(given, wanted.required, wanted.known)
            check_filters(Layout(filters=wanted.filters), (given,))
        check_names(spec)

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None) -> JoinedListBuilder:
        """Return an empty list of a source's part; identifiers as of the day of the data, or of the job.

        Raises:
            InputError: `no-dataset`.
        """
        if role not in self.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        areas = area_table(self.areas)
        return JoinedListBuilder(self.wanted(role), as_of=spec.day, areas=areas, unit=unit)

    def own(self, role: Role, prepared: PreparedInput | None) -> JoinedList:
        """Return the list of a source as its builder made it.

        Raises:
            TypeError: it is none.
        """
        if not isinstance(prepared, JoinedList) or prepared.wanted != self.wanted(role):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        return prepared

    def check_all_on(self, inputs: Mapping[Role, InputSummary], constraints: Constraints) -> None:
        """Check what admissions say of lists that a person is on, every one, who counts.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations, and sources that a person is in.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        # (1)
        check_summaries(inputs, self.owners)
        check_sizes(inputs)
        # (2)
        check_enough(
            constraints,
            organisations=len(self.owners),
            sources=len(self.owners),
            more="add sources",
            without="a person counts who is on every list: add sources",
        )

    def query(
        self,
        spec: JobSpec,
        role: Role,
        asks: Mapping[str, Any],
        *,
        noisy: bool = False,
        amounts: bool = False,
    ) -> Query | None:
        """Return what a job selects of one source's dataset; None for a role without one.

        A person is in the answer who is on every list and counts on each: so what the lists are, what is
        filtered there, and which rows have a place or an amount there, select persons of this list. All of
        that is `asks`: two exact questions that differ anywhere in it select different persons of every list,
        and their difference would be an answer nobody approved. No filter stands as a filter, not even one of
        this list: somebody may have two rows, each kept by one of two filters that exclude each other, and so
        count in both answers. What is equal whatever the sources are numbered is one question.

        Args:
            spec: the job.
            role: whose dataset.
            asks: plain JSON of what else makes it another question, the job type's name above all.
            noisy: see `Query`.
            amounts: see `Query`.
        """
        given = spec.input_of(role)
        if given is None:
            return None
        parts = sorted(
            (
                {
                    "organisation": organisation_of(spec.roles[each.role]),
                    "dataset": each.dataset,
                    "columns": dict(each.columns),
                    "wanted": self.wanted(each.role).to_json(),
                }
                for each in spec.inputs
            ),
            key=canonical_json,
        )
        plain = {
            "lists": parts,
            # A table protected twice, its axes in two orders, may withhold other cells each time.
            "axes": [each.axis.slot for each in self.axes],
            "amounts": [[each.amount.slot, sorted(each.of), each.times] for each in self.amounts],
            "areas": self.areas,
            **asks,
        }
        # A digest: a job may list a million values, and is only ever compared.
        return Query(sha256_digest(canonical_json(plain)), noisy=noisy, amounts=amounts)


def measured_twice(found: str) -> InputError:
    """Return what is said of exact sums that would tell of each other whom they do not hold."""
    return InputError(
        found,
        code="measured-twice",
        hint='ask for one sum of each column, without an axis or a filter on it; or with noise: rho = "0.1"',
    )


_ENVELOPE: Final = (
    ColumnNeed(STREET, "group", TEXT_TYPES),
    ColumnNeed(LAST_SEEN, "carry", ("date", "month"), required=False),
)


# -- seats ---------------------------------------------------------------------------------------------------


def owners_of(spec: JobSpec, *, dealer: bool, extra: Collection[Role] = ()) -> tuple[Role, ...]:
    """Return the sources in order, once the seats are exactly those of a joined job.

    Args:
        spec: the job.
        dealer: whether there is a dealer.
        extra: other seats that the job type knows and the job has.

    Raises:
        InputError: `bad-roles`.
    """
    neutral = (MATCHER, HELPER, *((DEALER,) if dealer else ()))
    count = len(spec.roles) - len(neutral) - len(extra)
    owners = tuple(source(i + 1) for i in range(count))
    if set(spec.roles) != {*owners, *neutral, *extra} or not MIN_LISTS <= count <= MAX_LISTS:
        said = f"{', '.join(neutral[:-1])} and {neutral[-1]}"
        raise InputError(
            f"{len(spec.roles)} roles, expected source-1 to source-n, {said}"
            f"{''.join(f' and {role}' for role in extra)}{'' if dealer else ', and no dealer'}",
            code="bad-roles",
            hint=f"number {MIN_LISTS} to {MAX_LISTS} lists without gaps"
            + ("" if dealer else "; a dealer is only needed where columns are multiplied"),
        )
    return owners


def seats_apart(spec: JobSpec, owners: Sequence[Role], requester: Organisation) -> tuple[Separation, ...]:
    """Return which organisations must be different, with what they would learn if they were one.

    (1) Matcher, helper and dealer are three. (2) None of the three brings a list, (3) asks or receives.
    (4) Each list is of another organisation.
    """
    outside = frozenset({requester, *spec.recipients})
    at = {role: frozenset({organisation_of(spec.roles[role])}) for role in spec.roles}
    lists = frozenset(organisation_of(spec.roles[role]) for role in owners)
    found = [Separation(_PAYLOADS, at[MATCHER], at[HELPER])]  # (1)
    if DEALER in at:
        found += [Separation(_SHARES_BROKEN, at[DEALER], at[MATCHER] | at[HELPER])]
    brought = {MATCHER: _JOINED_ROWS, HELPER: _ROWS_ELSEWHERE, DEALER: _NAMED_SHARES}
    found += [Separation(why, at[role], lists) for role, why in brought.items() if role in at]  # (2)
    found += [Separation(_UNRELEASED, at[role], outside) for role in NEUTRAL if role in at]  # (3)
    return (
        *found,
        *(Separation(_ONE_LIST_EACH, at[one], at[other]) for one, other in combinations(owners, 2)),  # (4)
    )


_PAYLOADS: Final = "every list's values, person by person, without names"
_SHARES_BROKEN: Final = "the joined persons' values, person by person: who deals the triples can open shares"
_JOINED_ROWS: Final = "for each row of its own list, whether the person is on the other lists, and where open"
_ROWS_ELSEWHERE: Final = "for each row of its own list, whether the person is on the other lists"
_NAMED_SHARES: Final = "with the matcher or the helper alone, the joined values of persons on its own list"
_UNRELEASED: Final = "how many persons are joined, exactly, and what the release withholds"
_ONE_LIST_EACH: Final = "nothing new, but an organisation that brings two lists needs no protocol for them"


# -- params --------------------------------------------------------------------------------------------------


def read_lists(
    reader: Reader,
    owners: Sequence[Role],
    *,
    axes: bool = False,
    amounts: str = "",
    uses: Sequence[str] = ("sum",),
    most: int = 0,
    least: int = 0,
    times: bool = False,
    records: bool = False,
    reserved: Collection[str] = (),
    noisy: bool = False,
) -> Lists:
    """Read what three job types have in common; what else the params hold is left to the caller.

    Args:
        reader: the params.
        owners: the sources.
        axes: whether there may be `axes`, up to four.
        amounts: what amounts are called: `measures`, `columns`; empty for none.
        uses: what may be asked of an amount; the first where `of` is left out. With one, there is no `of`.
        most: most amounts.
        least: fewest amounts.
        times: whether an amount may name another source's that it is multiplied by. One that is so named
            needs no `of`: then it only multiplies.
        records: whether `records_from` names the source that also tells street and last sight.
        reserved: slots that are taken, beside those that always are.
        noisy: whether what is told carries noise; then no amount may refuse a list.

    Raises:
        InputError: `bad-params`, `too-many-cells`.
    """
    tables = reader.tables(amounts, most, least=least) if amounts else ()
    if len(tables) < least:
        raise bad(f"params.{amounts} has {len(tables)} entries, fewer than {least}", f"list {least} or more")
    found = Lists(
        owners=tuple(owners),
        key_holders=read_key_holders(reader, owners),
        areas=reader.choice("areas", tuple(AREA_TABLES), "national"),
        axes=_read_axes(reader, owners) if axes else (),
        amounts=_read_amounts(tables, owners, uses, times=times),
        filters=_read_filters(reader, owners),
        records_from=Role(reader.choice("records_from", owners)) if records else None,
    )
    check_slots(found, reserved)
    if noisy and any(each.amount.outside == "refuse" for each in found.amounts):
        raise bad(
            "an amount refuses the list in a job with noise: that would end for one row, and so tell of it",
            "leave outside out: what is out of bounds is cut to them, and counted at its own node",
        )
    return found


def _read_source(table: Reader, owners: Sequence[Role]) -> Role:
    return Role(table.choice("source", owners))


def _read_axes(reader: Reader, owners: Sequence[Role]) -> tuple[OwnAxis, ...]:
    found = []
    for table in reader.tables("axes", MAX_AXES):
        owner, axis = _read_source(table, owners), read_axis(table)
        is_open = table.choice("open", ("no", "yes"), "no") == "yes"
        table.finish()
        if is_open and axis.size > MAX_OPEN:
            raise _too_many(axis.size, MAX_OPEN)
        found.append(OwnAxis(owner, axis, is_open))
    cells = prod(each.axis.size for each in found)
    if cells > MAX_CELLS:
        raise _too_many(cells, MAX_CELLS)
    return tuple(found)


def _too_many(found: int, most: int) -> InputError:
    return InputError(
        f"{found} cells along the axes, at most {most} are counted",
        code="too-many-cells",
        hint="list fewer values, or ask for fewer axes at a time",
    )


def _read_amounts(
    tables: Sequence[Reader], owners: Sequence[Role], uses: Sequence[str], *, times: bool
) -> tuple[OwnAmount, ...]:
    found: list[OwnAmount] = []
    for table in tables:
        owner, amount = _read_source(table, owners), _read_amount(table)
        of = table.texts("of", len(uses)) if len(uses) > 1 and table.has("of") else ()
        if not set(of) <= set(uses):
            raise bad("an amount is asked for what it does not give", f"choose from {', '.join(uses)}")
        other = table.text("times") if times and table.has("times") else ""
        table.finish()
        found.append(OwnAmount(owner, amount, of, other))
    owner_of = {each.amount.slot: each.source for each in found}
    factors = {each.times for each in found if each.times}
    for each in found:
        if each.times and owner_of.get(each.times, each.source) == each.source:
            raise bad(
                f"an amount of {each.source} is multiplied by what is no amount of another source",
                "list the other one, too, and name its slot; one source multiplies its own in its data",
            )
    return tuple(
        replace(each, of=() if each.amount.slot in factors else (uses[0],)) if not each.of else each
        for each in found
    )


def _read_amount(table: Reader) -> Amount:
    """Read `{slot, low, high, decimals, outside, until}`; what else the table holds is left to the caller."""
    slot = read_slot(table)
    decimals = table.number("decimals", 0, MAX_DECIMALS, 0)
    outside = table.choice("outside", _OUTSIDE, "clip")
    until = month_text(int(table.month("until"))) if table.has("until") else None
    low, high = (table.fraction(name) * 10**decimals for name in ("low", "high"))
    if low.denominator != 1 or high.denominator != 1 or not -MAX_BOUND <= low < high <= MAX_BOUND:
        raise bad(
            "low and high are not the least and greatest amount of a column, in its own decimals",
            'write for example low = "0", high = "5000"',
        )
    if until is not None and (decimals or outside == "refuse"):
        raise bad(
            "months have decimals, or refuse what is out of bounds, but are whole and have no stated range",
            "leave decimals and outside out where there is until",
        )
    return Amount(slot, int(low), int(high), decimals, outside, until)


def _read_filters(reader: Reader, owners: Sequence[Role]) -> tuple[OwnFilter, ...]:
    found = []
    for table in reader.tables("filters", MAX_FILTERS):
        found.append(OwnFilter(_read_source(table, owners), read_filter(table)))
        table.finish()
    return tuple(found)


def check_slots(lists: Lists, reserved: Collection[str] = ()) -> None:
    """Refuse a slot that stands for two things: axes and amounts name what is released.

    A filter may use the slot of an axis or an amount of its own source.

    Raises:
        InputError: `bad-params`.
    """
    taken = _OWN_SLOTS | set(reserved) | ({STREET} if lists.records_from else set())
    named = [(each.axis.slot, each.source) for each in lists.axes]
    named += [(each.amount.slot, each.source) for each in lists.amounts]
    kept = [(each.kept.slot, each.source) for each in lists.filters]
    if taken & {slot for slot, _ in named + kept}:
        raise bad(
            f"a slot has one of the names {', '.join(sorted(taken))}, which every list has of its own",
            "give it another name",
        )
    owner = dict(named)
    for pairs in (named, kept):
        if len({slot for slot, _ in pairs}) != len(pairs):
            raise bad("two axes, amounts or filters have one slot", "give each a slot of its own")
    if any(owner.get(slot, source_) != source_ for slot, source_ in kept):
        raise bad(
            "a filter of one source has the slot of another source's column",
            "give the columns of different sources different slots",
        )
