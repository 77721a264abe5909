"""`crosscheck/1`, class B: who is in at least k sources and not on the register, or in every list.

Two questions of one shape. `present_in: at_least` finds persons whom at least k departments know and the
register does not (疑似漏登); `present_in: all` finds persons on the register whom every source holds, such
as the dead (应销未销), perhaps only where every source's date is some days of grace back from the first of a
month. The register's organisation alone receives records; the requester receives a street table. Messages,
locks, guards and what each coalition learns: `protocols/psi/SPEC.md`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from itertools import chain
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from protocols.dp.cost import NOTHING, Cost
from protocols.encoding import canonical_json
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import AreaTable, area_table
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    COORDINATOR,
    REQUESTER,
    ColumnNeed,
    Content,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Statement,
    Table,
    Unit,
    source,
)
from protocols.jobs.sources import (
    check_catalogue,
    check_columns,
    check_names,
    check_recipient,
    check_sizes,
    check_summaries,
)
from protocols.party import Finished, Incoming, Outgoing, Party, Progress, Rand, Step, Waiting
from protocols.psi import locks
from protocols.psi.envelopes import (
    CONTENT_KEY_BYTES,
    ENVELOPE_BYTES,
    KEY_TYPE,
    RECORD_BYTES,
    RECORDS,
    Inbox,
    Listed,
    check_selected,
    padded_shuffle,
    plaintexts,
    record,
    records,
    sealed,
)
from protocols.psi.group import Points
from protocols.psi.keyed_list import KeyedList, KeyedListBuilder, SpilledList
from protocols.psi.runs import Reader, Rows, Shuffle, merge
from protocols.psi.series import DayTagging
from protocols.psi.streams import check_ascending, messages
from protocols.psi.tagging import (
    MAX_LISTS,
    TAG_BYTES,
    Plan,
    SpilledTags,
    Tagged,
    Tagging,
    check_chunk,
    is_tagging,
)
from protocols.resources import Resources, in_memory
from protocols.statistics.differencing import Query
from protocols.statistics.suppress import MIN_GROUP, ROUNDING, protect_table
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

REGISTER: Final = Role("register")
MATCHER: Final = Role("matcher")

STREET_TABLE: Final = "street-table"

MAX_GRACE_DAYS: Final = 3650


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    `everywhere` is `present_in: all`; `k` is the smallest number of lists a flagged person is on: of sources,
    or, with `everywhere`, of all lists, the register's included. With a `grace`, a source's row counts if its
    date is far enough back.
    """

    everywhere: bool
    k: int
    sources: int
    key_holder: Role
    areas: AreaTable
    grace: "Grace | None" = None

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1) Roles: a register, a matcher, sources numbered from 1.
        sources = len(spec.roles) - 2
        expected = {REGISTER, MATCHER, *(source(i + 1) for i in range(sources))}
        if not 1 <= sources < MAX_LISTS or set(spec.roles) != expected:
            raise InputError(
                f"{len(spec.roles)} roles that are not register, matcher and source-1 to source-n",
                code="bad-roles",
                hint="name register, matcher and one role per source, numbered from source-1 without gaps",
            )
        # (2) Params: each known, each of its type.
        params: dict[str, Any] = dict(spec.params)
        present_in = params.pop("present_in", None)
        if present_in not in ("at_least", "all"):
            raise InputError(
                "params.present_in is neither at_least nor all",
                code="bad-params",
                hint='write present_in = "at_least" with k, or present_in = "all"',
            )
        k: Any = sources + 1
        if present_in == "at_least":
            k = params.pop("k", None)
            if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= sources or sources < 2:
                raise InputError(
                    f"params.k does not fit {sources} source(s); at_least takes two sources or more and "
                    "1 <= k <= the number of sources",
                    code="bad-params",
                    hint="k = 2 asks for persons whom two departments or more know",
                )
        key_holder = params.pop("key_holder", None)
        if not isinstance(key_holder, str) or key_holder not in expected - {REGISTER, MATCHER}:
            raise InputError(
                "params.key_holder names no source of this job",
                code="bad-params",
                hint='write key_holder = "source-1", the source that shares the tag key with the register',
            )
        areas = area_table(params.pop("areas", "national"))
        everywhere = present_in == "all"
        grace = Grace.of(params, spec.day) if everywhere else None
        if params:
            raise InputError(
                f"{len(params)} unknown param(s), expected present_in, k (with at_least), grace_days and "
                "as_of (with all), key_holder, areas",
                code="unknown-param",
                hint="remove what crosscheck/1 does not know",
            )
        return cls(everywhere, k, sources, Role(key_holder), areas, grace)

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a list: the register, then the sources in order. A list's index is its place here."""
        return (REGISTER, *(source(i + 1) for i in range(self.sources)))

    def share_index(self, index: int) -> int:
        """Return where a list's share is evaluated: the number of its source; the register comes last."""
        return index or self.sources + 1


