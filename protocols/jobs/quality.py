"""`quality/1`, class A: how good the tables of several departments are, taken together.

The figures of a department's own look at its table (`protocols.quality`) are added up under masks and
encryption, as those of `table/1`: nobody sees one department's, and the one that learns the totals, the
key-holder, publishes them after disclosure control; or every department adds noise first. Messages,
parameters and what each coalition learns: `protocols/sums/SPEC.md`, section 7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget, Noise, calibrate
from protocols.encoding import canonical_json, sha256_digest
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
    Forecast,
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
    TABLE_NEUTRAL,
    TABLE_TRAFFIC,
    check_enough,
    check_sources,
    check_summaries,
    kinds_of,
    seats_apart,
    sources_of,
)
from protocols.party import Party, Rand
from protocols.quality_sums import (
    TABLE,
    Looked,
    QualityInput,
    QualityInputBuilder,
    exact_content,
    flat,
    noisy_content,
    read_columns,
    vectors,
)
from protocols.releases.figures import CONFIDENCE, counts_words, within_each
from protocols.releases.params import check_budget, loss_text, read_budget
from protocols.statistics.cross_table import MAX_MINIMUM
from protocols.statistics.differencing import Query
from protocols.statistics.suppress import MIN_GROUP
from protocols.sums.parties import Aggregator, Contributor
from protocols.sums.plan import MODES, Sums
from protocols.tables.layout import MAX_ROWS, MAX_UNIT_ROWS, Reader, decimal_text
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

FEWEST: Final = 3
"""Departments whose rows are in every published figure that is not 0, at least."""

_NAME: Final = "quality/1"

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    Attributes:
        columns: what is looked at.
        sources: how many departments give data, 3 or more.
        key_holder: the source that learns the totals.
        mode: of the secure sum.
        areas: name of the area table that identifiers are read with.
        persons_in: in how many of the departments one person may be.
        unit_rows: most rows of one person in one department.
        budget: the privacy loss of the whole job; None where figures are exact.
    """

    columns: tuple[Looked, ...]
    sources: int
    key_holder: Role
    mode: str
    areas: str
    persons_in: int
    unit_rows: int
    budget: Budget | None

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Roles: source-1 to source-n and an aggregator. (2) Params, each known and of its type. (3) Noise
        that can be drawn, and sums that cannot wrap.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = sources_of(spec)
        sources = len(owners)
        if sources < FEWEST:
            raise InputError(
                f"the tables of {sources} organisation(s) are looked at together, expected {FEWEST} or more",
                code="too-few-organisations",
                hint="add departments; a department looks at its own with minshu-node quality",
            )
        # (2)
        reader = Reader(spec.params, _NAME)
        key_holder = Role(reader.choice("key_holder", owners))
        mode = reader.choice("mode", MODES, "bfv")
        persons_in = reader.number("persons_in", 1, sources, sources)
        unit_rows = reader.number("unit_rows", 1, MAX_UNIT_ROWS, 1)
        areas = reader.choice("areas", tuple(AREA_TABLES), "national")
        noisy = reader.has("rho") or reader.has("epsilon")
        budget = read_budget(reader) if noisy else None
        columns = read_columns(reader)
        reader.finish()
        found = cls(columns, sources, key_holder, mode, areas, persons_in, unit_rows, budget)
        # (3)
        found.sums(bytes(32))
        return found

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a dataset: the sources in order."""
        return tuple(source(i + 1) for i in range(self.sources))

    @property
    def most_rows(self) -> int:
        """Most rows of one person, in all departments together."""
        return self.unit_rows * self.persons_in

    @property
    def figures(self) -> int:
        """How many figures there are."""
        return len(flat(self.columns))

    def noise(self) -> tuple[tuple[Noise, ...], Cost]:
        """Return the noise of each run of figures, and what all of it costs; none and nothing where exact.

        Raises:
            InputError: such noise cannot be drawn.
        """
        if self.budget is None:
            return (), NOTHING
        # The key-holder subtracts its own share.
        return calibrate(
            vectors(self.columns, self.most_rows),
            self.budget,
            honest=self.sources - 1,
            contributors=self.sources,
        )

    @property
    def words(self) -> int:
        """Length of a source's vector, see `own_vector`."""
        return self.figures if self.budget is not None else 2 * self.figures

    def sums(self, ctx: bytes) -> Sums:
        """Return the plan of the secure sum.

        Raises:
            InputError: `sum-too-large`, or the noise cannot be drawn.
        """
        noises, _ = self.noise()
        most = max((MAX_ROWS * noise.scale + noise.reach for noise in noises), default=MAX_ROWS)
        meaning = {
            "job_type": _NAME,
            "columns": [column.to_json() for column in self.columns],
            "noise": [[noise.kind, str(noise.scale), str(noise.spread)] for noise in noises],
        }
        return Sums(
            sources=self.owners,
            aggregator=AGGREGATOR,
            key_holder=self.key_holder,
            words=self.words,
            bound=self.sources * most,
            mode="mask" if self.mode == "mask" else "bfv",
            ctx=ctx,
            meaning=canonical_json(meaning),
        )


