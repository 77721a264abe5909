"""Builds a city folder: blocks drawn in parallel, written in order, published in one rename.

OUT/registers/<organisation>/<table>.parquet   what a department's node mounts
OUT/truth/…                                    what is so, and what is wrong with which row; never mounted
OUT/expected/scenario-N….json                  the right answers of scenarios 1 to 9
OUT/manifest.json                              profile, seed, rows and SHA-256 of every file
"""

import hashlib
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from demo.city.crosstabs import COUNTED, Crosstabs, SchoolPlaces, Separation, Villages
from demo.city.expected import Expected, Tally, scenario_1
from demo.city.identity import account_numbers, coded, generator, text_array
from demo.city.joins import COUNTED_JOINS, FlexibleWork, Hardship, JoinTally, Overpaid, Residents
from demo.city.people import STAGES, People, draw_people, stage_of, truth_tables
from demo.city.persons import COUNTED_PERSONS, Deaths, MaritalStatus, PersonTally
from demo.city.plan import Ints, Plan, make_plan
from demo.city.profile import AREA_CODES, SNAPSHOT, profile_named
from demo.city.registers import REGISTERS, Extract, extract
from demo.city.uptake import panel_table, uptake_table
from demo.city.vaccination import COUNTED_VACCINATION, Vaccination, VaccinationTally
from protocols.errors import InputError

MANIFEST_SCHEMA: Final = "minshu-city/1"

MAX_WORKERS: Final = 64

Progress = Callable[[int, int], None]
"""Called with (blocks written, blocks in all)."""


@dataclass(frozen=True, slots=True)
class File:
    """One Parquet file of a city.

    Args:
        rows: rows.
        bytes: size.
        sha256: `sha256:` and the hex digest of the file.
        distinct_keys: people listed, each once, after normalisation; -1 where rows are not about people.
    """

    rows: int
    bytes: int
    sha256: str
    distinct_keys: int = -1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was built, and from what; the same for the same profile and seed.

    Args:
        schema: version of this record.
        profile: name of the size.
        population: living residents.
        seed: seed of every random stream.
        snapshot: day of the extract, ISO 8601.
        area_codes: area codes that ids may carry.
        inflated: names of the rates that this profile inflates.
        files: by path relative to the city folder.
    """

    schema: str
    profile: str
    population: int
    seed: int
    snapshot: str
    area_codes: tuple[str, ...]
    inflated: tuple[str, ...]
    files: Mapping[str, File] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Block:
    """What one worker hands over."""

    tables: dict[str, pa.Table]
    distinct: Mapping[str, int]
    tally: Tally
    crosstabs: Crosstabs
    persons: PersonTally
    joins: JoinTally
    vaccination: VaccinationTally
    pupils: Ints


def generate(
    profile: str, seed: int, out: Path, workers: int = 1, progress: Progress | None = None
) -> Manifest:
    """Build the city `out`, whole or not at all.

    Args:
        profile: ci, demo, bench or city.
        seed: 0 to 2^64 - 1; another seed, other people, the same counts.
        out: folder that does not exist yet, or is empty.
        workers: threads that draw and write; they do not change a byte.
        progress: called after each block.

    Raises:
        InputError: an argument is unusable, or the folder cannot be written; nothing is left behind.
    """
    size = profile_named(profile)
    if not 0 <= seed < 1 << 64:
        raise InputError(f"seed {seed}, expected 0 to 2^64 - 1", code="bad-seed", hint="for example --seed 1")
    if not 1 <= workers <= MAX_WORKERS:
        raise InputError(
            f"{workers} workers, expected 1 to {MAX_WORKERS}",
            code="bad-workers",
            hint="one per core; the files do not depend on it",
        )
    try:
        _refuse_existing(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        try:
            manifest = _build(make_plan(size), seed, aside, workers, progress)
            aside.chmod(0o755)
            _refuse_existing(out)
            aside.rename(out)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        raise InputError(
            f"the city cannot be written to {out}: {error.strerror or type(error).__name__}",
            code="output-not-writable",
            hint="choose a folder you may write to, on a disk with room",
        ) from error
    return manifest


def _refuse_existing(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is no folder", code="output-exists", hint="choose another folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"{out} exists and is not empty",
            code="output-exists",
            hint="choose another folder, or remove this one first",
        )


def load_manifest(out: Path) -> Manifest:
    """Return the manifest of the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    found = _load(out / "manifest.json", MANIFEST_SCHEMA)
    files = {path: File(**entry) for path, entry in found.pop("files").items()}
    found["area_codes"], found["inflated"] = tuple(found["area_codes"]), tuple(found["inflated"])
    return Manifest(**found, files=files)


