"""`lookup/1`, class B: a clerk verifies instead of filling in (以核代填), person by person, for a session.

The owner of a dataset gives the clerk's node a table that nobody can read, of one scope and some fields; each
look-up takes one evaluation by the owner, who counts and limits them and learns of nobody who it was. Tables,
messages, rates, rotation and what each coalition learns: `protocols/lookup/SPEC.md`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from protocols.dp.cost import NOTHING, Cost
from protocols.errors import InputError, ProtocolAborted
from protocols.identifiers import AreaTable, area_table, normalise
from protocols.ids import Organisation, Role
from protocols.jobs.job_type import (
    COORDINATOR,
    REQUESTER,
    ColumnNeed,
    Domain,
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
from protocols.jobs.sources import check_columns, check_names, check_recipient, check_summaries
from protocols.lookup.build import KEY_DAYS
from protocols.lookup.clerk import SESSION, Clerk
from protocols.lookup.inputs import KEY, LAST_SEEN, MAX_FIELDS, LookupList, LookupListBuilder
from protocols.lookup.owner import MARGIN_S, Owner, Pace
from protocols.lookup.pace import Rates
from protocols.lookup.plan import Lookup, table_name
from protocols.party import Party, Rand, Serving
from protocols.psi.envelopes import KEY_TYPE
from protocols.psi.oprf import Mode
from protocols.statistics.differencing import Query
from protocols.wire import Constraints, InputSummary, JobSpec, organisation_of

OWNER: Final = Role("owner")
CLERK: Final = Role("clerk")

MAX_LOOKUPS: Final = 10_000_000
MIN_SESSION_S: Final = 60
MAX_SESSION_S: Final = 7 * 86_400 - MIN_SESSION_S
MAX_SCOPES: Final = 8
MAX_VALUE_CHARACTERS: Final = 64

_SLOT: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")
_RESERVED: Final = frozenset({KEY, LAST_SEEN, "unit"})
_HANDED_OUT: Final = ("enum", "code", "text", "int", "decimal", "bool", "date", "month")


@dataclass(frozen=True, slots=True)
class Params:
    """What a job of this type asks.

    Attributes:
        lookups: most look-ups of the session.
        session_s: seconds after which it ends.
        mode: whether evaluations are proved.
        scope: slot → the text that rows of the table have there.
        fields: slots that are handed out.
        areas: area codes that were ever valid.
    """

    lookups: int
    session_s: int
    mode: Mode
    scope: Mapping[str, str]
    fields: tuple[str, ...]
    areas: AreaTable

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Read and check the params and the roles.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        if set(spec.roles) != {OWNER, CLERK}:
            raise InputError(
                f"{len(spec.roles)} roles that are not owner and clerk",
                code="bad-roles",
                hint="name owner, who has the rows, and clerk, at whose node people ask, and nobody else",
            )
        params: dict[str, Any] = dict(spec.params)
        lookups = _whole(params.pop("lookups", None), "lookups", 1, MAX_LOOKUPS)
        session_s = _whole(params.pop("session_s", None), "session_s", MIN_SESSION_S, MAX_SESSION_S)
        verified = params.pop("verified", True)
        if not isinstance(verified, bool):
            raise InputError(
                "params.verified is neither true nor false",
                code="bad-params",
                hint="leave it out, and the owner proves every evaluation",
            )
        scope = _scope(params.pop("scope")) if "scope" in params else {}
        fields = _fields(params.pop("fields", None))
        areas = area_table(params.pop("areas", "national"))
        if params:
            raise InputError(
                f"{len(params)} unknown param(s), known: lookups, session_s, fields, scope, verified, areas",
                code="unknown-param",
                hint="remove what lookup/1 does not know",
            )
        return cls(lookups, session_s, Mode.VOPRF if verified else Mode.OPRF, scope, fields, areas)

    @property
    def columns(self) -> tuple[ColumnNeed, ...]:
        """What the owner's dataset must offer."""
        text = ("enum", "code", "text")
        return (
            ColumnNeed(KEY, "join", (KEY_TYPE, "identifier")),
            *(ColumnNeed(s, "filter", text, domain=Domain(values=(v,))) for s, v in self.scope.items()),
            *(ColumnNeed(slot, "carry", _HANDED_OUT) for slot in self.fields),
            ColumnNeed(LAST_SEEN, "filter", ("date", "month"), required=False),
        )


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(
            f"params.{name} is no whole number from {least} to {most}",
            code="bad-params",
            hint="lookups is the most that the session may ask, session_s how many seconds it is open",
        )
    return value


