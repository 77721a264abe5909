"""Disclosure control run again on an opened release, and input commitments computed again.

A bundle holds no table, only the digest of its content. Where the recipient hands an opened release to the
auditor, as `minshu fetch` has saved it (`NAME.arrow`, `NAME.csv`, `NAME.note.dsse`), it is found again by
that digest or by its note, and looked at as a reader would who wants to know what was withheld: from the
published cells of a table, how much of each withheld cell follows? Tables with noise are held against the
noise that their job paid for. Nothing here needs the true counts, which nobody but the node ever had.

Tables of streets, districts and a city are looked at here, cross-tabs and noisy ones in `disclosure_tables`,
the quality of tables in `disclosure_quality`, overlaps in `disclosure_overlap`, statistics of joined persons
in `disclosure_joined`, models in `disclosure_models`.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Final

from audit.findings import Check
from protocols.arrow import read_table
from protocols.encoding import decode_json, sha256_digest
from protocols.envelope import decode_envelope
from protocols.errors import DecodeError, InputError, MinshuError
from protocols.ids import Digest, Role
from protocols.jobs.job_type import OutputClass
from protocols.statistics.suppress import MIN_GROUP, ROUNDING, rounded
from protocols.wire import Constraints, InputSummary, JobSpec, ReleaseNote

NOT_OPENED: Final = "opened releases, as their recipients have saved them (--release)"
NO_RULES: Final = (
    "rules for tables of this form; this version knows street tables, cross-tabs, noisy tables, overlaps, "
    "the quality of tables, statistics of joined persons and models"
)
NO_FACTS: Final = (
    "the Arrow stream beside a CSV file: the file alone shows neither that it is the release nor what that "
    "was made of"
)
NO_JOB: Final = (
    "the text of the job that a table is of: it says what the cells are, and what noise was paid for"
)

CELL_TABLES: Final = frozenset({"table/1", "release/1"})
"""Job types whose releases are tables of cells."""

QUALITY: Final = "quality/1"
OVERLAP: Final = "overlap/1"
JOINED_TABLE: Final = "joined-table/1"
JOINED_MOMENTS: Final = "joined-moments/1"
JOINED: Final = frozenset({JOINED_TABLE, JOINED_MOMENTS})
TRAIN_JOINED: Final = "train-joined/1"

_WITH_FACTS: Final = frozenset({QUALITY, *JOINED, TRAIN_JOINED})
"""Job types of whose releases nothing is sure without what stands beside them."""

MODEL: Final = "model"
"""Name of the releases of class C that are models; others are figures of one."""

STREET_TABLE: Final = frozenset({"level", "district", "street", "count", "withheld"})
ARROW: Final = ".arrow"
CSV: Final = ".csv"
NOTE: Final = ".note.dsse"

_METADATA: Final = b"minshu"
_MAX_CELLS: Final = 1 << 20
_ENOUGH: Final = 1 << 62
"""Above any count: what a cell of which nothing is known may be."""


@dataclass(frozen=True, slots=True)
class Released:
    """A committed release: what its note says of it, what its run had to keep to, and what was asked.

    Attributes:
        spec: None where the job's text is not there any more.
        persons: whether the policy of that moment named whom the maker's rows are about.
        keys: the distinct keys of each list, as all admissions of the run state them.
        inputs: all that they state of each list.
    """

    note: ReleaseNote
    where: str
    constraints: Constraints
    spec: JobSpec | None = None
    persons: bool = True
    keys: Mapping[Role, int] = field(default_factory=dict)
    inputs: Mapping[Role, InputSummary] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """One published cell; `count` is None where it is withheld."""

    level: str
    district: str
    street: str
    count: int | None


@dataclass(frozen=True, slots=True)
class Problem:
    """What a reader can tell from a table though it was withheld, or must not be published."""

    code: str
    what: str


def disclose(opened: Mapping[str, bytes], releases: Mapping[str, Released], check: Check) -> None:
    """Look at the releases of one log that an auditor was given opened.

    (1) An Arrow stream is, to the byte, content that the log's note names; a note beside it names the
    release. (2) It is a table in which nothing that was withheld can be told, see `examine`; or a table of
    cells, or an overlap, as its job asked for, see `disclosure_tables` and `disclosure_overlap`; or a model
    whose card tells of its run, see `disclosure_models`.

    Args:
        opened: file name → bytes; what belongs together has one name before the ending.
        releases: the committed releases of classes A and C, by the digest of their content.
        check: `disclosure`; what is not of this log is passed over.
    """
    looked_at: set[str] = set()
    for name, files in together(opened).items():
        found = _find(name, files, releases, check)
        if found is None:
            continue
        looked_at.add(found.note.release)
        try:
            columns, facts = _read(files)
        except MinshuError as error:
            check.found(error.code, name, error.message)
            continue
        if facts is not None and not facts:
            check.found("wrong-facts", name, "nothing is stated beside it, as beside every release")
            continue
        model = found.note.output_class == OutputClass.MODEL and found.note.name == MODEL
        if model:
            from audit.disclosure_models import examine_model
            from protocols.training.model import FILES

            beside = {each: opened[each] for each in FILES if each in opened}
            problems: list[Problem] | None = examine_model(columns, facts, found, beside)
        else:
            problems = _problems(columns, facts, found)
        if problems is None:
            check.lacks(NO_JOB if found.spec is None and "measure" in columns else NO_RULES)
            continue
        for problem in problems:
            check.found(problem.code, name, problem.what)
        if problems:
            continue
        if found.spec is None and model:
            check.lacks(NO_JOB)
        elif facts is None and found.spec is not None and found.spec.job_type in _WITH_FACTS:
            check.lacks(NO_FACTS)
        else:
            check.saw(f"{name}, {found.where}")
    if any(released.note.release not in looked_at for released in releases.values()):
        check.lacks(NOT_OPENED)
    check.figures["opened releases"] = len(looked_at)


def _problems(
    columns: Mapping[str, Sequence[Any]], facts: Mapping[str, Any] | None, found: Released
) -> list[Problem] | None:
    """Return what is wrong with a table, None where there are no rules for it.

    What a table has to be, its job decides.
    """
    if found.spec is not None and found.spec.job_type in CELL_TABLES:
        from audit.disclosure_tables import examine_cells

        return examine_cells(columns, facts or {}, found.spec, found.constraints, persons=found.persons)
    if found.spec is not None and found.spec.job_type == QUALITY:
        from audit.disclosure_quality import examine_quality

        return examine_quality(columns, facts, found.spec, found.constraints)
    if found.spec is not None and found.spec.job_type == OVERLAP:
        from audit.disclosure_overlap import examine_overlap

        return examine_overlap(columns, facts or {}, found.spec, found.keys)
    if found.spec is not None and found.spec.job_type == JOINED_TABLE:
        from audit.disclosure_joined import examine_joined_table

        return examine_joined_table(columns, facts, found.spec, found.constraints)
    if found.spec is not None and found.spec.job_type == JOINED_MOMENTS:
        from audit.disclosure_joined import examine_joined_moments

        return examine_joined_moments(columns, facts, found.spec, found.constraints, found.keys)
    if found.spec is not None and found.spec.job_type == TRAIN_JOINED:
        from audit.disclosure_models import examine_figures

        return examine_figures(columns, facts, found.spec, found)
    if not STREET_TABLE.issubset(columns):
        return None
    return examine(columns, minimum=found.constraints.min_group_size or MIN_GROUP, facts=facts)


def together(opened: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return the files by what their names begin with, and by their ending."""
    found: dict[str, dict[str, bytes]] = {}
    for name, data in sorted(opened.items()):
        ending = next((each for each in (NOTE, ARROW, CSV) if name.endswith(each)), "")
        found.setdefault(name.removesuffix(ending), {})[ending or ARROW] = data
    return found


