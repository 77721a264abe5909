"""What databases say differently, as expressions of SQLAlchemy: exact texts, days, canonical identifiers."""

from collections.abc import Sequence
from datetime import date
from functools import reduce
from typing import TYPE_CHECKING, Any, Final

from protocols.tables.grouped import DIGITS, Birth, Checksum, Form

if TYPE_CHECKING:
    import sqlalchemy as sa

    Expression = sa.ColumnElement[Any]

MAX_BINDS: Final = 30_000
"""Most values in one statement: PostgreSQL's protocol counts them in 16 bits."""

_DIALECTS: Final = {
    # Windows, and comparison of bytes without padding.
    "postgresql": (11,),
    "mariadb": (10, 2),
    "mysql": (8, 0, 17),
    "sqlite": (3, 25),
}


class ReadRows(Exception):  # no error: it says which way to go
    """The source cannot count this just as we would; the rows are to be read. Says why, without a value."""


class Words:
    """One database's words.

    Attributes:
        name: `postgresql`, `mariadb`, `mysql` or `sqlite`.
    """

    def __init__(self, dialect: "sa.Dialect") -> None:
        """Take SQLAlchemy's dialect, as the server was found.

        Raises:
            ReadRows: nobody has held what such a database counts against our own counting.
        """
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        least = _DIALECTS.get(name)
        if least is None:
            raise ReadRows(f"what {name} counts has not been held against our own counting")
        version = getattr(dialect, "server_version_info", None)
        if version and tuple(version[: len(least)]) < least:
            raise ReadRows("the database is of a version that compares or ranks otherwise")
        self.name = name
        self._bytes = name == "mariadb"

    # -- texts -----------------------------------------------------------------------------------------------

    def exact(self, column: "Expression") -> "Expression":
        """Return a column of text that compares byte by byte, blanks at the end told apart."""
        import sqlalchemy as sa
        from sqlalchemy.dialects import mysql

        if self._bytes:
            return sa.cast(sa.cast(column, mysql.CHAR(charset="utf8mb4")), sa.LargeBinary)
        if self.name == "mysql":
            # Its regular expressions take no bytes; this collation pads nothing.
            return sa.collate(sa.cast(column, mysql.CHAR(charset="utf8mb4")), "utf8mb4_0900_bin")
        if self.name == "postgresql":
            return sa.collate(sa.cast(column, sa.Text), "C")
        return sa.collate(column, "BINARY")

    def text(self, value: str) -> "Expression":
        """Return a text as a bind parameter that compares so."""
        import sqlalchemy as sa

        if self._bytes:
            return sa.literal(value.encode(), sa.LargeBinary)
        return sa.literal(value, sa.Text())

    def among(self, value: "Expression", texts: Sequence[object]) -> "Expression":
        """Return whether a column that compares exactly has one of these values."""
        import sqlalchemy as sa

        plain = [text.encode() if self._bytes and isinstance(text, str) else text for text in texts]
        return value.in_(plain) if plain else sa.false()

    def _part(self, text: "Expression", start: int, length: int) -> "Expression":
        """Return some characters, counted from 1."""
        import sqlalchemy as sa

        found: Expression = sa.func.substr(text, start, length, type_=text.type)
        return found

    # -- numbers and days ------------------------------------------------------------------------------------

    def number(self, column: "Expression") -> "Expression":
        """Return whole numbers that compare and multiply as numbers of 64 bits."""
        import sqlalchemy as sa

        if self.name in ("mariadb", "mysql"):
            # A year of two digits is no number; and unsigned ones must not become negative.
            return sa.type_coerce(column + sa.literal(0, sa.Integer), sa.BigInteger)
        return sa.cast(column, sa.BigInteger)

    def strange_day(self, column: "Expression") -> "Expression":
        """Return whether a day or time is none of the calendar from year 1 to 9999."""
        import sqlalchemy as sa

        if self.name in ("mariadb", "mysql"):
            zero = sa.literal(0, sa.Integer)
            day = sa.func.dayofmonth(column, type_=sa.Integer)
            ends = sa.func.dayofmonth(sa.func.last_day(column, type_=sa.Date), type_=sa.Integer)
            # ALLOW_INVALID_DATES lets any month have 31 days.
            return sa.or_(
                day == zero,
                sa.func.month(column, type_=sa.Integer) == zero,
                day > sa.func.coalesce(ends, zero),
            )
        first, last = sa.literal(date.min, sa.Date), sa.literal(date.max, sa.Date)
        return sa.or_(column < first, column > last)

    # -- identifiers -----------------------------------------------------------------------------------------

    def doubtful(self, table: "sa.FromClause", text: "Expression", form: Form) -> "sa.Select[Any]":
        """Return what asks for the different texts, as `v`, that have not the form for sure."""
        import sqlalchemy as sa

        there = sa.select(text.label("v")).select_from(table).where(text.is_not(None))
        if self.name == "postgresql" and form.length:
            # Once for each row, behind a fence: the planner would write it out for each character.
            stored = sa.func.convert_to(text, "UTF8", type_=sa.LargeBinary)
            there = there.add_columns(stored.label("b")).offset(0)
        seen = there.subquery("i")
        sound = self.sound(seen.c.v, form, seen.c.get("b"))
        return sa.select(seen.c.v).where(~sound).distinct()

    def sound(self, text: "Expression", form: Form, stored: "Expression | None" = None) -> "Expression":
        """Return whether a text, which is not null, has the form for sure.

        Args:
            text: compares exactly.
            form: which.
            stored: of PostgreSQL, its bytes where they are at hand.
        """
        import sqlalchemy as sa

        tests: list[Expression] = []
        if self.name != "postgresql" or not form.length:
            tests.append(self._matches(text, form.pattern))
        else:
            # To look for a wrong character takes a fifth of the time of matching the right ones.
            tests += [
                ~self._matches(self._part(text, start, length), f"[^{characters}]")
                for start, length, characters in form.segments
            ]
        if form.prefixes:
            begins = (
                self.among(self._part(text, start, length), texts)
                for (start, length), texts in form.prefixes.items()
            )
            tests.append(sa.or_(*begins))
        if form.never:
            tests.append(~self.among(self._part(text, 1, len(form.never[0])), form.never))
        if form.not_these:
            tests.append(~self.among(text, form.not_these))
        if form.birth:
            tests += self._born(text, form.birth)
        if form.checksum:
            tests.append(self._checks(text, form, form.checksum, stored))
        if not form.length:
            # A `$` also stands before a line's end, and some servers take lines for texts.
            return sa.and_(*tests, ~self._matches(text, "[^ -~]"))
        # First the length: a byte that is not there is an error.
        fits = sa.func.length(text, type_=sa.Integer) == sa.literal(form.length, sa.Integer)
        return sa.case((fits, _flag(sa.and_(*tests))), else_=sa.literal(0, sa.Integer)) == sa.literal(
            1, sa.Integer
        )

    def _matches(self, text: "Expression", pattern: str) -> "Expression":
        import sqlalchemy as sa

        return sa.type_coerce(text, sa.Text).regexp_match(sa.literal(pattern, sa.Text()))

    def _born(self, text: "Expression", birth: Birth) -> "list[Expression]":
        import sqlalchemy as sa

        day, year = self._part(text, birth.start, 8), self._part(text, birth.start, 4)
        month_day = self._part(text, birth.start + 4, 4)
        return [
            day > self.text(birth.after),
            day <= self.text(birth.until),
            self.among(month_day, birth.days),
            sa.or_(month_day != self.text("0229"), self.among(year, birth.leap_years)),
        ]

    def _checks(
        self, text: "Expression", form: Form, check: Checksum, stored: "Expression | None"
    ) -> "Expression":
        import sqlalchemy as sa

        made_of = [characters for _, length, characters in form.segments for _ in range(length)]
        terms = [
            self._worth(text, stored, at, characters, check.alphabet) * sa.literal(weight, sa.Integer)
            for at, (weight, characters) in enumerate(zip(check.weights, made_of, strict=True), start=1)
        ]
        total = reduce(lambda a, b: a + b, terms)
        return sa.func.mod(total, sa.literal(check.modulus, sa.Integer)) == sa.literal(
            check.remainder, sa.Integer
        )

    def _worth(
        self, text: "Expression", stored: "Expression | None", at: int, characters: str, alphabet: str
    ) -> "Expression":
        """Return where a character, one of `characters`, stands in an alphabet, from 0."""
        import sqlalchemy as sa

        if stored is not None and characters in (DIGITS, DIGITS + "X") and alphabet.startswith(DIGITS):
            byte = sa.func.get_byte(stored, at - 1, type_=sa.Integer)
            digit = byte - sa.literal(ord("0"), sa.Integer)
            if characters == DIGITS:
                return digit
            ten = sa.literal(alphabet.index("X"), sa.Integer)
            return sa.case((byte == sa.literal(ord("X"), sa.Integer), ten), else_=digit)
        here = sa.func.strpos if self.name == "postgresql" else sa.func.instr
        place = here(self.text(alphabet), self._part(text, at, 1), type_=sa.Integer)
        return place - sa.literal(1, sa.Integer)


def _flag(condition: "Expression") -> "Expression":
    import sqlalchemy as sa

    return sa.case((condition, sa.literal(1, sa.Integer)), else_=sa.literal(0, sa.Integer))
