"""What a text file is written in: found out once, when it is registered. Reading it, nobody guesses."""

import codecs
import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from protocols.errors import InputError

CHUNK_BYTES: Final = 1 << 18
SAMPLE_BYTES: Final = 1 << 16
SAMPLE_LINES: Final = 100
DELIMITERS: Final = (",", "\t", ";", "|")
ENCODINGS: Final = {
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "utf-8-sig": "utf-8",
    "gb18030": "gb18030",
    # Both are parts of it.
    "gbk": "gb18030",
    "gb2312": "gb18030",
}
"""What an encoding may be called, and which it is."""

_SHOWN: Final = {"utf-8": "UTF-8", "gb18030": "GB18030"}
_CODES: Final = {"utf-8": "not-utf8", "gb18030": "not-gb18030"}
# fmt: off
_EARLIER: Final = {
    0xE7C7: 0x1E3F,
    **dict(zip(range(0xE78D, 0xE797), (0xFE10, 0xFE12, 0xFE11, *range(0xFE13, 0xFE1A)), strict=True)),
    0xE81E: 0x9FB4, 0xE826: 0x9FB5, 0xE82B: 0x9FB6, 0xE82C: 0x9FB7,
    0xE832: 0x9FB8, 0xE843: 0x9FB9, 0xE854: 0x9FBA, 0xE864: 0x9FBB,
    0xE816: 0x20087, 0xE817: 0x20089, 0xE818: 0x200CC, 0xE831: 0x215D7, 0xE83B: 0x2298F, 0xE855: 0x241FE,
}
# fmt: on
"""What Python, by GB 18030-2000, decodes to private use, and its characters in Unicode since.

GB 18030-2005 moved U+E7C7, GB 18030-2022 eighteen others; the last six have code points of Unicode too, as
the Encoding Standard decodes them. One name is one text then, in whichever encoding it came.
"""

_PRIVATE = re.compile("[\ue000-\uf8ff]")
_MAX_PRIVATE: Final = 0.001
"""Of text that is no ASCII, the most that may be in private use: a rare name of a department's own font."""

_Open = Callable[[], BinaryIO]
_OTHERS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text file is written: `utf-8` or `gb18030`, and the character between values."""

    encoding: str
    delimiter: str


def not_text(encoding: str, line: int) -> InputError:
    """Return the error of bytes that are no text of an encoding; `line` from 1, 0 if unknown."""
    where = f", line {line}" if line else ""
    return InputError(
        f"the file is not {_SHOWN[encoding]} text{where}",
        code=_CODES[encoding],
        hint="register it again with the encoding it has, or convert it, as by iconv -f GB18030 -t UTF-8",
    )


def texts(file: BinaryIO, encoding: str) -> Iterator[str]:
    """Yield a file's text piece by piece, a byte-order mark included; memory is one piece.

    Raises:
        InputError: `not-utf8` or `not-gb18030`, with the line of the first byte that cannot be read.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    while True:
        chunk = file.read(CHUNK_BYTES)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # In both encodings no character of several bytes contains that of a line end.
            raise not_text(encoding, line + error.object.count(b"\n", 0, error.start)) from None
        if encoding == "gb18030" and _PRIVATE.search(text):
            text = text.translate(_EARLIER)
        yield text
        if not chunk:
            return
        line += chunk.count(b"\n")


def detect(
    path: Path,
    *,
    encoding: str = "",
    delimiter: str = "",
    tell: Callable[[int], object] = lambda _bytes: None,
) -> Dialect:
    """Find out how a text file is written; what is given already is not looked for.

    The encoding is known of the whole file, not of its beginning: UTF-8 if all of it is, else GB18030 if all
    of it is. Text of one of them is almost never text of the other, but a file in UTF-8 with a few damaged
    bytes may pass for GB18030: where nine of ten characters are UTF-8, it is taken for what it is. Text of
    other East Asian encodings may pass for GB18030 too; where it would be in private use, it is refused. A
    short one may still pass: whoever registers it is told that it was taken for GB18030.

    Args:
        path: the file.
        encoding: `utf-8` or `gb18030`.
        delimiter: one character.
        tell: told of bytes that were read.

    Raises:
        InputError: `not-utf8` with a line, or `unknown-encoding`.
        OSError: the file cannot be read.
    """
    if not encoding:
        encoding = _encoding(lambda: path.open("rb"), tell)
    return Dialect(encoding, delimiter or _delimiter(path, encoding))


