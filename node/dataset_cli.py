"""`minshu-node dataset`: which tables the department has, how they are found, and whether they still fit."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from node.page import OK, Command, ask_node, home_of, print_result, utc_now, whole_number
from node.quality_cli import as_kept, look_at
from protocols.errors import InputError

if TYPE_CHECKING:
    from node.description import Description
    from node.sources import Access, Place
    from node.state import Dataset

FOUND: Final = 1
"""Exit code of a check that found something."""

NEAR: Final = 0.1
"""How far a table's rows may be from what was registered, as a share of it."""

LINE_ROWS: Final = 1_000_000
PREVIEW_ROWS: Final = 1000
MIN_PREVIEW_ROWS: Final = 100
"""Of fewer rows, asked for one by one, each record's forms would be told."""

MAX_PREVIEW_ROWS: Final = 1_000_000

UNKNOWN_WRITE: Final = (
    "warning: nothing says when the table was last written, so its snapshot is the moment of looking, "
    "and nobody knows its age; name a column that says so with --updated"
)

_TEXT_FILES: Final = (".csv", ".tsv", ".txt")
_DELIMITERS: Final = {"comma": ",", "tab": "\t", "\\t": "\t", "semicolon": ";", "pipe": "|"}
_NAMES: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
_ENCODINGS: Final = {"utf-8": "UTF-8", "gb18030": "GB18030"}

Tell = Callable[[int, str], object]


def add_dataset_commands(group: Any, command: Command) -> None:
    """Add the commands of the group `dataset`."""
    add = command(group, "add", _dataset_add, "register a file or a table of a database under a name")
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", type=Path, metavar="FILE", nargs="?", help="a CSV, Parquet or .xlsx file")
    add.add_argument("--encoding", default="", help="of a CSV file: utf-8 or gb18030 (default: found out)")
    add.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="CHAR",
        help="of a CSV file: one character, or tab",
    )
    add.add_argument("--sheet", default="", metavar="SHEET", help="of an .xlsx file with several sheets")
    add.add_argument("--connection", default="", metavar="C", help="a database named in node.toml")
    add.add_argument("--table", default="", metavar="T", help="its table or view")
    add.add_argument(
        "--updated", default="", metavar="COLUMN", help="the column that says when a row was last written"
    )
    add.add_argument("--title", default="", help="what people call it")
    add.add_argument("--key", default="", metavar="COLUMN", help="the column with identifiers")
    add.add_argument("--published-keys", type=whole_number, metavar="N", help="publish N distinct keys")
    add.add_argument(
        "--no-persons", action="store_true", help="its rows are about no persons, so without keys"
    )
    add.add_argument("--description", type=Path, metavar="FILE", help="what else to say of it, in TOML")
    command(group, "list", _dataset_list, "show the registered datasets")
    preview = command(group, "preview", _dataset_preview, "show which forms the values have, and no value")
    preview.add_argument("name", metavar="NAME")
    preview.add_argument("--masked", action="store_true", help="required: there is no other preview")
    preview.add_argument(
        "--rows",
        type=whole_number,
        default=PREVIEW_ROWS,
        metavar="N",
        help=f"look at the first N rows, {MIN_PREVIEW_ROWS} or more (default {PREVIEW_ROWS})",
    )
    check = command(group, "check", _dataset_check, "find out whether the tables still fit the catalogue")
    check.add_argument("name", metavar="NAME", nargs="?")


