"""A template of a policy → a policy: ids of keys in place of aaa…, ddd…, eee…, and days."""

import re
import zoneinfo
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from policies.parse import parse_policy
from protocols.envelope import key_id
from protocols.errors import InputError

PLACEHOLDERS: Final = {name: f"sha256:{letter * 64}" for name, letter in
                       (("analyst", "a"), ("dpo", "d"), ("owner", "e"))}  # fmt: skip
"""Whose key's id stands where in the examples."""

DAYS: Final = ("not_before", "expires", "valid_until")
"""Keys whose day is put in; the time of day and the offset stay as the template has them."""

_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_AHEAD: Final = re.compile(r"\+([0-9]{1,4})d")


@dataclass(frozen=True, slots=True)
class Filled:
    """The policy, and which values the template has no place for."""

    data: bytes
    unused: tuple[str, ...]


def fill(
    template: bytes, values: Sequence[str], *, now: datetime, read_key: Callable[[str], bytes]
) -> Filled:
    """Return the template with `values` in it; every comment and every other character stays.

    Args:
        template: a well-formed policy with placeholders.
        values: `KEY=VALUE` each: `analyst`, `dpo`, `owner` with an id or what `read_key` takes;
            `not_before`, `expires`, `valid_until` with a day, `today`, or `+90d`, in the policy's timezone.
        now: the clock.
        read_key: path → raw public key.

    Raises:
        InputError: an unknown or repeated key, a value that is none, or a placeholder that stays.
        PolicyInvalid: the template, or what comes of it, is no policy.
    """
    zone = zoneinfo.ZoneInfo(parse_policy(template).policy.timezone)
    today = now.astimezone(zone).date()
    text = template.decode("utf-8")
    seen: set[str] = set()
    unused: list[str] = []
    for given in values:
        name, equals, value = given.partition("=")
        if not equals or name not in (*PLACEHOLDERS, *DAYS):
            raise InputError(
                f"--set {name} is nothing a template has a place for",
                code="unknown-key",
                hint=f"known: {', '.join((*PLACEHOLDERS, *DAYS))}, each with = and a value",
            )
        if name in seen:
            raise InputError(f"{name} is set twice", code="listed-twice", hint="set it once")
        seen.add(name)
        if name in PLACEHOLDERS:
            old, new = re.escape(PLACEHOLDERS[name]), _identifier(value, read_key)
        else:
            old, new = rf"(?m)(?<=^{name} = )[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}", _day(name, value, today)
        text, times = re.subn(old, new, text)
        if not times:
            unused.append(name)
    left = [name for name, placeholder in PLACEHOLDERS.items() if placeholder in text]
    if left:
        raise InputError(
            f"the template still has the placeholder of {', '.join(left)}",
            code="placeholder-left",
            hint="add " + " ".join(f"--set {name}=FILE.pub" for name in left),
        )
    data = text.encode("utf-8")
    parse_policy(data)
    return Filled(data, tuple(unused))


def _identifier(value: str, read_key: Callable[[str], bytes]) -> str:
    return value if _ID.fullmatch(value) else key_id(read_key(value))


def _day(name: str, value: str, today: date) -> str:
    if value == "today":
        return today.isoformat()
    if ahead := _AHEAD.fullmatch(value):
        return (today + timedelta(days=int(ahead.group(1)))).isoformat()
    try:
        if _DAY.fullmatch(value):
            return date.fromisoformat(value).isoformat()
    except ValueError:
        pass  # the 30th of February has the form of a day and is none
    raise InputError(
        f"--set {name}: no day", code="bad-time", hint="write a day such as 2026-12-01, today, or +90d"
    )
