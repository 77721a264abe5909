"""A job and a catalogue as the analyst sees them: frozen values, free of generated types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Self

from coordinator.client.outcomes import FiledOutcome, Recipients, read_outcomes
from coordinator.lifecycle import JOB_ENDS
from protocols.catalogue import Announced, Published, PublishedColumn, read_catalogue
from protocols.encoding import decode_json
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError
from protocols.figures import shown
from protocols.ids import JobId, NodeName
from protocols.wire import Roster, Verdict

if TYPE_CHECKING:
    from minshu.v1 import jobs_pb2

NO_DEFINITION: Final = ("", "", "")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One node's part in the current attempt; `done` of `total` units of `phase`.

    `figures` are what the node shows while it runs, such as a model's noisy AUC: short texts by name.
    """

    node: NodeName
    role: str
    state: str
    code: str
    sentence: str
    hint: str
    phase: str
    done: int
    total: int
    approvals_needed: int
    approvals_given: int
    verdict: bytes
    figures: Mapping[str, str] = field(default_factory=dict)

    @property
    def said(self) -> Verdict | None:
        """What the node's verdict says, as the coordinator passes it on; None before it answered.

        To rely on it, check its signature: `Job.verdicts`.
        """
        try:
            return Verdict.decode(decode_envelope(self.verdict).payload) if self.verdict else None
        except DecodeError:
            return None


@dataclass(frozen=True, slots=True)
class ReleaseStatus:
    """One release the coordinator holds, `size` in bytes as sealed."""

    release: str
    name: str
    output_class: str
    node: NodeName
    size: int
    expires: str


