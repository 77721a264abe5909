"""What people write in their own words and what then leaves a department: reasons and notes."""

import re
from typing import Final

_LONG_NUMBER: Final = re.compile(r"\d{11}")


def could_identify(text: str) -> bool:
    """Whether a text holds eleven digits in a row, in any script: a mobile number has as many, an id more."""
    return _LONG_NUMBER.search(text) is not None
