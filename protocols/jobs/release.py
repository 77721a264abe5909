"""`release/1`, class A: differentially private numbers about one department's rows, or several together.

Count, histogram, sum, mean, quantile, tree or unknown keys. Every number carries noise and an interval, and
a budget pays for it. What is computed, how much one person can change it and what each coalition learns:
`protocols/dp/SPEC.md`, "`release/1`".
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget
from protocols.encoding import canonical_json
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import area_table
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
)
from protocols.jobs.sources import check_enough, check_sources, check_summaries, kinds_of, seats_apart
from protocols.party import Finished, Incoming, Party, Rand, Step
from protocols.releases.figures import TABLE, content
from protocols.releases.forecasts import forecasts
from protocols.releases.params import JOB_TYPE, Params, check_budget, loss_text
from protocols.releases.plan import Plan, plan
from protocols.statistics.differencing import Query
from protocols.statistics.suppress import MIN_GROUP
from protocols.sums.parties import Aggregator, Contributor
from protocols.sums.plan import Sums
from protocols.tables.questions import check_filters, query_of
from protocols.tables.tally import Tally, TallyBuilder
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of


class Release:
    """The job type `release/1`."""

    name: Final = JOB_TYPE
    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = False
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients, and that such noise can be drawn and added up.

        (1) Params and roles. (2) See `check_sources`; and no column of a dataset is filtered twice. (3) The
        table can be made: `plan`; and no sum can wrap.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        known = {need.slot for need in params.columns}
        required = {need.slot for need in params.columns if need.required}
        check_sources(spec, params.owners, required, known)
        check_filters(params.layout, spec.inputs)
        # (3)
        made = plan(params)
        if params.sources > 1:
            _sums(made, bytes(32))

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: one source of several is the key-holder, too."""
        return kinds_of(role, {Params.of(spec).key_holder})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of axes, filters and measure, and the one that says how recent a row is."""
        params = Params.of(spec)
        return params.columns if role in params.owners else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, which the key-holder, or the only source, makes for the requester."""
        return (PlannedRelease(TABLE, OutputClass.AGGREGATE, _maker(Params.of(spec)), REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation.

        The requester holds no seat. Of several sources every two are different, which keeps a second share of
        the noise from the key-holder, and the aggregator is none of them.
        """
        params = Params.of(spec)
        owners = [organisation_of(spec.roles[role]) for role in params.owners]
        outside = frozenset({requester, *spec.recipients})
        return (
            Separation(_UNRELEASED, outside, frozenset(owners)),
            *seats_apart(spec, params.owners, outside, neutral=_NEUTRAL, each=_ONE_SHARE),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({Role(REQUESTER)}): (_noisy_table(params),),
            frozenset({Role(COORDINATOR)}): (_PUBLISHED_SIZES, _TRAFFIC),
        }
        if params.key_holder is None:
            table[frozenset({_maker(params)})] = (_PUBLISHED_SIZES, _OWN_NOISE)
            return table
        table[frozenset({AGGREGATOR})] = (_PUBLISHED_SIZES, _MASKED)
        for role in params.owners:
            table[frozenset({role})] = (_PUBLISHED_SIZES,)
        table[frozenset({params.key_holder})] = (_PUBLISHED_SIZES, _noisy_totals(params))
        for role in params.owners:
            if role != params.key_holder:
                table[frozenset({Role(REQUESTER), role})] = (_share_off(params),)
                if params.sources > 2:  # both of two know all there is
                    table[frozenset({params.key_holder, role})] = (_less_noise(params),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return the privacy loss of the whole release and one question, the same for every source."""
        params = Params.of(spec)
        if role not in params.owners:
            return NOTHING
        return plan(params).cost + Cost(queries=1)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is computed of whose rows, and by which filters; every number of it is noisy."""
        params = Params.of(spec)
        given = spec.input_of(role)
        if given is None:
            return None
        asks = {
            "job_type": self.name,
            "statistic": params.statistic,
            "keys": params.keys,
            "levels": [*params.levels],
            "persons_in": params.persons_in,
            "areas": params.areas,
            "sources": sorted([organisation_of(spec.roles[i.role]), i.dataset] for i in spec.inputs),
            "columns": sorted([slot, column] for slot, column in given.columns.items()),
        }
        return query_of(params.layout, given, asks, noisy=True)

    def persons_in(self, spec: JobSpec) -> tuple[int, int] | None:
        """Return in how many departments one person may be, and how many give data; None for one alone."""
        params = Params.of(spec)
        return (params.persons_in, params.sources) if params.sources > 1 else None

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: a row counts that one source alone knows."""
        Params.of(spec)
        return 1

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder, which bounds what one person adds; identifiers as of the job's day."""
        params = Params.of(spec)
        if role not in params.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return TallyBuilder(
            params.layout,
            unit=unit,
            as_of=spec.day,
            areas=area_table(params.areas),
            clamp=True,
            keys=params.keys,
        )

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the datasets, before anything derived from data leaves.

        (1) A summary of every dataset and of nothing else, made by the same rules. (2) Enough organisations.
        (3) A rule that lends rows only to lists of several sources does not mean a release.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.owners)
        # (2), (3)
        check_enough(
            constraints,
            organisations=params.sources,
            sources=1,
            more="add sources",
            without="min_sources is for lists of persons; a release has no such limit",
        )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the key-holder's, or the only source's, outputs the table.

        Raises:
            ProtocolAborted: a guard on the inputs fails.
            InputError: own amounts that contradict the job's bounds so far that a sum could wrap.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        made = plan(params)
        if role == AGGREGATOR and params.sources > 1:
            return Aggregator(_sums(made, setup.ctx))
        if role not in params.owners or not isinstance(prepared, Tally):
            raise TypeError(f"the role {role} needs the tally that its builder returns")
        asked = setup.constraints.min_group_size
        minimum = MIN_GROUP if asked is None else asked
        words = made.noisy(prepared, rand)
        if params.sources == 1:
            keys = prepared.keyed()[0] if params.keys else ()
            return Alone(content(made, words, minimum, keys))
        return Contributor(
            _sums(made, setup.ctx),
            role,
            words,
            rand,
            publish=lambda totals: (content(made, totals, minimum),),
        )

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return how exact each figure would be for each amount, which stands for the spec's own ρ or ε.

        Raises:
            InputError: the spec is not of this type's form, or an amount is out of range (`bad-privacy`).
        """
        params = Params.of(spec)
        return tuple(
            forecast
            for amount in amounts
            for forecast in forecasts(
                plan(replace(params, budget=check_budget(Budget(params.budget.notion, amount)))),
                Cost(queries=1),
            )
        )


class Alone:
    """The part of a department that releases numbers of its own: it makes the table and sends nothing."""

    def __init__(self, released: Content) -> None:
        self._released = released

    def start(self) -> Step:
        """Return the table."""
        return Finished((), (self._released,))

    def receive(self, message: Incoming) -> Step:
        """Refuse whatever comes: there is nobody else.

        Raises:
            ProtocolAborted: `unexpected-message`.
        """
        raise ProtocolAborted(
            f"round {message.round} from {message.sender}: expected none", code="unexpected-message"
        )


def _maker(params: Params) -> Role:
    return params.key_holder or params.owners[0]


def _sums(made: Plan, ctx: bytes) -> Sums:
    """Return the secure sum of a release of several departments.

    Raises:
        InputError: `sum-too-large` or `too-many-words`.
    """
    params = made.params
    parts: list[Any] = [
        [vector.name, vector.size, str(vector.l1), noise.kind, str(noise.scale), str(noise.spread)]
        for vector, noise in zip(made.vectors, made.noises, strict=True)
    ]
    return Sums(
        sources=params.owners,
        aggregator=AGGREGATOR,
        key_holder=_maker(params),
        words=made.words,
        bound=made.bound,
        mode=params.mode,
        ctx=ctx,
        # The same spec, but perhaps another version: noise of another scale must not be added.
        meaning=canonical_json(parts),
    )


_UNRELEASED: Final = "what the table withholds, and its numbers with one share of the noise less"
_NEUTRAL: Final = (
    "nothing while masks hold; apart, nobody with an interest in the table has the masked vectors"
)
_ONE_SHARE: Final = "the sum of the other departments with two shares of the noise taken off, not one"

_PUBLISHED_SIZES: Final = Statement(
    "published-sizes",
    "the rounded size of each dataset and when it was taken, as its catalogue publishes them",
    "各数据集目录中已公布的规模(取整)和数据时点",
)
_OWN_NOISE: Final = Statement(
    "own-noise",
    "its own rows and the noise it adds to their counts: nothing that it did not know",
    "本部门自己的数据及其所加的噪声, 没有新的信息",
)
_MASKED: Final = Statement(
    "masked-vectors",
    "how long the vectors are; their words are masked, also after adding up, and look random",
    "向量的长度; 各分量均经掩码处理(求和后亦然), 与随机数无异",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, how far each node is, and how large "
    "the sealed table is, which shows about how many unknown keys were released; all else follows from the "
    "job, but how long a step takes grows with the data",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度、统计表密文的大小(可大致看出公布了多少个未知键); "
    "其余均由任务本身决定, 但各步骤耗时随数据量增加",
)


def _loss(params: Params) -> str:
    return loss_text(params.budget, params.delta)


_ASKED: Final = {
    "count": ("one count", "一个计数"),
    "histogram": ("a count for each cell", "每个单元格的计数"),
    "sum": ("a sum and a count for each cell", "每个单元格的合计和计数"),
    "mean": ("a mean and a count for each cell", "每个单元格的均值和计数"),
    "quantile": ("quantiles between public bins", "公开分箱之间的分位数"),
    "tree": ("a count for each area at every level", "各级区域的计数"),
    "keys": ("values that enough rows have, and a count for each", "出现足够多次的取值及其计数"),
}


def _noisy_table(params: Params) -> Statement:
    en, zh = _ASKED[params.statistic]
    rows, within, sources = params.most_rows, params.persons_in, params.sources
    # How many rows of one person count, every node sees to; in how many departments one is, nobody can see.
    assumed_en = (
        f", if nobody is in more than {within} of the {sources} departments," if within < sources else ""
    )
    assumed_zh = f"(前提: 任何人至多在 {sources} 个部门中的 {within} 个)" if within < sources else ""
    return Statement(
        "noisy-table",
        f"{en}, each with noise and an interval; the {rows} row(s) that one person can have in all "
        f"departments together{assumed_en} change what can be told from the whole table by no more than "
        f"{_loss(params)}",
        f"{zh}, 均含噪声并附区间; 一个人在全部部门中最多 {rows} 条记录{assumed_zh}, "
        f"对整张表可推知内容的影响不超过 {_loss(params)}",
    )


def _noisy_totals(params: Params) -> Statement:
    others, enough = params.sources - 1, params.honest
    return Statement(
        "noisy-totals",
        f"every total with the noise of all {params.sources} departments, also those that are withheld; with "
        f"its own rows and noise taken off, the sum of the others with the noise of {others}, of which "
        f"{enough} are enough for {_loss(params)}",
        f"每个合计(含 {params.sources} 个部门的噪声, 也包括不公布的单元格); 扣除自己的数据和噪声后, "
        f"得到其余部门之和及其 {others} 份噪声, 其中 {enough} 份即足以保证 {_loss(params)}",
    )


def _share_off(params: Params) -> Statement:
    others, enough = params.sources - 1, params.honest
    return Statement(
        "share-off",
        f"the table's numbers about the other departments with the noise of {others}, of which {enough} are "
        f"enough for {_loss(params)}",
        f"表中数字扣除该部门的数据和噪声: 其余部门的结果含 {others} 份噪声, "
        f"其中 {enough} 份即足以保证 {_loss(params)}",
    )


def _less_noise(params: Params) -> Statement:
    left = params.sources - 2
    if params.colluding:
        en, zh = f"no more than {_loss(params)} still", f"仍不超过 {_loss(params)}"
    else:
        en, zh = f"more than {_loss(params)}", f"超出 {_loss(params)}"
    return Statement(
        "less-noise",
        f"the sum of the other {left} department(s) with the noise of those alone: what it tells about one "
        f"person is {en}",
        f"其余 {left} 个部门之和, 仅含其自身的噪声: 可推知的个人信息{zh}",
    )
