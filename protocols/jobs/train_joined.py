"""`train-joined/1`, class C: a model from columns that several departments have of the same persons.

Lists are joined under tags; a matcher and a helper of other organisations hold shares of the joined rows, and
a dealer makes what they multiply them with. Each round opens the sum of gradients, with the noise of both, or
exactly where a rule allows that; labels never leave their owner but in shares. The model goes to whoever
asks, or each department is given the weights of its own columns. Lists, tags and shares:
`protocols/joined/SPEC.md`, sections 1 to 4; the rest: `protocols/training/SPEC.md`, section 6.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
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
    Table,
    Unit,
)
from protocols.jobs.sources import check_no_recipients, kinds_of, minimum_of
from protocols.joined.params import DEALER, HELPER, MATCHER, seats_apart
from protocols.joined.parties import AHEAD
from protocols.joined.statements import Values, add, coalitions, kept_rows
from protocols.party import Party, Rand
from protocols.releases.figures import Sentence
from protocols.statistics.differencing import Query
from protocols.tables.layout import decimal_text
from protocols.training.card import Metrics, measure
from protocols.training.card import Plan as CardPlan
from protocols.training.joined.columns import CodedRows
from protocols.training.joined.computing import Trained
from protocols.training.joined.params import FEWEST, JOB_TYPE, Params
from protocols.training.joined.parties import Dealer, Helper, Matcher, Source
from protocols.training.joined.plan import Plan
from protocols.training.joined.scoring import Feature, Part, model_digest, part_name, write_part
from protocols.training.logistic import WEIGHT_BITS
from protocols.training.model import RELEASE, model_content, pack
from protocols.training.schema import Ints
from protocols.training.scores import HELD_OUT
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

METRICS: Final = "metrics"
"""Name of what is released where the model is split."""

_VERSIONS: Final = {"numpy": np.__version__}


class TrainJoined:
    """The job type `train-joined/1`."""

    name: Final = JOB_TYPE
    output_class: Final = OutputClass.MODEL
    states_sizes: Final = True
    counts_units: Final = True
    silent_until_answering: Final = True
    shelf: Final = JOB_TYPE

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Each source brings one dataset with the slots of its part; without noise no
        column of it twice. (3) What is released goes to the requester.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        params.lists.check_columns(spec)
        _check_once(params, spec)
        # (3)
        check_no_recipients(spec)

    def exact(self, spec: JobSpec) -> bool:
        """Return whether what is opened carries no noise; then a rule has to allow that in so many words."""
        return Params.of(spec).budget is None

    def recipe(self, spec: JobSpec) -> str:
        """Return what a rule names: the model is that of `logistic`."""
        Params.of(spec)
        return "logistic"

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: two sources are key-holders, too."""
        return kinds_of(role, Params.of(spec).lists.key_holders)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a source's list: its key, features, perhaps the label, filters."""
        return Params.of(spec).needs(role)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one release: the model, or of a split one how good it is; the matcher makes it."""
        name = METRICS if Params.of(spec).split else RELEASE
        return (PlannedRelease(name, self.output_class, MATCHER, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation; see `seats_apart`."""
        return seats_apart(spec, Params.of(spec).lists.owners, requester)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        noisy = params.budget is not None
        table = coalitions(params.lists, _VALUES, dealt=True, noisy=noisy)
        add(table, MATCHER, said=(_NOISY_ROUNDS if noisy else _EXACT_ROUNDS,))
        add(table, HELPER, said=(_NOISY_WEIGHTS if noisy else _EXACT_WEIGHTS,))
        add(table, REQUESTER, said=(_released(params, spec),))
        if not noisy:
            for seat in (REQUESTER, COORDINATOR, HELPER, DEALER, *params.lists.owners):
                add(table, seat, said=(_EXACT_END,))
        if params.split:
            for owner in params.lists.owners:
                add(table, owner, said=(_OWN_PART if noisy else _EXACT_PART,))
            add(table, *params.lists.owners, said=(_WHOLE_MODEL,))
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return the privacy loss of the whole run, none where it is exact, and one question."""
        params = Params.of(spec)
        return params.cost if role in params.lists.owners else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is learned of whom.

        An exact run is not repeated: other persons are held out each time.
        """
        params = Params.of(spec)
        exact = params.budget is None
        return params.lists.query(spec, role, params.asks(), noisy=not exact, amounts=exact)

    def sources_asked(self, spec: JobSpec) -> int:
        """Return the number of sources: a person counts who is on every list."""
        return len(Params.of(spec).lists.owners)

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty list of the source's part; identifiers as of the day of the data, or of the job.

        Raises:
            InputError: `no-dataset`.
        """
        params = Params.of(spec)
        return CodedRows(params.lists.builder(spec, role, unit), params.codings(role))

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations, and sources that a person is in. (3) Lists that are long enough. (4) No
        total over as many persons as the shortest list has can leave its word. (5) There is memory.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1), (2)
        params.lists.check_all_on(inputs, constraints)
        # (3)
        if min(summary.distinct_keys for summary in inputs.values()) < _fewest(constraints):
            raise _few(constraints)
        # (4), (5)
        _plan(params, inputs, constraints, bytes(32)).check_room()

    def run_plan(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> CardPlan:
        """Return the numbers of the run that its model's card states.

        Raises:
            ProtocolAborted: `guard-overflow`: lists of these sizes give no such run.
        """
        params = Params.of(spec)
        # Which attempt it was makes no difference to its numbers.
        return _run_plan(params, _plan(params, inputs, constraints, bytes(32)))

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the matcher's outputs the release.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns; or the model is split,
                and a source has nowhere to keep its part.
        """
        return self._party(role, setup, prepared, rand, None)

    def party_with(
        self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand, *, shelf: Shelf
    ) -> Party:
        """Return the state machine of `role`: see `party`. A source keeps its part of a split model.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        return self._party(role, setup, prepared, rand, shelf)

    def _party(
        self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand, shelf: Shelf | None
    ) -> Party:
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        plan = _plan(params, setup.inputs, setup.constraints, setup.ctx)
        if role == MATCHER:
            maker = _Maker(params, plan, setup, rand)
            return Matcher(plan, rand, admit=maker.admit, publish=maker.publish, split=params.split)
        if role == HELPER:
            return Helper(plan, rand, ahead=AHEAD)
        if role == DEALER:
            return Dealer(plan, rand)
        own = params.lists.own(role, prepared)
        keep = None
        if params.split:
            if shelf is None:
                raise TypeError("a part of this model is kept at the node: ask with its shelf")
            keep = partial(_keep, params, role, setup.spec, shelf)
        return Source(plan, role, own.keys, partial(params.words, own), rand, keep)


def _plan(params: Params, inputs: Mapping[Role, InputSummary], constraints: Constraints, ctx: bytes) -> Plan:
    counts = [inputs[owner].distinct_keys for owner in params.lists.owners]
    return params.plan(counts, ctx, minimum_of(constraints))


def _run_plan(params: Params, plan: Plan) -> CardPlan:
    return CardPlan(
        most_rounds={"train": params.rounds},
        sources=len(params.lists.owners),
        honest=0 if plan.noises is None else 1,
        persons_in=len(params.lists.owners),
        unit_rows=1,
        holdout=params.holdout,
        cost=NOTHING if plan.noises is None else plan.noises.cost,
    )


def _check_once(params: Params, spec: JobSpec) -> None:
    """Refuse that one column of a dataset is two of an exact job's, the label included.

    Cut at two sets of edges, one column would make groups of the persons between them, beyond those that are
    large enough to have a weight.

    Raises:
        InputError: `measured-twice`.
    """
    for given in spec.inputs if params.budget is None else ():
        own = [given.columns[each.slot] for each in params.codings(given.role)]
        if len(set(own)) != len(own):
            raise InputError(
                f"two columns of the job are one column of the dataset of {given.role}",
                code="measured-twice",
                hint='name each column of a dataset once, or train with noise: rho = "0.03"',
            )


def _keep(params: Params, role: Role, spec: JobSpec, shelf: Shelf, weights: Ints) -> None:
    """Keep a source's own weights, as `score-joined/1` finds them."""
    owners = params.lists.owners
    features = [
        # A text that is not listed has a code of its own.
        Feature(
            owners.index(each.source), each.slot, each.codes, each.edges, each.missing or bool(each.codes)
        )
        for each in params.features
    ]
    own, parts, at = [each for each in features if owners[each.owner] == role], [], 0
    for each in own:
        parts.append(tuple(weights[at : at + each.width].tolist()))
        at += each.width
    model = model_digest(
        spec.job_id, [(organisation_of(spec.roles[owners[each.owner]]), each) for each in features]
    )
    with shelf.put(part_name(spec.job_id)) as write:
        write(write_part(Part(tuple(parts), int(weights[-1])), own, WEIGHT_BITS, model))


