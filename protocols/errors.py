"""The error tree.

MinshuError                 code, message, hint
├── InputError              what a person or a dataset handed in is not usable
├── DecodeError             bytes are not the canonical form of the message they claim to be
├── SignatureInvalid        a signature, key or threshold does not hold
├── PolicyInvalid           a policy file is wrong, with its line
├── Refused                 a rule says no, with the rule id
├── ProtocolAborted         a peer's message, count or guard broke the protocol
├── StateConflict           the step does not fit the state (replay, second process, roll-back)
└── Unreachable             the other side could not be reached, or went away

Every error says what was found, what was expected and, in `hint`, what to do next. None ever carries an
identifier, a row, a share or a key.
"""

from typing import ClassVar


class MinshuError(Exception):
    """An error with a stable reason code, a sentence and a hint.

    Args:
        message: what was found and what was expected, one sentence.
        code: stable, kebab-case reason code, fit for journals and scripts.
        hint: what to do next, one sentence.
    """

    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint


class InputError(MinshuError):
    """What a person or a dataset handed in is not usable."""

    default_code = "bad-input"


class DecodeError(MinshuError):
    """Bytes are not the canonical form of the message they claim to be."""

    default_code = "bad-encoding"


class SignatureInvalid(MinshuError):
    """A signature, key or threshold does not hold."""

    default_code = "bad-signature"


class PolicyInvalid(MinshuError):
    """A policy file is wrong.

    Args:
        message: what was found and what was expected.
        code: reason code.
        hint: what to do next.
        line: 1-based line in policy.toml, 0 where no single line is at fault.
    """

    default_code = "policy-invalid"

    def __init__(self, message: str, *, code: str = "", hint: str = "", line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message, code=code, hint=hint)
        self.line = line


class Refused(MinshuError):
    """A rule says no.

    Args:
        message: why.
        code: reason code.
        hint: what would make it pass.
        rule: id of the rule that decided, empty where none matched.
    """

    default_code = "refused"

    def __init__(self, message: str, *, code: str = "", hint: str = "", rule: str = "") -> None:
        super().__init__(message, code=code, hint=hint)
        self.rule = rule


class ProtocolAborted(MinshuError):
    """A peer's message, count or guard broke the protocol."""

    default_code = "protocol-aborted"


class StateConflict(MinshuError):
    """The step does not fit the state (replay, second process, roll-back)."""

    default_code = "state-conflict"


class Unreachable(MinshuError):
    """The other side could not be reached, or went away."""

    default_code = "unreachable"