def place_of(arguments: argparse.Namespace, tell: Tell) -> "Place":
    """Return the place that a command names; of a text file, with what was found out about it.

    Raises:
        InputError: `bad-place`: neither or both of a file and a table, or an option of another format;
            `file-missing`; or as `node.sources.encodings.detect`.
    """
    from node.sources import FilePlace, TablePlace

    of_table = bool(arguments.connection or arguments.table or arguments.updated)
    if of_table == bool(arguments.file):
        raise InputError(
            "both a file and a table are named" if of_table else "no table is named",
            code="bad-place",
            hint="give a FILE, or --connection and --table",
        )
    if of_table:
        if not (arguments.connection and arguments.table):
            raise InputError(
                "a table has a connection and a name", code="bad-place", hint="give --connection and --table"
            )
        _check_unused(arguments, ("encoding", "delimiter", "sheet"))
        return TablePlace(arguments.connection, arguments.table, arguments.updated)
    path = arguments.file.absolute()
    ending = path.suffix.lower()
    if ending in _TEXT_FILES:
        _check_unused(arguments, ("sheet",))
        return _text_file(path, arguments.encoding, arguments.delimiter or "", tell)
    _check_unused(
        arguments, ("encoding", "delimiter") if ending == ".xlsx" else ("encoding", "delimiter", "sheet")
    )
    return FilePlace(path, sheet=arguments.sheet)


def _text_file(path: Path, named: str, delimiter: str, tell: Tell) -> "Place":
    from node.sources import FilePlace
    from node.sources.encodings import ENCODINGS, detect
    from node.sources.files import gone

    encoding = ENCODINGS.get(named.lower(), "")
    if named and not encoding:
        raise InputError(
            "the encoding is none that this node reads",
            code="unknown-encoding",
            hint="give utf-8 or gb18030; gbk and gb2312 are parts of gb18030",
        )
    try:
        found = detect(
            path, encoding=encoding, delimiter=delimiter, tell=lambda size: tell(size >> 20, "MiB of text")
        )
    except OSError as error:
        raise gone(error) from None
    return FilePlace(path, encoding=found.encoding, delimiter=found.delimiter)


def _check_unused(arguments: argparse.Namespace, options: tuple[str, ...]) -> None:
    for option in options:
        if getattr(arguments, option):
            raise InputError(
                f"--{option} says nothing about a table of this kind",
                code="bad-place",
                hint=f"leave out --{option}",
            )


def _delimiter(text: str) -> str:
    """Read a delimiter that stands on the command line."""
    found = _DELIMITERS.get(text, text)
    if len(found) != 1 or found in '"\r\n\0\ufeff':
        raise argparse.ArgumentTypeError("expected one character, such as ; or tab")
    return found


def _dataset_add(arguments: argparse.Namespace) -> int:
    from node.catalogue import scan, unpublished
    from node.desk import dataset_to_json
    from protocols.wire import civil_day

    home = home_of(arguments)
    with progress(quiet=arguments.json) as tell:
        place = place_of(arguments, tell)
        found = scan(
            arguments.name,
            place,
            title=arguments.title,
            key=arguments.key,
            published_keys=arguments.published_keys,
            access=home.config.access,
            today=civil_day(utc_now()),
            persons=not arguments.no_persons,
            description=_description(home.database, arguments.name, arguments.description),
            tell=lambda rows: tell(rows, "rows"),
        )
        looked = look_at(home, found, None, tell)
    letter = {**dataset_to_json(found), "preflight": as_kept(looked)}
    if arguments.description is None:
        letter["description"] = None  # the node keeps what it says of it
    ask_node(home, "dataset", letter)
    hidden = unpublished(found.columns)
    keys = f"{found.distinct_keys} distinct keys in column {found.key or '-'}"
    return print_result(
        arguments,
        _dataset_json(found),
        f"{found.name}: {found.rows} rows, {'about no persons' if arguments.no_persons else keys}",
        f"published as {found.published_keys} keys, snapshot {found.snapshot}",
        f"read as {_read_as(place)}",
        *_guessed(place, arguments),
        *([f"not in the catalogue: {hidden} columns, for no job can use their names"] if hidden else []),
        *([] if looked.quality.written else [UNKNOWN_WRITE]),
    )


