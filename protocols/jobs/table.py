"""`table/1`, class A: a cross-tab of persons, sums and means over several departments, without noise.

Three departments or more add up under masks and encryption: nobody sees one department's part, and the one
that learns the totals, the key-holder, publishes them after disclosure control. One department alone
publishes a table of its own, and nothing else is sent. Messages, parameters and what each coalition learns:
`protocols/sums/SPEC.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import canonical_json
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import area_table
from protocols.identifiers.areas import AREA_TABLES
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    AGGREGATOR,
    COORDINATOR,
    REQUESTER,
    ColumnNeed,
    Content,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Statement,
    Unit,
    source,
)
from protocols.jobs.sources import (
    RECENT,
    TABLE_NEUTRAL,
    TABLE_TRAFFIC,
    check_sources,
    check_summaries,
    kinds_of,
    seats_apart,
    sources_of,
)
from protocols.party import Finished, Incoming, Party, Rand, Step
from protocols.statistics.cross_table import (
    MAX_AMOUNT,
    MAX_MINIMUM,
    check_protected,
    dominated_cells,
    protect_cross,
    with_margins,
)
from protocols.statistics.differencing import Query
from protocols.statistics.suppress import MIN_GROUP, ROUNDING
from protocols.sums.parties import Aggregator, Contributor
from protocols.sums.plan import MODES, Sums
from protocols.tables.layout import (
    MAX_CELLS,
    MAX_MEASURES,
    MAX_ROWS,
    MAX_UNIT_ROWS,
    Axis,
    Layout,
    Reader,
    bad,
    check_slots,
    read_axes,
    read_filters,
    read_measure,
)
from protocols.tables.questions import check_filters, query_of
from protocols.tables.released import (
    PERSONS,
    check_size,
    content,
    exact_figures,
    mean_of,
    sum_of,
)
from protocols.tables.tally import LATEST, Tally, TallyBuilder
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

TABLE: Final = "table"

FEWEST: Final = 3
"""Departments that every cell of a joint table is added up from, at least."""

_PER_MEASURE: Final = 5  # vectors: total, present, largest and second largest contribution, 1 where present
_NAME: Final = "table/1"

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cover:
    """Which values of an axis a source has rows of; of an axis without a cover it has all."""

    role: Role
    slot: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    Attributes:
        layout: the cells, filters and measures.
        sources: how many departments give data: 1, or 3 and more.
        key_holder: the source that learns the totals; None where there is one source.
        mode: of the secure sum.
        areas: name of the area table that identifiers are read with.
        persons_in: in how many of the departments one person may be.
        margins: whether sums over axes are published, too.
        covers: what the sources do not all have.
    """

    layout: Layout
    sources: int
    key_holder: Role | None
    mode: str
    areas: str
    persons_in: int
    margins: bool
    covers: tuple[Cover, ...]

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Roles: source-1 alone, or source-1 to source-n and an aggregator. (2) Params, each known and of
        its type. (3) Measures from zero upwards: others have no dominance rule. (4) Sums that cannot wrap,
        and a table that can be protected. (5) Enough departments in every cell.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = sources_of(spec)
        sources = len(owners)
        if 1 < sources < FEWEST:
            raise _too_few(sources)
        # (2)
        reader = Reader(spec.params, _NAME)
        key_holder = Role(reader.choice("key_holder", owners)) if sources > 1 else None
        mode = reader.choice("mode", MODES, "bfv") if sources > 1 else "bfv"
        persons_in = reader.number("persons_in", 1, sources, sources)
        unit_rows = reader.number("unit_rows", 1, MAX_UNIT_ROWS, 1)
        areas = reader.choice("areas", tuple(AREA_TABLES), "national")
        margins = reader.choice("margins", ("yes", "no"), "yes") == "yes"
        axes = read_axes(reader, least=1)
        measures = tuple(read_measure(table) for table in reader.tables("measures", MAX_MEASURES))
        layout = Layout(axes, read_filters(reader), measures, unit_rows)
        covers = _read_covers(reader, axes, owners)
        reader.finish()
        check_slots(layout)
        found = cls(layout, sources, key_holder, mode, areas, persons_in, margins, covers)
        # (3), (4), (5)
        found._check_measures()
        found._check_sizes()
        found.check_coverage(FEWEST)
        return found

    def _check_measures(self) -> None:
        for measure in self.layout.measures:
            if measure.low < 0:
                raise InputError(
                    "a measure may be below zero, and then nobody can tell whether one person makes a cell",
                    code="below-zero",
                    hint="ask release/1 for such a sum: its noise hides any one person",
                )

    def _check_sizes(self) -> None:
        if self.bound > MAX_AMOUNT:
            raise InputError(
                f"a sum could reach {self.bound}, at most {MAX_AMOUNT} is added up exactly",
                code="sum-too-large",
                hint="declare closer bounds for the measure, or fewer decimals",
            )
        check_size(self.layout.axes, self.figures, margins=self.margins)
        if self.margins:
            check_protected(len(self.layout.axes), self.layout.cells)
        if self.sources > 1:
            self.sums(bytes(32))  # a plan that cannot be made is refused here, too

    def check_coverage(self, fewest: int) -> None:
        """Check that every cell is added up from enough departments; one alone adds nothing up.

        Raises:
            InputError: `too-few-organisations`.
        """
        if self.sources == 1:
            return
        covering = np.zeros(self.layout.cells, dtype=np.int64)
        for role in self.owners:
            covering += self.covered(role)
        least = int(covering.min())
        if least < fewest:
            raise _too_few(least, fewest)

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a dataset: the sources in order."""
        return tuple(source(i + 1) for i in range(self.sources))

    @property
    def maker(self) -> Role:
        """Who makes the table."""
        return self.key_holder or source(1)

    @property
    def words(self) -> int:
        """Length of a source's vector, see `own_vector`."""
        return self.layout.cells * (2 + _PER_MEASURE * len(self.layout.measures))

    @property
    def figures(self) -> tuple[str, ...]:
        """What each number of a cell is called."""
        names = {"sum": sum_of, "mean": mean_of}
        found = (
            names[use](each.slot)
            for each in self.layout.measures
            for use in ("sum", "mean")
            if use in each.of
        )
        return (PERSONS, *found)

    @property
    def bound(self) -> int:
        """No total, and no sum of totals of one kind, is beyond it."""
        return self.sources * MAX_ROWS * max((1, *(measure.most for measure in self.layout.measures)))

    def sums(self, ctx: bytes) -> Sums:
        """Return the plan of the secure sum.

        Raises:
            InputError: `sum-too-large`, `too-many-words`.
        """
        meaning = {
            "job_type": _NAME,
            "layout": self.layout.to_json(),
            "filters": [each.to_json() for each in self.layout.filters],
        }
        return Sums(
            sources=self.owners,
            aggregator=AGGREGATOR,
            key_holder=self.maker,
            words=self.words,
            bound=self.bound,
            mode="mask" if self.mode == "mask" else "bfv",
            ctx=ctx,
            meaning=canonical_json(meaning),
        )

    def covered(self, role: Role) -> Bools:
        """Return which cells a source may have rows of, bool[cells]."""
        found = np.ones(self.layout.shape, dtype=np.bool_)
        for cover in self.covers:
            if cover.role != role:
                continue
            (at,) = (i for i, axis in enumerate(self.layout.axes) if axis.slot == cover.slot)
            along = np.array([value in cover.values for value in self.layout.axes[at].values])
            found &= along.reshape([-1 if i == at else 1 for i in range(found.ndim)])
        return found.ravel()


