"""A model as it is released: arrays in safetensors, their card, and the curves of the run.

A release of class C has three files. The card names the digest of the arrays, and arrays without their card
are no model. Arrays are what scores are made of and nothing else: what an optimiser remembers, or a tree
that was still growing, stays with who led the run. Nothing is ever unpickled. SPEC.md, section 5.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import isfinite
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import structs

from protocols.dp.cost import Cost
from protocols.encoding import canonical_json, decode_json, parse_json, sha256_digest
from protocols.errors import DecodeError, InputError
from protocols.ids import Role
from protocols.jobs.job_type import Content, Table
from protocols.training.boost import Boost
from protocols.training.card import (
    SCHEMA,
    Card,
    Limits,
    Metrics,
    Plan,
    asked,
    datasets,
    measure,
    privacy,
    training,
)
from protocols.training.card_text import describe, limits
from protocols.training.logistic import Linear, Logistic
from protocols.training.mlp import Mlp, Perceptron
from protocols.training.recipe import Arrays, expect, sigmoid
from protocols.training.schema import Floats, Rows, Schema
from protocols.wire import InputSummary, JobSpec

__all__ = [
    "Card",
    "Metrics",
    "Model",
    "Plan",
    "describe",
    "measure",
    "model_content",
    "pack",
    "read_model",
    "unpack",
    "write_model",
]

RELEASE: Final = "model"
"""Name of the release."""

ARRAYS: Final = "model.safetensors"
CARD: Final = "model-card.json"
CURVES: Final = "curves.json"
FILES: Final = (ARRAYS, CARD, CURVES)

MAX_ARRAYS_BYTES: Final = 64 << 20
MAX_CURVES: Final = 32
MAX_POINTS: Final = 10_000

_METADATA: Final = "__metadata__"
_CURVE: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_CURVES_SCHEMA: Final = "minshu-curves/1"
_MAX_HEADER_BYTES: Final = 1 << 20
_LARGEST: Final = 1 << 40
"""Above any weight or leaf that a recipe makes, in its units; 2^22 of them add up without a wrap."""

_DTYPES: Final = frozenset(
    {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "F32", "F64"}
)


def model_content(
    spec: JobSpec,
    inputs: Mapping[Role, InputSummary],
    plan: Plan,
    *,
    model: bytes,
    rounds: Mapping[str, int],
    spent: Cost,
    metrics: Metrics | None,
    curves: Mapping[str, Sequence[float]],
    versions: Mapping[str, str],
) -> Content:
    """Return the content of the release `model`: what who led a run hands over at its end.

    Args:
        spec: the job.
        inputs: as all admissions state them (`Setup.inputs`).
        plan: numbers of the run.
        model: safetensors of the recipe's `arrays(state)`; of a built-in recipe only what scores are made of
            is kept. For `train-joined/1`: `pack({"weights": …})`, int64, whole numbers of 2^-20, in the order
            of `Schema`: the coded features in the job's order, then the constant.
        rounds: held, by turn, over all attempts: those whose set of members was told to a source.
        spent: what they cost, as `InRounds.cost_of` says; `plan.cost` for a job that is not in rounds.
        metrics: see `protocols.training.card.measure`; None where nothing was measured.
        curves: name → one number a round or evaluation, noisy or of a public test set. Left out is what is
            not finite, what is called by no name of letters and digits, and what is more than `MAX_CURVES`
            or `MAX_POINTS`: a recipe of another package may hand over anything.
        versions: distribution → version of what computed.

    Raises:
        DecodeError: `bad-model`: arrays that are not the recipe's; `bad-card`: a job of another type, or
            versions that are no texts.
    """
    wanted = asked(spec)
    # A card without its digest first: its features say which shapes are right.
    card = Card(
        schema=SCHEMA,
        model_sha256=sha256_digest(b""),
        job=spec.job_id,
        job_type=spec.job_type,
        purpose=spec.purpose,
        legal_basis=spec.legal_basis,
        expected_use=spec.expected_use,
        recipe=wanted.recipe,
        settings=wanted.settings,
        features=wanted.features,
        label=wanted.label,
        group=wanted.group,
        datasets=datasets(spec, inputs),
        training=training(plan, rounds),
        privacy=privacy(spec, plan.cost, spent),
        metrics=metrics,
        versions=dict(versions),
        limits=Limits((), ()),
    )
    arrays = _kept(card, unpack(model))
    files = write_model(arrays, structs.replace(card, limits=limits(card)), curves)
    # What a worker says of itself goes into it: nothing is released that nobody could read.
    card = read_model(files).card
    return Content(
        RELEASE,
        Table({"file": _objects([*files]), "data": _objects([*files.values()])}),
        facts_of(card, files),
    )


def facts_of(card: Card, files: Mapping[str, bytes]) -> dict[str, int | str]:
    """Return what is stated beside the files of a model: few figures, for who lists releases."""
    facts: dict[str, int | str] = {
        "recipe": card.recipe_name,
        "rounds": card.training.rounds.get("train", 0),
        "sources": card.training.sources,
        "model_sha256": sha256_digest(files[ARRAYS]),
        "card_sha256": sha256_digest(files[CARD]),
    }
    if card.privacy.notion == "none":
        facts["noise"] = "none"
    else:
        facts |= {"epsilon": card.privacy.epsilon, "delta": card.privacy.delta}
    if card.metrics and card.metrics.auc is not None:
        facts |= {"auc": f"{card.metrics.auc:.4f}", "measured_on": card.metrics.on}
    return facts


def _objects(values: Sequence[object]) -> npt.NDArray[np.object_]:
    found = np.empty(len(values), dtype=np.object_)
    found[:] = values
    return found


# -- arrays as bytes -----------------------------------------------------------------------------------------


def pack(arrays: Arrays) -> bytes:
    """Return arrays as safetensors; the metadata names the schema and nothing else."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(each) for name, each in arrays.items()}, {"schema": SCHEMA})