@dataclass(frozen=True, slots=True)
class Grace:
    """How far back a source's date has to be for its row to count.

    It is counted from the first day of a month: within one month there is one answer. Two jobs a day apart
    would tell whose date is one certain day, and pass for the same question.

    Attributes:
        days: so many days, or more.
        as_of: before the first day of this day's month, None for the day the job was created.
        until: the last day that is far enough back.
    """

    days: int
    as_of: date | None
    until: date

    @classmethod
    def of(cls, params: dict[str, Any], created: date) -> Self | None:
        """Take the grace off `params`; None where there is none.

        Raises:
            InputError: no number of days, or no day that has come.
        """
        if not {"grace_days", "as_of"} & params.keys():
            return None
        named = "as_of" in params
        days, text = params.pop("grace_days", None), params.pop("as_of", created.isoformat())
        if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= MAX_GRACE_DAYS:
            raise InputError(
                f"params.grace_days is no whole number from 1 to {MAX_GRACE_DAYS}",
                code="bad-params",
                hint="grace_days = 60 leaves out rows dated less than 60 days before the month begins",
            )
        as_of = _day(text)
        # A later day would shorten the grace that officers read in the job.
        if as_of is None or not created - timedelta(MAX_GRACE_DAYS) <= as_of <= created:
            raise InputError(
                "params.as_of is no day such as 2026-11-30 on which the job was created, or of the "
                f"{MAX_GRACE_DAYS} days before",
                code="bad-params",
                hint="leave it out to count from the month of the job, or give the day of the extracts",
            )
        return cls(days, as_of if named else None, as_of.replace(day=1) - timedelta(days))

    def asks(self) -> dict[str, int | str]:
        """Return what makes it another question: the days, and the day where the job chose one."""
        return {"grace_days": self.days, **({} if self.as_of is None else {"as_of": self.as_of.isoformat()})}


def _day(text: object) -> date | None:
    """Return the day that is written as 2026-11-30, None for anything else."""
    try:
        day = date.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return day if day is not None and day.isoformat() == text else None


_KEY = ColumnNeed("key", "join", ("resident-id", "identifier"))
_STREET = ColumnNeed("street", "group", ("enum", "text", "code"))
_LAST_SEEN = ColumnNeed("last_seen", "carry", ("date", "month"), required=False)
_SINCE = ColumnNeed("since", "filter", ("date",))


def _columns(params: Params, owner: Role) -> tuple[ColumnNeed, ...]:
    if owner == REGISTER:
        return (_KEY,)
    return (_KEY, _STREET, _LAST_SEEN) if params.grace is None else (_KEY, _STREET, _LAST_SEEN, _SINCE)


