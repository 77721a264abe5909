"""What job types have in common that tell one table of joined persons, exact or with noise."""

from abc import ABC, abstractmethod
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from protocols.dp.cost import NOTHING, Cost
from protocols.dp.mechanism import Budget
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    Separation,
    Unit,
)
from protocols.jobs.sources import check_no_recipients, kinds_of
from protocols.joined.params import MATCHER, Lists, seats_apart
from protocols.wire import Constraints, JobSpec


class Asked(Protocol):
    """What a job of such a type asks, as far as all of them are alike."""

    @property
    def lists(self) -> Lists:
        """What is wanted of the sources' lists."""
        ...

    @property
    def budget(self) -> Budget | None:
        """The privacy loss of the whole job; None where the table is exact."""
        ...

    @property
    def cost(self) -> Cost:
        """What one attempt costs each list."""
        ...


_Asked = TypeVar("_Asked", bound=Asked)


class JoinedStatistic(ABC, Generic[_Asked]):
    """A job type of class A: a person counts who is on every list, and the matcher makes one table.

    Attributes:
        table: the name of the table.
    """

    output_class: Final = OutputClass.AGGREGATE
    states_sizes: Final = True
    counts_units: Final = True
    silent_until_answering: Final = True
    table: ClassVar[str]

    @abstractmethod
    def read(self, spec: JobSpec) -> _Asked:
        """Read and check the params and the roles they refer to.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Each source brings one dataset with the slots of its part. (3) The table
        goes to the requester.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        asked = self.read(spec)
        # (2)
        asked.lists.check_columns(spec)
        # (3)
        check_no_recipients(spec)

    def exact(self, spec: JobSpec) -> bool:
        """Return whether the table carries no noise."""
        return self.read(spec).budget is None

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: two sources are key-holders, too."""
        return kinds_of(role, self.read(spec).lists.key_holders)

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a source's list. An open axis has to be open to the matcher by its policy."""
        return self.read(spec).lists.needs(role)

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the one table, which the matcher makes for the requester."""
        self.read(spec)
        return (PlannedRelease(self.table, self.output_class, MATCHER, REQUESTER),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation; see `seats_apart`."""
        return seats_apart(spec, self.read(spec).lists.owners, requester)

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return the privacy loss of the whole table, none where it is exact, and one question."""
        asked = self.read(spec)
        return asked.cost if role in asked.lists.owners else NOTHING

    def sources_asked(self, spec: JobSpec) -> int:
        """Return the number of sources: a person counts who is on every list."""
        return len(self.read(spec).lists.owners)

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty list of the source's part; identifiers as of the day of the data, or of the job."""
        return self.read(spec).lists.builder(spec, role, unit)