class _Maker:
    """What the matcher does with n and what was trained. n gets its noise once, before it is told."""

    def __init__(self, params: Params, plan: Plan, setup: Setup, rand: Rand) -> None:
        self._params, self._plan, self._setup, self._rand = params, plan, setup, rand

    def admit(self, n: int, trained: int) -> float:
        """Refuse to go on where too few are trained on; with noise, where the noisy number is too small.

        Raises:
            ProtocolAborted: `guard-few-joined`.
        """
        noises, limits, holdout = self._plan.noises, self._setup.constraints, self._plan.holdout
        found = float(trained)
        if noises is not None:
            # Only n is told, and of it only this: the share that is held out is public.
            found = (n + int(noises.count.draw(self._rand)[0])) * (1 - 1 / holdout if holdout else 1)
        if found < _fewest(limits):
            raise _few(limits)
        return found

    def publish(self, trained: Trained) -> tuple[Content, ...]:
        """Return the release."""
        params, plan, setup = self._params, self._plan, self._setup
        metrics = self._metrics(trained)
        if params.split:
            return (_figures(params, trained, metrics),)
        card = _run_plan(params, plan)
        arrays = {"weights": plan.scaled(trained.weights)}
        return (
            model_content(
                setup.spec,
                setup.inputs,
                card,
                model=pack(arrays),
                rounds=card.most_rounds,
                spent=card.cost,
                metrics=metrics,
                curves={"slope": trained.slopes} if trained.slopes else {},
                versions=_VERSIONS,
            ),
        )

    def _metrics(self, trained: Trained) -> Metrics | None:
        histogram, noises = self._plan.histogram, self._plan.noises
        if trained.counts is None or histogram is None:
            return None
        noise = None if noises is None else noises.histogram
        # Who was trained on is not counted: what the weights say of them is what they were made of.
        tables = np.zeros((2, 1, *trained.counts.shape))
        tables[HELD_OUT, 0] = trained.counts
        return measure(
            tables,
            histogram.edges,
            "held-out" if noise is None else "held-out, noisy",
            variance=0.0 if noise is None else noise.variance,
        )


