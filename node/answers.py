"""What the gate says: its own refusals in both languages, and the signed verdict that carries any answer."""

from typing import TYPE_CHECKING, Final

from policies.attempts import SAID_NO
from policies.decision import Ask, Decision, Permit, Refuse
from protocols import succession
from protocols.envelope import VERDICT, Signer, sign
from protocols.errors import InputError, MinshuError
from protocols.ids import Digest, JobId, NodeName
from protocols.wire import JobSpec, Leaving, Verdict

if TYPE_CHECKING:
    from node.sources import Source

MAX_SENTENCE: Final = 2048

ANSWERS: Final = {Permit: "permit", Ask: "ask", Refuse: "refuse"}

_ILL_FORMED: Final = ("任务文本格式不合规定。", "请用当前版本的 minshu submit 重新提交")
_LEDGER: Final = "本节点账本异常, 无法确认剩余额度, 一律拒绝。"

IN_CHINESE: Final = {
    **succession.IN_CHINESE,
    # (1) the envelope
    "job-too-large": ("任务文本过长。", "请只写数据集名称, 不要写数据本身"),
    "too-long": _ILL_FORMED,
    "too-deep": _ILL_FORMED,
    "not-json": _ILL_FORMED,
    "not-canonical": _ILL_FORMED,
    "bad-envelope": _ILL_FORMED,
    "bad-base64": _ILL_FORMED,
    # (2) (3) whose job it is
    "wrong-job-id": ("任务文本与任务编号不符。", "协调方改动或混淆了任务, 请重新提交"),
    "wrong-payload-type": ("该文件不是作为任务签署的。", "请用 minshu submit 提交, 由其签署"),
    "unknown-requester": ("申请人不在成员名册中。", "请先登记分析员并签发新名册, 再提交"),
    "job-forged": ("任务未经其所称申请人签署。", "请由申请人本人签署并提交"),
    "too-few-signatures": ("任务签名无效。", "请用 minshu submit 提交, 由其签署"),
    # the text of a job
    "unknown-schema": ("任务文本的版本与本节点不同。", "请双方使用同一版本"),
    "missing-field": _ILL_FORMED,
    "bad-field": _ILL_FORMED,
    "unknown-field": _ILL_FORMED,
    "bad-digest": _ILL_FORMED,
    "bad-time": _ILL_FORMED,
    "bad-roles": ("一个节点在任务中担任两个角色。", "请让每个节点只担任一个角色"),
    "bad-inputs": ("任务的输入与角色或机构不对应。", "请核对各输入所属的角色和机构"),
    # this node
    "not-in-roster": ("成员名册未以本节点的身份密钥列出本节点。", "请核对 init 打印的指纹, 并签发新名册"),
    "no-policy": ("本节点没有生效的策略, 一律拒绝。", "请用 minshu-node policy activate 启用策略"),
    "roster-keys-differ": (
        "成员名册为本节点列出了不属于本节点的密钥。",
        "请核对本节点的日志、见证和接收密钥, 并签发新名册",
    ),
    # witnesses
    "heads-unknown": ("见证方尚未确认本节点日志的最新状态, 暂不受理。", "请稍后重新提交"),
    "policy-unwitnessed": ("本节点现行策略尚未经足够机构见证, 暂不受理。", "请稍后重新提交"),
    "no-quorum": ("本节点日志过久未获足够机构见证, 暂不受理。", "请待其他部门节点恢复后重新提交"),
    "dataset-not-registered": (
        "策略开放的数据集尚未在本节点登记。",
        "请用 minshu-node dataset add 登记该数据集",
    ),
    "unknown-column": ("登记的数据集没有所需的列。", "请使用目录中列出的列, 或重新登记数据集"),
    # its code tables
    "bad-code-table": ("本节点的代码表文件有误。", "请修正 codes/NAME.csv"),
    "unknown-code-table": ("数据集的映射引用了未知的代码表。", "请放回 codes/NAME.csv, 或修改数据集说明"),
    "unknown-version": ("数据集的映射引用了代码表的另一版本。", "请放回旧版文件, 或修改数据集说明"),
    "not-in-table": ("数据集的映射含有代码表中没有的代码。", "请修改数据集说明"),
    "mapped-twice": ("数据集的映射中同一取值对应了两个代码。", "请修改数据集说明"),
    "no-areas": ("数据集的映射引用的代码表不是行政区划。", "请修改数据集说明"),
    "code-table-changed": ("代码表与登记时的不是同一份。", "请放回原来的文件, 或重新登记数据集"),
    "unit-mapped": ("标明个体的列设有映射。", "请从映射中去掉该列, 或在策略中另定 unit"),
    "bad-mapping": ("本节点保存的数据集映射无法识别。", "请用 minshu-node dataset add 重新登记"),
    "bad-description": ("本节点保存的数据集说明无法识别。", "请用 minshu-node dataset add 重新登记"),
    "unknown-definition": ("数据集说明所遵循的口径没有该版本。", "请引用已有版本, 或自行写明口径正文"),
    "other-definition": ("数据集说明的口径与同名口径的正文不同。", "请删去正文, 或另取编号或版本"),
    "bad-mapping-record": ("本节点保存的映射记录无法识别。", "请用 minshu-node dataset add 重新登记"),
    # its databases
    "unknown-connection": (
        "数据集所在的数据库连接未在本节点配置。",
        "请在 node.toml 中写入 [connections.名称]",
    ),
    "driver-missing": ("本节点未安装该数据库的驱动。", "请运维人员执行: pip install 'minshu[databases]'"),
    "password-missing": ("本节点没有数据库口令。", "请将口令写入 password_file 所指文件 (chmod 600)"),
    "password-exposed": ("数据库口令文件可被其他账户读取。", "请执行 chmod 600, 并更换口令"),
    "source-unreachable": (
        "数据集所在的数据库无法连接。",
        "请稍后重试; 该部门可执行 minshu-node doctor 检查",
    ),
    "source-refused": ("数据库拒绝本节点的账号 (口令或权限)。", "请核对账号口令, 并授予所需列的 SELECT 权限"),
    "source-timeout": ("数据库超时未答复。", "请在数据库较空闲时重试, 或调大 statement_timeout_s"),
    "source-interrupted": ("读取时与数据库的连接中断, 已读内容一律不用。", "请在数据库恢复稳定后重试"),
    "source-failed": ("数据库未能完成读取。", "原因见数据库自身日志; 可执行 minshu-node doctor"),
    "table-missing": ("数据库中没有该表, 或本节点账号无权查看。", "请恢复该表或授权, 或重新登记数据集"),
    "schema-drift": ("登记时的列已不在表中。", "请恢复该列, 或重新登记数据集"),
    "column-type-changed": ("列的类型与登记时不同。", "请改回原类型, 或重新登记数据集"),
    "count-mismatch": ("读到的行数与同一事务内的计数不符。", "请登记每次读取结果都相同的视图, 或直接登记表"),
    "changed-while-reading": ("数据在读取期间被改动。", "请重新运行任务"),
    "bad-updated": (
        "表示最后更新时间的列没有可用的日期或时间。",
        "请重新登记数据集, 指定每次写入都会更新的列",
    ),
    "bad-value": ("列中有其类型不应有的值。", "请在数据库中更正, 或用视图转为文本"),
    # its files
    "file-missing": ("数据集的文件不存在或无法读取。", "请放回该文件, 或重新登记数据集"),
    "bad-file": ("数据集文件的内容与其后缀不符。", "请放回正确的文件, 或重新登记数据集"),
    "bad-place": ("数据集的登记位置无法识别。", "请用 minshu-node dataset add 重新登记"),
    "unknown-format": ("本节点不读取该文件格式。", "请另存为 CSV、Parquet 或 .xlsx, 再重新登记"),
    "package-missing": ("本节点未安装读取电子表格的组件。", "请运维人员执行: pip install 'minshu[excel]'"),
    "unknown-encoding": ("文件的编码无法识别。", "请转换为 UTF-8 或 GB18030, 再重新登记"),
    "not-utf8": ("文本含有不是 UTF-8 的字节。", "请转换为 UTF-8, 或按实际编码重新登记数据集"),
    "not-gb18030": ("文本含有不是 GB18030 的字节。", "请更正文件, 或按实际编码重新登记数据集"),
    "duplicate-column": ("表头中有同名的列。", "请为每列取不同的名称"),
    "no-header": ("表头缺失, 或首行是记录, 或有列未命名。", "请在首行为每列命名"),
    "unreadable-name": ("列名含有不可见的字符, 如换行。", "请重新命名该列; 数据库的表可在视图中改名"),
    "memory-limit": ("读取数据集所需内存超过本节点的上限。", "请另存为 CSV, 或调大 duckdb_memory_mb"),
    # its spreadsheets
    "sheet-needed": ("工作簿有多个工作表, 登记时未指明。", "请用 --sheet 指明工作表, 重新登记"),
    "unknown-sheet": ("工作簿中没有登记的工作表。", "请改回工作表名称, 或用 --sheet 重新登记"),
    "protected-file": ("工作簿有密码保护, 或由 .xls 改名而来。", "请去除密码, 另存为 .xlsx"),
    "formula-cell": ("表中有公式。", "请用选择性粘贴改为数值"),
    "error-cell": ("单元格为错误值或无效日期。", "请更正或清空该单元格"),
    "merged-cells": ("工作表中有合并单元格。", "请取消合并, 逐格填写"),
    "hidden-cells": ("表内有隐藏的行或列。", "请显示或删除隐藏的行和列"),
    "blank-row": ("记录之间有空行。", "请删除空行, 将合计等移到别处"),
    "identifiers-as-numbers": (
        "超过 15 位的号码被存为数字, 末位已丢失。",
        "请先将该列设为文本格式, 再从来源重新导出",
    ),
    # what is in them
    "no-columns": ("任务不读取该数据集的任何列。", "请指定分组或筛选; 总行数见目录"),
    "no-usable-key": ("数据集没有任何一行的标识可用。", "请核对标识所在的列, 并以文本存储"),
    "not-text": ("应为文本的列存为其他类型或含有非文本。", "请将该列存为 UTF-8 文本"),
    "not-a-date": ("日期列不能读作日期。", "请改为日期类型, 或写成 2026-01-31"),
    "bad-street": ("街道名称过长或含有不可显示的字符。", "请更正该列, 每个名称为一行可显示的短文本"),
    "too-many-streets": ("不同的街道过多。", "请核对该列是否为街道"),
    "missing-slot": ("任务未指明所需的列位。", "请对照任务类型填写 columns"),
    "unknown-slot": ("任务含有该任务类型不用的列位。", "请从 columns 中删除多余的列位"),
    "length-mismatch": ("同一批数据各列的行数不同。", "请核对数据来源, 再重新运行任务"),
    "too-many-rows": ("表的行数超过可统计的上限。", "请将任务所需的部分另行登记为数据集"),
    "bad-unit": ("说明记录所指何人的列不是文本。", "请将该列存为 UTF-8 文本"),
    # what computes
    "scratch-closed": ("执行已结束, 其临时文件已清除。", "请重新运行任务"),
    "scratch-failed": ("本节点的临时文件无法读写。", "请检查节点目录下 scratch/ 所在的磁盘"),
    "disk-full": ("本节点的磁盘空间不足。", "请为节点目录下的 scratch/ 腾出空间, 再重新提交"),
    "compute-lost": (
        "为本节点计算的机器已失联、过慢或出错。",
        "请重新启动, 或从 node.toml 的 [compute] 中去掉",
    ),
    "cluster-unreachable": (
        "[compute] 所指的集群没有应答。",
        "请启动集群, 或从 node.toml 的 [compute] 中去掉",
    ),
    "cluster-mismatch": (
        "集群的机器没有安装与本节点相同版本的 Minshu。",
        "请运维人员在调度器和所有工作进程的机器上安装该版本并重新启动",
    ),
    "cluster-missing": ("本节点未安装使用集群的组件。", "请运维人员执行: pip install 'minshu[cluster]'"),
    "bad-config": ("本节点的 node.toml 设置有误。", "请运维人员对照说明检查 node.toml"),
    # series of days
    "series-over": ("系列已超过规则允许的天数。", "请不写 first 和 day 重新提交, 开始新的系列"),
    "series-lost": ("本节点已不存有可继续的系列。", "请不写 first 和 day 重新提交, 开始新的系列"),
    "series-other": ("任务与所要继续的系列不是同一问题。", "请按第 1 日的写法提交, 或开始新的系列"),
    "series-day": ("该日在本节点已经结束、尚未到来或执行中途有变。", "请逐日提交下一日, 或开始新的系列"),
    "series-busy": ("本节点正在执行该系列的另一日。", "请待其结束后重新提交"),
    "shelf-unreadable": ("本节点为后续任务保存的内容无法读取。", "请运维人员检查磁盘, 再重新提交"),
    "shelf-write-failed": ("本节点无法保存后续任务所需的内容。", "请运维人员检查磁盘与剩余空间"),
    # quality
    "quality-too-low": ("数据集的质量未达到策略的要求。", "请数据部门改进数据, 或调整策略中的阈值"),
    "state-unreadable": ("本节点数据库无法读取。", "请检查磁盘; 若文件损坏, 请停机保全证据"),
    "ledger-damaged": (_LEDGER, "请停机并保全 node.db 作为证据, 日志中记有已用额度"),
    "ledger-unusable": (_LEDGER, "请检查磁盘与剩余空间"),
}
"""Refusals that begin as an error, in Chinese: code → sentence, what to do next."""