class Crosscheck:
    """The job type `crosscheck/1`."""

    name: Final = "crosscheck/1"
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = False  # a guard that fails, or none, tells something of the lists

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Each list owner brings one dataset with the slots it needs, nobody else
        brings any. (3) One organisation gives one list. (4) Records go to the register's organisation alone.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        if sorted(i.role for i in spec.inputs) != sorted(params.owners):
            raise InputError(
                f"{len(spec.inputs)} inputs, expected one each of {', '.join(params.owners)}",
                code="bad-inputs",
                hint="give the register and every source one dataset; the matcher brings none",
            )
        for given in spec.inputs:
            needs = _columns(params, given.role)
            known = {need.slot for need in needs}
            required = {need.slot for need in needs if need.required}
            check_columns(given, required, known)
        # (3)
        owners = [organisation_of(spec.roles[role]) for role in params.owners]
        if len(set(owners)) != len(owners):
            raise InputError(
                "one organisation brings two lists, but sources count as organisations",
                code="one-list-each",
                hint="let each organisation take one role",
            )
        check_names(spec)
        # (4)
        check_recipient(spec, owners[0], "register")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat: register and one source are key-holders, too."""
        params = Params.of(spec)
        if role == MATCHER:
            return frozenset({"matcher"})
        kind = "register" if role == REGISTER else "source"
        holds_key = role in (REGISTER, params.key_holder)
        return frozenset({kind, "key-holder"}) if holds_key else frozenset({kind})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the slots of a list: a key, and from sources the street and perhaps when last seen.

        With a grace, from sources also the date that it is counted from.
        """
        params = Params.of(spec)
        return _columns(params, role) if role in params.owners else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the records for the register's organisation and the street table for the requester."""
        register = organisation_of(spec.roles[REGISTER])
        return (
            PlannedRelease(RECORDS, OutputClass.DIRECTED, REGISTER, register),
            PlannedRelease(STREET_TABLE, OutputClass.AGGREGATE, REGISTER, REQUESTER),
        )

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return who must not share an organisation; each pair keeps one coalition of `learns` apart.

        The matcher stands alone: against list owners and key-holders (own-rows-elsewhere, opened-envelopes,
        dictionary), and against requester and recipients (venn). List owners are pairwise different, which
        also keeps the two tag keys apart.
        """
        params = Params.of(spec)
        organisation = {role: organisation_of(node) for role, node in spec.roles.items()}
        matcher = frozenset({organisation[MATCHER]})
        owners = [organisation[role] for role in params.owners]
        pairs = [
            Separation(_rows_elsewhere("a list owner").en, matcher, frozenset(owners)),
            Separation(_VENN.en, matcher, frozenset({requester, *spec.recipients})),
            Separation(
                _DICTIONARY.en,
                frozenset({organisation[REGISTER]}),
                frozenset({organisation[params.key_holder]}),
            ),
        ]
        pairs += [
            Separation(_ONE_LIST_EACH, frozenset({owner}), frozenset(owners[:place] + owners[place + 1 :]))
            for place, owner in enumerate(owners)
        ]
        return tuple(pairs)

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames.

        A coalition that is not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        sizes = _LIST_SIZES
        table: dict[frozenset[Role], tuple[Statement, ...]] = {
            frozenset({REGISTER}): (sizes, _flagged(params), _CRAFTED),
            frozenset({MATCHER}): (sizes, _VENN),
            frozenset({Role(REQUESTER)}): (_STREET_TABLE,),
            frozenset({Role(COORDINATOR)}): (sizes, _TRAFFIC),
        }
        for role in params.owners[1:]:
            table[frozenset({role})] = (sizes,)
            table[frozenset({MATCHER, role})] = (_rows_elsewhere(role),)
        together = frozenset({MATCHER, REGISTER})
        opened = _opened_from(params.k) if params.k > 1 else _OPENED_WITHOUT_LOCK
        table[together] = (_rows_elsewhere(REGISTER), _opened_of(REGISTER) if params.everywhere else opened)
        for role in params.owners[1:]:
            if role == params.key_holder:
                table[together | {role}] = (_DICTIONARY,)
            elif params.everywhere or params.k > 1:
                table[together | {role}] = (_opened_of(role),)
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        """Return one question, and from a source every record that the row cap lets leave.

        How many really leave, a source never learns, so it counts the cap.
        """
        params = Params.of(spec)
        if role not in params.owners:
            return NOTHING
        return Cost(rows=0 if role == REGISTER else constraints.max_rows or 0, queries=1)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return whose lists are compared at which threshold and grace, and by which area table.

        If one differs, so does the group: another table reads other keys as valid.
        """
        params = Params.of(spec)
        if role not in params.owners:
            return None
        lists = sorted(
            [organisation_of(spec.roles[i.role]), i.dataset, "register" if i.role == REGISTER else "source"]
            for i in spec.inputs
        )
        asks = {
            "job_type": self.name,
            "lists": lists,
            "k": params.k,
            "everywhere": params.everywhere,
            "areas": params.areas.digest,
        }
        if params.grace is not None:
            asks |= params.grace.asks()
        return Query(canonical_json(asks).decode("utf-8"))

    def sources_asked(self, spec: JobSpec) -> int:
        """Return k, or the number of all lists."""
        return Params.of(spec).k

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) A summary of every list and of nothing else, made by the same identifier rules; sizes that a list
        can have. (2) The three limits of class B are set. (3) No list is empty. (4) The register's list is
        within 2 % of its catalogue. (5) Enough sources, organisations.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, params.owners)
        check_sizes(inputs)
        # (2) Without them the matcher could guard nothing; a rule that forgets them refuses by that.
        if None in (constraints.max_rows, constraints.max_fraction, constraints.min_coverage):
            raise ProtocolAborted(
                "no participant's rule sets max_rows, max_fraction and min_coverage",
                code="guard-missing",
                hint="directed records need all three limits in the rule of at least one department",
            )
        # (3), (4)
        register = inputs[REGISTER]
        check_catalogue(register, "register")
        empty = sorted(role for role, summary in inputs.items() if summary.distinct_keys == 0)
        if empty:
            raise ProtocolAborted(
                f"the list of {', '.join(empty)} has no usable key, so its coverage cannot be told",
                code="guard-empty-list",
                hint="look at the preflight of the dataset: empty, or all identifiers rejected",
            )
        # (5)
        if constraints.min_sources is not None and params.k < constraints.min_sources:
            raise ProtocolAborted(
                f"flagged from {params.k} list(s) on, a participant asks for {constraints.min_sources}",
                code="guard-sources",
                hint="raise k",
            )
        if constraints.min_organisations is not None and len(params.owners) < constraints.min_organisations:
            raise ProtocolAborted(
                f"{len(params.owners)} organisations bring a list, a participant asks for "
                f"{constraints.min_organisations}",
                code="guard-organisations",
                hint="add sources",
            )

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder; ages are judged as of the day the job was created.

        Each key counts once, whatever `unit` says.
        """
        return self.builder_with(spec, role, unit, in_memory())

    def builder_with(
        self,
        spec: JobSpec,
        role: Role,
        unit: Unit | None,  # noqa: ARG002  # each key counts once
        resources: Resources,
    ) -> InputBuilder:
        """Return what `builder` does; a list longer than is held in memory goes to scratch."""
        if not self.columns(spec, role):
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        params = Params.of(spec)
        until = None if role == REGISTER or params.grace is None else params.grace.until
        return KeyedListBuilder(
            as_of=spec.day, areas=params.areas, kind=KEY_TYPE, until=until, resources=resources
        )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; only the register's has outputs: records and street table.

        Raises:
            ProtocolAborted: a guard on the lists' sizes fails.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        return self.party_on(role, setup, prepared, rand, resources=in_memory())

    def party_on(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        resources: Resources,
    ) -> Party:
        """Return what `party` does: of long lists no more than a part is in memory at any moment."""
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        if role == MATCHER:
            return Matcher(params, setup, rand, resources)
        if not isinstance(prepared, KeyedList | SpilledList):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        kind = Register if role == REGISTER else Source
        return kind(role, params, setup, prepared, rand, resources=resources)


_ONE_LIST_EACH: Final = "nothing new, but one organisation would count as two of the k"

_LIST_SIZES: Final = Statement(
    "list-sizes",
    "how many rows and distinct keys each list has and when it was taken, as the admissions state",
    "各清单的行数、去重后的条数和数据时点(准入声明中已载明)",
)


def _flagged(params: Params) -> Statement:
    if params.everywhere:
        dated, dated_zh = "", ""
        if params.grace is not None:
            until = params.grace.until.isoformat()
            dated, dated_zh = f" with a date of {until} or before", f"且日期均不晚于 {until} "
        return Statement(
            "flagged-rows",
            "key, street and month last seen of every person on its list whom all "
            f"{params.sources} source(s) hold{dated}, from one source each, and which source that is",
            f"本清单中全部 {params.sources} 个来源均持有{dated_zh}的人员: 证件号码、街道、最近出现月份, "
            "每人取自一个来源, 并知道是哪个来源",
        )
    return Statement(
        "flagged-rows",
        f"key, street and month last seen of every person in at least {params.k} of {params.sources} sources "
        "and not on its list, from one source each, and which source that is",
        f"{params.sources} 个来源中至少 {params.k} 个持有而本清单没有的人员: 证件号码、街道、最近出现月份, "
        "每人取自一个来源, 并知道是哪个来源",
    )


_CRAFTED: Final = Statement(
    "crafted-list",
    "the same about persons it leaves off or puts on its list on purpose; the committed input shows that "
    "afterwards to an auditor, unless it departs from the protocol, too, and tags other keys than those",
    "故意漏报或添加人员时, 可得到这些人员的同样信息; 事后审计可凭输入承诺查出, "
    "但若其违反协议、标记的号码与承诺不符, 则查不出",
)
_VENN: Final = Statement(
    "venn",
    "for each combination of lists, exactly how many keys are on those and no others; no key itself",
    "各清单每一种组合恰好有多少相同条目(精确韦恩图), 不知道任何证件号码",
)
_STREET_TABLE: Final = Statement(
    "street-table",
    "the flagged persons counted by street, after minimum group, suppression and rounding",
    "按街道统计的人数, 经最小分组、主次抑制和取整处理",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, how far each node is, which guard "
    "failed if one did, and how large the sealed street table is; number and size of frames follow from list "
    "sizes and limits alone, but how long a step takes grows with what it handles",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度、触发了哪项保护阈值、街道统计密文的大小; "
    "帧的数量和大小仅取决于清单条数和各项上限, 但各步骤耗时随处理量增加",
)


def _opened_from(k: int) -> Statement:
    return Statement(
        "opened-envelopes",
        "key, street and month last seen, from every source, of persons on the register's list and of "
        f"persons in at least {k} sources",
        f"登记清单内人员及至少 {k} 个来源持有的人员, 在每个来源中的证件号码、街道、最近出现月份",
    )


_OPENED_WITHOUT_LOCK: Final = Statement(
    "opened-envelopes",
    "key, street and month last seen of every row of every source: with k = 1 there is no lock",
    "每个来源的全部条目: 证件号码、街道、最近出现月份 (k = 1 时没有门限锁)",
)
_DICTIONARY: Final = Statement(
    "dictionary",
    "for any guessed identifier, which lists hold it, and its row in each source; all can be guessed",
    "对任意猜测的证件号码, 可知哪些清单持有及各来源中的对应条目; 证件号码可被穷举",
)


def _opened_of(owner: str) -> Statement:
    return Statement(
        "opened-envelopes",
        f"key, street and month last seen, from every source, of persons on {owner}'s list",
        f"{owner} 清单内人员在每个来源中的证件号码、街道、最近出现月份",
    )


def _rows_elsewhere(owner: str) -> Statement:
    return Statement(
        "own-rows-elsewhere",
        f"for each row of {owner}'s list, which other lists hold the same person",
        f"{owner} 清单中的每一条, 还有哪些清单持有同一人",
    )


TAGS: Final = 0x1000
"""Round: list owner → matcher, 16-byte tags in ascending order."""
READY: Final = 0x1100
"""Round: matcher → source (and register, with `all`), empty: every guard has passed."""
ROWS: Final = 0x1200
"""Round: source → matcher, share ‖ locked envelope in tag order; register with `all`: shares alone."""
CONTENT_KEY: Final = 0x1300
"""Round: source → register, the 32-byte key of its envelopes."""
ENVELOPES: Final = 0x1400
"""Round: matcher → register, list index ‖ position ‖ envelope in random order, then padding."""

CHUNK_TAGS: Final = 32768
CHUNK_ROWS: Final = 4096
_UNLOCKED_AT_ONCE: Final = 4096

LOCKED_BYTES: Final = ENVELOPE_BYTES + locks.GCM_TAG_BYTES
ROW_BYTES: Final = locks.SHARE_BYTES + LOCKED_BYTES


def _unexpected(message: Incoming, why: str) -> ProtocolAborted:
    return ProtocolAborted(f"round {message.round} from {message.sender}: {why}", code="unexpected-message")


def _items(message: Incoming, width: int) -> int:
    """Return how many items of `width` bytes a body holds."""
    if len(message.body) % width:
        raise ProtocolAborted(
            f"body of {len(message.body)} bytes, expected a multiple of {width}", code="bad-length"
        )
    return len(message.body) // width


class _ListOwner:
    """What register and sources share: tag the own list, serve as key-holder, send the tags."""

    def __init__(
        self,
        role: Role,
        params: Params,
        setup: Setup,
        listed: KeyedList | SpilledList,
        rand: Rand,
        *,
        tagging: Tagging | DayTagging | None = None,
        resources: Resources | None = None,
    ) -> None:
        self.role, self.params, self.setup, self.listed, self.rand = role, params, setup, listed, rand
        self.index = params.owners.index(role)
        if tagging is None:
            keys = listed.keys if isinstance(listed, KeyedList) else listed.entries
            tagging = Tagging(plan_of(params, setup), role, keys, rand, resources)
        self.tagging = tagging
        self._tags_sent = False
        self._ready = False

    def start(self) -> Step:
        """Return the first window of blinded points."""
        return Waiting(self.tagging.start(), self._progress())

    def _progress(self) -> Progress:
        return Progress("tagging", self.tagging.done, self.tagging.total)

    def _tag(self, message: Incoming) -> Step:
        """Take a tagging message; once the own list is tagged, its tags go to the matcher."""
        following = self.tagging.receive(message)
        tagged = self._tagged()
        if tagged is not None and not self._tags_sent:
            self._tags_sent = True
            return Waiting(chain(following, self._tags(tagged)), self._progress())
        return Waiting(following, self._progress())

    def _tagged(self) -> Tagged | SpilledTags | None:
        """Return the own list under its tags, once it is."""
        spilled = self.tagging.spilled if isinstance(self.tagging, Tagging) else None
        return spilled if self.tagging.tagged is None else self.tagging.tagged

    def _tags(self, tagged: Tagged | SpilledTags) -> Iterator[Outgoing]:
        if isinstance(tagged, Tagged):
            tags = tagged.tags
            return messages(MATCHER, TAGS, len(tags), CHUNK_TAGS, lambda start, stop: tags[start:stop])
        rows = tagged.rows
        return messages(
            MATCHER, TAGS, len(rows), CHUNK_TAGS, lambda start, stop: rows.read(start, stop)["tag"]
        )

    def _parts(self, tagged: Tagged | SpilledTags) -> Iterator[tuple[Points, Listed, npt.NDArray[np.uint32]]]:
        """Yield the tagged list in tag order, `CHUNK_ROWS` at a time: V, and a list with its rows there."""
        if isinstance(tagged, Tagged):
            assert isinstance(self.listed, KeyedList)
            for start in range(0, len(tagged.order), CHUNK_ROWS):
                part = slice(start, start + CHUNK_ROWS)
                yield tagged.values[part], self.listed, tagged.order[part]
        else:
            assert isinstance(self.listed, SpilledList)
            for block in tagged.rows.blocks(CHUNK_ROWS):
                yield block["value"], self.listed.of(block), np.arange(len(block), dtype=np.uint32)

    def _take_ready(self, message: Incoming) -> Tagged | SpilledTags:
        """Check the matcher's word that every guard has passed, and return the tagged list."""
        if message.sender != MATCHER or message.round != READY:
            raise _unexpected(message, "expected none")
        tagged = self._tagged()
        if self._ready or tagged is None or self.tagging.serving:
            raise _unexpected(message, "out of turn")
        if message.body or not message.last:
            raise ProtocolAborted("the matcher's ready is not empty", code="bad-length")
        self._ready = True
        return tagged