def _is_slot(value: Any) -> bool:
    return isinstance(value, str) and _SLOT.fullmatch(value) is not None and value not in _RESERVED


def _scope(value: Any) -> dict[str, str]:
    if (
        not isinstance(value, dict)
        or not 1 <= len(value) <= MAX_SCOPES
        or not all(_is_slot(slot) and _is_text(text) for slot, text in value.items())
    ):
        raise InputError(
            f"params.scope does not name 1 to {MAX_SCOPES} slots, each with one text of at most "
            f"{MAX_VALUE_CHARACTERS} readable characters",
            code="bad-params",
            hint='write scope = { street = "990101001" }, or leave it out for all rows',
        )
    return dict(sorted(value.items()))


def _is_text(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MAX_VALUE_CHARACTERS
        and value.isprintable()
        and value == value.strip()
    )


def _fields(value: Any) -> tuple[str, ...]:
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= MAX_FIELDS
        or not all(map(_is_slot, value))
        or len(set(value)) != len(value)
    ):
        raise InputError(
            f"params.fields is no list of 1 to {MAX_FIELDS} different slots, none of them "
            f"{', '.join(sorted(_RESERVED))}",
            code="bad-params",
            hint='write fields = ["registered_on", "status"], the slots that are handed out',
        )
    return tuple(value)


