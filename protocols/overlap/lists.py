"""The list of a department as an overlap counts it: each person once, whatever the rows."""

from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from protocols.errors import InputError
from protocols.identifiers import AreaTable
from protocols.jobs.job_type import UNIT, Unit
from protocols.psi.keyed_list import KeyedList, KeyedListBuilder

KEY: Final = "key"
"""The slot of the identifier."""


class ListBuilder:
    """Takes the slot `key`, and with a unit the column that the policy names, batch by batch.

    What noise hides is what the policy calls a unit. Both have to be one column: were a unit a household, one
    that leaves could change the count by more than one.
    """

    def __init__(self, *, created: date, areas: AreaTable, unit: Unit | None) -> None:
        """Start an empty list.

        Args:
            created: the day of the job; keys are judged as of it where the data's own day is not known.
            areas: table of areas.
            unit: whom a row is about; None where it is about nobody.
        """
        as_of = created if unit is None or unit.as_of is None else unit.as_of
        self._unit = unit
        self._builder = KeyedListBuilder(as_of=as_of, areas=areas)

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take one batch.

        Raises:
            InputError: `key-not-unit`, the two columns differ; or see `KeyedListBuilder.add`.
        """
        slots = without_unit(batch, self._unit)
        if set(slots) != {KEY}:
            raise InputError(
                f"a batch of {len(batch)} slot(s), expected the key and, with a unit, the unit",
                code="unknown-slot",
            )
        self._builder.add(slots)

    def finish(self) -> KeyedList:
        """Return the list."""
        found = self._builder.finish()
        assert isinstance(found, KeyedList)  # it has no scratch
        return found


def without_unit(batch: Mapping[str, Any], unit: Unit | None) -> dict[str, Any]:
    """Return a batch without the unit's column, which has to be the key's.

    Args:
        batch: slot → Arrow array, with the slot `key`.
        unit: whom a row is about; None where it is about nobody, and there is no such column.

    Raises:
        InputError: `key-not-unit`, the two columns differ; `unknown-slot`, one is missing, or there without
            a unit.
    """
    slots = dict(batch)
    about = slots.pop(UNIT, None)
    if (about is None) != (unit is None) or KEY not in slots:
        raise InputError(
            f"a batch of {len(batch)} slot(s), expected the key and, with a unit, the unit",
            code="unknown-slot",
        )
    if about is not None and not about.equals(slots[KEY]):
        raise InputError(
            "the slot key is another column than the one that the policy names as the unit",
            code="key-not-unit",
            hint="map key to the unit's column: noise is reckoned for one key on one list",
        )
    return slots
