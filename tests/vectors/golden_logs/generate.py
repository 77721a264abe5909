"""Makes the golden logs beside it: hashlib, json and three signature keys, and nothing of Minshu's own code.

Run as `python tests/vectors/golden_logs/generate.py FOLDER`. README.md states the rule in words. ML-DSA-44
signatures differ at every run; all else comes out byte for byte.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

WHOLE = (0, 1, 255, 256, 257)
BY_DIGEST = (65_536, 70_000)

ORIGIN = "golden.example/node-a/journal/1"
WITNESS = "witness.example/node-b/witness/1"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
OBJECTS = [f"minshu golden reference {number}" for number in range(3)]
COSIGNED_AT = int((BEGIN + timedelta(days=1)).timestamp())


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


LOG_KEY = Ed25519PrivateKey.from_private_bytes(sha256(b"minshu golden log"))
WITNESS_KEY = Ed25519PrivateKey.from_private_bytes(sha256(b"minshu golden witness"))
WITNESS_KEY_44 = MLDSA44PrivateKey.from_seed_bytes(sha256(b"minshu golden witness ML-DSA-44"))


# ---------------------------------------------------------------- entries


def digest(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hex()


@cache
def entry(seq: int) -> bytes:
    """Entry `seq`. Its keys are ASCII and its numbers integers: then this is what RFC 8785 asks for."""
    document = {
        "v": 5, "log": ORIGIN, "seq": seq, "time": time_of(seq), "kind": "log.open", "job": "", "attempt": 0,
        "policy": None, "actor": "", "body": {"vkey": vkey(ORIGIN, 1, LOG_KEY)}, "refs": [],
    }  # fmt: skip
    if seq:
        document |= said(seq)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def time_of(seq: int) -> str:
    return (BEGIN + timedelta(milliseconds=997 * seq)).isoformat(timespec="milliseconds")[:23] + "Z"


def said(seq: int) -> dict[str, object]:
    """What entry `seq` > 0 says, by `seq` mod 4."""
    job = digest(f"minshu golden job {seq // 4}")
    policy = {"version": 1 + seq // 1000, "sha256": digest(f"minshu golden policy {seq // 1000}"), "rule": ""}
    if seq % 4 == 1:
        body = {"requester": "bureau", "job_type": "crosscheck/1", "purpose": "疑似漏登核查"}
        return {
            "kind": "job.received",
            "job": job,
            "actor": "analyst-a",
            "body": body,
            "refs": [digest(OBJECTS[0])],
        }
    if seq % 4 == 2:
        body = {"code": "no-rule", "line": seq % 100}
        policy["rule"] = f"R{seq % 7}"
        return {"kind": "job.refused", "job": job, "attempt": seq % 3, "policy": policy, "body": body}
    if seq % 4 == 3:
        body = {"dataset": "公安/常住人口", "columns": ["resident_id", "街道"], "rows": 7 * seq}
        return {"kind": "dataset.registered", "actor": "golden.example", "body": body}
    body = {"code": "approval-needed", "approvals": 0, "needed": 2, "cost": "0.50"}
    refs = [digest(OBJECTS[(seq + number) % 3]) for number in range(3)]
    return {"kind": "job.explained", "job": job, "policy": policy, "body": body, "refs": refs}


# ---------------------------------------------------------------- tree: RFC 6962, section 2.1


def tree(leaves: Sequence[bytes]) -> bytes:
    """MTH of leaf hashes."""
    if not leaves:
        return sha256(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\x01" + tree(leaves[:k]) + tree(leaves[k:]))


def leaf(data: bytes) -> bytes:
    return sha256(b"\x00" + data)


def tiles(entries: Sequence[bytes]) -> dict[str, bytes]:
    """Every tile and entry bundle of the log, by its path. C2SP tlog-tiles."""
    files = {}
    for n in range(0, len(entries), 256):
        bundle = entries[n : n + 256]
        files[path("entries", n // 256, len(bundle))] = b"".join(
            len(each).to_bytes(2, "big") + each for each in bundle
        )
    level, hashes = 0, [leaf(each) for each in entries]
    while hashes:
        for n in range(0, len(hashes), 256):
            tile = hashes[n : n + 256]
            files[path(str(level), n // 256, len(tile))] = b"".join(tile)
        whole = len(hashes) // 256 * 256
        level, hashes = level + 1, [tree(hashes[n : n + 256]) for n in range(0, whole, 256)]
    return files


def path(level: str, number: int, width: int) -> str:
    groups = [f"{number % 1000:03}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03}")
    return f"tile/{level}/{'/'.join(groups)}" + ("" if width == 256 else f".p/{width}")


# ---------------------------------------------------------------- notes: C2SP signed-note, tlog-cosignature


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def key_id(name: str, kind: int, key: Ed25519PrivateKey | MLDSA44PrivateKey) -> bytes:
    return sha256(name.encode() + b"\n" + bytes([kind]) + key.public_key().public_bytes_raw())[:4]


def vkey(name: str, kind: int, key: Ed25519PrivateKey | MLDSA44PrivateKey) -> str:
    public = bytes([kind]) + key.public_key().public_bytes_raw()
    return f"{name}+{key_id(name, kind, key).hex()}+{b64(public)}"


def checkpoint(size: int, root: bytes) -> str:
    return f"{ORIGIN}\n{size}\n{b64(root)}\n"


def signed(size: int, root: bytes) -> str:
    """The checkpoint with the log's own signature, type 1: over the text as it stands."""
    text = checkpoint(size, root)
    signature = key_id(ORIGIN, 1, LOG_KEY) + LOG_KEY.sign(text.encode())
    return f"{text}\n— {ORIGIN} {b64(signature)}\n"


