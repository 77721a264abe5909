"""The preflight: how good a dataset is, before anything is asked of it.

One pass over all columns counts what `protocols.quality` defines. The counts stay in this node's database,
with the fingerprint of the table they are of. What others get to see are shares in thousandths: in the
catalogue, in a refusal, and in the record that an admission cites. No value of a row is ever kept.
"""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Self

from node.catalogue import every_area
from node.mapping import known_tables, unmapped_of
from node.sources import Access, Source, check_columns, check_unchanged
from node.sources.database import written_known
from node.state import Dataset, Reader
from policies.decision import Refuse
from policies.index import source_of
from policies.model import Dataset as Opened
from policies.model import Policy, Rule
from policies.quality import Threshold, check_quality, thousandths_words, thresholds_of
from protocols.catalogue import may_be_published
from protocols.codes import Areas, CodeTable, area_code
from protocols.codes.areas import lineage
from protocols.encoding import canonical_json, decode_json, sha256_digest
from protocols.errors import DecodeError, InputError, Refused
from protocols.identifiers import rule_version
from protocols.ids import DatasetName, Digest, Role
from protocols.party import Rand
from protocols.quality import SEED_BYTES, QualityBuilder, QualityCounts, Shares, age_in_days, shares_of
from protocols.wire import Fields, JobSpec, civil_day, parse_utc, utc_text

