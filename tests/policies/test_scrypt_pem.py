"""Private keys under a passphrase: what OpenSSL makes of them, what is refused, who is asked."""

import base64
import hashlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from policies.keyfile import ask_new_passphrase, load_public, load_signer, new_key, public_path, read_secret
from protocols.envelope import verify_signature
from protocols.errors import InputError

PASSPHRASE = b"violet-anchor-lantern-42"
BEGIN, END = "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "-----END ENCRYPTED PRIVATE KEY-----\n"

RFC_7914_EXAMPLE = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHiME0GCSqGSIb3DQEFDTBAMB8GCSsGAQQB2kcECzASBAVNb3VzZQIDEAAAAgEI
AgEBMB0GCWCGSAFlAwQBKgQQyYmguHMsOwzGMPoyObk/JgSBkJb47EWd5iAqJlyy
+ni5ftd6gZgOPaLQClL7mEZc2KQay0VhjZm/7MbBUNbqOAXNM6OGebXxVp6sHUAL
iBGY/Dls7B1TsWeGObE0sS1MXEpuREuloZjcsNVcNXWPlLdZtkSH6uwWzR0PyG/Z
+ZXfNodZtd/voKlvLOw5B3opGIFaLkbtLZQwMiGtl42AS89lZg==
-----END ENCRYPTED PRIVATE KEY-----
"""
"""RFC 7914 section 13: N = 2^20, r = 8, which takes 1 GiB."""


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch):
    monkeypatch.delenv("MINSHU_PASSPHRASE_FILE", raising=False)
    with Path(os.devnull).open() as silence:
        monkeypatch.setattr(sys, "stdin", silence)
        yield


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    """A key as written here, under PASSPHRASE."""
    path = tmp_path_factory.mktemp("keys") / "dpo.pem"
    new_key(path, PASSPHRASE)
    return path


@pytest.fixture
def cheap(tmp_path: Path) -> Path:
    """A key under PASSPHRASE that is opened in a moment, with its public half."""
    path = tmp_path / "cheap.pem"
    new_key(path)
    openssl("pkcs8", "-topk8", "-in", path, "-out", tmp_path / "new", "-passout", "stdin")
    (tmp_path / "new").rename(path)
    path.chmod(0o600)
    return path


def openssl(*arguments: object) -> bytes:
    """Run stock OpenSSL, which gets PASSPHRASE on stdin where it asks for it."""
    done = subprocess.run(
        ["openssl", *map(str, arguments)], input=PASSPHRASE + b"\n", capture_output=True, timeout=30
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def private(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(0o600)
    return path


def refusal(call, *arguments) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value


def refused(call, *arguments) -> str:
    return refusal(call, *arguments).code


# -- a second, independent writer ---------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    return bytes([tag, size] if size < 128 else [tag, 0x81, size]) + content


def integer(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def oid(digits: str) -> bytes:
    return tlv(6, bytes.fromhex(digits))


def armour(der: bytes) -> str:
    return BEGIN + base64.encodebytes(der).decode() + END


def wrap(derivation: bytes, data: bytes = bytes(64), scheme: str = "2a864886f70d01050d") -> str:
    cipher = tlv(0x30, oid("60864801650304012a"), tlv(4, bytes(16)))
    return armour(tlv(0x30, tlv(0x30, oid(scheme), tlv(0x30, tlv(0x30, derivation), cipher)), tlv(4, data)))


def scrypt(n: int, r: int, p: int) -> bytes:
    parameters = tlv(0x30, tlv(4, b"salt"), integer(n), integer(r), integer(p))
    return oid("2b06010401da47040b") + parameters


def pbkdf2(iterations: int) -> bytes:
    prf = tlv(0x30, oid("2a864886f70d0209"), tlv(5))
    return oid("2a864886f70d01050c") + tlv(0x30, tlv(4, b"salt"), integer(iterations), prf)


# -- OpenSSL ------------------------------------------------------------------------------------------------


def test_stock_openssl_opens_what_we_write(ours: Path):
    assert stat.S_IMODE(ours.stat().st_mode) == 0o600
    public = openssl("pkey", "-in", ours, "-passin", "stdin", "-pubout")
    assert public == public_path(ours).read_bytes()


def test_what_we_write_is_pbes2_with_scrypt_at_16_mib_and_aes_256(ours: Path):
    fields = re.findall(r"(OBJECT|INTEGER) +:(\S+)", openssl("asn1parse", "-in", ours).decode())
    assert [value for _, value in fields] == ["PBES2", "scrypt", "4000", "08", "08", "aes-256-cbc"]
    assert ours.read_text().startswith(BEGIN)
    assert ours.read_text().endswith(END)
    assert max(map(len, ours.read_text().splitlines()[1:-1])) == 64


def test_what_we_write_we_open(ours: Path):
    signer = load_signer(ours, lambda: PASSPHRASE)
    assert signer.public_key == load_public(public_path(ours))
    assert verify_signature(signer.public_key, signer.sign(b"text"), b"text")


@pytest.mark.parametrize(
    "options",
    [["-scrypt"], ["-scrypt", "-v2", "aes-128-cbc"], [], ["-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA512"]],
    ids=["scrypt", "scrypt and AES-128", "by default", "PBKDF2 with SHA-512"],
)
def test_we_open_what_stock_openssl_writes(tmp_path: Path, options: list[str]):
    public = new_key(tmp_path / "plain")
    theirs = private(tmp_path / "theirs", b"")
    openssl("pkcs8", "-topk8", *options, "-in", tmp_path / "plain", "-out", theirs, "-passout", "stdin")
    assert load_signer(theirs, PASSPHRASE).public_key == public


def test_a_key_of_the_dearest_accepted_cost_is_opened(tmp_path: Path):
    key = Ed25519PrivateKey.generate()
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()) + bytes([16] * 16)
    derived = hashlib.scrypt(PASSPHRASE, salt=b"salt", n=1 << 17, r=8, p=1, maxmem=1 << 28, dklen=32)
    encryptor = Cipher(AES(derived), CBC(bytes(16))).encryptor()
    path = private(tmp_path / "key", wrap(scrypt(1 << 17, 8, 1), encryptor.update(plain)))
    assert load_signer(path, PASSPHRASE).public_key == key.public_key().public_bytes_raw()


# -- what is refused ----------------------------------------------------------------------------------------


def never() -> bytes:
    raise AssertionError("asked for a passphrase")


@pytest.mark.parametrize(
    "text",
    [
        RFC_7914_EXAMPLE,
        wrap(scrypt(1 << 18, 8, 1)),
        wrap(scrypt(1 << 14, 9, 1)),
        wrap(scrypt(1 << 14, 8, 11)),
        wrap(scrypt(1 << 62, 1 << 30, 1 << 30)),
        wrap(scrypt(2, 1, 1 << 400)),
        wrap(pbkdf2(5_000_001)),
        wrap(pbkdf2(1 << 80)),
    ],
    ids=["RFC 7914", "N", "r", "p", "all", "beyond 64 bits", "PBKDF2", "PBKDF2 beyond 64 bits"],
)
def test_a_costly_key_is_refused_before_anything_is_derived(tmp_path: Path, text: str):
    # Nobody has been asked for the passphrase yet, so nothing can have been derived from it.
    assert refused(load_signer, private(tmp_path / "key", text), never) == "key-too-costly"


GOOD = wrap(scrypt(1 << 14, 8, 1))


@pytest.mark.parametrize(
    "text",
    [
        wrap(scrypt(3, 8, 1)),
        wrap(scrypt(1, 8, 1)),
        wrap(scrypt(0, 8, 1)),
        wrap(scrypt(-(1 << 14), 8, 1)),
        wrap(scrypt(1 << 14, 0, 1)),
        wrap(scrypt(1 << 14, 8, -1)),
        wrap(pbkdf2(0)),
        wrap(oid("2a864886f70d01050c") + tlv(0x30, tlv(4, b"salt"))),
        wrap(oid("2a864886f70d010c0106") + tlv(0x30, tlv(4, b"salt"), integer(2048))),
        wrap(scrypt(1 << 14, 8, 1), scheme="2a864886f70d010503"),
        armour(tlv(0x30, tlv(0x30, oid("2a864886f70d01050d"), tlv(5)), tlv(4, b""))),
        armour(b"\x30\x84\xff\xff\xff\xff"),
        armour(b""),
        GOOD + GOOD,
        "a comment\n" + GOOD,
        GOOD.replace("\nMI", "\n!MI"),
        GOOD.replace("A", "B", 20),
        GOOD[: len(GOOD) // 2],
        GOOD.replace(END, ""),
    ],
)
def test_what_is_no_encrypted_key_is_refused_before_anything_is_derived(tmp_path: Path, text: str):
    assert refused(load_signer, private(tmp_path / "key", text), never) == "bad-key"


def test_a_wrong_passphrase_opens_nothing(ours: Path):
    assert refused(load_signer, ours, PASSPHRASE[:-1]) == "bad-passphrase"


def test_every_failure_to_open_a_key_reads_the_same_and_tells_no_secret(cheap: Path):
    intact = cheap.read_text()
    attempts = [
        refusal(load_signer, cheap, guess)
        for guess in (PASSPHRASE + b"\n", PASSPHRASE.upper(), b"", b"x" * 1024, b"\0")
    ]
    body = bytearray(base64.b64decode("".join(intact.splitlines()[1:-1])))
    body[-1] ^= 1  # the padding
    private(cheap, armour(bytes(body)))
    attempts.append(refusal(load_signer, cheap, PASSPHRASE))
    assert {error.code for error in attempts} == {"bad-passphrase"}
    assert len({str(error) for error in attempts}) == 1
    for error in attempts:
        told = f"{error} {error.hint} {error!r} {error.__cause__}".encode()
        assert PASSPHRASE not in told
        assert not any(line.encode() in told for line in intact.splitlines()[1:-1])
    private(cheap, intact)
    assert load_signer(cheap, PASSPHRASE).public_key == load_public(public_path(cheap))


def test_whatever_bit_of_the_hidden_key_is_flipped_no_other_key_signs(cheap: Path):
    intact = base64.b64decode("".join(cheap.read_text().splitlines()[1:-1]))
    codes = set()
    for at in range(len(intact) - 64, len(intact)):
        body = bytearray(intact)
        body[at] ^= 0x10
        codes.add(refused(load_signer, private(cheap, armour(bytes(body))), PASSPHRASE))
    # The middle blocks hold the seed: without the public half beside it, another key would come to light.
    assert codes == {"bad-passphrase", "key-mismatch"}


def test_an_encrypted_key_of_another_kind_is_refused(tmp_path: Path):
    other = ec.generate_private_key(ec.SECP256R1())
    data = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE))
    assert refused(load_signer, private(tmp_path / "key", data), PASSPHRASE) == "bad-key"


def test_an_encrypted_key_that_others_can_read_is_refused(cheap: Path):
    cheap.chmod(0o640)
    assert refused(load_signer, cheap, never) == "key-exposed"


@pytest.mark.parametrize(
    "passphrase",
    [b"", b"eleven-char", "十二个字节".encode(), b"x" * 1024],
    ids=["none", "eleven", "five characters of three bytes", "too long"],
)
def test_no_key_is_made_under_a_weak_passphrase(tmp_path: Path, passphrase: bytes):
    error = refusal(new_key, tmp_path / "key", passphrase)
    assert error.code == "weak-passphrase"
    assert not passphrase or passphrase.decode() not in f"{error} {error.hint}"
    assert list(tmp_path.iterdir()) == []


# -- where the passphrase comes from ------------------------------------------------------------------------


def test_the_passphrase_is_read_from_the_file_the_environment_names(cheap: Path, tmp_path: Path, monkeypatch):
    named = private(tmp_path / "passphrase", PASSPHRASE + b"\n")
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(named))
    assert load_signer(cheap).public_key == load_public(public_path(cheap))
    private(named, PASSPHRASE)
    assert load_signer(cheap).public_key == load_public(public_path(cheap))


def test_only_one_newline_ends_a_passphrase(tmp_path: Path):
    assert read_secret(private(tmp_path / "p", b"a b \n"), "passphrase") == b"a b "
    assert read_secret(private(tmp_path / "p", b"a\n\n"), "passphrase") == b"a\n"
    assert read_secret(private(tmp_path / "p", b"x" * 1023 + b"\n"), "passphrase") == b"x" * 1023


def test_a_passphrase_that_is_given_comes_before_the_environment(cheap: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(tmp_path / "none"))
    load_signer(cheap, PASSPHRASE)
    load_signer(cheap, lambda: PASSPHRASE)
    assert refused(load_signer, cheap) == "passphrase-unreadable"


def test_a_plain_key_asks_for_no_passphrase(tmp_path: Path, monkeypatch):
    public = new_key(tmp_path / "key")
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(tmp_path / "none"))
    assert (
        load_signer(tmp_path / "key").public_key == load_signer(tmp_path / "key", never).public_key == public
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_passphrase_file_that_others_can_touch_is_refused(
    cheap: Path, tmp_path: Path, monkeypatch, mode: int
):
    named = private(tmp_path / "passphrase", PASSPHRASE)
    named.chmod(mode)
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(named))
    error = refusal(load_signer, cheap)
    assert error.code == "passphrase-exposed"
    assert PASSPHRASE.decode() not in f"{error} {error.hint}"


def test_what_is_no_passphrase_file_is_refused_and_holds_nobody_up(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path, code in (
        (tmp_path / "pipe", "bad-passphrase-file"),
        (Path("/dev/zero"), "bad-passphrase-file"),
        (private(tmp_path / "long", b"x" * 1024), "bad-passphrase-file"),
        (private(tmp_path / "longer", b"x" * 4096), "bad-passphrase-file"),
        (private(tmp_path / "empty", b""), "bad-passphrase-file"),
        (private(tmp_path / "line", b"\n"), "bad-passphrase-file"),
        (tmp_path, "passphrase-unreadable"),
        (tmp_path / "none", "passphrase-unreadable"),
    ):
        assert refused(read_secret, path, "passphrase") == code


def test_without_a_terminal_nobody_is_asked(cheap: Path):
    error = refusal(load_signer, cheap)
    assert error.code == "passphrase-needed"
    assert "MINSHU_PASSPHRASE_FILE" in error.hint
    assert refused(ask_new_passphrase) == "passphrase-needed"


def test_a_passphrase_is_never_taken_from_a_document_on_stdin(cheap: Path, tmp_path: Path, monkeypatch):
    with private(tmp_path / "document", PASSPHRASE + b"\n").open() as document:
        monkeypatch.setattr(sys, "stdin", document)
        assert refused(load_signer, cheap) == "passphrase-needed"
        assert document.read() == PASSPHRASE.decode() + "\n"


def test_a_new_passphrase_may_come_from_the_environment_but_not_a_weak_one(tmp_path: Path, monkeypatch):
    named = private(tmp_path / "passphrase", PASSPHRASE + b"\n")
    monkeypatch.setenv("MINSHU_PASSPHRASE_FILE", str(named))
    assert ask_new_passphrase() == PASSPHRASE
    private(named, b"short\n")
    assert refused(ask_new_passphrase) == "weak-passphrase"


def at_a_terminal(code: str, *answers: bytes) -> str:
    """Run `code` at a terminal, answer its prompts, and return all that the terminal showed."""
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    waiting = list(answers)
    try:
        # A read fails once the child has gone, so this ends without a clock.
        while piece := os.read(ours, 4096):
            seen += piece
            if waiting and seen.endswith(b": "):
                os.write(ours, waiting.pop(0) + b"\n")
    except OSError:
        pass
    finally:
        os.close(ours)
    assert child.wait(timeout=30) == 0, seen
    return seen.decode()


def test_at_a_terminal_the_passphrase_is_asked_for_and_not_shown(cheap: Path):
    code = (
        "from pathlib import Path; from policies.keyfile import load_signer;"
        f"print(load_signer(Path({str(cheap)!r})).public_key.hex())"
    )
    seen = at_a_terminal(code, PASSPHRASE)
    assert seen.startswith("passphrase for cheap.pem: ")
    assert load_public(public_path(cheap)).hex() in seen
    assert PASSPHRASE.decode() not in seen


def test_a_new_passphrase_is_asked_for_twice_and_both_must_agree():
    code = """
from policies.keyfile import ask_new_passphrase
from protocols.errors import InputError
for _ in range(3):
    try:
        print(len(ask_new_passphrase()))
    except InputError as error:
        print(error.code)
"""
    seen = at_a_terminal(code, b"short", PASSPHRASE, PASSPHRASE[:-1], PASSPHRASE, PASSPHRASE)
    assert re.findall(r"weak-passphrase|passphrase-mismatch|\b24\b", seen) == [
        "weak-passphrase",
        "passphrase-mismatch",
        "24",
    ]
    assert seen.count("the same again: ") == 2
    assert PASSPHRASE.decode() not in seen
