"""`match/1`, class B: which of one department's persons another also lists, or lists with another value.

The receiver alone learns the answer, about keys of its own list; the sender learns how long lists are. How
the lists are compared, what the limits mean and what each coalition learns: `protocols/match/SPEC.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import canonical_json, sha256_digest
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import AreaTable, area_table
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    COORDINATOR,
    REQUESTER,
    SUSPECTED,
    ColumnNeed,
    Content,
    Domain,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Statement,
    Table,
    Unit,
)
from protocols.jobs.sources import (
    MAX_KEYS,
    check_catalogue,
    check_columns,
    check_enough,
    check_names,
    check_recipient,
    check_sizes,
    check_summaries,
)
from protocols.match.inputs import MAX_VALUES, NOT_COMPARABLE, MatchList, MatchListBuilder
from protocols.match.parties import Match, Receiver, Sender
from protocols.match.shape import SIZING
from protocols.party import Party, Rand
from protocols.psi.envelopes import KEY_TYPE, RECORDS
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

RECEIVER: Final = Role("receiver")
SENDER: Final = Role("sender")
OWNERS: Final = (RECEIVER, SENDER)

GROUPS: Final = (2, 4)
"""Fewest and most groups of values: a sender enters each of its keys once for every other group."""

MAX_VALUE_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    `groups` are the values of each group where values are compared, else none. `exact` asks for the form in
    which a receiver can compare no more keys than it was admitted with, whatever it does.
    """

    receiver_keys: int
    groups: tuple[tuple[str, ...], ...]
    exact: bool
    areas: AreaTable

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        if set(spec.roles) != set(OWNERS):
            raise InputError(
                f"{len(spec.roles)} roles that are not receiver and sender",
                code="bad-roles",
                hint="name receiver, who learns the answer, and sender, and nobody else",
            )
        params: dict[str, Any] = dict(spec.params)
        most = params.pop("receiver_keys", None)
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MAX_KEYS:
            raise InputError(
                f"params.receiver_keys is no whole number from 1 to {MAX_KEYS}",
                code="bad-params",
                hint="write how many different persons the receiver lists at most; all of them are charged",
            )
        compare = params.pop("compare", "held")
        if compare not in ("held", "differs"):
            raise InputError(
                "params.compare is neither held nor differs",
                code="bad-params",
                hint='write compare = "held", or compare = "differs" with values',
            )
        groups = _groups(params.pop("values", None)) if compare == "differs" else ()
        form = params.pop("form", "auto")
        if form not in ("auto", "dh"):
            raise InputError(
                "params.form is neither auto nor dh",
                code="bad-params",
                hint='write form = "dh" for an exact count of compared keys, or leave it out for speed',
            )
        areas = area_table(params.pop("areas", "national"))
        if params:
            raise InputError(
                f"{len(params)} unknown param(s), expected receiver_keys, compare, values, form, areas",
                code="unknown-param",
                hint="remove what match/1 does not know",
            )
        return cls(most, groups, form == "dh", areas)

    @property
    def differs(self) -> bool:
        """Whether values are compared."""
        return bool(self.groups)

    @property
    def entries(self) -> int:
        """How often the sender enters each of its keys: once, or once for every other group."""
        return max(len(self.groups) - 1, 1)


def _groups(given: Any) -> tuple[tuple[str, ...], ...]:
    """Return groups of texts.

    Raises:
        InputError: `bad-params`.
    """
    wrong = InputError(
        f"params.values is not a list of {GROUPS[0]} to {GROUPS[1]} groups of texts, each text once, "
        f"at most {MAX_VALUES}, of 1 to {MAX_VALUE_CHARACTERS} readable characters",
        code="bad-params",
        hint='write the values that mean the same as one group: values = [["10"], ["20", "21", "22", "23"]]',
    )
    if not isinstance(given, list) or not GROUPS[0] <= len(given) <= GROUPS[1]:
        raise wrong
    groups = tuple(tuple(group) if isinstance(group, list) else () for group in given)
    values = [value for group in groups for value in group]
    if not all(groups) or len(values) > MAX_VALUES or not all(map(_is_value, values)):
        raise wrong
    if len(set(values)) != len(values):
        raise wrong
    return groups


def _is_value(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MAX_VALUE_CHARACTERS
        and value == value.strip()
        and value.isprintable()
    )