def _figures(params: Params, trained: Trained, metrics: Metrics | None) -> Content:
    """Return how good a split model is: a row for the AUC, and two for each bin of the calibration."""
    rows: list[tuple[str, int, float, float, float]] = []
    if metrics is not None:
        if metrics.auc is not None and metrics.auc_low is not None and metrics.auc_high is not None:
            rows.append(("auc", 0, metrics.auc, metrics.auc_low, metrics.auc_high))
        for number, each in enumerate(metrics.calibration):
            rows.append(("calibration-said", number, each.said, each.said, each.said))
            rows.append(("calibration-found", number, each.found, each.found, each.found))
    measures, numbers, *figures = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    columns = {
        "measure": np.array(measures, dtype=np.str_),
        "bin": np.array(numbers, dtype=np.int64),
        **{
            name: np.array(each, dtype=np.float64)
            for name, each in zip(("value", "low", "high"), figures, strict=True)
        },
    }
    return Content(METRICS, Table(columns), split_facts(params, trained.withheld))


def split_facts(params: Params, withheld: int) -> dict[str, int | str]:
    """Return what is stated beside the figures of a split model.

    Args:
        params: of the job.
        withheld: codes without a weight, which would tell of fewer persons than the smallest group.
    """
    return {
        "model": "split",
        "weights": params.schema.size,
        "withheld_codes": withheld,
        "rounds": params.rounds,
        "noise": "none" if params.budget is None else f"rho {decimal_text(params.budget.amount)}",
    }


def _fewest(limits: Constraints) -> int:
    return max(FEWEST, minimum_of(limits))


def _few(limits: Constraints) -> ProtocolAborted:
    return ProtocolAborted(
        f"fewer than {_fewest(limits)} persons are on every list and trained on, too few for a model of them",
        code="guard-few-joined",
        hint="check the identifiers' columns and the filters, ask of a larger group, or hold fewer out",
    )


# -- words ---------------------------------------------------------------------------------------------------

