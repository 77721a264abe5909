"""Arrays of a Flower message, taken strictly: of a few types, as long as they say, and nothing else.

Flower's own `Array.numpy()` hands the bytes to `numpy.load`, which believes the header inside them: it may
allot what the header asks for, and opens a zip archive where it finds one. Here the header has to be the one
that the type and shape beside it have, to the byte.
"""

from collections.abc import Mapping
from io import BytesIO
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from protocols.errors import DecodeError
from protocols.training.recipe import Arrays
from protocols.training.schema import Floats, Ints

MAX_ARRAYS: Final = 256
MAX_AXES: Final = 4

TYPES: Final = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "float32", "float64")
)

_NUMPY: Final = "numpy.ndarray"  # Flower's name of its one serialisation


def record_of(arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayRecord:
    """Return the record of these arrays, in order."""
    return ArrayRecord({name: Array(np.asarray(values, order="C")) for name, values in arrays.items()})


def take(record: ArrayRecord) -> Arrays:
    """Return the arrays of a record, read only.

    Raises:
        DecodeError: `bad-arrays`: too many, or one whose bytes are not what its type and shape say.
    """
    if len(record) > MAX_ARRAYS:
        raise DecodeError(f"{len(record)} arrays, at most {MAX_ARRAYS} accepted", code="bad-arrays")
    return {name: _values(name, array) for name, array in record.items()}


def words(record: ArrayRecord, size: int) -> Ints:
    """Return the vector of a record that holds nothing else.

    Raises:
        DecodeError: `bad-arrays`: not one array of `size` int64.
    """
    arrays = list(take(record).values())
    if len(arrays) != 1 or arrays[0].dtype != np.int64 or arrays[0].shape != (size,):
        raise DecodeError(f"a record is not one vector of {size} int64", code="bad-arrays")
    return arrays[0]


def total(record: ArrayRecord) -> Floats:
    """Return the secure sum that a reply from `TOTAL` holds."""
    (values,) = take(record).values()
    return values.astype(np.float64)


def _values(name: str, array: Array) -> npt.NDArray[Any]:
    shape = tuple(array.shape)
    if (
        array.stype != _NUMPY
        or array.dtype not in TYPES
        or len(shape) > MAX_AXES
        or not all(isinstance(length, int) and length >= 0 for length in shape)
    ):
        raise DecodeError(f"array {name} has a type or shape that is not taken", code="bad-arrays")
    kind = np.dtype(array.dtype).newbyteorder("<")
    head = _head(kind, shape)
    if len(array.data) != len(head) + prod(shape) * kind.itemsize or not array.data.startswith(head):
        raise DecodeError(f"array {name} is not what its type and shape say", code="bad-arrays")
    raw = np.frombuffer(array.data, np.uint8, offset=len(head))
    if kind == np.bool_ and (raw > 1).any():
        raise DecodeError(f"array {name} has a truth value that is none", code="bad-arrays")
    return raw.view(kind).reshape(shape)


def _head(kind: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what numpy writes before the numbers of such an array."""
    head = BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    )
    return head.getvalue()
