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
