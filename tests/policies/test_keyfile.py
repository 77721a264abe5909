import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from policies.keyfile import fingerprint, load_public, load_signer, new_key, public_path
from protocols.envelope import key_id, verify_signature
from protocols.errors import InputError


def refused(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value.code


def test_a_new_key_signs_and_its_public_half_verifies(tmp_path: Path):
    public = new_key(tmp_path / "dpo.pem")
    signer = load_signer(tmp_path / "dpo.pem")
    assert signer.public_key == public == load_public(tmp_path / "dpo.pem.pub")
    assert verify_signature(public, signer.sign(b"text"), b"text")


def test_only_the_owner_can_read_a_private_key_whatever_the_umask(tmp_path: Path):
    old = os.umask(0)
    try:
        new_key(tmp_path / "key")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_touch_is_refused(tmp_path: Path, mode: int):
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    assert refused(load_signer, tmp_path / "key") == "key-exposed"


def test_a_key_is_never_overwritten(tmp_path: Path):
    public = new_key(tmp_path / "key")
    assert refused(new_key, tmp_path / "key") == "key-exists"
    assert load_signer(tmp_path / "key").public_key == public == load_public(tmp_path / "key.pub")


def test_a_private_file_in_the_way_leaves_no_public_half_behind(tmp_path: Path):
    (tmp_path / "key").write_text("something else")
    assert refused(new_key, tmp_path / "key") == "key-exists"
    assert not public_path(tmp_path / "key").exists()
    assert (tmp_path / "key").read_text() == "something else"


def test_a_key_is_not_written_through_a_link(tmp_path: Path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    assert refused(new_key, tmp_path / "key") == "key-exists"
    assert not (tmp_path / "elsewhere").exists()


def test_missing_folders_and_files_are_named(tmp_path: Path):
    assert refused(new_key, tmp_path / "no" / "key") == "key-unwritable"
    assert refused(load_signer, tmp_path / "none") == "key-unreadable"
    assert refused(load_public, tmp_path / "none") == "key-unreadable"
    assert refused(load_signer, tmp_path) == "key-unreadable"


@pytest.mark.parametrize("load", [load_signer, load_public])
def test_pipes_and_devices_are_refused_and_hold_nobody_up(tmp_path: Path, load):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert refused(load, tmp_path / "pipe") == "bad-key"
    assert refused(load, Path("/dev/zero")) == "bad-key"


def test_a_name_that_changes_hands_between_check_and_read_changes_nothing(tmp_path: Path, monkeypatch):
    checked, other = new_key(tmp_path / "checked"), new_key(tmp_path / "other")
    link = tmp_path / "link"
    link.symlink_to("checked")
    fstat = os.fstat

    def swap_after(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        link.unlink()
        link.symlink_to("other")
        return status

    monkeypatch.setattr(os, "fstat", swap_after)
    assert load_signer(link).public_key == checked
    monkeypatch.undo()
    assert load_signer(link).public_key == other


def test_a_link_to_a_key_that_others_can_read_is_refused(tmp_path: Path):
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    (tmp_path / "link").symlink_to("key")
    assert refused(load_signer, tmp_path / "link") == "key-exposed"


def pem(key, password: bytes | None = None, form=serialization.PrivateFormat.PKCS8) -> bytes:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, hidden)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a key",
        b"\xff\xfe",
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(
            ec.generate_private_key(ec.SECP256R1()),
            b"password",
            serialization.PrivateFormat.TraditionalOpenSSL,
        ),
        pem(Ed25519PrivateKey.generate())[:-40],
        pem(Ed25519PrivateKey.generate()).replace(b"MC4", b"MC5"),
        b"x" * (17 << 10),
    ],
    ids=["empty", "text", "binary", "other curve", "older encryption", "cut short", "tampered", "too long"],
)
def test_what_is_no_plain_ed25519_key_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "key").write_bytes(data)
    (tmp_path / "key").chmod(0o600)
    assert refused(load_signer, tmp_path / "key") == "bad-key"
    assert refused(load_public, tmp_path / "key") == "bad-key"


def test_the_public_half_of_another_kind_of_key_is_refused(tmp_path: Path):
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "key.pub").write_bytes(other.public_bytes(serialization.Encoding.PEM, kind))
    assert refused(load_public, tmp_path / "key.pub") == "bad-key"


def test_only_short_regular_files_are_read():
    with pytest.raises(InputError, match="a regular file"):
        load_public(Path("/dev/zero"))


def test_a_file_too_long_for_a_key_is_not_read_to_its_end(tmp_path: Path):
    (tmp_path / "key").write_bytes(b"x" * (17 << 10))
    with pytest.raises(InputError, match="at most 16384 bytes"):
        load_public(tmp_path / "key")


def test_a_private_key_given_as_a_public_one_is_refused(tmp_path: Path):
    new_key(tmp_path / "key")
    assert refused(load_public, tmp_path / "key") == "bad-key"
    (tmp_path / "key.pub").chmod(0o600)
    assert refused(load_signer, tmp_path / "key.pub") == "bad-key"


def test_stock_openssl_verifies_our_signature_and_we_verify_its(tmp_path: Path):
    public = new_key(tmp_path / "dpo.pem")
    (tmp_path / "pae.bin").write_bytes(b"DSSEv1 1 t 4 text")
    (tmp_path / "dpo.sig").write_bytes(load_signer(tmp_path / "dpo.pem").sign(b"DSSEv1 1 t 4 text"))

    def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["openssl", "pkeyutl", *arguments, "-rawin", "-in", "pae.bin"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert openssl("-verify", "-pubin", "-inkey", "dpo.pem.pub", "-sigfile", "dpo.sig").returncode == 0
    assert openssl("-sign", "-inkey", "dpo.pem", "-out", "theirs.sig").returncode == 0
    assert verify_signature(public, (tmp_path / "theirs.sig").read_bytes(), b"DSSEv1 1 t 4 text")
    (tmp_path / "pae.bin").write_bytes(b"DSSEv1 1 t 4 TEXT")
    assert openssl("-verify", "-pubin", "-inkey", "dpo.pem.pub", "-sigfile", "dpo.sig").returncode != 0


def test_a_fingerprint_is_the_key_id_to_be_read_aloud():
    public = bytes(range(32))
    spoken = fingerprint(public)
    assert [len(group) for group in spoken.split(" ")] == [4] * 16
    assert "sha256:" + spoken.replace(" ", "") == key_id(public)
