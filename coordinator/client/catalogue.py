"""The members' catalogues together: what there is, who is responsible for it, and who disagrees.

All of it is computed here, from catalogues whose signatures were checked. The coordinator passes them on: it
can withhold one, and hand out an earlier one to whoever has not seen a later, but neither change one nor make
one up. `Catalogue.issued` says how old each is.

What a node says of another organisation is hearsay: it is shown as that node's word, and makes nobody the one
source of anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final, overload

from coordinator.client.view import Catalogue, Column, Dataset
from protocols.errors import InputError
from protocols.freetext import folded
from protocols.ids import NodeName, Organisation
from protocols.wire import organisation_of

GRADES: Final[Mapping[str, str]] = {
    "core": "核心数据",
    "important": "重要数据",
    "general-4": "一般数据 4 级",
    "general-3": "一般数据 3 级",
    "general-2": "一般数据 2 级",
    "general-1": "一般数据 1 级",
}
"""GB/T 43697-2024."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one catalogue says of who is responsible for a field.

    Attributes:
        field: what the field is called: its title, or where it has none, its column's name.
        organisation: who is responsible: a member's roster name, or as people write it.
        node: whose catalogue says so.
        dataset: in which dataset.
        column: in which column.
        authoritative: whether the organisation itself says, by a node of its own, that this column is the
            field's one source; else it only refers to it.
        definition: id and version of the definition that the dataset follows, empty for none.
        hearsay: whether a node of another organisation alone says that this column is the one source.
    """

    field: str
    organisation: str
    node: NodeName
    dataset: str
    column: str
    authoritative: bool
    definition: str
    hearsay: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """A field of which several organisations say that they are the one source (一数一源)."""

    field: str
    claims: tuple[Claim, ...]

    @property
    def organisations(self) -> tuple[str, ...]:
        """Who they are, in order."""
        return tuple(sorted({claim.organisation for claim in self.claims}))


@dataclass(frozen=True, slots=True)
class Found:
    """One dataset that a search found.

    Attributes:
        node: whose it is.
        organisation: who is responsible for it.
        dataset: as its node published it.
        columns: those for which it was found; none where it was found for what it is as a whole.
        contested: the conflicts that its columns are in.
    """

    node: NodeName
    organisation: str
    dataset: Dataset
    columns: tuple[Column, ...]
    contested: tuple[Conflict, ...]

    @property
    def own(self) -> bool:
        """Whether the responsible organisation is the node's own, and not one that it names."""
        return self.organisation == organisation_of(self.node)


