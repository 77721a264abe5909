"""Definitions (口径) that ship with this program: what exactly a dataset counts, to tell two apart.

Two definitions of resident population differ by a tenth to a fifth in a large city. A dataset names the one
it keeps to by id and version; the text is what people compare. A department may write its own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocols.catalogue import Definition
from protocols.errors import InputError


def cited(definition: Definition) -> Definition:
    """Return a definition with its text: one that ships with this program may be cited by its name alone.

    Raises:
        InputError: `unknown-definition`: its id is known here, its version is not; `other-definition`: it has
            the name of one that ships with this program, and another text.
    """
    known = DEFINITIONS.get(definition.name)
    if known is None:
        versions = [each.version for each in DEFINITIONS.values() if each.id == definition.id]
        if versions and definition.text is None:
            raise InputError(
                f"definition {definition.id} has no version {definition.version} here",
                code="unknown-definition",
                hint=f"cite version {', '.join(versions)}, or write your own text",
            )
        return definition
    if definition.text not in (None, known.text):
        raise InputError(
            f"definition {definition.name} has another text than the one that is known by that name",
            code="other-definition",
            hint="leave out its text, or give yours another id or version",
        )
    return known


DEFINITIONS: Final[Mapping[str, Definition]] = MappingProxyType(
    {
        each.name: each
        for each in (
            Definition(
                id="resident-population",
                version="2020",
                text="常住人口: 在普查标准时点, 居住在本乡、镇、街道且户口在本乡、镇、街道或户口待定的人; "
                "居住在本乡、镇、街道且离开户口登记地所在的乡、镇、街道半年以上的人; "
                "户口在本乡、镇、街道且外出不满半年或在境外工作学习的人。(第七次全国人口普查)",
            ),
            Definition(
                id="registered-population",
                version="1",
                text="户籍人口: 在统计时点, 户口登记在本辖区公安机关的人, 不论是否居住在本辖区。",
            ),
            Definition(
                id="actual-population",
                version="1",
                text="实有人口: 在统计时点, 居住在本辖区的人, 不论户口登记在何处、居住多久: "
                "户口在本辖区且居住在本辖区的人, 与户口在外地而居住在本辖区的人之和。",
            ),
        )
    }
)
"""By `ID@VERSION`."""