def _find(
    name: str, files: Mapping[str, bytes], releases: Mapping[str, Released], check: Check
) -> Released | None:
    """(1) Return the release of this log that files are of, None where they are of none."""
    content = files.get(ARROW)
    by_content = None if content is None else releases.get(sha256_digest(content))
    by_note: Released | None = None
    if NOTE in files:
        try:
            said = ReleaseNote.decode(decode_envelope(files[NOTE]).payload)
        except DecodeError as error:
            check.found(error.code, name + NOTE, error.message)
            return None
        by_note = next((r for r in releases.values() if r.note.release == said.release), None)
        if by_note is None:
            return None
        if said != by_note.note:
            check.found("wrong-note", name + NOTE, "the log's note on this release says something else")
            return None
    elif by_content is None and content is None:
        # A CSV file alone carries no digest: it is taken for the one release of its name.
        named = [released for released in releases.values() if released.note.name == name]
        by_note = named[0] if len(named) == 1 else None
    if by_note is not None and content is not None and by_content is not by_note:
        check.found("wrong-content", name + ARROW, "it is not the content that the log's note names")
        return None
    return by_content if by_note is None else by_note


def _read(files: Mapping[str, bytes]) -> tuple[dict[str, list[Any]], Mapping[str, Any] | None]:
    """Return the columns of a table and the facts beside it; None for a CSV file alone, which has none.

    Raises:
        InputError: it is no table, or the CSV file shows another one than the Arrow stream.
    """
    from_csv = None if CSV not in files else _read_csv(files[CSV])
    if ARROW not in files:
        return from_csv or {}, None
    columns, facts = read_arrow(files[ARROW])
    if from_csv is not None:
        alike = from_csv.keys() == columns.keys() and all(
            len(from_csv[name]) == len(values) and all(map(_alike, values, from_csv[name]))
            for name, values in columns.items()
        )
        if not alike:
            raise InputError("the CSV file shows another table than the release", code="wrong-content")
    return columns, facts


