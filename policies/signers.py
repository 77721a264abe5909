"""Where a signing key lies: a file, or a token behind a seam that has the shape of PKCS#11.

`open_signer` takes a path, a `file:` URI or an RFC 7512 `pkcs11:` URI. A `Token` answers three calls:
C_Login, C_FindObjects with C_GetAttributeValue, and C_Sign under CKM_EDDSA (PKCS#11 3.0). Whoever has a
security module installs a package with an entry point in the group `minshu.tokens`, whose object takes a
`TokenUri` and returns a `Token`:

    [project.entry-points."minshu.tokens"]
    acme = "acme_minshu:open_token"
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from threading import Lock
from typing import Final, Literal, Protocol
from urllib.parse import unquote_to_bytes

from policies.keyfile import SECRET_FILES, find_secret, load_signer, read_secret
from protocols.envelope import Signer, verify_signature
from protocols.errors import InputError, MinshuError, SignatureInvalid, Unreachable

PROVIDER_GROUP: Final = "minshu.tokens"
"""Entry point group of token providers."""

MAX_URI_CHARACTERS: Final = 2048

Fault = Literal["no-token", "no-key", "several-keys", "pin-refused", "pin-locked", "failed"]


class TokenError(Exception):
    """A token did not do what was asked. Its text never reaches a person: it might hold what was handed in.

    Args:
        fault: what went wrong.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault: Fault = fault