def cosigned(size: int, root: bytes) -> str:
    """The same with a witness's two lines, types 4 and 6."""
    time = COSIGNED_AT.to_bytes(8, "big")
    message = f"cosignature/v1\ntime {COSIGNED_AT}\n{checkpoint(size, root)}".encode()
    by_4 = key_id(WITNESS, 4, WITNESS_KEY) + time + WITNESS_KEY.sign(message)
    names = [bytes([len(name)]) + name for name in (WITNESS.encode(), ORIGIN.encode())]
    subtree = b"subtree/v1\n\0" + names[0] + time + names[1] + bytes(8) + size.to_bytes(8, "big") + root
    by_6 = key_id(WITNESS, 6, WITNESS_KEY_44) + time + WITNESS_KEY_44.sign(subtree)
    return signed(size, root) + f"— {WITNESS} {b64(by_4)}\n— {WITNESS} {b64(by_6)}\n"


# ---------------------------------------------------------------- files


def folder(size: int) -> dict[str, bytes]:
    """All files of the log of `size` entries."""
    entries = [entry(seq) for seq in range(size)]
    root = tree([leaf(each) for each in entries])
    notes = {"checkpoint": signed(size, root), "checkpoint.cosigned": cosigned(size, root)}
    return {name: note.encode() for name, note in notes.items()} | tiles(entries) | objects(size)


def objects(size: int) -> dict[str, bytes]:
    """The documents that the first `size` entries name."""
    named = OBJECTS if size > 4 else OBJECTS[:1] if size > 1 else []
    hexes = {text: sha256(text.encode()).hex() for text in named}
    return {f"objects/sha256/{name[:2]}/{name}": text.encode() for text, name in hexes.items()}


def manifest(size: int) -> dict[str, object]:
    """The log of `size` entries in short: its checkpoint, its root, and each tile's SHA-256."""
    files = folder(size)
    text = files["checkpoint.cosigned"].decode()
    return {
        "size": size,
        "root": base64.b64decode(text.split("\n")[2]).hex(),
        "checkpoint": files["checkpoint"].decode(),
        "checkpoint.cosigned": text,
        "files": {
            name: sha256(files[name]).hex() for name in sorted(files) if not name.startswith("checkpoint")
        },
    }


def main(out: Path) -> None:
    (out / "vkeys").mkdir(parents=True)
    witness = [vkey(WITNESS, 4, WITNESS_KEY), vkey(WITNESS, 6, WITNESS_KEY_44)]
    (out / "vkeys" / "log").write_text(vkey(ORIGIN, 1, LOG_KEY) + "\n", "utf-8")
    (out / "vkeys" / "witness").write_text("\n".join(witness) + "\n", "utf-8")
    for size in WHOLE:
        for name, data in folder(size).items():
            target = out / str(size) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    for size in BY_DIGEST:
        (out / f"{size}.json").write_text(
            json.dumps(manifest(size), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
