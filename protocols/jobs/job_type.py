"""What a job type is: the one interface that gate, runner, scheduler, SDK and CLI know.

Adding a job type touches `protocols/jobs/<name>.py` and its line in `JOB_TYPES`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from protocols.dp.cost import Cost
from protocols.ids import Digest, JobId, Organisation, Role
from protocols.party import Party, Rand, Serving
from protocols.resources import Resources
from protocols.statistics.differencing import Query
from protocols.training.work import Worker
from protocols.wire import Constraints, InputSummary, JobSpec

if TYPE_CHECKING:
    from protocols.tables.grouped import Asked, Groups

SUSPECTED: Final = "疑似, 需人工核实 (suspected, needs human verification)"
"""The mark on every class-B release."""

REQUESTER: Final = Organisation("requester")
"""Stands for the organisation of the analyst who signed the job, wherever a plan cannot know it yet: as the
recipient of a planned release, and as a role in `learns`. No organisation of a job may bear this name."""

COORDINATOR: Final = "coordinator"
"""Stands for whoever relays the frames, as a member of a coalition in `learns`."""


UNIT: Final = "unit"
"""Slot under which a builder gets the column that says whom a row is about. The policy names that column, so
no job maps this slot."""


AGGREGATOR: Final = Role("aggregator")
"""The role that adds up what it cannot read."""


def source(number: int) -> Role:
    """Return the role of the source with that number, counted from 1."""
    return Role(f"source-{number}")


class OutputClass(StrEnum):
    """What kind of thing leaves (architecture, "Output classes")."""

    AGGREGATE = "A"
    DIRECTED = "B"
    MODEL = "C"


@dataclass(frozen=True, slots=True)
class Domain:
    """What a job says of a column's values, for the policy to hold against its own words of the column.

    Attributes:
        values: texts that count; where the policy lists values, each is one of them. Of a row with another
            text nothing is in any output: a rule's `only` rests on that.
        named: texts that are told apart, while rows of any other text count as well; where the policy lists
            values, each is one of them.
        whole: the policy has to list values, and `named` have to be just these: whoever asks chooses none.
        bins: ascending lower bounds; where the policy states bins, each is one of them.
        bounds: least and greatest value that counts.
        covering: the policy has to state a range, and the bounds have to hold all of it, so that no value of
            this column can be out of bounds.
        stated: the policy has to state a range, and the bounds have to be just that: whoever asks chooses
            none.
        kept: least and greatest value of the rows that count, both included, None where there is no such end;
            where the policy states bins, both cut between two of them. Of a column of dates or months, which
            has none, the months by number.
    """

    values: tuple[str, ...] = ()
    bins: tuple[Fraction, ...] = ()
    bounds: tuple[Fraction, Fraction] | None = None
    covering: bool = False
    stated: bool = False
    kept: tuple[Fraction | None, Fraction | None] | None = None
    named: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class ColumnNeed:
    """One column a role's dataset must offer: the policy has to list `use` for it.

    `slot` is the job's word for it, `types` the policy column types that fit.
    """

    slot: str
    use: str
    types: tuple[str, ...]
    required: bool = True
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """Whom a row is about.

    Attributes:
        kind: the type of the column that says it, by the policy.
        max_rows: most rows of one, by the policy.
        as_of: the day of the data, on which identifiers are judged. Not the job's to choose: with two days,
            one question would be about two groups of persons.
    """

    kind: str
    max_rows: int
    as_of: date | None = None


@dataclass(frozen=True, slots=True)
class PlannedRelease:
    """One release a successful run makes, and who makes it for whom."""

    name: str
    output_class: OutputClass
    made_by: Role
    recipient: Organisation


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of a leakage statement, in both languages.

    `key` is stable and stands in journals; `zh` and `en` are printed before approval.
    """

    key: str
    en: str
    zh: str


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything public about one attempt that a party needs. `ctx` binds it to all admissions."""

    spec: JobSpec
    attempt: int
    ctx: bytes
    constraints: Constraints
    inputs: Mapping[Role, InputSummary]


class PreparedInput(Protocol):
    """One role's dataset, normalised and free of repeats, as the party will use it."""

    @property
    def rows(self) -> int:
        """Rows as read."""
        ...

    @property
    def distinct_keys(self) -> int:
        """Keys left after normalisation and removal of repeats."""
        ...

    def quality(self) -> Mapping[str, int]:
        """Return counts by reason code, for the preflight record."""
        ...

    @property
    def rule_version(self) -> str:
        """Version of the identifier rules that were applied."""
        ...

    def commitment(self, salt: bytes) -> Digest:
        """Return SHA-256(salt32 ‖ sorted normalised list)."""
        ...


