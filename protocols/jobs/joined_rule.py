"""`joined-rule/1`, class B: the persons for whom a rule over several departments' columns holds.

The rule is a conjunction of linear inequalities, evaluated on shares of the joined rows; one recipient, who
has a duty towards the persons, receives them, and nobody the columns. What is asked, messages, checks and
what each coalition learns: `protocols/joined/SPEC.md`, section 7.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Final, Literal, Self, get_args

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError
from protocols.identifiers import AreaTable, area_table
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    REQUESTER,
    ColumnNeed,
    Domain,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Statement,
    Unit,
)
from protocols.jobs.sources import (
    check_recipient,
    check_records,
    kinds_of,
)
from protocols.joined.align import Way
from protocols.joined.lists import STREET, JoinedList
from protocols.joined.params import (
    DEALER,
    HELPER,
    MATCHER,
    Lists,
    owners_of,
    read_lists,
    seats_apart,
)
from protocols.joined.rule_parties import Dealer, Helper, Matcher, Reading, Recipient, Source
from protocols.joined.rules import MAX_CLAUSES, Clause, Column, Question, Rule
from protocols.joined.statements import LIST_SIZES, Values, add, coalitions, kept_rows
from protocols.party import Party, Rand
from protocols.psi.envelopes import RECORDS, records
from protocols.releases.figures import Sentence
from protocols.statistics.differencing import Query
from protocols.tables.layout import NUMBER_TYPES, Reader, bad
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

RECIPIENT: Final = Role("recipient")
"""The seat of a recipient that brings no list."""

MAX_COLUMNS: Final = 16
MAX_WEIGHT: Final = 10**9

_NAME: Final = "joined-rule/1"
_WAYS: Final[tuple[Way, ...]] = get_args(Way)
_SENSES: Final[tuple[Literal["at_least", "at_most"], ...]] = ("at_least", "at_most")


def present(source: Role) -> str:
    """Return the name of the column that is 1 where that source's list has the person, else 0."""
    return f"present({source})"


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lists: columns and filters of all sources.
        rule: what is asked of a joined person.
        source: whose envelopes go to the recipient.
        recipient: the seat of who receives them: a source, or `recipient`.
    """

    lists: Lists
    rule: Rule
    source: Role
    recipient: Role

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Sources, a matcher, a helper, a dealer, perhaps a recipient. (2) How each list is joined. (3)
        Columns, each of a list that persons may be on, and each named by the rule. (4) Clauses, whose values
        can be compared. (5) Who gives records and who receives them.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        extra = (RECIPIENT,) if RECIPIENT in spec.roles else ()
        owners = owners_of(spec, dealer=True, extra=extra)
        # (2)
        reader = Reader(spec.params, _NAME)
        ways = _read_ways(reader, owners)
        # (3)
        lists = read_lists(
            reader, owners, amounts="columns", uses=("filter",), most=MAX_COLUMNS, reserved=(STREET,)
        )
        columns = _columns(lists, ways)
        # (4)
        rule = Rule(ways, columns, _read_clauses(reader, columns))
        named = {slot for clause in rule.clauses for slot, _ in clause.weights}
        if any(column.slot not in named for column in columns if not column.presence):
            raise bad("a column that no clause names", "leave it out: nobody needs it for this rule")
        # (5)
        on = tuple(owner for owner, way in zip(owners, ways, strict=True) if way == "on")
        source = Role(reader.choice("records_from", on))
        recipient = Role(reader.choice("recipient", extra or owners))
        reader.finish()
        return cls(replace(lists, records_from=source), rule, source, recipient)

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a list: the sources in order."""
        return self.lists.owners

    @cached_property
    def areas(self) -> AreaTable:
        """The table that identifiers are read with."""
        return area_table(self.lists.areas)

    def way(self, owner: Role) -> Way:
        """Return how a source's list is joined."""
        return self.rule.ways[self.owners.index(owner)]

    def joined(self, way: Way) -> tuple[Role, ...]:
        """Return whose lists are joined so."""
        return tuple(owner for owner in self.owners if self.way(owner) == way)

    def question(
        self, inputs: Mapping[Role, InputSummary], limits: Constraints, ctx: bytes = bytes(32)
    ) -> Question:
        """Return what the parties compute in an attempt, once both limits of records are known to be set."""
        assert limits.max_rows is not None
        assert limits.max_fraction is not None
        return Question.of(
            self.rule,
            self.owners,
            self.lists.key_holders,
            [inputs[owner].distinct_keys for owner in self.owners],
            ctx,
            matcher=MATCHER,
            helper=HELPER,
            dealer=DEALER,
            source=self.source,
            recipient=self.recipient,
            max_rows=limits.max_rows,
            max_fraction=limits.max_fraction,
        )


