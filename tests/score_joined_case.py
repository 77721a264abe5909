"""Small scores of joined persons for tests: specs, lists, all parties, and the answer in plain Python."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from math import exp
from typing import Any, Final

import joined_cases
from crosscheck_case import CTX, person
from joined_cases import S1, S2, S3, S4, SEATS, Case, Row
from sources_case import spec_of

from protocols.ids import JobId, NodeName, Role
from protocols.jobs.job_type import AGGREGATOR, source
from protocols.jobs.score_joined import RECIPIENT, Params, ScoreJoined
from protocols.joined.lists import JoinedList
from protocols.training.joined.scoring import Part, model_digest, part_name, write_part
from protocols.wire import Constraints, JobSpec, organisation_of

__all__ = ["S1", "S2", "S3", "S4", "Case", "Row"]

SCORES: Final = ScoreJoined()
LOOSE: Final = Constraints(max_rows=200, max_fraction=Fraction(1))
TRAINED: Final = JobId("sha256:" + "7" * 64)


def feature(number: int, slot: str, weights: Sequence[int] | None = None, **coding: Any) -> dict[str, Any]:
    """Return a column of a source."""
    given = {} if weights is None else {"weights": list(weights)}
    return {"source": source(number), "slot": slot, **coding, **given}


AGE: Final = feature(1, "age", [-900, -200, 300, 1700], edges=["20", "40.5", "60"])
VISITS: Final = feature(1, "visits", [-400, 500], edges=["3"])
BAND: Final = feature(2, "band", [1100, 0, -1300, 250], codes=["low", "middle", "high"])
RISK: Final[Mapping[str, Any]] = {
    "join": {S1: "on", S2: "on", S3: "not"},
    "columns": [AGE, BAND, VISITS],
    "model": {"bits": 10, "constant": -300},
    "at_least": "0.5",
    "step": "0.1",
    "records_from": S1,
    "recipient": S3,
}
"""Age and visits of one department and the income band of another; whom the recipient has on no list yet."""


def score_spec(sources: int = 3, **params: Any) -> JobSpec:
    """Return a spec of `RISK`, where `params` say nothing else; params of None are left out."""
    filled = {"areas": "demo-city", **RISK, **params}
    spec = spec_of(SCORES, sources, filled, {})
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR} | SEATS
    if filled["recipient"] == RECIPIENT:
        roles[RECIPIENT] = NodeName("relief.example/a")
    inputs = tuple(replace(given, columns=columns_of(filled, given.role)) for given in spec.inputs)
    recipient = roles.get(Role(filled["recipient"]), NodeName("nobody.example/a"))
    return replace(spec, roles=roles, inputs=inputs, recipients=(organisation_of(recipient),))


def split_spec(sources: int = 3, *, bits: int = 10, reach: int = 8, **params: Any) -> JobSpec:
    """Return a spec of `RISK` whose weights are kept by the departments."""
    columns = [
        {name: value for name, value in each.items() if name != "weights"}
        for each in params.pop("columns", RISK["columns"])
    ]
    model = {"of": TRAINED, "bits": bits, "reach": reach}
    return score_spec(sources, columns=columns, model=model, **params)


def columns_of(params: Mapping[str, Any], role: Role) -> dict[str, str]:
    """Return slot → column of one source."""
    street = {"street": "street", "last_seen": "seen"} if params["records_from"] == role else {}
    return joined_cases.columns_of(params, role, "columns", "filters") | street


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows, perhaps with "street" and "last_seen", as the node of that source would prepare them."""
    return joined_cases.listed(SCORES, spec, role, rows, unit=None)


class MemoryShelf:
    """A shelf in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def names(self) -> list[str]:
        return sorted(self.blobs)

    def get(self, name: str) -> memoryview | None:
        data = self.blobs.get(name)
        return None if data is None else memoryview(data)

    @contextmanager
    def put(self, name: str) -> Iterator[Callable[[bytes], object]]:
        parts: list[bytes] = []
        yield parts.append
        self.blobs[name] = b"".join(parts)

    def drop(self, name: str) -> None:
        self.blobs.pop(name, None)


def shelf_with(
    spec: JobSpec, role: Role, columns: Sequence[Mapping[str, Any]], constant: int = 0
) -> MemoryShelf:
    """Return the shelf of a source whose part of a model has the weights of these columns."""
    params, shelf = Params.of(spec), MemoryShelf()
    weights = {each["slot"]: tuple(each["weights"]) for each in columns}
    features = params.own(role)
    part = Part(tuple(weights[each.slot] for each in features), constant)
    with shelf.put(part_name(TRAINED)) as write:
        write(write_part(part, features, params.scoring.steps.bits, whole_of(spec)))
    return shelf


def whole_of(spec: JobSpec) -> bytes:
    """Return the digest of the model that a job's parts are of."""
    params = Params.of(spec)
    whose = [organisation_of(spec.roles[params.owners[each.owner]]) for each in params.features]
    return model_digest(spec.params["model"]["of"], zip(whose, params.features, strict=True))


