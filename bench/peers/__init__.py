"""Other libraries' set intersection on the same lists: SecretFlow's spu and openmined-psi, two processes.

They have an environment of their own, see `environment`. Half of each list is in common; the lists are CSV
files, and so is the result. Their clock runs from when both processes have imported their libraries and are
connected, as our nodes are before a job begins. CPU is that of both processes, memory the peak of the larger
one, wire what both send: openmined-psi's three messages; spu's connections, counted by a relay before their
ports in a run of its own.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from bench.peers.pair import ECDH, KKRT, OPENMINED, RR22, Peer, Used, play
from bench.rig.lists import write_lists
from bench.rows import Results, Row

TURNS: Final = 3

SHORT: Final = (
    (RR22, "1e5", TURNS),
    (KKRT, "1e5", 1),
    (ECDH, "1e5", 1),
    (OPENMINED, "1e5", TURNS),
    (RR22, "1e6", TURNS),
)
LONG: Final = ((RR22, "1e7", TURNS), (OPENMINED, "1e6", 1))
"""Who, at what size, how often."""


def measure(results: Results, *, long: bool) -> None:
    """Measure every peer alone; `match` has them beside ours."""
    for peer, size, turns in LONG if long else SHORT:
        if results.has(f"{peer.name} {size} wire"):
            continue
        with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
            lists = write_lists(Path(folder), int(float(size)))
            runs = [play(peer, lists) for _ in range(turns)]
            wire_mb = runs[0].wire_mb or play(peer, lists, count_wire=True).wire_mb
        figures = {
            "wall": (median(run.wall_s for run in runs), "s"),
            "connecting": (median(run.link_s for run in runs), "s"),
            "cpu": (median(run.cpu_s for run in runs), "s"),
            "rss": (median(run.rss_mb for run in runs), "MB"),
            "wire": (wire_mb, "MB"),
        }
        for what, (value, unit) in figures.items():
            results.add(Row(f"{peer.name} {size} {what}", value, unit))


__all__ = ["ECDH", "KKRT", "OPENMINED", "RR22", "Peer", "Used", "measure", "play"]