def _read_ways(reader: Reader, owners: Sequence[Role]) -> tuple[Way, ...]:
    """Read `join`: of every source, whether a person is on its list, may be, or is not."""
    table = reader.table("join")
    found = tuple(_way(table.choice(owner, _WAYS)) for owner in owners)
    table.finish()
    if "on" not in found:
        raise bad("params.join has no list that persons are on", 'write "on" for one source or more')
    return found


def _way(text: str) -> Way:
    (found,) = (way for way in _WAYS if way == text)
    return found


def _columns(lists: Lists, ways: Sequence[Way]) -> tuple[Column, ...]:
    """Return what clauses may name: amounts, and of lists that are "may" whether they have a person."""
    place = {owner: at for at, owner in enumerate(lists.owners)}
    found = []
    for each in lists.amounts:
        if ways[place[each.source]] == "not":
            raise bad(
                f"a column of {each.source}, on whose list nobody is who is joined",
                "leave its columns out, or join the list another way",
            )
        amount = each.amount
        found.append(Column(amount.slot, place[each.source], amount.low, amount.high, amount.decimals))
    if {each.kept.slot for each in lists.filters} & {column.slot for column in found}:
        raise bad("a filter has the slot of a column of the rule", "give it a slot of its own")
    return (
        *found,
        *(
            Column(present(owner), place[owner], 0, 1, presence=True)
            for owner in lists.owners
            if ways[place[owner]] == "may"
        ),
    )


def _read_clauses(reader: Reader, columns: Sequence[Column]) -> tuple[Clause, ...]:
    """Read `rule`: `{weights = {slot = 1}, at_least = "5"}`, or `at_most`."""
    found = []
    for table in reader.tables("rule", MAX_CLAUSES, least=1):
        listed = table.table("weights")
        weights = tuple(
            (column.slot, listed.number(column.slot, -MAX_WEIGHT, MAX_WEIGHT))
            for column in columns
            if listed.has(column.slot)
        )
        listed.finish()
        if not weights or not all(weight for _, weight in weights):
            raise bad("a clause without weights, or with a weight of 0", "name at least one column")
        senses = [sense for sense in _SENSES if table.has(sense)]
        if len(senses) != 1:
            raise bad("a clause has not exactly one of at_least and at_most", 'write at_least = "5000"')
        found.append(Clause(weights, senses[0], table.fraction(senses[0])))
        table.finish()
    return tuple(found)


