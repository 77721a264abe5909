"""`train/1`, class C: one model of several departments' rows, round by round, by secure sums with noise.

Every department computes on its own rows; what leaves is a vector of whole numbers that is only ever added
to the others'. Recipes, sums and rounds: `protocols/training/SPEC.md`, sections 1, 2 and 4; what a job may
ask, and who learns what: section 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import calibrate
from protocols.encoding import digest_bytes
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import area_table
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
    Shelf,
    Statement,
    Turns,
    Unit,
)
from protocols.jobs.sources import check_enough, check_sources, check_summaries, kinds_of, seats_apart
from protocols.party import Party, Rand
from protocols.statistics.differencing import Query
from protocols.sums.plan import MIN_SOURCES
from protocols.tables.layout import decimal_text
from protocols.tables.questions import check_filters, query_of
from protocols.training import card
from protocols.training.model import model_content
from protocols.training.params import (
    EVALUATE,
    HISTOGRAM,
    JOB_TYPE,
    SHOWN_DELTA,
    Params,
    Privacy,
)
from protocols.training.parties import Held, Lead, Trainer
from protocols.training.plan import Plan, Shape
from protocols.training.recipe import MAX_ROWS
from protocols.training.rows import TrainingRows, TrainingRowsBuilder, Wanted
from protocols.training.work import Done, Worker
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

MODEL: Final = "model"
"""The name of the release."""

_ROOM_PARTS: Final = 50
_ROOM_LEAST: Final = 16
"""A department may have one part in so many rows more than its catalogue publishes, or so many rows."""

_HOLDOUT: Final = b"minshu/train-holdout/1\0"


class Train:
    """The job type `train/1`."""

    name: Final = JOB_TYPE
    output_class: Final = OutputClass.MODEL
    states_sizes: Final = False
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) See `check_sources`; no column of a dataset is filtered twice, and none is
        the label and something a model sees. (3) The noise of Minshu's own recipes can be drawn.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        known = {need.slot for need in params.columns}
        required = {need.slot for need in params.columns if need.required}
        check_sources(spec, params.givers, required, known)
        check_filters(params.filtered, spec.inputs)
        seen = [each.name for each in params.features]
        for given in spec.inputs:
            if given.columns[params.label.slot] in {given.columns[slot] for slot in seen}:
                raise InputError(
                    f"the label of {given.role} is a column that its model sees",
                    code="bad-inputs",
                    hint="leave it out of the features: a model that sees its label foresees nothing",
                )
        # (3)
        for budget, layout in params.layouts():
            vector = layout.vector
            among = params.persons_in
            # One person changes the vectors of so many sources.
            whole = replace(vector, l1=vector.l1 * among, l2_squared=vector.l2_squared * among**2)
            calibrate([whole], budget, honest=params.honest, contributors=params.sources)

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role name of a seat."""
        Params.of(spec)
        return kinds_of(role, ())

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of features, label, group and filters, and the one that says what is recent."""
        params = Params.of(spec)
        return params.columns if role in params.givers else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one model, which the aggregator makes for the requester."""
        Params.of(spec)
        return (PlannedRelease(MODEL, OutputClass.MODEL, AGGREGATOR, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation.

        Every two sources are different, which keeps a second share of the noise from each; the aggregator is
        none of them, and nobody who receives the model. Whoever receives it may be a source: sources know it.
        """
        params = Params.of(spec)
        outside = frozenset({requester, *spec.recipients})
        return tuple(seats_apart(spec, params.owners, outside, neutral=_NEUTRAL, each=_ONE_SHARE))

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn; what several departments learn together
        stands with each of them, for however many they are.
        """
        params = Params.of(spec)
        requester = Role(REQUESTER)
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({requester}): (_model(params),),
            frozenset({Role(COORDINATOR)}): (_PUBLISHED_SIZES, _TRAFFIC),
            frozenset({AGGREGATOR}): (_PUBLISHED_SIZES, _round_sums(params)),
            frozenset({AGGREGATOR, requester}): (_BOTH,),
        }
        together = (_together(params),) if params.sources > MIN_SOURCES else ()
        for role in params.owners:
            table[frozenset({role})] = (_PUBLISHED_SIZES, _round_models(params), *together, _STEERING)
            table[frozenset({AGGREGATOR, role})] = (_share_off(params),)
            others = frozenset(params.owners) - {role}
            if len(others) > 1:
                table[others] = (_last(params, role),)
        return table

    def rounds(self, spec: JobSpec) -> Turns:
        """Return how many rounds of training and of evaluation there are at most."""
        return Params.of(spec).turns

    def members(self, spec: JobSpec) -> tuple[int, int]:
        """Return how many sources a round has at the least, and at most."""
        params = Params.of(spec)
        return params.quorum, params.sources

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        """Return the privacy loss of the whole run and one question; of a public test set the question."""
        return self.cost_of(spec, role, constraints, self.rounds(spec))

    def cost_of(
        self,
        spec: JobSpec,
        role: Role,
        constraints: Constraints,  # noqa: ARG002
        rounds: Turns,
    ) -> Cost:
        """Return what so many rounds cost the dataset of a role, and the one question that the job is."""
        params = Params.of(spec)
        if role in params.owners:
            return params.cost_of(rounds) + Cost(queries=1)
        return Cost(queries=1) if role in params.givers else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is learned of whose rows, and by which filters; None of a public test set.

        Without noise the sums of every round are exact: another recipe, or a round more, is another question
        about the same persons, and the same one after a row has changed tells of that row.
        """
        params = Params.of(spec)
        given = spec.input_of(role)
        if given is None or role not in params.owners:
            return None
        asks = {
            **params.asks(),
            "job_type": self.name,
            "persons_in": params.persons_in,
            "areas": params.areas,
            "sources": sorted([organisation_of(spec.roles[i.role]), i.dataset] for i in spec.inputs),
            "columns": sorted([slot, column] for slot, column in given.columns.items()),
        }
        exact = self.exact(spec)
        return query_of(params.filtered, given, asks, noisy=not exact, amounts=exact)

    def persons_in(self, spec: JobSpec) -> tuple[int, int] | None:
        """Return in how many departments one person may be, and how many give data."""
        params = Params.of(spec)
        return params.persons_in, params.sources

    def exact(self, spec: JobSpec) -> bool:
        """Return whether the sums of rounds carry no noise."""
        return Params.of(spec).privacy is None

    def recipe(self, spec: JobSpec) -> str:
        """Return what a rule has to name: one of Minshu's own recipes by name, another one by its digest."""
        return Params.of(spec).recipe_name

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: a row counts that one source alone knows."""
        Params.of(spec)
        return 1

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder of encoded rows; identifiers as of the data's day, or the job's.

        Of a public test set every row is held out: nobody trains on it.

        Raises:
            InputError: `no-dataset`.
        """
        params = Params.of(spec)
        if role not in params.givers:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return TrainingRowsBuilder(
            wanted(spec, params, role), unit=unit, as_of=spec.day, areas=area_table(params.areas)
        )

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the datasets, before anything derived from data leaves.

        (1) A summary of every dataset and of nothing else, made by the same rules. (2) So few rows that no
        sum can wrap. (3) Without noise nobody asks for groups of several persons: of a code that one person
        has, the sum is that person's. (4) Enough organisations; a rule that lends rows only to lists of
        several sources does not mean a model.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.givers)
        # (2)
        if sum(inputs[role].rows for role in params.owners) > MAX_ROWS:
            raise ProtocolAborted(
                f"the datasets have more than {MAX_ROWS} rows together, so a sum could wrap",
                code="guard-rows",
                hint="register the parts of them that the job is about as datasets of their own",
            )
        # (3)
        least = constraints.min_group_size
        if params.privacy is None and least is not None and least > 1:
            raise ProtocolAborted(
                f"a participant asks for groups of at least {least}, and exact sums of every round tell of "
                "single persons",
                code="guard-min-group",
                hint="train with noise, or have the rule of each participant state exact_training = true and "
                "min_group_size = 1",
            )
        # (4)
        check_enough(
            constraints,
            organisations=params.sources,
            sources=1,
            more="add sources",
            without="min_sources is for lists of persons; a model has no such limit",
        )

    def run_plan(
        self,
        spec: JobSpec,
        inputs: Mapping[Role, InputSummary],  # noqa: ARG002
        constraints: Constraints,  # noqa: ARG002
    ) -> card.Plan:
        """Return the numbers of the run that its model's card states."""
        return _run_plan(Params.of(spec))

    def working(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        used: Turns,
        shelf: Shelf,
        workers: Callable[[Mapping[str, npt.NDArray[Any]] | None], Worker],
    ) -> Party:
        """Return the state machine of `role`; the aggregator's outputs the model.

        Raises:
            ProtocolAborted: a guard on the inputs fails.
            InputError: `more-rows-than-published`: more than sums have room for.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        plan = plan_of(setup, params)
        columns = None
        if role in params.givers:
            if not isinstance(prepared, TrainingRows) or prepared.wanted != wanted(setup.spec, params, role):
                raise TypeError(f"the role {role} needs the rows that its builder returns")
            columns = prepared.columns()
        if role == AGGREGATOR:
            return Lead(plan, lambda: workers(columns), partial(_published, setup, params), shelf=shelf)
        assert isinstance(prepared, TrainingRows)
        # All rows, whichever a job selects: else a filter would find out how many it keeps.
        if prepared.rows > plan.most_rows[role]:
            raise InputError(
                f"more rows than the {setup.inputs[role].rows} that the catalogue publishes, and a few",
                code="more-rows-than-published",
                hint="refresh the catalogue: others scale the model by what it says",
            )
        return Trainer(plan, role, lambda: workers(columns), rand, used=used, shelf=shelf)

    def party(
        self,
        role: Role,  # noqa: ARG002  # no party is made here
        setup: Setup,  # noqa: ARG002
        prepared: PreparedInput | None,  # noqa: ARG002
        rand: Rand,  # noqa: ARG002
    ) -> Party:
        """Refuse: a job in rounds needs workers and a shelf, see `working`.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{self.name} answers in rounds: its parties are made by `working`")


