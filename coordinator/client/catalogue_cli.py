"""`minshu catalogue search | show | owner | conflicts`: what the members have, and who is responsible."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from coordinator import command

if TYPE_CHECKING:
    from coordinator.client.catalogue import Catalogues, Claim, Found
    from coordinator.client.view import Dataset

FILTERS = {
    "name": "in its name, title or catalogue id",
    "column": "in the name, title or catalogue id of a column",
    "code-table": "of a column, such as gbt2261.1 or GB/T 2261.1",
    "owner": "who is responsible for it",
    "purpose": "what it is held for",
    "grade": "such as important, or 重要",
}


def add_catalogue_commands(catalogue: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Add what `minshu catalogue` can be asked beside showing everything; return the new commands."""
    asked = catalogue.add_subparsers(metavar="COMMAND")
    search = asked.add_parser("search", help="find datasets")
    search.add_argument("text", nargs="*", metavar="TEXT", help="words that all occur somewhere")
    for option, about in FILTERS.items():
        search.add_argument(f"--{option}", default="", metavar="TEXT", help=about)
    show = asked.add_parser("show", help="show one dataset")
    show.add_argument("node", metavar="ORG/NODE", help="whose it is")
    show.add_argument("dataset", metavar="DATASET")
    owner = asked.add_parser("owner", help="show who is responsible for a field")
    owner.add_argument("field", metavar="FIELD", help="title or name of a column")
    conflicts = asked.add_parser("conflicts", help="show fields that several claim to be the one source of")
    for each, call in ((search, _search), (show, _show), (owner, _owner), (conflicts, _conflicts)):
        each.set_defaults(call=call)
    return [search, show, owner, conflicts]


def _catalogues(arguments: argparse.Namespace) -> "Catalogues":
    from coordinator.client.sdk import Bureau

    with Bureau.connect(command.home_of(arguments)) as bureau:
        return bureau.catalogue()


def unreadable_lines(catalogues: "Catalogues") -> list[str]:
    """Return what to say of catalogues that are left out."""
    words = {
        "older-catalogue": "it is older than one that was seen before",
        "several-signers": "it has several signatures",
    }
    return [
        f"{node}: its catalogue is left out: {words.get(code, 'it cannot be read')} ({code})"
        for node, code in catalogues.unreadable
    ]


def unreadable_json(catalogues: "Catalogues") -> dict[str, str]:
    """Return the same for programs: node → code."""
    return dict(catalogues.unreadable)


def _search(arguments: argparse.Namespace) -> int:
    catalogues = _catalogues(arguments)
    asked = {option.replace("-", "_"): getattr(arguments, option.replace("-", "_")) for option in FILTERS}
    found = catalogues.search(" ".join(arguments.text), **asked)
    known = sum(len(each.datasets) for each in catalogues)
    lines = [line for each in found for line in _found_lines(catalogues, each)]
    command.show(
        arguments,
        {
            "found": [_plain(catalogues, each) for each in found],
            "unreadable": unreadable_json(catalogues),
        },
        [*lines, f"{len(found)} of {known} datasets", *unreadable_lines(catalogues)],
    )
    return command.OK


def _show(arguments: argparse.Namespace) -> int:
    catalogues = _catalogues(arguments)
    found = catalogues.dataset(arguments.node, arguments.dataset)
    command.show(arguments, _plain(catalogues, found), _all_lines(catalogues, found))
    return command.OK


def _owner(arguments: argparse.Namespace) -> int:
    catalogues = _catalogues(arguments)
    claims = catalogues.owner(arguments.field)
    sources = {claim.organisation for claim in claims if claim.authoritative}
    lines = [_claim_line(catalogues, claim) for claim in claims]
    if len(sources) > 1:
        lines.append(f"contested: {len(sources)} organisations claim to be the one source")
    command.show(
        arguments,
        {
            "claims": [_claim(claim) for claim in claims],
            "contested": len(sources) > 1,
            "unreadable": unreadable_json(catalogues),
        },
        [*(lines or ["nobody says who is responsible for it"]), *unreadable_lines(catalogues)],
    )
    return command.OK