def score_case(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]],
    *,
    constraints: Constraints = LOOSE,
    seed: object = 0,
    ctx: bytes = CTX,
    shelves: Mapping[Role, MemoryShelf] | None = None,
) -> Case:
    """Return scores of these rows, one list for each source; with shelves where parts are kept."""
    SCORES.check(spec)
    ready = {source(i): listed(spec, source(i), rows) for i, rows in enumerate(lists, start=1)}
    job_type = SCORES if shelves is None else _Shelved(shelves)
    return joined_cases.case_of(job_type, spec, ready, constraints=constraints, seed=seed, ctx=ctx)


class _Shelved(ScoreJoined):
    """The job type at nodes with these shelves."""

    def __init__(self, shelves: Mapping[Role, MemoryShelf]) -> None:
        self._shelves = shelves

    def party(self, role: Role, setup: Any, prepared: Any, rand: Any) -> Any:
        shelf = self._shelves.get(role, MemoryShelf())
        return self.party_with(role, setup, prepared, rand, shelf=shelf)


def right(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]],
    columns: Sequence[Mapping[str, Any]] = RISK["columns"],
    constant: int = RISK["model"]["constant"],
) -> dict[str, str]:
    """Return for each key that is received the step, by looking at everybody's rows, in plain numbers.

    One row of a person on each list.
    """
    params = spec.params
    people = [{row["who"]: row for row in rows} for rows in lists]
    for kept in params.get("filters") or ():
        place = int(str(kept["source"])[-1]) - 1
        people[place] = {who: r for who, r in people[place].items() if r[kept["slot"]] in kept["values"]}
    for each in columns:
        place = int(str(each["source"])[-1]) - 1
        people[place] = {who: row for who, row in people[place].items() if code(each, row) is not None}
    join = params.get("join") or {source(i + 1): "on" for i in range(len(lists))}
    asked = {
        who
        for who in set().union(*people)
        if all((who in held) == (join[source(i + 1)] == "on") for i, held in enumerate(people))
    }
    found = {}
    for who in asked:
        total = constant
        for each in columns:
            at = code(each, people[int(str(each["source"])[-1]) - 1][who])
            assert at is not None
            total += each["weights"][at]
        score = total / (1 << params["model"]["bits"])
        value = score if params.get("scale") == "score" else 1 / (1 + exp(-score))
        least, step = Fraction(params["at_least"]), Fraction(params["step"])
        count = 0
        while value >= least + count * step:
            count += 1
        if count:
            found[f"RIC:{person(who)}"] = str(float(least + (count - 1) * step))
    return dict(sorted(found.items()))


def code(each: Mapping[str, Any], row: Row) -> int | None:
    """Return the code of a row, by the text of the job."""
    value = row.get(each["slot"])
    missing = each.get("missing", "yes" if "codes" in each else "no") == "yes"
    if "codes" in each:
        known = each["codes"].index(value) if value in each["codes"] else None
        return len(each["codes"]) if known is None and missing else known
    if value is None:
        return len(each["edges"]) + 1 if missing else None
    return bisect_right([Fraction(edge) for edge in each["edges"]], Fraction(str(value)))


def town(count: int = 60) -> list[list[Row]]:
    """Return three lists of `RISK` that overlap, of persons 0 … count - 1."""
    bands = ("low", "middle", "high", "other", None)
    return [
        [
            {
                "who": n,
                "age": (n * 37) % 90 + (0.5 if n % 4 else 0),
                "visits": n * 5 % 7,
                "street": f"99010100{n % 3}",
                "last_seen": f"2025-{1 + n % 12:02d}",
            }
            for n in range(count)
            if n % 7
        ],
        [{"who": n, "band": bands[n * 3 % 5]} for n in range(count) if n % 5],
        [{"who": n} for n in range(count) if n % 11 == 0],
    ]


def told(run: Case) -> dict[str, str]:
    """Play a case whole and return key → step of the records."""
    columns = run.released().table.columns
    return dict(zip(columns["key"].tolist(), columns["score"].tolist(), strict=True))