_KEY: Final = ColumnNeed("key", "join", ("resident-id", "identifier"))
_LAST_SEEN: Final = ColumnNeed("last_seen", "filter", ("date", "month"), required=False)


def _columns(params: Params) -> tuple[ColumnNeed, ...]:
    if not params.differs:
        return (_KEY,)
    domain = Domain(values=tuple(value for group in params.groups for value in group))
    # Carried, not filtered by: it selects no rows, and what the receiver learns is about it.
    return (_KEY, ColumnNeed("value", "carry", ("enum", "code", "text"), domain=domain), _LAST_SEEN)


class Matching:
    """The job type `match/1`."""

    name: Final = "match/1"
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = (
        True  # what goes before the sender's own list is masked or follows from sizes
    )

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Receiver and sender bring one dataset each, with the slots it needs. (3)
        They are two organisations. (4) Records go to the receiver's organisation alone.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        needs = _columns(Params.of(spec))
        # (2)
        if sorted(given.role for given in spec.inputs) != sorted(OWNERS):
            raise InputError(
                f"{len(spec.inputs)} inputs, expected one each of {', '.join(OWNERS)}",
                code="bad-inputs",
                hint="give receiver and sender one dataset each",
            )
        for given in spec.inputs:
            check_columns(
                given, {need.slot for need in needs if need.required}, {need.slot for need in needs}
            )
        # (3)
        receiver, sender = (organisation_of(spec.roles[role]) for role in OWNERS)
        if receiver == sender:
            raise InputError(
                "one organisation brings two lists, but it needs no job to compare its own",
                code="one-list-each",
                hint="let each organisation take one role",
            )
        check_names(spec)
        # (4)
        check_recipient(spec, receiver, "receiver")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: the receiver is a recipient, the sender a source."""
        Params.of(spec)
        return frozenset({"recipient" if role == RECEIVER else "source"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a list: a key; where values are compared the value, perhaps when last seen."""
        return _columns(Params.of(spec)) if role in OWNERS else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the records for the receiver's organisation; nobody else receives anything."""
        receiver = organisation_of(spec.roles[RECEIVER])
        return (PlannedRelease(RECORDS, OutputClass.DIRECTED, RECEIVER, receiver),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:  # noqa: ARG002  # may be anybody: nothing goes there
        """Return that receiver and sender are two organisations."""
        receiver, sender = (frozenset({organisation_of(spec.roles[role])}) for role in OWNERS)
        return (Separation(_NO_JOB, receiver, sender),)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        found = _differing(len(params.groups)) if params.differs else _HELD
        crafted = _crafted(params)
        return {
            frozenset({RECEIVER}): (_LIST_SIZES, found, crafted),
            frozenset({SENDER}): (_LIST_SIZES, _NOTHING_OF_THE_LIST),
            frozenset({Role(REQUESTER)}): (_IT_RAN,),
            frozenset({Role(COORDINATOR)}): (_LIST_SIZES, _TRAFFIC),
        }

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002  # the job states what it may cost
        """Return one question, and from the sender as many records as the receiver may list keys.

        Of every key the receiver learns whether the sender lists it, so every one counts, found or not. How
        many are found, the sender never learns.
        """
        params = Params.of(spec)
        if role not in OWNERS:
            return NOTHING
        return Cost(rows=params.receiver_keys if role == SENDER else 0, queries=1)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return whose lists are compared, by which columns and values.

        The same two lists the other way round are the same question: about the same persons. So both owners
        may have them compared, and a second grouping, or `held` beside `differs`, is another question: both
        answers together tell more than either was approved for.
        """
        params = Params.of(spec)
        if role not in OWNERS:
            return None
        lists = sorted(
            [organisation_of(spec.roles[given.role]), given.dataset, sorted(given.columns.items())]
            for given in spec.inputs
        )
        asks = {
            "job_type": self.name,
            "lists": [[*owner, [list(column) for column in columns]] for *owner, columns in lists],
            "groups": sorted(sorted(group) for group in params.groups),
            "areas": params.areas.digest,
        }
        return Query(sha256_digest(canonical_json(asks)))

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 2: a record is of a person on both lists."""
        Params.of(spec)
        return len(OWNERS)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        The sender never sees the answer, so every limit binds the receiver's own list. (1) A summary of both
        lists and of nothing else, made by the same rules, with sizes that a list can have. (2) The receiver
        lists no more keys than the job says and every rule allows. (3) Its list is within 2 % of its
        catalogue. (4) It is at least `min_coverage` of its catalogue. (5) It can lay open at most
        `max_fraction` of the sender's list. (6) Two lists are enough.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, OWNERS)
        check_sizes(inputs)
        receiver, sender = (inputs[role] for role in OWNERS)
        # (2)
        if constraints.max_rows is None:
            raise ProtocolAborted(
                "no participant's rule sets max_rows",
                code="guard-missing",
                hint="directed records need max_rows in the rule of at least one department",
            )
        if params.receiver_keys > constraints.max_rows:
            raise ProtocolAborted(
                f"the job lets the receiver list {params.receiver_keys} keys, a participant allows "
                f"{constraints.max_rows}",
                code="guard-rows",
                hint="lower receiver_keys, or agree on a larger limit",
            )
        if receiver.distinct_keys > params.receiver_keys:
            raise ProtocolAborted(
                f"the receiver lists {receiver.distinct_keys} keys, the job was approved for "
                f"{params.receiver_keys}",
                code="guard-rows",
                hint="submit a job with larger receiver_keys and have it approved",
            )
        # (3)
        check_catalogue(receiver, "receiver")
        # (4)
        coverage, fraction = constraints.min_coverage, constraints.max_fraction
        if coverage is not None and receiver.distinct_keys < coverage * receiver.catalogue_keys:
            raise ProtocolAborted(
                f"the receiver lists less than {coverage} of its catalogue's keys",
                code="guard-coverage",
                hint="refresh the catalogue, or find out which keys are missing",
            )
        # (5)
        most = min(receiver.distinct_keys, sender.distinct_keys)
        if fraction is not None and most > fraction * sender.distinct_keys:
            raise ProtocolAborted(
                f"the receiver lists so many keys that it may find more than {fraction} of the sender's",
                code="guard-fraction",
                hint="let the receiver list fewer keys, or agree on a larger share",
            )
        # (6)
        more = "use crosscheck/1 for more lists"
        check_enough(constraints, organisations=len(OWNERS), sources=len(OWNERS), more=more, without=more)

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:  # noqa: ARG002  # each key counts once
        """Return an empty builder; ages are judged as of the day the job was created."""
        if not self.columns(spec, role):
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        params = Params.of(spec)
        return MatchListBuilder(as_of=spec.day, areas=params.areas, groups=params.groups, kind=KEY_TYPE)

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; only the receiver's has an output: the records.

        Raises:
            ProtocolAborted: a guard on the lists' sizes fails.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        if role not in OWNERS or not isinstance(prepared, MatchList):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        match = Match(
            receiver=RECEIVER,
            sender=SENDER,
            receiver_items=setup.inputs[RECEIVER].distinct_keys,
            sender_items=setup.inputs[SENDER].distinct_keys,
            values=params.entries,
            ctx=setup.ctx,
            exact=params.exact,
        )
        if role == SENDER:
            return Sender(match, prepared.keys, other_groups(prepared.marks, params), rand)
        sender = organisation_of(setup.spec.roles[SENDER])
        return Receiver(
            match,
            prepared.keys,
            prepared.marks,
            rand,
            publish=lambda found: (records(prepared, found, params, sender),),
        )


