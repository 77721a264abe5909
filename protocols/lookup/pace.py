"""How fast look-ups may follow one another: never more than so many in any minute."""

import math
from collections import deque
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Final

WINDOW_S: Final = 60
_SLOTS_PER_S: Final = 10
"""What passes within a tenth of a second counts as of its end, so that a minute takes little memory."""


class Minute:
    """What has passed within the last minute, by a clock that never runs back."""

    def __init__(self, monotonic: Callable[[], float], window_s: int = WINDOW_S) -> None:
        """Begin with nothing.

        Args:
            monotonic: seconds.
            window_s: how long what has passed counts.
        """
        self._monotonic, self._window = monotonic, window_s * _SLOTS_PER_S
        self._passed: deque[tuple[int, int]] = deque()  # slot, how many
        self._count = 0

    @property
    def idle(self) -> bool:
        """Whether nothing has passed for a minute."""
        self._forget(self._monotonic() * _SLOTS_PER_S)
        return not self._passed

    def take(self, count: int, most: int) -> int:
        """Let so many pass; return 0, or, where they would be too many, after how many seconds to ask again.

        Args:
            count: how many.
            most: that may pass in any minute. More than that never pass.
        """
        now = self._monotonic() * _SLOTS_PER_S
        self._forget(now)
        if self._count + count <= most:
            slot = math.ceil(now)
            before = self._passed.pop()[1] if self._passed and self._passed[-1][0] == slot else 0
            self._passed.append((slot, before + count))
            self._count += count
            return 0
        left, until = self._count, math.ceil(now)
        for slot, passed in self._passed:
            if left + count <= most:
                break
            left, until = left - passed, slot
        return int((until + self._window - now) / _SLOTS_PER_S) + 1

    def _forget(self, now: float) -> None:
        while self._passed and self._passed[0][0] + self._window <= now:
            self._count -= self._passed.popleft()[1]


class Rates:
    """Minutes that several sessions share, each under a name; those that are idle are forgotten."""

    def __init__(self) -> None:
        """Begin with none."""
        self._minutes: dict[Hashable, Minute] = {}
        self._lock = Lock()

    def take(self, name: Hashable, count: int, most: int, monotonic: Callable[[], float]) -> int:
        """Let so many pass under a name, see `Minute.take`. Safe to call from several threads."""
        with self._lock:
            key = (name, monotonic)  # times of two clocks do not compare
            minute = self._minutes.get(key)
            if minute is None:
                self._minutes = {known: each for known, each in self._minutes.items() if not each.idle}
                minute = self._minutes[key] = Minute(monotonic)
            return minute.take(count, most)
