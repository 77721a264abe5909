"""`overlap/1`, class A: how many persons lists have in common, with noise, and never who.

Two departments count their overlap without a third; two to six and a matcher count every Venn region. Each
figure carries noise and an interval, and a budget of every dataset pays for it. Messages, noise, what one
person can change and what each coalition learns: `protocols/overlap/SPEC.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Self

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget, Noise, Vector, calibrate
from protocols.encoding import canonical_json
from protocols.errors import InputError
from protocols.identifiers import area_table
from protocols.identifiers.areas import AREA_TABLES
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
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
    check_enough,
    check_sizes,
    check_sources,
    check_summaries,
    kinds_of,
    read_key_holders,
)
from protocols.overlap.dummies import Dummies, dummies
from protocols.overlap.lists import KEY, ListBuilder
from protocols.overlap.parties import Matcher, Owner, Pair, Receiver, Sender
from protocols.party import Party, Rand
from protocols.psi.keyed_list import KeyedList
from protocols.psi.owner import plan_of
from protocols.releases.params import check_budget, loss_text
from protocols.statistics.differencing import Query
from protocols.tables.layout import Reader, decimal_text
from protocols.tables.released import PERSONS, Figure, as_texts, content
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

MATCHER: Final = Role("matcher")
RECEIVER: Final = source(1)
"""Who counts, where two departments do without a matcher."""
SENDER: Final = source(2)
"""Who adds the dummies there."""

TABLE: Final = "overlap"
MAX_LISTS: Final = 6
"""Most lists with a matcher: 63 regions."""

_NAME: Final = "overlap/1"
_KEY: Final = ColumnNeed(KEY, "join", ("resident-id", "identifier"))


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        sources: how many departments bring a list.
        key_holders: which two hold a tag key; none where two departments count without a matcher.
        budget: the privacy loss of the whole job.
        delta: δ of the dummies; 0 with a matcher.
        areas: name of the area table that identifiers are read with.
    """

    sources: int
    key_holders: tuple[Role, ...]
    budget: Budget
    delta: Fraction
    areas: str

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Roles: two sources, or two to six and a matcher. (2) The noise, which can be made. (3) Who holds
        the tag keys. (4) Nothing else.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        matched = MATCHER in spec.roles
        owners = tuple(source(i + 1) for i in range(len(spec.roles) - matched))
        if set(spec.roles) != {*owners, *((MATCHER,) if matched else ())} or not (
            2 <= len(owners) <= (MAX_LISTS if matched else 2)
        ):
            raise InputError(
                f"{len(spec.roles)} roles, expected source-1 and source-2, or source-1 to source-n and "
                "a matcher",
                code="bad-roles",
                hint=f"two departments count alone; 2 to {MAX_LISTS} count with a matcher",
            )
        # (2)
        reader = Reader(spec.params, _NAME)
        budget = _budget(reader, matched=matched)
        delta = Fraction(0) if matched else reader.fraction("delta")
        # (3)
        key_holders = read_key_holders(reader, owners) if matched else ()
        areas = reader.choice("areas", tuple(AREA_TABLES), "national")
        # (4)
        reader.finish()
        found = cls(len(owners), key_holders, budget, delta, areas)
        _ = found.noise if matched else found.dummies
        return found

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a list: the sources in order. A list's index is its place here."""
        return tuple(source(i + 1) for i in range(self.sources))

    @property
    def matched(self) -> bool:
        """Whether a matcher counts."""
        return bool(self.key_holders)

    @cached_property
    def dummies(self) -> Dummies:
        """The noise of two departments without a matcher."""
        return dummies(self.budget.amount, self.delta)

    @cached_property
    def noise(self) -> Noise:
        """The matcher's noise on all regions: a person who joins or leaves one list changes two by one."""
        regions = Vector("regions", (1 << self.sources) - 1, 2, 2)
        ((noise,), _) = calibrate((regions,), self.budget, honest=1, contributors=1)
        return noise

    @property
    def cost(self) -> Cost:
        """What one attempt costs each list."""
        if self.budget.notion == "zcdp":
            return Cost.zcdp(self.budget.amount) + Cost(queries=1)
        return Cost.pure_dp(self.budget.amount, self.delta) + Cost(queries=1)

    @property
    def half_width(self) -> int:
        """How far each figure's noise is from zero at most, with 95 %."""
        return round(self.noise.half_width()) if self.matched else self.dummies.half_width()


def _budget(reader: Reader, *, matched: bool) -> Budget:
    """Read exactly one of `rho` and `epsilon`; dummies are reckoned in ε alone."""
    if reader.has("rho") and reader.has("epsilon"):
        raise InputError(
            "params name both rho and epsilon, an overlap has one of them",
            code="bad-privacy",
            hint='write rho = "0.1" for Gaussian noise, or epsilon = "1" for a pure bound',
        )
    if matched and reader.has("rho"):
        return check_budget(Budget("zcdp", reader.fraction("rho")))
    return check_budget(Budget("pure-dp", reader.fraction("epsilon")))


