"""What an audit's report says, in English and Chinese, and how it looks on a screen and on paper."""

from typing import Final

TEXTS: Final[dict[str, tuple[str, str]]] = {
    # head
    "title": ("Journal audit report", "日志审计报告"),
    "verified": ("Verified", "核验通过"),
    "not-verified": ("Not verified", "核验未通过"),
    "all-hold": (
        "Every log holds together, and every question that could be asked of it is answered well.",
        "各日志均完整，所有可核查的问题均成立。",
    ),
    "some-open": (
        (
            "Every log holds together and nothing contradicts it. Some questions could not be answered"
            " in full: each says what it would take."
        ),
        "各日志均完整，未发现矛盾。部分问题无法完整核查，各条注明了所需材料。",
    ),
    "some-fail": (
        "Something does not hold. Keep the bundles as they are: they are evidence.",
        "有不成立之处。请原样保存审计包：它们是证据。",
    ),
    "audited": ("What was audited", "审计对象"),
    "against": ("Held against", "核验依据"),
    "against-says": (
        (
            "Keys that the auditor brought on another way than the bundles. Nothing in a bundle was"
            " believed because the bundle says so."
        ),
        "均为审计方经其他渠道取得的密钥。审计包自带的内容一律不作为信任依据。",
    ),
    "reading": (
        (
            "All times are UTC. Digests are cut to their first twelve digits. Numbers after “entry” are"
            " places in the log; minshu-audit show prints any of them."
        ),
        "时间均为 UTC。摘要仅列前十二位。“记录”之后的数字为日志中的序号，可用 minshu-audit show 查看。",
    ),
    "made": ("Made", "生成时间"),
    # columns
    "log": ("Log", "日志"),
    "bundle": ("Bundle", "审计包"),
    "entries": ("Entries", "记录数"),
    "period": ("From – to", "起止时间"),
    "result": ("Result", "结论"),
    "root": ("Root", "树根"),
    "signed": ("Signed by", "签名"),
    "keys": ("Keys, oldest first", "密钥（先旧后新）"),
    "roster": ("Roster", "名册"),
    "version": ("version", "版本"),
    "issued": ("issued", "签发于"),
    "officers": ("Officers", "签署人员"),
    "root-keys": ("Root keys", "根密钥"),
    "given-keys": ("Keys of logs and witnesses", "日志与见证密钥"),
    "agree": ("the logs agree", "各日志一致"),
    "disagree": ("the logs contradict each other", "日志之间有矛盾"),
    "tsa": ("Time stamps' roots", "时间戳根证书"),
    "given": ("given", "已提供"),
    "not-given": ("not given", "未提供"),
    "time": ("Time", "时间"),
    "seq": ("Entry", "序号"),
    "entry": ("entry", "记录"),
    "entries-word": ("entries", "记录"),
    "job": ("Job", "任务"),
    "type": ("Type", "类型"),
    "purpose": ("Purpose", "目的"),
    "requester": ("Asked by → for", "申请方 → 接收方"),
    "way": ("Way through the log (entry numbers)", "经过（记录序号）"),
    "code": ("Code", "代码"),
    "count": ("Count", "次数"),
    "what": ("What", "事项"),
    "about": ("About", "对象"),
    "class": ("Class", "类别"),
    "rows": ("Rows", "行数"),
    "recipient": ("Recipient", "接收方"),
    "left": ("Left", "送出"),
    "not-left": ("still here", "未送出"),
    "release": ("Release", "结果"),
    "budget": ("Budget", "预算"),
    "charges": ("Charged for this purpose", "本目的扣减"),
    "spent": ("Spent of the limit, after the last charge", "最近一次扣减后：已用 / 上限"),
    "file": ("File", "文件"),
    "size": ("Entries", "记录数"),
    "votes": ("Organisations", "机构"),
    "quorum": ("Quorum", "法定数"),
    "cosigned": ("Cosigned by, at", "见证签名及时间"),
    "needed": ("needed:", "需"),
    "needed-unknown": ("not told", "未知"),
    "reached": ("reached", "达到"),
    "missed": ("not yet", "尚未达到"),
    # answers
    "holds": ("holds", "成立"),
    "fails": ("fails", "不成立"),
    "not checkable": ("not checkable", "无法核查"),
    "looked-at": ("looked at", "核查数"),
    "more-findings": ("more", "另有"),
    "not-there": ("none", "无"),
    "nothing-there": ("There is nothing of the kind in this log.", "该日志中无此类事项。"),
    "to-answer": ("To answer it in full, bring", "完整核查还需提供"),
    "question": ("Question", "问题"),
    "answer": ("Answer", "回答"),
    "shown-by": ("What shows it", "依据"),
    # sections
    "problems": ("What is wrong with the files", "文件问题"),
    "checklist": ("The checklist", "核查清单"),
    "timeline": ("Timeline", "时间线"),
    "per-day": (
        "Entries over time; black: refused, failed or aborted",
        "记录数随时间分布；黑色：拒绝、失败或中止",
    ),
    "lanes": ("Jobs over time", "任务时间线"),
    "newest-jobs": ("the newest jobs, of", "最近的任务，总数"),
    "jobs": ("Jobs", "任务"),
    "budgets": ("Budgets and quotas, by purpose", "按目的统计的预算与配额"),
    "releases": ("Releases", "结果发布"),
    "refusals": ("Refused, failed, cancelled", "拒绝、失败、取消"),
    "governance": ("Who may do what, and with which keys", "权限、策略与密钥变更"),
    "witnesses-short": ("Witnesses", "见证"),
    "witnesses": ("Who has seen this log", "见证情况"),
    "witnessed": ("What its owner has seen of other logs", "本机构见证的其他日志"),
    "deletions": ("Deletion receipts", "删除凭证"),
    "cross": ("Across the logs", "跨日志核对"),
    "notices": ("Worth knowing", "提示"),
    "kinds": ("Entries by kind", "记录种类"),
    "none": ("None.", "无。"),
    "not-shown": (
        "more are not shown here; minshu-audit show prints them all.",
        "条未列出；可用 minshu-audit show 查看全部。",
    ),
    "cannot": ("What an audit cannot show", "审计不能证明的事项"),
    "cannot-1": (
        (
            "A log shows what a program said it did. It does not show that the program was the published"
            " one, nor that an input was true."
        ),
        "日志记录程序声称所做之事，不能证明运行的就是所公布的程序，也不能证明输入数据真实。",
    ),
    "cannot-2": (
        (
            "That a log is the only one of its name follows from the witnesses' cosignatures, as long as"
            " fewer of them lie than the quorum can bear."
        ),
        "“同名日志只有一份”由见证签名保证，前提是不诚实的见证方少于法定数所能容忍的数目。",
    ),
    "cannot-3": (
        "Whoever was handed a list may copy it. What happens after a release left is not in any log.",
        "接收方可能复制名单。结果送出之后的事不在任何日志之中。",
    ),
    "findings-en": ("", "发现的说明为程序输出的英文原文；代码固定不变。"),
}  # fmt: skip

