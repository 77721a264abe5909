"""tests/transcripts/node*.txt: what a department types and sees. Lines after `$` are run and compared.

Digests, fingerprints, ids, times, sizes of journals and the job type's own statements are shown as `…`;
standard error comes after standard output; an exit code other than 0 stands in brackets.
"""

import asyncio
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import pytest
from simulator import World, answered, approve_all, new_signer, over, person, running, until

from node.state import RunState
from protocols.ids import JobId

ROOT = Path(__file__).parents[2]
TRANSCRIPTS = sorted((ROOT / "tests" / "transcripts").glob("node*.txt"))


def masked(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "…").replace(tempfile.gettempdir() + " ", "/tmp ")
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:…", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "…", text)
    text = re.sub(r"(?:[0-9a-f]{4} ){15}[0-9a-f]{4}", "…", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "…", text)
    text = re.sub(r"\d+ of \d+ entries, by \d of", "… of … entries, by … of", text)
    text = re.sub(r"[0-9.]+ GiB", "… GiB", text)
    text = re.sub(r"cannot be reached \([^)]*\)", "cannot be reached (…)", text)
    # What the job type and the policy page say is tested where it is written.
    heads = "Who would learn what|What they could compute|谁会得知什么|只有违规串通"
    return re.sub(rf"(  (?:{heads})[^\n]*:\n)(?:    .*\n)+", r"\1    …\n", text)


def run(command: str, capfd: pytest.CaptureFixture[str], folder: Path) -> str:
    from node.cli import main as node
    from policies.cli import main as policies

    words = shlex.split(command)
    main = {"minshu-node": node, "minshu-policy": policies}[words[0]]
    try:
        code = main(words[1:])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    output = "".join(capfd.readouterr())
    return masked(output, folder) + (f"[{code}]\n" if code else "")


def prepared(world: World, folder: Path) -> tuple[JobId, JobId]:
    """Leave a waiting job at the health department and a finished one at the police; write what is typed."""

    async def play() -> tuple[JobId, JobId]:
        async with running(world) as (post, stations):
            done = post.submit(world.spec())
            await approve_all(post, stations, done)
            await over(post, done)
            await until(lambda: stations["police"].run(done) is RunState.DONE)
            waiting = post.submit(world.spec())
            await answered(post, waiting)
            journal = stations["health"].state.journal
            await until(lambda: journal.cosigned_size == journal.size)
            return waiting, done

    jobs = asyncio.run(play())
    for role, signer in (("dpo", world.staff["health"].dpo), ("owner", world.staff["health"].owner)):
        _write_key(folder / f"{role}.pem", signer.private_key.private_bytes_raw())
    rows = "".join(f"{person(n)},S{n % 3},2026-0{1 + n % 9}\n" for n in range(1234))
    (folder / "patients.csv").write_text("id,street,seen\n" + rows, encoding="utf-8")
    (folder / "gbk.csv").write_bytes("id,姓名\n".encode("gb18030"))
    (folder / "stop.dsse").write_bytes(world.stop("health", "purpose=P-1"))
    (folder / "stranger.dsse").write_bytes(world.stop("health", "all", signer=new_signer()))
    for name in ("health", "police"):
        shutil.copytree(world.homes[name].path, folder / name)
    (folder / "empty.dsse").write_bytes(b"{}")
    return jobs


def _write_key(path: Path, raw: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.from_private_bytes(raw)
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_name(path.name + ".pub").write_bytes(public)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_transcript_is_what_happens(
    path: Path,
    world: World,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    waiting, done = prepared(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("node.page._now", world.clock)
    capfd.readouterr()
    written = path.read_text("utf-8")
    seen = ""
    for line in written.splitlines():
        if line.startswith("# "):
            seen += ("\n" if seen else "") + line + "\n"
        if line.startswith("$ "):
            typed = line[2:].replace("JOB", waiting).replace("DONE", done)
            seen += line + "\n" + run(typed, capfd, folder)
    assert seen == written


def test_there_are_transcripts() -> None:
    assert TRANSCRIPTS
