"""Figures that everybody may see while a job goes on, such as a model's noisy AUC: few, short, named."""

import re
from collections.abc import Mapping
from typing import Final

from protocols.errors import DecodeError

MAX_FIGURES: Final = 8

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VALUE: Final = re.compile(r"[ -~]{1,24}")


def fits(name: str, value: str) -> bool:
    """Return whether this may be shown: a word in lower case, and at most 24 printable ASCII characters."""
    return _NAME.fullmatch(name) is not None and _VALUE.fullmatch(value) is not None


def shown(figures: Mapping[str, str]) -> dict[str, str]:
    """Return those that may be shown, by name, at most `MAX_FIGURES`."""
    fitting = [(name, value) for name, value in sorted(figures.items()) if fits(name, value)]
    return dict(fitting[:MAX_FIGURES])


def checked(figures: Mapping[str, str]) -> dict[str, str]:
    """Return figures as somebody else sent them, by name.

    Raises:
        DecodeError: too many, or one that may not be shown.
    """
    if len(figures) > MAX_FIGURES or shown(figures) != dict(figures):
        raise DecodeError(
            f"figures that are not at most {MAX_FIGURES} short texts under words in lower case",
            code="bad-figures",
        )
    return shown(figures)