"""Fixed texts by their key: English, Chinese."""

KINDS: Final[dict[str, tuple[str, str]]] = {
    "log.open": ("log opened", "日志启用"),
    "log.successor": ("new generation", "新一代日志"),
    "key.rotate": ("log's key changed", "日志密钥更换"),
    "key.announced": ("next key announced", "下一密钥公告"),
    "clock.step": ("clock jumped", "时钟跳变"),
    "policy.activate": ("policy in force", "策略生效"),
    "policy.refused": ("policy refused", "策略被拒"),
    "signers.pinned": ("policy signers pinned", "策略签署人固定"),
    "stop.applied": ("stop in force", "停用生效"),
    "stop.lifted": ("stop lifted", "停用解除"),
    "roster.activate": ("roster in force", "名册生效"),
    "roster.published": ("roster published", "名册发布"),
    "roster.fresh": ("roster confirmed", "名册确认"),
    "node.enrolled": ("node enrolled", "节点登记"),
    "dataset.registered": ("dataset registered", "数据集登记"),
    "catalogue.imported": ("catalogue imported", "目录导入"),
    "job.submitted": ("submitted", "提交"),
    "job.received": ("received", "收到"),
    "job.explained": ("explained", "试答"),
    "job.accepted": ("accepted", "接受"),
    "job.started": ("started", "启动"),
    "job.admitted": ("admitted", "准入"),
    "job.answering": ("answering", "作答"),
    "job.done": ("done", "完成"),
    "job.refused": ("refused", "拒绝"),
    "job.failed": ("failed", "失败"),
    "job.aborted": ("aborted", "中止"),
    "job.cancelled": ("cancelled", "取消"),
    "job.expired": ("expired", "过期"),
    "approval.recorded": ("approved", "批准"),
    "approval.rejected": ("not approved", "未批准"),
    "budget.reserved": ("cost reserved", "预留"),
    "budget.charged": ("cost charged", "扣减"),
    "budget.released": ("cost freed", "释放"),
    "budget.returned": ("unspent cost returned", "退还未用"),
    "training.round": ("training round", "训练轮次"),
    "output.commit": ("output final", "结果定稿"),
    "output.released": ("output left", "结果送出"),
    "outcome.filed": ("outcome filed", "结果反馈"),
    "table.sent": ("look-up table sent", "核验表发出"),
    "table.received": ("look-up table received", "核验表收到"),
    "lookup.answered": ("look-up answered", "核验作答"),
    "lookup.asked": ("look-up asked", "核验查询"),
    "lookup.refused": ("look-up refused", "核验拒绝"),
    "lookup.rotated": ("look-up key changed", "核验密钥更换"),
    "deletion.receipt": ("deleted", "删除"),
    "peer.receipt": ("peer's receipt", "对方凭证"),
    "witness.conflict": ("split view seen", "发现分叉"),
}
"""What an entry kind is called in a row: English, Chinese."""

