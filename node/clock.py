"""Whether this node's clock can be believed.

Policies, approvals and budgets have dates, so a wrong clock could open what is closed. Nobody's time is taken
over: the coordinator says its own at every welcome, and a node whose clock differs refuses. So does a node
whose wall clock has jumped beside its monotonic one, until a welcome agrees again. By what it says the
coordinator can make a node refuse, never make it allow: a time that agrees only leaves the node with its own
clock, and with what its journal says of it.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from node.home import write_durably
from protocols.encoding import canonical_json, decode_json
from protocols.errors import DecodeError
from protocols.succession import CLOCK_TOLERANCE
from protocols.wire import Fields, utc_text

CLOCK_FILE: Final = "clock.json"
"""Beside `node.toml`: what was heard last, for `minshu-node doctor`."""

ASK_AGAIN_S: Final = 300.0

_SCHEMA: Final = "minshu-node-clock/1"
_MAX_DRIFT: Final = 500e-6
"""How far two clocks of one machine may run apart, in seconds per second: Linux's bound for slewing one."""

_MAX_STEPS: Final = 16
_MAX_BEHIND_S: Final = 10_000 * 366 * 86_400


class Clock:
    """This machine's wall clock, looked at beside its monotonic clock and the coordinator's time.

    A monotonic clock that stands still while the machine sleeps makes waking up a jump: the next welcome
    settles it. Sessions ask for the time in their parties' threads, so both clocks are read under a lock.
    """

    def __init__(
        self, now: Callable[[], datetime], monotonic: Callable[[], float], kept: Path | None = None
    ) -> None:
        """Begin with nothing heard.

        Args:
            now: the wall clock.
            monotonic: seconds that never go back.
            kept: where to keep what was heard, None for nowhere.
        """
        self._now = now
        self._monotonic = monotonic
        self._kept = kept
        self._lock = threading.RLock()
        self._last = self._base = _Reading(now(), monotonic())
        self._ahead: timedelta | None = None
        self._jumped = False
        self._steps: deque[timedelta] = deque(maxlen=_MAX_STEPS)
        self._asked = self._base.ticks

    def now(self) -> datetime:
        """Return the wall clock's time, right or wrong: for log lines, not for decisions."""
        return self._now()

    def trusted(self) -> datetime | None:
        """Return the time that dates may be judged by, None while it is in doubt.

        (1) At the last welcome it was within CLOCK_TOLERANCE of the coordinator's; before the first, nothing
        speaks against it. (2) It has not jumped since.
        """
        with self._lock:
            wall = self._look()
            disagrees = self._ahead is not None and abs(self._ahead) > CLOCK_TOLERANCE
            return None if disagrees or self._jumped else wall

    def heard(self, coordinator: datetime) -> None:
        """Compare with the coordinator's time, just received."""
        with self._lock:
            wall = self._look()
            ahead = self._ahead = wall - coordinator
            if abs(ahead) <= CLOCK_TOLERANCE:
                self._jumped = False
            self._base = self._last
            self._asked = self._base.ticks
        if self._kept is not None:
            # The doctor's convenience: a full disk must not cost the link.
            with suppress(OSError):
                write_durably(self._kept, Heard(wall, -ahead).encode())

    def step(self) -> timedelta | None:
        """Return a jump of the wall clock not returned before, None for none; negative where it went back.

        A jump is more than CLOCK_TOLERANCE since the last look, or in many steps since the last welcome;
        what two clocks of one machine drift apart is none.
        """
        with self._lock:
            self._look()
            return self._steps.popleft() if self._steps else None

    def asks_again(self) -> bool:
        """Tell whether a new welcome is wanted: after a jump at once, in doubt every ASK_AGAIN_S."""
        if self.trusted() is not None or self._monotonic() < self._asked + ASK_AGAIN_S:
            return False
        self._asked = self._monotonic()
        return True

    def _look(self) -> datetime:
        seen = _Reading(self._now(), self._monotonic())
        step, crept = seen.moved(self._last), seen.moved(self._base)
        drift = timedelta(seconds=(seen.ticks - self._base.ticks) * _MAX_DRIFT)
        self._last = seen
        # Steps too small to be one jump each add up: what drift does not explain is one as well.
        if abs(step) > CLOCK_TOLERANCE or abs(crept) > CLOCK_TOLERANCE + drift:
            self._jumped = True
            self._steps.append(step if abs(step) > CLOCK_TOLERANCE else crept)
            self._base = seen
            self._asked = seen.ticks - ASK_AGAIN_S
        return seen.wall


@dataclass(frozen=True, slots=True)
class _Reading:
    """Both clocks at one moment."""

    wall: datetime
    ticks: float

    def moved(self, since: "_Reading") -> timedelta:
        """Return how far the wall clock has moved beside the monotonic one."""
        return self.wall - since.wall - timedelta(seconds=self.ticks - since.ticks)


@dataclass(frozen=True, slots=True)
class Heard:
    """When the coordinator's time was heard last, by this node's clock, and how far behind that clock was."""

    at: datetime
    behind: timedelta

    def encode(self) -> bytes:
        """Return the file's bytes."""
        seconds = round(self.behind.total_seconds())
        plain = {"schema": _SCHEMA, "at": utc_text(self.at), "behind_s": seconds}
        return canonical_json(plain)

    @classmethod
    def read(cls, home: Path) -> "Heard | None":
        """Return what the node in this folder heard last, None for nothing, or nothing legible."""
        try:
            f = Fields(decode_json((home / CLOCK_FILE).read_bytes()), "clock")
            f.schema(_SCHEMA)
            behind = f.count("behind_s", minimum=-_MAX_BEHIND_S, maximum=_MAX_BEHIND_S)
            heard = cls(f.time("at"), timedelta(seconds=behind))
            f.finish()
        except (OSError, DecodeError):
            return None
        return heard