SCHEMA: Final = "minshu-preflight/1"
SALT_BYTES: Final = 32
MAX_RECORD_BYTES: Final = 16 << 20
MAX_COLUMNS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Quality:
    """What a look at a whole dataset found.

    Attributes:
        dataset: its catalogue name.
        snapshot: when the table was written, `2026-11-22T08:00:00Z`.
        measured: when it was looked at, likewise.
        rule_version: by which rules identifiers were judged.
        types: of its columns, as registered, in their order.
        tables: the code tables that columns were held against.
        counts: what was counted.
        salt: hex; figures are easily guessed, and the record's digest may be seen.
        written: whether anything tells when the table was written; where not, `snapshot` is when it was read.
    """

    dataset: DatasetName
    snapshot: str
    measured: str
    rule_version: str
    types: tuple[tuple[str, str], ...]
    tables: Mapping[str, str]
    counts: QualityCounts
    salt: str
    written: bool = True

    def shares(self, published_keys: int) -> Shares:
        """Return what may be said of it, beside a catalogue that publishes so many keys."""
        return shares_of(self.counts, published_keys)

    def age_days(self, now: datetime) -> int | None:
        """Return how many days have begun since the table was written, None where nothing tells."""
        return age_in_days(parse_utc(self.snapshot), now) if self.written else None

    def record(self) -> bytes:
        """Return the record, canonical JSON. `minshu-preflight/1`."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "dataset": self.dataset,
                "snapshot": self.snapshot,
                **({} if self.written else {"written": False}),
                "measured": self.measured,
                "rule_version": self.rule_version,
                "types": [list(each) for each in self.types],
                "tables": dict(self.tables),
                "counts": self.counts.to_json(),
                "salt": self.salt,
            }
        )

    @property
    def digest(self) -> Digest:
        """The digest of the record."""
        return sha256_digest(self.record())

    @classmethod
    def decode(cls, record: bytes) -> Self:
        """Read a record.

        Raises:
            DecodeError: it is none.
        """
        plain = decode_json(record, limit=MAX_RECORD_BYTES)
        f = Fields(plain, "preflight")
        if f.text("schema") != SCHEMA:
            raise DecodeError(f"unknown schema, expected {SCHEMA}", code="unknown-schema")
        types = f.items("types", maximum=MAX_COLUMNS)
        if not all(isinstance(each, list) and len(each) == 2 for each in types):
            raise DecodeError("preflight.types are no pairs of a name and a type", code="bad-field")
        found = cls(
            dataset=DatasetName(f.text("dataset")),
            snapshot=utc_text(f.time("snapshot")),
            measured=utc_text(f.time("measured")),
            rule_version=f.text("rule_version"),
            types=tuple((str(name), str(kind)) for name, kind in types),
            tables={str(column): str(table) for column, table in f.take("tables", dict).items()},
            counts=QualityCounts.from_json(f.take("counts", dict)),
            salt=f.text("salt"),
            written=f.take("written", bool) if "written" in plain else True,
        )
        f.finish()
        return found


@dataclass(frozen=True, slots=True)
class Preflight:
    """The newest look at a dataset, and of which state of its table it is."""

    fingerprint: str
    quality: Quality

    def holds(self, mark: str) -> bool:
        """Whether it is a look at this state, by the rules for identifiers that are in use now."""
        return self.fingerprint == mark and self.quality.rule_version == rule_version(every_area())


@dataclass(frozen=True, slots=True)
class Demand:
    """What one rule of the policy in force asks of a dataset that a job reads.

    `name` is what the policy calls it; `days` are its columns that the policy says hold days.
    """

    name: str
    dataset: Opened
    rule: Rule
    days: frozenset[str] = frozenset()

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """What it comes to."""
        return thresholds_of(self.dataset, self.rule)

    def refusal(self, quality: Quality, published_keys: int, now: datetime) -> Refuse | None:
        """Return why the dataset is not good enough, None where it is."""
        return check_quality(
            self.name, self.dataset, self.rule, quality.shares(published_keys), quality.age_days(now)
        )


@dataclass(frozen=True, slots=True)
class Look:
    """How good a dataset has to be for an attempt, and what is known of that.

    Attributes:
        demand: what the policy asks, None for nothing.
        stored: the newest look at it, None for none.
        now: the moment as of which it is judged, in whole seconds.
    """

    demand: Demand | None
    stored: Preflight | None
    now: datetime

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """What the policy asks."""
        return () if self.demand is None else self.demand.thresholds

    def at(
        self, source: Source, dataset: Dataset, access: Access, *, rand: Rand, go_on: Callable[[], None]
    ) -> Preflight | None:
        """Return what is known of the table as it is now; it is read only where the policy asks for that.

        Raises:
            TooLow: the dataset is not good enough.
            InputError: as `look`.
        """
        found = self.stored
        if found is not None and not found.holds(source.fingerprint()):
            found = None
        if self.demand is None:
            return found
        if found is None:
            days = self.demand.days
            found = look(source, dataset, access, now=self.now, rand=rand, go_on=go_on, days=days)
        no = self.demand.refusal(found.quality, dataset.published_keys, self.now)
        if no is not None:
            raise TooLow(no, found)
        return found


class TooLow(Refused):
    """A dataset is not good enough for a job. `answer` says it in both languages; `found` is why."""

    def __init__(self, answer: Refuse, found: Preflight) -> None:
        super().__init__(answer.sentence, code=answer.code, hint=answer.hint, rule=answer.rule)
        self.answer = answer
        self.found = found


def look(source: Source, dataset: Dataset, access: Access, **given: Any) -> Preflight:
    """Return what `measure` finds of one state of a table. Takes what that takes.

    Raises:
        InputError: as `measure`, or `changed-while-reading`.
    """
    mark = source.fingerprint()
    found = measure(source, dataset, access, **given)
    check_unchanged(source, mark)
    return Preflight(mark, found)


def measure(
    source: Source,
    dataset: Dataset,
    access: Access,
    *,
    now: datetime,
    rand: Rand,
    go_on: Callable[[], None],
    days: Collection[str] = (),
    tell: Callable[[int], object] = lambda _rows: None,
) -> Quality:
    """Return how good a dataset is, by one pass over its columns.

    Identifiers and days are judged as of the table's own day in China, and by any area code: which areas
    count, a job says. Memory is about ten bytes for each distinct key, and what a batch takes.

    Args:
        source: the dataset, opened.
        dataset: its catalogue entry.
        access: where the department's own code tables lie.
        now: when it is looked at.
        rand: for the salt, and for hashing keys.
        go_on: called between batches; raises when nobody waits any more.
        days: columns of text or whole numbers that hold days.
        tell: told how many rows were read so far.

    Raises:
        InputError: the key column is gone or no text, or as `Source.read`.
    """
    there = source.columns()
    check_columns(there, [dataset.key] if dataset.key else [])
    present = {column.name for column in there}
    columns = [column for column in dataset.columns if column.name in present]
    snapshot = source.snapshot()
    names = [column.name for column in columns]
    tables = _tables(dataset, access)
    builder = QualityBuilder(
        names,
        key=dataset.key,
        as_of=civil_day(parse_utc(snapshot)),
        areas=every_area(),
        seed=rand(SEED_BYTES),
        codes={name: _codes(table) for name, table in tables.items()},
        days=days,
    )
    rows = 0
    for batch in source.read(names):
        go_on()
        builder.add({name: batch.column(at) for at, name in enumerate(batch.schema.names)})
        rows += batch.num_rows
        tell(rows)
    # What a mapping keeps as it is, is no code: it counts among what its table does not have.
    kept = {name: each.table for name, each in dataset.description.mapping.items() if each.default == "keep"}
    found = unmapped_of(source)
    unmapped = {name: count for name, count in found.items() if name not in kept}
    outside = {name: count for name, count in found.items() if name in kept}
    return Quality(
        dataset=dataset.name,
        snapshot=snapshot,
        measured=utc_text(now),
        rule_version=rule_version(every_area()),
        types=tuple((column.name, column.type) for column in columns),
        tables={name: table.id for name, table in tables.items()} | kept,
        counts=builder.finish(unmapped, outside),
        salt=rand(SALT_BYTES).hex(),
        written=written_known(source),
    )


def _tables(dataset: Dataset, access: Access) -> dict[str, CodeTable]:
    """Return the code tables of a dataset's columns, as far as this node has them."""
    named = {c.name: dataset.description.code_table(c.name) for c in dataset.columns}
    wanted = {name: table for name, table in named.items() if table}
    if not wanted:
        return {}
    known = known_tables(access.codes, {table.partition("@")[0] for table in wanted.values()})
    found = {}
    for name, table in wanted.items():
        try:
            found[name] = known[table]
        except InputError:
            continue  # named for people alone: a mapping could not do without it
    return found