def _description(database: Path, name: str, file: Path | None) -> "Description":
    """Return what a file says of a dataset; without one, what is said of it already."""
    from node.description import read_description
    from node.state import read_state

    if file is not None:
        return read_description(file)
    with read_state(database) as reader:
        return reader.described(name)


def _dataset_list(arguments: argparse.Namespace) -> int:
    known = registered(home_of(arguments).database)
    lines = [
        f"{d.name}  {d.title}  {d.rows} rows  {d.distinct_keys} keys  {d.snapshot}  {_where(d.place)}"
        for d in known
    ]
    plain = {"datasets": [_dataset_json(d) for d in known]}
    return print_result(arguments, plain, *(lines or ["no dataset is registered"]))


def _dataset_preview(arguments: argparse.Namespace) -> int:
    from node.preview import preview

    if not arguments.masked:
        raise InputError(
            "a preview shows no values, only their forms",
            code="not-masked",
            hint="say so with --masked; to see values, open the table with the program it comes from",
        )
    if not MIN_PREVIEW_ROWS <= arguments.rows <= MAX_PREVIEW_ROWS:
        raise InputError(
            f"a preview looks at {MIN_PREVIEW_ROWS} to {MAX_PREVIEW_ROWS} rows, of fewer it would tell"
            " single records",
            code="bad-rows",
            hint=f"give --rows {MIN_PREVIEW_ROWS} or more; of a shorter table all rows are looked at",
        )
    home = home_of(arguments)
    [dataset] = chosen(registered(home.database), arguments.name)
    found = preview(dataset, home.config.access, arguments.rows)
    return print_result(arguments, found.to_json(), *found.lines())