def plan_of(params: Params, setup: Setup) -> Plan:
    """Return who tags what."""
    return Plan(
        owners=params.owners,
        key_holders=(REGISTER, params.key_holder),
        counts=tuple(setup.inputs[role].distinct_keys for role in params.owners),
        ctx=setup.ctx,
    )


def most_flagged(params: Params, counts: Sequence[int], limits: Constraints) -> int:
    """Return how many persons may be flagged at most, from numbers that every participant has seen.

    With `at_least`: (1) of source i at most the share 1 - `min_coverage` is not on the register's list, and
    (2) at most `max_fraction` of the persons in at least k sources may be flagged; either way each person
    takes k rows. With `all`: (1) everyone is on the shortest list, (2) at most `max_fraction` of the
    register's are flagged. (3) In both, `max_rows`.

    Args:
        params: of the job.
        counts: distinct keys of each list, the register's first.
        limits: the strictest of all admissions.
    """
    coverage, fraction = limits.min_coverage or Fraction(0), limits.max_fraction
    if params.everywhere:
        most, eligible = min(counts), counts[0]
    else:
        most = sum(count - math.ceil(coverage * count) for count in counts[1:]) // params.k
        eligible = sum(counts[1:]) // params.k
    if fraction is not None:
        most = min(most, math.floor(fraction * eligible))
    return most if limits.max_rows is None else min(most, limits.max_rows)