def _codes(table: CodeTable) -> Container[str]:
    return _AreaCodes(Areas(table)) if all(area_code(code) == code for code in table.titles) else table


@dataclass(frozen=True, slots=True)
class _AreaCodes:
    """Area codes as people write them: with zeros for what is not said, and of places below the table's."""

    areas: Areas
    known: dict[str, bool] = field(default_factory=dict)

    def __contains__(self, text: object) -> bool:
        """Whether the area, or the smallest one around it that the table could list, is in it."""
        code = area_code(text) if isinstance(text, str) else None
        if code is None:
            return False
        if code not in self.known:
            listed = any(each in self.areas.table for each in lineage(code))
            self.known[code] = listed and self.areas.first_unlisted(code) is None
        return self.known[code]


def demand_of(policy: Policy, spec: JobSpec, role: Role, rule_id: str) -> Demand | None:
    """Return what the rule that allows a job asks of the dataset that a seat brings, None for nothing."""
    brings = spec.input_of(role)
    rule = next((rule for rule in policy.rules if rule.id == rule_id), None)
    if brings is None or rule is None:
        return None
    opened = policy.datasets[brings.dataset]
    if not thresholds_of(opened, rule):
        return None
    return Demand(brings.dataset, opened, rule, days_in(policy, source_of(opened)))


def days_in(policy: Policy | None, name: str) -> frozenset[str]:
    """Return the columns of a dataset that a policy says hold days."""
    opened = () if policy is None else tuple(policy.datasets.values())
    return frozenset(
        column
        for each in opened
        if source_of(each) == name
        for column, said in each.columns.items()
        if said.type == "date"
    )


def stored_preflight(reader: Reader, dataset: Dataset) -> Preflight | None:
    """Return the newest look at a dataset, of whatever state of its table."""
    found = reader.preflight(dataset.name)
    return None if found is None else Preflight(found[0], Quality.decode(found[1]))


def cited(found: Preflight | None, dataset: Dataset, now: datetime, *, counts: bool) -> dict[str, Any]:
    """Return what an admission's record says of a preflight; nothing where there was none.

    Args:
        found: the look at the table as it was read.
        dataset: its catalogue entry.
        now: the moment as of which it was judged.
        counts: whether the job type tells others how large a list is: then how many keys it has is said, too.
    """
    if found is None:
        return {}
    quality, shares = found.quality, found.quality.shares(dataset.published_keys)
    # A column's name may be anything, such as a record that stands where the names should.
    shown = {name: share for name, share in shares.completeness.items() if may_be_published(name)}
    key = quality.counts.key
    said = {
        "as_of": utc_text(now),
        "measured": quality.measured,
        **({} if quality.written else {"written": False}),
        "shares": replace(shares, completeness=shown).to_json(),
        **({"key": key.to_json()} if counts and key is not None else {}),
        "record_sha256": quality.digest,
    }
    return {"preflight": said}


def published(reader: Reader) -> dict[str, dict[str, Any]]:
    """Return what the catalogue says of each dataset that was looked at: shares, as percentages, no count."""
    found = {}
    for dataset in reader.datasets():
        looked = stored_preflight(reader, dataset)
        if looked is not None:
            found[str(dataset.name)] = _published(looked.quality, dataset.published_keys)
    return found


def _published(quality: Quality, published_keys: int) -> dict[str, Any]:
    shares = quality.shares(published_keys)
    of_keys = {"valid_keys": shares.valid_keys, "repeated": shares.repeated, "drift": shares.drift}
    return {
        "snapshot": quality.snapshot,
        "completeness": {name: thousandths_words(share) for name, share in shares.completeness.items()},
        **{name: thousandths_words(share) for name, share in of_keys.items() if share is not None},
    }
