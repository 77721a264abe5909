"""What a journal costs: to append, to prove, to verify and to keep.

The entries are a node's, job by job: offered, approved, accepted, reserved, admitted, charged, committed,
released; digests are fresh, names are few. `append batched` has 64 threads that each wait for their entry's
checkpoint to be durable; `append synced` has one. Beside them, on the same file system and in turns, stands
the bare rate of appending 512 bytes and flushing them. `verify 1e6` verifies all from the folder, every
eighth entry naming a signed document; `verify rss 1e6` is the peak of all its processes together. `proof` is
one consistency or inclusion proof, the median of many at random sizes; `open 1e6` a start of the node;
`disk 1e6` its database and tiles, a busy node's year.
"""

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.entries import PolicyRef
from audit.log import Journal
from audit.note import ED25519, VerifierKey
from audit.replay import ObjectCheck
from audit.verify import verify_directory
from bench.rig.turns import take_turns
from bench.rows import ROOT, Results, Row
from protocols.encoding import sha256_digest
from protocols.envelope import ADMISSION, KeySigner, sign

ORIGIN: Final = "human-resources.gz.example/node-a/journal/1"
THREADS: Final = 64
TURNS: Final = 5
TURN_S: Final = 2.0
FLUSHED_BYTES: Final = 512
YEAR: Final = 1_000_000
PROOFS: Final = 400
_PER_TRANSACTION: Final = 4_096


def measure(results: Results, *, long: bool) -> None:
    """Measure appending for a few seconds each; then fill a year, and measure the rest on it."""
    with tempfile.TemporaryDirectory(prefix="minshu-bench-") as folder:
        turns = TURNS * 3 if long else TURNS
        for what, threads in (("append batched", THREADS), ("append synced", 1)):
            if results.has(what):
                continue
            place = Place(Path(folder) / what.replace(" ", "-"))
            with place.open() as journal:
                value, peer = take_turns(
                    partial(appended, journal, threads), partial(flushed, place.home), turns
                )
            place.require_whole(objects=False)
            results.add(Row(what, value, "entries/s", "flushed appends/s", peer))
        if not results.has("verify 1e6"):
            measure_year(results, Path(folder) / "year")


def measure_year(results: Results, home: Path) -> None:
    """Fill a journal with a year of entries, and measure what is left to measure on it."""
    place = Place(home)
    with place.open() as journal:
        place.fill(journal, YEAR)
        results.add(Row("proof", proof_ms(journal), "ms"))
    results.add(Row("disk 1e6", place.disk_mb(), "MB"))
    started = time.perf_counter()
    place.open().close()
    results.add(Row("open 1e6", time.perf_counter() - started, "s"))
    # In a process of its own, so that its memory is not that of what filled the journal.
    command = [sys.executable, "-c", "from bench.journal import verify_alone; verify_alone()", str(home)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, megabytes = json.loads(done.stdout)
    results.add(Row("verify 1e6", seconds, "s"))
    results.add(Row("verify rss 1e6", megabytes, "MB"))


def verify_alone() -> None:
    """Verify the journal named on the command line; print seconds, and peak MB of all processes."""
    place = Place(Path(sys.argv[1]))
    started = time.perf_counter()
    place.require_whole(objects=True)
    seconds = time.perf_counter() - started
    own, others = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps([seconds, (own + len(os.sched_getaffinity(0)) * others) * 1024 / 1e6]))


