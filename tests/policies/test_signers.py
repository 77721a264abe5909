"""Signers by path and URI. The token is a real Ed25519 key behind the seam, with a PIN, that can fail."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from traceback import format_exception
from types import ModuleType
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from policies.keyfile import new_key
from policies.signers import (
    MAX_URI_CHARACTERS,
    Fault,
    TokenError,
    TokenSigner,
    TokenUri,
    open_signer,
    parse_token_uri,
)
from protocols.envelope import POLICY, key_id, sign, verify, verify_signature
from protocols.errors import InputError, MinshuError, SignatureInvalid, Unreachable

PIN = b"739104"


@dataclass
class SoftToken:
    """Key pairs as (label, id, key), a PIN with three tries, and what goes wrong at which call."""

    pairs: list[tuple[str, bytes, Ed25519PrivateKey]]
    tries: int = 3
    logged_in: bool = False
    faults: dict[str, Fault] = field(default_factory=dict)
    opened: list[TokenUri] = field(default_factory=list)
    chosen: Ed25519PrivateKey | None = None
    spoil: bool = False
    busy: Lock = field(default_factory=Lock)

    def open(self, uri: TokenUri) -> "SoftToken":
        self._fail_at("open")
        self.opened.append(uri)
        return self

    def login(self, pin: bytes) -> None:
        self._fail_at("login")
        if self.tries == 0:
            raise TokenError("pin-locked")
        if pin != PIN:
            self.tries -= 1
            raise TokenError("pin-refused")
        self.logged_in = True

    def public_key(self, label: str | None, key_id: bytes | None) -> bytes:
        self._fail_at("public_key")
        assert self.logged_in
        fitting = [
            key
            for its_label, its_id, key in self.pairs
            if label in (None, its_label) and key_id in (None, its_id)
        ]
        if len(fitting) != 1:
            raise TokenError("several-keys" if fitting else "no-key")
        self.chosen = fitting[0]
        return self.chosen.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        self._fail_at("sign")
        assert self.chosen is not None
        assert self.busy.acquire(blocking=False), "two at a time in one session"
        try:
            signature = self.chosen.sign(data)
        finally:
            self.busy.release()
        return signature[:-1] + bytes([signature[-1] ^ 1]) if self.spoil else signature

    def _fail_at(self, call: str) -> None:
        if call in self.faults:
            raise TokenError(self.faults[call])


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch):
    for name in ("MINSHU_PASSPHRASE_FILE", "MINSHU_PIN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with Path(os.devnull).open() as silence:
        monkeypatch.setattr(sys, "stdin", silence)
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Install a provider as a package does: a distribution on the path, with an entry point."""

    def install(name: str, open_token=None) -> None:
        metadata = tmp_path / "site" / f"{name}_tokens-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-tokens\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[minshu.tokens]\n{name} = {name}_tokens:open_token\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        if open_token is not None:
            module = ModuleType(f"{name}_tokens")
            module.open_token = open_token
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


@pytest.fixture
def token(install) -> SoftToken:
    token = SoftToken(
        [
            ("dpo", b"\x01", Ed25519PrivateKey.generate()),
            ("数据官", b"\x02", Ed25519PrivateKey.generate()),
            ("dpo", b"\x03", Ed25519PrivateKey.generate()),
        ]
    )
    install("soft", token.open)
    return token


@pytest.fixture
def pin(tmp_path: Path) -> Path:
    path = tmp_path / "pin"
    path.write_bytes(PIN + b"\n")
    path.chmod(0o600)
    return path


def refusal(call, *arguments, kind: type[MinshuError] = InputError) -> MinshuError:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert caught.value.hint
    assert PIN.decode() not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__}"
    return caught.value


def refused(call, *arguments, kind: type[MinshuError] = InputError) -> str:
    return refusal(call, *arguments, kind=kind).code


# -- files --------------------------------------------------------------------------------------------------


def test_a_path_and_a_file_uri_name_the_same_key(tmp_path: Path, monkeypatch):
    path = tmp_path / "my key.pem"
    public = new_key(path)
    uri = quote(str(path))
    monkeypatch.chdir(tmp_path)
    for where in (path, str(path), "my key.pem", f"file:{uri}", f"file://{uri}", f"FILE://localhost{uri}"):
        assert open_signer(where).public_key == public


@pytest.mark.parametrize(
    "uri",
    ["file:", "file:key.pem", "file://elsewhere/key.pem", "file:/a b", "file:/a#b", "file:/%00", "file:/%4"],
)
def test_a_file_uri_that_names_no_local_file_is_refused(uri: str):
    assert refused(open_signer, uri) == "bad-key-uri"


