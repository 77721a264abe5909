"""`score-joined/1`, class B: whom a linear model over several departments' columns gives a high score.

Scores are added up in shares of the joined rows. One recipient, who has a duty towards the persons, receives
those who score high enough, each with the step of a public scale that the score reaches; nobody the columns,
and nobody a score. The weights are in the job, or each department's own part has been kept at its node since
it was trained. What is asked, messages, checks and what each coalition learns: `protocols/training/SPEC.md`,
section 7.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import Any, Final, Self

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import AreaTable, area_table
from protocols.ids import JobId, Organisation, Role
from protocols.jobs.job_type import (
    REQUESTER,
    WEIGHTS,
    ColumnNeed,
    InputBuilder,
    OutputClass,
    PlannedRelease,
    PreparedInput,
    Separation,
    Setup,
    Shelf,
    Statement,
    Unit,
)
from protocols.jobs.sources import (
    check_recipient,
    check_records,
    kinds_of,
)
from protocols.joined.align import Way
from protocols.joined.lists import LAST_SEEN, STREET, JoinedList
from protocols.joined.params import (
    DEALER,
    HELPER,
    MATCHER,
    Lists,
    OwnAmount,
    owners_of,
    read_lists,
    seats_apart,
)
from protocols.joined.rule_parties import Recipient, Source
from protocols.joined.rules import Question
from protocols.joined.statements import LIST_SIZES, Values, add, coalitions, kept_rows
from protocols.overlap.lists import KEY
from protocols.party import Party, Rand
from protocols.psi.envelopes import RECORDS
from protocols.releases.figures import Sentence
from protocols.statistics.differencing import Query
from protocols.tables.layout import Reader, bad, decimal_text, read_slot
from protocols.training.joined.columns import MAX_SCORED, CodedRows
from protocols.training.joined.held import MAX_COMPARED
from protocols.training.joined.scoring import (
    Asked,
    Feature,
    Part,
    Scoring,
    Steps,
    model_digest,
    part_name,
    read_part,
    scored,
)
from protocols.training.joined.scoring_parties import Dealer, Helper, Matcher, Reading
from protocols.training.schema import MAX_CODES
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

RECIPIENT: Final = Role("recipient")
"""The seat of a recipient that brings no list."""

TRAINED_BY: Final = "train-joined/1"
"""The job type that leaves each department its part of a model."""

MAX_WEIGHT: Final = 1 << 40
LEAST_BITS, MOST_BITS = 4, 24
MAX_REACH: Final = 1 << 10
"""Largest score that a kept part may make, either way."""

TAKEN: Final = frozenset({KEY, LAST_SEEN, STREET})
"""Slots that every list has of its own, so no column has one of these names."""

_NAME: Final = "score-joined/1"
_ON: Final = ("on", "not")
_JOB: Final = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Split:
    """A model whose parts are kept by those whose columns they weigh.

    Attributes:
        job: which trained it.
        reach: no part makes a score beyond this, either way, in whole units.
    """

    job: JobId
    reach: int


@dataclass(frozen=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lists: filters of all sources; their features as codes.
        features: what a score counts on, in the job's order.
        model: of each list with features the weights, by its place; or where they are kept.
        scoring: how scores are added up and told.
        source: whose envelopes go to the recipient.
        recipient: the seat of who receives them: a source, or `recipient`.
    """

    lists: Lists
    features: tuple[Feature, ...]
    model: Mapping[int, Part] | Split
    scoring: Scoring
    source: Role
    recipient: Role

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles they refer to.

        (1) Sources, a matcher, a helper, a dealer, perhaps a recipient. (2) How each list is joined. (3)
        Features, of two lists or more that persons are on. (4) Weights of every code, that differ on two
        lists or more, or who trained them. (5) What is told of a score. (6) Who gives records and who
        receives them.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        extra = (RECIPIENT,) if RECIPIENT in spec.roles else ()
        owners = owners_of(spec, dealer=True, extra=extra)
        # (2)
        plain, weights, of = _apart(spec.params)
        reader = Reader(plain, _NAME)
        ways = _read_ways(reader, owners)
        # (3)
        features = _read_features(reader, owners)
        lists = read_lists(reader, owners)
        _check_features(features, lists, ways)
        # (4)
        model, bits, constant = _read_model(reader.table("model"), features, weights, of)
        if isinstance(model, Split):
            reach = model.reach << bits
            spans = dict.fromkeys(_places(features), (-reach, reach))
        else:
            spans = {place: part.span for place, part in model.items()}
            _check_weighed(spans)
        # (5)
        steps = _read_steps(reader, bits)
        scoring = Scoring(ways, tuple(sorted(spans.items())), constant, steps)
        # (6)
        on = tuple(owner for owner, way in zip(owners, ways, strict=True) if way == "on")
        source = Role(reader.choice("records_from", on))
        recipient = Role(reader.choice("recipient", extra or owners))
        reader.finish()
        amounts = tuple(OwnAmount(owners[each.owner], each.amount, ("filter",)) for each in features)
        lists = replace(lists, amounts=amounts, records_from=source)
        return cls(lists, features, model, scoring, source, recipient)

    @property
    def owners(self) -> tuple[Role, ...]:
        """Who brings a list: the sources in order."""
        return self.lists.owners

    @property
    def areas(self) -> AreaTable:
        """The table that identifiers are read with."""
        return area_table(self.lists.areas)

    def way(self, owner: Role) -> Way:
        """Return how a source's list is joined."""
        return self.scoring.ways[self.owners.index(owner)]

    def joined(self, way: Way) -> tuple[Role, ...]:
        """Return whose lists are joined so."""
        return tuple(owner for owner in self.owners if self.way(owner) == way)

    def own(self, role: Role) -> tuple[Feature, ...]:
        """Return the features of a source's list."""
        return tuple(each for each in self.features if self.owners[each.owner] == role)

    def question(
        self, inputs: Mapping[Role, InputSummary], limits: Constraints, ctx: bytes = bytes(32)
    ) -> Asked:
        """Return what the parties compute in an attempt, once both limits of records are known to be set."""
        assert limits.max_rows is not None
        assert limits.max_fraction is not None
        found = Question.of(
            self.scoring.rule,
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
        return Asked.put(found, self.scoring)


# -- params --------------------------------------------------------------------------------------------------


def _apart(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any], object]:
    """Return the params without weights and without `model.of`, then both: what no `Reader` reads.

    Of weights there is what stands in each column, None for nothing; None for no `of`, too.
    """
    plain, of = dict(params), None
    if isinstance(model := plain.get("model"), Mapping):
        of = model.get("of")
        plain["model"] = {name: value for name, value in model.items() if name != "of"}
    columns = plain.get("columns")
    if not isinstance(columns, list | tuple) or not all(isinstance(each, Mapping) for each in columns):
        return plain, [], of
    plain["columns"] = [
        {name: value for name, value in each.items() if name != "weights"} for each in columns
    ]
    return plain, [each.get("weights") for each in columns], of


