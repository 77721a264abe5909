"""A model as its recipient keeps it: the folder that `minshu fetch` wrote, checked each time it is opened."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from coordinator.client.home import AnalystHome
from coordinator.client.release import Release, files_in, planned, signed_note
from coordinator.files import read_bounded, write_new
from protocols.encoding import sha256_digest
from protocols.envelope import MAX_ENVELOPE_BYTES, decode_envelope
from protocols.errors import DecodeError, InputError, SignatureInvalid
from protocols.jobs.job_type import SUSPECTED, OutputClass
from protocols.jobs.score_joined import LEAST_BITS, TAKEN, TRAINED_BY
from protocols.spreadsheet import plain_text
from protocols.training.card import differences
from protocols.training.joined.columns import MAX_SCORED
from protocols.training.logistic import WEIGHT_BITS
from protocols.training.model import RELEASE, Model
from protocols.training.schema import Coded, Floats
from protocols.wire import ReleaseNote

if TYPE_CHECKING:
    from protocols.wire import Roster

MAX_CONTENT_BYTES: Final = 128 << 20
MAX_ROWS_BYTES: Final = 1 << 30
MAX_ROWS: Final = 1 << 24

_AGAIN: Final = "fetch the release again: minshu fetch JOB"
_OWN: Final = ("row", "score", "mark")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_BOM: Final = "\ufeff"  # office programs read UTF-8 only with this mark


@dataclass(frozen=True, slots=True)
class Kept:
    """A model from a folder.

    Attributes:
        model: with its card.
        note: of the node that made the release.
        roster: version of the roster whose keys its signature holds for; None where no home was named.
    """

    model: Model
    note: ReleaseNote
    roster: int | None


def read_folder(folder: Path, home: AnalystHome | None) -> Kept:
    """Return the model in a folder.

    (1) Note and content are there, and the content is the one that the note names. (2) The note is about a
    model, and signed by the node it names with a key that the roster kept in this home has for it. (3) The
    files are the content's, and a model of the note's job. (4) A job submitted from this home plans this
    release of this node, and is the one that the card tells of.

    Args:
        folder: as `Release.save` has written it.
        home: of the analyst; None: no signature is checked.

    Raises:
        InputError: a file cannot be read.
        SignatureInvalid, DecodeError: which of them does not hold.
    """
    # (1)
    envelope = _read(folder / f"{RELEASE}.note.dsse", MAX_ENVELOPE_BYTES)
    content = _read(folder / f"{RELEASE}.arrow", MAX_CONTENT_BYTES)
    said = ReleaseNote.decode(decode_envelope(envelope).payload)
    if sha256_digest(content) != said.content_sha256:
        raise DecodeError(
            f"{RELEASE}.arrow is not the content that its note names", code="wrong-digest", hint=_AGAIN
        )
    # (2)
    if (said.output_class, said.name) != (OutputClass.MODEL, RELEASE):
        raise DecodeError("the note is on another release, not on a model", code="no-model", hint=_AGAIN)
    roster = None if home is None else _roster(home, said)
    if roster is not None:
        signed_note(envelope, roster)
    # (3)
    release = Release(said.name, said.statement, {}, said, envelope, content)
    model = release.model()
    for name, data in files_in(content).items():
        if read_bounded(folder / name, MAX_CONTENT_BYTES) != data:
            raise DecodeError(f"{name} is not the file of the release", code="wrong-digest", hint=_AGAIN)
    # (4)
    spec = None if home is None else home.asked(said.job)
    if spec is not None and not planned(spec, said):
        raise SignatureInvalid("the job does not plan this release of this node", code="unplanned-release")
    if spec is not None and (wrong := differences(model.card, spec)):
        raise DecodeError(
            f"the card says something else than the job: {', '.join(wrong)}",
            code="wrong-card",
            hint="tell the node that made the model; do not use it",
        )
    return Kept(model, said, None if roster is None else roster.version)


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit)
    except InputError as error:
        if error.code != "file-unreadable":
            raise
        raise InputError(
            f"{path} cannot be read: a model is used with the files that came with it",
            code="no-note",
            hint="name the folder that minshu fetch wrote; the note beside the model says whose it is",
        ) from None


def _roster(home: AnalystHome, note: ReleaseNote) -> "Roster":
    roster = home.chain().roster
    if roster is None:
        raise InputError(
            "this home has seen no roster yet, so no signature can be checked",
            code="no-roster",
            hint="run minshu catalogue once, or leave --home out",
        )
    return home.vouching(roster, note.job)


def signature(kept: Kept) -> Mapping[str, str]:
    """Return in both languages, `en` and `zh`, whose model it is."""
    made = f"{kept.note.node}, {kept.note.created:%Y-%m-%d}"
    if kept.roster is None:
        return {
            "en": f"  made by    {made}; signature not checked, as no home is named",
            "zh": f"  签发      {made}; 未指定主目录, 签名未核验",
        }
    return {
        "en": f"  made by    {made}; signed with its key in roster {kept.roster}",
        "zh": f"  签发      {made}; 签名与第 {kept.roster} 版名册中的密钥相符",
    }


# -- a job that scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreParams:
    """The part of a job of `score-joined/1` that a model decides.

    Attributes:
        trained_by: the job that made the model.
        model: `model` of the params: bits and the constant.
        columns: `columns` of the params, each with its weights.
        renamed: slot of a column in this job → its slot in the other one, where that name is taken here.
    """

    trained_by: str
    model: Mapping[str, Any]
    columns: Sequence[Mapping[str, Any]]
    renamed: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the params as they stand in a job."""
        return {"model": dict(self.model), "columns": [dict(each) for each in self.columns]}

    def lines(self) -> list[str]:
        """Return them as they stand in job.toml, with what is still to be written."""
        renamed = self.renamed.items()
        return [
            f"# The model of {self.trained_by}:",
            "# whoever is asked to take part in the job reads it. Sources are numbered as they were there.",
            *(f"# Slot {slot} is {there} there, a name that is taken here." for slot, there in renamed),
            'job_type = "score-joined/1"',
            "",
            "[params]",
            "# To be written: at_least, step, records_from, recipient; perhaps join, filters, areas.",
            f"model = {_toml(self.model)}",
            "columns = [",
            *(f"  {_toml(each)}," for each in self.columns),
            "]",
        ]