def test_a_path_object_is_always_a_file(tmp_path: Path, monkeypatch, token: SoftToken):
    monkeypatch.chdir(tmp_path)
    public = new_key(Path("pkcs11:object=dpo"))
    assert open_signer(Path("pkcs11:object=dpo")).public_key == public
    assert token.opened == []


def test_the_passphrase_reaches_an_encrypted_file(tmp_path: Path):
    public = new_key(tmp_path / "key", b"violet-anchor-lantern-42")
    assert open_signer(f"file:{tmp_path}/key", lambda: b"violet-anchor-lantern-42").public_key == public


# -- tokens -------------------------------------------------------------------------------------------------


def test_a_policy_signed_by_a_token_verifies(token: SoftToken, pin: Path):
    signer = open_signer(f"pkcs11:id=%02?pin-source=file:{pin}")
    assert signer.public_key == token.pairs[1][2].public_key().public_bytes_raw()
    envelope = sign(POLICY, b"policy", [signer])
    keys = {key_id(signer.public_key): signer.public_key}
    assert verify(envelope, POLICY, keys, 1)


@pytest.mark.parametrize(
    ("path", "index"), [("object=%E6%95%B0%E6%8D%AE%E5%AE%98", 1), ("object=dpo;id=%03", 2), ("id=%01", 0)]
)
def test_the_key_is_the_one_with_this_label_and_id(token: SoftToken, pin: Path, path: str, index: int):
    signer = open_signer(f"pkcs11:{path}?pin-source={pin}")
    assert signer.public_key == token.pairs[index][2].public_key().public_bytes_raw()


def test_the_provider_is_told_all_that_the_uri_says(token: SoftToken, pin: Path):
    where = f"pkcs11:token=UKey%201;serial=7;id=%01?module-name=soft&module-path=/opt/p11.so&pin-source={pin}"
    open_signer(where)
    assert token.opened == [
        TokenUri(
            token="UKey 1",
            serial="7",
            id=b"\x01",
            module_name="soft",
            module_path=Path("/opt/p11.so"),
            pin_source=pin,
        )
    ]


def test_a_label_that_two_keys_bear_or_none_opens_nothing(token: SoftToken, pin: Path):
    assert refused(open_signer, f"pkcs11:object=dpo?pin-source={pin}") == "several-token-keys"
    assert refused(open_signer, f"pkcs11:object=owner?pin-source={pin}") == "no-token-key"


def test_a_wrong_signature_never_leaves(token: SoftToken, pin: Path):
    signer = open_signer(f"pkcs11:id=%01?pin-source={pin}")
    token.spoil = True
    assert refused(signer.sign, b"text", kind=SignatureInvalid) == "bad-token-signature"
    token.spoil = False
    assert verify_signature(signer.public_key, signer.sign(b"text"), b"text")


def test_a_token_exchanged_under_way_puts_out_nothing(token: SoftToken, pin: Path):
    signer = open_signer(f"pkcs11:id=%01?pin-source={pin}")
    token.chosen = Ed25519PrivateKey.generate()
    assert refused(signer.sign, b"text", kind=SignatureInvalid) == "bad-token-signature"


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_what_is_no_signature_is_refused(signature: bytes):
    class Empty(SoftToken):
        def sign(self, data: bytes) -> bytes:
            return signature

    signer = TokenSigner(Empty([]), Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert refused(signer.sign, b"text", kind=SignatureInvalid) == "bad-token-signature"


@pytest.mark.parametrize("public", [b"", bytes(31), b"\x04\x20" + bytes(32)], ids=["none", "short", "in DER"])
def test_a_public_key_that_is_not_raw_ed25519_is_refused(install, pin: Path, public: bytes):
    class Odd(SoftToken):
        def public_key(self, label: str | None, key_id: bytes | None) -> bytes:
            return public

    install("odd", Odd([]).open)
    assert refused(open_signer, f"pkcs11:id=%01?pin-source={pin}") == "bad-token-key"


@pytest.mark.parametrize(
    ("call", "fault", "outcome"),
    [
        ("open", "no-token", (Unreachable, "no-token")),
        ("login", "pin-refused", (InputError, "bad-pin")),
        ("login", "pin-locked", (InputError, "pin-locked")),
        ("login", "failed", (Unreachable, "token-failed")),
        ("public_key", "no-key", (InputError, "no-token-key")),
        ("public_key", "several-keys", (InputError, "several-token-keys")),
        ("public_key", "failed", (Unreachable, "token-failed")),
    ],
)
def test_a_token_that_fails_to_open_says_what_to_do(
    token: SoftToken, pin: Path, call: str, fault: Fault, outcome: tuple[type[MinshuError], str]
):
    token.faults[call] = fault
    error = refusal(open_signer, f"pkcs11:id=%01?pin-source={pin}", kind=MinshuError)
    assert (type(error), error.code) == outcome


def test_a_token_that_is_pulled_out_fails_and_works_again_once_back(token: SoftToken, pin: Path):
    signer = open_signer(f"pkcs11:id=%01?pin-source={pin}")
    token.faults["sign"] = "no-token"
    assert refused(signer.sign, b"text", kind=Unreachable) == "no-token"
    token.faults.clear()
    assert verify_signature(signer.public_key, signer.sign(b"text"), b"text")


@pytest.mark.parametrize("call", ["open", "login", "public_key", "sign"])
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, InputError, OSError])
def test_what_a_vendor_raises_of_its_own_says_neither_pin_nor_what_was_signed(
    token: SoftToken, pin: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: type[Exception]
):
    def fails(_: SoftToken, at: str) -> None:
        if at == call:
            raise kind(f"C_Login({PIN.decode()}) at {call}")

    monkeypatch.setattr(SoftToken, "_fail_at", fails)
    where = f"pkcs11:id=%01?pin-source={pin}"
    error = refusal(lambda: open_signer(where).sign(b"text"), kind=Unreachable)
    assert error.code == "token-failed"
    assert error.__suppress_context__
    assert PIN.decode() not in "".join(format_exception(error))