def _too_few(found: int, fewest: int = FEWEST) -> InputError:
    return InputError(
        f"a cell is added up from {found} organisation(s), expected {fewest} or more",
        code="too-few-organisations",
        hint="add departments, leave out what few of them have, or ask release/1, whose noise hides parts",
    )


def _read_covers(reader: Reader, axes: tuple[Axis, ...], owners: tuple[Role, ...]) -> tuple[Cover, ...]:
    values = {axis.slot: axis.values for axis in axes if axis.values}
    found: list[Cover] = []
    for table in reader.tables("covers", len(owners) * len(axes)):
        role, slot = Role(table.choice("role", owners)), table.text("slot")
        listed = table.texts("values", MAX_CELLS)
        table.finish()
        if not set(listed) <= set(values.get(slot, ())):
            raise bad(
                "a cover names values that are not on an axis with values",
                'write covers = [{ role = "source-1", slot = "district", values = ["440106"] }]',
            )
        if any((cover.role, cover.slot) == (role, slot) for cover in found):
            raise bad("two covers are about one source and one axis", "list all its values in one")
        found.append(Cover(role, slot, frozenset(listed)))
    return tuple(found)


class CrossTable:
    """The job type `table/1`."""

    name: Final = _NAME
    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = False
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) See `check_sources`; and no column of a dataset is filtered twice.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        slots = params.layout.slots
        check_sources(spec, params.owners, slots, (*slots, LATEST))
        check_filters(params.layout, spec.inputs)

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: one source is the key-holder, too."""
        return kinds_of(role, {Params.of(spec).key_holder})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a source's dataset. A measure's bounds have to hold the policy's range."""
        params = Params.of(spec)
        return (*params.layout.needs(covering=True), RECENT) if role in params.owners else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, for the requester."""
        return (PlannedRelease(TABLE, OutputClass.AGGREGATE, Params.of(spec).maker, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation; each pair keeps one coalition of `learns` apart.

        The requester holds no seat: as key-holder it would see what the table withholds, as a source what the
        others have in published cells. Sources are pairwise different, and different from the aggregator.
        """
        params = Params.of(spec)
        outside = frozenset({requester, *spec.recipients})
        owners = [organisation_of(spec.roles[role]) for role in params.owners]
        maker = frozenset({organisation_of(spec.roles[params.maker])})
        return (
            Separation(_WITHHELD.en, maker, outside),
            Separation(_OTHERS.en, frozenset(owners), outside),
            *seats_apart(spec, params.owners, outside, neutral=TABLE_NEUTRAL, each=_ONE_EACH),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames.

        A coalition that is not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        requester = Role(REQUESTER)
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({role}): (_SIZES,) for role in spec.roles
        }
        table[frozenset({requester})] = (_TABLE,)
        table[frozenset({Role(COORDINATOR)})] = (_SIZES, TABLE_TRAFFIC)
        table[frozenset({requester, params.maker})] = (_WITHHELD,)
        if params.sources == 1:
            return table
        table[frozenset({params.maker})] = (_SIZES, _TOTALS)
        for role in params.owners:
            if role != params.maker:
                table[frozenset({requester, role})] = (_OTHERS,)
                table[frozenset(params.owners) - {role}] = (_last(role),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return one question: no record leaves, and there is no noise to pay for."""
        return Cost(queries=1) if role in Params.of(spec).owners else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is counted of whom; other departments, cells or columns are another question."""
        params = Params.of(spec)
        if role not in params.owners:
            return None
        asks = {
            "job_type": self.name,
            "sources": sorted(
                [organisation_of(spec.roles[i.role]), i.dataset, dict(i.columns)] for i in spec.inputs
            ),
            "persons_in": params.persons_in,
            "margins": params.margins,
            "areas": params.areas,
            "covers": sorted(
                [organisation_of(spec.roles[cover.role]), cover.slot, sorted(cover.values)]
                for cover in params.covers
            ),
        }
        (own,) = (given for given in spec.inputs if given.role == role)
        return query_of(params.layout, own, asks, amounts=bool(params.layout.measures))

    def persons_in(self, spec: JobSpec) -> tuple[int, int] | None:
        """Return in how many departments one person may be, and how many give data; None for one alone."""
        params = Params.of(spec)
        return (params.persons_in, params.sources) if params.sources > 1 else None

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: no record leaves, however many departments know the person."""
        Params.of(spec)
        return 1

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the datasets, before anything derived from data leaves.

        (1) A summary of every dataset and of nothing else, made by the same rules. (2) None has more rows
        than bounds allow for. (3) Enough sources; and in every cell enough organisations, three or what a
        participant asks for.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.owners)
        # (2)
        if any(summary.rows > MAX_ROWS for summary in inputs.values()):
            raise ProtocolAborted(
                f"a dataset has more than {MAX_ROWS} rows, so a sum could wrap",
                code="guard-rows",
                hint="register the part of it that the job is about as a dataset of its own",
            )
        # (3)
        if (constraints.min_sources or 0) > self.sources_asked(spec):
            raise ProtocolAborted(
                f"a participant lends rows to {constraints.min_sources} sources, a table counts every one",
                code="guard-sources",
                hint="leave min_sources out of rules for tables",
            )
        fewest = constraints.min_organisations or 0
        if params.sources == 1 and fewest > 1:
            raise ProtocolAborted(
                f"one organisation gives data, a participant asks for {fewest}",
                code="guard-organisations",
                hint="add sources, or allow the department's own table by a rule of its own",
            )
        try:
            params.check_coverage(max(FEWEST, fewest))
        except InputError as error:
            raise ProtocolAborted(error.message, code="guard-organisations", hint=error.hint) from None

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty tally of the cells that this source covers.

        Without a day in `unit`, identifiers are judged as of the day the job was created.
        """
        params = Params.of(spec)
        if role not in params.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return TallyBuilder(
            params.layout,
            unit=unit,
            as_of=spec.day,
            areas=area_table(params.areas),
            clamp=False,
            covered=params.covered(role) if params.covers else None,
        )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the key-holder's, or a source's alone, has the table as output.

        Raises:
            ProtocolAborted: a guard fails.
            InputError: the own tally is beyond a bound.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        if role == AGGREGATOR:
            return Aggregator(params.sums(setup.ctx))
        if not isinstance(prepared, Tally) or prepared.layout != params.layout:
            raise TypeError(f"the role {role} needs the tally that its builder returns")
        vector = own_vector(params, prepared)
        if params.sources == 1:
            return _Alone(published(params, setup.constraints, vector, persons=prepared.about_units))
        return Contributor(
            params.sums(setup.ctx),
            role,
            vector,
            rand,
            publish=lambda totals: published(params, setup.constraints, totals),
        )


def own_vector(params: Params, tally: Tally) -> I64:
    """Return what a source adds, int64[words].

    Of every cell, row-major: persons, and 1 where there are any, so that the total says how many departments
    stand behind a cell. Then of each measure: its sum, the number of amounts, the largest and second largest
    part of one person, and 1 where there are amounts.
    """
    parts = [tally.persons(), _some(tally.persons())]
    for measure in params.layout.measures:
        present = tally.present(measure.slot)
        parts += [tally.total(measure.slot), present, *tally.tops(measure.slot), _some(present)]
    return np.concatenate(parts)


def _some(counts: I64) -> I64:
    return (counts > 0).astype(np.int64)


def published(params: Params, limits: Constraints, totals: I64, *, persons: bool = True) -> tuple[Content]:
    """Return the table after disclosure control: what is withheld, is withheld of every figure of a cell.

    (1) Cells of too few persons or departments; (2) of a measure with too few amounts, with amounts of too
    few departments, or with one that stands out; (3) those that would give away withheld ones. Then persons
    are rounded, and means to two digits more than the amounts have; sums are exact. SPEC.md, section 6.

    Args:
        params: of the job.
        limits: the strictest of all admissions.
        totals: int64[words], as `own_vector` orders them.
        persons: False where a department alone says that its rows are about nobody: then there is nobody to
            protect, the figures are all there, and what is counted are rows, not rounded.
    """
    layout = params.layout
    parts = totals.reshape(-1, *layout.shape)
    counted, behind, per_measure = parts[0], parts[1], parts[2:].reshape(-1, _PER_MEASURE, *layout.shape)
    asked = MIN_GROUP if limits.min_group_size is None else max(limits.min_group_size, 1)
    # One person may be counted once in each of several departments.
    minimum = min(asked * params.persons_in, MAX_MINIMUM)
    fewest = max(FEWEST, limits.min_organisations or 0) if params.sources > 1 else 1
    whole = _whole(counted, params)
    also = (whole > 0) & (_most(behind, params) < fewest)
    for each in per_measure if persons else ():
        total, present, top, second = (_whole(part, params) for part in each[:4])
        # At most so many of the amounts are one person's.
        also |= (whole > 0) & (present < minimum * layout.unit_rows)
        also |= (present > 0) & (_most(each[4], params) < fewest)
        also |= dominated_cells(total, top, second)
    if persons:
        withheld = protect_cross(
            counted,
            minimum,
            margins=params.margins,
            also=also,
            amounts=[(each[0], 0) for each in per_measure],  # a row without an amount adds nothing
            unit_cells=layout.unit_rows,
        )
        hidden = withheld.ravel()
    else:
        hidden = also.ravel()
    figures = exact_figures(
        layout,
        hidden,
        whole,
        [(_whole(each[0], params), _whole(each[1], params)) for each in per_measure],
        margins=params.margins,
        base=ROUNDING if persons else None,
    )
    facts: dict[str, int | str] = {
        "minimum_group": asked if persons else 0,
        "contributors": params.sources,
        "rows_per_person": layout.unit_rows,
        "departments_per_person": params.persons_in,
        "rounding_base": ROUNDING if persons else 1,
        "withheld_cells": int(hidden.sum()),
    }
    return (content(TABLE, figures, facts),)


def _whole(cells: I64, params: Params) -> I64:
    return with_margins(cells) if params.margins else cells


def _most(behind: I64, params: Params) -> I64:
    """Return how many departments stand behind each cell, and behind a sum over cells at the least."""
    for axis in range(behind.ndim if params.margins else 0):
        behind = np.concatenate([behind, behind.max(axis=axis, keepdims=True)], axis=axis)
    return behind


class _Alone:
    """A department by itself: it has its table at once and hears from nobody."""

    def __init__(self, output: tuple[Content]) -> None:
        self._output = output

    def start(self) -> Step:
        """Finish with the table."""
        return Finished((), self._output)

    def receive(self, message: Incoming) -> Step:
        """Refuse: nobody else has a part in this."""
        raise ProtocolAborted(
            f"round {message.round} from {message.sender}: not due", code="unexpected-message"
        )


_SIZES: Final = Statement(
    "published-sizes",
    "how many rows and persons each dataset has as its catalogue publishes them, and when it was taken",
    "各数据集目录中公布的行数、人数和数据时点",
)
_TOTALS: Final = Statement(
    "totals",
    "of every cell, before anything is withheld, the sum over all departments of persons, amounts and their "
    "number, and of each department's largest and second largest contribution of one person, and how many "
    "departments have persons and amounts there; by subtraction of its own part, the same of the others "
    "together; where only one other has any, that one's part",
    "抑制之前每一格的各部门合计: 人数、金额及其个数、各部门最大和次大单人贡献之和, "
    "以及有人数、有金额的部门个数; 减去本部门后得到其余部门的合计; "
    "若某格除本部门外仅一个部门有数据, 则得到该部门在该格的数据",
)
_TABLE: Final = Statement(
    "table",
    "the table after minimum group, dominance rules, suppression and rounding of persons; sums of published "
    "cells exactly, means to two digits more than the amounts have; from sum and mean together mostly the "
    "exact number of amounts",
    "经最小分组、支配规则、主次抑制和人数取整处理后的表; 公布格的合计为精确值, 平均值比金额多保留两位小数; "
    "两者同时公布时多可推出金额的确切个数",
)
_WITHHELD: Final = Statement(
    "withheld-cells",
    "what the table withholds: small cells, dominated ones, exact numbers of persons",
    "表中被抑制的内容: 人数过少的格、被个别单位支配的格、未取整的人数",
)
_OTHERS: Final = Statement(
    "others-together",
    "of published cells, what the other departments have together, persons to within rounding",
    "公布格中其余部门的合计(人数误差不超过取整范围)",
)
_ONE_EACH: Final = "nothing new, but one organisation would count as two of those that every cell needs"


def _last(role: Role) -> Statement:
    return Statement(
        "last-department",
        f"of every cell what {role} alone has, its largest contributions included",
        f"每一格中 {role} 单独的数据, 包括其最大的单人贡献",
    )