def wanted(spec: JobSpec, params: Params, role: Role) -> Wanted:
    """Return what a job wants of the dataset of `role`."""
    of_public = role == AGGREGATOR
    return Wanted(
        features=params.features,
        label=params.label,
        group=params.group,
        filters=params.filters,
        unit_rows=params.unit_rows,
        holdout=1 if of_public else params.holdout,
        # Public, and of the job alone: the same persons are held out at every source, others in another job.
        key=sha256(_HOLDOUT + digest_bytes(spec.job_id)).digest(),
        public=of_public,
    )


def plan_of(setup: Setup, params: Params) -> Plan:
    """Return what every party of an attempt has to agree on.

    A department's rows are those that its catalogue publishes, or fewer where only so many of a person count.
    The catalogue rounds to three digits and may be a little older than the data, so there is some room.

    Raises:
        InputError: see `Plan`.
    """
    stated = {role: setup.inputs[role] for role in params.owners}
    return Plan(
        job=digest_bytes(setup.spec.job_id),
        ctx=setup.ctx,
        sources=params.owners,
        aggregator=AGGREGATOR,
        recipe=params.recipe,
        settings=params.settings_bytes(),
        rounds=params.turns,
        budgets={turn: params.budget_of(turn) for turn in params.turns},
        quorum=params.quorum,
        honest=params.honest,
        persons_in=params.persons_in,
        rows={
            role: max(min(each.rows, each.distinct_keys * params.unit_rows), 1)
            for role, each in stated.items()
        },
        most_rows={
            role: each.rows + max(each.rows // _ROOM_PARTS, _ROOM_LEAST) for role, each in stated.items()
        },
        holdout=params.holdout,
        deadline_s=params.deadline_s,
        shown=params.privacy is not None or params.test,
        delta=(params.privacy.delta if params.privacy else Fraction(0)) or SHOWN_DELTA,
    )


def _published(setup: Setup, params: Params, done: Done, held: Held) -> tuple[Content]:
    """Return the model with its card, once the lead's worker has said its last word."""
    curves = dict(done.curves)
    counts = np.array(curves.pop(HISTOGRAM, []))
    content = model_content(
        setup.spec,
        setup.inputs,
        _run_plan(params),
        model=done.model,
        rounds=held.rounds,
        spent=params.cost_of(held.rounds),
        metrics=_metrics(setup, params, counts),
        curves=curves,
        versions=held.versions,
    )
    return (content,)


def _run_plan(params: Params) -> card.Plan:
    return card.Plan(
        most_rounds=params.turns,
        sources=params.sources,
        honest=params.honest,
        persons_in=params.persons_in,
        unit_rows=params.unit_rows,
        holdout=params.holdout,
        cost=params.cost_of(params.turns),
    )


def _metrics(setup: Setup, params: Params, counts: npt.NDArray[np.float64]) -> card.Metrics | None:
    """Return the figures that the last evaluation's counts make; None where there are none."""
    codes = params.group.codes if params.group else ()
    bins = params.bins
    if counts.shape != (bins.size,) or not np.isfinite(counts).all():
        return None
    on: Literal["held-out, noisy", "held-out", "public test set"]
    on, variance = ("public test set" if params.test else "held-out"), 0.0
    if EVALUATE in params.turns and params.privacy is not None:
        layout = bins.layout(params.unit_rows)
        vector = layout.vector
        shape = Shape(vector.size, layout.largest, vector.l1, vector.l2_squared)
        noise = plan_of(setup, params).noise(EVALUATE, shape)
        assert noise is not None
        on, variance = "held-out, noisy", noise.variance
    return card.measure(bins.tables(counts), bins.edges, on, variance=variance, codes=codes)


_NEUTRAL: Final = (
    "every round's sum less its own part, or what the model's card leaves out; apart, nobody who has rows or "
    "wants the model has the masked vectors"
)
_ONE_SHARE: Final = "the sum of the other departments with two shares of the noise taken off, not one"

_PUBLISHED_SIZES: Final = Statement(
    "published-sizes",
    "how many rows and persons each dataset has as its catalogue publishes them, and when it was taken",
    "各数据集目录中公布的行数、人数和数据时点",
)
_STEERING: Final = Statement(
    "steering",
    "nothing more; but a department that is dishonest can steer the model, by adding in each round up to "
    "what its rows at most could: sums are masked, so nobody sees who did",
    "没有更多信息; 但不诚实的部门可左右模型: 每轮加入的数值只受其行数上限约束, "
    "而求和经掩码处理, 无人能看出是谁所为",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, which departments take part in which "
    "round, the figures that are shown while it runs, and how large the sealed model is; all else follows "
    "from the job, but how long a round takes grows with the data",
    "谁在何时向谁发送多少帧及其大小档次、每轮有哪些部门参加、运行中显示的指标、模型密文的大小; "
    "其余均由任务本身决定, 但每轮耗时随数据量增加",
)
_BOTH: Final = Statement(
    "model-and-sums",
    "with the sums of every round, what the card leaves out: models of earlier rounds, and exact or noisy "
    "counts by bin behind each figure",
    "连同各轮合计, 可得到说明卡未列出的内容: 各轮的中间模型, 以及各项指标背后的分箱计数",
)


def _loss(privacy: Privacy) -> str:
    if privacy.notion == "zcdp":
        return f"ρ = {decimal_text(privacy.amount)}"
    return f"ε = {decimal_text(privacy.amount)}, δ = {decimal_text(privacy.delta)}"


def _model(params: Params) -> Statement:
    measured = ("a public test set", "公开测试集") if params.test else ("held-out persons", "留出人员")
    if params.privacy is None:
        return Statement(
            "exact-model",
            f"the model and its card with figures on {measured[0]}, all without noise: nothing bounds what "
            "they tell of one person; where one person alone has a code, the label can be read off, "
            "and a model of few rows and many numbers can hold rows whole",
            f"模型及其说明卡 (指标基于{measured[1]}), 均不含噪声: 对单个人可推知的内容没有上限; "
            "仅一人具有的取值, 其标签可由模型读出; 行数少而参数多的模型可能完整记住个别记录",
        )
    within, sources = params.persons_in, params.sources
    # How many rows of one person count, every node sees to; in how many departments one is, nobody can see.
    assumed = (
        (
            f", if nobody is in more than {within} of the {sources} departments,",
            f"(前提: 任何人至多在 {sources} 个部门中的 {within} 个)",
        )
        if within < sources
        else ("", "")
    )
    rows = params.unit_rows * within
    return Statement(
        "noisy-model",
        f"the model and its card with figures on {measured[0]}; the {rows} row(s) that one person can have "
        f"in all departments together{assumed[0]} change what can be told from all of it by no more than "
        f"{_loss(params.privacy)}",
        f"模型及其说明卡 (指标基于{measured[1]}); 一个人在全部部门中最多 {rows} 条记录{assumed[1]}, "
        f"对可推知内容的影响不超过 {_loss(params.privacy)}",
    )


def _round_models(params: Params) -> Statement:
    if params.privacy is None:
        return Statement(
            "round-models",
            "the model of every round, and from two of them mostly that round's exact sum over all "
            "departments; with its own part taken off, the exact sum of the others, which tells what single "
            "persons are whose codes are rare",
            "每一轮的模型, 由相邻两轮大多可推出该轮全部部门的精确合计; "
            "减去本部门的部分后, 得到其余部门的精确合计, 并由此得知取值少见的个别人员的信息",
        )
    enough, loss = params.honest, _loss(params.privacy)
    return Statement(
        "round-models",
        "the model of every round, and from two of them mostly that round's sum with the noise of every "
        "department that took part; with its own part and noise taken off, the sum of the others with the "
        f"noise of at least {params.quorum - 1}, of which {enough} are enough for {loss}",
        "每一轮的模型, 由相邻两轮大多可推出该轮合计(含各参与部门的噪声); 扣除自己的数据和噪声后, "
        f"得到其余部门之和及其至少 {params.quorum - 1} 份噪声, 其中 {enough} 份即足以保证 {loss}",
    )


def _round_sums(params: Params) -> Statement:
    if params.privacy is None:
        return Statement(
            "round-sums",
            "of every round the exact sum over all departments of what their rows add, which tells what "
            "single persons are whose codes are rare, the model, and the counts behind its figures; one that "
            "is dishonest can give out models whose next sums tell of any single row",
            "每一轮全部部门的精确合计 (可由此得知取值少见的个别人员的信息)、模型, 以及各项指标背后的计数; "
            "不诚实的汇总方可下发特定的模型, 使下一轮合计透露任意一条记录",
        )
    return Statement(
        "round-sums",
        f"of every round the sum over the departments that took part, {params.quorum} or more, with the "
        f"noise of each, which ones these are, the model, and the counts behind its figures; the whole run "
        f"within {_loss(params.privacy)}",
        f"每一轮各参与部门 (不少于 {params.quorum} 个) 的合计(含各自的噪声)、参与部门名单、模型, "
        f"以及各项指标背后的计数; 整个过程不超过 {_loss(params.privacy)}",
    )


def _share_off(params: Params) -> Statement:
    if params.privacy is None:
        return Statement(
            "share-off",
            "of every round the exact sum of the other departments",
            "每一轮其余部门的精确合计",
        )
    return Statement(
        "share-off",
        f"of every round the sum of the other departments with the noise of at least {params.quorum - 1}, of "
        f"which {params.honest} are enough for {_loss(params.privacy)}",
        f"每一轮其余部门之和及其至少 {params.quorum - 1} 份噪声, 其中 {params.honest} 份即足以保证 "
        f"{_loss(params.privacy)}",
    )


def _together(params: Params) -> Statement:
    """Return what k departments learn that one does not, with whoever leads them or without: k is 2 to n - 1.

    With noise each round's sum has q shares of it or more, of h of which the job's loss is enough. Who knows
    k of them is left with q - k; a set of q that all k are in has one department more at the least, since a
    sum without anybody else tells nothing. A loss in ρ goes by one over the variance that is left.
    """
    if params.privacy is None:
        return Statement(
            "departments-together",
            "two or more departments together, with whoever leads or without: of every round the exact sum "
            "of all other departments, of the last one alone where all others are together",
            "两个或更多部门合谋 (无论汇总方是否参与): 每一轮其余部门的精确合计; "
            "若只余一个部门, 即该部门单独的精确数值",
        )
    quorum, honest, rho = params.quorum, params.honest, decimal_text(params.privacy.rho)
    if honest == 1:
        more, more_zh = "one is enough for the loss that is stated", "1 份即足以保证所述程度"
    else:
        known = params.colluding + 1
        more = (
            f"that multiplies the loss of the whole run, ρ = {rho}, by {honest}/({quorum} - k), and from "
            f"k = {quorum - 1} on by {honest}; up to k = {known} it is no more than stated"
        )
        more_zh = (
            f"整个过程的隐私损失 ρ = {rho} 变为 {honest}/({quorum} - k) 倍, k 不小于 {quorum - 1} 时为 "
            f"{honest} 倍; k 不大于 {known} 时不超过所述程度"
        )
    return Statement(
        "departments-together",
        "k departments together, with whoever leads or without: of every round the sum of the others with "
        f"the noise of {quorum} - k of them or more, and of one at the least; {more}",
        f"k 个部门合谋 (无论汇总方是否参与): 每一轮其余部门之和及其至少 {quorum} - k 份、且不少于 1 份噪声; "
        f"{more_zh}",
    )


def _last(params: Params, role: Role) -> Statement:
    if params.privacy is None:
        return Statement(
            "last-department",
            f"of every round what {role} alone adds, exactly",
            f"每一轮 {role} 单独的精确数值",
        )
    kept = params.honest == 1
    en = "no more than" if kept else "more than"
    zh = "仍不超过" if kept else "超出"
    return Statement(
        "last-department",
        f"of every round what {role} alone adds, with its own noise: what that tells about one person is "
        f"{en} {_loss(params.privacy)}",
        f"每一轮 {role} 单独的数值, 仅含其自身的噪声: 可推知的个人信息{zh} {_loss(params.privacy)}",
    )