def _read_ways(reader: Reader, owners: Sequence[Role]) -> tuple[Way, ...]:
    """Read `join`: of every source, whether a person is on its list or not; left out, on all."""
    if not reader.has("join"):
        return tuple("on" for _ in owners)
    table = reader.table("join")
    found: tuple[Way, ...] = tuple("on" if table.choice(owner, _ON) == "on" else "not" for owner in owners)
    table.finish()
    return found


def _read_features(reader: Reader, owners: Sequence[Role]) -> tuple[Feature, ...]:
    found = []
    for table in reader.tables("columns", MAX_SCORED, least=2):
        owner = owners.index(Role(table.choice("source", owners)))
        slot = read_slot(table)
        codes = table.texts("codes", MAX_CODES) if table.has("codes") else ()
        edges = () if codes else table.fractions("edges", MAX_CODES)
        missing = table.choice("missing", ("no", "yes"), "yes" if codes else "no") == "yes"
        table.finish()
        found.append(Feature(owner, slot, codes, edges, missing))
    return tuple(found)


def _places(features: Sequence[Feature]) -> tuple[int, ...]:
    return tuple(sorted({each.owner for each in features}))


def _check_features(features: Sequence[Feature], lists: Lists, ways: Sequence[Way]) -> None:
    slots = [each.slot for each in features]
    if len(set(slots)) != len(slots) or TAKEN & set(slots):
        raise bad(
            f"two columns have one slot, or one of the names {', '.join(sorted(TAKEN))}",
            "give each a slot of its own",
        )
    if set(slots) & {each.kept.slot for each in lists.filters}:
        raise bad("a filter has the slot of a column of the score", "give it a slot of its own")
    if any(ways[each.owner] == "not" for each in features):
        raise bad(
            "a column of a list on which nobody is who is joined",
            'leave its columns out, or join the list as "on"',
        )
    if len(_places(features)) < 2:
        raise bad(
            "the columns of one source alone make the score, and that source needs no protocol for it",
            "list columns of two sources or more",
        )