def _conflicts(arguments: argparse.Namespace) -> int:
    catalogues = _catalogues(arguments)
    conflicts = catalogues.conflicts()
    lines = []
    for each in conflicts:
        lines.append(each.field)
        lines += [f"  {_claim_line(catalogues, claim)}" for claim in each.claims]
    command.show(
        arguments,
        {
            "conflicts": [
                {"field": each.field, "claims": [_claim(claim) for claim in each.claims]}
                for each in conflicts
            ],
            "unreadable": unreadable_json(catalogues),
        },
        [*(lines or ["no field is claimed by several organisations"]), *unreadable_lines(catalogues)],
    )
    return command.OK


def _claim(claim: "Claim") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(claim)


def _claim_line(catalogues: "Catalogues", claim: "Claim") -> str:
    says = "one source" if claim.authoritative else "referred to"
    if claim.hearsay:
        says = "one source, as another organisation says"
    definition = f", definition {claim.definition}" if claim.definition else ""
    where = f"{claim.node} {claim.dataset}.{claim.column}"
    return f"{catalogues.called(claim.organisation)}: {says}, by {where}{definition}"


def _contested_lines(catalogues: "Catalogues", found: "Found") -> list[str]:
    return [
        f"  contested: {each.field}, claimed by "
        + ", ".join(catalogues.called(organisation) for organisation in each.organisations)
        for each in found.contested
    ]


def _head(catalogues: "Catalogues", found: "Found") -> list[str]:
    dataset = found.dataset
    said = "" if found.own else f", said by {found.node}"
    about = [
        f"responsible: {catalogues.called(found.organisation)}{said}",
        *([f"grade {dataset.grade}"] if dataset.grade else []),
        *([f"every {dataset.update_days} days"] if dataset.update_days > 1 else []),
        *(["every day"] if dataset.update_days == 1 else []),
    ]
    return [f"{found.node}  {dataset.name}  {dataset.title}  {dataset.size}", f"  {'; '.join(about)}"]


def _found_lines(catalogues: "Catalogues", found: "Found") -> list[str]:
    columns = f"  columns: {', '.join(column.words() for column in found.columns)}"
    return [
        *_head(catalogues, found),
        *([columns] if found.columns else []),
        *_contested_lines(catalogues, found),
    ]


def _all_lines(catalogues: "Catalogues", found: "Found") -> list[str]:
    dataset = found.dataset
    identifier, version, text = dataset.definition
    rest = {
        "catalogue id": dataset.item,
        "key": dataset.key,
        "snapshot": dataset.snapshot,
        "sharing": dataset.sharing,
        "purposes": ", ".join(dataset.purposes),
        "definition": " ".join(filter(None, (f"{identifier}@{version}" if identifier else "", text))),
        "legal basis": dataset.legal_basis,
        "quality": ", ".join(_figures(dataset)),
    }
    return [
        *_head(catalogues, found),
        *(f"  {name}: {said}" for name, said in rest.items() if said),
        "  columns:",
        *(f"    {column.words()}{_of(column.organisation)}" for column in dataset.columns),
        *_contested_lines(catalogues, found),
    ]


def _of(organisation: str) -> str:
    return f", of {organisation}" if organisation else ""


def _figures(dataset: "Dataset") -> list[str]:
    """Return quality figures for people: `rows.complete 99.8`."""
    from protocols.freetext import printable

    def flat(name: str, value: Any) -> list[str]:
        if isinstance(value, Mapping):
            return [
                line for key in sorted(value) for line in flat(f"{name}.{key}" if name else key, value[key])
            ]
        return [printable(f"{name} {value}")] if isinstance(value, str | int | float) else []

    return flat("", dataset.quality)


def _plain(catalogues: "Catalogues", found: "Found") -> dict[str, Any]:
    from dataclasses import asdict

    plain = asdict(found.dataset)
    identifier, version, text = found.dataset.definition
    plain["definition"] = {"id": identifier, "version": version, "text": text} if identifier else None
    return {
        "node": found.node,
        "organisation": found.organisation,
        "called": catalogues.called(found.organisation),
        "dataset": plain,
        "columns": [column.name for column in found.columns],
        "contested": [
            {"field": each.field, "organisations": list(each.organisations)} for each in found.contested
        ],
    }