def room_of(params: Params, setup: Setup) -> int:
    """Return how many records the stream of envelopes has, padding and all."""
    return most_flagged(params, plan_of(params, setup).counts, setup.constraints)


class Source(_ListOwner):
    """A source: envelopes for the register, locked for the matcher. Learns nothing but list sizes."""

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message, or `ready`, upon which rows and content key go out and the part is done."""
        if is_tagging(message.round):
            return self._tag(message)
        tagged = self._take_ready(message)
        content_key = self.rand(CONTENT_KEY_BYTES)
        key = Outgoing(REGISTER, CONTENT_KEY, content_key)
        return Finished(chain(self._rows(tagged, content_key), (key,)), ())

    def _rows(self, tagged: Tagged | SpilledTags, content_key: bytes) -> Iterator[Outgoing]:
        start, count = 0, len(tagged)
        for points, listed, places in self._parts(tagged):
            plain, values = plaintexts(listed, places), points.tobytes()
            envelopes = sealed(plain, content_key, self.setup.ctx, self.index, start)
            rows = locks.lock(
                values,
                self.params.share_index(self.index),
                self.params.k,
                self.setup.ctx,
                self._inside(values, envelopes),
            )
            start += len(points)
            yield Outgoing(MATCHER, ROWS, b"".join(rows), last=start == count)

    def _inside(self, values: bytes, envelopes: Iterator[bytes]) -> Iterator[bytes]:
        """Return what lies in the locks of these V, 32 bytes each: their envelopes."""
        del values
        return envelopes


class Register(_ListOwner):
    """The register: first key-holder and the only one to open envelopes. Outputs records and street table."""

    def __init__(
        self,
        role: Role,
        params: Params,
        setup: Setup,
        listed: KeyedList | SpilledList,
        rand: Rand,
        *,
        tagging: Tagging | DayTagging | None = None,
        resources: Resources | None = None,
    ) -> None:
        super().__init__(role, params, setup, listed, rand, tagging=tagging, resources=resources)
        self._content_keys: dict[int, bytes] = {}
        self._inbox = Inbox(room_of(params, setup), setup.constraints.max_rows, resources)

    def receive(self, message: Incoming) -> Step:
        """Take a tagging message, `ready` (with `all`), a content key or envelopes."""
        outgoing: Iterable[Outgoing] = ()
        if is_tagging(message.round):
            return self._tag(message)
        if message.round == CONTENT_KEY:
            self._take_content_key(message)
        elif message.round == ENVELOPES:
            if message.sender != MATCHER:
                raise _unexpected(message, "no envelopes are due")
            self._inbox.take(message)
        else:
            tagged = self._take_ready(message)
            if not self.params.everywhere:
                raise _unexpected(message, "this job takes no share of the register")
            outgoing = self._shares(tagged)
        if self._inbox.complete and len(self._content_keys) == self.params.sources:
            return Finished(outgoing, self._open())
        # The coordinator sees this: padding is counted with the records, whose number is nobody else's.
        return Waiting(
            outgoing, Progress("opening", self._inbox.received, self._inbox.room), answering=bool(outgoing)
        )

    def _shares(self, tagged: Tagged | SpilledTags) -> Iterator[Outgoing]:
        """Yield the register's own shares: with `all`, its list counts as one of the k."""
        start, count = 0, len(tagged)
        for points, _, _ in self._parts(tagged):
            pairs = locks.shares_and_keys(
                points.tobytes(), self.params.share_index(self.index), self.params.k, self.setup.ctx
            )
            start += len(points)
            yield Outgoing(MATCHER, ROWS, b"".join(share for share, _ in pairs), last=start == count)

    def _take_content_key(self, message: Incoming) -> None:
        index = self.params.owners.index(message.sender) if message.sender in self.params.owners else 0
        if index == 0 or index in self._content_keys:
            raise _unexpected(message, "no content key is due")
        if len(message.body) != CONTENT_KEY_BYTES or not message.last:
            raise ProtocolAborted(
                f"content key of {len(message.body)} bytes, expected {CONTENT_KEY_BYTES}", code="bad-length"
            )
        self._content_keys[index] = message.body

    def _open(self) -> tuple[Content, Content]:
        """Open and check all envelopes, and return records and street table.

        No key is on the own list; with `all`, every one is.

        Raises:
            ProtocolAborted: with the step that failed.
        """
        opened = self._inbox.open(
            self._content_keys,
            self.setup.ctx,
            as_of=self.setup.spec.day,
            areas=self.params.areas,
        )
        check_selected(opened.keys, self.listed.key_blocks(), on=self.params.everywhere)
        roles, minimum = self.setup.spec.roles, self.setup.constraints.min_group_size
        owners = {i: (owner, organisation_of(roles[owner])) for i, owner in enumerate(self.params.owners)}
        return (
            records(opened, owners),
            street_table(opened.by_street(), MIN_GROUP if minimum is None else minimum),
        )


