"""`joined-table/1`, class A: a cross-tab of the persons whom several departments know, rows of nobody shown.

Lists are joined under tags; a matcher and a helper of other organisations hold shares of the joined rows and
open nothing but cells: exact ones, published after disclosure control, or such with noise. Messages, masks
and products: `protocols/joined/SPEC.md`, sections 1 to 4; what a cell is, what is published of it, and who
learns what: section 6.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from math import prod
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import Cost
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    Content,
    Forecast,
    PreparedInput,
    Setup,
    Statement,
)
from protocols.jobs.joined_statistic import JoinedStatistic
from protocols.jobs.sources import minimum_of
from protocols.joined.field import NARROW, WIDE, Field
from protocols.joined.lists import JoinedList, Wanted
from protocols.joined.params import (
    DEALER,
    HELPER,
    MATCHER,
    Lists,
    OwnAmount,
    measured_twice,
    owners_of,
    read_lists,
)
from protocols.joined.parties import Dealer, Helper, Holder, Joining, Matcher, Totals
from protocols.joined.statements import NO_MORE, Coalitions, Values, add, coalitions, kept_rows
from protocols.party import Party, Rand
from protocols.releases.figures import (
    CONFIDENCE,
    HALF_EACH,
    Sentence,
    Whole,
    counts_words,
    means_between,
    noisy_figure,
    sums_words,
    whole_numbers,
    within_each,
)
from protocols.releases.params import check_budget, loss_text, read_budget
from protocols.releases.plan import GROUP_SHARE
from protocols.statistics.cross_table import (
    check_protected,
    protect_cross,
    with_margins,
)
from protocols.statistics.differencing import Query
from protocols.statistics.suppress import ROUNDING, TOP_SHARE
from protocols.tables.layout import MAX_MEASURES, Layout, Measure, Reader, bad, decimal_text
from protocols.tables.released import (
    PERSONS,
    Figure,
    cell_labels,
    check_size,
    content,
    exact_figures,
    mean_of,
    sum_of,
)
from protocols.wire import Constraints, InputSummary, JobSpec

TABLE: Final = "table"
MAX_WIDTH: Final = 4096
"""Most words of one row of a list: its hidden cells times one and its amounts."""

MAX_MEAN: Final = 1 << 56
"""Greatest amount of which an exact mean, with its two digits more, stays a whole number of 64 bits."""

NOISE_SHARES: Final = 2
"""Matcher and helper each add noise that is enough by itself."""

_NAME: Final = "joined-table/1"
_USES: Final = ("sum", "mean")

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Seeded = Callable[[Rand], tuple[Ints, Ints | None]]


# -- what is asked -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Total:
    """One number of every cell: how many persons, or a sum over them.

    Attributes:
        name: the slot, or two of them with an asterisk between; empty for persons.
        low, high: least and greatest of what one person adds, in units of 10^-decimals.
        decimals: digits after the point.
        of: `sum`, `mean`, or both; none for persons.
        slots: what is multiplied, person by person; none for persons.
        centre: what is taken off each amount before it is added up: a mean that carries noise is of amounts
            that reach as far below zero as above.
    """

    name: str
    low: int
    high: int
    decimals: int = 0
    of: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    centre: int = 0

    @property
    def most(self) -> int:
        """What one person changes it by, at most."""
        return max(abs(self.low - self.centre), abs(self.high - self.centre))

    @property
    def figures(self) -> tuple[str, ...]:
        """What its numbers are called in a released table."""
        if not self.of:
            return (PERSONS,)
        names = {"sum": sum_of, "mean": mean_of}
        return tuple(names[use](self.name) for use in _USES if use in self.of)


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lists: axes, measures and filters of all sources, in the job's order.
        budget: the privacy loss of the whole job; None where the table is exact.
        margins: whether sums over axes are published, too; never with noise.
    """

    lists: Lists
    budget: Budget | None
    margins: bool

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Sources, a matcher, a helper, and a dealer where two sources' words are multiplied. (2) Params,
        each known and of its type. (3) Something is tabulated, by words of two sources at most. (4) Exact
        sums are of amounts from zero upwards, and of each column once, see `_check_exact`. (5) A table that
        can be made, and protected; noise that can be drawn; numbers that words can hold.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        dealt = DEALER in spec.roles
        owners = owners_of(spec, dealer=dealt)
        # (2)
        reader = Reader(spec.params, _NAME)
        noisy = reader.has("rho") or reader.has("epsilon")
        budget = read_budget(reader) if noisy else None
        lists = read_lists(
            reader,
            owners,
            axes=True,
            amounts="measures",
            uses=_USES,
            most=MAX_MEASURES,
            times=True,
            noisy=noisy,
        )
        margins = not noisy and bool(lists.axes) and reader.choice("margins", ("yes", "no"), "yes") == "yes"
        reader.finish()
        found = cls(lists, budget, margins)
        # (3)
        found._check_asked()
        found._check_seats(dealt=dealt)
        # (4)
        found._check_exact()
        # (5)
        found._check_sizes()
        return found

    def _check_asked(self) -> None:
        if not self.lists.axes and not self.lists.amounts:
            raise bad(
                "neither axes nor measures: that is how many persons the lists have in common",
                "ask overlap/1, whose number carries noise; or name an axis or a measure",
            )
        factors = {each.times for each in self.lists.amounts}
        if any(each.times and each.amount.slot in factors for each in self.lists.amounts):
            raise bad("a measure that is a product is multiplied again", "multiply two columns at a time")
        if len(self.blocks) > 2:
            names = ", ".join(each.source for each in self.blocks)
            raise _too_many_owners(f"hidden axes and measures are of {names}, of two sources at most")
        if self.product and any(each.open for each in self.lists.axes):
            raise _too_many_owners(
                "hidden axes and measures are of two sources, and another axis is open: words of two are "
                "multiplied over all persons together"
            )

    def _check_exact(self) -> None:
        """Refuse exact sums that lemma 6.2 of SPEC.md is not about: it wants each column in one of them."""
        if self.budget is not None:
            return
        if any(total.low < 0 for total in self.totals):
            raise InputError(
                "a measure may be below zero, and then nobody can tell whether one person makes a cell",
                code="below-zero",
                hint='ask for such a sum with noise, which hides any one person: rho = "0.1"',
            )
        slots = [slot for total in self.totals for slot in total.slots]
        if len(set(slots)) != len(slots):
            raise measured_twice("a measure is in two exact sums: multiplied, and by itself or once more")

    def check_columns(self, spec: JobSpec) -> None:
        """Check that nothing else is asked of a column whose exact sums are published.

        The difference of sums within two bounds is that of the persons between them, and an axis or a filter
        on the column is such a bound.

        Raises:
            InputError: `measured-twice`.
        """
        if self.budget is not None:
            return
        for given in spec.inputs:
            own = [each.amount for each in self.lists.amounts if each.source == given.role]
            # A date is never measured exactly: its policy states no range.
            dates = {amount.slot for amount in own if amount.until is not None}
            along = [each.axis.slot for each in self.lists.axes if each.source == given.role]
            kept = [each.kept.slot for each in self.lists.filters if each.source == given.role]
            measured = [given.columns[amount.slot] for amount in own]
            others = {given.columns[slot] for slot in (*along, *kept) if slot not in dates}
            if len(set(measured)) != len(measured) or not others.isdisjoint(measured):
                raise measured_twice(
                    f"a column of the dataset of {given.role} is measured, and something else is asked of it"
                )

    def _check_seats(self, *, dealt: bool) -> None:
        if dealt != self.product:
            found, expected = ("a dealer", "none") if dealt else ("no dealer", "one")
            raise InputError(
                f"{found}, expected {expected}: a dealer is needed where hidden axes and measures are of two "
                "sources, and only there",
                code="bad-roles",
                hint="leave the dealer out" if dealt else "name a dealer, of another organisation",
            )

    def _check_sizes(self) -> None:
        widest = max(self.widths)
        if widest > MAX_WIDTH:
            raise InputError(
                f"a row of a list has {widest} words, at most {MAX_WIDTH} are masked: its hidden cells, each "
                "with a count and its measures",
                code="too-many-words",
                hint="list fewer values, ask for fewer measures, or open an axis",
            )
        check_size(self.layout.axes, self.figures, margins=self.margins)
        if self.margins:
            check_protected(len(self.layout.axes), self.layout.cells)
        if self.reach(1) > self.field.reach:
            raise _overflow(self.reach(1), self.field)
        exact_means = [total.high for total in self.totals if self.budget is None and "mean" in total.of]
        if max(exact_means, default=0) > MAX_MEAN:
            raise _overflow(max(exact_means), self.field)

    @property
    def sources(self) -> int:
        """How many departments bring a list."""
        return len(self.lists.owners)

    @property
    def persons_in(self) -> int:
        """How often one person is counted: a joined person is one row."""
        return 1

    @cached_property
    def product(self) -> bool:
        """Whether words of two sources are multiplied."""
        return len(self.blocks) == 2

    @cached_property
    def blocks(self) -> tuple[Wanted, ...]:
        """Sources with words: those with hidden axes or amounts, or else the first."""
        found = tuple(each for each in self.lists.wholes if each.hidden or each.amounts)
        return found or (self.lists.wanted(self.lists.owners[0]),)

    @cached_property
    def totals(self) -> tuple[Total, ...]:
        """What is added up: persons, then each measure and product, in the job's order."""
        amounts = {each.amount.slot: each for each in self.lists.amounts}
        factors = {each.times for each in self.lists.amounts}
        found = [Total("", 0, 1)]
        for slot, each in amounts.items():
            if each.times:
                found.append(_product(each, amounts[each.times]))
            elif each.of:
                found.append(self._plain(each, factor=slot in factors))
        return tuple(found)

    def _plain(self, each: OwnAmount, *, factor: bool) -> Total:
        amount = each.amount
        centred = self.budget is not None and each.of == ("mean",) and not factor
        centre = (amount.low + amount.high) // 2 if centred else 0
        return Total(amount.slot, amount.low, amount.high, amount.decimals, each.of, (amount.slot,), centre)

    @cached_property
    def layout(self) -> Layout:
        """The released table: axes in the job's order, and a measure for each sum."""
        measures = (
            Measure(each.name, each.low, each.high, each.decimals, each.of) for each in self.totals[1:]
        )
        return Layout(tuple(each.axis for each in self.lists.axes), (), tuple(measures))

    @property
    def figures(self) -> tuple[str, ...]:
        """What each number of a cell is called."""
        return tuple(name for total in self.totals for name in total.figures)

    @property
    def field(self) -> Field:
        """What words are: counts alone take half the bytes."""
        return WIDE if self.lists.amounts else NARROW

    @property
    def widths(self) -> tuple[int, ...]:
        """Words of a row of each list."""
        return tuple(
            each.cells * (1 + len(each.amounts)) if each in self.blocks else 0 for each in self.lists.wholes
        )

    @cached_property
    def noises(self) -> tuple[Noise, ...]:
        """What matcher and helper each add to the cells of each total; none where the table is exact.

        A person who joins or leaves a list is one row more or less: it adds 1, and one amount, to one cell.
        """
        if self.budget is None:
            return ()
        vectors = [
            Vector(each.name or PERSONS, self.layout.cells, each.most, each.most**2, self._share(each))
            for each in self.totals
        ]
        noises, _ = calibrate(vectors, self.budget, honest=1, contributors=NOISE_SHARES)
        return noises

    def _share(self, total: Total) -> Fraction:
        """Return a total's part of the budget: a mean rests on the count as much as on the sum."""
        sums = len(self.totals) - 1
        if not sums:
            return Fraction(1)
        counted = Fraction(1, 1 + sums) if any("mean" in each.of for each in self.totals) else GROUP_SHARE
        return (1 - counted) / sums if total.of else counted

    @property
    def cost(self) -> Cost:
        """What one attempt costs each list."""
        asking = Cost(queries=1)
        if self.budget is None:
            return asking
        loss = Cost.zcdp if self.budget.notion == "zcdp" else Cost.pure_dp
        return loss(self.budget.amount) + asking

    def reach(self, rows: int) -> int:
        """Return what no total of so many joined rows is beyond, noise of both and all (up to 2^-100)."""
        off = [noise.reach for noise in self.noises] or [0] * len(self.totals)
        return max(total.most * rows + far for total, far in zip(self.totals, off, strict=True))

    # -- from words to cells, and back

    @cached_property
    def _inner(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape in which words are opened, and of each axis of the job its place there.

        Local sums: open axes, hidden axes, then 1 and the amounts. Products: the left source's hidden axes
        and words, then the right's.
        """
        shape: list[int] = []
        place: dict[str, int] = {}
        for whole in () if self.product else self.lists.wholes:
            for axis in whole.open:
                place[axis.slot] = len(shape)
                shape.append(axis.size)
        for block in self.blocks:
            for axis in block.hidden:
                place[axis.slot] = len(shape)
                shape.append(axis.size)
            shape.append(1 + len(block.amounts))
        return tuple(shape), tuple(place[axis.slot] for axis in self.layout.axes)

    def _at(self, total: Total) -> tuple[slice | int, ...]:
        """Return which of the opened words are a total's."""
        index: list[slice | int] = []
        if not self.product:
            index += [slice(None) for whole in self.lists.wholes for _ in whole.open]
        for block in self.blocks:
            own = [place for place, each in enumerate(block.amounts, start=1) if each.slot in total.slots]
            index += [slice(None) for _ in block.hidden]
            index.append(own[0] if own else 0)
        return tuple(index)

    def cells(self, totals: Totals) -> tuple[Ints, ...]:
        """Return the cells of each total, each int64 in the shape of the job's table."""
        shape, places = self._inner
        opened = (totals.products if totals.products is not None else totals.sums).reshape(shape)
        # Once one word of each block is taken, the axes are left, in the order of their places.
        order = [sorted(places).index(place) for place in places]
        return tuple(np.asarray(opened[self._at(total)]).transpose(order) for total in self.totals)

    def added(self, rand: Rand) -> tuple[Ints, Ints | None]:
        """Return what matcher or helper adds to its shares: noise, and where nothing is asked, a blank.

        A blank is a uniform word: it leaves no trace of what it is added to. Sums over all persons of words
        that are multiplied, and products that nobody asked for, go that way.
        """
        shape, _ = self._inner
        drawn = self._blank(shape, rand) if self.product else np.zeros(shape, dtype=np.int64)
        for place, total in enumerate(self.totals):
            at = self._at(total)
            drawn[at] = self.noises[place].draw(rand).reshape(drawn[at].shape) if self.noises else 0
        if not self.product:
            return drawn.reshape(self._groups, -1), None
        left, right = (width for width in self.widths if width)
        return self._blank((1, left + right), rand), drawn.reshape(left, right)

    def _blank(self, shape: tuple[int, ...], rand: Rand) -> Ints:
        words = self.field.stream(rand(32)).take(1, prod(shape))
        return self.field.decode(words).reshape(shape)

    @property
    def _groups(self) -> int:
        return prod(axis.size for whole in self.lists.wholes for axis in whole.open)

    def joining(self, counts: Sequence[int], ctx: bytes) -> Joining[Field]:
        """Return what the parties compute of lists of so many keys."""
        wholes = self.lists.wholes
        blocks = [place for place, width in enumerate(self.widths) if width]
        return Joining.of(
            self.lists.owners,
            self.lists.key_holders,
            counts,
            ctx,
            matcher=MATCHER,
            helper=HELPER,
            field=self.field,
            widths=self.widths,
            dealer=DEALER if self.product else None,
            open_sizes=[each.open_sizes for each in wholes],
            product=(blocks[0], blocks[1]) if self.product else None,
        )

    def words(self, prepared: JoinedList, rows: npt.NDArray[np.uint32]) -> Ints:
        """Return the words of these rows of a list: of the person's hidden cell 1 and the amounts, else 0."""
        if prepared.wanted not in self.blocks:
            return np.zeros((len(rows), 0), dtype=np.int64)
        centres = {total.slots[0]: total.centre for total in self.totals if total.centre}
        if not centres:
            return prepared.block(rows)
        off = np.array([centres.get(each.slot, 0) for each in prepared.wanted.amounts], dtype=np.int64)
        return prepared.block(rows, prepared.amounts[rows] - off)


def _product(one: OwnAmount, other: OwnAmount) -> Total:
    ends = [a * b for a in (one.amount.low, one.amount.high) for b in (other.amount.low, other.amount.high)]
    return Total(
        f"{one.amount.slot}*{other.amount.slot}",
        min(ends),
        max(ends),
        one.amount.decimals + other.amount.decimals,
        one.of,
        (one.amount.slot, other.amount.slot),
    )


def _too_many_owners(found: str) -> InputError:
    return InputError(
        found,
        code="too-many-owners",
        hint="open the other axes to the matcher, leave measures or axes out, or ask for one table at a time",
    )


def _overflow(reach: int, field: Field) -> InputError:
    return InputError(
        f"a sum with its noise could be {reach} after one row, words hold {field.reach}",
        code="overflow",
        hint="declare closer bounds for the measure, fewer decimals, or spend more of the budget",
    )


# -- the job type --------------------------------------------------------------------------------------------


class JoinedTable(JoinedStatistic[Params]):
    """The job type `joined-table/1`."""

    name: Final = _NAME
    table: ClassVar[str] = TABLE

    def read(self, spec: JobSpec) -> Params:
        """See `Params.of`."""
        return Params.of(spec)

    def check(self, spec: JobSpec) -> None:
        """See `JoinedStatistic.check`. Exact amounts are of columns that nothing else is asked of."""
        super().check(spec)
        Params.of(spec).check_columns(spec)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """See `JoinedStatistic.columns`. Where sums are exact, bounds are those that the policy states."""
        params = Params.of(spec)
        return params.lists.needs(role, exact=params.budget is None)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        return _learns(Params.of(spec), spec)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is counted of whom; other lists, cells or measures are another question."""
        params = Params.of(spec)
        asks = {
            "job_type": self.name,
            "measures": sorted([each.amount.slot, each.times, *each.of] for each in params.lists.amounts),
            "margins": params.margins,
        }
        noisy = params.budget is not None
        return params.lists.query(spec, role, asks, noisy=noisy, amounts=not noisy and len(params.totals) > 1)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations, and sources that a person is in. (3) No sum over as many persons as the
        shortest list has can leave its word. (4) A node has memory for it.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1), (2)
        params.lists.check_all_on(inputs, constraints)
        counts = [inputs[owner].distinct_keys for owner in params.lists.owners]
        joining = params.joining(counts, bytes(32))
        # (3)
        joining.check_reach(params.reach(min(counts)))
        # (4)
        joining.check_room()

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the matcher's outputs the table.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        counts = [setup.inputs[owner].distinct_keys for owner in params.lists.owners]
        joining = params.joining(counts, setup.ctx)
        # Where nothing is multiplied, everything that is opened is asked for, and exact sums need no blank.
        noise = params.added if params.product or params.noises else None
        if role == MATCHER:
            limits = setup.constraints
            return Matcher(
                joining,
                rand,
                admit=partial(_admit, params, limits),
                noise=noise,
                publish=lambda totals: (published(params, limits, totals),),
            )
        if role == HELPER:
            return Helper(joining, rand, noise=noise)
        if role == DEALER:
            return Dealer(joining, rand)
        own = params.lists.own(role, prepared)
        return Holder(joining, role, own.keys, partial(params.words, own), own.codes, rand)

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return how exact the figures would be for each amount, which stands for the spec's own ρ or ε.

        Raises:
            InputError: the spec is not of this type's form, its table is exact, or an amount is out of range
                (`bad-privacy`).
        """
        params = Params.of(spec)
        if params.budget is None:
            raise InputError(
                "params name neither rho nor epsilon: an exact table, which no privacy loss makes more exact",
                code="bad-privacy",
                hint='ask with noise: rho = "0.1"',
            )
        found = []
        for amount in amounts:
            asked = replace(params, budget=check_budget(Budget(params.budget.notion, amount)))
            for total, noise in zip(asked.totals, asked.noises, strict=True):
                said = sums_words(total.name) if total.of else counts_words()
                within = noise.half_width(CONFIDENCE) / 10**total.decimals
                found.append(Forecast(amount, said.en, said.zh, within, asked.cost))
        return tuple(found)


def _admit(params: Params, limits: Constraints, n: int) -> None:
    """Refuse to go on with too few joined persons where figures are exact. With noise, n stays unsaid.

    Raises:
        ProtocolAborted: `guard-few-joined`.
    """
    if params.budget is None and n < minimum_of(limits):
        raise ProtocolAborted(
            f"fewer than {minimum_of(limits)} persons are on every list, so no cell could be published",
            code="guard-few-joined",
            hint="check the identifiers' columns; ask of larger groups, or with noise",
        )


# -- the table -----------------------------------------------------------------------------------------------


def published(params: Params, limits: Constraints, totals: Totals) -> Content:
    """Return the released table of opened sums.

    Args:
        params: of the job.
        limits: the strictest of all admissions.
        totals: as the matcher has them, noise included.

    Raises:
        ProtocolAborted: `bad-totals`: exact sums that no joined rows have.
    """
    cells = params.cells(totals)
    if params.budget is not None:
        return noisy_table(params, limits, cells)
    _check_totals(params, cells, totals.n)
    return exact_table(params, limits, cells)


def _check_totals(params: Params, cells: Sequence[Ints], n: int) -> None:
    counted = cells[0]
    wrong = bool((counted < 0).any()) or int(counted.sum()) != n
    for total, sums in zip(params.totals[1:], cells[1:], strict=True):
        wrong |= bool(((sums < total.low * counted) | (sums > total.high * counted)).any())
    if wrong:
        raise ProtocolAborted(
            "the sums are none that rows within the job's bounds have",
            code="bad-totals",
            hint="a source sent other words than its list's; compare versions and input commitments",
        )


def least_room(total: Total, minimum: int) -> int:
    """Return how far a published sum has to be from the least and from the most that its persons can have.

    One person is at most D = high - low from either end: over persons who are D/0.4375 away together nobody
    has more than 43.75 % of that, and without the two largest at least a tenth of the largest is left. Of a
    flag, that are so many persons who have it, or have it not: no smaller group. SPEC.md, section 6.

    Args:
        total: a sum.
        minimum: smallest group that is shown.
    """
    apart = total.high - total.low
    least = -(-apart * TOP_SHARE.denominator // TOP_SHARE.numerator)
    return max(least, minimum) if apart == 1 else least


def rooms(total: Total, sums: Ints, persons: Ints) -> tuple[Ints, Ints]:
    """Return how far sums are above the least and below the most that so many persons can have."""
    return sums - total.low * persons, total.high * persons - sums


def exact_table(params: Params, limits: Constraints, cells: Sequence[Ints]) -> Content:
    """Return the table without noise: what is withheld, is withheld of every figure of a cell.

    (1) Cells of too few persons; (2) with a sum too near to the least or to the most that its persons can
    have; (3) those that would give away withheld ones, where a reader knows how many persons are in each cell
    and between which bounds amounts are. Then persons are rounded, and means to two digits more than the
    amounts have.

    Args:
        params: of the job.
        limits: the strictest of all admissions.
        cells: of each total, in the shape of the job's table.
    """
    counted, *sums = (np.atleast_1d(each) for each in cells)
    minimum = minimum_of(limits)
    whole = with_margins if params.margins else np.asarray
    persons, wholes = whole(counted), [whole(each) for each in sums]
    also = np.zeros(persons.shape, dtype=np.bool_)
    for total, each in zip(params.totals[1:], wholes, strict=True):
        also |= (persons > 0) & (np.minimum(*rooms(total, each, persons)) < least_room(total, minimum))
    unknown = [
        room
        for total, each in zip(params.totals[1:], sums, strict=True)
        for room in rooms(total, each, counted)
    ]
    withheld = protect_cross(
        counted, minimum, margins=params.margins, also=also, amounts=[(room, 0) for room in unknown]
    )
    hidden = withheld.ravel()
    figures = exact_figures(
        params.layout,
        hidden,
        persons,
        [(each, persons) for each in wholes],
        margins=params.margins,
        base=ROUNDING,
    )
    facts: dict[str, int | str] = {
        "statistic": "joined table",
        "minimum_group": minimum,
        "contributors": params.sources,
        "rounding_base": ROUNDING,
        "withheld_cells": int(hidden.sum()),
    }
    return content(TABLE, figures, facts)


def noisy_table(params: Params, limits: Constraints, cells: Sequence[Ints]) -> Content:
    """Return the table with noise and intervals; cells of too few noisy persons are withheld.

    Args:
        params: of the job.
        limits: the strictest of all admissions.
        cells: of each total, in the shape of the job's table, with the noise of both.
    """
    least = minimum_of(limits)
    labels = cell_labels(params.layout.axes)
    counted, *sums = (np.atleast_1d(each).ravel() for each in cells)
    noise, *noises = params.noises
    count = whole_numbers(counted, noise, CONFIDENCE, 0)
    hidden = count.value < least
    figures = [noisy_figure(PERSONS, labels, count, hidden)]
    words: list[tuple[Sentence, float]] = [(counts_words(), noise.half_width(CONFIDENCE))]
    means = []
    # A mean is one of somebody.
    by = whole_numbers(counted, noise, HALF_EACH, 1)
    for total, each, own in zip(params.totals[1:], sums, noises, strict=True):
        step = 10**total.decimals
        if "sum" in total.of:
            found = whole_numbers(each, own, CONFIDENCE, 0 if total.low >= 0 else None)
            figures.append(noisy_figure(sum_of(total.name), labels, found, hidden, step))
            words.append((sums_words(total.name), own.half_width(CONFIDENCE) / step))
        if "mean" in total.of:
            around = whole_numbers(each, own, HALF_EACH, None)
            figures.append(_means(total, labels, around, by, hidden))
            means.append(total.name)
    return content(TABLE, figures, _facts(params, least, hidden, words, means))


def _means(total: Total, labels: Mapping[str, Any], around: Whole, by: Whole, hidden: Bools) -> Figure:
    value, low, high = means_between(around, by, total.centre, (total.low, total.high), 10**total.decimals)
    return Figure(mean_of(total.name), labels, value, hidden, low, high)


def _facts(
    params: Params, least: int, hidden: Bools, words: Sequence[tuple[Sentence, float]], means: Sequence[str]
) -> dict[str, int | str]:
    assert params.budget is not None
    gaussian = params.budget.notion == "zcdp"
    within = within_each(*words)
    en, zh = within.en, within.zh
    if means:
        named = ", ".join(means)
        en += f"; each mean of {named} is between its low and its high with 95 %"
        zh += f"; 每个均值({named})有 95 % 的把握在其 low 与 high 之间"
    return {
        "statistic": "joined table",
        "mechanism": f"discrete {'Gaussian' if gaussian else 'Laplace'}",
        "rho" if gaussian else "epsilon": decimal_text(params.budget.amount),
        "noise_shares": NOISE_SHARES,
        "contributors": params.sources,
        "confidence": "95 %",
        "minimum_group": least,
        "shown_from": least,
        "withheld_cells": int(hidden.sum()),
        "within": en[0].upper() + en[1:],
        "within_zh": zh,
        "suppression": (
            f"noise and suppression apply to the same cells: one of fewer than {least} noisy persons is "
            "withheld, and one that is shown may truly have fewer"
        ),
        "suppression_zh": (
            f"同一单元格先加噪声再作抑制: 加噪后少于 {least} 人的不公布, 公布的单元格真实数也可能更少"
        ),
        "not_covered": (
            "the intervals hold the noise of both who add it, each by itself and before it is decided what "
            "is shown: where many cells truly have few persons, those shown are the ones whose noise is "
            "high. They do not hold persons whom a list lacks or has under an unusable identifier, amounts "
            "cut to their bounds, nor errors in the data"
        ),
        "not_covered_zh": (
            "区间已包括双方所加的噪声, 各自单独成立, 且针对决定是否公布之前: 若许多单元格真实数很小, "
            "公布的往往是噪声偏大者。区间不包括清单缺失或证件号码不可用的人员、截断到上下限的数值以及数据本身的错误"
        ),
    }


# -- words ---------------------------------------------------------------------------------------------------


def _learns(params: Params, spec: JobSpec) -> Coalitions:
    names = " and ".join(each.source for each in params.blocks)
    values = Values(
        Sentence("hidden cell and amounts", "隐藏分组和金额"),
        Sentence(f"the hidden cells and amounts of {names}", f" {names} 清单中的隐藏分组和金额"),
        Sentence("the cell and amounts on every other list", "在其他清单中的分组和金额"),
    )
    opens = [each for each in params.lists.axes if each.open]
    named = _slots([each.axis.slot for each in opens])

    def along(computing: Role, owner: Role) -> Sentence:
        others = _slots([each.axis.slot for each in opens if each.source != owner])
        if not others:
            return NO_MORE
        if computing == HELPER:
            return Sentence(f", and if so, where along {others}", f"; 若是, 其在 {others} 上的取值")
        return Sentence(f", and where it stands there along {others}", f", 及其在 {others} 上的取值")

    guessed = Sentence(f", and where it stands along {named}", f", 及其在 {named} 上的取值")
    table = coalitions(
        params.lists,
        values,
        dealt=params.product,
        noisy=bool(params.noises),
        also=along,
        guessed=guessed if opens else NO_MORE,
    )
    add(table, REQUESTER, said=(_table(params, spec),))
    if not params.noises:
        add(table, MATCHER, said=(_CELLS,))
    if opens:
        add(table, MATCHER, said=(_open_places(named),))
        add(table, HELPER, said=(_group_sizes(named),))
    return table


_CELLS: Final = Statement(
    "cells",
    "every cell exactly, before anything is withheld: persons, and each sum that is asked for",
    "抑制之前每一格的精确值: 人数和任务所要求的各项合计",
)


def _slots(slots: Sequence[str]) -> str:
    return ", ".join(slots)


def _open_places(named: str) -> Statement:
    return Statement(
        "open-groups",
        f"where every row that counts, without a name, stands along {named}, and so exactly how many joined "
        f"persons there are of each combination of {named}",
        f"每一条符合条件的记录(不含身份)在 {named} 上的取值, 因而知道 {named} 每种组合的确切联合人数",
    )


def _group_sizes(named: str) -> Statement:
    return Statement(
        "group-sizes",
        f"exactly how many joined persons there are of each combination of {named}",
        f"{named} 每种组合的确切联合人数",
    )


def _loss(params: Params) -> str:
    assert params.budget is not None
    return loss_text(params.budget)


def _table(params: Params, spec: JobSpec) -> Statement:
    sums = [each.name for each in params.totals[1:]]
    kept = kept_rows(params.lists, spec)
    what = f"persons who count on all lists{kept.en}, by cell"
    what += f", and over them {_slots(sums)}" if sums else ""
    what_zh = f"各格中在所有清单均符合条件的人数{kept.zh}" + (f", 以及 {_slots(sums)}" if sums else "")
    if params.budget is not None:
        return Statement(
            "noisy-table",
            f"{what}, each with noise and an interval; whether one person is on one list changes what can be "
            f"told from it by no more than {_loss(params)}, beyond what the lists' sizes tell",
            f"{what_zh}, 均含噪声并附区间; 除清单条数外, 某人是否在某份清单上对可推知内容的影响不超过 "
            f"{_loss(params)}",
        )
    return Statement(
        "table",
        f"{what}, after minimum group, dominance by public bounds, suppression and rounding of persons; sums "
        "of published cells exactly, means to two digits more than the amounts have; from sum and mean "
        "together mostly the exact number of persons",
        f"{what_zh}; 经最小分组、按公开上限的支配规则、主次抑制和人数取整处理; 公布格的合计为精确值, "
        "平均值比金额多保留两位小数; 两者同时公布时多可推出确切人数",
    )