@dataclass(frozen=True, slots=True)
class View:
    """A job as the coordinator tells it.

    `answered_by` is the earlier job whose releases answer this one, empty for none. `outcomes`, newest first,
    are those whose signature holds under the roster in force; `doubtful` counts the others.
    """

    job: JobId
    state: str
    attempt: int
    job_type: str
    purpose: str
    code: str
    sentence: str
    hint: str
    submitted: str
    runs: tuple[RunStatus, ...]
    releases: tuple[ReleaseStatus, ...]
    legal_basis: str = ""
    expected_use: str = ""
    answered_by: str = ""
    outcomes: tuple[FiledOutcome, ...] = ()
    doubtful: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in JOB_ENDS

    @property
    def succeeded(self) -> bool:
        """Whether every node is done and every release is there."""
        return self.state == "SUCCEEDED"

    @classmethod
    def of(
        cls, view: "jobs_pb2.JobView", roster: Roster | None = None, receiving: Recipients | None = None
    ) -> Self:
        """Read the wire form; without a roster to check them with, every outcome is doubtful."""
        outcomes: tuple[FiledOutcome, ...] = ()
        doubtful = len(view.outcomes)
        if roster is not None:
            outcomes, doubtful = read_outcomes(view.outcomes, JobId(view.job), roster, receiving)
        return cls(
            job=JobId(view.job),
            state=view.state,
            attempt=view.attempt,
            job_type=view.job_type,
            purpose=view.purpose,
            code=view.code,
            sentence=view.sentence,
            hint=view.hint,
            submitted=view.submitted,
            runs=tuple(
                RunStatus(
                    node=NodeName(run.node),
                    role=run.role,
                    state=run.state,
                    code=run.code,
                    sentence=run.sentence,
                    hint=run.hint,
                    phase=run.phase,
                    done=run.done,
                    total=run.total,
                    approvals_needed=run.approvals_needed,
                    approvals_given=run.approvals_given,
                    verdict=run.verdict,
                    figures=shown(run.figures),
                )
                for run in view.runs
            ),
            releases=tuple(
                ReleaseStatus(
                    release=release.release,
                    name=release.name,
                    output_class=release.output_class,
                    node=NodeName(release.node),
                    size=release.bytes,
                    expires=release.expires,
                )
                for release in view.releases
            ),
            legal_basis=view.legal_basis,
            expected_use=view.expected_use,
            answered_by=view.answered_by,
            outcomes=outcomes,
            doubtful=doubtful,
        )

    def _repr_html_(self) -> str:
        from coordinator.client.notebook import job_html

        return job_html(self)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a dataset in a catalogue; empty text for what its node does not say.

    Attributes:
        name: in the table.
        type: `text`, `integer`, `decimal`, `date`, `time`, `boolean` or `other`.
        title: what people call it.
        item: its own catalogue id.
        code_table: the table of its codes and its version, such as `gbt2261.1@2003`.
        unit: of its numbers.
        nullable: whether it may be missing.
        authoritative: whether the dataset is its one source (一数一源).
        organisation: who is responsible for it, where it is not who is for the dataset.
    """

    name: str
    type: str
    title: str = ""
    item: str = ""
    code_table: str = ""
    unit: str = ""
    nullable: bool = True
    authoritative: bool = False
    organisation: str = ""

    def words(self) -> str:
        """Return it for people."""
        about = (self.name, self.title, self.type, self.unit, self.code_table)
        return " ".join(filter(None, (*about, "authoritative" if self.authoritative else "")))


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset of a catalogue, as its node published it; empty text for what the node does not say.

    Attributes:
        name: what jobs call it.
        title: what people do.
        rows: rounded; None of one that is announced only, which no job can name yet.
        distinct_keys: rounded; None of one that is announced only.
        columns: in their order.
        key: the column of identifiers, empty where rows are about no persons.
        snapshot: when the table was last written.
        item: its catalogue id.
        organisation: who is responsible for it, where it is not the node's own organisation.
        grade: GB/T 43697-2024.
        sharing: `unconditional`, `conditional` or `none`.
        purposes: what it is held for.
        update_days: how often it is brought up to date, in days; 0 where that is not said.
        definition: id and version of the definition that it follows, and a sentence; all empty for none.
        legal_basis: by what right it is held.
        quality: what its node measured last, shares rounded to 0.1 %; empty where it does not say.
    """

    name: str
    title: str
    rows: int | None
    distinct_keys: int | None
    columns: tuple[Column, ...]
    key: str = ""
    snapshot: str = ""
    item: str = ""
    organisation: str = ""
    grade: str = ""
    sharing: str = ""
    purposes: tuple[str, ...] = ()
    update_days: int = 0
    definition: tuple[str, str, str] = NO_DEFINITION
    legal_basis: str = ""
    quality: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """How large it is, for people."""
        counts = f"{self.rows} rows, {self.distinct_keys} keys"
        return "announced, not registered" if self.rows is None else counts

    def lines(self) -> list[str]:
        """Return it for people."""
        columns = ", ".join(f"{column.name} {column.type}" for column in self.columns)
        return [f"{self.name}  {self.title}  {self.size}", *([f"  {columns}"] if columns else [])]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a node publishes about its datasets; `content` is the whole document its key signed.

    `issued` is when it was signed, by the node's own clock.
    """

    node: NodeName
    datasets: tuple[Dataset, ...]
    content: Mapping[str, Any]
    issued: datetime

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a catalogue strictly, see `protocols.catalogue.read_catalogue`.

        Raises:
            DecodeError: another schema, an unknown field, or one without its form.
        """
        found = read_catalogue(payload)
        every = (*found.datasets, *found.announced)
        return cls(found.name, tuple(map(_dataset, every)), decode_json(payload), found.moment)


def _dataset(said: Announced) -> Dataset:
    of_registered: dict[str, Any] = {"rows": None, "distinct_keys": None}
    if isinstance(said, Published):
        of_registered = {
            name: getattr(said, name) for name in ("rows", "distinct_keys", "key", "snapshot", "quality")
        }
    definition = said.definition
    return Dataset(
        name=said.name,
        title=said.title,
        columns=tuple(_column(each) for each in said.columns),
        item=said.item or "",
        organisation=said.organisation or "",
        grade=said.grade or "",
        sharing=said.sharing or "",
        purposes=said.purposes,
        update_days=said.update_days or 0,
        definition=NO_DEFINITION
        if definition is None
        else (definition.id, definition.version, definition.text or ""),
        legal_basis=said.legal_basis or "",
        **of_registered,
    )


def _column(said: PublishedColumn) -> Column:
    return Column(
        name=said.name,
        type=said.type,
        title=said.title or "",
        item=said.item or "",
        code_table=said.code_table or "",
        unit=said.unit or "",
        nullable=said.nullable,
        authoritative=said.authoritative,
        organisation=said.organisation or "",
    )
