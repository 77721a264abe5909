"""Journals as nodes write them after a job: reviewed from the root keys on, and held against each other."""

import asyncio
import random
import shutil
from pathlib import Path

import pytest
from simulator import World, approve_all, over, running, until

from audit.bundle import export, open_bundle, open_bundles
from audit.cross import Crossed, Side, cross
from audit.findings import Answer
from audit.review import Review, review
from audit.trust import Trust
from protocols.envelope import key_id
from protocols.roots import Roots

SAMPLE = 40


class Audit:
    """Everybody's bundles after one job, and what an auditor brings."""

    def __init__(self, folder: Path) -> None:
        world = World(folder / "world")

        async def play() -> None:
            async with running(world) as (post, stations):
                job = post.submit(world.spec())
                await approve_all(post, stations, job)
                await over(post, job)
                for station in stations.values():
                    journal = station.state.journal
                    await until(lambda journal=journal: journal.cosigned_size == journal.size)

        asyncio.run(play())
        self.now = world.clock()
        self.paths: list[Path] = []
        for name, home in world.homes.items():
            self.paths.append(folder / f"{name}.zip")
            export(home.journal, self.paths[-1])
        export(world.homes["police"].journal, folder / "police")
        self.folder = folder / "police"
        signers = [signer for staff in world.staff.values() for signer in (staff.dpo, staff.owner)]
        self.trust = Trust(
            roots=Roots.of(world.roster.collaboration, 2, [root.public_key for root in world.roots]),
            officers=frozenset(key_id(signer.public_key) for signer in signers),
        )

    def reviewed(self, path: Path, side: Side | None = None) -> Review:
        with open_bundle(path) as bundle:
            return review(bundle, self.trust, now=self.now, also=side.visit if side else None)

    def crossed(self, paths: list[Path]) -> tuple[Crossed, list[Review]]:
        reviews, sides = [], []
        for bundle in open_bundles(paths):
            side = Side(bundle, self.trust)
            reviews.append(review(bundle, self.trust, now=self.now, also=side.visit))
            sides.append(side.take(reviews[-1]))
        found = cross(sides)
        found.tell(reviews)
        return found, reviews


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return Audit(tmp_path_factory.mktemp("audit"))


def test_honest_nodes_hold_on_every_question_that_can_be_asked(audit):
    found, reviews = audit.crossed(audit.paths)
    for each in reviews:
        assert each.ok, [(f.code, f.where, f.what) for check in each.checks for f in check.findings]
        assert not each.notices
        # A receipt that came last may not have had its quorum yet.
        assert any(head.satisfied for head in each.heads)
        answers = {check.question: check.answer for check in each.checks}
        for question in (
            "signed",
            "witnessed",
            "keys",
            "separation",
            "executed",
            "basis",
            "clauses",
            "columns",
        ):
            assert answers[question] is Answer.HOLDS, (each.label, question)
    assert found.ok
    assert not found.notices
    assert {check.answer for check in found.checks.values()} == {Answer.HOLDS}
    police = next(each for each in reviews if each.label == "police.zip")
    assert {release.output_class for release in police.facts.releases.values()} >= {"B"}
    (job,) = police.facts.jobs.values()
    assert job.steps[0].kind == "job.received"


def test_no_bundle_holds_a_release_or_anything_of_a_node_but_its_journal(audit, tmp_path):
    for path in audit.paths:
        with open_bundle(path) as bundle:
            names = {found.name.partition("/")[0] for found in bundle.files()}
            assert names == {
                "checkpoint",
                "checkpoint.cosigned",
                "checkpoint.old",
                "objects",
                "tile",
                "witnessed",
            }
            review(bundle, audit.trust)
            for release in audit.reviewed(path).facts.releases.values():
                assert bundle.read_object(release.sha256) is None


def test_a_byte_changed_anywhere_in_a_nodes_bundle_is_found_out(audit, tmp_path):
    folder = tmp_path / "police"
    shutil.copytree(audit.folder, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    draw = random.Random(7)
    places = [(path, draw.randrange(path.stat().st_size)) for path in files]
    places += [(path, draw.randrange(path.stat().st_size)) for path in draw.choices(files, k=SAMPLE)]
    for path, at in places:
        data = path.read_bytes()
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        found = audit.reviewed(folder)
        path.write_bytes(data)
        name = path.relative_to(folder).as_posix()
        assert not found.ok, f"byte {at} of {name}"
        said = [(f.where, f.what) for check in found.checks for f in check.findings]
        named = any(name in where or name in what for where, what in said)
        assert named or (name.startswith("tile/entries/") and any(w.startswith("entry ") for w, _ in said))
    assert audit.reviewed(folder).ok


def test_an_object_that_is_gone_is_missed(audit, tmp_path):
    folder = tmp_path / "police"
    shutil.copytree(audit.folder, folder)
    for path in sorted(folder.glob("objects/sha256/*/*")):
        data = path.read_bytes()
        path.unlink()
        found = audit.reviewed(folder)
        path.write_bytes(data)
        # A policy's text stands in its envelope, too.
        assert found.ok == data.startswith(b"schema = "), path.name


def test_a_node_whose_bundle_is_left_out_is_asked_for(audit):
    found, _ = audit.crossed(audit.paths[:-1])
    assert found.ok
    assert found.checks["admissions"].answer is Answer.NOT_CHECKABLE
    assert any(what.startswith("the bundle of ") for what in found.checks["admissions"].missing)
