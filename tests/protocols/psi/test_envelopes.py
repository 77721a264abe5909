"""What envelopes hold, of many rows."""

from collections.abc import Iterator

import numpy as np

from protocols.psi.envelopes import PLAIN_BYTES, plaintexts
from protocols.psi.keyed_list import Entries


class Names(tuple[str, ...]):
    """Counts how often somebody goes through them."""

    __slots__ = ()
    walks = 0

    def __iter__(self) -> Iterator[str]:
        Names.walks += 1
        return super().__iter__()


def test_the_names_of_streets_are_laid_out_once_for_all_parts_of_a_list() -> None:
    rows = np.arange(6, dtype=np.uint32)
    names = Names(["", "330106001", "文三街道, of this test alone"])
    entries = Entries(
        np.array([b"RIC:%018d" % n for n in rows]),
        np.array([0, 1, 2, 2, 1, 0], dtype=np.uint16),
        np.arange(6, dtype=np.uint16),
        names,
    )
    whole = plaintexts(entries, rows)
    parts = [plaintexts(entries, rows[at : at + 2]) for at in range(0, 6, 2)]
    assert b"".join(parts) == whole
    assert whole[2 * PLAIN_BYTES :].count(names[2].encode()) == 2
    assert Names.walks == 1
