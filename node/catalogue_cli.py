"""`minshu-node catalogue`: what other organisations can read about the department's datasets."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.page import Command, ask_node, home_of, print_result, utc_now

if TYPE_CHECKING:
    from node.catalogue_import import Imported


def add_catalogue_commands(group: Any, command: Command) -> None:
    """Add the commands of the group `catalogue`."""
    command(group, "show", _catalogue_show, "show what this node publishes about its datasets")
    load = command(group, "import", _catalogue_import, "take over the department's catalogue, all or nothing")
    load.add_argument("file", type=Path, metavar="FILE.xlsx|csv")
    load.add_argument("--owner", default="", metavar="TEXT", help="only datasets that it is responsible for")
    load.add_argument("--dry-run", action="store_true", help="check the sheet and change nothing")
    template = command(group, "template", _catalogue_template, "write an empty sheet with all headers; new")
    template.add_argument("file", type=Path, metavar="FILE.xlsx|csv")


def _catalogue_show(arguments: argparse.Namespace) -> int:
    from node.catalogue import document
    from node.quality import published
    from node.state import read_state
    from protocols.encoding import decode_json

    home = home_of(arguments)
    with read_state(home.database) as reader:
        datasets, announced, quality = reader.datasets(), reader.announced(), published(reader)
    said = decode_json(document(datasets, announced, home.config.name, utc_now(), quality))
    every = [*(each.description for each in datasets), *(each.description for each in announced)]
    hidden = sum(not each.shown for each in every)
    lines = [
        *(
            f"{d['name']}  {d['title']}  {d['rows']} rows  {d['distinct_keys']} keys"
            for d in said["datasets"]
        ),
        *(f"{d['name']}  {d['title']}  announced, fields: {len(d['columns'])}" for d in said["announced"]),
        *([f"{hidden} not shown to others"] if hidden else []),
    ]
    return print_result(arguments, said, *(lines or ["nothing is published"]))


def _catalogue_import(arguments: argparse.Namespace) -> int:
    from node.catalogue_import import MAX_FILE_BYTES, entries_to_json, match, read_sheet
    from node.state import read_state
    from protocols.encoding import sha256_digest
    from protocols.errors import InputError

    home = home_of(arguments)
    path: Path = arguments.file
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be read ({error.strerror})",
            code="file-missing",
            hint="name the spreadsheet with the department's catalogue",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(
            f"{path.name} has more than {MAX_FILE_BYTES >> 20} MiB",
            code="too-long",
            hint="save only the catalogue's sheet",
        )
    sheet = read_sheet(path.name, data, owner=arguments.owner)
    with read_state(home.database) as reader:
        found = match(sheet.entries, reader.datasets(), path.name)
    if not arguments.dry_run:
        body = {"entries": entries_to_json(sheet.entries), "sha256": sha256_digest(data)}
        ask_node(home, "catalogue", body)
    ignored = f"columns that mean nothing here: {', '.join(sheet.ignored)}"
    return print_result(
        arguments,
        {
            "described": [each.name for each in found.described],
            "announced": [each.name for each in found.announced],
            "ignored": list(sheet.ignored),
            "imported": not arguments.dry_run,
        },
        *_lines(found),
        *([ignored] if sheet.ignored else []),
        f"{found.count} datasets, {len(found.described)} of them registered"
        + ("; nothing was changed" if arguments.dry_run else ""),
    )


def _lines(found: "Imported") -> list[str]:
    return [
        *(f"{d.name}  {d.title}  described" for d in found.described),
        *(
            f"{d.name}  {d.description.title or d.name}  announced, fields: {len(d.columns)}"
            for d in found.announced
        ),
    ]


def _catalogue_template(arguments: argparse.Namespace) -> int:
    from node.catalogue_import import template
    from protocols.errors import InputError

    path: Path = arguments.file
    made = template(path.name)
    try:
        with path.open("xb") as file:
            file.write(made)
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be written ({error.strerror})",
            code="cannot-write",
            hint="name a new file in a folder of yours",
        ) from None
    return print_result(
        arguments, {"file": str(path)}, f"{path}: fill it in, one row for each field or dataset"
    )
