"""Codes and names of areas on five levels: province, city, county, street, community.

GB/T 2260 gives the first three levels six digits, two each; GB/T 10114 adds three for streets, and the
statistical codes three more for communities. A code has one form here: six digits, nine for a street, twelve
for a community, and no zeros for levels it does not reach (statistics write a street as 440103001000).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Final

from protocols.codes.table import CodeTable, normalise_value
from protocols.errors import InputError

LEVELS: Final = ("province", "city", "county", "street", "community")

MAX_ADDRESS: Final = 128
"""Most characters of an address that is taken apart."""

_MAX_NAME: Final = 16
_CODE: Final = re.compile(r"[1-9][0-9](?:[0-9]{2}|[0-9]{4}|[0-9]{7}|[0-9]{10})?", re.ASCII)
_LENGTHS: Final = {9: "street", 12: "community"}
_CUT: Final = re.compile(r"[\s,，/、|-]+")

_MUNICIPALITIES: Final = ("11", "12", "31", "50")
_NOT_SAID: Final = frozenset({"市辖区", "县", "省直辖县级行政区划", "自治区直辖县级行政区划"})
"""Titles of cities that are there for their code alone: no address says them."""

_ENDINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "province": ("省", "自治区", "特别行政区", "北京市", "天津市", "上海市", "重庆市"),
        "city": ("市", "自治州", "地区", "盟"),
        "county": ("区", "县", "市", "旗"),
        "street": ("街道", "街道办事处", "镇", "乡", "苏木"),
        "community": ("社区", "居委会", "居民委员会", "村", "村委会", "村民委员会", "嘎查"),
    }
)

_SMALLER: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    dict.fromkeys(("province", "city", "county"), ("街道", "社区", "委会", "委员会"))
    | {"street": ("社区", "村委会", "居委会", "委员会")}
)
"""Endings of smaller areas: what goes on after them is no name of the larger one."""


def area_code(text: str) -> str | None:
    """Return the one form of an area's code, None for what is none.

    Taken are two, four, six, nine or twelve digits; zeros for levels that are not reached are dropped.
    """
    if not _CODE.fullmatch(text):
        return None
    code = text.ljust(6, "0")
    while len(code) > 6 and code.endswith("000"):
        code = code[:-3]
    return code


def level_of(code: str) -> str:
    """Return the level of an area's code in its one form."""
    if len(code) > 6:
        return _LENGTHS[len(code)]
    return "province" if code.endswith("0000") else "city" if code.endswith("00") else "county"


def parent_of(code: str) -> str | None:
    """Return the code of the area that this one lies in, None of a province.

    Some cities have streets and no counties, and some provinces counties that are in no city.
    """
    if len(code) > 6:
        return area_code(code[:-3])
    match level_of(code):
        case "county":
            return code[:4] + "00"
        case "city":
            return code[:2] + "0000"
    return None


def lineage(code: str) -> Iterator[str]:
    """Yield an area's code and those of the areas that it lies in, the province last."""
    here: str | None = code
    while here is not None:
        yield here
        here = parent_of(here)


def at_level(code: str, level: str) -> str | None:
    """Return the area of a level that an area lies in, or is; None for an area that is larger.

    Of what lies in no area of that level it is the next larger: the county of a street of a city without
    counties is the city.
    """
    if LEVELS.index(level_of(code)) < LEVELS.index(level):
        return None
    return next(each for each in lineage(code) if LEVELS.index(level_of(each)) <= LEVELS.index(level))


@dataclass(frozen=True, slots=True)
class Address:
    """An address, taken apart.

    Attributes:
        names: one for each of `LEVELS`; empty where the address does not say it.
        code: of the smallest area that the table lists; empty where it lists none.
    """

    names: tuple[str, str, str, str, str]
    code: str = ""