def _dataset_check(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    named = chosen(registered(home.database), arguments.name)
    access = home.config.access
    with progress(quiet=arguments.json) as tell:
        checked = [_checked(dataset, access, tell) for dataset in named]
    print_result(
        arguments,
        {"datasets": checked},
        *([line for each in checked for line in _lines(each)] or ["no dataset is registered"]),
    )
    return FOUND if any(each["findings"] for each in checked) else OK


def _checked(dataset: "Dataset", access: "Access", tell: Tell) -> dict[str, Any]:
    """Return what is found of a dataset: its table, read once, beside what was registered."""
    from node.catalogue import count_rows
    from node.datasets import open_dataset
    from node.sources import TablePlace
    from node.sources.drift import drift
    from node.sources.grouped import why_read

    findings: list[InputError] = []
    rows, snapshot, tells_writes, reads = None, None, None, None
    try:
        with open_dataset(dataset, access) as source:
            snapshot, mark = source.snapshot(), source.fingerprint()
            columns = source.columns()
            reads = why_read(source) if isinstance(dataset.place, TablePlace) else None
            findings += drift(dataset.columns, columns)
            counted = dataset.key if dataset.key in {c.name for c in columns} else columns[0].name
            rows = count_rows(source, counted, lambda done: tell(done, f"rows of {dataset.name}"))
        if abs(rows - dataset.rows) > NEAR * dataset.rows:
            findings.append(
                InputError(
                    f"the table has {rows} rows, the catalogue says {dataset.rows}",
                    code="count-drift",
                    hint="register it again, if the table is whole",
                )
            )
        with open_dataset(dataset, access) as source:
            tells_writes = source.fingerprint() == mark
    except InputError as error:
        findings.append(error)
    return {
        "name": dataset.name,
        "rows": rows,
        "registered_rows": dataset.rows,
        "snapshot": snapshot,
        "registered_snapshot": dataset.snapshot,
        "tells_writes": tells_writes,
        "counts_there": None if reads is None else not reads,
        "reads_because": reads or None,
        "findings": [{"code": f.code, "message": f.message, "hint": f.hint} for f in findings],
    }


def _lines(checked: dict[str, Any]) -> Iterator[str]:
    name = checked["name"]
    for finding in checked["findings"]:
        yield f"error   {name}: {finding['message']}"
        if finding["hint"]:
            yield f"        hint: {finding['hint']}"
    if checked["findings"]:
        return
    yield f"ok      {name}: {checked['rows']} rows, snapshot {checked['snapshot']}"
    if not checked["tells_writes"]:
        yield "        its source cannot tell whether it was written since: every job reads it anew"
    if checked["counts_there"]:
        yield "        table/1 and release/1 are counted in the database, where the job's columns allow it"
    elif checked["reads_because"]:
        yield f"        its rows are read, for table/1 and release/1, too: {checked['reads_because']}"


def registered(database: Path) -> "list[Dataset]":
    """Return the registered datasets."""
    from node.state import read_state

    with read_state(database) as reader:
        return reader.datasets()


def chosen(known: "list[Dataset]", name: str | None) -> "list[Dataset]":
    """Return the dataset of this name, all without one.

    Raises:
        InputError: `unknown-dataset`.
    """
    if name is None:
        return known
    for dataset in known:
        if dataset.name == name:
            return [dataset]
    close = get_close_matches(name, [dataset.name for dataset in known], n=3, cutoff=0.5)
    raise InputError(
        f"no dataset {name} is registered, closest: {', '.join(close) if close else 'none'}",
        code="unknown-dataset",
        hint="minshu-node dataset list names them",
    )


def _dataset_json(dataset: "Dataset") -> dict[str, Any]:
    """Return an entry without its place, which is a word of this node alone; its kind is not."""
    from node.desk import dataset_to_json

    plain = dataset_to_json(dataset)
    del plain["place"]
    return {**plain, "place": _kind(dataset.place)}


def _kind(place: "Place") -> dict[str, str]:
    """Return how a place is read, without saying where it is."""
    from node.sources import FilePlace

    if not isinstance(place, FilePlace):
        return {"kind": "table"}
    ending = place.path.suffix.lower()
    plain = {"kind": "file", "format": ending.removeprefix(".")}
    if ending in _TEXT_FILES:
        plain |= {
            "encoding": place.encoding,
            "delimiter": place.delimiter or ("\t" if ending == ".tsv" else ","),
        }
    if place.sheet:
        plain["sheet"] = place.sheet
    return plain


def _read_as(place: "Place") -> str:
    kind = _kind(place)
    if kind["kind"] == "table":
        return "a table of a database"
    if "encoding" in kind:
        between = _NAMES.get(kind["delimiter"], kind["delimiter"])
        return f"text in {_ENCODINGS[kind['encoding']]}, {between} between values"
    return f"{kind['format']}, sheet {kind['sheet']}" if "sheet" in kind else kind["format"]


def _guessed(place: "Place", arguments: argparse.Namespace) -> Iterator[str]:
    """Say that an encoding was found out by what it is not: text in Big5 may pass for GB18030."""
    if _kind(place).get("encoding") == "gb18030" and not arguments.encoding:
        yield "  it is not UTF-8, so it was taken for GB18030; say --encoding where that is known"


def _where(place: "Place") -> str:
    """Return a place for whoever sits at this node."""
    from node.sources import FilePlace

    if isinstance(place, FilePlace):
        return f"{place.path} ({_read_as(place)})"
    return f"table {place.table} of connection {place.connection}"


@contextmanager
def progress(*, quiet: bool) -> Iterator[Tell]:
    """Show on stderr how far a reading is: a line that changes in a terminal, else one per million rows."""
    if quiet:
        yield lambda _done, _what: None
    elif sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status("reading 读取") as status:
            yield lambda done, what: status.update(f"reading 读取: {done:,} {what}")
    else:
        said = 0

        def line(done: int, what: str) -> None:
            nonlocal said
            if done < said:
                said = 0  # another table
            if done // LINE_ROWS > said // LINE_ROWS:
                said = done
                print(f"reading 读取: {done:,} {what}", file=sys.stderr, flush=True)

        yield line
