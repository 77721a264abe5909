"""`minshu-node mapping`: how a dataset's own values become standard codes, and which of them do not yet.

What is printed here is for the engineer at the terminal, and goes into no log: a local value only where it
stands in ten rows or more and cannot be a person's number. Rarer ones are counted; one may name a person.
"""

import argparse
import json
import re
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from node.dataset_cli import chosen, registered
from node.page import Command, home_of, print_result
from protocols.errors import InputError

if TYPE_CHECKING:
    from node.home import Home
    from node.mapping import Survey, Translator
    from protocols.codes import CodeTable

LEAST_ROWS: Final = 10
"""Rows that a local value must stand in before it is shown."""

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def add_mapping_commands(group: Any, command: Command) -> None:
    """Add the commands of the group `mapping`."""
    check = command(group, "check", _check, "show what a dataset's mapping leaves unmapped")
    check.add_argument("dataset", metavar="DATASET")
    draft = command(group, "draft", _draft, "write the beginning of a column's mapping")
    draft.add_argument("dataset", metavar="DATASET")
    draft.add_argument("column", metavar="COLUMN")
    draft.add_argument(
        "--table", required=True, metavar="TABLE", help="gbt2261.1@2003, or codes/NAME.csv by its NAME"
    )
    codes = command(group, "codes", _codes, "show the code tables that are known here, or the codes of one")
    codes.add_argument("table", metavar="TABLE", nargs="?")


def _check(arguments: argparse.Namespace) -> int:
    from node.mapping import survey, translators
    from node.sources import open_source

    home = home_of(arguments)
    [dataset] = chosen(registered(home.database), arguments.dataset)
    access = home.config.access
    by = translators(dataset.description.mapping, access.codes)
    if not by:
        raise InputError(
            "the dataset's description maps no column",
            code="no-mapping",
            hint="begin with minshu-node mapping draft, then minshu-node dataset add --description FILE",
        )
    with open_source(dataset.place, access) as source:
        found = survey(source, by)
    plain = {each.column: _plain(each, found[each.column]) for each in by}
    lines = [line for name, column in plain.items() for line in _lines(name, column)]
    return print_result(arguments, {"dataset": dataset.name, "columns": plain}, *lines)


def _plain(translator: "Translator", found: "Survey") -> dict[str, Any]:
    shown = found.shown(LEAST_ROWS, areas=translator.areas)
    return {
        "table": translator.table.id,
        "rows": found.rows,
        "missing": found.missing,
        "unmapped": found.unmapped,
        "unmapped_values": len(found.values),
        "more": found.more,
        "shown": [{"value": value, "rows": rows} for value, rows in shown],
        "hidden": len(found.values) - len(shown),
    }


def _lines(name: str, column: dict[str, Any]) -> list[str]:
    there = column["rows"] - column["missing"]
    share = f"{1000 * (there - column['unmapped']) // there / 10} %" if there else "nothing"
    first = f"{name} → {column['table']}: {share} of {there} values mapped, {column['missing']} missing"
    if not column["unmapped"]:
        return [first]
    more = "more than " if column["more"] else ""
    lines = [
        first,
        f"  unmapped: {column['unmapped']} rows, {more}{column['unmapped_values']} different values",
    ]
    lines += [f"  {each['rows']:>10}  {each['value']}" for each in column["shown"]]
    if column["hidden"]:
        lines.append(
            f"  not shown: {column['hidden']} in fewer than {LEAST_ROWS} rows, long, or like a number"
        )
    return lines


def _draft(arguments: argparse.Namespace) -> int:
    from node.mapping import ColumnMapping, Translator, may_be_shown, values_of
    from node.sources import open_source
    from protocols.codes import CodeTables
    from protocols.freetext import UNREADABLE

    home = home_of(arguments)
    [dataset] = chosen(registered(home.database), arguments.dataset)
    table = _table(home, arguments.table)
    with open_source(dataset.place, home.config.access) as source:
        values, more = values_of(source, arguments.column)
    passing = Translator(arguments.column, ColumnMapping(table=table.id), CodeTables([table]))
    ordered = sorted(values.items(), key=lambda each: (-each[1], each[0]))
    left = [each for each in ordered if passing.code(each[0]) is None]
    shown = [
        (value, rows)
        for value, rows in left
        if rows >= LEAST_ROWS and may_be_shown(value, areas=passing.areas) and not UNREADABLE.search(value)
    ]
    hidden = len(left) - len(shown)
    path = f"mapping.{_key(arguments.column)}"
    lines = [
        f"[{path}]",
        f'table = "{table.id}"',
        f"# {len(values) - len(left)} of {len(values)} different values are codes of the table already.",
        "",
        f"[{path}.values]",
    ]
    for value, rows in shown:
        proposed = _proposed(table, value)
        entry = f'{json.dumps(value, ensure_ascii=False)} = "{proposed or ""}"'
        lines.append(f"{entry}  # {rows} rows" if proposed else f"# {entry}  # {rows} rows: which code?")
    if hidden or more:
        beyond = "more than " if more else ""
        lines.append(
            f"# Not shown: {beyond}{hidden} values in fewer than {LEAST_ROWS} rows, long, or like a number."
        )
    plain = {
        "dataset": dataset.name,
        "column": arguments.column,
        "table": table.id,
        "values": [{"value": v, "rows": rows, "proposed": _proposed(table, v)} for v, rows in shown],
        "hidden": hidden,
        "more": more,
        "toml": "\n".join(lines) + "\n",
    }
    return print_result(arguments, plain, *lines)


def _proposed(table: "CodeTable", value: str) -> str:
    """Return the code that a word of registers stands for, or the one with that title; empty for neither."""
    from protocols.identifiers import marital_code, sex_code

    if table.name == "gbt2261.1":
        return sex_code(value) or ""
    if table.name == "gbt2261.2":
        coded = marital_code(value)
        # What a code alone would lose is for people to decide.
        return coded.code if coded is not None and not coded.note else ""
    titled = [code for code, title in table.titles.items() if title == value]
    return titled[0] if len(titled) == 1 else ""


def _codes(arguments: argparse.Namespace) -> int:
    from node.mapping import known_tables

    home = home_of(arguments)
    if arguments.table:
        table = _table(home, arguments.table)
        lines = [f"{table.id}  {table.title}"]
        lines += [
            f"  {each.code}  {each.title}{_times(each.valid_from, each.valid_to)}"
            + (f", then {each.successor}" if each.successor else "")
            for each in table.codes
        ]
        return print_result(arguments, {"id": table.id, **table.to_json()}, *lines)
    tables = list(known_tables(home.config.access.codes))
    plain = [{"id": t.id, "title": t.title, "codes": len(t.titles), "sha256": t.digest} for t in tables]
    lines = [f"{each.id}  {each.title}  {len(each.titles)} codes" for each in tables]
    return print_result(arguments, {"tables": plain}, *lines)


def _times(first: date | None, end: date | None) -> str:
    return (f", from {first}" if first else "") + (f", until {end}" if end else "")


def _table(home: "Home", named: str) -> "CodeTable":
    """Return the table of an id, or of a name that has one version."""
    from node.mapping import known_tables

    name, _, version = named.partition("@")
    tables = known_tables(home.config.access.codes, {name})
    versions = tables.named(name)
    return versions[0] if not version and len(versions) == 1 else tables[named]


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
