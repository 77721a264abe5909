"""The national code tables that ship with this program.

Of GB/T 2260 only the first level is shipped: counties change every year, and a list that is out of date is
worse than none. A department loads the list it works with, past codes included; see `read_code_table`.
"""

from datetime import date
from typing import Final

from protocols.codes.table import Code, CodeTable, CodeTables

GBT2261_1: Final = CodeTable.of(
    "gbt2261.1",
    "2003",
    "人的性别代码 GB/T 2261.1-2003",
    (
        Code("0", "未知的性别"),
        Code("1", "男性"),
        Code("2", "女性"),
        Code("9", "未说明的性别"),
    ),
)
"""Sex."""

GBT2261_2: Final = CodeTable.of(
    "gbt2261.2",
    "2003",
    "婚姻状况代码 GB/T 2261.2-2003",
    (
        Code("10", "未婚"),
        Code("20", "已婚"),
        Code("21", "初婚"),
        Code("22", "再婚"),
        Code("23", "复婚"),
        Code("30", "丧偶"),
        Code("40", "离婚"),
        Code("90", "未说明的婚姻状况"),
    ),
)
"""Marital status."""

_PROVINCES: Final = (
    ("110000", "北京市"), ("120000", "天津市"), ("130000", "河北省"), ("140000", "山西省"),
    ("150000", "内蒙古自治区"), ("210000", "辽宁省"), ("220000", "吉林省"), ("230000", "黑龙江省"),
    ("310000", "上海市"), ("320000", "江苏省"), ("330000", "浙江省"), ("340000", "安徽省"),
    ("350000", "福建省"), ("360000", "江西省"), ("370000", "山东省"), ("410000", "河南省"),
    ("420000", "湖北省"), ("430000", "湖南省"), ("440000", "广东省"), ("450000", "广西壮族自治区"),
    ("460000", "海南省"), ("500000", "重庆市"), ("510000", "四川省"), ("520000", "贵州省"),
    ("530000", "云南省"), ("540000", "西藏自治区"), ("610000", "陕西省"), ("620000", "甘肃省"),
    ("630000", "青海省"), ("640000", "宁夏回族自治区"), ("650000", "新疆维吾尔自治区"), ("710000", "台湾省"),
    ("810000", "香港特别行政区"), ("820000", "澳门特别行政区"),
)  # fmt: skip

_SINCE: Final = {
    "460000": date(1988, 4, 13),  # decided by the National People's Congress
    "500000": date(1997, 3, 14),  # likewise
    "810000": date(1997, 7, 1),
    "820000": date(1999, 12, 20),
}

GBT2260_PROVINCES: Final = CodeTable.of(
    "gbt2260.provinces",
    "2007",
    "省级行政区划代码 GB/T 2260-2007",
    (Code(code, title, valid_from=_SINCE.get(code)) for code, title in _PROVINCES),
)
"""Provinces, autonomous regions, municipalities and special administrative regions."""

DEMO_DISTRICTS: Final = tuple(str(code) for code in range(990101, 990112))

DEMO_AREAS: Final = CodeTable.of(
    "demo-city.areas",
    "2026",
    "虚构城市的行政区划",
    (
        Code("990000", "虚构省"),
        Code("990100", "虚构市"),
        *(
            Code(code, f"第{number}区")
            for code, number in zip(DEMO_DISTRICTS, "一二三四五六七八九", strict=False)
        ),
        Code("990110", "第十区"),
        Code("990111", "第十一区"),
    ),
)
"""The fictional city down to its districts. No real code begins with 99."""

NATIONAL: Final = CodeTables((GBT2261_1, GBT2261_2, GBT2260_PROVINCES, DEMO_AREAS))
"""What every node knows."""