class InputBuilder(Protocol):
    """Takes a dataset batch by batch, only the declared columns, and prepares it."""

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch: slot → pyarrow array, all of one length."""
        ...

    def finish(self) -> PreparedInput:
        """Return the prepared input."""
        ...


@runtime_checkable
class TakesGroups(InputBuilder, Protocol):
    """An `InputBuilder` that also takes what a source counted by itself, of rows that nobody hands out."""

    def asked(self) -> "Asked":
        """Return what the source has to count."""
        ...

    def add_groups(self, groups: "Groups") -> None:
        """Take what it counted, once; no unit of these rows is in a batch that is added.

        Raises:
            InputError: `count-mismatch`: no rows give such counts.
        """
        ...

    def rests_on_order(self) -> bool:
        """Whether the rows added so far might count otherwise in another order."""
        ...


@dataclass(frozen=True, slots=True)
class Table:
    """A small typed table: what a party hands its node for release. Columns have one length."""

    columns: Mapping[str, npt.NDArray[Any]]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield rows as tuples."""
        return zip(*self.columns.values(), strict=True)


@dataclass(frozen=True, slots=True)
class Content:
    """The content of one planned release; the runner serialises, seals and journals it.

    `facts` are numbers about the run that may be shown with it (suppressed cells, rounding base).
    """

    name: str
    table: Table
    facts: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Separation:
    """`these` and `those` must share no organisation, because together they would learn `why`."""

    why: str
    these: frozenset[Organisation]
    those: frozenset[Organisation]


class JobType(Protocol):
    """A protocol as the rest of the house sees it."""

    @property
    def name(self) -> str:
        """`crosscheck/1`."""
        ...

    @property
    def output_class(self) -> OutputClass:
        """The most sensitive class among its releases."""
        ...

    @property
    def states_sizes(self) -> bool:
        """Whether admissions state how long each list is; else they state what the catalogue publishes."""
        ...

    @property
    def counts_units(self) -> bool:
        """Whether personal data takes part only where the policy says whom a row is about."""
        ...

    @property
    def silent_until_answering(self) -> bool:
        """Whether nothing is told before a party begins to answer (`Step.answering`).

        An attempt that ends earlier then says nothing of that party's data, neither by what was sent nor by
        its end, and its cost is free again.
        """
        ...

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients of a spec of this type.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        ...

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names this seat plays: `source-1` may be {"source", "key-holder"}."""
        ...

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return what the dataset of `role` must offer; empty for a role without a dataset.

        A slot may come several times, for several uses: the column has to meet them all.
        """
        ...

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return every release a successful run makes."""
        ...

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return the pairs of organisation sets that must be disjoint, derived from the coalition table."""
        ...

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return what each coalition of roles can compute beyond its own inputs and what smaller ones can."""
        ...

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        """Return what one attempt costs the dataset of `role` under these constraints."""
        ...

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return what the job selects of the dataset of `role`.

        None for a role without one, and where every answer is about one person, never about a group.
        """
        ...

    def sources_asked(self, spec: JobSpec) -> int:
        """Return the smallest number of organisations that must know a person for a record to leave."""
        ...

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder for the dataset of `role`, whose rows are about `unit`.

        With a unit, batches have the slot `UNIT`, too.
        """
        ...

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check all admissions' input summaries together, before anything derived from data leaves.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        ...

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; its output is a tuple of Content, empty for most roles."""
        ...


@dataclass(frozen=True, slots=True)
class Forecast:
    """How exact one figure, or every cell of one level, would be for one amount of privacy loss.

    Attributes:
        amount: the ρ or ε of the whole job, in the measure of its own params.
        what: the figure or level, in English: a measure's slot, a level's name.
        what_zh: the same in Chinese.
        within: half width of the interval that holds the noise of one released number with 95 %, in the
            number's own units; not what clamping and bounded contributions take away.
        cost: what one attempt costs the dataset of one source.
    """

    amount: Fraction
    what: str
    what_zh: str
    within: float
    cost: Cost


