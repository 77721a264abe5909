"""What is wrong with a job that is not well-formed for its type, and what to do, in Chinese.

Job types say it in English and by a code; whoever reads Chinese is told by the code. The English sentence has
the figures.
"""

from collections.abc import Mapping
from typing import Final

FAULTS: Final[Mapping[str, tuple[str, str]]] = {
    "bad-params": ("参数缺失, 或取值、写法不在允许范围内", "请对照任务类型说明逐项检查 params"),
    "unknown-param": ("含有该任务类型不认识的参数", "请删除多余的参数, 并检查参数名的拼写"),
    "bad-roles": (
        "角色不符合要求: 名称有误、编号不连续, 或缺少、多出某个角色",
        (
            "来源从 source-1 起; 制表加 aggregator, 名单加 register、matcher, "
            "联合统计加 matcher、helper (或 dealer); 其余见各任务类型"
        ),
    ),
    "bad-inputs": (
        "数据集或列位不符合要求: 每个提供数据的角色须恰有一个数据集, 且只填写任务所用的列位",
        "请为每个提供数据的角色指定一个数据集, 并将每个列位对应到该数据集的一列",
    ),
    "bad-recipients": (
        "接收方不符合要求",
        (
            "统计任务不填接收方, 结果只交给申请方; 名单比对的接收方只能是登记方 "
            "(两部门比对则为 receiver, 逐人核验则为 clerk) 所在机构"
        ),
    ),
    "bad-privacy": (
        "隐私参数缺失、重复或超出范围",
        '请填写 rho 或 epsilon 其中一个, 例如 rho = "0.1"; delta 须大于 0 且足够小, 例如 "1/1000000000"',
    ),
    "bad-levels": (
        "levels 不是由小到大的前缀长度, 或有取值不长于最后一级、互为前缀",
        "请只列最小一级区域的代码, 并令 levels 为由小到大、短于代码的前缀长度, 例如 levels = [6]",
    ),
    "bad-bound": ("一个人可影响的取值数或行数小于 1", "请检查 unit_rows 和取值, 均至少为 1"),
    "bad-release": ("加噪的数字过多, 或贡献方数目不合理", "请减少统计格, 或检查部门数和 colluding"),
    "bad-sensitivity": (
        "一个人对结果的影响超出可加噪的范围",
        "请收窄 bounds、减少 decimals, 或减小 unit_rows",
    ),
    "keys-jointly": (
        "多个部门不能联合统计事先未列出的取值",
        "请先向一个部门查询有哪些取值, 再以这些取值向全部部门申请 histogram",
    ),
    "too-many-organisations": (
        "多个部门不能联合统计事先未列出的取值",
        "请先向一个部门查询有哪些取值, 再以这些取值向全部部门申请 histogram",
    ),
    "unit-rows": (
        "任务假定每人的行数少于策略允许的行数, 据此抑制不足以掩护一个人的全部记录",
        "请将 unit_rows 设为不小于各部门策略的 max_rows, 或改用加噪结果",
    ),
    "below-zero": (
        "不加噪的合计要求金额不为负, 否则无法判断某一格是否由个别人支配",
        "请将 bounds 的下界设为 0 或以上, 或改用加噪结果 (release/1)",
    ),
    "measured-twice": (
        "同一列既要求精确合计又另作他用, 两个数之差会暴露介于其间的人",
        '每列只申请一项精确合计, 且不再用于分组或筛选; 或改用加噪结果: rho = "0.1"',
    ),
    "sum-too-large": (
        "合计可能超出可精确相加的范围",
        "请收窄 bounds、减少 decimals, 或减小 unit_rows; 加噪结果也可提高 rho 或 epsilon",
    ),
    "too-few-organisations": (
        "某些格由过少的部门合计而成, 不足以掩盖单个部门的数据",
        "请增加部门, 或去掉只有少数部门才有的取值; 两个部门联合请改用加噪结果 (release/1)",
    ),
    "too-many-cells": (
        "统计表的格数过多",
        '请减少取值或维度, 分次申请; table/1 也可写 margins = "no"',
    ),
    "too-many-words": ("需联合相加的数字过多", "请减少取值、维度或统计项, 分次申请"),
    "one-list-each": (
        "同一机构提供了两份数据, 而每个来源须为不同机构",
        "请让每个机构只担任一个提供数据的角色",
    ),
    "one-source-each": (
        "同一机构占了两个来源, 而每个来源须为不同机构",
        "请让每个机构只担任一个提供数据的角色",
    ),
    "owner-is-clerk": (
        "数据方与查询方为同一机构, 而数据方可直接查看自己的数据",
        "请直接在本部门数据中查询, 或由另一机构担任 clerk",
    ),
    "requester-not-clerk": (
        "申请人不属于查询方 (clerk) 所在机构, 而限额按申请人计、结果只给查询方",
        "请由查询方机构的人员提交",
    ),
    "reserved-name": ("某机构使用了系统保留的名称", "请以其他名称登记该机构"),
    "noise-too-large": (
        "所需噪声过大, 结果没有意义, 也无法生成",
        "请提高 rho 或 epsilon, 或收窄 bounds、减小 unit_rows",
    ),
    "bad-noise": ("所需噪声的幅度不合理", "请检查 rho、epsilon、bounds 和 unit_rows"),
    "no-honest-contributor": (
        "假定串通的部门过多, 没有部门的噪声可以依靠",
        "请减小 colluding, 或增加部门",
    ),
    "too-many-owners": (
        "隐藏分组和金额分属过多部门: 至多两个部门, 且两个部门时不能另有公开分组",
        "请将其他分组对匹配方公开 (open)、减少金额或分组, 或分次申请",
    ),
    "overflow": (
        "合计连同噪声可能超出可表示的范围",
        "请收窄 low、high, 减少 decimals, 或提高 rho、epsilon",
    ),
    "bad-tree": ("区域层级不完整", "请检查 levels 和所列的区域代码"),
    "constant-label": (
        "标签只有一种取值, 无法训练",
        "请放宽 label 的 positive 或 at_least, 使两种标签均有, 或更正数据",
    ),
    "bad-features": (
        "特征不符合要求: 名称重复, 或取值、分箱、上下界不可用",
        "请为每个特征使用不同的列位, 取值不重复, 分箱边界由小到大",
    ),
    "bad-settings": (
        "训练方法没有这些设定, 或其取值不适用",
        "请对照训练方法说明检查 settings; 加噪的 boost 只能用 random",
    ),
}
"""Code of an `InputError` that `check` of a job type raises → what is wrong, and what to do."""

_OTHER: Final = ("任务写法有误", "请对照任务类型的说明修改任务")


def said_in_chinese(code: str) -> tuple[str, str]:
    """Return what a code means, and what to do; of a code that is not known here, that something is wrong."""
    return FAULTS.get(code, _OTHER)