def _read_model(
    table: Reader, features: Sequence[Feature], weights: Sequence[Any], of: object
) -> tuple[dict[int, Part] | Split, int, int]:
    """Read `model`, with its `of` and the weights of each column: the model, its bits, and its constant."""
    bits = table.number("bits", LEAST_BITS, MOST_BITS)
    if of is not None:
        reach = table.number("reach", 1, MAX_REACH)
        table.finish()
        if not isinstance(of, str) or not _JOB.fullmatch(of) or any(each is not None for each in weights):
            raise bad(
                "model.of names no job, or columns have weights although their owners keep them",
                'write model = {of = "sha256:…", bits = 11, reach = 16}, and no weights',
            )
        return Split(JobId(of), reach), bits, 0
    constant = table.number("constant", -MAX_WEIGHT, MAX_WEIGHT)
    table.finish()
    found: dict[int, list[tuple[int, ...]]] = {}
    for feature, given in zip(features, weights, strict=True):
        found.setdefault(feature.owner, []).append(_read_weights(feature, given))
    return {place: Part(tuple(each)) for place, each in found.items()}, bits, constant


def _check_weighed(spans: Mapping[int, tuple[int, int]]) -> None:
    """Refuse weights by which the columns of one list alone make one row's score differ from another's."""
    if sum(low < high for low, high in spans.values()) < 2:
        raise bad(
            "all weights of each source but one are the same: the score is of that one's columns alone",
            "weigh columns of two sources or more; what one department's columns say is asked of it",
        )


def _read_weights(feature: Feature, given: object) -> tuple[int, ...]:
    if (
        not isinstance(given, list | tuple)
        or len(given) != feature.width
        or not all(isinstance(each, int) and not isinstance(each, bool) for each in given)
        or max(map(abs, given)) > MAX_WEIGHT
    ):
        raise bad(
            f"the weights of a column are not {feature.width} whole numbers, one for each of its codes",
            'write weights = [-120, 35, 80] for edges = ["20", "40"], and one more with missing = "yes"',
        )
    return tuple(given)


def _read_steps(reader: Reader, bits: int) -> Steps:
    chance = reader.choice("scale", ("chance", "score"), "chance") == "chance"
    at_least, step = reader.fraction("at_least"), reader.fraction("step")
    if step <= 0 or (chance and not 0 < at_least < 1) or abs(at_least) > MAX_REACH:
        raise bad(
            "at_least is no chance between 0 and 1, or step is not above 0",
            'write at_least = "0.3", step = "0.05"; a list of everybody\'s score is not this job',
        )
    return Steps(bits, at_least, step, chance)


# -- job type ------------------------------------------------------------------------------------------------


