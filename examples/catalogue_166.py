"""Writes catalogue-166.csv: a data source catalogue (数源目录) of 166 entries for the synthetic city.

    minshu-demo city --profile ci CITY
    python examples/catalogue_166.py CITY examples/catalogue-166.csv

Fields and their types are those of the city's registers; titles, grades, periods and code tables are what
such departments write. One dataset is not built yet: its department announces it.
"""

import csv
import sys
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

HEADERS: Final = (
    "目录编号", "数据项名称", "责任部门", "数据集", "数据集名称", "字段名", "字段类型", "代码表", "计量单位",
    "权威数据源", "共享属性", "分级", "更新周期", "用途", "口径编号", "口径版本",
)  # fmt: skip

DEPARTMENTS: Final = {
    "police": "市公安局", "health": "市卫生健康委", "human-resources": "市人力资源和社会保障局",
    "civil-affairs": "市民政局", "education": "市教育局", "housing": "市住房和城乡建设局",
    "telecom": "市电信运营商", "tax": "市税务局", "medical-insurance": "市医疗保障局",
    "market-regulation": "市市场监督管理局",
}  # fmt: skip

# Table, title, sharing, grade, period, purposes, definition, and the fields that it is the one source of.
TABLES: Final[tuple[tuple[str, str, str, str, str, str, str, str], ...]] = (
    ("police/population", "实有人口登记", "有条件共享", "重要", "每日", "人口管理、公共服务", "resident-180",
     "resident_id name kind sex birth_date register_street register_district residence_permit"),
    ("health/patients", "居民健康档案", "有条件共享", "重要", "每周", "公共卫生", "", "record_no diagnosis"),
    ("health/births", "出生医学证明", "有条件共享", "一般4级", "每日", "出生登记、学位预测", "",
     "certificate_no weight_g mother_id"),
    ("health/deaths", "死亡医学证明", "有条件共享", "一般4级", "每日", "死亡登记", "", "death_date cause"),
    ("health/vaccination", "预防接种记录", "有条件共享", "一般4级", "每周", "免疫规划", "",
     "vaccine doses last_dose"),
    ("health/chronic", "慢性病管理", "不予共享", "重要", "每月", "慢性病管理", "", "disease since_year"),
    ("human-resources/insured", "社会保险参保", "有条件共享", "一般4级", "每日", "社会保险", "insured-2024",
     "employer contribution_base_fen insured_since"),
    ("human-resources/pension", "养老金领取", "有条件共享", "一般4级", "每月", "待遇发放", "",
     "monthly_fen paid_until"),
    ("civil-affairs/marriage", "婚姻登记", "有条件共享", "一般4级", "每日", "婚姻登记", "",
     "status spouse_id registered_on"),
    ("civil-affairs/low_income", "最低生活保障", "有条件共享", "一般4级", "每月", "社会救助", "",
     "household_no allowance_fen since"),
    ("civil-affairs/funeral", "殡葬服务", "有条件共享", "一般4级", "每日", "殡葬管理", "",
     "funeral_date funeral_home"),
    ("education/enrolment", "学籍", "有条件共享", "一般3级", "每季度", "学籍管理", "",
     "stage entry_year student_no boarding"),
    ("education/places", "学校学位", "无条件共享", "一般1级", "每年", "学位规划", "", "school places"),
    ("housing/leases", "房屋租赁登记", "有条件共享", "一般3级", "每周", "租赁管理", "",
     "lease_no rent_fen floor_area_m2 lease_from village"),
    ("telecom/monthly", "手机用户月度驻留", "不予共享", "重要", "每月", "人口统计", "", "number nights"),
    ("tax/income", "个人所得税申报", "不予共享", "重要", "每年", "税收征管", "",
     "tax_year income_band withheld_fen"),
    ("medical-insurance/settlements", "医保结算", "不予共享", "重要", "每周", "医保支付", "",
     "cost_fen self_paid_fen"),
    ("medical-insurance/enrolled", "医保参保", "有条件共享", "一般3级", "每月", "医保参保", "", "scheme"),
    ("market-regulation/businesses", "经营主体登记", "无条件共享", "一般2级", "每日", "经营主体登记", "",
     "credit_code opened_on"),
)  # fmt: skip

ANNOUNCED: Final[tuple[tuple[str, str, str], ...]] = (
    ("permit_no", "居住证编号", "字符型"),
    ("holder_id", "持证人身份号码", "字符型"),
    ("issued_on", "签发日期", "日期型"),
    ("valid_until", "有效期至", "日期型"),
    ("status_code", "居住证状态", "字符型"),
)
"""Fields of the residence permits, which the police have on paper so far."""