class Overlap:
    """The job type `overlap/1`."""

    name: Final = _NAME
    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = True
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) See `check_sources`.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        check_sources(spec, params.owners, {KEY}, {KEY})

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: with a matcher, two sources are key-holders, too."""
        return kinds_of(role, Params.of(spec).key_holders)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the one slot of a list: the key."""
        return (_KEY,) if role in Params.of(spec).owners else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, which the matcher, or else the first source, makes for the requester."""
        maker = MATCHER if Params.of(spec).matched else RECEIVER
        return (PlannedRelease(TABLE, OutputClass.AGGREGATE, maker, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation.

        Without a matcher the sender knows z: it is not the requester's. A matcher stands alone, against list
        owners (own-rows-elsewhere, dictionary) and against requester and recipients (venn). Lists are of
        different organisations, which also keeps the two tag keys apart.
        """
        params = Params.of(spec)
        owners = [organisation_of(spec.roles[role]) for role in params.owners]
        outside = frozenset({requester, *spec.recipients})
        apart = [
            Separation(_ONE_LIST_EACH, frozenset({one}), frozenset({other}))
            for one, other in combinations(owners, 2)
        ]
        if not params.matched:
            return (Separation(_EXACT.en, frozenset({owners[1]}), outside), *apart)
        matcher = frozenset({organisation_of(spec.roles[MATCHER])})
        return (
            Separation(_rows_elsewhere("a list owner").en, matcher, frozenset(owners)),
            Separation(_VENN.en, matcher, outside),
            *apart,
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({Role(REQUESTER)}): (_noisy(params),),
            frozenset({Role(COORDINATOR)}): (_LIST_SIZES, _TRAFFIC),
        }
        for role in params.owners:
            table[frozenset({role})] = (_LIST_SIZES,)
        if not params.matched:
            table[frozenset({RECEIVER})] = (_LIST_SIZES, _noisy(params))
            table[frozenset({SENDER})] = (_LIST_SIZES, _OWN_DUMMIES)
            table[frozenset({Role(REQUESTER), SENDER})] = (_EXACT,)
            return table
        table[frozenset({MATCHER})] = (_LIST_SIZES, _VENN)
        for role in params.owners:
            table[frozenset({MATCHER, role})] = (_rows_elsewhere(role),)
        table[frozenset({MATCHER, *params.key_holders})] = (_DICTIONARY,)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return the privacy loss of the whole release and one question, the same for every list."""
        params = Params.of(spec)
        return params.cost if role in params.owners else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return whose lists are compared, by which columns; every number of it is noisy."""
        params = Params.of(spec)
        if role not in params.owners:
            return None
        asks = {
            "job_type": self.name,
            "lists": sorted(
                [organisation_of(spec.roles[i.role]), i.dataset, i.columns[KEY]] for i in spec.inputs
            ),
            "regions": params.matched,
            "areas": params.areas,
        }
        return Query(canonical_json(asks).decode("utf-8"), noisy=True)

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: a list of one source counts in what is released, be it only as the rest of it."""
        Params.of(spec)
        return 1

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder; each person counts once, whatever `unit` allows."""
        params = Params.of(spec)
        if role not in params.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return ListBuilder(created=spec.day, areas=area_table(params.areas), unit=unit)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations. (3) A rule that lends rows only to lists of several sources does not mean an
        overlap. Empty lists are counted like others: what is released says no more of them than their sizes
        do.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.owners)
        check_sizes(inputs)
        # (2), (3)
        check_enough(
            constraints,
            organisations=params.sources,
            sources=1,
            more="add sources, and a matcher",
            without="min_sources is for lists of persons; an overlap has no such limit",
        )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the matcher's, or else the first source's, outputs the table.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        counts = [setup.inputs[owner].distinct_keys for owner in params.owners]
        tags = plan_of(params.owners, params.key_holders, counts, setup.ctx)
        table = partial(released, params, setup.spec, counts)
        if role == MATCHER:
            return Matcher(tags, lambda sizes: (table(sizes + params.noise.draw(rand)),))
        if role not in params.owners or not isinstance(prepared, KeyedList):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        if params.matched:
            return Owner(tags, MATCHER, role, prepared.keys, rand)
        pair = Pair(RECEIVER, SENDER, counts[0], counts[1], params.dummies, setup.ctx)
        if role == SENDER:
            return Sender(pair, prepared.keys, rand)
        half = params.dummies.half
        return Receiver(pair, prepared.keys, rand, lambda raised: (table([raised - half]),))

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return how exact the figures would be for each amount, which stands for the spec's own ρ or ε.

        Raises:
            InputError: the spec is not of this type's form, or an amount is out of range (`bad-privacy`).
        """
        params = Params.of(spec)
        what = ("each region", "每个区域") if params.matched else ("the overlap", "重合人数")
        found = []
        for amount in amounts:
            asked = replace(params, budget=check_budget(Budget(params.budget.notion, amount)))
            found.append(Forecast(amount, *what, float(asked.half_width), asked.cost))
        return tuple(found)


# -- the table -------------------------------------------------------------------------------


def released(params: Params, spec: JobSpec, counts: Sequence[int], noisy: "Ints | Sequence[int]") -> Content:
    """Return the table of noisy sizes: values and intervals cut to what list sizes allow, post-processing.

    Args:
        params: of the job.
        spec: the job.
        counts: distinct keys of each list, as admitted.
        noisy: the overlap, or each region in the order of `Matcher`, with its noise.
    """
    import numpy as np

    labels: dict[str, Any] = {}
    most = [min(counts)]
    if params.matched:
        held = [[set_ >> i & 1 for i in range(params.sources)] for set_ in range(1, 1 << params.sources)]
        labels = {
            str(owner): as_texts(["yes" if on[i] else "no" for on in held])
            for i, owner in enumerate(params.owners)
        }
        most = [min(count for count, there in zip(counts, on, strict=True) if there) for on in held]
    numbers, w, top = np.asarray(noisy, np.int64), params.half_width, np.array(most, np.int64)
    value, low, high = (
        np.clip(each, 0, top).astype(np.float64) for each in (numbers, numbers - w, numbers + w)
    )
    return content(TABLE, [Figure(PERSONS, labels, value, None, low, high)], _facts(params, spec))


def _facts(params: Params, spec: JobSpec) -> dict[str, int | str]:
    w = params.half_width
    notion = "rho" if params.budget.notion == "zcdp" else "epsilon"
    shape = "discrete Gaussian" if notion == "rho" else "discrete Laplace"
    spent: dict[str, int | str] = {notion: decimal_text(params.budget.amount)}
    if not params.matched:
        shape, spent = (
            f"truncated {shape}",
            spent
            | {
                "delta": decimal_text(params.delta),
                "pool": params.dummies.pool,
            },
        )
    each, each_zh = ("Each region", "每个区域的人数") if params.matched else ("The overlap", "重合人数")
    return {
        "statistic": "regions" if params.matched else "overlap",
        "mechanism": shape,
        **spent,
        **{role: organisation_of(spec.roles[role]) for role in params.owners},
        "confidence": "95 %",
        "within": f"{each} is within ±{w:,} with 95 %",
        "within_zh": f"{each_zh}有 95 % 的把握在 ±{w:,} 以内",
        "not_covered": (
            "the intervals hold the noise alone, each by itself; they do not hold rows without a usable "
            "identifier, nor errors in the data. No number is below 0 or above the shortest list it is of"
        ),
        "not_covered_zh": (
            "区间仅反映噪声, 各自单独成立; 不包括证件号码不可用的记录和数据本身的错误。"
            "数字不小于 0, 也不大于相关清单中最短一份的条数"
        ),
    }


# -- words ---------------------------------------------------------------------------------------------------

_ONE_LIST_EACH: Final = "nothing new, but an organisation that brings two lists needs no protocol for them"

_LIST_SIZES: Final = Statement(
    "list-sizes",
    "how many rows and distinct keys each list has and when it was taken, as the admissions state",
    "各清单的行数、去重后的条数和数据时点(准入声明中已载明)",
)
_OWN_DUMMIES: Final = Statement(
    "own-dummies",
    "how many dummies it added itself; nothing of the other list and not the result",
    "自己加入的虚拟条目数; 不知道对方清单的任何内容, 也不知道结果",
)
_EXACT: Final = Statement(
    "exact-overlap",
    "exactly how many persons both lists have: it knows how many dummies to take off",
    "两份清单重合的确切人数: 其知道应扣除多少虚拟条目",
)
_VENN: Final = Statement(
    "venn",
    "for each combination of lists, exactly how many keys are on those and no others; no key itself",
    "各清单每一种组合恰好有多少相同条目(精确韦恩图), 不知道任何证件号码",
)
_DICTIONARY: Final = Statement(
    "dictionary",
    "for any guessed identifier, which lists hold it; all can be guessed",
    "对任意猜测的证件号码, 可知哪些清单持有; 证件号码可被穷举",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, and how far each node is; all of it "
    "follows from list sizes and the job",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度; 均由清单条数和任务本身决定",
)


def _loss(params: Params) -> str:
    return loss_text(params.budget, params.delta)


def _noisy(params: Params) -> Statement:
    what = "how many persons both lists have"
    what_zh = "两份清单重合的人数"
    if params.matched:
        what = f"for each combination of the {params.sources} lists, how many persons are on just those"
        what_zh = f"{params.sources} 份清单的每一种组合恰好有多少人"
    return Statement(
        "noisy-regions" if params.matched else "noisy-overlap",
        f"{what}, with noise and an interval; whether one person is on one list changes what can be told "
        f"from it by no more than {_loss(params)}, beyond what the lists' sizes tell",
        f"{what_zh}, 含噪声并附区间; 除清单条数外, 某人是否在某份清单上对可推知内容的影响不超过 "
        f"{_loss(params)}",
    )


def _rows_elsewhere(owner: str) -> Statement:
    return Statement(
        "own-rows-elsewhere",
        f"for each row of {owner}'s list, which other lists hold the same person",
        f"{owner} 清单中的每一条, 还有哪些清单持有同一人",
    )
