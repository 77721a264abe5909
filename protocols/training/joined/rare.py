"""Which codes get no weight where nothing is noisy: those whose weight would tell of too few persons.

After one round from weights of 0, each weight is a known multiple of how many of the code's persons have
label 1, less half of them: an exact table of labels by codes. Codes of one column add up to everybody, so
what is withheld of a column is told of together, by the others and the constant: it has to be of enough
persons, too. SPEC.md, 6.6; cells that protect others: Willenborg and de Waal, Elements of Statistical
Disclosure Control, 2001.
"""

from collections.abc import Sequence

import numpy as np

from protocols.training.joined.descent import Mask
from protocols.training.schema import Ints


def withheld(widths: Sequence[int], counts: Ints, positives: Ints, least: int) -> Mask:
    """Return which codes get no weight.

    A code is withheld of which fewer than `least` persons have either label. Then, as long as those that are
    withheld of a column together have somebody, and fewer than `least` of either label, the next code of the
    column with the fewest persons is. It ends, as `least` of all have either label.

    Args:
        widths: how many codes each column has, in order.
        counts: d: how many persons have each code, and how many there are.
        positives: d: of these, how many have label 1.
        least: smallest group of persons of whom anything exact is told.

    Returns:
        d flags; the last, of the constant, is never set.
    """
    cells = np.stack((counts - positives, positives))
    found: Mask = cells.min(axis=0) < least
    found[-1] = False
    start = 0
    for width in widths:
        own, here = found[start : start + width], cells[:, start : start + width]
        for code in np.argsort(here.sum(axis=0), kind="stable"):
            together = here[:, own].sum(axis=1)
            if not together.any() or together.min() >= least:
                break
            own[code] = True
        start += width
    return found