def read_arrow(data: bytes) -> tuple[dict[str, list[Any]], Mapping[str, Any]]:
    """Return the columns of a release's content and the facts beside them.

    Raises:
        InputError: `bad-release`.
    """
    wrong = InputError("not an Arrow stream with this software's metadata", code="bad-release")
    try:
        table = read_table(data)
        if table.num_rows > _MAX_CELLS:
            raise wrong
        about = decode_json((table.schema.metadata or {})[_METADATA], limit=1 << 20)
        facts = about["facts"]
    except (KeyError, TypeError, DecodeError):
        raise wrong from None
    if not isinstance(facts, dict):
        raise wrong
    return {name: table.column(name).to_pylist() for name in table.column_names}, facts


def _read_csv(data: bytes) -> dict[str, list[Any]]:
    wrong = InputError("not a CSV file with a line of column names", code="bad-release")
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error):
        raise wrong from None
    if not 1 <= len(lines) <= _MAX_CELLS + 1 or any(len(line) != len(lines[0]) for line in lines):
        raise wrong
    names, rows = lines[0], lines[1:]
    if len(set(names)) != len(names):
        raise wrong
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _alike(value: Any, text: str) -> bool:
    """Whether a CSV file shows a value as it is."""
    if not isinstance(value, float):
        return cell_text(value) == cell_text(text)
    try:
        return float(text) == value or (isnan(value) and isnan(float(text)))
    except ValueError:
        return False


def truth(value: Any) -> bool:
    """Return a truth value from either file.

    Raises:
        ValueError: it is none.
    """
    try:
        return {"true": True, "false": False}[cell_text(value).lower()]
    except KeyError:
        raise ValueError("no truth value") from None


def cell_text(value: Any) -> str:
    """Return a cell as text, the same from either file; office programs get an apostrophe before formulas."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    begins = text[:2]
    return text[1:] if begins[:1] == "'" and begins[1:] in ("=", "+", "-", "@", "\t", "\r") else text


# -- what a reader can tell ----------------------------------------------------------------------------------


def examine(
    columns: Mapping[str, Sequence[Any]],
    *,
    minimum: int,
    rounding: int = ROUNDING,
    facts: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Return what is wrong with a published table of streets, districts and a city.

    (1) It is such a table: each cell once, under a district and a city that are there. (2) What its facts say
    of it holds, and they say no smaller group than was demanded. (3) Published counts are rounded, and none
    is of more than zero and fewer than `minimum` persons. (4) No withheld cell follows from the published
    ones taken as exact, as `protect_table` takes them. (5) Knowing the rounding, and that no withheld cell is
    empty, a reader cannot tell a withheld cell exactly, nor that a withheld street has fewer than `minimum`
    persons from what is left for it.

    Dominance (top share, p %) is about sums of contributions; in a count of persons each contributes one.

    Args:
        columns: `level`, `district`, `street`, `count`, `withheld`, as the release has them.
        minimum: smallest group that the strictest participant let be shown.
        rounding: least base that counts had to be rounded to.
        facts: what is stated beside the table; empty for none.
    """
    # (1)
    try:
        tree = _Tree.of(_cells(columns))
    except InputError as error:
        return [Problem(error.code, error.message)]
    stated = facts or {}
    base = stated.get("rounding_base", rounding)
    problems = _against_facts(tree, stated, minimum)  # (2)
    if not isinstance(base, int) or isinstance(base, bool) or base < rounding:
        return [*problems, Problem("wrong-facts", f"it is rounded to less than {rounding}")]
    # (3)
    for cell in tree.cells:
        if cell.count is not None and cell.count % base:
            problems.append(Problem("not-rounded", f"a {cell.level} count is no multiple of {base}"))
        if cell.count is not None and 0 < cell.count < rounded(minimum, base):
            problems.append(
                Problem("small-cell", f"a {cell.level} of fewer than {minimum} persons is published")
            )
    problems += _follows(tree)  # (4)
    return problems or _narrow(tree, minimum, base)  # (5)