TITLES: Final = {
    "resident_id": "公民身份号码", "name": "姓名", "phone": "联系电话", "kind": "人口类别", "sex": "性别",
    "birth_date": "出生日期", "marital": "婚姻状况", "register_street": "户籍街道",
    "register_district": "户籍区",
    "residence_street": "居住街道", "residence_district": "居住区", "separated": "人户分离标志",
    "village": "城中村", "primary_year": "入学年份", "authoritative": "入学年份口径标志",
    "residence_permit": "居住证号", "street": "经常居住街道", "last_seen_month": "最近确认月份",
    "record_no": "健康档案编号", "diagnosis": "主要诊断", "certificate_no": "出生证编号",
    "weight_g": "出生体重", "mother_id": "母亲身份号码", "death_date": "死亡日期", "cause": "死亡原因",
    "vaccine": "疫苗名称", "doses": "接种剂次", "last_dose": "末次接种日期", "disease": "病种",
    "since_year": "确诊年份", "employer": "用人单位", "contribution_base_fen": "缴费基数",
    "insured_since": "参保起始月份", "bank_account": "银行账户", "monthly_fen": "月养老金",
    "paid_until": "发放至月份", "status": "状态", "spouse_id": "配偶身份号码", "registered_on": "登记日期",
    "household_no": "低保家庭编号", "allowance_fen": "月保障金额", "since": "保障起始月份",
    "funeral_date": "火化日期", "funeral_home": "殡仪馆", "school": "学校", "stage": "学段",
    "entry_year": "入学年度", "student_no": "学籍号", "boarding": "是否寄宿", "places": "学位数",
    "lease_no": "租赁备案号", "rent_fen": "月租金", "floor_area_m2": "租赁面积", "lease_from": "租赁起始月份",
    "number": "手机号码", "nights": "当月过夜数", "district": "驻留区", "tax_year": "纳税年度",
    "income_band": "收入档次", "withheld_fen": "代扣税额", "cost_fen": "医疗总费用",
    "self_paid_fen": "个人自付费用", "scheme": "参保险种", "credit_code": "统一社会信用代码",
    "opened_on": "成立日期",
}  # fmt: skip

OF_TABLE: Final = {
    ("civil-affairs/marriage", "status"): "婚姻状况", ("market-regulation/businesses", "status"): "经营状态",
    ("market-regulation/businesses", "resident_id"): "经营者身份号码",
    ("medical-insurance/settlements", "disease"): "结算病种", ("telecom/monthly", "street"): "驻留街道",
}  # fmt: skip
"""Where a column of the same name is another field."""

CODES: Final = {"sex": "GB/T 2261.1-2003", "marital": "GB/T 2261.2-2003"}
CODES_OF: Final = {("civil-affairs/marriage", "status"): "GB/T 2261.2-2003"}


def kind(of: pa.DataType) -> str:
    """Return what a department calls a type."""
    if pa.types.is_date(of):
        return "日期型"
    if pa.types.is_boolean(of):
        return "布尔型"
    return "数值型" if pa.types.is_integer(of) else "字符型"


def unit(column: str) -> str:
    """Return the unit of a column's numbers."""
    return next(
        (said for end, said in (("_fen", "分"), ("_g", "克"), ("_m2", "平方米")) if column.endswith(end)), ""
    )


def rows(city: Path) -> list[dict[str, Any]]:
    """Return the entries, one for each field."""
    found: list[dict[str, Any]] = []
    for number, (table, title, sharing, grade, period, purposes, definition, source) in enumerate(TABLES, 1):
        department, name = table.split("/")
        for at, column in enumerate(pq.read_schema(city / "registers" / f"{table}.parquet"), 1):
            found.append(
                {
                    "目录编号": f"9901-{number:03d}-{at:02d}",
                    "数据项名称": OF_TABLE.get((table, column.name), TITLES[column.name]),
                    "责任部门": DEPARTMENTS[department],
                    "数据集": name,
                    "数据集名称": title,
                    "字段名": column.name,
                    "字段类型": kind(column.type),
                    "代码表": CODES_OF.get((table, column.name), CODES.get(column.name, "")),
                    "计量单位": unit(column.name),
                    "权威数据源": "是" if column.name in source.split() else "否",
                    "共享属性": sharing,
                    "分级": grade,
                    "更新周期": period,
                    "用途": purposes,
                    "口径编号": definition,
                    "口径版本": "2024" if definition else "",
                }
            )
    for at, (column, title, said) in enumerate(ANNOUNCED, 1):
        found.append(
            {
                "目录编号": f"9901-{len(TABLES) + 1:03d}-{at:02d}",
                "数据项名称": title,
                "责任部门": DEPARTMENTS["police"],
                "数据集": "residence_permits",
                "数据集名称": "居住证签发",
                "字段名": column,
                "字段类型": said,
                "权威数据源": "是",
                "共享属性": "有条件共享",
                "分级": "一般4级",
                "更新周期": "每日",
                "用途": "居住证管理",
            }
        )
    return found


def main() -> None:
    """Write the catalogue."""
    city, out = map(Path, sys.argv[1:])
    with out.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, HEADERS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows(city))


if __name__ == "__main__":
    main()