class Lookups:
    """The job type `lookup/1`; also `Standing` and `RequesterBound`."""

    name: Final = "lookup/1"
    output_class: Final = OutputClass.DIRECTED
    states_sizes: Final = True
    counts_units: Final = False
    silent_until_answering: Final = True

    def __init__(self) -> None:
        """Begin with nobody having asked."""
        self._rates = Rates()

    def check(self, spec: JobSpec) -> None:
        """Check params, roles, inputs and recipients.

        (1) Params and roles. (2) The owner brings one dataset with the slots it needs, the clerk none. (3)
        Two organisations. (4) What is found goes to the clerk's organisation alone.

        Raises:
            InputError: what is wrong, what was expected, what to do.
        """
        # (1)
        params = Params.of(spec)
        # (2)
        if [given.role for given in spec.inputs] != [OWNER]:
            raise InputError(
                f"{len(spec.inputs)} inputs, expected one of the owner",
                code="bad-inputs",
                hint="give the owner one dataset; the clerk brings none",
            )
        known = {need.slot for need in params.columns}
        check_columns(spec.inputs[0], known - {LAST_SEEN}, known)
        # (3)
        clerk = organisation_of(spec.roles[CLERK])
        if clerk == organisation_of(spec.roles[OWNER]):
            raise InputError(
                "one organisation is owner and clerk, but the owner can open its own table",
                code="owner-is-clerk",
                hint="look the persons up in the own dataset",
            )
        check_names(spec)
        # (4)
        check_recipient(spec, clerk, "clerk")

    def kinds(self, spec: JobSpec, role: Role) -> frozenset[str]:
        """Return the policy role names of a seat."""
        Params.of(spec)
        return frozenset({"source" if role == OWNER else "recipient"})

    def columns(self, spec: JobSpec, role: Role) -> tuple[ColumnNeed, ...]:
        """Return the owner's slots: a key, scope, fields, perhaps when last seen. A slot may be of both."""
        return Params.of(spec).columns if role == OWNER else ()

    def releases(self, spec: JobSpec) -> tuple[PlannedRelease, ...]:
        """Return the session's release: how many look-ups there were. What was found, the askers have."""
        clerk = organisation_of(spec.roles[CLERK])
        return (PlannedRelease(SESSION, OutputClass.DIRECTED, CLERK, clerk),)

    def separation(self, spec: JobSpec, requester: Organisation) -> tuple[Separation, ...]:  # noqa: ARG002  # see `check_requester`
        """Return that owner and clerk are two organisations."""
        owner, clerk = (frozenset({organisation_of(spec.roles[role])}) for role in (OWNER, CLERK))
        return (Separation(_OPENED.en, owner, clerk),)

    def check_requester(self, spec: JobSpec, requester: Organisation) -> None:
        """Check that whoever asks for the session is of the clerk's organisation.

        Limits count for a requester, and answers go to the clerk: both are of one house.

        Raises:
            InputError: `requester-not-clerk`.
        """
        if requester != organisation_of(spec.roles[CLERK]):
            raise InputError(
                "the one who asks for the session is not of the organisation at whose node people would ask",
                code="requester-not-clerk",
                hint="have an analyst of the clerk's organisation submit it",
            )

    def learns(self, spec: JobSpec) -> Mapping[frozenset[Role], tuple[Statement, ...]]:
        """Return the coalition table of SPEC.md for this spec.

        `requester` stands for the analyst, `coordinator` for whoever relays the frames. A coalition that is
        not listed learns the union of what its listed parts learn.
        """
        params = Params.of(spec)
        return {
            frozenset({OWNER}): (_LIST_SIZE, _COUNTED),
            frozenset({CLERK}): (_LIST_SIZE, _TABLE, _found(params), _LATER),
            frozenset({Role(REQUESTER)}): (_SESSION,),
            frozenset({Role(COORDINATOR)}): (_LIST_SIZE, _TRAFFIC),
            frozenset({OWNER, CLERK}): (_OPENED,),
        }

    def cost(self, spec: JobSpec, role: Role, constraints: Constraints) -> Cost:  # noqa: ARG002
        """Return one question, and a row for each look-up of the session, asked or not."""
        params = Params.of(spec)
        return Cost(rows=params.lookups, queries=1) if role == OWNER else NOTHING

    def query(self, spec: JobSpec, role: Role) -> Query | None:  # noqa: ARG002  # the contract's form
        """Return None: each answer is about one person, so it is no group that another answer differs by.

        What sessions give away is counted in look-ups, by `cost`, and bound in time by the rate.
        """
        Params.of(spec)
        return None

    def sources_asked(self, spec: JobSpec) -> int:
        """Return 1: the owner alone knows the person."""
        Params.of(spec)
        return 1

    def builder(self, spec: JobSpec, role: Role, unit: Unit | None = None) -> InputBuilder:  # noqa: ARG002
        """Return an empty builder; ages are judged as of the day the job was created.

        Each person has one row, whatever `unit` says.
        """
        params = Params.of(spec)
        if role != OWNER:
            raise InputError(f"the role {role} brings no dataset", code="no-dataset")
        return LookupListBuilder(
            params.fields, params.scope, as_of=spec.day, areas=params.areas, kind=KEY_TYPE
        )

    def check_inputs(
        self, spec: JobSpec, inputs: Mapping[Role, InputSummary], constraints: Constraints
    ) -> None:
        """Check what the owner's admission says and what all demand, before anything leaves.

        (1) A summary of the owner's list and of nothing else. (2) A participant limits how many records may
        leave, and the session stays within it. (3) It ends before the job has to. (4) A rule that lends rows
        only to lists of several organisations does not mean this.

        Raises:
            ProtocolAborted: with the guard that failed.
        """
        params = Params.of(spec)
        # (1)
        check_summaries(inputs, (OWNER,))
        # (2)
        if constraints.max_rows is None:
            raise ProtocolAborted(
                "no participant's rule sets max_rows",
                code="guard-missing",
                hint="directed records need a limit in the owner's rule",
            )
        if params.lookups > constraints.max_rows:
            raise ProtocolAborted(
                f"up to {params.lookups} look-ups, a participant allows {constraints.max_rows} records",
                code="guard-rows",
                hint="ask for fewer look-ups",
            )
        # (3)
        runtime = constraints.max_runtime_s
        if runtime is not None and params.session_s + MARGIN_S > runtime:
            raise ProtocolAborted(
                f"a session of {params.session_s} s, a participant lets a job run for {runtime} s",
                code="guard-session",
                hint=f"ask for at most {MARGIN_S} s less than the job may run",
            )
        # (4)
        asked = max(constraints.min_sources or 1, constraints.min_organisations or 1)
        if asked > 1:
            raise ProtocolAborted(
                f"rows of 1 organisation are looked up in, a participant asks for {asked}",
                code="guard-sources",
                hint="min_sources and min_organisations are for lists and tables of several departments",
            )

    def party(self, role: Role, setup: Setup, prepared: PreparedInput | None, rand: Rand) -> Party:
        """Refuse: a session needs a shelf and a clock, see `serving`.

        Raises:
            TypeError: always.
        """
        del role, setup, prepared, rand
        raise TypeError("a session is served: its parties are made by `serving`")

    # Standing

    def session_s(self, spec: JobSpec, role: Role) -> int | None:
        """Return after how many seconds the clerk's node closes the session."""
        params = Params.of(spec)
        return params.session_s if role == CLERK else None

    def serving(
        self,
        role: Role,
        setup: Setup,
        prepared: PreparedInput | None,
        rand: Rand,
        *,
        shelf: Shelf,
        monotonic: Callable[[], float],
    ) -> Serving:
        """Return the state machine of `role`; the clerk's outputs the session's counts.

        Raises:
            ProtocolAborted: a guard fails, or the list is not as admitted.
            TypeError: the prepared input is not what `builder` returns.
        """
        spec = setup.spec
        params = Params.of(spec)
        self.check_inputs(spec, setup.inputs, setup.constraints)
        lookup = _lookup(params, setup)
        if role == CLERK:
            return Clerk(
                lookup, lambda ids: _keys(ids, spec, params.areas), rand, shelf=shelf, monotonic=monotonic
            )
        if role != OWNER or not isinstance(prepared, LookupList):
            raise TypeError(f"the role {role} needs the list that its builder returns")
        return Owner(
            lookup, prepared, rand, shelf=shelf, monotonic=monotonic, pace=self._pace(lookup, spec, monotonic)
        )

    def _pace(self, lookup: Lookup, spec: JobSpec, monotonic: Callable[[], float]) -> Pace:
        """Return the limit that all sessions of one requester over one dataset share at this node."""
        name, most = (spec.roles[OWNER], lookup.dataset, spec.requester), lookup.per_minute
        if most is None:
            return lambda _count: 0
        return lambda count: self._rates.take(name, count, most, monotonic)