class Areas:
    """A code table of areas, by level. Only levels of which it lists an area are judged by it."""

    def __init__(self, table: CodeTable) -> None:
        """Take a table apart.

        Raises:
            InputError: `no-areas`: one of its codes is no area's code in its one form.
        """
        for code in table.titles:
            if area_code(code) != code:
                raise InputError(
                    f"code table {table.id} lists codes that are no areas' codes",
                    code="no-areas",
                    hint="six digits, nine for a street, twelve for a community, without zeros behind",
                )
        self.table = table
        self.levels = frozenset(map(level_of, table.titles))
        below: dict[str, list[tuple[str, str]]] = {}
        # Every title that a code ever had: addresses are older than tables.
        said = {(normalise_value(each.title), each.code) for each in table.codes}
        for title, code in sorted(said):
            for parent in self._above(code):
                below.setdefault(parent, []).append((title, code))
        self._below = below
        # Of each code the days on which it ended, in order, with what followed.
        self._followed: dict[str, list[tuple[date, str]]] = {}
        for each in table.codes:
            if each.valid_to is not None and each.successor:
                self._followed.setdefault(each.code, []).append((each.valid_to, each.successor))
        for ends in self._followed.values():
            ends.sort()

    def _above(self, code: str) -> Iterator[str]:
        """Yield the listed areas after whose name an address says this one's; empty for none."""
        parent = self._listed_above(code)
        yield parent
        while parent and level_of(parent) == "city" and self._may_be_left_out(parent):
            parent = self._listed_above(parent)
            yield parent

    def _listed_above(self, code: str) -> str:
        above = lineage(code)
        next(above)
        return next((each for each in above if each in self.table), "")

    def _may_be_left_out(self, city: str) -> bool:
        return city[:2] in _MUNICIPALITIES or self.table.titles[city] in _NOT_SAID

    def first_unlisted(self, code: str, as_of: date | None = None) -> str | None:
        """Return the largest level at which a code's area is not in the table, None if all are.

        Args:
            code: in its one form.
            as_of: the day on which they must be in force; None for ever.
        """
        for each in reversed(list(lineage(code))):
            level = level_of(each)
            if level not in self.levels:
                continue
            if each not in self.table or (as_of is not None and self.table.as_of(each, as_of) != each):
                return level
        return None

    def split(self, text: str, *, recoded: bool = False) -> Address | None:
        """Return an address taken apart, None where there is no way, or more than one.

        It begins with its largest area and holds nothing but names of areas, at most one of each level. Where
        the table lists areas, a name is one of its titles; elsewhere it ends as names of its level do.

        Args:
            text: the address.
            recoded: whether an area that got another code under its own name is one area. Its code is then
                the earlier one: what stands for it on some day, the table's `as_of` tells.
        """
        found = self._ways(text, recoded=recoded)
        return found[0] if len(found) == 1 else None

    def _ways(self, text: str, *, recoded: bool) -> list[Address]:
        """Return the first two ways to take an address apart."""
        whole = _CUT.sub("", normalise_value(text))
        ways: list[Address] = []
        if not 1 <= len(whole) <= MAX_ADDRESS:
            return ways
        for names, code in self._from(whole, 0, ""):
            way = Address((names[0], names[1], names[2], names[3], names[4]), code)
            one = self._earlier(ways[0], way) if ways and recoded else None
            if one is not None:
                ways[0] = one
            elif way not in ways:
                ways.append(way)
            if len(ways) == 2:
                break
        return ways

    def _earlier(self, one: Address, other: Address) -> Address | None:
        """Return of two ways that are one, for their area only got another code, the one with the first."""
        if one.names != other.names:
            return None
        if one.code == other.code:
            return one
        ahead, behind = self._leads(one.code, other.code), self._leads(other.code, one.code)
        if ahead and behind:  # one of them was abolished and came back
            return min(one, other, key=lambda way: self._followed[way.code][0])
        return one if ahead else other if behind else None

    def _leads(self, code: str, later: str) -> bool:
        """Whether a code has another one among the successors of its successors."""
        seen, waiting = {code}, [code]
        while waiting:
            for _, successor in self._followed.get(waiting.pop(), ()):
                if successor == later:
                    return True
                if successor not in seen:
                    seen.add(successor)
                    waiting.append(successor)
        return False

    def _from(self, text: str, level: int, code: str) -> Iterator[tuple[dict[int, str], str]]:
        """Yield names by level, from `level` on, of what is left of an address in an area."""
        if not text:
            yield dict.fromkeys(range(len(LEVELS)), ""), code
            return
        listed = self._below.get(code, ())
        for title, child in listed:
            at = LEVELS.index(level_of(child))
            if at >= level and text.startswith(title):
                for names, smallest in self._from(text[len(title) :], at + 1, child):
                    yield {**names, at: title}, smallest
        there = {level_of(child) for _, child in listed}
        for at in range(level, len(LEVELS)):
            if LEVELS[at] in there:
                return
            if LEVELS[at] in self.levels:
                continue
            found = False
            for name in _names(text, LEVELS[at]):
                for names, smallest in self._from(text[len(name) :], at + 1, code):
                    found = True
                    yield {**names, at: name}, smallest
            # Of a municipality most addresses say no city.
            if found or LEVELS[at] != "city" or code[:2] not in _MUNICIPALITIES:
                return


def _names(text: str, level: str) -> Iterator[str]:
    """Yield what the text could begin with that ends as names of a level do, and holds no smaller area."""
    endings = _ENDINGS[level]
    for end in range(2, min(len(text), _MAX_NAME) + 1):
        name = text[:end]
        if name.endswith(_SMALLER.get(level, ())):
            return
        if name.endswith(endings):
            yield name
