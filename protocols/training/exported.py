"""A model in ONNX, for programs that know nothing of this one.

Inputs are columns after coding, `codes` int64[n, p] in the card's order of coded features (a code's place in
its list, a bin's number; the last place is that of unlisted or missing values), and `amounts` float64[n, q]
in the columns' own units. The output is `probability` float64[n]. Everything is in float64, so that it is
what `Model.scores` gives. The card goes with it, in the metadata.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from protocols.errors import InputError
from protocols.training.card import Card
from protocols.training.logistic import WEIGHT_BITS
from protocols.training.recipe import Arrays
from protocols.training.schema import AMOUNT_BITS, Floats

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

OPSET: Final = 18
_IR: Final = 8
_CARD: Final = "minshu.card"


def to_onnx(card: Card, arrays: Arrays) -> bytes:
    """Return a linear model or perceptron in ONNX, checked by ONNX itself.

    Args:
        card: of the model.
        arrays: what is in its file, as `protocols.training.model.read_model` has checked it.

    Raises:
        InputError: `not-exportable`: of another recipe; `no-onnx`: onnx is not installed.
    """
    if card.recipe not in ("logistic", "mlp"):
        raise InputError(
            f"models of the recipe {card.recipe_name} are not written as ONNX, only logistic and mlp",
            code="not-exportable",
            hint="score rows with minshu model score, or Model.scores",
        )
    try:
        from onnx import TensorProto, checker, helper
    except ImportError:
        raise InputError("onnx is not installed", code="no-onnx", hint='pip install "minshu[onnx]"') from None
    graph = _Graph(card, arrays)
    made = helper.make_graph(
        graph.nodes,
        "minshu",
        [
            helper.make_tensor_value_info(name, kind, ["rows", width])
            for name, kind, width in (
                ("codes", TensorProto.INT64, len(graph.schema.coded)),
                ("amounts", TensorProto.DOUBLE, len(graph.schema.amounts)),
            )
            if width
        ],
        [helper.make_tensor_value_info("probability", TensorProto.DOUBLE, ["rows"])],
        graph.constants,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR, producer_name="minshu"
    )
    helper.set_model_props(model, {_CARD: card.encode().decode()})
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


class _Graph:
    """Nodes and constants, put together from inputs to output."""

    def __init__(self, card: Card, arrays: Arrays) -> None:
        self.schema = card.table()
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        weights, codes = arrays["weights"], int(self.schema.offsets[-1])
        if card.recipe == "logistic":
            exact = weights / (1 << WEIGHT_BITS)
            margins = self._layer(exact[:codes, None], exact[codes:-1, None], exact[-1:])
        else:
            inputs = self.schema.size - 1
            units = (weights.size - 1) // (inputs + 2)
            hidden, constants, output, constant = np.split(weights, np.cumsum([units * inputs, units, units]))
            table = hidden.reshape(units, inputs).T
            active = self._add("Tanh", self._layer(table[:codes], table[codes:], constants))
            product = self._add("MatMul", active, self._constant("output", output[:, None]))
            margins = self._add("Add", product, self._constant("output_constant", constant))
        chance = self._add("Sigmoid", margins)
        self._add("Squeeze", chance, self._constant("columns", np.array([1])), out="probability")

    def _layer(self, of_codes: Floats, of_amounts: Floats, constants: Floats) -> str:
        """Add up what codes and amounts weigh, and the constants: rows × units.

        A row has few codes, so their weights are looked up; ones and zeros for all codes are never made.
        """
        parts = []
        if self.schema.coded:
            begins = self._constant("begins", self.schema.offsets[:-1])
            places = self._add("Add", "codes", begins)
            found = self._add("Gather", self._constant("weights", of_codes), places)
            axis = self._constant("axis", np.array([1]))
            parts.append(self._add("ReduceSum", found, axis, attributes={"keepdims": 0}))
        if self.schema.amounts:
            product = self._add("MatMul", self._amounts(), self._constant("amount_weights", of_amounts))
            parts.append(product)
        total = self._constant("constants", constants)
        for part in parts:
            total = self._add("Add", part, total)
        return total

    def _amounts(self) -> str:
        """Scale amounts as `Amount.encode` does: to whole numbers of 2^-AMOUNT_BITS of the way."""
        lows = np.array([each.low for each in self.schema.amounts])
        ways = np.array([each.high - each.low for each in self.schema.amounts])
        steps = self._constant("steps", np.array(float(1 << AMOUNT_BITS)))
        above = self._add("Sub", "amounts", self._constant("lows", lows))
        parts = self._add("Mul", self._add("Div", above, self._constant("ways", ways)), steps)
        cut = self._add("Clip", parts, self._constant("zero", np.array(0.0)), steps)
        return self._add("Div", self._add("Round", cut), steps)

    def _constant(self, name: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(
        self, kind: str, *inputs: str, out: str = "", attributes: Mapping[str, int] = MappingProxyType({})
    ) -> str:
        from onnx import helper

        name = out or f"{kind.lower()}_{len(self.nodes)}"
        node = helper.make_node(kind, [*inputs], [name])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name