def _cells(columns: Mapping[str, Sequence[Any]]) -> list[Cell]:
    wrong = InputError("a row is no cell of a table of streets, districts and a city", code="bad-table")
    cells = []
    for level, district, street, count, withheld in zip(
        *(columns[name] for name in ("level", "district", "street", "count", "withheld")), strict=True
    ):
        try:
            number, hidden = int(count), truth(withheld)
        except ValueError:
            raise wrong from None
        if level not in ("city", "district", "street") or (number != -1 if hidden else number < 0):
            raise wrong
        cells.append(Cell(level, cell_text(district), cell_text(street), None if hidden else number))
    return cells


@dataclass(frozen=True, slots=True)
class _Tree:
    """The table as the sums it is made of."""

    city: Cell
    districts: Mapping[str, Cell]
    streets: Mapping[str, tuple[Cell, ...]]

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> "_Tree":
        """Order the cells.

        Raises:
            InputError: a cell is there twice or not at all.
        """
        cities = [cell for cell in cells if cell.level == "city"]
        districts = {cell.district: cell for cell in cells if cell.level == "district"}
        streets: dict[str, list[Cell]] = {district: [] for district in districts}
        for cell in cells:
            if cell.level == "street" and cell.district in streets:
                streets[cell.district].append(cell)
        listed = sum(map(len, streets.values())) + len(districts) + len(cities)
        names = {(cell.district, cell.street) for cell in cells if cell.level == "street"}
        if len(cities) != 1 or listed != len(cells) or len(names) != len(cells) - 1 - len(districts):
            raise InputError(
                "a city, district or street is there twice, or without what it is part of", code="bad-table"
            )
        return cls(cities[0], districts, {district: tuple(found) for district, found in streets.items()})

    @property
    def cells(self) -> list[Cell]:
        """All cells."""
        within = [cell for cells in self.streets.values() for cell in cells]
        return [self.city, *self.districts.values(), *within]


def _against_facts(tree: _Tree, facts: Mapping[str, Any], minimum: int) -> list[Problem]:
    """(2)"""
    problems = []
    if "minimum_group" in facts and not (
        isinstance(facts["minimum_group"], int) and facts["minimum_group"] >= minimum
    ):
        problems.append(Problem("wrong-facts", f"its smallest group is stated as less than {minimum}"))
    withheld = sum(cell.count is None for cell in tree.cells)
    if facts.get("withheld_cells", withheld) != withheld:
        problems.append(Problem("wrong-facts", "another number of cells is withheld than it says"))
    return problems


def _follows(tree: _Tree) -> list[Problem]:
    """(4) Return the withheld cells that are the only unknown of a sum, the other cells taken as exact."""
    problems = []
    known = {name: cell.count is not None for name, cell in tree.districts.items()}
    for district, streets in tree.streets.items():
        dark = sum(street.count is None for street in streets)
        if dark == 1 and known[district]:
            problems.append(Problem("recoverable", "a street follows from its district's total"))
        if dark == 0 and not known[district]:
            problems.append(Problem("recoverable", "a district's total follows from its streets"))
    unknown = [name for name, there in known.items() if not there]
    if tree.city.count is None:
        if not unknown:
            problems.append(Problem("recoverable", "the city's total follows from its districts"))
    elif unknown:
        dark = sum(street.count is None for name in unknown for street in tree.streets[name])
        if len(unknown) == 1:
            problems.append(Problem("recoverable", "a district's total follows from the city's"))
        if dark == 1:
            problems.append(Problem("recoverable", "a street follows from the city's total"))
    return problems


