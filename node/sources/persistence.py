"""Reading again after a database went away: from the start, since one reading is one state of a table."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from protocols.errors import InputError

READINGS: Final = 3
"""How often a table is begun to be read, at most."""

WAIT_S: Final = 2.0
"""Before the second reading; twice as long before the third."""

_GONE: Final = ("source-interrupted", "source-unreachable")

_T = TypeVar("_T")


def persist(read: Callable[[], _T], go_on: Callable[[], None]) -> _T:
    """Return what `read` returns; of a reading that a lost connection ended nothing is kept.

    A database that restarts is away for some seconds, so one that cannot be reached is waited for, too.

    Args:
        read: opens a source, reads it whole, and begins anew whenever it is called.
        go_on: called after a reading that failed, and before the next; raises when the attempt is over.

    Raises:
        InputError: what the last reading ended in.
    """
    number = 1
    while True:
        try:
            return read()
        except InputError as error:
            go_on()  # what ends an attempt ends its readings
            if error.code not in _GONE or number == READINGS:
                raise
        time.sleep(WAIT_S * number)
        go_on()
        number += 1