_VALUES: Final = Values(
    Sentence("codes in every column and its label", "各列的取值代码和标签"),
    Sentence("the codes in every column and the label", "各列的取值代码和标签"),
    Sentence(
        "the codes in every column of the other lists and the label",
        "在其他清单各列中的取值代码和标签",
    ),
)
_NOISY_ROUNDS: Final = Statement(
    "noisy-rounds",
    "what each round opens, the weights of every round, and counts of who is held out by label and score; "
    "all with the noise of the helper, which is enough by itself",
    "每一轮还原的合计、每一轮的模型权重, 以及留出人员按标签和得分的计数, 均含协助方的噪声; 该噪声本身已足够",
)
_EXACT_ROUNDS: Final = Statement(
    "exact-rounds",
    "without noise: how many persons have each code, and how many of these each label, however few; of every "
    "round the exact sum of gradients (or the exact second moments) and the weights, and of who is held out "
    "how many have each label and score; of many rounds, much of what is rare can be worked out, though of "
    "nobody by name",
    "不加噪声: 各代码的确切人数及其中各标签的确切人数(无论多少), 每一轮梯度的精确合计(或二阶矩)和模型权重, "
    "以及留出人员按标签和得分的确切计数; "
    "轮数多时可推算出许多罕见取值的情况, 但不知道是何人",
)
_NOISY_WEIGHTS: Final = Statement(
    "noisy-weights",
    "the weights of every round, with the noise of the matcher, which is enough by itself",
    "每一轮的模型权重, 含匹配方的噪声; 该噪声本身已足够",
)
_EXACT_WEIGHTS: Final = Statement(
    "exact-weights",
    "the weights of every round, without noise: one round's less the last one's is the exact sum of "
    "gradients, but for rounding, of all codes that have a weight; after the first round that is how many "
    "persons of each have each label, and of many rounds much of what is rare can be worked out, though of "
    "nobody by name",
    "每一轮的模型权重, 不含噪声: 相邻两轮之差即为有权重的各代码的精确梯度合计(仅差舍入); "
    "首轮即各代码中各标签的人数, 轮数多时可推算出许多罕见取值的情况, 但不知道是何人",
)
_EXACT_END: Final = Statement(
    "exact-end",
    "if the job ends early, by its code, exactly whether fewer than the minimum group of the persons that "
    "would be trained on have one of the two labels, or whether too few are trained on",
    "任务中止时, 可由代码确切得知: 拟参与训练的人员中某一标签的人数是否少于最小分组, "
    "或参与训练的人数是否过少",
)
_OWN_PART: Final = Statement(
    "own-part",
    "the weights of its own columns, which its node keeps, and nobody else's",
    "本单位各列的权重(由本节点保存), 不知道其他单位的权重",
)
_EXACT_PART: Final = Statement(
    "own-part",
    "the weights of its own columns, which its node keeps, and nobody else's; without noise: of one round "
    "they say exactly how many joined persons of each of its codes that have a weight have each label, and "
    "of more rounds they are what exact sums of every round have made",
    "本单位各列的权重(由本节点保存), 不知道其他单位的权重; 不加噪声: 仅一轮时, 可由权重确切得知本单位"
    "有权重的各代码的联合人员中各标签的人数, 轮数更多时权重由每一轮的精确合计得出",
)
_WHOLE_MODEL: Final = Statement(
    "whole-model", "the whole model: each has the weights of its own columns", "合在一起即为完整模型"
)


def _released(params: Params, spec: JobSpec) -> Statement:
    kept = kept_rows(params.lists, spec)
    slots = ", ".join(each.slot for each in params.features)
    if params.split:
        what = Sentence(
            f"how well a model foretells {params.label.slot} from {slots}, and no weight of it",
            f"由 {slots} 预测 {params.label.slot} 的模型的效果, 不含任何权重",
        )
    else:
        what = Sentence(
            f"a model that foretells {params.label.slot} from {slots}: a weight for each code",
            f"由 {slots} 预测 {params.label.slot} 的模型, 即每个代码的权重",
        )
    whom = Sentence(
        f"; learned of the persons who count on all lists{kept.en}",
        f"; 由在所有清单中均符合条件的人员{kept.zh}训练得到",
    )
    if params.budget is None:
        made = Sentence("", "")
        if not params.split:
            made = Sentence(
                "; after one round the weights are a table of exactly how many persons of each other code "
                "have each label, after more they are what exact sums of every round have made",
                "; 仅一轮时, 权重即其余各代码中各标签确切人数的表, 轮数更多时权重由每一轮的精确合计得出",
            )
        return Statement(
            "exact-metrics" if params.split else "exact-model",
            f"{what.en}{whom.en}, without noise: codes whose weight would tell of fewer persons than the "
            f"minimum group are left out{made.en}; who knows all rows but one may work out the last",
            f"{what.zh}{whom.zh}, 不加噪声: 其权重会透露少于最小分组人数的代码不参与{made.zh}; "
            "已知其余所有人数据者可能推出最后一人的数据",
        )
    loss, more = (f"ρ = {decimal_text(params.budget.amount * by)}" for by in (1, 4))
    return Statement(
        "noisy-metrics" if params.split else "noisy-model",
        f"{what.en}{whom.en}, with noise in every round: whether one person is on a list or not, on one of "
        f"them or on all, changes what can be told from it by no more than {loss}, beyond what the lists' "
        f"sizes tell; other values of a person, by no more than {more}",
        f"{what.zh}{whom.zh}, 每一轮均加噪声: 除清单条数外, 某人是否在一份或全部清单上, "
        f"对可推知内容的影响不超过 {loss}; 某人数值不同的影响不超过 {more}",
    )