class JoinedRule:
    """The job type `joined-rule/1`."""

    name: Final = _NAME
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = False  # a guard that fails, or none, tells something of the lists
    told: Final = frozenset({"join", "group", "carry"})  # columns of the rule have the use filter

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) Every source brings one dataset with the slots of its part. (3) Records go
        to the recipient's organisation alone, which is none that brings another list.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        params.lists.check_columns(spec)
        # (3)
        recipient = organisation_of(spec.roles[params.recipient])
        check_recipient(spec, recipient, "recipient")
        if params.recipient == RECIPIENT and recipient in {
            organisation_of(spec.roles[owner]) for owner in params.owners
        }:
            raise InputError(
                "the recipient's organisation brings a list, and then its list says who is to be received",
                code="bad-roles",
                hint="name that source as the recipient, and leave the seat out",
            )

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat; a source that receives the records is a recipient, too."""
        params = Params.of(spec)
        if role == RECIPIENT:
            return frozenset({"recipient"})
        kinds = kinds_of(role, params.lists.key_holders)
        return kinds | {"recipient"} if role == params.recipient else kinds

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return every column that a source has to offer: key, what is compared, filters, the street.

        Where a policy lets groups of a column begin only at certain numbers, a clause cuts there, too: a
        column of whole numbers between two groups, and one that is compared with others nowhere.
        """
        params = Params.of(spec)
        return tuple(dict.fromkeys((*params.lists.needs(role), *_cut(params, role))))

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the records for the recipient's organisation; nothing goes to the requester."""
        params = Params.of(spec)
        recipient = organisation_of(spec.roles[params.recipient])
        return (PlannedRelease(RECORDS, OutputClass.DIRECTED, params.recipient, recipient),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:
        """Return which organisations must be different; each pair keeps coalitions of `learns` apart.

        As for all joined jobs; and none of the three that compute is the recipient's.
        """
        params = Params.of(spec)
        at = {role: frozenset({organisation_of(node)}) for role, node in spec.roles.items()}
        neutral = at[MATCHER] | at[HELPER] | at[DEALER]
        return (
            *seats_apart(spec, params.owners, requester),
            Separation(_OPENED.en, neutral, at[params.recipient]),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        recipient, may = params.recipient, params.joined("may")

        def also(computing: Role, _: Role) -> Sentence:
            return _HOLDS_AND_MAY if computing == HELPER and may else _HOLDS

        table = coalitions(params.lists, _VALUES, dealt=True, also=also, guessed=_HOLDS)
        for owner in params.owners:
            if owner != recipient:
                add(table, owner, said=(_CRAFTED,))
        own = () if recipient in params.owners else (LIST_SIZES,)
        add(table, recipient, said=(*own, _flagged(params, spec), _CRAFTED))
        add(table, REQUESTER, said=(_IT_RAN,))
        if params.rule.alone is not None:
            add(table, MATCHER, said=(_counting_rows(params.owners[params.rule.alone]),))
        for computing in (MATCHER, HELPER):
            add(table, computing, said=(_TRUE_ROWS,))
            # A recipient that has every flagged person on its own list is spoken of as a source.
            if recipient not in params.joined("on"):
                if set(may) - {recipient}:
                    add(table, computing, recipient, said=(_FLAGGED_ELSEWHERE,))
                add(table, DEALER, computing, recipient, said=(_FLAGGED_SUMS,))
            add(table, computing, recipient, said=(_CHOSEN,))
        add(table, MATCHER, HELPER, recipient, said=(_opened(params),))
        return table

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:
        """Return one question, and from every source but the recipient each record that the cap lets leave.

        A record tells something of the person in every list. How many leave, a source never learns.
        """
        params = Params.of(spec)
        if role not in params.owners:
            return NOTHING
        return Cost(rows=0 if role == params.recipient else constraints.max_rows or 0, queries=1)

    def query(self, spec: JobSpec, role: Role) -> Query | None:
        """Return whose lists are joined how, and the rule; each threshold is another question."""
        params = Params.of(spec)
        if role not in params.owners:
            return None
        name = {owner: organisation_of(spec.roles[owner]) for owner in params.owners}
        slots = {present(owner): present(Role(name[owner])) for owner in params.owners}
        clauses = [
            [
                sorted([slots.get(slot, slot), weight] for slot, weight in clause.weights),
                clause.sense,
                str(clause.bound),
            ]
            for clause in params.rule.clauses
        ]
        asks = {
            "job_type": self.name,
            "join": sorted([name[owner], params.way(owner)] for owner in params.owners),
            "rule": sorted(clauses),
        }
        return params.lists.query(spec, role, asks)  # whoever receives the records: the same persons

    def sources_asked(self, spec: JobSpec) -> int:
        """Return how many lists a person has to be on."""
        return len(Params.of(spec).joined("on"))

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:
        """Return an empty builder; each person counts once, whatever `unit` says.

        Raises:
            InputError: `no-dataset`.
        """
        return Params.of(spec).lists.builder(spec, role, unit)

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) See `check_records`. (2) What the matcher has to hold is not too much.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        on = len(params.joined("on"))
        check_records(inputs, constraints, owners=params.owners, recipient=params.recipient, sources=on)
        # (2)
        params.question(inputs, constraints).joining.check_room()

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role`; only the recipient's has an output: the records.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        params = Params.of(setup.spec)
        self.check_inputs(setup.spec, setup.inputs, setup.constraints)
        question = params.question(setup.inputs, setup.constraints, setup.ctx)
        if role == MATCHER:
            return Matcher(question, rand)
        if role == HELPER:
            return Helper(question, rand)
        if role == DEALER:
            return Dealer(question, rand)
        if role == RECIPIENT:
            return Recipient(_reading(params, question, setup, None))
        own = params.lists.own(role, prepared)
        reading = _reading(params, question, setup, own) if role == params.recipient else None
        return Source(question, role, own, rand, reading)


def _cut(params: Params, role: Role) -> Iterator[ColumnNeed]:
    """Yield for each clause that cuts a column of numbers that whole groups have to be below the cut.

    Of months there are no groups.
    """
    numbers = {each.amount.slot for each in params.lists.amounts if each.amount.until is None}
    for column in params.rule.columns:
        if column.slot in numbers and params.owners[column.owner] == role:
            for above in params.rule.cuts(column):
                below = _ANYWHERE if above is None else above - 1
                yield ColumnNeed(column.slot, "filter", NUMBER_TYPES, domain=Domain(kept=(None, below)))


_ANYWHERE: Final = Fraction(1, 3)
"""Where a comparison with other columns cuts one. Groups of whole numbers begin one above no such number."""


def _reading(params: Params, question: Question, setup: Setup, own: JoinedList | None) -> Reading:
    source = {question.number: (params.source, organisation_of(setup.spec.roles[params.source]))}
    return Reading(
        question,
        as_of=setup.spec.day,
        areas=params.areas,
        own=None if own is None else (params.way(params.recipient), own.keys),
        publish=lambda opened: (records(opened, source),),
    )


_VALUES: Final = Values(
    Sentence(
        "part of each sum that the rule compares, and whether its owner's own conditions hold",
        "在规则各项合计中的分量以及本部门各条件是否成立",
    ),
    Sentence("the sums that the rule compares and which conditions hold", "规则各项合计以及哪些条件成立"),
    Sentence(
        "the sums that the rule compares, or other lists' parts of them, and which conditions hold",
        "的规则各项合计或其在其他清单中的分量, 以及哪些条件成立",
    ),
)
_HOLDS: Final = Sentence(", and whether the rule holds", ", 是否符合规则")
_HOLDS_AND_MAY: Final = Sentence(
    ", if so which lists that may hold it do, and whether the rule holds",
    "; 若是, 哪些可有可无的清单持有该人, 是否符合规则",
)
_CRAFTED: Final = Statement(
    "crafted-list",
    "as a recipient, or together with one, by who is flagged more about persons whom it lists, leaves off "
    "or gives other values on purpose; the committed input shows that afterwards to an auditor, unless it "
    "departs from the protocol, too",
    "作为接收方或与接收方合谋, 故意添加、漏报人员或改动数值时, 可从命中与否得知这些人员的更多信息; "
    "事后审计可凭输入承诺查出, 但若其违反协议、所用数据与承诺不符, 则查不出",
)
_TRUE_ROWS: Final = Statement(
    "true-rows",
    "for how many of the joined persons the rule holds, and for which of its rows without a name",
    "关联人员中符合规则的人数, 以及是哪些无名条目",
)
_IT_RAN: Final = Statement(
    "it-ran",
    "that the job ran, or why it did not; no record, nor how many there are",
    "任务是否完成及未完成的原因; 没有任何记录, 也不知道有多少条",
)
_FLAGGED_ELSEWHERE: Final = Statement(
    "flagged-elsewhere",
    "for each flagged person, which of the lists that may hold it do",
    "对每个命中人员, 哪些可有可无的清单含有该人",
)
_FLAGGED_SUMS: Final = Statement(
    "flagged-sums",
    "for each flagged person, by name, the sums that the rule compares and which conditions hold",
    "对每个命中人员(含身份), 规则各项合计以及哪些条件成立",
)
_CHOSEN: Final = Statement(
    "chosen-rows",
    "departing from the protocol, key, street and month last seen of joined persons for whom the rule does "
    "not hold, as many as the limits on records let leave; neither records nor commitments show it",
    "若违反协议: 可得到不符合规则的关联人员的证件号码、街道、最近出现月份, 人数以名单上限为限; "
    "名单和输入承诺均看不出来",
)
_OPENED: Final = Statement(
    "opened-envelopes",
    "envelopes of persons for whom the rule does not hold, or more about those for whom it does",
    "不符合规则者的信封, 或符合规则者的更多信息",
)


def _flagged(params: Params, spec: JobSpec) -> Statement:
    on, out = (", ".join(params.joined(way)) or "none" for way in ("on", "not"))
    source, clauses = params.source, len(params.rule.clauses)
    kept = kept_rows(params.lists, spec)
    return Statement(
        "flagged-rows",
        f"key, street and month last seen, from {source}, of every person for whom all {clauses} clause(s) "
        f"of the rule hold, and that they hold; all of them count on the lists of {on}, on none of {out}"
        f"{kept.en}; none of the values",
        f"符合规则全部 {clauses} 个条件的每个人员在 {source} 清单中的证件号码、街道、最近出现月份, "
        f"并知道其符合规则 (在 {on} 清单中有符合条件的记录, 在 {out} 清单中没有{kept.zh}); "
        "不知道任何数值",
    )


def _counting_rows(owner: Role) -> Statement:
    return Statement(
        "counting-rows",
        f"which rows of {owner}'s list, the only one that persons have to be on, count; without a name",
        f"{owner} 清单(唯一必须在内的清单)中哪些记录符合条件, 不含身份",
    )


def _opened(params: Params) -> Statement:
    return Statement(
        "opened-envelopes",
        f"key, street and month last seen of every row of {params.source}'s list, and with the matcher's and "
        "the helper's shares the sums of those persons",
        f"{params.source} 清单的全部条目: 证件号码、街道、最近出现月份; 连同双方份额, 得知这些人员的各项合计",
    )