def _lookup(params: Params, setup: Setup) -> Lookup:
    spec, given = setup.spec, setup.spec.inputs[0]
    meaning = {
        "owner": organisation_of(spec.roles[OWNER]),
        "clerk": spec.roles[CLERK],
        "dataset": given.dataset,
        "key": given.columns[KEY],
        "last_seen": given.columns.get(LAST_SEEN, ""),
        "scope": [[given.columns[slot], text] for slot, text in params.scope.items()],
        "fields": [[slot, given.columns[slot]] for slot in params.fields],
        "mode": params.mode,
    }
    return Lookup(
        owner=OWNER,
        clerk=CLERK,
        table=table_name(meaning),
        dataset=given.dataset,
        mode=params.mode,
        fields=params.fields,
        rows=setup.inputs[OWNER].distinct_keys,
        lookups=params.lookups,
        per_minute=setup.constraints.max_per_minute,
        session_s=params.session_s,
        day=spec.day,
    )


def _keys(ids: Sequence[str], spec: JobSpec, areas: AreaTable) -> list[bytes]:
    """Return the typed key of each id.

    Raises:
        InputError: `bad-keys`, how many are none and why; never which.
    """
    import pyarrow as pa

    try:
        column = pa.array(ids, pa.string())
    except (pa.ArrowException, UnicodeEncodeError):  # half a surrogate pair
        raise InputError(
            "an id is no text in UTF-8", code="bad-keys", hint="read the file as UTF-8"
        ) from None
    found = normalise(column, KEY_TYPE, as_of=spec.day, areas=areas)
    if len(found.keys) != len(ids):
        why = ", ".join(f"{code} {count}" for code, count in found.counts().items())
        raise InputError(
            f"{len(ids) - len(found.keys)} of {len(ids)} ids are no valid identity numbers ({why})",
            code="bad-keys",
            hint="correct them; nothing was asked and nothing counts",
        )
    return found.keys.tolist()  # type: ignore[no-any-return]  # numpy types items as Any