class Token(Protocol):
    """One token, found by its URI: `login` is called once, then `public_key` once, then `sign` any time."""

    def login(self, pin: bytes) -> None:
        """Log the user in (C_Login, CKU_USER); tried once, since a token counts wrong PINs.

        Raises:
            TokenError: the PIN is refused or locked, or the token is gone.
        """
        ...

    def public_key(self, label: str | None, key_id: bytes | None) -> bytes:
        """Return the raw 32-byte public key of the one Ed25519 key pair with this CKA_LABEL and CKA_ID.

        None fits any. `sign` uses the private key of the pair from here on.

        Raises:
            TokenError: no such key, more than one, or the token is gone.
        """
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data` under CKM_EDDSA without parameters: pure Ed25519.

        Raises:
            TokenError: the token failed or is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenUri:
    """What a `pkcs11:` URI says, None where it says nothing. A provider heeds every attribute given."""

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    object: str | None = None  # CKA_LABEL of the key
    id: bytes | None = None  # CKA_ID of the key
    module_name: str | None = None  # the provider's entry point
    module_path: Path | None = None  # the PKCS#11 library, for a provider that serves several
    pin_source: Path | None = None


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """A signer whose private key stays in a token. Every signature is verified before it leaves."""

    token: Token = field(repr=False)
    public_key: bytes
    _session: Lock = field(default_factory=Lock, repr=False, compare=False)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of `data`.

        Raises:
            SignatureInvalid: what the token returned does not verify under `public_key`.
            Unreachable: the token failed or is gone.
        """
        try:
            with self._session:  # a PKCS#11 session does one thing at a time
                signature = self.token.sign(data)
        except TokenError as error:
            raise _token_failed(error.fault) from None
        except Exception:  # noqa: BLE001  # a vendor's own: its text might hold what was handed in
            raise _token_failed("failed") from None
        if not verify_signature(self.public_key, signature, data):
            raise SignatureInvalid(
                "the token returned a signature that does not verify under its own key",
                code="bad-token-signature",
                hint="check that the token was not exchanged; if it was not, it is broken",
            )
        return signature


def open_signer(where: str | Path, passphrase: Callable[[], bytes] | bytes | None = None) -> Signer:
    """Return the signer whose key lies at `where`.

    Args:
        where: a path, a `file:` URI or a `pkcs11:` URI. A `Path` is always a file.
        passphrase: opens an encrypted key file, see `load_signer`. A token's PIN comes from the URI's
            pin-source, else as `find_secret` says.

    Raises:
        InputError: the file is no usable key, the URI is malformed, no provider or key fits, or the PIN is
            missing or refused.
        Unreachable: the token is not there, or failed.
    """
    if isinstance(where, Path):
        return load_signer(where, passphrase)
    scheme, colon, _ = where.partition(":")
    match scheme.lower() if colon else "":
        case "pkcs11":
            return open_token(parse_token_uri(where))
        case "file":
            return load_signer(_path(where, "the key file"), passphrase)
        case _:
            return load_signer(Path(where), passphrase)


def open_token(uri: TokenUri) -> TokenSigner:
    """Return the signer for the key that `uri` names.

    Raises:
        InputError: no provider or key fits, the PIN is missing or refused.
        Unreachable: the token is not there, or failed.
    """
    # (1) The provider comes before the PIN: nobody is asked for a PIN that nothing can use.
    provider = _provider(uri.module_name)
    # (2) The PIN comes from a place that only its owner reads, never from the URI itself.
    if uri.pin_source is not None:
        pin = read_secret(uri.pin_source, "pin")
    else:
        pin = find_secret("pin", uri.token or "the token")
    # (3) One login: a second try with the same PIN would only bring the lock closer.
    try:
        token = provider(uri)
        token.login(pin)
        public_key = token.public_key(uri.object, uri.id)
    except TokenError as error:
        raise _token_failed(error.fault) from None
    except Exception:  # noqa: BLE001  # a vendor's own: its text might hold the PIN
        raise _token_failed("failed") from None
    if len(public_key) != 32:
        raise InputError(
            f"the token's public key has {len(public_key)} bytes, an Ed25519 key has 32",
            code="bad-token-key",
            hint="name an Ed25519 key pair (CKK_EC_EDWARDS, edwards25519) on the token",
        )
    return TokenSigner(token, public_key)


def _provider(name: str | None) -> Callable[[TokenUri], Token]:
    """Return the provider called `name`, or the only one there is."""
    installed = entry_points(group=PROVIDER_GROUP)
    known = ", ".join(sorted(installed.names)) or "none"
    chosen = [entry for entry in installed if name in (None, entry.name)]
    if len(chosen) != 1:
        raise InputError(
            f"{len(chosen) or 'no'} token providers fit, exactly one must; installed: {known}",
            code="no-token-provider",
            hint="name one by ?module-name=NAME in the URI, and uninstall one of two with the same name"
            if chosen
            else "install the package for this token, which registers an entry point in the group"
            f" {PROVIDER_GROUP}, or keep the key in a file",
        )
    try:
        provider: Callable[[TokenUri], Token] = chosen[0].load()
    except (ImportError, AttributeError, OSError):
        raise InputError(
            f"token provider {chosen[0].name} is installed but cannot be loaded",
            code="bad-token-provider",
            hint=f"install it again with what it needs; its entry point is {chosen[0].value}",
        ) from None
    return provider


def _token_failed(fault: Fault) -> MinshuError:
    match fault:
        case "no-key":
            return InputError(
                "no Ed25519 key pair on the token has this label and id",
                code="no-token-key",
                hint="list the token's objects, and correct object or id in the URI",
            )
        case "several-keys":
            return InputError(
                "more than one Ed25519 key pair on the token has this label and id",
                code="several-token-keys",
                hint="give both object and id in the URI",
            )
        case "pin-refused":
            return InputError(
                "the token refused the PIN",
                code="bad-pin",
                hint=f"correct it, in pin-source or {SECRET_FILES['pin']}: a few wrong PINs lock a token",
            )
        case "pin-locked":
            return InputError(
                "the token has locked its PIN",
                code="pin-locked",
                hint="its security officer can unlock it",
            )
        case "no-token":
            return Unreachable(
                "no token fits the URI", code="no-token", hint="plug the token in, or correct the URI"
            )
        case _:
            return Unreachable(
                "the token failed",
                code="token-failed",
                hint="check that it is plugged in, and run its vendor's test",
            )


# ---------------------------------------------------------------- RFC 7512

_PATH_ATTRIBUTES: Final = ("token", "manufacturer", "serial", "model", "object", "id", "type")
_QUERY_ATTRIBUTES: Final = ("pin-source", "module-name", "module-path")

# pk11-pchar and pk11-qchar of RFC 7512 2.3; anything else is percent-encoded or refused.
_PATH_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})+")
_QUERY_VALUE: Final = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})+")
_FILE_PATH: Final = re.compile(r"(?:[A-Za-z0-9\-._~:@!$&'()*+,;=/]|%[0-9A-Fa-f]{2})+")  # RFC 8089, RFC 3986


def parse_token_uri(text: str) -> TokenUri:
    """Return what a `pkcs11:` URI says.

    Stricter than RFC 7512, for a key nobody meant must not sign: only the attributes of `TokenUri` and
    `type=private` are known; none is empty or given twice; object or id is there; pin-value is refused, since
    a URI stands in settings and process lists; pin-source is a file.

    Raises:
        InputError: not such a URI. What it says is not repeated, it may hold a PIN.
    """
    if len(text) > MAX_URI_CHARACTERS:
        raise _bad_uri(f"is longer than {MAX_URI_CHARACTERS} characters")
    if text[:7].lower() != "pkcs11:":
        raise _bad_uri("does not begin with pkcs11:")
    path, question, query = text[7:].partition("?")
    inside = _attributes(path, ";", _PATH_ATTRIBUTES, _PATH_VALUE)
    beside = _attributes(query, "&", _QUERY_ATTRIBUTES, _QUERY_VALUE) if question else {}
    if inside.get("type", b"private") != b"private":
        raise _bad_uri("has a type other than private")
    if not inside.keys() & {"object", "id"}:
        raise _bad_uri("names no key by object or id")
    texts = {name: _text(name, value) for name, value in (inside | beside).items() if name != "id"}
    paths = {name: _path(texts[name], name) for name in ("module-path", "pin-source") if name in texts}
    return TokenUri(
        token=texts.get("token"),
        manufacturer=texts.get("manufacturer"),
        serial=texts.get("serial"),
        model=texts.get("model"),
        object=texts.get("object"),
        id=inside.get("id"),
        module_name=texts.get("module-name"),
        module_path=paths.get("module-path"),
        pin_source=paths.get("pin-source"),
    )


def _attributes(
    text: str, separator: str, known: tuple[str, ...], value_form: re.Pattern[str]
) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number, attribute in enumerate(text.split(separator), 1):
        name, _, value = attribute.partition("=")
        if name == "pin-value":
            raise InputError(
                "the pkcs11: URI holds a PIN, which whoever sees the URI can read",
                code="pin-in-uri",
                hint="put the PIN in a file of mode 0600 and name it by pin-source; change this PIN",
            )
        if name not in known:
            raise _bad_uri(f"has at place {number} none of the attributes {', '.join(known)}")
        if name in found:
            raise _bad_uri(f"gives {name} twice")
        if not value_form.fullmatch(value):
            raise _bad_uri(f"has {name} empty, or with a character that is not percent-encoded")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad_uri(f"has a {name} that is not UTF-8") from None
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise _bad_uri(f"has a control character in {name}")
    return text


def _path(text: str, name: str) -> Path:
    """Return the absolute path that `text` is, or that it is the `file:` URI of (RFC 8089)."""
    path = text
    if text[:5].lower() == "file:":
        path = text[5:]
        if path.startswith("//"):
            host, slash, rest = path[2:].partition("/")
            path = slash + rest if host in ("", "localhost") else ""
        if not _FILE_PATH.fullmatch(path):
            path = ""
        path = os.fsdecode(unquote_to_bytes(path))
    if not path.startswith("/") or "\0" in path:
        raise InputError(
            f"{name} is not given by an absolute path or a file: URI with one",
            code="bad-key-uri",
            hint="write it as /path/to/file or file:///path/to/file",
        )
    return Path(path)


def _bad_uri(what: str) -> InputError:
    return InputError(
        f"the pkcs11: URI {what}",
        code="bad-key-uri",
        hint="write it as pkcs11:token=NAME;object=LABEL?pin-source=file:///path/to/pin (RFC 7512)",
    )
