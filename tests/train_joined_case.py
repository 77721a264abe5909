"""Small joined training for tests: specs of every form, lists, and all parties with seeded randomness."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import joined_cases
import numpy as np
import pyarrow as pa
from crosscheck_case import CTX, ZERO, person, seeded
from joined_cases import PERSON, S1, S2, S3, SEATS, Case, Row, columns_of
from sources_case import spec_of

from protocols.ids import Role
from protocols.jobs.job_type import AGGREGATOR, UNIT, Setup, source
from protocols.jobs.train_joined import TrainJoined
from protocols.joined.lists import JoinedList
from protocols.party import Party
from protocols.training.joined.talk import Need, Part, Say
from protocols.wire import Constraints, InputSummary, JobSpec

__all__ = ["PERSON", "S1", "S2", "S3", "SEATS", "Case", "Row"]

TRAIN: Final = TrainJoined()
LIMIT: Final = {"source": "source-1", "slot": "limit", "edges": ["2", "4", "6"]}
SEX: Final = {"source": "source-1", "slot": "sex", "codes": ["1", "2"]}
STATUS: Final = {"source": "source-2", "slot": "status", "codes": ["on-time", "late"]}
BILL: Final = {"source": "source-2", "slot": "bill", "edges": ["-1", "1.5"], "missing": "yes"}
LABEL: Final = {"source": "source-1", "slot": "default", "positive": ["1"]}
DEBT: Final = {"source": "source-3", "slot": "debt", "edges": ["0"]}
EXACT: Final[Mapping[str, Any]] = {"noise": "none"}
NOISY: Final[Mapping[str, Any]] = {"rho": "0.5", "evaluate": {"rho": "0.1", "bins": 8}}

_TEXTS: Final = frozenset({"sex", "status", "default"})


class Ledge:
    """A shelf in memory."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def names(self) -> Sequence[str]:
        return sorted(self.blobs)

    def get(self, name: str) -> memoryview | None:
        return memoryview(self.blobs[name]) if name in self.blobs else None

    @contextmanager
    def put(self, name: str) -> Any:
        parts: list[bytes] = []
        yield parts.append
        self.blobs[name] = b"".join(parts)

    def drop(self, name: str) -> None:
        self.blobs.pop(name, None)


def train_spec(sources: int = 2, **params: Any) -> JobSpec:
    """Return a spec; each source brings the slots that are its own, and params of None are left out."""
    filled: dict[str, Any] = {
        "columns": [LIMIT, SEX, STATUS, BILL] + [DEBT] * (sources - 2),
        "label": LABEL,
        "rounds": 5,
        "areas": "demo-city",
        **({} if {"rho", "epsilon", "noise"} & params.keys() else EXACT),
        **params,
    }
    spec = spec_of(TRAIN, sources, filled, {})
    whole = (
        {**spec.params, "of": [spec.params["label"]]} if isinstance(spec.params.get("label"), dict) else {}
    )
    inputs = tuple(
        replace(given, columns=columns_of(whole or spec.params, given.role, "columns", "of", "filters"))
        for given in spec.inputs
    )
    roles = {role: node for role, node in spec.roles.items() if role != AGGREGATOR}
    return replace(spec, roles={**roles, **SEATS}, inputs=inputs)


def listed(spec: JobSpec, role: Role, rows: Sequence[Row]) -> JoinedList:
    """Return rows as the node of that source would prepare them."""
    builder = TRAIN.builder(spec, role, PERSON)
    given = spec.input_of(role)
    assert given is not None
    if rows:
        keys = pa.array([person(row["who"]) for row in rows], pa.string())
        columns = {
            slot: pa.array([row.get(slot) for row in rows], pa.string() if slot in _TEXTS else pa.float64())
            for slot in given.columns
            if slot != "key"
        }
        builder.add({"key": keys, UNIT: keys, **columns})
    found = builder.finish()
    assert isinstance(found, JoinedList)
    return found