def test_one_session_signs_one_thing_at_a_time(token: SoftToken, pin: Path):
    signer = open_signer(f"pkcs11:id=%01?pin-source={pin}")
    made: list[bytes] = []
    threads = [Thread(target=lambda: made.extend(signer.sign(b"text") for _ in range(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 200


# -- the PIN ------------------------------------------------------------------------------------------------


def test_a_wrong_pin_costs_one_try(token: SoftToken, pin: Path):
    pin.write_bytes(b"000000")
    assert refused(open_signer, f"pkcs11:id=%01?pin-source={pin}") == "bad-pin"
    assert token.tries == 2


def test_the_pin_is_read_from_the_file_the_environment_names(token: SoftToken, pin: Path, monkeypatch):
    monkeypatch.setenv("MINSHU_PIN_FILE", str(pin))
    assert open_signer("pkcs11:id=%01").public_key == token.pairs[0][2].public_key().public_bytes_raw()


def test_the_uri_s_pin_source_comes_before_the_environment(
    token: SoftToken, pin: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("MINSHU_PIN_FILE", str(tmp_path / "none"))
    open_signer(f"pkcs11:id=%01?pin-source={pin}")
    assert refused(open_signer, "pkcs11:id=%01") == "pin-unreadable"


def test_a_pin_that_others_can_read_never_reaches_the_token(token: SoftToken, pin: Path):
    pin.chmod(0o644)
    assert refused(open_signer, f"pkcs11:id=%01?pin-source={pin}") == "pin-exposed"
    assert token.opened == []


def test_without_a_pin_the_token_is_not_touched(token: SoftToken):
    error = refusal(open_signer, "pkcs11:id=%01")
    assert error.code == "pin-needed"
    assert "MINSHU_PIN_FILE" in error.hint
    assert token.opened == []


# -- providers ----------------------------------------------------------------------------------------------


def test_without_a_provider_the_error_says_how_to_get_one(pin: Path):
    error = refusal(open_signer, f"pkcs11:id=%01?pin-source={pin}")
    assert error.code == "no-token-provider"
    assert "entry point in the group minshu.tokens" in error.hint


def test_of_two_providers_the_uri_names_one(token: SoftToken, pin: Path, install):
    install("hard", SoftToken([]).open)
    error = refusal(open_signer, f"pkcs11:id=%01?pin-source={pin}")
    assert error.code == "no-token-provider"
    assert "hard, soft" in error.message
    open_signer(f"pkcs11:id=%01?module-name=soft&pin-source={pin}")
    assert refused(open_signer, f"pkcs11:id=%01?module-name=hard&pin-source={pin}") == "no-token-key"
    assert refused(open_signer, f"pkcs11:id=%01?module-name=other&pin-source={pin}") == "no-token-provider"


def test_a_provider_that_cannot_be_loaded_is_named(install, pin: Path):
    install("lost")
    error = refusal(open_signer, f"pkcs11:id=%01?pin-source={pin}")
    assert error.code == "bad-token-provider"
    assert "lost" in error.message


# -- RFC 7512 -----------------------------------------------------------------------------------------------

SNAKE_OIL = (
    "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;"
    "object=my-certificate;type=private;id=%69%95%3E%5C%F4%BD%EC%91?pin-source=file:/etc/token_pin"
)
"""After RFC 7512 section 3, whose example names a certificate and an empty serial."""


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("pkcs11:object=my-key", TokenUri(object="my-key")),
        ("PKCS11:object=my-key;type=private", TokenUri(object="my-key")),
        (
            SNAKE_OIL,
            TokenUri(
                token="The Software PKCS#11 Softtoken",
                manufacturer="Snake Oil, Inc.",
                model="1.0",
                object="my-certificate",
                id=bytes.fromhex("69953e5cf4bdec91"),
                pin_source=Path("/etc/token_pin"),
            ),
        ),
        ("pkcs11:id=a&b", TokenUri(id=b"a&b")),
        ("pkcs11:id=1?module-name=a/b%26c", TokenUri(id=b"1", module_name="a/b&c")),
        ("pkcs11:id=1?pin-source=file:///a%2520b", TokenUri(id=b"1", pin_source=Path("/a b"))),
        ("pkcs11:id=1?pin-source=/a%2520b", TokenUri(id=b"1", pin_source=Path("/a%20b"))),
    ],
)
def test_a_uri_says_what_rfc_7512_says_it_does(uri: str, meant: TokenUri):
    assert parse_token_uri(uri) == meant


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11",
        "pkcs11:",
        "pkcs11:token=t",
        "pkcs11:object=",
        "pkcs11:object",
        "pkcs11:object=a;",
        "pkcs11:object=a;serial=",
        "pkcs11:;object=a",
        "pkcs11:object=a;object=a",
        "pkcs11:object=a;type=public",
        "pkcs11:object=a;type=private;type=private",
        "pkcs11:object=a;slot-id=1",
        "pkcs11:object=a;x-vendor=1",
        "pkcs11:Object=a",
        "pkcs11:obj%65ct=a",
        "pkcs11:object=a b",
        "pkcs11:object=数据官",
        "pkcs11:object=a/b",
        "pkcs11:object=a#b",
        "pkcs11:object=%",
        "pkcs11:object=%4",
        "pkcs11:object=%4g",
        "pkcs11:object=%FF",
        "pkcs11:object=a%00b",
        "pkcs11:object=a%0Ab",
        "pkcs11:object=a?",
        "pkcs11:object=a?pin-source",
        "pkcs11:object=a?pin-source=",
        "pkcs11:object=a?pin-source=pin",
        "pkcs11:object=a?pin-source=file:pin",
        "pkcs11:object=a?pin-source=file://host/pin",
        "pkcs11:object=a?pin-source=%7C/bin/pin",
        "pkcs11:object=a?pin-source=|/bin/pin",
        "pkcs11:object=a?pin-source=/pin%0A",
        "pkcs11:object=a?module-path=p11.so",
        "pkcs11:object=a?module-name=a&module-name=a",
        "pkcs11:object=a?object=a",
        "pkcs11:object=a?pin-source=/a&",
        "pkcs11:object=" + "a" * MAX_URI_CHARACTERS,
    ],
)
def test_a_uri_with_anything_unforeseen_is_refused(uri: str):
    assert refused(parse_token_uri, uri) == "bad-key-uri"


def test_a_pin_in_the_uri_is_refused_and_never_repeated():
    assert refused(parse_token_uri, f"pkcs11:object=a?pin-value={PIN.decode()}") == "pin-in-uri"
    for slip in (
        "object=a;pin={}",
        "object=a?pin={}",
        "object=a?{}",
        "object={}%",
        "{}",
        "object=a?pin-source={}",
    ):
        assert refused(parse_token_uri, "pkcs11:" + slip.format(PIN.decode())) == "bad-key-uri"


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], min_codepoint=0x20, exclude_characters="\x7f"),
    min_size=1,
    max_size=20,
)


@given(TEXT, st.binary(min_size=1, max_size=20), TEXT)
def test_whatever_is_percent_encoded_is_read_back(label: str, identifier: bytes, name: str):
    a, b, c = (quote(value, safe="") for value in (label, identifier, name))
    assert parse_token_uri(f"pkcs11:object={a};id={b}?module-name={c}") == TokenUri(
        object=label, id=identifier, module_name=name
    )


@given(st.text("pkcs1:objetidn=;?&%0aF/|", max_size=60).map("pkcs11:object=a".__add__) | st.text(max_size=40))
def test_any_text_is_a_uri_or_a_clean_refusal(text: str):
    try:
        uri: TokenUri | None = parse_token_uri(text)
    except InputError:
        uri = None  # any other error fails the test
    assert uri is None or uri.object or uri.id