def refusal(error: MinshuError, rule: str = "") -> Refuse:
    """Return an error as the gate's answer, in both languages."""
    sentence = error.message[:1].upper() + error.message[1:] + "."
    zh, hint_zh = IN_CHINESE.get(error.code, (f"本节点拒绝该任务 ({error.code})。", "请询问该部门"))
    return Refuse(error.code, sentence, zh, error.hint or "ask the department", hint_zh, rule)


def question_here(spec: JobSpec, snapshot: str, source: "Source | None") -> Digest:
    """Return the digest under which this node remembers what was asked of the table as it is now.

    A snapshot is cut to seconds, as it is published; two tables written within one second are told apart by
    what only this node sees. Of a table that is gone nothing is ever found again.

    Args:
        spec: the job.
        snapshot: when the data that answers was written, empty for a role without a dataset.
        source: the dataset, opened; None for a role without one.
    """
    if source is None:
        return spec.question(snapshot)
    try:
        return spec.question(f"{snapshot} {source.fingerprint()}")
    except InputError:
        return spec.question(f"{snapshot} gone")


def said_no(reason: str) -> Refuse:
    """Return the answer after somebody who may approve said no, in that person's words."""
    return Refuse(
        SAID_NO,
        f"Somebody who may approve said no: {reason}.",
        f"审批人拒绝: {reason}。",
        "talk to the department before submitting again",
        "请先与该部门沟通",
    )


