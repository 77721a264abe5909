"""Our commands in a hurry: `python short_lived.py PARENT LIFE minshu-node run …`, or `minshu-coordinator …`.

The coordinator's leaves live for LIFE seconds; at enrolment they live longer, until everything is set up. A
node is as ever, but takes its time over every message it sends, so that a small job outlives its leaves.
"""

import sys
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

from coordinator import authority, service
from coordinator.home import Home
from demo.child import main
from node.record import Recorder

AT_ENROLMENT = 2.5
"""Times LIFE; a node that was just enrolled renews after a third of that."""

MESSAGE_S = 0.9


def shorten(life: timedelta) -> None:
    """Have this process issue leaves of that life."""
    issued, enrol = Home.authority, service.EnrolmentService.__init__

    def longer(self: Any, registry: Any, ca: Any, *rest: Any) -> None:
        enrol(self, registry, replace(ca, leaf_life=AT_ENROLMENT * life), *rest)

    Home.authority = lambda home: replace(issued(home), leaf_life=life)
    service.EnrolmentService.__init__ = longer
    authority.RENEWALS_AN_HOUR = 1_000_000


def slow_down() -> None:
    """Have this process wait before every message of a protocol."""
    body = Recorder.body

    def slowly(self: Recorder, *message: Any) -> None:
        time.sleep(MESSAGE_S)
        body(self, *message)

    Recorder.body = slowly


if __name__ == "__main__":
    parent, seconds, *command = sys.argv[1:]
    shorten(timedelta(seconds=float(seconds)))
    slow_down()
    sys.exit(main([parent, *command]))
