"""A job and a catalogue as the analyst sees them: frozen values, free of generated types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from coordinator.client.outcomes import FiledOutcome, Recipients, read_outcomes
from coordinator.lifecycle import JOB_ENDS
from protocols.encoding import decode_json
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError
from protocols.figures import shown
from protocols.ids import JobId, NodeName
from protocols.wire import Fields, Roster, Verdict

if TYPE_CHECKING:
    from minshu.v1 import jobs_pb2


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
class Dataset:
    """One dataset of a catalogue; counts as its node published them."""

    name: str
    title: str
    rows: int
    distinct_keys: int
    columns: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """Return it for people."""
        return [
            f"{self.name}  {self.title}  {self.rows} rows, {self.distinct_keys} keys",
            f"  {', '.join(f'{name} {kind}' for name, kind in self.columns)}",
        ]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a node publishes about its datasets; `content` is the whole document its key signed."""

    node: NodeName
    datasets: tuple[Dataset, ...]
    content: Mapping[str, Any]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a catalogue; what a later version adds to it stays in `content`.

        Raises:
            DecodeError: another schema, or a field without its form.
        """
        content = decode_json(payload)
        f = Fields(content, "catalogue")
        f.schema("minshu-catalogue/1")
        return cls(
            node=NodeName(f.text("node")),
            datasets=tuple(_dataset(item) for item in f.items("datasets", maximum=4096)),
            content=content,
        )


def _dataset(value: Any) -> Dataset:
    f = Fields(value, "catalogue dataset")
    return Dataset(
        name=f.text("name"),
        title=f.text("title"),
        rows=f.count("rows"),
        distinct_keys=f.count("distinct_keys"),
        columns=tuple(_column(item) for item in f.items("columns", maximum=4096)),
    )


def _column(value: Any) -> tuple[str, str]:
    f = Fields(value, "catalogue column")
    return f.text("name"), f.text("type")