class QualityAcross:
    """The job type `quality/1`."""

    name: Final = _NAME
    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = False
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) See `check_sources`. (3) No column of a dataset is looked at twice: what is
        withheld of one look, the other might show.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        slots = [column.slot for column in params.columns]
        check_sources(spec, params.owners, slots, slots)
        # (3)
        if any(len(set(given.columns.values())) != len(given.columns) for given in spec.inputs):
            raise InputError(
                "two slots are one column of a dataset",
                code="bad-inputs",
                hint="look at each column once",
            )

    def exact(self, spec: JobSpec) -> bool:
        """Return whether the figures are without noise.

        Raises:
            InputError: the spec is not of this type's form.
        """
        return Params.of(spec).budget is None

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: one source is the key-holder, too."""
        return kinds_of(role, {Params.of(spec).key_holder})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a source's dataset."""
        params = Params.of(spec)
        return tuple(column.need for column in params.columns) if role in params.owners else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, for the requester."""
        return (PlannedRelease(TABLE, OutputClass.AGGREGATE, Params.of(spec).key_holder, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation; each pair keeps one coalition of `learns` apart.

        The requester holds no seat, and of the others each is an organisation of its own.
        """
        params = Params.of(spec)
        outside = frozenset({requester, *spec.recipients})
        owners = frozenset(organisation_of(spec.roles[role]) for role in params.owners)
        return (
            Separation(_OTHERS.en, owners, outside),
            *seats_apart(spec, params.owners, outside, neutral=TABLE_NEUTRAL, each=_ONE_EACH),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md, section 7, for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        requester, holder, exact = Role(REQUESTER), params.key_holder, params.budget is None
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({role}): (_SIZES,) for role in spec.roles
        }
        table[frozenset({Role(COORDINATOR)})] = (_SIZES, TABLE_TRAFFIC)
        table[frozenset({requester})] = (_TABLE if exact else _noisy_table(params),)
        table[frozenset({holder})] = (_SIZES, _TOTALS if exact else _noisy_totals(params))
        if exact:
            table[frozenset({requester, holder})] = (_WITHHELD,)
        for role in params.owners:
            if role != holder:
                table[frozenset({requester, role})] = (_OTHERS if exact else _share_off(params),)
                if exact:
                    table[frozenset(params.owners) - {role}] = (_last(role),)
                else:
                    table[frozenset({holder, role})] = (_less_noise(params),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return one question, and what the noise costs where there is any."""
        params = Params.of(spec)
        return params.noise()[1] + Cost(queries=1) if role in params.owners else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is counted of whom: whole datasets; other departments or columns ask another."""
        params = Params.of(spec)
        if role not in params.owners:
            return None
        asks = {
            "job_type": self.name,
            "sources": sorted(
                [organisation_of(spec.roles[i.role]), i.dataset, dict(i.columns)] for i in spec.inputs
            ),
            "columns": sorted((column.to_json() for column in params.columns), key=_slot),
            "persons_in": params.persons_in,
            "unit_rows": params.unit_rows,
            "areas": params.areas,
        }
        return Query(sha256_digest(canonical_json(asks)), noisy=params.budget is not None)

    def persons_in(self, spec: JobSpec) -> tuple[int, int] | None:
        """Return in how many departments one person may be, and how many give data."""
        params = Params.of(spec)
        return params.persons_in, params.sources

    def rows_of_one(self, spec: JobSpec) -> int | None:
        """Return how many rows of one person exact figures reckon with; with noise, more do not count."""
        params = Params.of(spec)
        return params.unit_rows if params.budget is None else None

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: no record leaves, however many departments know the person."""
        Params.of(spec)
        return 1

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the datasets, before anything derived from data leaves.

        (1) A summary of every dataset and of nothing else, made by the same rules. (2) None has more rows
        than bounds allow for. (3) Enough organisations, and no rule that means records.

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
        check_enough(
            constraints,
            organisations=params.sources,
            sources=1,
            more="add sources",
            without="leave min_sources out of rules for the quality of tables",
        )

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return what `builder_as_of` does; without a day in `unit`, as of the day the job was created (UTC).

        Raises:
            InputError: as `builder_as_of`.
        """
        return self.builder_as_of(spec, role, unit, spec.day)

    def builder_as_of(self, spec: JobSpec, role: Role, unit: Unit | None, day: date) -> InputBuilder:
        """Return an empty builder. With noise it bounds how many rows of one unit count.

        Args:
            spec: the job.
            role: whose dataset it is.
            unit: whom a row is about.
            day: on which days and identifiers are judged, where `unit` does not say one. A node gives the
                data's own: with one of the job's choosing, `future` would count by date.

        Raises:
            InputError: `no-dataset`; `unit-rows`: exact figures reckon with fewer rows of one person than
                the policy says that there may be.
        """
        params = Params.of(spec)
        if role not in params.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        exact = params.budget is None
        if exact and unit is not None and unit.max_rows > params.unit_rows:
            raise InputError(
                f"the job reckons with {params.unit_rows} row(s) of one person, a policy with "
                f"{unit.max_rows}: groups of rows would be too small",
                code="unit-rows",
                hint=f"write unit_rows = {unit.max_rows}, or more where another department asks for it",
            )
        return QualityInputBuilder(
            params.columns,
            unit=unit,
            as_of=day,
            areas=area_table(params.areas),
            bounded=None if exact else params.unit_rows,
            binding=spec.encode(),
        )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the key-holder's has the table as output.

        Raises:
            ProtocolAborted: a guard fails.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        if role == AGGREGATOR:
            return Aggregator(params.sums(setup.ctx))
        if not isinstance(prepared, QualityInput) or prepared.columns != params.columns:
            raise TypeError(f"the role {role} needs what its builder returns")
        return Contributor(
            params.sums(setup.ctx),
            role,
            own_vector(params, prepared, rand),
            rand,
            publish=lambda totals: (published(params, setup.constraints, totals),),
        )

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return how exact the figures would be for each amount, which stands for the spec's own ρ or ε.

        Raises:
            InputError: the spec is not of this type's form, its figures are exact, or an amount is out of
                range (`bad-privacy`).
        """
        params = Params.of(spec)
        if params.budget is None:
            raise InputError(
                "params name neither rho nor epsilon: exact figures, which no privacy loss makes more exact",
                code="bad-privacy",
                hint='ask with noise: rho = "0.1"',
            )
        found = []
        for amount in amounts:
            asked = replace(params, budget=check_budget(Budget(params.budget.notion, amount)))
            noises, cost = asked.noise()
            # Every run has one weight, and one person changes each by as much.
            within = max(noise.half_width(CONFIDENCE) for noise in noises)
            said = counts_words()
            found.append(Forecast(amount, said.en, said.zh, within, cost + Cost(queries=1)))
        return tuple(found)


def own_vector(params: Params, prepared: QualityInput, rand: Rand) -> I64:
    """Return what a source adds, int64[words].

    Exact: of every figure its rows, and 1 where there are any, so that the total says how many departments
    stand behind a figure. With noise: of every figure its rows times the scale, and a share of the noise.
    """
    counts = prepared.counts
    if params.budget is None:
        return np.concatenate([counts, (counts > 0).astype(np.int64)])
    noises, _ = params.noise()
    parts, start = [], 0
    for noise in noises:
        parts.append(counts[start : start + noise.size] * noise.scale + noise.draw(rand))
        start += noise.size
    return np.concatenate(parts, dtype=np.int64)


def published(params: Params, limits: Constraints, totals: I64) -> Content:
    """Return the table of these totals. SPEC.md, section 7.

    Args:
        params: of the job.
        limits: the strictest of all admissions.
        totals: int64[words], as `own_vector` orders them.
    """
    asked = MIN_GROUP if limits.min_group_size is None else max(limits.min_group_size, 1)
    # One person may have so many rows in each of several departments.
    least = min(asked * params.most_rows, MAX_MINIMUM)
    facts: dict[str, int | str] = {
        "statistic": "quality",
        "minimum_group": asked,
        "shown_from": least,
        "contributors": params.sources,
        "rows_per_person": params.unit_rows,
        "departments_per_person": params.persons_in,
    }
    if params.budget is None:
        counts, behind = totals.reshape(2, -1)
        fewest = max(FEWEST, limits.min_organisations or 0)
        return exact_content(params.columns, counts, behind, least=least, fewest=fewest, facts=facts)
    noises, _ = params.noise()
    gaussian = params.budget.notion == "zcdp"
    within = within_each((counts_words(), max(noise.half_width(CONFIDENCE) for noise in noises)))
    facts |= {
        "mechanism": f"discrete {'Gaussian' if gaussian else 'Laplace'}",
        "rho" if gaussian else "epsilon": decimal_text(params.budget.amount),
        "honest_contributors": params.sources - 1,
        "confidence": "95 %",
        "within": within.en[0].upper() + within.en[1:],
        "within_zh": within.zh,
        "suppression": (
            f"noise and suppression apply to the same figures: one of fewer than {least} noisy rows is "
            "withheld, and one that is shown may truly have fewer"
        ),
        "suppression_zh": (
            f"同一数字先加噪声再作抑制: 加噪后少于 {least} 行的不公布, 公布的数字真实值也可能更少"
        ),
    }
    return noisy_content(params.columns, totals, noises, least=least, facts=facts)


def _slot(plain: Mapping[str, object]) -> str:
    return str(plain["slot"])


_SIZES: Final = Statement(
    "published-sizes",
    "how many rows and persons each dataset has as its catalogue publishes them, and when it was taken",
    "各数据集目录中公布的行数、人数和数据时点",
)
_TOTALS: Final = Statement(
    "totals",
    "of every figure, before anything is withheld, the number of rows of all departments together, and how "
    "many departments have such rows; by subtraction of its own, the same of the others together; where only "
    "one other has any, that one's number",
    "抑制之前每个数字的各部门合计行数, 以及有此类行的部门个数; 减去本部门后得到其余部门的合计; "
    "若除本部门外仅一个部门有此类行, 则得到该部门的行数",
)
_TABLE: Final = Statement(
    "table",
    "of the departments together, how many rows have a column missing, invalid by reason, repeated or out of "
    "its code table, after minimum group, suppression and rounding; no value; a figure may be nearly all one "
    "department's; a published 0 says that none of them has such a row",
    "各部门合计有多少行的某列缺失、无效(按原因)、重复或超出代码表, 经最小分组、主次抑制和取整; "
    "不含任何取值; 某一数字可能几乎全部来自一个部门; 公布的 0 表示各部门均无此类行",
)
_WITHHELD: Final = Statement(
    "withheld-figures",
    "what the table withholds: small numbers of rows, those of few departments, exact numbers",
    "表中被抑制的内容: 过小的数字、仅少数部门才有的数字、未取整的数字",
)
_OTHERS: Final = Statement(
    "others-together",
    "of published figures, what the other departments have together, to within rounding",
    "公布的数字中其余部门的合计(误差不超过取整范围)",
)
_ONE_EACH: Final = "the others' part with more taken off than one department's"


def _last(role: Role) -> Statement:
    return Statement(
        "last-department",
        f"of every figure what {role} alone has",
        f"每个数字中 {role} 单独的行数",
    )


def _loss(params: Params) -> str:
    assert params.budget is not None
    return loss_text(params.budget)


def _noisy_table(params: Params) -> Statement:
    rows, within, sources = params.most_rows, params.persons_in, params.sources
    assumed_en = (
        f", if nobody is in more than {within} of the {sources} departments," if within < sources else ""
    )
    assumed_zh = f"(前提: 任何人至多在 {sources} 个部门中的 {within} 个)" if within < sources else ""
    return Statement(
        "noisy-table",
        "of the departments together, how many rows have a column missing, invalid by reason, repeated or "
        f"out of its code table, each with noise and an interval; the {rows} row(s) that one person can have "
        f"in all of them{assumed_en} change what can be told from the whole table by no more than "
        f"{_loss(params)}; a row of which nobody can read whom it is about counts as somebody's of its own",
        f"各部门合计有多少行的某列缺失、无效(按原因)、重复或超出代码表, 均含噪声并附区间; "
        f"一个人在全部部门中最多 {rows} 行{assumed_zh}, 对整张表可推知内容的影响不超过 {_loss(params)}; "
        "无法辨认属于谁的行, 各按单独一人计",
    )


def _noisy_totals(params: Params) -> Statement:
    return Statement(
        "noisy-totals",
        f"every figure with the noise of all {params.sources} departments, also those that are withheld; "
        f"with its own rows and noise taken off, the sum of the others with the noise of "
        f"{params.sources - 1}, which is enough for {_loss(params)}",
        f"每个数字(含 {params.sources} 个部门的噪声, 也包括不公布的); 扣除自己的数据和噪声后, "
        f"得到其余部门之和及其 {params.sources - 1} 份噪声, 足以保证 {_loss(params)}",
    )


def _share_off(params: Params) -> Statement:
    return Statement(
        "share-off",
        f"the published figures of the other departments with the noise of {params.sources - 1}, which is "
        f"enough for {_loss(params)}",
        f"公布的数字扣除该部门的数据和噪声: 其余部门的结果含 {params.sources - 1} 份噪声, "
        f"足以保证 {_loss(params)}",
    )


def _less_noise(params: Params) -> Statement:
    left = params.sources - 2
    return Statement(
        "less-noise",
        f"the sum of the other {left} department(s) with the noise of those alone: what it tells about one "
        f"person is more than {_loss(params)}",
        f"其余 {left} 个部门之和, 仅含其自身的噪声: 可推知的个人信息超出 {_loss(params)}",
    )