STYLE: Final = """
:root { --ink: #111; --soft: #555; --line: #bbb; --bad: #9b1c1c; color-scheme: light; }
* { box-sizing: border-box; }
html { background: #fff; color: var(--ink); }
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.75rem 4rem;
  font: 15px/1.5 "Helvetica Neue", Arial, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .6rem; border-top: 3px solid var(--ink);
  overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
a { color: inherit; }
ul { margin: .2rem 0; padding-left: 1.1rem; }
li { margin: .1rem 0; }
.brand { font-size: .8rem; letter-spacing: .12em; color: var(--soft); margin: 0 0 .75rem; }
.soft { color: var(--soft); font-size: .87rem; }
.mono { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .92em; }
.verdict { border: 2px solid var(--ink); padding: .9rem 1.1rem; margin: 1.25rem 0 1.5rem;
  display: flex; gap: 1.25rem; align-items: baseline; }
.verdict b { font-size: 1.5rem; white-space: nowrap; }
.verdict p { margin: 0; }
.verdict.bad { border: 6px double var(--bad); color: var(--bad); }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 .6rem; font-size: .87rem; }
th, td { text-align: left; vertical-align: top; padding: .38rem .8rem .38rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
thead th:first-letter { text-transform: uppercase; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.facts { width: auto; }
.facts td, .facts th { border-bottom: 0; padding: .12rem 1.2rem .12rem 0; }
.facts th { font-weight: 400; color: var(--soft); white-space: nowrap; }
.answer { display: inline-block; white-space: nowrap; padding: 0 .45rem; border: 1px solid var(--ink); }
.answer.fails { border: 2.5px solid var(--bad); color: var(--bad); font-weight: 700; }
.answer.open { border-style: dashed; color: var(--soft); }
.checklist td:nth-child(1) { color: var(--soft); width: 2rem; }
.checklist td:nth-child(2) { width: 32%; }
.checklist td:nth-child(3) { width: 9.5rem; }
svg { display: block; width: 100%; height: auto; margin: .4rem 0 .2rem; }
svg.bar { width: 7.5rem; margin: .3rem 0 .15rem; }
svg text { font-size: 14px; font-family: inherit; fill: var(--ink); }
svg .s { fill: var(--soft); }
@page { size: A4; margin: 17mm 15mm 18mm;
  @bottom-right { content: counter(page) " / " counter(pages); font-size: 8pt; } }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  h1 { font-size: 20pt; }
  h2 { font-size: 13pt; margin-top: 0; }
  h3 { font-size: 10.5pt; }
  section.log { break-before: page; }
  h2, h3 { break-after: avoid; }
  tr, li, svg, .verdict { break-inside: avoid; }
  thead { display: table-header-group; }
  a { text-decoration: none; }
}
"""
"""The page's whole style. Nothing in it is fetched, and nothing is said by colour alone."""
