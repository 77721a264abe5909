"""Identifiers that belong to nobody: resident ids, phones, credit codes, names, all drawn in bulk.

A resident id is (area, birth date, sex) and a sequence number. People with the same first three are numbered
0, 1, 2 … by the plan; a keyed affine map permutes those numbers, so ids are unique and their sequence says
nothing about the order of drawing. The thousand sequence numbers are shared out: SLOTS for people, as many
for second ids, the rest for the ids of `garbage_register`; 996-999 mark centenarians and stay free.
"""

import hashlib
import math
import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from demo.city.plan import SLOTS, Ints
from demo.city.profile import AREA_CODES, SNAPSHOT
from protocols.identifiers import resident_id_check_digits

Text = npt.NDArray[np.uint8]
"""n x width ASCII codes: one fixed-width text per row."""

FREE_SLOTS: Final = (2 * SLOTS, 497)
"""First slot of the ids that belong to nobody, and one past the last: 497 would reach sequence 996."""

_FIRST_YEAR: Final = SNAPSHOT.year - 100
_FIRST_DAY: Final = np.datetime64(f"{_FIRST_YEAR}-01-01", "D")
_ALL_DAYS: Final = np.arange(_FIRST_DAY, np.datetime64(f"{SNAPSHOT.year + 1}-01-01", "D"))
_YEAR_START: Final = (
    np.arange(_FIRST_YEAR, SNAPSHOT.year + 2).astype("U4").astype("datetime64[D]") - _FIRST_DAY
).astype(np.int64)