def district_of(street: str) -> str:
    """Return the county-level district of a street: the first six of the nine or twelve digits of its code.

    Codes of streets (GB/T 10114, nine digits) and of the communities in them (twelve) begin with the
    district's GB/T 2260 code. Any other text has no district known here and falls into one group, "".
    """
    return street[:6] if len(street) in (9, 12) and street.isascii() and street.isdigit() else ""


def street_table(counts: Mapping[str, int], minimum: int) -> Content:
    """Return the class-A table: persons by street, by district and in the city, one row per cell.

    Columns `level` (city, district, street), `district`, `street`, `count`, `withheld`; the count of a
    withheld cell is -1. A street that is no code is text from somebody's table, which may say more than a
    street: unless `minimum` persons share it, they are counted under "".

    Args:
        counts: persons by street, "" where a source does not know it.
        minimum: smallest published group.
    """
    named: Counter[str] = Counter()
    for street, count in counts.items():
        named[street if district_of(street) or count >= minimum else ""] += count
    protected = protect_table(named, {street: district_of(street) for street in named}, minimum, ROUNDING)
    rows: list[tuple[str, str, str, int | None]] = [("city", "", "", protected.total)]
    rows += [("district", district, "", count) for district, count in protected.districts.items()]
    rows += [("street", district_of(street), street, count) for street, count in protected.streets.items()]
    levels, districts, streets, cells = zip(*rows, strict=True)
    table = Table(
        {
            "level": np.array(levels, dtype=np.str_),
            "district": np.array(districts, dtype=np.str_),
            "street": np.array(streets, dtype=np.str_),
            "count": np.array([-1 if cell is None else cell for cell in cells], dtype=np.int64),
            "withheld": np.array([cell is None for cell in cells], dtype=np.bool_),
        }
    )
    facts: dict[str, int | str] = {
        "minimum_group": minimum,
        "rounding_base": ROUNDING,
        "withheld_cells": protected.withheld,
    }
    return Content(STREET_TABLE, table, facts)


_PLACE: Final = np.dtype([("place", np.uint64), ("number", np.uint64)])


@dataclass(frozen=True, slots=True)
class Selection:
    """The tags that the question asks for, numbered in ascending order: which lists hold each, and where.

    Attributes:
        masks: by number, bit i for list i.
        wanted: of each list its places, in its tag order, of selected tags, with the tags' numbers.
        kept: of each list the rows at these places, as they come.
    """

    masks: Rows
    wanted: tuple[Rows, ...]
    kept: tuple[Rows, ...]


def regions(lists: Sequence[npt.NDArray[np.bytes_]]) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.uint64]]:
    """Return the distinct tags of all lists, ascending, and the set of lists of each as bits."""
    joined = np.concatenate(lists)
    bits = np.repeat(
        np.left_shift(np.uint64(1), np.arange(len(lists), dtype=np.uint64)), [len(each) for each in lists]
    )
    order = np.argsort(joined, kind="stable")
    joined = joined[order]
    first = np.ones(len(joined), dtype=np.bool_)
    first[1:] = joined[1:] != joined[:-1]
    places = np.flatnonzero(first)
    if not places.size:
        return joined, np.empty(0, dtype=np.uint64)
    return joined[places], np.bitwise_or.reduceat(bits[order], places)


