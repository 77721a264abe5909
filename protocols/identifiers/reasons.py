"""Why a row has no key: stable codes, in the order in which they are tested."""

from enum import IntEnum, unique


@unique
class Reason(IntEnum):
    """The first rule a row breaks. The numbers are stored with snapshots and never change meaning."""

    ACCEPTED = 0
    NULL = 1  # no value
    EMPTY = 2  # nothing but spaces
    NOT_UTF8 = 3  # bytes that are no text
    UNKNOWN_TYPE = 4  # the row's type is missing or not one of ours
    BAD_LENGTH = 5
    BAD_CHARACTER = 6
    BAD_CHECK_DIGIT = 7
    BAD_DATE = 8  # not a day of the calendar
    FUTURE_DATE = 9  # born after `as_of`
    OVER_120 = 10  # older than 120 completed years at `as_of`
    UNKNOWN_AREA = 11  # an area code that the table does not list
    UNKNOWN_COUNTRY = 12  # letters that are no country's code
    OTHER_TYPE = 13  # well formed, but a number of another type
    PLACEHOLDER = 14  # one character throughout, or letters only: "000000000", "UNKNOWN"
    NO_COUNTRY_CODE = 15  # a phone number that could be anywhere

    @property
    def code(self) -> str:
        """The kebab-case name used in journals, preflights and scripts."""
        return self.name.lower().replace("_", "-")
