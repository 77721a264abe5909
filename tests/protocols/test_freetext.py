"""What a terminal shows of words that other people chose."""

import sys

import pytest

from protocols.freetext import UNREADABLE, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("接种率 ε = 0.5, „x“", "接种率 ε = 0.5, „x“"),
        ("a\x1b[2J\x1b]0;x\x07", r"a\x1b[2J\x1b]0;x\x07"),
        ("a\r\nb\t\x9b", r"a\r\nb\t\x9b"),
        ("\u202eevil\u2028", r"\u202eevil\u2028"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text, shown):
    assert printable(text) == shown


def test_nothing_that_is_printed_moves_a_cursor_or_turns_a_line():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert UNREADABLE.search(printable(every)) is None
    assert printable(printable(every)) == printable(every)