def score_params(model: Model) -> ScoreParams:
    """Return how a job of `score-joined/1` scores with an assembled model of `train-joined/1`.

    Scores are the model's exactly: weights are whole numbers of the coarsest grid that all of them lie on.

    Raises:
        InputError: `not-joined`, `too-many-columns`, `one-source`: a model whose scores need no such job, or
            which none can hold.
    """
    card, schema = model.card, model.schema
    if card.job_type != TRAINED_BY or card.recipe != "logistic" or schema.amounts:
        raise InputError(
            f"the model is of {card.job_type}, whose columns every department has by itself",
            code="not-joined",
            hint="each department scores its own rows with minshu model score",
        )
    if len({each.source for each in card.features}) == 1:
        raise InputError(
            "all columns of the model are of one department, which needs no protocol to score its rows",
            code="one-source",
            hint="have it score them with minshu model score",
        )
    if len(card.features) > MAX_SCORED:
        raise InputError(
            f"the model has {len(card.features)} columns, score-joined/1 at most {MAX_SCORED}",
            code="too-many-columns",
            hint="train a model of fewer columns",
        )
    weights = model.arrays["weights"]
    spare = min(WEIGHT_BITS - LEAST_BITS, _trailing_zeros(int(np.bitwise_or.reduce(np.abs(weights)))))
    *coded, constant = (weights >> spare).tolist()
    slots = {each.slot for each in card.features}
    columns, renamed = [], {}
    for feature, start, stop in zip(card.features, schema.offsets, schema.offsets[1:], strict=False):
        slot = feature.slot
        while slot in TAKEN or (slot != feature.slot and slot in slots):
            slot += "_code"
        if slot != feature.slot:
            renamed[slot] = feature.slot
        given = {name: getattr(feature, name) for name in ("codes", "edges", "missing")}
        columns.append(
            {
                "source": feature.source,
                "slot": slot,
                **{name: value for name, value in given.items() if value is not None},
                "weights": coded[int(start) : int(stop)],
            }
        )
    return ScoreParams(card.job, {"bits": WEIGHT_BITS - spare, "constant": constant}, columns, renamed)


