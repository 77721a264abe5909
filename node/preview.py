"""Which forms a table's values have, for whoever registers it; never a value.

A form writes down what kind of character stands where: `9×17 A×1` for an identifier that ends in a letter,
`中×3` for a name. It is shown with the share of values that have it, in whole percent, and only where at
least MIN_VALUES of the rows looked at have it: what fewer have is `other`, so that no single record can be
recognised by its form. Where fewer rows, but some, lack a value, just that is told. Columns are told apart
from each other, so no two forms are known to be one record's.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from node.datasets import open_dataset
from node.sources import Access
from node.state import Dataset

MIN_VALUES: Final = 10
MAX_FORMS: Final = 5
MAX_CHARACTERS: Final = 32
MAX_RUNS: Final = 7
LONG: Final = f"more than {MAX_CHARACTERS} characters"
MIXED: Final = "mixed"
EMPTY: Final = "empty text"

_FORMED: Final = ("text", "integer", "decimal")
"""Types whose values have forms; a date has the form of its type."""

_NAME_DOTS: Final = "·•‧・．"


@dataclass(frozen=True, slots=True)
class Form:
    """A form, and how many of a column's values have it, in percent."""

    form: str
    percent: int


@dataclass(frozen=True, slots=True)
class ColumnForms:
    """What is shown of a column.

    Attributes:
        name: its name.
        type: its type.
        missing: rows without a value, in percent; None for a few, see MIN_VALUES.
        forms: the most frequent forms of its values.
        other: values of all other forms, in percent.
    """

    name: str
    type: str
    missing: int | None
    forms: tuple[Form, ...]
    other: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What is shown of a table: of how many rows, and of each column."""

    dataset: str
    rows: int
    columns: tuple[ColumnForms, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "dataset": self.dataset,
            "rows": self.rows,
            "columns": [
                {
                    "name": c.name,
                    "type": c.type,
                    "missing": c.missing,
                    "missing_few": c.missing is None,
                    "forms": [{"form": f.form, "percent": f.percent} for f in c.forms],
                    "other": c.other,
                }
                for c in self.columns
            ],
        }

    def lines(self) -> list[str]:
        """Return it for people."""
        lines = [f"{self.dataset}: forms of the first {self.rows} rows; 9 digit, A a letter, 中 character"]
        for column in self.columns:
            forms = [f"{form.form} {form.percent} %" for form in column.forms]
            if column.other:
                forms.append(f"other {column.other} %")
            shown = f"  {', '.join(forms)}" if forms else ""
            missing = "few" if column.missing is None else f"{column.missing} %"
            lines.append(f"  {column.name}  {column.type}  missing {missing}{shown}")
        return lines


def preview(dataset: Dataset, access: Access, most: int) -> Preview:
    """Look at the first rows of a dataset, at most `most`.

    Raises:
        InputError: as `Source.read`.
    """
    rows = 0
    with open_dataset(dataset, access) as source:
        columns = source.columns()
        forms: dict[str, Counter[str]] = {column.name: Counter() for column in columns}
        missing: Counter[str] = Counter()
        for whole in source.read([column.name for column in columns]):
            batch = whole.slice(0, most - rows)
            rows += batch.num_rows
            for column in columns:
                values = batch.column(column.name)
                missing[column.name] += values.null_count
                if column.type in _FORMED:
                    forms[column.name].update(
                        form_of(str(value)) for value in values.to_pylist() if value is not None
                    )
            if rows >= most:
                break
    return Preview(
        dataset.name,
        rows,
        tuple(
            ColumnForms(c.name, c.type, _missing(missing[c.name], rows), *_shown(forms[c.name]))
            for c in columns
        ),
    )


def form_of(value: str) -> str:
    """Return the form of a value: which kinds of characters follow each other, and how many of each."""
    if not value:
        return EMPTY
    if len(value) > MAX_CHARACTERS:
        return LONG
    runs = [f"{kind}×{len([*run])}" for kind, run in groupby(map(_kind, value))]
    return " ".join(runs) if len(runs) <= MAX_RUNS else MIXED


def percent(part: int, whole: int) -> int:
    """Return a share in whole percent, 0 of nothing."""
    return round(100 * part / whole) if whole else 0


def _missing(count: int, rows: int) -> int | None:
    return None if 0 < count < MIN_VALUES else percent(count, rows)


def _shown(counted: Counter[str]) -> tuple[tuple[Form, ...], int]:
    """Return the forms to show and the percentage of all others."""
    every = counted.total()
    often: Sequence[tuple[str, int]] = [
        (form, count)
        for form, count in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[:MAX_FORMS]
        if count >= MIN_VALUES
    ]
    other = every - sum(count for _, count in often)
    return tuple(Form(form, percent(count, every)) for form, count in often), percent(other, every)


def _kind(character: str) -> str:
    """Return what stands for a character: a digit or letter of its width, or a mark that no name has."""
    category = unicodedata.category(character)
    if character in "0123456789":
        return "9"
    if category == "Nd":
        return "９" if unicodedata.east_asian_width(character) == "F" else "digit"
    if category.startswith("L"):
        if character.isascii():
            return "A" if character.isupper() else "a"
        return "中" if unicodedata.name(character, "").startswith("CJK") else "letter"
    if category.startswith("Z"):
        return "blank"
    if category.startswith("C"):
        return "control"
    return character if character.isascii() or character in _NAME_DOTS else "mark"