_LIST_SIZE: Final = Statement(
    "list-size",
    "how many rows and persons of the scope the owner has, and of which day, as the admission states",
    "数据方在查询范围内的行数、人数和数据时点(准入声明中已载明)",
)
_COUNTED: Final = Statement(
    "counted",
    "when how many persons are looked up, in which batches, and how many at most; not who they are, nor "
    "whether they were found",
    "何时、每批查询多少人及次数上限; 不知道查的是谁, 也不知道是否查到",
)
_TABLE: Final = Statement(
    "table-shape",
    "of the table: how many rows of which size class, how many came, changed and went since the last one, "
    "recognising rows again by meaningless tags as long as the key is the same; whose they are and what they "
    "say, only by a look-up",
    "核查表的行数及每行大小档次, 与上一版相比新增、变化和删除的行数; 密钥不变时可凭无意义标签认出同一行; "
    "但属于谁、内容为何, 只能通过逐次查询得知",
)
_LATER: Final = Statement(
    "later-rows",
    "of persons it looked up, where its node keeps what it computed for that: every later row in tables "
    f"under the same key, or that there is none any more, uncounted; a key {KEY_DAYS} days old is replaced "
    "when the next session begins",
    "若查询方节点保留了查询时算出的数值: 对查询过的人员, 无需再次查询、不计次数, 即可读到同一密钥后续核查表"
    f"中的最新记录, 或得知其已不在表中; 密钥满 {KEY_DAYS} 天后, 下一次会话开始时即更换",
)
_SESSION: Final = Statement(
    "session-counts",
    "how many persons were asked for, found, and refused in the session",
    "本次会话共查询、查到和被拒绝的人数",
)
_TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class: the size of the table, how much of it "
    "has changed, when how many persons are looked up, and how far the session is",
    "谁在何时向谁发送多少帧及其大小档次: 可知核查表的大小和变化量、何时查询多少人以及会话进度",
)
_OPENED: Final = Statement(
    "opened-table",
    "every row of the table, and who was looked up among persons who can be guessed; all can be guessed",
    "核查表的全部内容, 以及在可猜测的人员中查询过谁; 证件号码可被穷举",
)


def _found(params: Params) -> Statement:
    fields = ", ".join(params.fields)
    within_en = "".join(f", {slot} = {text}" for slot, text in params.scope.items())
    within_zh = "".join(f", {slot} 为 {text}" for slot, text in params.scope.items())
    return Statement(
        "found-persons",
        f"for at most {params.lookups} persons of its own choice{within_en}: whether the owner has them, and "
        f"then {fields}",
        f"对自行选择的至多 {params.lookups} 人{within_zh}: 数据方是否有其记录; 如有, 则得到 {fields}",
    )