def other_groups(marks: npt.NDArray[np.uint8], params: Params) -> npt.NDArray[np.uint8]:
    """Return n x `entries` marks under which the sender enters each key: every group but its own.

    A receiver whose mark is among them has another value. A key that is not comparable is entered as often,
    under marks behind those of all groups, which no receiver has; and `NOT_COMPARABLE` is never entered.
    Without values: one column of zeros.
    """
    if not params.differs:
        return np.zeros((len(marks), 1), dtype=np.uint8)
    every = np.arange(1, len(params.groups) + 1, dtype=np.uint8)
    nobodys = len(every) + every[:-1]
    return np.stack([nobodys, *(every[every != own] for own in every)])[marks]


def records(listed: MatchList, found: npt.NDArray[np.bool_], params: Params, sender: Organisation) -> Content:
    """Return the receiver's records of the keys that were found, in order of keys.

    Columns `key`; where values are compared `own_group`, the group of the own value, called by its first one;
    and `organisation`, whose list it was compared with. The first two as bytes, UTF-8: a text would take four
    bytes a character.
    """
    if params.differs:
        found = found & (listed.marks != NOT_COMPARABLE)  # what no honest sender enters has no group to show
    keys = listed.keys[found]
    columns: dict[str, npt.NDArray[Any]] = {"key": keys}
    if params.differs:
        names = np.array([b"", *(group[0].encode() for group in params.groups)])
        columns["own_group"] = names[listed.marks[found]]
    columns["organisation"] = np.broadcast_to(np.array(str(sender)), len(keys))
    return Content(RECORDS, Table(columns), {"mark": SUSPECTED, "rows": len(keys)})


