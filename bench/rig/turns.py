"""Two measurements in turns, so that what else the machine does falls on both."""

from collections.abc import Callable


def take_turns(ours: Callable[[], float], peer: Callable[[], float], turns: int) -> tuple[float, float]:
    """Return a figure and its peer's: those of the turn whose ratio is the median of all turns.

    The peer runs before and after each of ours, and the mean of the two counts.

    Args:
        ours: measures once.
        peer: measures once.
        turns: odd.
    """
    pairs = []
    before = peer()
    for _ in range(turns):
        value = ours()
        after = peer()
        pairs.append((value, (before + after) / 2))
        before = after
    return sorted(pairs, key=lambda pair: pair[0] / pair[1])[turns // 2]