@dataclass(frozen=True)
class Catalogues(Sequence[Catalogue]):
    """Every member's catalogue, by node name.

    Attributes:
        members: the catalogues.
        titles: what people call the organisations of the roster.
        unreadable: nodes whose catalogue is left out, with a code that says why: `bad-catalogue`, or
            `older-catalogue`: a newer one was seen before; or `several-signers`.
    """

    members: tuple[Catalogue, ...]
    titles: Mapping[Organisation, str]
    unreadable: tuple[tuple[NodeName, str], ...] = ()

    @overload
    def __getitem__(self, index: int) -> Catalogue: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Catalogue, ...]: ...
    def __getitem__(self, index: int | slice) -> Catalogue | tuple[Catalogue, ...]:
        """Return one catalogue, or some."""
        return self.members[index]

    def __len__(self) -> int:
        """Return how many members have published one."""
        return len(self.members)

    def __iter__(self) -> Iterator[Catalogue]:
        """Yield the catalogues."""
        return iter(self.members)

    def search(
        self,
        text: str = "",
        *,
        name: str = "",
        column: str = "",
        code_table: str = "",
        owner: str = "",
        purpose: str = "",
        grade: str = "",
    ) -> tuple[Found, ...]:
        """Return the datasets that fit all that is asked for, by node and name.

        Texts are looked for anywhere, in either width and case, without regard to blanks.

        Args:
            text: words that all occur, wherever.
            name: of the dataset: its name, title or catalogue id.
            column: name, title or catalogue id of a column.
            code_table: of a column; of that same one where both are given.
            owner: who is responsible for it, or for a column: roster name or title, or as it is written.
            purpose: what it is held for.
            grade: GB/T 43697-2024, such as `important`, or in Chinese.

        Raises:
            InputError: `unknown-grade`.
        """
        grades = _grades(grade)
        conflicts = self._contested
        found = []
        for node, dataset in self._entries():
            responsible = self._responsible(node, dataset.organisation)
            owners = [responsible, *(self._responsible(node, c.organisation) for c in dataset.columns)]
            columns = [
                each
                for each in dataset.columns
                if _in(column, each.name, each.title, each.item) and _in(_table(code_table), each.code_table)
            ]
            asked = bool(column or code_table)
            if (
                (columns or not asked)
                and _in(name, dataset.name, dataset.title, dataset.item)
                and _in(owner, *self._called(*owners if owner else (responsible,)))
                and _in(purpose, *dataset.purposes)
                and dataset.grade in grades
                and (hits := self._hits(text, node, responsible, dataset)) is not None
            ):
                shown = tuple(columns) if asked else hits
                contested = conflicts.get((node, dataset.name), ())
                found.append(Found(node, responsible, dataset, shown, contested))
        return tuple(found)

    def dataset(self, node: str, name: str) -> Found:
        """Return one dataset of one node.

        Raises:
            InputError: `unknown-node`, `unknown-dataset`, with the closest that there are.
        """
        nodes = {one.node: one for one in self.members}
        if node not in nodes:
            raise _unknown("node has a catalogue", node, list(nodes), "unknown-node")
        member = nodes[NodeName(node)]
        for each in member.datasets:
            if each.name == name:
                responsible = self._responsible(member.node, each.organisation)
                contested = self._contested.get((member.node, each.name), ())
                return Found(member.node, responsible, each, (), contested)
        raise _unknown(
            f"dataset of {node} is called so", name, [d.name for d in member.datasets], "unknown-dataset"
        )

    def owner(self, field: str) -> tuple[Claim, ...]:
        """Return who is responsible for a field: who claims to be its one source, then who is referred to.

        Args:
            field: title of a column, or its name.
        """
        wanted = folded(field)
        claims = [
            claim
            for claim in self._claims()
            if wanted and wanted in (folded(claim.field), folded(claim.column))
        ]
        return tuple(sorted(claims, key=_rank))

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return the fields that several organisations claim to be the one source of, by field.

        Two columns are about one field if they have the same title, or the same name where they have none.
        """
        by_field: dict[str, list[Claim]] = {}
        for claim in self._claims():
            if claim.authoritative:
                by_field.setdefault(folded(claim.field), []).append(claim)
        return tuple(
            Conflict(claims[0].field, tuple(sorted(claims, key=_rank)))
            for _, claims in sorted(by_field.items())
            if len({claim.organisation for claim in claims}) > 1
        )

    @cached_property
    def _contested(self) -> dict[tuple[NodeName, str], tuple[Conflict, ...]]:
        """The conflicts that each dataset is in."""
        found: dict[tuple[NodeName, str], dict[str, Conflict]] = {}
        for conflict in self.conflicts():
            for claim in conflict.claims:
                found.setdefault((claim.node, claim.dataset), {})[conflict.field] = conflict
        return {where: tuple(conflicts.values()) for where, conflicts in found.items()}

    def called(self, organisation: str) -> str:
        """Return an organisation for people: its name, and its title in the roster if it is in it."""
        title = self.titles.get(Organisation(organisation))
        if title is None:
            return f"{organisation} (no member is called so)"
        return organisation if title == organisation else f"{organisation} {title}"

    def _entries(self) -> Iterator[tuple[NodeName, Dataset]]:
        for one in self.members:
            for dataset in sorted(one.datasets, key=lambda each: each.name):
                yield one.node, dataset

    def _claims(self) -> Iterator[Claim]:
        for node, dataset in self._entries():
            identifier, version, _ = dataset.definition
            for column in dataset.columns:
                if column.authoritative or column.organisation:
                    organisation = self._responsible(node, column.organisation or dataset.organisation)
                    own = organisation == organisation_of(node)
                    yield Claim(
                        field=column.title or column.name,
                        organisation=organisation,
                        node=node,
                        dataset=dataset.name,
                        column=column.name,
                        authoritative=column.authoritative and own,
                        definition=f"{identifier}@{version}" if identifier else "",
                        hearsay=column.authoritative and not own,
                    )

    def _responsible(self, node: NodeName, said: str) -> str:
        """Return the roster name of an organisation that is called so, or what it is called."""
        if not said:
            return organisation_of(node)
        return self._names.get(folded(said), said)

    @cached_property
    def _names(self) -> dict[str, str]:
        """Roster name by name and title, as they are looked for; of two that are called so, the first."""
        found: dict[str, str] = {}
        for name, title in sorted(self.titles.items()):
            found.setdefault(folded(name), name)
            found.setdefault(folded(title), name)
        return found

    def _called(self, *organisations: str) -> tuple[str, ...]:
        words = [(each, self.titles.get(Organisation(each), "")) for each in organisations]
        return tuple(dict.fromkeys(filter(None, (text for pair in words for text in pair))))

    def _hits(
        self, text: str, node: NodeName, responsible: str, dataset: Dataset
    ) -> tuple[Column, ...] | None:
        """Return the columns in which a word of `text` occurs; None if a word occurs nowhere."""
        whole = (
            node,
            *self._called(responsible),
            dataset.name,
            dataset.title,
            dataset.item,
            *dataset.purposes,
            *dataset.definition,
        )
        hits: dict[str, Column] = {}
        for word in text.split():
            of_columns = {
                each.name: each
                for each in dataset.columns
                if _in(word, each.name, each.title, each.item, each.code_table, each.organisation)
            }
            if not of_columns and not _in(word, *whole):
                return None
            hits |= of_columns
        return tuple(each for each in dataset.columns if each.name in hits)


def _rank(claim: Claim) -> tuple[Any, ...]:
    return (not claim.authoritative, claim.organisation, claim.node, claim.dataset, claim.column)


def _in(wanted: str, *texts: str) -> bool:
    """Whether one of the texts holds `wanted`; nothing is in everything."""
    bare = folded(wanted)
    return not bare or any(bare in folded(text) for text in texts)


def _table(wanted: str) -> str:
    """Return a standard's number as code tables are called: `GB/T 2261.1` is `gbt2261.1`."""
    return folded(wanted).replace("/", "")


def _grades(wanted: str) -> frozenset[str]:
    if not wanted:
        return frozenset({"", *GRADES})
    bare = folded(wanted)
    found = frozenset(grade for grade, title in GRADES.items() if bare == grade or bare in folded(title))
    if not found:
        raise InputError(
            "no grade is called so", code="unknown-grade", hint=f"known grades: {', '.join(GRADES)}"
        )
    return found


def _unknown(what: str, wanted: str, known: Sequence[str], code: str) -> InputError:
    close = get_close_matches(wanted, known, n=3, cutoff=0.4)
    return InputError(
        f"no {what}, closest: {', '.join(close) if close else 'none'}",
        code=code,
        hint="minshu catalogue search lists what there is",
    )