def train_case(
    spec: JobSpec,
    lists: Sequence[Sequence[Row]] | Mapping[Role, JoinedList],
    *,
    constraints: Constraints = Constraints(min_group_size=3),  # noqa: B008  # frozen
    seed: object = 0,
    ctx: bytes = CTX,
    shelves: Mapping[Role, Ledge] | None = None,
) -> Case:
    """Return a job about these rows, one list for each source."""
    TRAIN.check(spec)
    ready = (
        dict(lists)
        if isinstance(lists, Mapping)
        else {source(i): listed(spec, source(i), rows) for i, rows in enumerate(lists, start=1)}
    )
    if shelves is None:
        return joined_cases.case_of(TRAIN, spec, ready, constraints=constraints, seed=seed, ctx=ctx)
    summaries = {
        role: InputSummary(
            max(each.rows, each.distinct_keys),
            each.distinct_keys,
            each.distinct_keys,
            each.commitment(bytes(32)),
            "2026-01-01",
            ZERO,
            each.rule_version,
        )
        for role, each in ready.items()
    }
    setup = Setup(spec, 1, ctx, constraints, summaries)
    parties: dict[Role, Party] = {
        role: TRAIN.party_with(
            role, setup, ready.get(role), seeded(f"{seed}/{role}"), shelf=shelves.get(role, Ledge())
        )
        for role in spec.roles
    }
    return Case(spec, setup, ready, parties, TRAIN.releases(spec)[0].made_by)


def people(n: int, seed: int = 1) -> list[dict[str, Any]]:
    """Return n persons with all columns, whose label depends on them."""
    rng = np.random.default_rng(seed)
    found = []
    for who in range(n):
        limit, bill, sex = float(rng.integers(0, 9)), float(rng.normal(0, 2)), int(rng.integers(1, 3))
        status = ["on-time", "late", "other"][int(rng.integers(0, 3))]
        odds = 0.4 * (4 - limit) + 1.2 * (status == "late") + 0.3 * bill
        found.append(
            {
                "who": who,
                "limit": limit,
                "sex": str(sex),
                "status": status,
                "bill": bill if rng.random() < 0.9 else None,
                "debt": float(rng.normal()),
                "default": str(int(rng.random() < 1 / (1 + np.exp(-odds)))),
            }
        )
    return found


def as_lists(
    persons: Sequence[Mapping[str, Any]], sources: int = 2, *, extra: int = 12
) -> list[list[dict[str, Any]]]:
    """Return lists of persons who are on all of them, and of some who are on one alone."""
    slots = (("limit", "sex", "default"), ("status", "bill"), ("debt",))
    others = people(extra * sources, seed=99)
    found = []
    for place in range(sources):
        own = [{"who": each["who"], **{slot: each[slot] for slot in slots[place]}} for each in persons]
        more = others[place * extra : (place + 1) * extra]
        own += [{"who": 5000 + each["who"], **{slot: each[slot] for slot in slots[place]}} for each in more]
        found.append(own if place % 2 == 0 else own[::-1])
    return found


def watched(case: Case, role: Role, name: str) -> list[Any]:
    """Return a list that gets everything a method of a party's is called with and returns."""
    party, calls = case.parties[role], []
    method: Callable[..., Any] = getattr(party, name)

    def kept(*args: Any) -> Any:
        found = method(*args)
        calls.append((args, found))
        return found

    setattr(party, name, kept)
    return calls


def played(
    parts: Sequence[Part[Any]], batches: Sequence[bytes] = (), said: list[list[bytes]] | None = None
) -> list[Any]:
    """Play both sides of what matcher and helper say; return their results.

    Args:
        parts: of the matcher and of the helper.
        batches: the dealer's, by number.
        said: gets what each of the two said, in order, also where it ends with an error.
    """
    queues = [bytearray(), bytearray()]
    kept: list[list[bytes]] = [[], []] if said is None else said
    kept[:] = [[], []]
    results: list[Any] = [None, None]
    wants: list[Say | Need | None] = [None, None]

    def resume(side: int, value: bytes | None) -> None:
        try:
            wants[side] = next(parts[side]) if value is None else parts[side].send(value)
        except StopIteration as end:
            wants[side], results[side] = None, end.value
            return
        found = wants[side]
        if isinstance(found, Say) and found.body:
            kept[side].append(found.body)
            queues[1 - side] += found.body

    resume(0, None)
    resume(1, None)
    while wants != [None, None]:
        moved = False
        for side in (0, 1):
            found = wants[side]
            if isinstance(found, Need):
                resume(side, batches[found.number])
                moved = True
            elif found is not None and len(queues[side]) >= found.due:
                value = bytes(queues[side][: found.due])
                del queues[side][: found.due]
                resume(side, value)
                moved = True
        assert moved, "both wait"
    assert not any(queues)
    return results