def load_expected(out: Path) -> Expected:
    """Return the right answer of scenario 1 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Expected.from_json(_load(out / "expected" / "scenario-1.json", Expected.SCHEMA))


def load_deaths(out: Path) -> Deaths:
    """Return the right answers of scenario 2 for the city in `out`.

    Raises:
        InputError: there are none, or they are of another version.
    """
    return Deaths.from_json(_load(out / "expected" / "scenario-2.json", Deaths.SCHEMA))


def load_marital(out: Path) -> MaritalStatus:
    """Return the right answer of scenario 8 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return MaritalStatus(**_load(out / "expected" / "scenario-8.json", MaritalStatus.SCHEMA))


def load_separation(out: Path) -> Separation:
    """Return the right answer of scenario 3 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Separation(**_load(out / "expected" / "scenario-3.json", Separation.SCHEMA))


def load_school_places(out: Path) -> SchoolPlaces:
    """Return the right answer of scenario 4 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return SchoolPlaces(**_load(out / "expected" / "scenario-4.json", SchoolPlaces.SCHEMA))


def load_villages(out: Path) -> Villages:
    """Return the right answer of scenario 9 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Villages(**_load(out / "expected" / "scenario-9.json", Villages.SCHEMA))


def load_overpaid(out: Path) -> Overpaid:
    """Return the overpaid total of scenario 2 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Overpaid.from_json(_load(out / "expected" / f"{Overpaid.FILE}.json", Overpaid.SCHEMA))


def load_residents(out: Path) -> Residents:
    """Return the right answer of scenario 3's joined tables for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Residents.from_json(_load(out / "expected" / f"{Residents.FILE}.json", Residents.SCHEMA))


def load_flexible_work(out: Path) -> FlexibleWork:
    """Return the right answers of scenario 5 for the city in `out`.

    Raises:
        InputError: there are none, or they are of another version.
    """
    return FlexibleWork.from_json(_load(out / "expected" / f"{FlexibleWork.FILE}.json", FlexibleWork.SCHEMA))


def load_hardship(out: Path) -> Hardship:
    """Return the right answer of scenario 7 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Hardship.from_json(_load(out / "expected" / f"{Hardship.FILE}.json", Hardship.SCHEMA))


def load_vaccination(out: Path) -> Vaccination:
    """Return the right answer of scenario 6 for the city in `out`.

    Raises:
        InputError: there is none, or it is of another version.
    """
    return Vaccination.from_json(_load(out / "expected" / f"{Vaccination.FILE}.json", Vaccination.SCHEMA))


def _load(path: Path, schema: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {type(error).__name__}",
            code="no-city",
            hint="build the city with minshu-demo city",
        ) from None
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise InputError(
            f"{path} is not of schema {schema}",
            code="no-city",
            hint="build the city anew with this version of minshu-demo city",
        )
    return found


def _build(plan: Plan, seed: int, out: Path, workers: int, progress: Progress | None) -> Manifest:
    writers: dict[str, _Writer] = {}
    distinct = dict.fromkeys(REGISTERS, 0)
    tally, crosstabs, named, joins = Tally(plan), Crosstabs(plan), PersonTally(plan), JoinTally(plan)
    vaccination = VaccinationTally(plan)
    pupils = np.zeros(len(plan.street_codes) * len(STAGES), dtype=np.int64)

    def write(item: tuple[str, pa.Table]) -> None:
        path, table = item
        writers[path].write(table)

    with ThreadPoolExecutor(workers, thread_name_prefix="city") as pool:
        try:
            for block, done in enumerate(_in_order(pool, workers, plan, seed), start=1):
                for name in REGISTERS:
                    path = f"truth/dirt/{name}.parquet"
                    register = writers.get(f"registers/{name}.parquet")
                    done.tables[path] = _numbered(done.tables[path], register.rows if register else 0)
                for path, table in done.tables.items():
                    if path not in writers:
                        writers[path] = _Writer(out / path, table.schema)
                # Tables go to disk side by side, blocks one after the other.
                list(pool.map(write, done.tables.items()))
                for name, count in done.distinct.items():
                    distinct[name] += count
                tally.add(done.tally)
                crosstabs.add(done.crosstabs)
                named.add(done.persons)
                joins.add(done.joins)
                vaccination.add(done.vaccination)
                pupils += done.pupils
                if progress is not None:
                    progress(block, plan.blocks)
        except BaseException:
            # A writer may be at work in another thread; it is let go only when all have stopped.
            pool.shutdown(cancel_futures=True)
            for writer in writers.values():
                writer.abandon()
            raise
        places = _places(plan, pupils)
        path = "registers/education/places.parquet"
        writers[path] = _Writer(out / path, places.schema)
        writers[path].write(places)
        for writer in writers.values():
            writer.close()
        digests = dict(zip(writers, pool.map(_sha256, [out / path for path in writers]), strict=True))

    files = {
        path: File(
            rows=writer.rows,
            bytes=(out / path).stat().st_size,
            sha256=digests[path],
            distinct_keys=distinct.get(path.removeprefix("registers/").removesuffix(".parquet"), -1),
        )
        for path, writer in sorted(writers.items())
    }
    manifest = Manifest(
        schema=MANIFEST_SCHEMA,
        profile=plan.profile.name,
        population=plan.profile.population,
        seed=seed,
        snapshot=SNAPSHOT.isoformat(),
        area_codes=AREA_CODES,
        inflated=plan.profile.inflated,
        files=files,
    )
    rows = {
        path.removeprefix("registers/").removesuffix(".parquet"): file.rows for path, file in files.items()
    }
    (out / "expected").mkdir()
    _write_json(out / "expected" / "scenario-1.json", scenario_1(plan, seed, tally, rows).to_json())
    for answer in (
        named.deaths(seed),
        crosstabs.separation(seed),
        crosstabs.school_places(seed, places),
        named.marital(seed),
        crosstabs.villages(seed),
    ):
        _write_json(out / "expected" / f"scenario-{answer.scenario}.json", msgspec.to_builtins(answer))
    for joined in (*joins.answers(seed), vaccination.answer(seed)):
        _write_json(out / "expected" / f"{joined.FILE}.json", msgspec.to_builtins(joined))
    _write_json(out / "manifest.json", msgspec.to_builtins(manifest))
    return manifest


