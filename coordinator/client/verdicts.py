"""A node's verdict as the analyst reads it: checked with the node's key in the roster, told in a language."""

from collections.abc import Mapping
from typing import Final, Literal

from policies.words import grouped, measure
from protocols.envelope import VERDICT, decode_envelope, key_id, verify
from protocols.errors import SignatureInvalid
from protocols.ids import JobId, NodeName
from protocols.wire import CostLine, Leaving, Roster, Verdict, utc_text

Language = Literal["zh", "en"]

_CLASSES: Final[Mapping[str, tuple[str, str]]] = {
    "A": ("numbers about groups", "群体统计数字"),
    "B": ("records about persons, sealed to one recipient", "定向名单, 加密发给唯一接收方"),
    "C": ("a model", "模型"),
}


def checked(envelope: bytes, roster: Roster, *, node: NodeName, job: JobId, attempt: int) -> Verdict:
    """Return what a node signed about an attempt of a job; attempt 0 for a dry answer.

    Raises:
        DecodeError: no verdict.
        SignatureInvalid: not signed by the node with its key in the roster, or about something else.
    """
    keys = {key_id(one.identity_key): one.identity_key for one in roster.nodes if one.name == node}
    if not keys:
        raise SignatureInvalid("the roster does not list a node that answers", code="not-in-roster")
    document = decode_envelope(envelope)
    verify(document, VERDICT, keys)
    verdict = Verdict.decode(document.payload)
    if (verdict.node, verdict.job, verdict.attempt) != (node, job, attempt):
        raise SignatureInvalid(
            "a verdict is about another node, job or attempt than was asked about", code="wrong-subject"
        )
    return verdict


def cost_line(line: CostLine, language: Language) -> str:
    """Return what one budget or quota would be charged, and what is left of it until when."""
    en, zh = measure(line.notion, line.cost)
    left, most, until = grouped(line.remaining), grouped(line.limit), utc_text(line.until)
    if language == "zh":
        return f"{line.budget}: {zh}; 本任务之前剩余 {left}, 上限 {most}, 至 {until}"
    return f"{line.budget}: {en}; {left} of {most} left before it, until {until}"


def leaving_line(leaving: Leaving, language: Language) -> str:
    """Return one release that would be made, by whom and for whom."""
    en, zh = _CLASSES[leaving.output_class]
    if language == "zh":
        return (
            f"{leaving.name} ({leaving.output_class} 类: {zh}), 由 {leaving.made_by} 发给 {leaving.recipient}"
        )
    return f"{leaving.name} ({leaving.output_class}: {en}), from {leaving.made_by} to {leaving.recipient}"
