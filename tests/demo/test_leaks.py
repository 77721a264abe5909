"""The leak scan finds a canary in every form it could slip out in, and nothing where there is none."""

import base64
import hashlib
import os

import pytest

from demo import leaks
from demo.leaks import Scanner, forms

CANARIES = [f"99010119900101{n:03d}X" for n in range(12)]


def _slips(canary: str) -> dict[str, bytes]:
    raw = canary.encode()
    typed = b"RIC:" + raw
    slips = {
        "text": raw,
        "lower": raw.lower(),
        "utf-16": canary.encode("utf-16-le"),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
    }
    for before in range(3):
        slips[f"base64 after {before}"] = base64.b64encode(b"#" * before + raw + b"##")
        slips[f"base64url after {before}"] = base64.urlsafe_b64encode(b"#" * before + raw + b"##")
    for algorithm in ("sha256", "sm3", "md5"):
        for name, data in (("bare", raw), ("typed", typed)):
            digest = hashlib.new(algorithm, data).digest()
            slips[f"{algorithm} {name} raw"] = digest
            slips[f"{algorithm} {name} hex"] = digest.hex().encode()
            slips[f"{algorithm} {name} base64"] = base64.b64encode(digest)
    return slips


@pytest.mark.parametrize("form", sorted(_slips(CANARIES[0])))
def test_a_slip_is_found_in_every_form(form, tmp_path):
    canary = 7
    file = tmp_path / "log"
    file.write_bytes(b"before " + _slips(CANARIES[canary])[form] + b" after")
    assert {finding.canary for finding in Scanner(CANARIES).scan([tmp_path])} == {canary}


def test_a_slip_across_two_blocks_is_found_once(tmp_path, monkeypatch):
    monkeypatch.setattr(leaks, "BLOCK", 4096)
    for shift in range(24):
        (tmp_path / "log").write_bytes(os.urandom(4096 - shift) + CANARIES[3].encode() + os.urandom(9000))
        found = Scanner(CANARIES).scan([tmp_path])
        assert [(f.canary, f.offset) for f in found] == [(3, 4096 - shift)]


def test_no_false_alarm_on_random_bytes(tmp_path):
    # The shortest pattern has 16 bytes: a false alarm in 8 MB has chance below 2^-90.
    (tmp_path / "bytes").write_bytes(os.urandom(8 << 20))
    assert Scanner(CANARIES).scan([tmp_path]) == []


def test_forms_cover_text_hex_base64_and_three_digests():
    assert {"text", "text hex", "text base64", "sha256", "sm3 hex", "md5 base64"} <= set(
        forms(CANARIES[0]).values()
    )