_NO_JOB: Final = "nothing new: an organisation needs no job to compare its own lists"

_LIST_SIZES: Final = Statement(
    "list-sizes",
    "how many rows and distinct keys each list has, whatever its values, and when it was taken, as the "
    "admissions state",
    "各清单的行数、去重后的条数(与取值无关)和数据时点(准入声明中已载明)",
)
_HELD: Final = Statement(
    "held",
    "of every key on its list, whether the sender lists it, too; nothing else of the sender's rows",
    "本清单中的每个证件号码是否也在发送方清单中; 不知道发送方的其他任何信息",
)


def _differing(groups: int) -> Statement:
    other, other_zh = (
        (
            "there are two groups, so of every key that is found it learns the sender's group: the other one",
            "只分两组, 因此对每个找到的号码, 接收方即得知发送方的取值属于哪一组(另一组)",
        )
        if groups == 2
        else ("it does not learn which", "不知道是哪一组")
    )
    return Statement(
        "differs",
        f"of every key on its list, whether the sender lists it with a value of another group; {other}. "
        "Where not, it cannot tell the same group from a person whom the sender does not list, or lists "
        "without a value of any group",
        f"本清单中的每个证件号码在发送方清单中的取值是否属于另一组; {other_zh}。若否, "
        "无法区分取值属于同一组、发送方清单中没有此人, 以及发送方的取值不属于任何一组",
    )


def _crafted(params: Params) -> Statement:
    what, what_zh, whole, whole_zh = (
        ("persons and values it lists", "人员及取值", ", with every person's group", "及每人所属的组")
        if params.differs
        else ("persons it lists", "人员", "", "")
    )
    exact = "no more keys than it was admitted with, which the sender counts"
    exact_zh = "数量不超过其准入条数, 由发送方逐一计数"
    short = SIZING.dh_below
    if params.exact:
        departing, departing_zh = f"{exact}, however long the lists are", f"不论清单长短, {exact_zh}"
    else:
        departing = (
            f"{exact}, where both lists have fewer than {short} entries; else it can obtain the sender's "
            f"whole list{whole}, by testing guesses afterwards, uncharged and unseen, which a job with "
            'form = "dh" rules out'
        )
        departing_zh = (
            f"双方清单均不足 {short} 项时, {exact_zh}; 否则可在事后任意猜测并验证, 从而得到发送方的整份清单"
            f'{whole_zh}, 不计入配额, 也不会被察觉; 任务写明 form = "dh" 可排除这种情形'
        )
    return Statement(
        "crafted-list",
        f"the same about {what} on purpose, {params.receiver_keys} keys at most, each charged; the committed "
        "input shows that afterwards to an auditor. If it departs from the protocol, too, it may compare "
        f"others, which the committed input does not show: {departing}",
        f"故意列入某些{what_zh}时, 可得到同样信息, 最多 {params.receiver_keys} 个证件号码, 逐一计入配额; "
        "事后审计可凭输入承诺查出。若其还违反协议, 则可比对承诺以外的号码, 输入承诺无法反映: "
        f"{departing_zh}",
    )


_NOTHING_OF_THE_LIST: Final = Statement(
    "no-result",
    "nothing of the receiver's list but its size, nor how many keys were found",
    "除条数外, 不知道接收方清单的任何内容, 也不知道找到多少",
)
_IT_RAN: Final = Statement(
    "it-ran",
    "that the job ran, or why it did not; no record, nor how many there are",
    "任务是否完成及未完成的原因; 没有任何记录, 也不知道有多少条",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, and how far each node is; number and "
    "size of frames follow from list sizes alone, but how long the receiver takes to finish grows with what "
    "it found",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度; 帧的数量和大小仅取决于清单条数, "
    "但接收方完成所需时间随找到的数量增加",
)