def _trailing_zeros(number: int) -> int:
    """Return how often two divides a number; of 0, more often than of any weight."""
    return (number & -number).bit_length() - 1 if number else WEIGHT_BITS


def _toml(value: Any) -> str:
    """Return a value as TOML writes it in a line; a card's texts have no control characters."""
    match value:
        case Mapping():
            return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case int():
            return str(value)
    return json.dumps(value, ensure_ascii=False)


# -- scores --------------------------------------------------------------------------------------------------


def score_file(model: Model, rows: Path, out: Path, keep: Sequence[str] = ()) -> int:
    """Score the rows of a CSV file into another one, mode 0600, and return how many there are.

    Columns are the model's features by name, and those to keep. Each row of the result has its number, its
    score (the chance of label 1), the mark of class B, and what was kept: they are suspicions, no more.

    Args:
        model: of a built-in recipe.
        rows: UTF-8, with a line of column names.
        out: must not exist.
        keep: columns that are copied beside the score, as texts.

    Raises:
        InputError: `not-csv`, `missing-column`, `unknown-column`, `not-a-number`, `no-rows`, `bad-keep`,
            `foreign-recipe`; a file cannot be read or written.
        StateConflict: `file-exists`.
    """
    if len(set(keep)) != len(keep) or set(keep) & set(_OWN):
        raise InputError(
            "a column to keep is named twice, or is called like one of the result",
            code="bad-keep",
            hint=f"the result has the columns {', '.join(_OWN)} itself",
        )
    table = _read_rows(rows)
    if absent := [name for name in keep if name not in table]:
        raise InputError(f"columns {', '.join(absent)} to keep are missing", code="missing-column")
    features = {feature.name for feature in model.card.features}
    names = [name for name in table if name in features or name not in keep]
    model.check_columns(names)
    found = model.scores({name: _column(model, name, table[name]) for name in names})
    write_new(out, _written(found, {name: table[name] for name in keep}), 0o600)
    return len(found)


def _read_rows(path: Path) -> dict[str, list[str]]:
    wrong = InputError(
        f"{path} is not a CSV file in UTF-8 with a line of different column names and rows of that length",
        code="not-csv",
        hint="save it as CSV UTF-8",
    )
    try:
        text = read_bounded(path, MAX_ROWS_BYTES).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise wrong from None
    lines = [line for line in lines if line]
    if not 1 <= len(lines) <= MAX_ROWS + 1 or len(set(lines[0])) != len(lines[0]):
        raise wrong
    if any(len(line) != len(lines[0]) for line in lines):
        raise wrong
    return {name: [line[place] for line in lines[1:]] for place, name in enumerate(lines[0])}


def _column(model: Model, name: str, values: Sequence[str]) -> npt.NDArray[Any]:
    """Return a column as the model takes it: texts for codes, numbers for the others, NaN for empty ones."""
    if any(isinstance(each, Coded) and each.name == name for each in model.schema.coded):
        return np.array(values, dtype=np.object_)
    texts = [value.strip() for value in values]
    if not all(not text or _NUMBER.fullmatch(text) for text in texts):
        raise InputError(
            f"column {name} has a value that is no decimal number",
            code="not-a-number",
            hint="write numbers such as 12.5; an empty cell counts as missing where the card allows it",
        )
    return np.array([float(text) if text else np.nan for text in texts])


def _written(scores: Floats, kept: Mapping[str, Sequence[str]]) -> bytes:
    sink = io.StringIO(newline="")
    sink.write(_BOM)
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*map(plain_text, kept), *_OWN])
    columns = [[plain_text(value) for value in values] for values in kept.values()]
    for number, score in enumerate(scores.tolist()):
        writer.writerow([*(column[number] for column in columns), number + 1, f"{score:.6f}", SUSPECTED])
    return sink.getvalue().encode()