@runtime_checkable
class CountsAcross(Protocol):
    """A job type that counts persons of several departments, and takes the job's word for how many share one.

    What hides a person rests on that word: the minimum of a cell, and how much noise there is.
    """

    def persons_in(self, spec: JobSpec) -> tuple[int, int] | None:
        """Return in how many departments one person may be, and how many give data; None: it does not matter.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...


@runtime_checkable
class CountsEveryRow(Protocol):
    """A job type whose exact figures count all rows of a person, and reckon with at most so many of one.

    Nobody can bound them: of some rows it cannot be read whom they are about. So the policy has to say of no
    dataset that one may have more.
    """

    def rows_of_one(self, spec: JobSpec) -> int | None:
        """Return how many rows of one person the job reckons with; None where the node bounds them itself.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...


@runtime_checkable
class RequesterBound(Protocol):
    """A job type whose jobs only people of a certain organisation may ask for."""

    def check_requester(self, spec: JobSpec, requester: Organisation) -> None:
        """Check of which organisation the analyst is who signed a well-formed job.

        Raises:
            InputError: of another one than may ask.
        """
        ...


@runtime_checkable
class Forecaster(Protocol):
    """A job type whose releases carry noise, and which says beforehand how much; see `minshu plan`."""

    def forecast(self, spec: JobSpec, amounts: Sequence[Fraction]) -> tuple[Forecast, ...]:
        """Return what each amount would buy: one forecast for each figure or level, amount by amount.

        Each amount stands in the place of the spec's own `rho` or `epsilon`, whichever its params give. The
        noise is that of every source giving data, as `cost` and `party` reckon it. No data is looked at.

        Raises:
            InputError: the spec is not of this type's form, or an amount is out of range (`bad-privacy`).
        """
        ...


@runtime_checkable
class ExactOrNoisy(Protocol):
    """A job type each of whose jobs says whether its figures are exact or carry noise.

    Under a rule that names a budget they carry noise: without it the budget would bound nothing.
    """

    def exact(self, spec: JobSpec) -> bool:
        """Return whether the figures of this job are exact, so that no budget pays for them.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...


WEIGHTS: Final = "weights"
"""What a rule names among its recipes to let a job score by weights that stand in the job."""


@runtime_checkable
class Trains(Protocol):
    """A job type whose jobs make a model, or score by one, by a recipe that a rule has to name."""

    def recipe(self, spec: JobSpec) -> str:
        """Return the recipe by its name where it is one of Minshu's own, else `sha256:` of its distribution.

        `WEIGHTS` where a job scores by weights that stand in it.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...


@runtime_checkable
class TellsLess(Protocol):
    """A job type of class B whose records hold columns of certain uses alone: others are only compared."""

    @property
    def told(self) -> frozenset[str]:
        """The uses of columns that a record may hold."""
        ...


class Shelf(Protocol):
    """Where a node keeps what a job type needs again in later jobs: named blobs, each whole or not there.

    A name has 1 to 128 lower-case letters, digits, dots, dashes and underscores. Nobody but the node's own
    account can read them.
    """

    def names(self) -> Sequence[str]:
        """Return every name, sorted."""
        ...

    def get(self, name: str) -> memoryview | None:
        """Return a blob, read-only and mapped rather than read; None where there is none."""
        ...

    def put(self, name: str) -> AbstractContextManager[Callable[[bytes], object]]:
        """Give a writer. When the block ends the blob is durable under its name; after an error it is not."""
        ...

    def drop(self, name: str) -> None:
        """Remove a blob, if it is there."""
        ...


@runtime_checkable
class Standing(Protocol):
    """A job type whose jobs stay open to answer people at a node, and which keeps something between jobs."""

    def session_s(self, spec: JobSpec, role: Role) -> int | None:
        """Return after how many seconds the node of `role` closes the session; None: another one does."""
        ...

    def serving(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        shelf: Shelf,
        monotonic: Callable[[], float],
    ) -> Serving:
        """Return the state machine of `role`: what `party` is for other types.

        Args:
            role: whose.
            setup: what is public of the attempt.
            prepared: the own dataset, as for `party`.
            rand: draws random bytes.
            shelf: of this job type at this node.
            monotonic: seconds that never run back, for rates.
        """
        ...


