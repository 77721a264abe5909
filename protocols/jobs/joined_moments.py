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
from typing import ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import CONFIDENCE, Budget
from protocols.dp.tree import deviations
from protocols.errors import InputError, ProtocolAborted
from protocols.ids import Role
from protocols.jobs.job_type import (
    REQUESTER,
    Content,
    Forecast,
    PreparedInput,
    Setup,
    Statement,
)
from protocols.jobs.joined_statistic import JoinedStatistic
from protocols.jobs.sources import minimum_of
from protocols.joined.field import WIDE, Field
from protocols.joined.lists import JoinedList
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
    owners_of,
    read_lists,
)
from protocols.joined.parties import Dealer, Helper, Holder, Joining, Matcher, Totals
from protocols.joined.statements import Values, add, coalitions, kept_rows
from protocols.party import Party, Rand
from protocols.releases.figures import Sentence
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
        lists = read_lists(
            reader, owners, amounts="columns", uses=_USES[:1], most=MAX_COLUMNS, least=2, noisy=noisy
        )
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

    def joining(self, counts: Sequence[int], ctx: bytes) -> Joining[Field]:
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


class JoinedMoments(JoinedStatistic[Params]):
    """The job type `joined-moments/1`."""

    name: Final = _NAME
    table: ClassVar[str] = TABLE

    def read(self, spec: JobSpec) -> Params:
        """See `Params.of`."""
        return Params.of(spec)

    def check(self, spec: JobSpec) -> None:
        """See `JoinedStatistic.check`; exact moments are of each column of a dataset once.

        Cut to two bounds, two amounts of one column would make groups of the persons between them, beyond
        those that the rules on what is shown look at.
        """
        super().check(spec)
        params = Params.of(spec)
        for given in spec.inputs if params.budget is None else ():
            own = [
                given.columns[each.amount.slot] for each in params.lists.amounts if each.source == given.role
            ]
            if len(set(own)) != len(own):
                raise InputError(
                    f"two columns of the job are one column of the dataset of {given.role}",
                    code="measured-twice",
                    hint='name each column of a dataset once, or ask with noise: rho = "0.1"',
                )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        noisy = params.budget is not None
        table = coalitions(params.lists, _VALUES, dealt=True, noisy=noisy)
        add(table, REQUESTER, said=(_release(params, spec),))
        if not noisy:
            add(table, MATCHER, said=(_ALL_MOMENTS,))
        return table

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what is reckoned of whom.

        What is regressed on what is no other question: the same moments answer it. The order of columns is,
        where they are exact: which of two that must not be shown together is shown, follows from it.
        """
        params = Params.of(spec)
        exact = params.budget is None
        asks = {"job_type": self.name, "order": [each.amount.slot for each in params.lists.amounts]}
        return params.lists.query(spec, role, asks, noisy=not exact, amounts=exact)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same rules; sizes that a list can have.
        (2) Enough organisations, and sources that a person is in. (3) Lists that are long enough. (4) No sum
        over as many persons as the shortest list has can leave its word. (5) There is memory for all rows.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1), (2)
        params.lists.check_all_on(inputs, constraints)
        # (3)
        persons = min(summary.distinct_keys for summary in inputs.values())
        if persons < _fewest(constraints):
            raise _few(constraints)
        joining = params.joining([inputs[owner].distinct_keys for owner in params.lists.owners], bytes(32))
        # (4)
        joining.check_reach(params.reach(persons))
        # (5)
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
        joining, persons = params.joining(counts, setup.ctx), min(counts)
        noise = None if params.noises is None else params.noises.draw
        if role == MATCHER:
            maker = _Maker(params, params.question(persons, setup.constraints), setup.constraints, rand)
            return Matcher(joining, rand, admit=maker.admit, noise=noise, publish=maker.publish)
        if role == HELPER:
            return Helper(joining, rand, noise=noise)
        if role == DEALER:
            return Dealer(joining, rand)
        own = params.lists.own(role, prepared)
        return Holder(joining, role, own.keys, partial(params.words, own, persons), own.codes, rand)

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

_VALUES: Final = Values(
    Sentence("amounts", "数值"),
    Sentence("the amounts", "数值"),
    Sentence("the amounts on every other list", "在其他清单中的数值"),
)
_ALL_MOMENTS: Final = Statement(
    "all-moments",
    "sums and sums of products of all columns over the joined persons, exactly, those that are withheld too",
    "全部列在联合人口上的合计和乘积合计的精确值, 包括未公布的列",
)


def _release(params: Params, spec: JobSpec) -> Statement:
    slots, kept = ", ".join(each.amount.slot for each in params.lists.amounts), kept_rows(params.lists, spec)
    if params.budget is None:
        return Statement(
            "moments",
            f"exactly how many persons count on all lists ({FEWEST} or more){kept.en}, and sums, squares and "
            f"products of {slots} over them, exactly; a column is left out with which fewer than the minimum "
            "group could be told from all others. Who knows all rows but one, knows that one",
            f"在所有清单中均符合条件的确切人数(不少于 {FEWEST}){kept.zh}, 以及 {slots} 在其上的合计、平方和与"
            "乘积和的精确值; 若某列可能区分出少于最小分组的若干人, 则不公布该列。"
            "已知其余所有人数据者可推出最后一人的数据",
        )
    letter, times = ("ρ", 4) if params.budget.notion == "zcdp" else ("ε", 2)
    # Other values are one row removed and one added: SPEC.md, lemma 4 of section 5.
    loss, more = (f"{letter} = {decimal_text(params.budget.amount * by)}" for by in (1, times))
    return Statement(
        "noisy-moments",
        f"how many persons count on all lists{kept.en}, and sums, squares and products of {slots} over them, "
        "all with noise; whether one person is on a list or not, on one of them or on all, changes what can "
        f"be told from it by no more than {loss}, beyond what the lists' sizes tell; other values of a "
        f"person, by no more than {more}",
        f"在所有清单中均符合条件的人数{kept.zh}, 以及 {slots} 在其上的合计、平方和与乘积和, 均含噪声; "
        f"除清单条数外, 某人是否在一份或全部清单上, 对可推知内容的影响不超过 {loss}; "
        f"某人数值不同的影响不超过 {more}",
    )