@dataclass(slots=True)
class _Range:
    """What a reader knows of one true count; `parts` add up to it, `whole` it is a part of."""

    low: int
    high: int
    cell: Cell
    parts: list["_Range"] = field(default_factory=list)

    def tighten(self) -> bool:
        """Draw the sum's bounds and its parts' closer together; return whether anything moved."""
        if not self.parts:
            return False
        lows, highs = sum(part.low for part in self.parts), sum(part.high for part in self.parts)
        moved = self.within(lows, highs)
        for part in self.parts:
            moved |= part.within(self.low - (highs - part.high), self.high - (lows - part.low))
        return moved

    def within(self, low: int, high: int) -> bool:
        """Take in that the count is from `low` to `high`; return whether that was news."""
        before = (self.low, self.high)
        self.low, self.high = max(self.low, low), min(self.high, high)
        return (self.low, self.high) != before


def _narrow(tree: _Tree, minimum: int, base: int) -> list[Problem]:
    """(5) Return what interval arithmetic over the sums tells of withheld cells."""

    def known(cell: Cell) -> _Range:
        if cell.count is None:
            return _Range(1, _ENOUGH, cell)
        if cell.count == 0:
            # Fewer than half a step; where that is a small group, it would have been withheld.
            half = (base - 1) // 2
            return _Range(0, half if half >= minimum else 0, cell)
        # Of two equally near multiples the larger is shown.
        low = cell.count - base // 2
        return _Range(max(low, minimum), cell.count + (base - 1) // 2, cell)

    city = known(tree.city)
    districts = []
    for name, cell in tree.districts.items():
        district = known(cell)
        district.parts = [known(street) for street in tree.streets[name]]
        districts.append(district)
    city.parts = districts
    # Two rounds from the streets up and one down settle a tree of two levels; a few more cost nothing.
    for _ in range(4):
        moved = [each.tighten() for each in (*districts, city, *districts)]
        if not any(moved):
            break
    ranges = [city, *districts, *(street for district in districts for street in district.parts)]
    problems = []
    for found in ranges:
        if found.low > found.high:
            return [
                Problem(
                    "does-not-add-up", "its counts are of no table: parts and whole contradict each other"
                )
            ]
        if found.cell.count is None and found.low == found.high:
            problems.append(Problem("recoverable", f"a withheld {found.cell.level} follows from the others"))
        elif found.cell.count is None and found.cell.level == "street" and found.high < minimum:
            problems.append(
                Problem(
                    "too-narrow", f"of a withheld street a reader can tell that it has fewer than {minimum}"
                )
            )
    return problems


# -- commitments ---------------------------------------------------------------------------------------------


def commitment(keys: Iterable[bytes], salt: bytes) -> Digest:
    """Return the commitment of an input: SHA-256(salt ‖ every key, ascending, each after its length as u16).

    Args:
        keys: the typed keys of the input, such as `RIC:` and a number, in any order and however often.
        salt: the 32 bytes that the node kept for auditors.

    Raises:
        InputError: the salt has another length.
    """
    if len(salt) != 32:
        raise InputError(
            f"salt of {len(salt)} bytes, expected 32",
            code="bad-salt",
            hint="the node keeps it beside the input's record until retention deletes both",
        )
    digest = hashlib.sha256(salt)
    for key in sorted(set(keys)):
        digest.update(len(key).to_bytes(2, "big") + key)
    return Digest("sha256:" + digest.hexdigest())


def committed(
    released: Iterable[bytes],
    inputs: Sequence[tuple[Iterable[bytes], bytes]],
    stated: Mapping[str, str],
    check: Check,
    *,
    at_least: int = 1,
) -> None:
    """Check that every released key is in as many committed inputs as the job asked for.

    Args:
        released: the typed keys of the list that left.
        inputs: the sources' inputs, each with its salt, as far as their nodes hand them out.
        stated: the commitments that a log's admissions name → the entry that does.
        check: `committed`.
        at_least: how many sources a released person is in.
    """
    lists: list[frozenset[bytes]] = []
    for keys, salt in inputs:
        members = frozenset(keys)
        where = stated.get(commitment(members, salt))
        if where is None:
            check.found(
                "not-committed", "an input", "no admission of this log is bound to this list and salt"
            )
            continue
        check.saw(where)
        lists.append(members)
    if len(lists) < at_least:
        check.lacks("inputs of as many sources as the question asks for, each with its salt")
        return
    missing = sum(sum(key in members for members in lists) < at_least for key in set(released))
    if missing:
        check.found(
            "not-of-the-inputs",
            "the released list",
            f"{missing} of its keys are in fewer than {at_least} inputs",
        )
