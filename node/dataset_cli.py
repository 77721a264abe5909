"""`minshu-node dataset`: which tables the department has, and how they are found."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.page import Command, ask_node, home_of, print_result, utc_now, whole_number

if TYPE_CHECKING:
    from node.state import Dataset


def add_dataset_commands(group: Any, command: Command) -> None:
    """Add the commands of the group `dataset`."""
    add = command(group, "add", _dataset_add, "register a CSV or Parquet file under a catalogue name")
    add.add_argument("name", metavar="NAME")
    add.add_argument("file", type=Path, metavar="FILE")
    add.add_argument("--title", default="", help="what people call it")
    add.add_argument("--key", default="", metavar="COLUMN", help="the column with identifiers")
    add.add_argument("--published-keys", type=whole_number, metavar="N", help="publish N distinct keys")
    add.add_argument(
        "--no-persons", action="store_true", help="its rows are about no persons, so without keys"
    )
    command(group, "list", _dataset_list, "show the registered datasets")


def _dataset_add(arguments: argparse.Namespace) -> int:
    from node.catalogue import scan
    from node.desk import dataset_to_json
    from node.sources import FilePlace

    home = home_of(arguments)
    found = scan(
        arguments.name,
        FilePlace(arguments.file.absolute()),
        title=arguments.title,
        key=arguments.key,
        published_keys=arguments.published_keys,
        access=home.config.access,
        today=utc_now().date(),
        persons=not arguments.no_persons,
    )
    ask_node(home, "dataset", dataset_to_json(found))
    keys = f"{found.distinct_keys} distinct keys in column {found.key or '-'}"
    return print_result(
        arguments,
        _dataset_json(found),
        f"{found.name}: {found.rows} rows, {'about no persons' if arguments.no_persons else keys}",
        f"published as {found.published_keys} keys, snapshot {found.snapshot}",
    )


def _dataset_list(arguments: argparse.Namespace) -> int:
    from node.state import read_state

    with read_state(home_of(arguments).database) as reader:
        known = reader.datasets()
    lines = [f"{d.name}  {d.title}  {d.rows} rows  {d.distinct_keys} keys  {d.snapshot}" for d in known]
    plain = {"datasets": [_dataset_json(d) for d in known]}
    return print_result(arguments, plain, *(lines or ["no dataset is registered"]))


def _dataset_json(dataset: "Dataset") -> dict[str, Any]:
    from node.desk import dataset_to_json

    plain = dataset_to_json(dataset)
    del plain["place"]
    return plain
