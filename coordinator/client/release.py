"""A release as the analyst holds it: checked, opened, readable."""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator.files import replace_file
from protocols.arrow import read_table
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import RELEASE, decode_envelope, key_id, verify
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.ids import JobId, Organisation
from protocols.jobs.job_type import OutputClass
from protocols.spreadsheet import for_office
from protocols.wire import Fields, JobSpec, ReleaseNote, Roster

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from protocols.training.model import Model

METADATA: Final = b"minshu"
"""Schema metadata key of a release's name, facts and statement."""

MODEL: Final = "model"
"""Name of a release that is a model."""

_MAX_METADATA_BYTES: Final = 1 << 20
_SALT: Final = re.compile(r"[0-9a-f]{32}")


def seal_info(release: str, job: JobId) -> bytes:
    """Return the HPKE info that binds sealed bytes to their release and job."""
    return b"minshu/release/1\0" + release.encode("ascii") + b"\0" + job.encode("ascii")


@dataclass(frozen=True, slots=True)
class Release:
    """One table; `facts` are numbers about the run that belong to it, `statement` says how to read it.

    `content` is the Arrow IPC stream that was sealed, `note_envelope` the node's signed note on it.
    """

    name: str
    statement: str
    facts: Mapping[str, int | str]
    note: ReleaseNote
    note_envelope: bytes = field(repr=False)
    content: bytes = field(repr=False)

    def to_arrow(self) -> "pa.Table":
        """Return the table.

        Raises:
            DecodeError: it is none.
        """
        return read_table(self.content)

    def to_pandas(self) -> "pd.DataFrame":
        """Return the table as a pandas data frame.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas  # noqa: F401, ICN001  # only asked whether it is there
        except ImportError:
            raise InputError(
                "pandas is not installed", code="no-pandas", hint='pip install "minshu[pandas]"'
            ) from None
        return self.to_arrow().to_pandas()

    def save(self, folder: Path) -> list[Path]:
        """Write the table as Arrow and CSV, and the signed note, into `folder`; return their paths.

        In place of the CSV file a model has its own files: arrays, card and curves. The Arrow stream is what
        the note's signature holds for, so they are kept beside it.

        Raises:
            InputError: it cannot be written.
            DecodeError: it is a model that cannot be used.
        """
        files = {
            **self._readable(),
            f"{self.name}.arrow": self.content,
            f"{self.name}.note.dsse": self.note_envelope,
        }
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made ({error.strerror})", code="file-unwritable") from None
        for name, data in files.items():
            replace_file(folder / name, data, 0o600)
        return [folder / name for name in files]

    def _readable(self) -> dict[str, bytes]:
        """Return the table as files that other programs read."""
        if self.is_model:
            self.model()
            return files_in(self.content)
        import pyarrow as pa
        import pyarrow.csv

        text = pa.BufferOutputStream()
        pyarrow.csv.write_csv(for_office(self.to_arrow()), text)
        return {f"{self.name}.csv": bytes(text.getvalue())}

    @property
    def is_model(self) -> bool:
        """Whether it is a model's files; other releases of class C are figures of one."""
        return self.note.output_class == OutputClass.MODEL and self.name == MODEL

    def model(self) -> "Model":
        """Return the model: its card, `scores`, `to_onnx`.

        Raises:
            InputError: `no-model`: it is another release.
            DecodeError: its files are no model, or the card is of another job.
        """
        if not self.is_model:
            raise InputError(
                f"the release {self.name} is no model",
                code="no-model",
                hint="take it as a table: to_arrow(), to_pandas()",
            )
        from protocols.training.model import read_model

        model = read_model(files_in(self.content))
        if model.card.job != self.note.job:
            raise DecodeError("the model's card is of another job than its note", code="wrong-card")
        return model

    def _repr_html_(self) -> str:
        from coordinator.client.notebook import release_html

        return release_html(self)


def files_in(content: bytes) -> dict[str, bytes]:
    """Return the files in the content of a model's release.

    Raises:
        DecodeError: it is no table of files.
    """
    from protocols.training.model import files_of

    table = read_table(content)
    return files_of({name: table.column(name).to_pylist() for name in table.column_names})


def open_release(
    *,
    note: bytes,
    sealed: bytes,
    release: str,
    job: JobId,
    spec: JobSpec | None,
    roster: Roster,
    organisation: Organisation,
    private: bytes,
) -> Release:
    """Check and open a release.

    (1) The note is signed by the node it names, with that node's key in the roster. (2) It is about this
    release of this job, class A or C, for this organisation. (3) Where the job was submitted from here: the
    job plans this release, and has this node make it. (4) The bytes are those of the note. (5) They open with
    the analyst's key and are the content the note names. (6) The content is a table that says of itself what
    the note says.

    Raises:
        SignatureInvalid, DecodeError: which of them does not hold.
    """
    from protocols.channel import suites

    # (1)
    said = signed_note(note, roster)
    # (2)
    if (said.release, said.job, said.recipient) != (release, job, organisation) or said.output_class == "B":
        raise SignatureInvalid(
            "the note is about another release, job or recipient than was asked for", code="wrong-subject"
        )
    # (3)
    if spec is not None and not planned(spec, said):
        raise SignatureInvalid("the job does not plan this release of this node", code="unplanned-release")
    # (4)
    if not hmac.compare_digest(sha256_digest(sealed), said.sha256):
        raise DecodeError("the release's bytes are not those of its note", code="wrong-digest")
    # (5)
    content = suites.open_sealed(roster.suite, private, seal_info(release, job), sealed)
    if not hmac.compare_digest(sha256_digest(content), said.content_sha256):
        raise DecodeError("the release's content is not the one its note names", code="wrong-digest")
    # (6)
    name, facts, statement = _described(content)
    if (name, statement) != (said.name, said.statement):
        raise DecodeError("the release says another name or statement than its note", code="wrong-subject")
    return Release(name, statement, facts, said, note, content)


def signed_note(note: bytes, roster: Roster) -> ReleaseNote:
    """Return what a note says, signed by the node it names with that node's key in the roster.

    Raises:
        SignatureInvalid, DecodeError: it is no such note.
    """
    document = decode_envelope(note)
    keys = {key_id(node.identity_key): node for node in roster.nodes}
    signers = verify(document, RELEASE, {identifier: node.identity_key for identifier, node in keys.items()})
    said = ReleaseNote.decode(document.payload)
    if {keys[signer].name for signer in signers} != {said.node}:
        raise SignatureInvalid("the note is not signed by the node it names", code="wrong-node")
    return said


def planned(spec: JobSpec, note: ReleaseNote) -> bool:
    """Return whether a job plans the release that a note is on, and has that node make it."""
    from protocols.jobs import job_type

    return any(
        (each.name, each.output_class.value, spec.roles[each.made_by])
        == (note.name, note.output_class, note.node)
        for each in job_type(spec.job_type).releases(spec)
    )


def _described(content: bytes) -> tuple[str, Mapping[str, int | str], str]:
    wrong = DecodeError("the release is not an Arrow stream with Minshu's metadata", code="bad-release")
    # Read to its end, so that a table that is cut or malformed shows here and not in the analyst's hands.
    metadata: Mapping[bytes, bytes] = read_table(content).schema.metadata or {}
    if METADATA not in metadata:
        raise wrong
    f = Fields(decode_json(metadata[METADATA], limit=_MAX_METADATA_BYTES), "release")
    name, statement = f.text("name"), f.text("statement")
    facts: dict[str, Any] = f.mapping("facts", maximum=1024)
    f.text("salt", _SALT)
    f.finish()
    if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in facts.values()):
        raise wrong
    return name, facts, statement