def _in_order(pool: ThreadPoolExecutor, workers: int, plan: Plan, seed: int) -> Iterator[_Block]:
    """Yield the blocks in order; at most `workers` are drawn ahead, so memory is bounded by those blocks."""
    ahead: deque[Future[_Block]] = deque()
    upcoming = iter(range(plan.blocks))
    try:
        for block in upcoming:
            ahead.append(pool.submit(_draw, plan, seed, block))
            if len(ahead) >= workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _draw(plan: Plan, seed: int, block: int) -> _Block:
    people = draw_people(plan, seed, block)
    tables: dict[str, pa.Table] = {}
    distinct: dict[str, int] = {}
    counted: dict[str, Extract] = {}
    for name in REGISTERS:
        part = extract(name, people, seed, block)
        tables[f"registers/{name}.parquet"] = part.rows
        tables[f"truth/dirt/{name}.parquet"] = part.log
        distinct[name] = part.distinct
        if name in COUNTED | COUNTED_PERSONS | COUNTED_JOINS | COUNTED_VACCINATION:
            counted[name] = part
    for name, table in truth_tables(people).items():
        tables[f"truth/{name}.parquet"] = table
    tables["truth/vaccination.parquet"] = uptake_table(people)
    panel = generator(seed, "statistics/panel", block)
    tables["registers/statistics/panel.parquet"] = panel_table(people, panel)
    tally, crosstabs, named, joins = Tally(plan), Crosstabs(plan), PersonTally(plan), JoinTally(plan)
    vaccination = VaccinationTally(plan)
    tally.count(people)
    crosstabs.count(people, counted)
    named.count(people, counted)
    joins.count(people, counted)
    vaccination.count(people, counted)
    return _Block(tables, distinct, tally, crosstabs, named, joins, vaccination, _pupils(people))


def _pupils(people: People) -> Ints:
    """Return living residents of school age per street and stage, flattened."""
    who = np.flatnonzero(people.living & (people.school_year > 0))
    cell = people.street[who] * len(STAGES) + stage_of(people.age[who])
    return np.bincount(cell, minlength=len(people.plan.street_codes) * len(STAGES))


def _places(plan: Plan, pupils: Ints) -> pa.Table:
    """Return the school places per street and stage: 92 in 100 of the residents of that age (assumed)."""
    street, stage = np.divmod(np.arange(len(pupils)), len(STAGES))
    return pa.table(
        {
            "school": text_array(account_numbers("S", street * 10 + stage, 9)),
            "street": coded(plan.street_codes, street),
            "stage": coded(STAGES, stage),
            "places": pa.array(pupils * 92 // 100, type=pa.int32()),
        }
    )


_FEW_VALUES: Final = frozenset(
    ("sex", "marital", "status", "meaning", "last_seen_month", "moved_month", "departed_month")
)
"""Columns that are written with a dictionary, as coded ones are; others would only fill it to no use."""


class _Writer:
    """Writes one Parquet file, a row group per block."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._parquet = pq.ParquetWriter(
            path,
            schema,
            compression="snappy",  # larger than zstd by half, and a fifth less time for the whole city
            use_dictionary=[
                column.name
                for column in schema
                if pa.types.is_dictionary(column.type) or column.name in _FEW_VALUES
            ],
            write_statistics=False,
            store_schema=False,
        )

    def write(self, table: pa.Table) -> None:
        """Append `table`."""
        self._parquet.write_table(table)
        self.rows += table.num_rows

    def close(self) -> None:
        """Finish the file."""
        self._parquet.close()

    def abandon(self) -> None:
        """Let go of a file that will be removed, whatever state it is in."""
        with suppress(OSError):
            self._parquet.close()


def _numbered(log: pa.Table, first: int) -> pa.Table:
    """Return `log` with the row numbers of the whole file, of which this part begins at row `first`."""
    for column in ("row", "of_row"):
        at = log.schema.get_field_index(column)
        log = log.set_column(at, column, pc.add(log[column], first))
    return log


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n")