class Matcher:
    """The matcher: compares tags, guards, opens one lock per selected tag; sees no key, opens no envelope."""

    row_bytes = ROW_BYTES
    """Bytes of a source's row."""

    def __init__(self, params: Params, setup: Setup, rand: Rand, resources: Resources | None = None) -> None:
        self.params, self.setup, self.rand = params, setup, rand
        self._resources = resources or in_memory()
        self._counts = plan_of(params, setup).counts
        total = sum(self._counts)
        self._tags = [Rows(self._resources.store(total), f"S{TAG_BYTES}") for _ in self._counts]
        self._last = [np.empty(0, dtype=f"S{TAG_BYTES}") for _ in self._counts]  # tag of each list
        self._selection: Selection | None = None
        self._passed = [0] * len(self._counts)  # rows that have come, by list, once guards have passed
        self._places: list[Reader] = []  # of each list, where the next rows of selected tags are

    def start(self) -> Step:
        """Wait for tags."""
        return Waiting((), Progress("collecting", 0, sum(self._counts)))

    def receive(self, message: Incoming) -> Step:
        """Take tags or rows; the last of either leads on."""
        owners = self.params.owners
        if message.sender not in owners:
            raise _unexpected(message, "sender brings no list")
        index = owners.index(message.sender)
        if message.round == TAGS and self._selection is None:
            return self._take_tags(index, message)
        if message.round == ROWS and self._selection is not None and self._width(index):
            return self._take_rows(index, message, self._selection)
        raise _unexpected(message, "out of turn")

    def _width(self, index: int) -> int:
        """Return the bytes per row that list `index` sends: with `at_least` the register sends none."""
        if index:
            return self.row_bytes
        return locks.SHARE_BYTES if self.params.everywhere else 0

    def _take_tags(self, index: int, message: Incoming) -> Step:
        found, held = _items(message, TAG_BYTES), self._tags[index]
        check_chunk(len(held), found, self._counts[index], CHUNK_TAGS, last=message.last)
        tags = np.frombuffer(message.body, dtype=held.dtype)
        # Ascending and without repeats: one person is one row, and the order says nothing about the input.
        check_ascending(np.concatenate([self._last[index], tags]))
        self._last[index] = tags[-1:].copy()
        held.append(tags)
        seen = [len(each) for each in self._tags]
        if seen != list(self._counts):
            return Waiting((), Progress("collecting", sum(seen), sum(self._counts)))
        self._selection = self._select()
        self._places = [Reader(each, "place", CHUNK_ROWS) for each in self._selection.wanted]
        ready = (Outgoing(owner, READY, b"") for i, owner in enumerate(self.params.owners) if self._width(i))
        return Waiting(ready, self._row_progress())

    def _select(self) -> Selection:
        """Compare the lists, check the guards, and return what is asked for.

        Tags ascend in every list, so the lists are gone through side by side: once to count, and once more,
        when every guard has passed, to note what is asked for.

        Raises:
            ProtocolAborted: a guard fails. Nothing but tags has left any source so far.
        """
        venn: Counter[int] = Counter()
        for lists in merge(self._tags, self._resources.spill_rows):
            sets, sizes = np.unique(regions(lists)[1], return_counts=True)
            venn.update(dict(zip(sets.tolist(), sizes.tolist(), strict=True)))
        asked = self._guarded(venn)
        selection = self._noted(np.array(asked, dtype=np.uint64), sum(venn[mask] for mask in asked))
        for each in self._tags:
            each.drop()
        return selection

    def _noted(self, asked: npt.NDArray[np.uint64], count: int) -> Selection:
        """Return which tags are asked for, `count` of them, and where they are."""
        lists_of, room = range(len(self._counts)), count * len(self._counts)
        numbered = Rows(self._resources.store(room), np.uint64)
        wanted = tuple(Rows(self._resources.store(room), _PLACE) for _ in lists_of)
        starts = [0] * len(self._counts)
        for lists in merge(self._tags, self._resources.spill_rows):
            tags, masks = regions(lists)
            picked = np.isin(masks, asked)
            tags, masks = tags[picked], masks[picked]
            for i in lists_of:
                if self._width(i):
                    here = np.flatnonzero(masks & np.uint64(1 << i))
                    rows = np.empty(len(here), dtype=_PLACE)
                    rows["place"] = starts[i] + np.searchsorted(lists[i], tags[here])
                    rows["number"] = len(numbered) + here
                    wanted[i].append(rows)
                starts[i] += len(lists[i])
            numbered.append(masks)
        kept = tuple(Rows(self._resources.store(room), f"V{self._width(i) or 1}") for i in lists_of)
        return Selection(numbered, wanted, kept)

    def _guarded(self, venn: Mapping[int, int]) -> list[int]:
        """Return the sets of lists that the question asks for, once every guard has passed.

        Sizes of lists were guarded by `check_inputs`, which every part calls, and every count was met. Here:
        (1) coverage of every source by the register, (2) the share and (3) the number of selected persons.

        Args:
            venn: number of tags by the exact set of lists, as bits; bit 0 is the register.

        Raises:
            ProtocolAborted: naming the guard and its limit, never a count.
        """
        params, limits = self.params, self.setup.constraints
        held = {
            i: sum(n for mask, n in venn.items() if mask & 1 and mask >> i & 1)
            for i in range(len(self._counts))
        }
        # (1) A register that submits little or garbage would otherwise receive everybody.
        if limits.min_coverage is not None and any(
            Fraction(held[i], self._counts[i]) < limits.min_coverage for i in range(1, len(self._counts))
        ):
            raise ProtocolAborted(
                f"the register's list covers less than {limits.min_coverage} of a source",
                code="guard-coverage",
                hint="check that the register submitted its whole list and that area tables agree",
            )
        if params.everywhere:
            asked = [mask for mask in venn if mask == (1 << len(self._counts)) - 1]
            eligible = self._counts[0]
        else:
            enough = [mask for mask in venn if (mask >> 1).bit_count() >= params.k]
            asked = [mask for mask in enough if not mask & 1]
            eligible = sum(venn[mask] for mask in enough)
        selected = sum(venn[mask] for mask in asked)
        # (2)
        if limits.max_fraction is not None and selected > limits.max_fraction * eligible:
            raise ProtocolAborted(
                f"more than {limits.max_fraction} of the persons in question would be flagged",
                code="guard-fraction",
                hint="check that the lists are of the same population",
            )
        # (3)
        if limits.max_rows is not None and selected > limits.max_rows:
            raise ProtocolAborted(
                f"more than {limits.max_rows} persons would be flagged",
                code="guard-rows",
                hint="ask for a larger k, or agree on a larger limit",
            )
        return asked

    def _row_progress(self) -> Progress:
        total = sum(count for i, count in enumerate(self._counts) if self._width(i))
        return Progress("receiving", sum(self._passed), total)

    def _take_rows(self, index: int, message: Incoming, selection: Selection) -> Step:
        found = _items(message, self._width(index))
        start = self._passed[index]
        check_chunk(start, found, self._counts[index], CHUNK_ROWS, last=message.last)
        self._passed[index] += found
        places = self._places[index].below(start + found)["place"].astype(np.int64) - start
        kept = selection.kept[index]
        kept.append(np.frombuffer(message.body, dtype=kept.dtype)[places])
        if all(self._passed[i] == count for i, count in enumerate(self._counts) if self._width(i)):
            # All locks are off before the first envelope leaves.
            return self._answer(self._records(selection))
        return Waiting((), self._row_progress())

    def _answer(self, drawn: Shuffle) -> Step:
        """Return the step that all locks being off leads to; `drawn` are the records, in random order."""
        return Finished(padded_shuffle(REGISTER, ENVELOPES, drawn, room_of(self.params, self.setup)), ())

    def _records(self, selection: Selection) -> Shuffle:
        """Return one opened envelope for each selected tag, from a random source of each, in random order."""
        count = len(selection.masks)
        inside = self.row_bytes - locks.SHARE_BYTES - locks.GCM_TAG_BYTES
        width = f"V{RECORD_BYTES - ENVELOPE_BYTES + inside}"
        drawn = Shuffle(self._resources, width, count, self.rand)
        places = [Reader(each, "number", _UNLOCKED_AT_ONCE) for each in selection.wanted]
        seen = [0] * len(places)
        for start in range(0, count, _UNLOCKED_AT_ONCE):
            masks = selection.masks.read(start, min(start + _UNLOCKED_AT_ONCE, count))
            held = []
            for i, reader in enumerate(places):
                found = reader.below(start + len(masks))["place"].tolist()
                rows = selection.kept[i].read(seen[i], seen[i] + len(found))
                seen[i] += len(found)
                held.append((found, rows.tobytes()))
            drawn.add(np.frombuffer(b"".join(self._unlocked(masks, held)), dtype=width))
        for each in (selection.masks, *selection.wanted, *selection.kept):
            each.drop()
        return drawn

    def _unlocked(
        self, masks: npt.NDArray[np.uint64], held: Sequence[tuple[Sequence[int], bytes]]
    ) -> Iterator[bytes]:
        """Yield a record for each of these tags.

        Args:
            masks: which lists hold each.
            held: of each list the places of those that it holds, and its rows there.
        """
        lots = np.frombuffer(self.rand(8 * len(masks)), dtype=np.uint64)  # bias below 2^-57
        weights: dict[int, tuple[list[int], dict[int, int]]] = {}
        next_of = [0] * len(held)
        for mask, lot in zip(masks.tolist(), lots.tolist(), strict=True):
            if mask not in weights:
                holders = [i for i in range(len(held)) if mask >> i & 1 and self._width(i)]
                weights[mask] = (
                    holders,
                    locks.secret_weights(self.params.share_index(i) for i in holders[: self.params.k]),
                )
            holders, weight = weights[mask]
            rows: dict[int, tuple[int, bytes]] = {}
            for i in holders:
                places, body = held[i]
                at, width = next_of[i], self._width(i)
                rows[i] = places[at], body[at * width : (at + 1) * width]
                next_of[i] += 1
            sources = [i for i in holders if i]
            index = sources[lot % len(sources)]
            yield record(index, rows[index][0], self._taken(rows, weight, index))

    def _taken(self, rows: Mapping[int, tuple[int, bytes]], weights: Mapping[int, int], index: int) -> bytes:
        """Return what is in the lock of list `index`.

        Args:
            rows: of one tag, by list that holds it: its place there, and its row.
            weights: `locks.secret_weights` of k of these lists.
            index: whose lock it is.
        """
        shares = {self.params.share_index(i): row[: locks.SHARE_BYTES] for i, (_, row) in rows.items()}
        locked = rows[index][1][locks.SHARE_BYTES :]
        return locks.unlock(shares, weights, self.setup.ctx, self.params.share_index(index), locked)