@dataclass(slots=True)
class Place:
    """Where a journal lies, and the one key that signs everything in it."""

    home: Path
    key: KeySigner = field(default_factory=lambda: KeySigner(Ed25519PrivateKey.from_private_bytes(bytes(32))))

    def open(self) -> Journal:
        """Open the journal."""
        return Journal.open(
            self.home / "journal",
            database=self.home / "node.sqlite",
            origin=ORIGIN,
            signer=self.key.sign,
            public_key=self.key.public_key,
            now=partial(datetime.now, UTC),
        )

    def fill(self, journal: Journal, entries: int) -> None:
        """Append until there are so many; every eighth names a signed admission, which is stored."""
        drawn = random.Random(1)
        said = statements(drawn)
        while journal.size < entries:
            with journal.transaction() as connection:
                for _ in range(min(_PER_TRANSACTION, entries - journal.size)):
                    statement = next(said)
                    if statement["kind"] == "job.accepted":
                        statement["body"]["envelope_sha256"] = self._store(drawn.randbytes(24))
                    journal.append(connection, **statement)

    def _store(self, content: bytes) -> str:
        """Put an admission among the objects; what `put_object` does, but for the flushes."""
        payload = b'{"inputs":"%s","leakage":"%s"}' % (content.hex().encode(), b"count," * 100)
        envelope = sign(ADMISSION, payload, [self.key]).encode()
        digest = sha256_digest(envelope)
        path = self.home / "journal" / "objects" / "sha256" / digest[7:9] / digest[7:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(envelope)
        return digest

    def require_whole(self, *, objects: bool) -> None:
        """Verify the journal.

        Raises:
            SystemExit: it is not whole, so that no figure about it counts.
        """
        verdict = verify_directory(
            self.home / "journal",
            [VerifierKey(ORIGIN, ED25519, self.key.public_key)],
            objects=ObjectCheck({ADMISSION: [self.key.public_key]}) if objects else None,
        )
        if not verdict.ok or verdict.objects_missing:
            raise SystemExit(f"{verdict.problem_count} problems, {verdict.objects_missing} objects missing")

    def disk_mb(self) -> float:
        """Return what database and tiles take on disk, objects left out."""
        paths = [*self.home.glob("node.sqlite*"), *(self.home / "journal" / "tile").rglob("*")]
        return sum(path.stat().st_blocks * 512 for path in paths) / 1e6


def appended(journal: Journal, threads: int) -> float:
    """Return entries per second that `threads` threads record, each waiting for its own."""
    started = time.perf_counter()

    def record(thread: int) -> int:
        said = statements(random.Random(thread))
        done = 0
        while time.perf_counter() < started + TURN_S:
            journal.record(**next(said))
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(record, range(threads)))
    return done / (time.perf_counter() - started)


def flushed(folder: Path) -> float:
    """Return appends of `FLUSHED_BYTES` per second, each flushed."""
    path = folder / "flushed"
    with path.open("ab", buffering=0) as file:
        started = time.perf_counter()
        done = 0
        while time.perf_counter() < started + TURN_S / 2:
            file.write(bytes(FLUSHED_BYTES))
            os.fsync(file.fileno())
            done += 1
        rate = done / (time.perf_counter() - started)
    path.unlink()
    return rate


def proof_ms(journal: Journal) -> float:
    """Return the median time of one proof, of both kinds, at random places of the whole tree."""
    drawn = random.Random(2)
    times = []
    for _ in range(PROOFS // 2):
        for prove in (journal.inclusion_proof, journal.consistency_proof):
            at = drawn.randrange(1, journal.size)
            started = time.perf_counter()
            prove(at, journal.size)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def statements(drawn: random.Random) -> Iterator[dict[str, Any]]:
    """Yield what a node says of one job after another, endlessly; eight entries to a job."""

    def digest() -> str:
        return f"sha256:{drawn.randbytes(32).hex()}"

    policy, roster = digest(), digest()
    started = datetime(2026, 12, 1, tzinfo=UTC)
    for number in count():
        job, admission, output, release = digest(), digest(), digest(), drawn.randbytes(16).hex()
        decided = (started + timedelta(seconds=number)).isoformat(timespec="milliseconds")
        asked = {
            "requester": f"statistics.gz.example/analyst-{number % 7}",
            "job_type": "crosscheck/1",
            "purpose": f"benefit-review-{number % 12}",
        }
        role, budget = {"role": "source-1"}, {"budget": "residents", "cost": "0.50", "period": "2026-12"}
        said: tuple[tuple[str, dict[str, Any]], ...] = (
            (
                "job.received",
                asked
                | role
                | {
                    "legal_basis": "social-insurance-act-82",
                    "roster_sha256": roster,
                    "recipients": ["statistics.gz.example/node-a"],
                    "datasets": ["benefits"],
                    "columns": ["amount", "paid_until", "resident"],
                },
            ),
            ("approval.recorded", {"approver": digest(), "approval_sha256": digest(), "role": "dpo"}),
            (
                "job.accepted",
                asked
                | role
                | {
                    "admission_sha256": admission,
                    "envelope_sha256": digest(),
                    "decided": decided.replace("+00:00", "Z"),
                    "rows": 48_210,
                },
            ),
            ("budget.reserved", budget | {"spent": "3.50", "limit": "10"}),
            (
                "job.admitted",
                asked | role | {"admission_sha256": admission, "commitment": digest(), "rows": 48_210},
            ),
            ("budget.charged", budget | {"spent": "4.00", "limit": "10"}),
            (
                "output.commit",
                {"release": release, "class": "B", "sha256": output, "rows": 917, "content_sha256": digest()},
            ),
            ("output.released", {"release": release, "sha256": output, "class": "B", "rows": 917}),
        )
        for kind, body in said:
            yield {
                "kind": kind,
                "body": body,
                "job": job,
                "attempt": 1,
                "policy": PolicyRef(7, policy, f"R{number % 9}"),
                "actor": "human-resources.gz.example/node-a",
            }