def _decimals(width: int) -> Text:
    """Return the numbers of so many digits, zero-padded, as ASCII: 10^width x width."""
    return (np.arange(10**width)[:, None] // 10 ** np.arange(width)[::-1] % 10 + 0x30).astype(np.uint8)


_THREE_DIGITS: Final = _decimals(3)
_FOUR_DIGITS: Final = _decimals(4).view(np.uint32).ravel()
"""Four digits at once: their codes in one word."""


def _modulo(values: Ints, divisor: int) -> Ints:
    """Return `values % divisor` for values from 0 on; numpy divides by vectors, takes remainders singly."""
    return values - values // divisor * divisor


def _digits(values: Ints, width: int) -> Text:
    """Return decimal digits, zero-padded, as ASCII."""
    words = -(-width // 4)
    out = np.empty((len(values), words), dtype=np.uint32)
    for word in reversed(range(words)):
        higher = values // 10_000
        out[:, word] = _FOUR_DIGITS.take(values - higher * 10_000)
        values = higher
    return out.view(np.uint8)[:, 4 * words - width :]


def _rows(texts: list[str]) -> Text:
    return np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8).reshape(len(texts), -1)


_DAY_DIGITS: Final = _rows([str(day).replace("-", "") for day in _ALL_DAYS])
_AREA_DIGITS: Final = _rows(list(AREA_CODES))


def generator(seed: int, table: str, block: int) -> np.random.Generator:
    """Return the random stream of one block of one table: Philox keyed by (seed, table, block)."""
    stream = int.from_bytes(hashlib.sha256(f"minshu/city/1/{table}".encode()).digest()[:4], "big")
    key = np.array([seed, stream << 32 | block], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def drawn(rng: np.random.Generator, count: int, per_mille: int) -> npt.NDArray[np.bool_]:
    """Return which of `count` entries are chosen at random: count * per_mille // 1000 of them exactly."""
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[rng.permutation(count)[: count * per_mille // 1000]] = True
    return chosen


def mix(values: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits per value: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), keyed."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def birth_days(
    seed: int, area: Ints, male: npt.NDArray[np.bool_], age: Ints, number: Ints
) -> tuple[Ints, Ints]:
    """Return (day, number within that day) of the `number`-th person of one area, sex and year of birth.

    Days count from 1 January of the first year of birth; consecutive numbers fall on different days.
    """
    year = SNAPSHOT.year - _FIRST_YEAR - age
    length = _YEAR_START[year + 1] - _YEAR_START[year]
    cell = ((area * 2 + male) * 256 + age).astype(np.uint64)
    offset = (mix(cell, seed) >> np.uint64(32)).astype(np.int64)
    # 103 is coprime to 365 and 366, so a year's days are permuted.
    day = _YEAR_START[year] + (number * 103 + offset) % length
    return day, number // length


def person_slots(seed: int, area: Ints, male: npt.NDArray[np.bool_], day: Ints, number: Ints) -> Ints:
    """Return the slot in [0, SLOTS) of the `number`-th person of one area, sex and day."""
    key = mix(((area * 2 + male) * len(_ALL_DAYS) + day).astype(np.uint64), seed ^ 0x5EED)
    step = 1 + (key % np.uint64(SLOTS - 1)).astype(np.int64)
    offset = (key >> np.uint64(40)).astype(np.int64)
    return (number * step + offset) % SLOTS


def resident_ids(area: Ints, male: npt.NDArray[np.bool_], day: Ints, slot: Ints) -> Text:
    """Return n x 18 valid resident ids; a slot is one odd (male) and one even (female) sequence number."""
    body = np.empty((len(area), 18), dtype=np.uint8)
    body[:, :6] = _AREA_DIGITS.take(area, axis=0)
    body[:, 6:14] = _DAY_DIGITS.take(day, axis=0)
    body[:, 14:17] = _THREE_DIGITS.take(2 * slot + np.where(male, 1, 2), axis=0)
    body[:, 17] = resident_id_check_digits(np.ascontiguousarray(body[:, :17]))
    return body


_ADULT_DAYS: Final = (int(_YEAR_START[2]), int(_YEAR_START[-19]))
"""First day of birth of the ids that belong to nobody, and one past the last: adults, as most people are."""

NOBODY: Final = 2 * len(AREA_CODES) * (FREE_SLOTS[1] - FREE_SLOTS[0]) * (_ADULT_DAYS[1] - _ADULT_DAYS[0])
"""How many ids belong to nobody."""


def nobody(first: int, count: int, seed: int) -> tuple[Ints, npt.NDArray[np.bool_], Ints, Ints]:
    """Return (area, male, day, slot) of `count` different ids that no profile and no seed gives to a person.

    Args:
        first: number of the first; ranges that do not overlap give different ids.
        count: how many; `first + count` is at most NOBODY.
        seed: another seed, another order of the same ids.
    """
    # The step is coprime to NOBODY and about its golden section: a walk over all ids, evenly spread.
    at = ((first + np.arange(count, dtype=np.int64)) * _STEP + seed % NOBODY) % NOBODY
    at, area = np.divmod(at, len(AREA_CODES))
    at, male = np.divmod(at, 2)
    day, slot = np.divmod(at, FREE_SLOTS[1] - FREE_SLOTS[0])
    return area, male == 1, _ADULT_DAYS[0] + day, FREE_SLOTS[0] + slot


_STEP: Final = next(step for step in range(NOBODY * 618 // 1000, NOBODY) if math.gcd(step, NOBODY) == 1)


def dates(day: Ints) -> pa.Array:
    """Return days as Arrow date32."""
    return pa.array((_FIRST_DAY + day).astype("datetime64[D]"), type=pa.date32())


SNAPSHOT_DAY: Final = int((np.datetime64(SNAPSHOT, "D") - _FIRST_DAY).astype(np.int64))
"""The day of the extract, on the scale of `birth_days`."""


def phones(serial: Ints) -> Text:
    """Return n x 11 different phone numbers under 154, which is assigned to no operator."""
    out = np.empty((len(serial), 11), dtype=np.uint8)
    out[:, :3] = np.frombuffer(b"154", dtype=np.uint8)
    out[:, 3:] = _digits(_modulo(serial * 61_803_399, 10**8), 8)
    return out


def account_numbers(prefix: str, serial: Ints, width: int) -> Text:
    """Return fixed-width numbers: `prefix`, then `width` digits in no visible order."""
    head = np.frombuffer(prefix.encode("ascii"), dtype=np.uint8)
    out = np.empty((len(serial), len(head) + width), dtype=np.uint8)
    out[:, : len(head)] = head
    out[:, len(head) :] = _digits(_modulo(serial * 618_033_989, 10**width), width)
    return out


_USCC_ALPHABET: Final = np.frombuffer(b"0123456789ABCDEFGHJKLMNPQRTUWXY", dtype=np.uint8)
_USCC_VALUE: Final = np.zeros(128, dtype=np.int64)
_USCC_VALUE[_USCC_ALPHABET] = np.arange(31)
_ORG_WEIGHTS: Final = np.array([3, 7, 9, 10, 5, 8, 4, 2], dtype=np.int64)
_ORG_CHECK: Final = np.frombuffer(b"0X987654321", dtype=np.uint8)
_USCC_WEIGHTS: Final = np.array([pow(3, i, 31) for i in range(17)], dtype=np.int64)


def credit_codes(number: Ints) -> Text:
    """Return n x 18 valid unified social credit codes (GB 32100-2015) of fictional enterprises.

    Registered with department 9, category 1; the organisation code within (GB 11714) has its own check.
    """
    out = np.empty((len(number), 18), dtype=np.uint8)
    out[:, :2] = np.frombuffer(b"91", dtype=np.uint8)
    out[:, 2:8] = _AREA_DIGITS.take(number % len(AREA_CODES), axis=0)
    organisation = _digits(_modulo(number * 61_803_399, 10**8), 8)
    out[:, 8:16] = organisation
    out[:, 16] = _ORG_CHECK[(organisation.astype(np.int64) - 0x30) @ _ORG_WEIGHTS % 11]
    total = _USCC_VALUE[out[:, :17]] @ _USCC_WEIGHTS
    out[:, 17] = _USCC_ALPHABET[(31 - total % 31) % 31]
    return out


def text_array(texts: Text) -> pa.Array:
    """Return fixed-width ASCII texts as an Arrow string array, without building a single str."""
    count, width = texts.shape
    offsets = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    data = np.ascontiguousarray(texts)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(data))


def coded(
    texts: tuple[str, ...], index: npt.NDArray[Any], present: npt.NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return `texts[index]` as an Arrow dictionary array, null where not `present`: no text is copied."""
    mask = None if present is None else ~present
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32), mask=mask), pa.array(texts))


# Surnames and their bearers per ten thousand people, roughly as the name reports of the Ministry of Public
# Security give them; the tail is assumed.
_SURNAMES: Final = re.findall(
    r"(\D)(\d+) ?",
    "王722 李719 张680 刘538 陈453 杨308 黄223 赵229 吴205 周203 徐145 孙154 马129 朱126 胡131 郭115 "
    "何117 高111 林118 罗107 郑95 梁84 谢76 宋81 唐73 许75 韩68 冯64 邓67 曹62 彭66 曾65 肖62 田51 "
    "董60 袁56 潘50 于62 蒋54 蔡53 余44 杜51 叶45 程54 苏49 魏49 吕46 丁44 任43 沈44 姚41 卢43 姜40 "
    "崔38 钟39 谭38 陆36 汪38 范37 金35 石34 廖34 贾37 夏35 韦33 付31 方34 白31 邹32 孟30 熊30 秦31 "
    "邱29 江29 尹28 薛28 闫29 段27 雷28 侯27 龙27 史25 陶24 黎24 贺24 顾23 毛24 郝24 龚23 邵23 万23 "
    "钱22 严21 覃21 武20 戴20 莫20 孔20 向20 汤19",
)
_FEMALE: Final = "芳娜秀英敏静丽艳娟霞红玉兰梅雪莲慧颖婷琳洁蕾薇瑶怡萱欣雅诗梦"
_MALE: Final = "伟强磊军洋勇杰涛明超刚平辉鹏华飞建国志文浩宇轩泽子俊博天睿晨"
# Given names with the dot U+00B7 of transliterated names; the parts are common words, not persons.
_DOTTED: Final = (
    "阿依古丽·买买提",
    "吐尔逊·艾力",
    "巴特尔·额尔敦",
    "卓玛·次仁",
    "古丽娜尔·阿不都",
    "哈斯·巴雅尔",
    "扎西·多吉",
    "麦麦提·图尔荪",
)
_DOTTED_PER_MILLE: Final = 5

_SURNAME_TEXT: Final = pa.array([name for name, _ in _SURNAMES])
_SURNAME_END: Final = np.cumsum([int(bearers) for _, bearers in _SURNAMES])
_GIVEN: Final = [
    [first + second for first in ["", *sex] for second in sex if first != second] for sex in (_FEMALE, _MALE)
]
_GIVEN_TEXT: Final = pa.array(_GIVEN[0] + _GIVEN[1])
_DOTTED_TEXT: Final = pa.array(_DOTTED)


def names(rng: np.random.Generator, male: npt.NDArray[np.bool_]) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Return a name per person, and which of them are written with a dot."""
    count = len(male)
    surname = np.searchsorted(_SURNAME_END, rng.integers(0, _SURNAME_END[-1], count), side="right")
    choices = np.where(male, len(_GIVEN[1]), len(_GIVEN[0]))
    given = rng.integers(0, choices) + male * len(_GIVEN[0])
    plain = pc.binary_join_element_wise(
        _SURNAME_TEXT.take(pa.array(surname)), _GIVEN_TEXT.take(pa.array(given)), ""
    )
    dotted = rng.integers(0, 1000, count) < _DOTTED_PER_MILLE
    other = _DOTTED_TEXT.take(pa.array(rng.integers(0, len(_DOTTED), count)))
    return pc.if_else(pa.array(dotted), other, plain), dotted
