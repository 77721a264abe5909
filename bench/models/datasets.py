"""The public data sets that models are measured on, as departments would hold them.

They lie beside the sources, not in them. Edges are round numbers and lists of codes those of the data sets'
documentation, all written down here: no feature of ours is cut by what the rows are.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bench.rows import ROOT

if TYPE_CHECKING:
    import pyarrow as pa

DATA: Final = ROOT.parent / "shared" / "data"

Ints = npt.NDArray[np.int64]


def records(name: str, *, folder: Path = DATA) -> list[list[str]]:
    """Return the lines of a CSV file, their fields without blanks before them.

    Raises:
        SystemExit: it is not there.
    """
    path = folder / name
    if not path.is_file():
        raise SystemExit(f"the data set is not there: {path}")
    with path.open(encoding="utf-8") as file:
        return list(csv.reader(file, skipinitialspace=True))


# -- Adult ---------------------------------------------------------------------------------------------------

LABEL: Final = "income"
POSITIVE: Final = ">50K"

_ADULT: Final = (
    "age", "workclass", "weight", "education", "education_num", "marital", "occupation", "relationship",
    "race", "sex", "gain", "loss", "hours", "country", LABEL,
)  # fmt: skip
NUMBERS: Final = {
    "age": (17, 90),
    "education_num": (1, 16),
    "gain": (0, 99_999),
    "loss": (0, 4_356),
    "hours": (1, 99),
}
"""Columns of numbers, from the least to the greatest that occurs: for a peer that asks for bounds, in its
favour. Our own edges are those below."""

_CODES: Final = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
    "Never-worked",
    "education": "Preschool 1st-4th 5th-6th 7th-8th 9th 10th 11th 12th HS-grad Some-college Assoc-voc "
    "Assoc-acdm Bachelors Masters Prof-school Doctorate",
    "marital": "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
    "Married-AF-spouse",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv "
    "Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "country": "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) India "
    "Japan Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico Portugal "
    "Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua "
    "Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands",
}
_BINS: Final[dict[str, Sequence[int]]] = {
    "age": range(20, 70, 5),
    "gain": (1, 1000, 2000, 3000, 4000, 5000, 7500, 10_000, 15_000, 20_000, 50_000),
    "loss": (1, 500, 1000, 1500, 1750, 2000, 2250, 2500, 3000),
    "hours": (10, 20, 30, 35, 40, 45, 50, 60),
}
_FINE: Final[dict[str, Sequence[int]]] = {
    "age": range(18, 81, 2),
    "education_num": range(2, 17),
    "gain": (1, *range(500, 10_000, 250), 10_000, 15_000, 20_000, 30_000, 50_000),
    "loss": (1, *range(250, 4000, 125)),
    "hours": (*range(5, 35, 5), *range(35, 62, 2), 65, 70, 80),
}


def _features(bins: dict[str, Sequence[int]], *codes: str) -> list[dict[str, Any]]:
    binned = [{"slot": slot, "edges": [str(edge) for edge in edges]} for slot, edges in bins.items()]
    return binned + [{"slot": slot, "codes": _CODES[slot].split()} for slot in codes]


LINEAR: Final = _features(_BINS, *_CODES)
"""Features of a linear model: 149 codes."""

TREES: Final = _features(_FINE, "workclass", "marital", "occupation", "relationship", "race", "sex")
"""Features of trees, which can put neighbouring bins together: the order of education, no country."""


@cache
def adult(name: str) -> "pa.Table":
    """Return the rows of `adult.data` or `adult.test`: numbers, texts, and the label as its texts.

    Raises:
        SystemExit: the file is not there.
    """
    import pyarrow as pa

    rows = [line for line in records(name) if len(line) == len(_ADULT)]
    columns = dict(zip(_ADULT, zip(*rows, strict=True), strict=True))
    found = {
        slot: pa.array([int(each) for each in values]) if slot in NUMBERS else pa.array(values)
        for slot, values in columns.items()
        if slot not in ("weight", LABEL)
    }
    # In the test file they end with a full stop.
    return pa.table({**found, LABEL: pa.array([each.rstrip(".") for each in columns[LABEL]])})


def labels(table: "pa.Table") -> Ints:
    """Return 1 for each row that is positive."""
    return np.array([each == POSITIVE for each in table.column(LABEL).to_pylist()], dtype=np.int64)


def split(table: "pa.Table", nodes: int, seed: int, *, skewed: bool) -> list["pa.Table"]:
    """Return the rows of so many departments.

    Evenly: at random. Skewed: sizes fall by a quarter from one to the next, to 3 in 1,000 at least, and rows
    go by label and age, so that the first departments have few of the positive and the last few others.
    """
    draw = np.random.default_rng(seed)
    if not skewed:
        return [table.take(part) for part in np.array_split(draw.permutation(len(table)), nodes)]
    age = table.column("age").to_numpy()
    order = np.argsort(labels(table) + age / 40 + draw.normal(0, 0.75, len(table)))
    shares = np.maximum(0.75 ** np.arange(nodes), 0.003 * 4)
    cuts = (np.cumsum(shares / shares.sum())[:-1] * len(table)).astype(int)
    return [table.take(part) for part in np.split(order, cuts)]


# -- default of credit cards ---------------------------------------------------------------------------------

DEFAULT: Final = "y"
HELD_OUT: Final = 5
"""Whose number is a multiple of it is held out."""

_AMOUNT: Final = (-0.7, -0.6, -0.5, -0.4, -0.3, -0.25, -0.2, -0.1, 0, 0.25, 0.5, 1, 2, 3)
_LEVEL: Final = (-1, 0, 0.5, 1.5, 2.5, 3.5)
"""Edges of amounts and of levels, which have a few values: all in standard deviations from the mean."""

_LEVELS: Final = {"guest": ("x0",), "host": ("x1", "x2", "x3", "x5", "x6", "x7", "x8", "x9")}
"""How late somebody was month by month; and of the host sex, schooling and family, too."""


@dataclass(frozen=True, slots=True)
class Owner:
    """One owner's columns of all persons, in order of their numbers.

    Attributes:
        name: `guest`, who has the label, or `host`.
        persons: n numbers.
        columns: slot → n values; the label among them.
    """

    name: str
    persons: Ints
    columns: dict[str, npt.NDArray[np.float64]]

    @property
    def features(self) -> list[str]:
        """Slots of all columns but the label."""
        return [slot for slot in self.columns if slot != DEFAULT]

    def edges(self, slot: str) -> list[str]:
        """Return where a feature is cut, as params say it."""
        _, _, column = slot.partition("_")
        return [str(edge) for edge in (_LEVEL if column in _LEVELS[self.name] else _AMOUNT)]

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Owner":
        """Return the persons that a mask chooses."""
        return Owner(self.name, self.persons[chosen], {k: v[chosen] for k, v in self.columns.items()})


def credit() -> tuple[Owner, Owner]:
    """Return what guest and host have of the same persons.

    Raises:
        SystemExit: a file is not there.
    """
    guest, host = (_owner(name) for name in ("guest", "host"))
    if not np.array_equal(guest.persons, host.persons):
        raise SystemExit("the two files are about different persons")
    return guest, host


def _owner(name: str) -> Owner:
    header, *rows = records(f"fate_default_credit_hetero_{name}.csv")
    table = np.array(rows, dtype=np.float64)
    table = table[np.argsort(table[:, 0])]
    columns = {
        column if column == DEFAULT else f"{name}_{column}": table[:, place]
        for place, column in enumerate(header)
        if place
    }
    return Owner(name, table[:, 0].astype(np.int64), columns)