def make_verdict(
    decision: Decision, job: JobId, attempt: int, node: NodeName, *, signer: Signer, answered: str = ""
) -> bytes:
    """Return a decision as a signed verdict, an envelope.

    Args:
        decision: what was decided.
        job: about which job.
        attempt: which try, 0 for a dry answer.
        node: who decided.
        signer: the node's identity key.
        answered: an earlier job that answered the very same question here, empty for none.
    """
    given = 0 if isinstance(decision, Refuse) else len(decision.approvals)
    terms = None if isinstance(decision, Refuse) else decision.terms
    verdict = Verdict(
        job=job,
        attempt=attempt,
        node=node,
        answer=ANSWERS[type(decision)],
        rule=decision.rule,
        code=decision.code,
        sentence=_readable(decision.sentence),
        hint=_readable(decision.hint),
        approvals_needed=given + decision.missing if isinstance(decision, Ask) else given,
        approvals_given=given,
        approvers=decision.approvers if isinstance(decision, Ask) else (),
        costs=() if terms is None else terms.lines,
        leaves=()
        if terms is None
        else tuple(Leaving(r.name, r.output_class, r.recipient, r.made_by) for r in terms.releases),
        answered=answered,
        sentence_zh=_readable(decision.zh),
        hint_zh=_readable(decision.hint_zh),
    )
    return sign(VERDICT, verdict.encode(), [signer]).encode()


def _readable(text: str) -> str:
    # One readable line: a verdict with a control character would be refused by its reader.
    return "".join(c if c.isprintable() else " " for c in text).strip()[:MAX_SENTENCE]


OLD_ATTEMPT: Final = Refuse(
    "old-attempt",
    "A newer attempt of this job was offered before; numbers only increase.",
    "已收到本任务更新的执行序号, 序号只能增加。",
    "offer the next attempt",
    "请使用下一个执行序号",
)
ATTEMPT_OVER: Final = Refuse(
    "attempt-over",
    "This attempt has ended here; it is not run a second time.",
    "本次执行已结束, 不再重复。",
    "offer the next attempt",
    "请使用下一个执行序号",
)