@runtime_checkable
class Keeps(Protocol):
    """A job type whose parties leave something on a shelf of their node, or find it there."""

    @property
    def shelf(self) -> str:
        """The job type whose shelf that is: perhaps another one, which left it."""
        ...

    def party_with(
        self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand, *, shelf: Shelf
    ) -> Party:
        """Return the state machine of `role`: what `party` is for other types.

        Raises:
            InputError: what lies on the shelf is not what the job needs, or nothing does.
        """
        ...


@runtime_checkable
class Serial(Protocol):
    """A job type whose jobs are days of a series: a later one uses what day 1 left on the nodes' shelves.

    That is keys, for as many days as every list owner's rule allows and no longer.
    """

    def day(self, spec: JobSpec) -> int:
        """Return which day of its series a job is, from 1.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...

    def first(self, spec: JobSpec) -> JobId:
        """Return the job of day 1, by which a series is known.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...

    def check_kept(
        self, spec: JobSpec, role: Role, *, shelf: Shelf, now: datetime, most_days: int | None
    ) -> None:
        """Check by the shelf of the node of `role` that this day may be.

        Args:
            spec: the job.
            role: whose node.
            shelf: of this job type at that node.
            now: by the node's own clock.
            most_days: how many days keys may live.

        Raises:
            StateConflict: `series-lost`, `series-other`, `series-day`.
            Refused: `series-over`.
        """
        ...

    def party_of_day(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        shelf: Shelf,
        now: datetime,
        committed: Callable[[JobId], bool],
    ) -> Party:
        """Return the state machine of `role`: what `party` is for other types.

        Args:
            role: whose.
            setup: what is public of the attempt.
            prepared: the own dataset, as for `party`.
            rand: draws random bytes.
            shelf: of this job type at this node.
            now: by the node's own clock.
            committed: whether the node has committed what it releases of a job.

        Raises:
            StateConflict, Refused: see `check_kept`.
        """
        ...

    def drop_over(self, shelf: Shelf, *, now: datetime, most_days: int | None) -> int:
        """Drop the series whose days are over, as agreed or as allowed now; every one where none is allowed.

        Return how many went.
        """
        ...


@runtime_checkable
class Dated(Protocol):
    """A job type that judges days even where rows are about nobody, so that no `unit` says the data's own."""

    def builder_as_of(self, spec: JobSpec, role: Role, unit: Unit | None, day: date) -> InputBuilder:
        """Return what `builder` does; `day` is the one of the data, where `unit` does not say it."""
        ...


@runtime_checkable
class Spills(Protocol):
    """A job type whose lists may be longer than memory: what does not fit goes to a node's scratch."""

    def builder_with(
        self, spec: JobSpec, role: Role, unit: Unit | None, resources: Resources
    ) -> InputBuilder:
        """Return what `builder` does; what it prepares may need the scratch for as long as it is used."""
        ...

    def party_on(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        resources: Resources,
    ) -> Party:
        """Return the state machine of `role`: what `party` does.

        Args:
            role: whose.
            setup: what is public of the attempt.
            prepared: the own dataset, as for `party`.
            rand: draws random bytes.
            resources: with the same scratch as `builder_with` had.
        """
        ...


Turns: TypeAlias = Mapping[str, int]
"""How many rounds of each kind: `train`, `evaluate`."""


@runtime_checkable
class HasQuorum(Protocol):
    """A job type whose rounds some of its sources may miss."""

    def members(self, spec: JobSpec) -> tuple[int, int]:
        """Return how many sources have a part in each round at the least, and at most.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...


@runtime_checkable
class InRounds(Protocol):
    """A job type that answers round by round, with worker processes that compute.

    An attempt that ended goes on in the next one, after its last durable round; the number of a round is
    never used twice. The whole run is charged before round one, and what no round was spent on is given back
    at the end of an attempt.
    """

    def rounds(self, spec: JobSpec) -> Turns:
        """Return the most rounds of one node, all attempts of the job together.

        Raises:
            InputError: the spec is not of this type's form.
        """
        ...

    def cost_of(self, spec: JobSpec, role: Role, constraints: Constraints, rounds: Turns) -> Cost:
        """Return what so many rounds cost the dataset of `role`; `cost` is that of all of them."""
        ...

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
        """Return the state machine of `role`: what `party` is for other types.

        Args:
            role: whose.
            setup: what is public of the attempt.
            prepared: the own dataset, as for `party`.
            rand: draws random bytes.
            used: rounds that this node recorded in earlier attempts of the job.
            shelf: of this job type at this node.
            workers: starts a worker process that has these columns as its rows, or none.
        """
        ...
