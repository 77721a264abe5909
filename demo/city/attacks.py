"""Two malicious police lists, to show that a cross-check hands them nothing.

Whoever submits an empty list, or one of the right size that knows nobody, would otherwise receive every
record in two sources or more.
"""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from demo.city.identity import (
    NOBODY,
    account_numbers,
    dates,
    generator,
    names,
    nobody,
    phones,
    resident_ids,
    text_array,
)
from demo.city.people import MONTHS
from demo.city.plan import make_plan
from demo.city.profile import PROFILES
from protocols.errors import InputError

POPULATION_SCHEMA: Final = pa.schema(
    {
        "resident_id": pa.string(),
        "name": pa.string(),
        "phone": pa.string(),
        "kind": pa.string(),
        "sex": pa.int8(),
        "birth_date": pa.date32(),
        "marital": pa.int8(),
        "register_street": pa.string(),
        "register_district": pa.string(),
        "residence_street": pa.string(),
        "residence_district": pa.string(),
        "separated": pa.string(),
        "village": pa.string(),
        "primary_year": pa.string(),
        "authoritative": pa.string(),
        "residence_permit": pa.string(),
        "street": pa.string(),
        "last_seen_month": pa.int32(),
    }
)
"""Columns of registers/police/population.parquet."""

_BLOCK: Final = 100_000


def empty_register(out: Path) -> Path:
    """Write a police list without rows into the folder `out`; return the file, population.parquet.

    Raises:
        InputError: the folder cannot be written.
    """
    return _write(out, 0, 0)


def garbage_register(out: Path, distinct_keys: int, seed: int) -> Path:
    """Write a police list of `distinct_keys` well-formed people who do not exist; return population.parquet.

    Every id is valid and different, and belongs to nobody in any city, whatever its profile and seed.

    Raises:
        InputError: the folder cannot be written, or so many ids are not to be had.
    """
    if not 0 <= distinct_keys <= NOBODY:
        raise InputError(
            f"{distinct_keys} keys, expected 0 to {NOBODY}",
            code="bad-count",
            hint="take the distinct_keys that the police's catalogue publishes",
        )
    return _write(out, distinct_keys, seed)


def _write(out: Path, count: int, seed: int) -> Path:
    streets = pa.array(make_plan(PROFILES["demo"]).street_codes)
    target = out / "population.parquet"
    aside = out / ".population.parquet.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(aside, POPULATION_SCHEMA, compression="zstd", store_schema=False) as writer:
                for block, first in enumerate(range(0, count, _BLOCK)):
                    writer.write_table(_people(first, min(_BLOCK, count - first), seed, block, streets))
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror or type(error).__name__}",
            code="output-not-writable",
            hint="choose a folder you may write to",
        ) from error
    return target


def _people(first: int, count: int, seed: int, block: int, streets: pa.Array) -> pa.Table:
    rng = generator(seed, "attack/garbage", block)
    area, male, day, slot = nobody(first, count, seed)
    street = streets.take(pa.array(rng.integers(0, len(streets), count)))
    district = pc.utf8_slice_codeunits(street, 0, 6)
    serial = np.arange(first, first + count)
    columns = {
        "resident_id": text_array(resident_ids(area, male, day, slot)),
        "name": names(rng, male)[0],
        "phone": text_array(phones(serial)),
        "kind": pa.repeat("register", count),
        "sex": pa.array(np.where(male, 1, 2), type=pa.int8()),
        "birth_date": dates(day),
        "marital": pa.repeat(pa.scalar(10, pa.int8()), count),
        "register_street": street,
        "register_district": district,
        "residence_street": street,
        "residence_district": district,
        "separated": pa.repeat("no", count),
        # Adults outside the urban villages.
        **{column: pa.nulls(count, pa.string()) for column in ("village", "primary_year", "authoritative")},
        "residence_permit": text_array(account_numbers("99JZ", serial, 9)),
        "street": street,
        "last_seen_month": pa.array(MONTHS[rng.integers(0, 12, count)], type=pa.int32()),
    }
    return pa.table(columns, schema=POPULATION_SCHEMA)
