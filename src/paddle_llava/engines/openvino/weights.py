"""Parameters of a checkpoint as constants of an OpenVINO graph, in the number format that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from openvino import Node, Tensor, Type
from openvino import opset13 as ops
from openvino.op import Constant, Parameter

from paddle_llava.checkpoints.dtypes import to_dtype
from paddle_llava.checkpoints.write import Progress, TensorSource
from paddle_llava.engines.openvino.formats import Format
from paddle_llava.engines.openvino.quantize import Quantized, quantize
from paddle_llava.errors import LlavaError


class Weights:
    """Reads parameters one by one, under our names, and makes nodes of them.

    `progress` is told the bytes done and the bytes in all. `importance` is that of Linear layers' inputs, by name.
    """

    def __init__(
        self,
        tensors: TensorSource,
        progress: Progress | None = None,
        importance: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.tensors = tensors
        self._importance = importance or {}
        self._progress = progress
        self._sizes = {name: 4 * int(np.prod(tensors.shape(name))) for name in tensors.names()}
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self._sizes

    def read(self, name: str, *, turned: bool = False) -> np.ndarray:
        """In float32, as we have it: Linear weights [in, out], or `turned` to [out, in]."""
        array = self.tensors.read(name)
        array = to_dtype(array.T if turned else array, self.tensors.dtype(name), "float32", where=name)
        self._read.add(name)  # a tied embedding is read twice
        if self._progress:
            self._progress(sum(map(self._sizes.__getitem__, self._read)), sum(self._sizes.values()))
        return array

    def finish(self) -> None:
        """Tell `progress` that all is done: some parameters of the vision tower have no use."""
        if self._progress:
            self._progress(sum(self._sizes.values()), sum(self._sizes.values()))

    def vector(self, name: str) -> Node:
        """A parameter as it is: norms, biases and small embeddings, which are worth no saving."""
        return ops.constant(self.read(name))

    def linear(self, x: Node, modules: Sequence[str], form: Format) -> Node:
        """`x` through the Linear layers `modules`, which all take it: their outputs side by side in one product."""
        rows = [self.read(f"{module}.weight", turned=True) for module in modules]
        importance = self._importance.get(modules[0])
        try:
            matrix = constant(rows[0] if len(rows) == 1 else np.concatenate(rows), form, importance)
        except LlavaError as error:
            raise LlavaError(f"{' and '.join(modules)}: {error}") from None
        product = ops.matmul(x, matrix, transpose_a=False, transpose_b=True)
        biases = [f"{module}.bias" for module in modules if self.has(f"{module}.bias")]
        if not biases:
            return product
        return ops.add(product, ops.constant(np.concatenate([self.read(name) for name in biases])))

    def tied(self, x: Node, embedding: str, form: Format) -> Node:
        """`x` through the token embedding used as output head."""
        return ops.matmul(x, constant(self.read(f"{embedding}.weight"), form), transpose_a=False, transpose_b=True)


def parameter(name: str, shape: Sequence[int], dtype: Type) -> Parameter:
    """An input of a graph; -1 is a side of any length."""
    node = ops.parameter(shape, dtype, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def constant(matrix: np.ndarray, form: Format, importance: np.ndarray | None = None) -> Node:
    """`matrix` float32 [out, in] in `form`, and what makes float32 of it when the graph runs; 4 bits are chosen by the
    `importance` [in] of its columns."""
    if form.name == "f32":
        return ops.constant(matrix)
    if form.name == "bf16":
        return ops.convert(_bfloat16(matrix), "f32")
    if form.name == "int4" and matrix.shape[1] % (form.group_size or 1) == 0:
        return dequantized(quantize(matrix, 4, form.group_size, importance))
    return dequantized(quantize(matrix, 8, None))  # also where a row has no whole number of groups


def dequantized(weight: Quantized) -> Node:
    """The nodes that the CPU plug-in takes for a compressed matrix: convert, multiply."""
    rows, columns = weight.values.shape
    groups = weight.scale.shape[1]
    grouped = [rows, columns] if groups == 1 else [rows, groups, columns // groups]
    values = weight.values.reshape(grouped)
    node = ops.convert(ops.constant(values) if weight.bits == 8 else _four_bits(values), "f16")
    node = ops.multiply(node, ops.constant(weight.scale.reshape([*grouped[:-1], 1])))
    if groups > 1:
        node = ops.reshape(node, [rows, columns], special_zero=False)
    return ops.convert(node, "f32")


def _four_bits(values: np.ndarray) -> Constant:
    """Two to a byte, the first in its low half. The constant is a copy: a `Tensor` does not keep its array alive."""
    pairs = values.reshape(-1, 2).view(np.uint8) & 15
    packed = pairs[:, 0] | pairs[:, 1] << 4
    return Constant(Tensor(packed, list(values.shape), Type.i4), shared_memory=False)


def _bfloat16(matrix: np.ndarray) -> Constant:
    bits = to_dtype(matrix, "float32", "bfloat16")
    return Constant(Tensor(bits, list(matrix.shape), Type.bf16), shared_memory=False)