def decoded(data: bytes) -> str:
    """Return the text of a file that is in memory, without a byte-order mark.

    Raises:
        InputError: as `detect`.
    """
    encoding = _encoding(lambda: BytesIO(data), lambda _bytes: None)
    return "".join(texts(BytesIO(data), encoding)).removeprefix("\ufeff")


def _encoding(opened: _Open, tell: Callable[[int], object]) -> str:
    with opened() as file:
        head = file.read(SAMPLE_BYTES)
    if head.startswith(_OTHERS) or b"\0" in head:
        raise InputError(
            "the file is text of an encoding this node does not read, or no text",
            code="unknown-encoding",
            hint="save it as UTF-8, or convert it, as by iconv -f UTF-16 -t UTF-8",
        )
    try:
        _check(opened, "utf-8", tell)
    except InputError as not_utf8:
        if _damaged_utf8(opened):
            raise
        try:
            strange = _check(opened, "gb18030", tell)
        except InputError as not_gb18030:
            raise InputError(
                f"{not_utf8.message}, and {not_gb18030.message.removeprefix('the file is ')}",
                code="unknown-encoding",
                hint="save it as UTF-8",
            ) from None
        if strange > _MAX_PRIVATE:
            raise InputError(
                "the file is not UTF-8, and as GB18030 it would hold characters that nobody writes",
                code="unknown-encoding",
                hint="convert it, as by iconv -f BIG5 -t UTF-8; or say --encoding gb18030, if it is",
            ) from None
        return "gb18030"
    return "utf-8"


def _check(opened: _Open, encoding: str, tell: Callable[[int], object]) -> float:
    """Read all of a file; return how much of what is no ASCII is in private use, of GB18030 text."""
    private = every = 0
    with opened() as file:
        for text in texts(file, encoding):
            if encoding == "gb18030" and not text.isascii():
                every += len(text) - len(text.encode("ascii", "ignore"))
                private += len(_PRIVATE.findall(text))
            tell(file.tell())
    return private / every if every else 0.0


def _damaged_utf8(opened: _Open) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    right = wrong = 0
    with opened() as file:
        while right + wrong < SAMPLE_BYTES and (chunk := file.read(CHUNK_BYTES)):
            text = decoder.decode(chunk)
            damaged = text.count("\ufffd")
            wrong += damaged
            right += len(text) - len(text.encode("ascii", "ignore")) - damaged
    return right >= 9 * max(wrong, 1)


def _delimiter(path: Path, encoding: str) -> str:
    """Return the character that makes most columns of the header, best if of every line as many."""
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
    sample = head.decode(encoding, "ignore").removeprefix("\ufeff")
    whole = len(head) < SAMPLE_BYTES
    preferred = DELIMITERS if path.suffix.lower() != ".tsv" else ("\t", *DELIMITERS)
    best, most = preferred[0], (False, 1)
    for candidate in preferred:
        columns, alike = _columns(sample, candidate, whole=whole)
        if columns > 1 and (alike, columns) > most:
            best, most = candidate, (alike, columns)
    return best


def _columns(sample: str, delimiter: str, *, whole: bool) -> tuple[int, bool]:
    """Return how many columns the header has, and whether the first lines have as many."""
    try:
        reader = csv.reader(StringIO(sample, newline=""), delimiter=delimiter)
        records = [record for record in islice(reader, SAMPLE_LINES) if record]
    except csv.Error:
        return 0, False
    if not whole and len(records) > 1:
        records.pop()  # it may be cut
    if not records:
        return 0, False
    return len(records[0]), all(len(record) == len(records[0]) for record in records)
