"""An auditor's desk, for the tests of the guide: bundles of a job that really ran, and keys to hold them to.

`PYTHONPATH=.:tests python tests/docs/desk.py FOLDER` leaves such a desk to look at.
"""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import simulator
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from simulator import DEPARTMENTS, RunState, World, approve_all, over, running, until

from audit.cli import main as audit
from protocols.encoding import canonical_json
from protocols.envelope import KeySigner

TSA = """
[tsa]
default_tsa = stamps
[stamps]
serial = serial
signer_cert = tsa.crt
certs = tsa-root.pem
signer_key = tsa.key
signer_digest = sha256
default_policy = 1.3.6.1.4.1.99999.1
digests = sha256
ess_cert_id_alg = sha256
"""


def _public(path: Path, signer: KeySigner) -> None:
    key = signer.private_key.public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def run_a_job(folder: Path) -> World:
    """Found a collaboration, let it answer one question a few days ago, and stop it."""
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
    text, clock = simulator.policy_text, simulator.Clock

    def valid_now(*named: Any, **changes: Any) -> str:
        times = {"not_before": begin - timedelta(days=1), "expires": begin + timedelta(days=60)}
        written = text(*named, **{name: at.isoformat() for name, at in times.items()} | changes)
        return written.replace("2027-01-31", f"{begin + timedelta(days=50):%Y-%m-%d}")

    async def play(world: World) -> None:
        async with running(world) as (post, stations):
            job = post.submit(world.spec())
            await approve_all(post, stations, job)
            task = await over(post, job)
            assert {ended.state for ended in task.ended.values()} == {"DONE"}
            await until(lambda: stations["police"].run(job) is RunState.DONE)
            # Receipts are handed round, and cosigned, after the last release has left.
            await until(lambda: all(len(stations[name].entries("peer.receipt")) == 2 for name in OTHERS))
            await until(lambda: all(is_cosigned(station) for station in stations.values()))

    with (
        mock.patch.object(simulator, "START", begin),
        mock.patch.object(simulator, "Clock", lambda at=begin: clock(at)),
        mock.patch.object(simulator, "policy_text", valid_now),
    ):
        world = World(folder)
        asyncio.run(play(world))
    return world


OTHERS = [name for name in DEPARTMENTS if name != "police"]


def is_cosigned(station: Any) -> bool:
    """Tell whether a quorum has seen all of a node's journal."""
    folder = station.home.journal
    sizes = [folder / name for name in ("checkpoint", "checkpoint.cosigned")]
    return (
        all(path.is_file() for path in sizes)
        and len({path.read_bytes().split(b"\n")[1] for path in sizes}) == 1
    )


def lay(desk: Path, town: Path) -> None:
    """Put on the desk what an auditor has before the first command of the guide."""
    world = run_a_job(town)
    desk.mkdir()
    for name, home in world.homes.items():
        assert audit(["bundle", str(home.journal), "--out", str(desk / f"{name}.zip")]) == 0
    roots = sorted(root.public_key.hex() for root in world.roots)
    document = {"schema": "minshu-roots/1", "collaboration": "gz.example", "threshold": 2, "keys": roots}
    (desk / "roots.json").write_bytes(canonical_json(document))
    (desk / "officers").mkdir()
    for name, staff in world.staff.items():
        _public(desk / "officers" / f"{name}-dpo.pub", staff.dpo)
        _public(desk / "officers" / f"{name}-owner.pub", staff.owner)
    _public(desk / "analyst.pub", world.analyst)
    (vkey,) = (node.journal_vkey for node in world.roster.nodes if node.name.startswith("health."))
    (desk / "health.vkey").write_text(f"{vkey}\n")


def found_authority(folder: Path) -> None:
    """Make a time-stamping authority: a root, and a certificate that is for time stamps alone."""
    (folder / "tsa.cnf").write_text(TSA)
    (folder / "serial").write_text("01\n")
    (folder / "ext").write_text("extendedKeyUsage=critical,timeStamping\n")
    new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    extended = "-set_serial 7 -extfile ext -out tsa.crt"
    for command in (
        f"req -x509 {new} -keyout root.key -out tsa-root.pem -subj /CN=Root -days 30",
        f"req {new} -keyout tsa.key -out tsa.csr -subj /CN=Stamps",
        f"x509 -req -in tsa.csr -CA tsa-root.pem -CAkey root.key -days 30 {extended}",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True, timeout=60)


def stamp(folder: Path, query: Path, reply: Path) -> None:
    """Answer a request."""
    command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", str(query), "-out", str(reply)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    lay(out / "desk", out / "town")