def unpack(data: bytes) -> Arrays:
    """Return the arrays of a safetensors file.

    Raises:
        DecodeError: `bad-model`: no such file, other metadata than `pack` writes, or a number that is none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if len(data) > MAX_ARRAYS_BYTES:
        raise _bad(f"{len(data)} bytes, at most {MAX_ARRAYS_BYTES} accepted")
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise _bad("its header is cut, or too long")
    try:
        header = parse_json(data[8 : 8 + size], limit=_MAX_HEADER_BYTES)
        found = {name: each.get("dtype") for name, each in header.items() if name != _METADATA}
    except (DecodeError, AttributeError):
        raise _bad("its header is none of safetensors") from None
    # Checked before the library makes arrays: it knows types that numpy does not.
    if header.get(_METADATA) != {"schema": SCHEMA} or not _DTYPES.issuperset(map(str, found.values())):
        raise _bad(f"its schema is not {SCHEMA}, or an array is of an unknown type")
    try:
        arrays: Arrays = load(data)
    except (SafetensorError, ValueError) as error:
        raise _bad(f"it is not safetensors ({type(error).__name__})") from None
    if not all(np.isfinite(each).all() for each in arrays.values()):
        raise _bad("a number in it is none")
    # Another byte would count as true here, and as something else elsewhere.
    if any(each.dtype == np.bool_ and (each.view(np.uint8) > 1).any() for each in arrays.values()):
        raise _bad("a truth value in it is neither 0 nor 1")
    return arrays


# -- files ---------------------------------------------------------------------------------------------------


def write_model(arrays: Arrays, card: Card, curves: Mapping[str, Sequence[float]]) -> dict[str, bytes]:
    """Return the three files; the card is given the digest of the arrays."""
    data = pack(arrays)
    named = [name for name in curves if _CURVE.fullmatch(name)][:MAX_CURVES]
    bare = {name: [float(each) for each in curves[name] if isfinite(each)][:MAX_POINTS] for name in named}
    return {
        ARRAYS: data,
        CARD: structs.replace(card, model_sha256=sha256_digest(data)).encode(),
        CURVES: canonical_json({"schema": _CURVES_SCHEMA, "curves": bare}),
    }


def read_model(files: Mapping[str, bytes]) -> "Model":
    """Return the model of a release.

    (1) All three files are there, and no other. (2) The card is one, with every caveat. (3) It is the card of
    these arrays. (4) They are a state of its recipe, where that is built in. (5) The curves are some.

    Args:
        files: name → bytes.

    Raises:
        DecodeError: `no-card`, `bad-model`, `bad-card`, `unknown-schema`, `wrong-card`.
    """
    # (1)
    if CARD not in files:
        raise DecodeError(
            "the model has no card",
            code="no-card",
            hint="a model counts only with its card: fetch both again",
        )
    if set(files) != set(FILES):
        raise _bad(f"it has {len(files)} files, {', '.join(FILES)} expected")
    # (2)
    card = Card.decode(files[CARD])
    if card.limits != limits(card):
        raise DecodeError(
            "what the card says to know before use is not what such a model has to say",
            code="bad-card",
            hint="tell the node that made the model; do not use it",
        )
    # (3)
    if card.model_sha256 != sha256_digest(files[ARRAYS]):
        raise DecodeError(
            "the card is of another model: the arrays are not those it names",
            code="wrong-card",
            hint="fetch the release again: minshu fetch JOB",
        )
    # (4)
    arrays = unpack(files[ARRAYS])
    if _kept(card, arrays).keys() != arrays.keys():
        raise _bad("it has arrays that its recipe does not need for scores")
    # (5)
    return Model(card, arrays, _curves(files[CURVES]))


def files_of(columns: Mapping[str, Sequence[Any]]) -> dict[str, bytes]:
    """Return the files in the table of a release.

    Raises:
        DecodeError: `bad-model`: another table, or a file twice.
    """
    names, data = columns.get("file", ()), columns.get("data", ())
    if columns.keys() != {"file", "data"} or not all(isinstance(each, bytes) for each in data):
        raise _bad("the release is no table of files")
    files = dict(zip(names, data, strict=True))
    if len(files) != len(names):
        raise _bad("a file is in the release twice")
    return files


def _curves(data: bytes) -> dict[str, tuple[float, ...]]:
    plain = decode_json(data, limit=4 << 20)
    curves = plain.get("curves") if isinstance(plain, dict) else None
    if plain != {"schema": _CURVES_SCHEMA, "curves": curves} or not isinstance(curves, dict):
        raise _bad(f"the curves are not of the schema {_CURVES_SCHEMA}")
    try:
        found = msgspec.convert(curves, dict[str, tuple[float, ...]])
    except msgspec.ValidationError:
        raise _bad("a curve has a point that is no number") from None
    if len(found) > MAX_CURVES or any(len(curve) > MAX_POINTS for curve in found.values()):
        raise _bad(f"more than {MAX_CURVES} curves, or more than {MAX_POINTS} points in one")
    if not all(map(_CURVE.fullmatch, found)):
        raise _bad("a curve has a name that is none")
    return found


# -- what scores are made of ---------------------------------------------------------------------------------


def _kept(card: Card, arrays: Arrays) -> Arrays:
    """Return what of a recipe's state scores are made of; all of it where the recipe is another's.

    Raises:
        DecodeError: `bad-model`.
    """
    try:
        match card.recipe:
            case "logistic" | "mlp":
                kept = {"weights": arrays["weights"]}
            case "boost":
                # A tree that was still growing has splits and no leaves.
                growing = int(arrays["round"][1] > 0) if "round" in arrays else 0
                done = len(arrays["leaves"]) - growing
                kept = {name: arrays[name][:done] for name in ("features", "right", "leaves")}
            case str() as name:
                raise _bad(f"its recipe {name} is not known")
            case _:
                return dict(arrays)
    except (KeyError, IndexError, TypeError):
        raise _bad("arrays of its recipe are missing") from None
    scoring(card, kept)
    return kept


def scoring(card: Card, arrays: Arrays) -> Callable[[Rows], Floats]:
    """Return what gives log-odds of label 1 for rows.

    Args:
        card: of the model.
        arrays: what is in its file.

    Raises:
        InputError: `foreign-recipe`.
        DecodeError: `bad-model`: arrays that are none of its recipe.
    """
    schema, rounds = card.table(), card.training.rounds.get("train", 0)
    try:
        if card.recipe == "logistic":
            expect(arrays, {"weights": ((schema.size,), "int64")})
            _small(arrays["weights"])
            linear = Linear(rounds, arrays["weights"], np.zeros(schema.size))
            return partial(Logistic(schema).scores, linear)
        if card.recipe == "mlp":
            weights = arrays["weights"]
            _small(weights)
            # d = h·(p + 1) + h + 1, with p = size - 1.
            mlp = Mlp(schema, (weights.size - 1) // (schema.size + 1))
            expect(arrays, {"weights": ((mlp.size,), "float64")})
            nothing = np.zeros(mlp.size)
            return partial(mlp.scores, Perceptron(rounds, weights, nothing, nothing))
        if card.recipe == "boost":
            return _trees(schema, rounds, arrays)
    except (KeyError, InputError):
        raise _bad("its arrays are not those of its recipe") from None
    except DecodeError as error:
        raise error if error.code == "bad-model" else _bad(error.message) from None
    raise InputError(
        f"scores of the recipe {card.recipe_name} are its own package's to make",
        code="foreign-recipe",
        hint="its arrays are in model.safetensors; its package says what they are",
    )


def _trees(schema: Schema, rounds: int, arrays: Arrays) -> Callable[[Rows], Floats]:
    trees, leaves = (*arrays["leaves"].shape, 0, 0)[:2]
    boost = Boost(schema, depth=leaves.bit_length() - 1)
    widest = max(schema.widths)
    expect(
        arrays,
        {
            "features": ((trees, leaves - 1), "int16"),
            "right": ((trees, leaves - 1, widest), "bool"),
            "leaves": ((trees, 1 << boost.depth), "int64"),
        },
    )
    _small(arrays["leaves"])
    features = arrays["features"]
    if features.size and (features.min() < -1 or features.max() >= len(schema.coded)):
        raise _bad("a tree looks at a feature that the card does not have")
    state = replace(
        boost.start(), round=rounds, features=features, right=arrays["right"], leaves=arrays["leaves"]
    )
    return partial(boost.scores, state)


def _small(values: npt.NDArray[Any]) -> None:
    if values.size and (values.min() < -_LARGEST or values.max() > _LARGEST):
        raise _bad("a number in it is larger than any its recipe makes")


@dataclass(frozen=True)
class Model:
    """A model with its card.

    Attributes:
        card: what it is.
        arrays: what scores are made of; of a recipe from elsewhere, all that it handed over.
        curves: name → one number a round or evaluation.
    """

    card: Card
    arrays: Arrays = field(repr=False)
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def schema(self) -> Schema:
        """What it sees of a row."""
        return self.card.table()

    def check_columns(self, names: Collection[str]) -> None:
        """Check that columns are the model's features, in any order.

        Raises:
            InputError: `missing-column`, `unknown-column`.
        """
        wanted = [each.name for each in (*self.schema.coded, *self.schema.amounts)]
        for code, what, wrong in (
            ("missing-column", "are missing", [name for name in wanted if name not in names]),
            (
                "unknown-column",
                "are no features of the model",
                [name for name in names if name not in wanted],
            ),
        ):
            if wrong:
                raise InputError(
                    f"columns {', '.join(wrong)} {what}", code=code, hint=f"expected: {', '.join(wanted)}"
                )

    def rows(self, table: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """Return rows as the model sees them.

        Args:
            table: n values for each feature's name, texts for codes and numbers for the others; nothing else.

        Raises:
            InputError: `missing-column`, `unknown-column`, `no-rows`, `not-a-number`.
        """
        self.check_columns(table)
        count = len(next(iter(table.values())))
        if not count or any(len(each) != count for each in table.values()):
            raise InputError("there are no rows, or columns differ in length", code="no-rows")
        coded, amounts = (
            np.stack([each.encode(table[each.name]) for each in some], axis=1)
            if some
            else np.zeros((count, 0), np.uint16)
            for some in (self.schema.coded, self.schema.amounts)
        )
        return Rows(coded, amounts, np.zeros(count, np.uint8))

    def log_odds(self, rows: Rows) -> Floats:
        """Return the log-odds of label 1 for each row.

        Raises:
            InputError: `foreign-recipe`.
        """
        return scoring(self.card, self.arrays)(rows)

    def scores(self, table: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """Return the chance of label 1 for each row, 0 to 1. Scores of individuals are class B.

        Args:
            table: as for `rows`.

        Raises:
            InputError: as `rows`, and `foreign-recipe`.
        """
        return sigmoid(self.log_odds(self.rows(table)))

    def to_onnx(self) -> bytes:
        """Return the model in ONNX, with its card; see `protocols.training.exported`.

        Raises:
            InputError: `no-onnx`, `not-exportable`, `foreign-recipe`.
        """
        from protocols.training.exported import to_onnx

        return to_onnx(self.card, self.arrays)

    def describe(self, lang: str = "zh") -> list[str]:
        """Return the card for people, line by line."""
        return describe(self.card, lang)


def _bad(why: str) -> DecodeError:
    return DecodeError(
        f"the model cannot be used: {why}", code="bad-model", hint="fetch the release again: minshu fetch JOB"
    )
