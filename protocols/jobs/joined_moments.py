"""`joined-moments/1`, class A: means, covariances, regressions over persons whom several departments know.

Each department has other columns of the same persons. Lists are joined under tags; a matcher and a helper of
other organisations hold shares of the joined rows, and a dealer makes the random product with which they
multiply them: n, Σq and Σqqᵀ are opened, exactly or with noise, and nothing else. Messages, masks and
products: `protocols/joined/SPEC.md`, sections 1 to 4; figures, noise and what may be shown: section 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from math import sqrt
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import CONFIDENCE, Budget
from protocols.dp.tree import deviations
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import area_table
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
)
from protocols.jobs.joined_table import minimum_of
from protocols.jobs.sources import check_enough, check_sizes, check_summaries
from protocols.joined.field import WIDE
from protocols.joined.lists import JoinedList, JoinedListBuilder
from protocols.joined.moments import (
    FEWEST,
    MAX_COLUMNS,
    MAX_REACH,
    TABLE,
    Column,
    Moments,
    Noises,
    Question,
    finest,
    noises,
    reaches,
    released,
)
from protocols.joined.params import (
    DEALER,
    HELPER,
    MATCHER,
    Lists,
    kinds_of,
    owners_of,
    read_lists,
    seats_apart,
)
from protocols.joined.parties import Dealer, Helper, Holder, Joining, Matcher, Totals
from protocols.party import Party, Rand
from protocols.releases.forecasts import GROUP
from protocols.releases.params import check_budget, read_budget
from protocols.statistics.differencing import Query
from protocols.tables.layout import Reader, bad, decimal_text
from protocols.wire import Constraints, InputSummary, JobSpec

MAX_RIDGE: Final = 10**6
"""Largest ridge: beyond, every coefficient is nothing."""

_NAME: Final = "joined-moments/1"
_USES: Final = ("sum", "mean")
"""With n beside it, a mean is a sum: a column has to be free for both."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lists: columns and filters of all sources, in the job's order.
        budget: the privacy loss of the whole job; None where moments are exact.
        target: place of the column that all others are to explain; None: nothing is regressed.
        ridge: see `Question`.
    """

    lists: Lists
    budget: Budget | None
    target: int | None
    ridge: Fraction

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Sources, a matcher, a helper and a dealer. (2) Params, each known and of its type. (3) Columns of
        two sources or more: what one has, it need not join. (4) Noise that can be drawn, and sums that words
        can hold.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        owners = owners_of(spec, dealer=True)
        # (2)
        reader = Reader(spec.params, _NAME)
        noisy = reader.has("rho") or reader.has("epsilon")
        budget = read_budget(reader) if noisy else None
        lists = read_lists(reader, owners, amounts="columns", uses=_USES[:1], most=MAX_COLUMNS, least=2)
        amounts = tuple(replace(each, of=_USES) for each in lists.amounts)
        target, ridge = _read_target(reader, [each.amount.slot for each in amounts])
        reader.finish()
        found = cls(replace(lists, amounts=amounts), budget, target, ridge)
        # (3)
        if len({each.source for each in amounts}) == 1:
            raise bad(
                "all columns are of one source, which can reckon with them without a join",
                "name columns of two sources or more",
            )
        # (4)
        if found.reach(FEWEST) > WIDE.reach:
            raise InputError(
                f"a sum of {FEWEST} products could be {found.reach(FEWEST)} with its noise, words hold "
                f"{WIDE.reach}",
                code="overflow",
                hint="spend more of the budget, or ask for fewer columns",
            )
        return found

    @property
    def sources(self) -> int:
        """How many departments bring a list."""
        return len(self.lists.owners)

    def columns(self, persons: int) -> tuple[Column, ...]:
        """Return the columns in the job's order, q as fine as words hold for so many persons.

        With noise there is nothing to gain from it: the noise is larger than what rounding to q takes away.
        """
        most = finest(persons) if self.budget is None else MAX_REACH
        return tuple(Column.of(each.amount, most) for each in self.lists.amounts)

    @cached_property
    def noises(self) -> Noises | None:
        """The noise on moments; None where they are exact."""
        return None if self.budget is None else noises(self.columns(FEWEST), self.budget)

    @property
    def cost(self) -> Cost:
        """What one attempt costs each list."""
        return Cost(queries=1) + (NOTHING if self.noises is None else self.noises.cost)

    def reach(self, persons: int) -> int:
        """Return what no sum of so many persons is beyond, noise of both and all (up to 2^-100)."""
        return reaches(self.columns(persons), self.noises, persons)

    def question(self, persons: int, limits: Constraints) -> Question:
        """Return what is made of the moments of lists of which the shortest has so many keys."""
        return Question(self.columns(persons), self.target, self.ridge, self.noises, minimum_of(limits))

    @property
    def order(self) -> tuple[int, ...]:
        """Return of each column of the job its place among all words, which are source by source."""
        owners = self.lists.owners
        by_source = sorted(
            range(len(self.lists.amounts)), key=lambda at: owners.index(self.lists.amounts[at].source)
        )
        return tuple(by_source.index(at) for at in range(len(by_source)))

    def joining(self, counts: Sequence[int], ctx: bytes) -> Joining:
        """Return what the parties compute of lists of so many keys."""
        return Joining.of(
            self.lists.owners,
            self.lists.key_holders,
            counts,
            ctx,
            matcher=MATCHER,
            helper=HELPER,
            dealer=DEALER,
            field=WIDE,
            widths=[len(each.amounts) for each in self.lists.wholes],
            product="gram",
        )

    def words(self, prepared: JoinedList, persons: int, rows: npt.NDArray[np.uint32]) -> Ints:
        """Return q of these rows of a list, zeros of persons who do not count; k x own columns."""
        most = self.columns(persons)[0].most
        found = np.zeros((len(rows), len(prepared.wanted.amounts)), np.int64)
        for at, amount in enumerate(prepared.wanted.amounts):
            found[:, at] = Column.of(amount, most).quantised(prepared.amounts[rows, at])
        found[~prepared.counted[rows]] = 0
        return found


def _read_target(reader: Reader, slots: Sequence[str]) -> tuple[int | None, Fraction]:
    """Read `target` and `ridge`.

    Raises:
        InputError: `bad-params`.
    """
    if not reader.has("target"):
        if reader.has("ridge"):
            raise bad("a ridge, but no target that is to be explained", 'write target = "income"')
        return None, Fraction(0)
    target = slots.index(reader.choice("target", slots))
    ridge = reader.fraction("ridge") if reader.has("ridge") else Fraction(0)
    if not 0 <= ridge <= MAX_RIDGE:
        raise bad(f"params.ridge is not between 0 and {MAX_RIDGE}", 'write ridge = "0.01", or leave it out')
    return target, ridge


# -- the job type --------------------------------------------------------------------------------------------


class JoinedMoments:
    """The job type `joined-moments/1`."""

    name: Final = _NAME
    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = True
    counts_units: Final = True
    silent_until_answering: Final = True

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Each source brings one dataset with the slots of its part. (3) The table
        goes to the requester.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        params.lists.check_columns(spec)
        # (3)
        if spec.recipients:
            raise InputError(
                f"{len(spec.recipients)} recipient(s), expected none: the table goes to the requester",
                code="bad-recipients",
                hint="leave recipients empty",
            )

    def exact(self, spec: JobSpec) -> bool:
        """Return whether the moments carry no noise."""
        return Params.of(spec).budget is None

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: two sources are key-holders, too."""
        return kinds_of(role, Params.of(spec).lists.key_holders)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a source's list."""
        return Params.of(spec).lists.needs(role)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, which the matcher makes for the requester."""
        Params.of(spec)
        return (PlannedRelease(TABLE, OutputClass.AGGREGATE, MATCHER, REQUESTER),)

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
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({Role(REQUESTER)}): (_release(params),),
            frozenset({Role(COORDINATOR)}): (_LIST_SIZES, _TRAFFIC),
            frozenset({MATCHER}): (_LIST_SIZES, _VENN, _HELPERS_NOISE if noisy else _ALL_MOMENTS),
            frozenset({HELPER}): (_LIST_SIZES, _JOINED_ROWS),
            frozenset({DEALER}): (_LIST_SIZES,),
            frozenset({MATCHER, HELPER}): (_ALL_WORDS,),
            frozenset({MATCHER, DEALER}): (_JOINED_WORDS,),
            frozenset({HELPER, DEALER}): (_JOINED_WORDS,),
            frozenset({MATCHER, *params.lists.key_holders}): (_DICTIONARY,),
        }
        if noisy:
            table[frozenset({Role(REQUESTER), HELPER})] = (_ONE_NOISE,)
        for owner in params.lists.owners:
            table[frozenset({owner})] = (_LIST_SIZES,)
            table[frozenset({MATCHER, owner})] = (_rows_elsewhere(owner),)
            table[frozenset({HELPER, owner})] = (_rows_joined(owner),)
            for two in ({MATCHER, HELPER}, {MATCHER, DEALER}, {HELPER, DEALER}):
                table[frozenset({*two, owner})] = (_joined_records(owner),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return the privacy loss of all moments, none where they are exact, and one question."""
        params = Params.of(spec)
        return params.cost if role in params.lists.owners else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is reckoned of whom.

        What is regressed on what is no other question: the same moments answer it. The order of columns is,
        where they are exact: which of two that must not be shown together is shown, follows from it.
        """
        params = Params.of(spec)
        exact = params.budget is None
        asks = {"job_type": self.name, "order": [each.amount.slot for each in params.lists.amounts]}
        return params.lists.query(spec, role, asks, noisy=not exact, amounts=exact)

    def sources_asked(self, spec: JobSpec) -> int:
        """Return the number of sources: a person counts who is on every list."""
        return Params.of(spec).sources

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty list of the source's part; identifiers as of the day of the data, or of the job."""
        params = Params.of(spec)
        if role not in params.lists.owners:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return JoinedListBuilder(
            params.lists.wanted(role),
            as_of=spec.created.date(),
            areas=area_table(params.lists.areas),
            unit=unit,
        )

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations, and sources that a person is in. (3) Lists that are long enough. (4) No sum
        over as many persons as the shortest list has can leave its word.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.lists.owners)
        check_sizes(inputs)
        # (2)
        check_enough(
            constraints,
            organisations=params.sources,
            sources=params.sources,
            more="add sources",
            without="a person counts who is on every list: add sources",
        )
        # (3)
        persons = min(summary.distinct_keys for summary in inputs.values())
        if persons < _fewest(constraints):
            raise _few(constraints)
        # (4)
        if params.reach(persons) > WIDE.reach:
            raise ProtocolAborted(
                f"over {persons} persons a sum with its noise could be {params.reach(persons)}, words hold "
                f"{WIDE.reach}",
                code="guard-overflow",
                hint="ask of fewer persons, by a filter in the catalogue's own dataset",
            )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; the matcher's outputs the table.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        counts = [setup.inputs[owner].distinct_keys for owner in params.lists.owners]
        joining, persons = params.joining(counts, setup.ctx), min(counts)
        noise = None if params.noises is None else params.noises.draw
        if role == MATCHER:
            maker = _Maker(params, params.question(persons, setup.constraints), setup.constraints, rand)
            return Matcher(joining, rand, admit=maker.admit, noise=noise, publish=maker.publish)
        if role == HELPER:
            return Helper(joining, rand, noise=noise)
        if role == DEALER:
            return Dealer(joining, rand)
        if not isinstance(prepared, JoinedList) or prepared.wanted != params.lists.wanted(role):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        words = partial(params.words, prepared, persons)
        return Holder(joining, role, prepared.keys, words, prepared.codes, rand)

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return how exact n and means would be for each amount, which stands for the spec's own ρ or ε.

        Raises:
            InputError: the spec is not of this type's form, its moments are exact, or an amount is out of
                range (`bad-privacy`).
        """
        params = Params.of(spec)
        if params.budget is None:
            raise InputError(
                "params name neither rho nor epsilon: exact moments, which no privacy loss makes more exact",
                code="bad-privacy",
                hint='ask with noise: rho = "0.1"',
            )
        found = []
        for amount in amounts:
            asked = replace(params, budget=check_budget(Budget(params.budget.notion, amount)))
            noise = asked.noises
            assert noise is not None
            wide = deviations(CONFIDENCE, heavy=noise.heavy)
            counted = noise.count.half_width()
            found.append(Forecast(amount, "the number of persons", "人数", counted, asked.cost))
            for column, each in zip(asked.columns(FEWEST), noise.sums, strict=True):
                # (Σq + δ)/(n + δ'), |Σq/n| at most the reach of q.
                off = wide * sqrt(each.variance + column.reach**2 * noise.count.variance) / GROUP
                found.append(
                    Forecast(
                        amount,
                        f"the mean of {column.slot} over {GROUP:,} persons",
                        f"{GROUP:,} 人的均值({column.slot})",
                        float(column.step) * min(off, 2 * column.reach),
                        asked.cost,
                    )
                )
        return tuple(found)


class _Maker:
    """What the matcher does with n and opened sums. n gets its noise once, before anybody hears of it."""

    def __init__(self, params: Params, question: Question, limits: Constraints, rand: Rand) -> None:
        self._order, self._question, self._limits, self._rand = params.order, question, limits, rand
        self._n = 0

    def admit(self, n: int) -> None:
        """Refuse to go on with too few joined persons; with noise, where the noisy number is too small.

        Raises:
            ProtocolAborted: `guard-few-joined`.
        """
        noise = self._question.noise
        self._n = n if noise is None else n + int(noise.count.draw(self._rand)[0])
        if self._n < _fewest(self._limits):
            raise _few(self._limits)

    def publish(self, totals: Totals) -> tuple[Content, ...]:
        """Return the table.

        Raises:
            ProtocolAborted: `bad-totals`: exact moments that no joined rows have.
        """
        assert totals.products is not None
        moments = Moments.of(self._n, totals.sums[0], totals.products, self._order)
        if self._question.noise is None and not moments.possible(self._question.columns):
            raise ProtocolAborted(
                "the moments are none that rows within the job's bounds have",
                code="bad-totals",
                hint="a source sent other words than its list's; compare versions and input commitments",
            )
        return (released(self._question, moments),)


def _fewest(limits: Constraints) -> int:
    return max(FEWEST, minimum_of(limits))


def _few(limits: Constraints) -> ProtocolAborted:
    return ProtocolAborted(
        f"fewer than {_fewest(limits)} persons are on every list, too few for moments of them",
        code="guard-few-joined",
        hint="check the identifiers' columns and the filters, or ask of a larger group",
    )


# -- words ---------------------------------------------------------------------------------------------------

_LIST_SIZES: Final = Statement(
    "list-sizes",
    "how many rows and distinct keys each list has and when it was taken, as the admissions state",
    "各清单的行数、去重后的条数和数据时点(准入声明中已载明)",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, how far each node is, and which guard "
    "failed if one did; number and size of frames follow from list sizes and the job",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度、触发了哪项保护阈值; "
    "帧的数量和大小由清单条数和任务本身决定",
)
_VENN: Final = Statement(
    "venn",
    "for each combination of lists, exactly how many keys that count are on those and no others; how many "
    "persons are joined, exactly; no key itself",
    "各清单每一种组合恰好有多少相同条目(精确韦恩图), 以及联合人口的确切人数; 不知道任何证件号码",
)
_JOINED_ROWS: Final = Statement(
    "joined-rows",
    "exactly how many persons are joined, and which random places of different lists are one person; no tag "
    "and no key",
    "联合人口的确切人数, 以及各清单中哪些随机位置属于同一人; 不知道任何标签和证件号码",
)
_ALL_MOMENTS: Final = Statement(
    "all-moments",
    "sums and sums of products of all columns over the joined persons, exactly, those that are withheld too",
    "全部列在联合人口上的合计和乘积合计的精确值, 包括未公布的列",
)
_HELPERS_NOISE: Final = Statement(
    "helpers-noise",
    "sums and sums of products of all columns with the noise of the helper alone, which is enough by itself",
    "全部列的合计和乘积合计, 仅含协助方一方的噪声; 该噪声本身已足够",
)
_ONE_NOISE: Final = Statement(
    "one-noise",
    "the released numbers with the matcher's noise alone, which is enough by itself, and the exact number of "
    "persons",
    "扣除协助方噪声后的数字(剩余的匹配方噪声本身已足够), 以及确切人数",
)
_ALL_WORDS: Final = Statement(
    "all-words",
    "of every list each row's amounts, joined or not, and which rows of the lists are one person; no "
    "identity",
    "每份清单逐行的数值(无论是否联合), 以及各清单中哪些行为同一人; 不含身份",
)
_JOINED_WORDS: Final = Statement(
    "joined-words",
    "the amounts of each joined person, without identity: who deals the triple can open shares",
    "每一名联合人员的数值(不含身份): 发牌方与任一持份方联合即可还原份额",
)
_DICTIONARY: Final = Statement(
    "dictionary",
    "for any guessed identifier, which lists hold it; all can be guessed",
    "对任意猜测的证件号码, 可知哪些清单持有; 证件号码可被穷举",
)


def _rows_elsewhere(owner: str) -> Statement:
    return Statement(
        "own-rows-elsewhere",
        f"for each row of {owner}'s list that counts, which other lists hold the same person",
        f"{owner} 清单中每一条符合条件的记录, 还有哪些清单持有同一人",
    )


def _rows_joined(owner: str) -> Statement:
    return Statement(
        "own-rows-joined",
        f"for each row of {owner}'s list that counts, whether all other lists hold the same person",
        f"{owner} 清单中每一条符合条件的记录, 其他清单是否都持有同一人",
    )


def _joined_records(owner: str) -> Statement:
    return Statement(
        "joined-records",
        f"for each person of {owner}'s list who is joined, by name, the amounts of every other list",
        f"{owner} 清单中每一名联合人员(含身份)在其他清单中的数值",
    )


def _release(params: Params) -> Statement:
    slots = ", ".join(each.amount.slot for each in params.lists.amounts)
    if params.budget is None:
        return Statement(
            "moments",
            f"exactly how many persons are on all lists ({FEWEST} or more), and sums, squares and products "
            f"of {slots} over them, exactly; a column is left out with which fewer than the minimum group "
            "could be told from all others. Who knows all rows but one, knows that one",
            f"所有清单共有的确切人数(不少于 {FEWEST}), 以及 {slots} 在其上的合计、平方和与乘积和的精确值; "
            "若某列可能区分出少于最小分组的若干人, 则不公布该列。已知其余所有人数据者可推出最后一人的数据",
        )
    letter = "ρ" if params.budget.notion == "zcdp" else "ε"
    loss = f"{letter} = {decimal_text(params.budget.amount)}"
    return Statement(
        "noisy-moments",
        f"how many persons are on all lists, and sums, squares and products of {slots} over them, all with "
        f"noise; one person's data, on one list or on all, change what can be told from it by no more than "
        f"{loss}, beyond what the lists' sizes tell",
        f"所有清单共有的人数, 以及 {slots} 在其上的合计、平方和与乘积和, 均含噪声; 除清单条数外, "
        f"某人在一份或全部清单上的数据对可推知内容的影响不超过 {loss}",
    )