class ScoreJoined:
    """The job type `score-joined/1`."""

    name: Final = _NAME
    shelf: Final = TRAINED_BY
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = False  # a guard that fails, or none, tells something of the lists
    told: Final = frozenset({"join", "group", "carry"})  # columns of the score have the use filter

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

    def recipe(self, spec: JobSpec) -> str:
        """Return what a rule has to name: `logistic` for a model that was trained and kept in parts.

        Weights that stand in the job may be a model's or made to look up columns, which nobody can tell:
        whoever allows them names `weights`.
        """
        return "logistic" if isinstance(Params.of(spec).model, Split) else WEIGHTS

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat; a source that receives the records is a recipient, too."""
        params = Params.of(spec)
        if role == RECIPIENT:
            return frozenset({"recipient"})
        kinds = kinds_of(role, params.lists.key_holders)
        return kinds | {"recipient"} if role == params.recipient else kinds

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return every column that a source has to offer: key, what scores, filters, the street."""
        params = Params.of(spec)
        others = replace(params.lists, amounts=()).needs(role)
        return tuple(dict.fromkeys((*others, *(each.need for each in params.own(role)))))

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
            Separation(_APART, neutral, at[params.recipient]),
        )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        recipient = params.recipient
        table = coalitions(params.lists, _VALUES, dealt=True, also=lambda _, __: _PASSES, guessed=_PASSES)
        for owner in params.owners:
            if owner != recipient:
                add(table, owner, said=(_CRAFTED,))
        own = () if recipient in params.owners else (LIST_SIZES,)
        add(table, recipient, said=(*own, _received(params, spec), _weighed_columns(params), _CRAFTED))
        add(table, REQUESTER, said=(_IT_RAN,))
        if not isinstance(params.model, Split):
            add(table, REQUESTER, said=(_CHOSEN_WEIGHTS,))
        for computing in (MATCHER, HELPER):
            add(table, computing, said=(_PASSING_ROWS,))
            # A recipient that has every received person on its own list is spoken of as a source.
            if recipient not in params.joined("on"):
                add(table, DEALER, computing, recipient, said=(_RECEIVED_SCORES,))
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
        """Return whose lists are joined how, the model, and the steps; each threshold is another question."""
        params = Params.of(spec)
        if role not in params.owners:
            return None
        name = {owner: organisation_of(spec.roles[owner]) for owner in params.owners}
        model, steps = params.model, params.scoring.steps
        weighed: list[Any] = (
            [model.job, model.reach]
            if isinstance(model, Split)
            else [params.scoring.constant, sorted(_weighed(params, model))]
        )
        asks = {
            "job_type": self.name,
            "join": sorted([name[owner], params.way(owner)] for owner in params.owners),
            "columns": sorted(
                [name[params.owners[each.owner]], each.slot, each.coding.hex()] for each in params.features
            ),
            "model": [steps.bits, *weighed],
            "steps": [str(steps.at_least), str(steps.step), steps.chance],
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
        params = Params.of(spec)
        return CodedRows(params.lists.builder(spec, role, unit), params.own(role))

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what all admissions say of the lists, before anything derived from data leaves.

        (1) See `check_records`. (2) What the matcher has to hold is not too much, nor what is compared.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        on = len(params.joined("on"))
        check_records(inputs, constraints, owners=params.owners, recipient=params.recipient, sources=on)
        # (2)
        question = params.question(inputs, constraints)
        question.joining.check_room()
        if question.compared > MAX_COMPARED:
            raise ProtocolAborted(
                f"{question.compared} comparisons of records with steps, at most {MAX_COMPARED} are made",
                code="guard-too-large",
                hint="ask for larger steps, or agree on fewer records",
            )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Return the state machine of `role` where the weights are in the job.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            TypeError: the prepared input is not what `builder` of that role returns; the parts are kept.
        """
        return self._party(role, setup, prepared, rand, None)

    def party_with(
        self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand, *, shelf: Shelf
    ) -> Party:
        """Return the state machine of `role`; only the recipient's has an output: the records.

        Raises:
            ProtocolAborted: a guard on the inputs fails, or the own list is not the admitted one.
            InputError: `no-part`, `wrong-part`, `part-too-large`: what this node kept of the model.
            TypeError: the prepared input is not what `builder` of that role returns.
        """
        return self._party(role, setup, prepared, rand, shelf)

    def _party(
        self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand, shelf: Shelf | None
    ) -> Party:
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
        return Source(question, role, _part_of(params, role, setup.spec, shelf).on(own), rand, reading)


def _weighed(params: Params, model: Mapping[int, Part]) -> list[list[Any]]:
    """Return each column's slot and weights."""
    return [
        [feature.slot, [*weights]]
        for place, part in model.items()
        for feature, weights in zip(params.own(params.owners[place]), part.weights, strict=True)
    ]


def _part_of(params: Params, role: Role, spec: JobSpec, shelf: Shelf | None) -> Part:
    """Return the weights of a source's own columns; of one without columns, none."""
    features, model = params.own(role), params.model
    if not isinstance(model, Split):
        return model.get(params.owners.index(role), Part(()))
    if not features:
        return Part(())
    if shelf is None:
        raise TypeError("the parts of this model are kept at the nodes: ask with their shelf")
    kept = shelf.get(part_name(model.job))
    if kept is None:
        raise InputError(
            "this node keeps no part of the model that the job names",
            code="no-part",
            hint="name a training job in which this node took part, and whose model was split",
        )
    whole = model_digest(
        model.job,
        [(organisation_of(spec.roles[params.owners[each.owner]]), each) for each in params.features],
    )
    part = read_part(bytes(kept), features, params.scoring.steps.bits, whole)
    low, high = part.span
    if max(-low, high) > model.reach << params.scoring.steps.bits:
        raise InputError(
            "the part of the model that is kept here makes scores beyond model.reach",
            code="part-too-large",
            hint="write a larger reach, the same for every participant",
        )
    return part


def _reading(params: Params, question: Asked, setup: Setup, own: JoinedList | None) -> Reading:
    source = {question.number: (params.source, organisation_of(setup.spec.roles[params.source]))}
    return Reading(
        question,
        as_of=setup.spec.day,
        areas=params.areas,
        own=None if own is None else (params.way(params.recipient), own.keys),
        publish=lambda opened, reached: (scored(opened, source, reached),),
    )


_VALUES: Final = Values(
    Sentence(
        "part of the score, from which with the weights its columns may follow",
        "在评分中的分量(结合权重往往可推知各列的值)",
    ),
    Sentence(
        "the score, from which with the weights the columns may follow",
        "评分(结合权重往往可推知各列的值)",
    ),
    Sentence(
        "the score, or other lists' parts of it, from which with the weights their columns may follow",
        "的评分或其在其他清单中的分量(结合权重往往可推知各列的值)",
    ),
)
_PASSES: Final = Sentence(", and whether the score reaches the least step", ", 评分是否达到最低一档")
_APART: Final = "envelopes of persons who do not score high enough, or exact scores of those who do"
_CRAFTED: Final = Statement(
    "crafted-list",
    "as a recipient, or together with one, by who is received and by which step, more about persons whom it "
    "lists, leaves off or gives other values on purpose; the committed input shows that afterwards to an "
    "auditor, unless it departs from the protocol, too",
    "作为接收方或与接收方合谋, 故意添加、漏报人员或改动数值时, 可从是否列入及评分档次得知这些人员的更多信息; "
    "事后审计可凭输入承诺查出, 但若其违反协议、所用数据与承诺不符, 则查不出",
)
_PASSING_ROWS: Final = Statement(
    "passing-rows",
    "for how many of the joined persons the score reaches the least step, and for which of its rows without "
    "a name; no score, and no other step",
    "关联人员中评分达到最低一档的人数, 以及是哪些无名条目; 不知道任何评分和其他档次",
)
_IT_RAN: Final = Statement(
    "it-ran",
    "that the job ran, or why it did not; no record, nor how many there are",
    "任务是否完成及未完成的原因; 没有任何记录, 也不知道有多少条",
)
_CHOSEN_WEIGHTS: Final = Statement(
    "chosen-weights",
    "by itself nothing of anybody, but it chooses weights, first step and steps, and so what the steps of "
    "received persons say; as the recipient, or together with it, by weights that are no model's, columns of "
    "its choice, by name; weights do not show what they were made for",
    "其本身不知道任何人的信息, 但由其选定权重、最低一档和档距, 即选定列入人员的档次说明什么; "
    "若权重并非模型所得, 其作为接收方或与接收方合谋, 可得知所选各列的取值(含身份); 从权重本身看不出其用意",
)
_RECEIVED_SCORES: Final = Statement(
    "received-scores",
    "for each received person, by name, the exact score, from which with the weights the columns may follow",
    "对每个列入人员(含身份), 得知确切评分(结合权重往往可推知各列的值)",
)
_CHOSEN: Final = Statement(
    "chosen-rows",
    "departing from the protocol, key, street and month last seen of joined persons whose score does not "
    "reach the least step, as many as the limits on records let leave, or a wrong step of any; neither "
    "records nor commitments show it",
    "若违反协议: 可得到评分未达最低一档的关联人员的证件号码、街道、最近出现月份, 人数以名单上限为限, "
    "也可改动任何人的档次; 名单和输入承诺均看不出来",
)


def _received(params: Params, spec: JobSpec) -> Statement:
    on, out = (", ".join(params.joined(way)) or "none" for way in ("on", "not"))
    source, steps = params.source, params.scoring.steps
    kept = kept_rows(params.lists, spec)
    least, step = decimal_text(steps.at_least), decimal_text(steps.step)
    what = Sentence("chance", "概率") if steps.chance else Sentence("score", "线性得分")
    return Statement(
        "received-rows",
        f"key, street and month last seen, from {source}, of every person whose {what.en} is {least} or "
        f"more, and which step of {step} above that it reaches; all of them count on the lists of {on}, on "
        f"none of {out}{kept.en}",
        f"{what.zh}不低于 {least} 的每个人员在 {source} 清单中的证件号码、街道、最近出现月份, "
        f"以及其上每 {step} 一档中达到的档次 (在 {on} 清单中有符合条件的记录, 在 {out} 清单中没有{kept.zh})",
    )


def _weighed_columns(params: Params) -> Statement:
    steps = len(params.scoring.told)
    most = f"{log2(steps + 1):.1f}"
    if isinstance(params.model, Split):
        return Statement(
            "weighed-columns",
            f"by the step of each received person, one of {steps}, up to {most} bits of the sum of what all "
            "columns weigh; it has the weights of its own columns, if any, and what that tells of others "
            "depends on what training has made of theirs",
            f"由每个列入人员所达到的档次(共 {steps} 档), 至多得知各列加权之和的 {most} 比特信息; "
            "其只有自己各列的权重(如有), 能推知他方各列多少取决于训练得到的权重",
        )
    return Statement(
        "weighed-columns",
        f"by the step of each received person, one of {steps}, up to {most} bits of a combination of the "
        "columns that the weights in the job choose: with weights made for it, the value of a column, or of "
        "several, exactly",
        f"由每个列入人员所达到的档次(共 {steps} 档), 至多得知各列某种组合的 {most} 比特信息, "
        "该组合由任务所载权重决定: 若权重为此设计, 即为某一列或某几列的确切取值",
    )


def _opened(params: Params) -> Statement:
    return Statement(
        "opened-envelopes",
        f"key, street and month last seen of every row of {params.source}'s list, and with the matcher's and "
        "the helper's shares the scores of those persons, and each list's part of them",
        f"{params.source} 清单的全部条目: 证件号码、街道、最近出现月份; 连同双方份额, 得知这些人员的评分"
        "及各清单在其中的分量",
    )
