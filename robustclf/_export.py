"""Fitted classifiers for other runtimes: ONNX models of raw tables, and programs of torch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted
from torch import Tensor, nn

from robustclf._build import Numbers
from robustclf._files import written
from robustclf._version import __version__
from robustclf.preprocessing import TabularEncoder
from robustclf.preprocessing._columns import FAR, MAX

OPSET, ML_OPSET = 20, 2
OUTPUTS = ("label", "probabilities")
OURS, TORCHS = "robustclf/", "network/"  # prefixes of names, so that columns can have any other
SINGLE = {"Elu", "Erf", "Gelu", "LeakyRelu", "Mish", "Selu", "Softplus"}


class Scorer(nn.Module):
    """Mean probabilities of the members, of encoded rows."""

    def __init__(self, clf: Any) -> None:
        super().__init__()
        net = clf.net_
        self.network = copy.deepcopy(net.module_).cpu()
        self.criterion = copy.deepcopy(net.criterion_).cpu()
        self.n_members, self.dtype = net.n_members, net.dtype
        self.out = getattr(torch, _precision(clf))

    def forward(self, rows: Tensor) -> Tensor:
        """Map encoded rows ``(sample, feature)`` to ``(sample, class)``."""
        logits = self.network(rows.to(self.dtype))[: self.n_members].to(self.dtype)
        proba: Tensor = self.criterion.loss.inverse_link(logits)
        return proba.mean(0).to(self.out)


def _precision(clf: Any) -> str:
    return "float64" if clf.precision == "float64" else "float32"


def export_torch(clf: Any, path: str | Path | None = None) -> torch.export.ExportedProgram:
    """Return the network of a fitted classifier as :meth:`RobustClassifier.export_torch` says."""
    check_is_fitted(clf)
    scorer = Scorer(clf).eval()
    inputs = scorer.network.inputs
    encoded = isinstance(clf.encoder_, TabularEncoder)
    dtype = getattr(torch, clf.encoder_.dtype) if encoded else torch.float64
    example = torch.zeros(2, inputs.n_dense + len(inputs.categories), dtype=dtype)
    with _exporting(clf):
        shapes = ({0: torch.export.Dim("rows")},)
        program = torch.export.export(scorer, (example,), dynamic_shapes=shapes)
    if path is not None:
        with written(Path(path)) as [temporary], temporary.open("wb") as handle:
            torch.export.save(program, handle)
    return program


def export_onnx(clf: Any, path: str | Path, *, missing: str = "") -> None:
    """Write a fitted classifier as :meth:`RobustClassifier.export_onnx` says."""
    _check_onnx()
    import onnx

    check_is_fitted(clf)
    columns, classes = _columns(clf.encoder_, missing), _classes(clf.classes_)
    graph = Graph()
    for column in columns:
        kind = onnx.TensorProto.STRING if column.text else onnx.TensorProto.DOUBLE
        graph.inputs.append(_tensor(column.name, kind, column.width))
    rows = _encoded(graph, clf.encoder_, columns, missing)
    proba = _scored(graph, clf, rows)
    best = graph.add("ArgMax", proba, axis=1, keepdims=0)
    graph.add("Gather", graph.constant(classes), best, output=OUTPUTS[0])
    graph.outputs = [
        _tensor(OUTPUTS[0], _kind(classes.dtype)),
        _tensor(proba, _kind(_precision(clf)), len(classes)),
    ]
    model = graph.model()
    told = {
        "robustclf_version": __version__,
        "classes": json.dumps(classes.tolist()),
        "feature_names": json.dumps(_names(clf.encoder_)),
    }
    onnx.helper.set_model_props(model, told)
    onnx.checker.check_model(model, full_check=True)
    with written(Path(path)) as [temporary]:
        temporary.write_bytes(model.SerializeToString())


def _check_onnx() -> None:
    """Raise an ImportError that says what to install unless there are onnx and onnxscript."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs {error.name}: run `pip install robustclf[onnx]`."
        ) from error


@contextmanager
def _exporting(clf: Any) -> Iterator[None]:
    """Name the module that torch cannot export, and mute what torch says about its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise RuntimeError(
            f"{_module_name(clf.module)} with loss={clf.net_.criterion_.built!r} cannot be "
            f"exported: {reason}"
        ) from error
    finally:
        logger.setLevel(level)


def _module_name(module: Any) -> str:
    named = getattr(module, "__name__", type(module).__name__)
    return f"module {module!r}" if isinstance(module, str) else f"module {named}"


# What ONNX takes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """An input of the model: numbers, or a category with its values in the order of their codes."""

    name: str
    width: int = 1
    values: list[Any] | None = None

    @property
    def known(self) -> list[Any]:
        """Values that are not the missing one."""
        return [value for value in self.values or () if value is not None]

    @property
    def text(self) -> bool:
        """Whether it is a category of strings."""
        return self.values is not None and all(isinstance(value, str) for value in self.known)

    def check(self, missing: str) -> None:
        """Raise a ValueError for values that the model could not tell apart."""
        if self.text and missing in self.known:
            raise ValueError(
                f"column {self.name!r} has the value {missing!r}, which is to stand for a missing "
                "one: choose another string for `missing`."
            )
        if not self.text and not all(map(_is_number, self.known)):
            raise ValueError(
                f"column {self.name!r} is a category of {type(self.known[0]).__name__} values that "
                "are neither strings nor numbers of float64: turn them into strings before fit."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) and float(value) == value


def _names(encoder: Any) -> list[str]:
    return [str(name) for name in _check_feature_names_in(encoder, None)]


def _columns(encoder: Any, missing: str) -> list[Column]:
    """Return the inputs of the model; ValueError for what ONNX cannot take."""
    if not isinstance(encoder, TabularEncoder | Numbers):
        raise ValueError(
            f"preprocess={encoder!r} has no ONNX form: fit with preprocess='auto' or None, or "
            "export the network behind it with export_torch."
        )
    names, tables = _names(encoder), getattr(encoder, "_tables", {})
    if not tables and not hasattr(encoder, "feature_names_in_"):
        return [Column("X", len(names))]
    for name in names:
        if not name or name in OUTPUTS or names.count(name) > 1:
            raise ValueError(
                f"a column is called {name!r}, but names of the model's inputs are unique, not "
                f"empty and none of {OUTPUTS}: rename it before fit."
            )
    columns = [
        Column(name, values=list(tables[j]) if j in tables else None)
        for j, name in enumerate(names)
    ]
    for column in columns:
        column.check(missing)
    return columns


def _classes(classes: NDArray[Any]) -> NDArray[Any]:
    """Return the labels as int64, float64, booleans or strings."""
    kind = classes.dtype.kind
    if kind in "iuf":
        same = classes.astype(np.float64 if kind == "f" else np.int64)
        if (same == classes).all():
            return same
    if kind == "b":
        return classes
    if all(isinstance(label, str) for label in classes):
        return classes.astype(object)
    raise ValueError(
        f"classes of dtype {classes.dtype} have no ONNX form: use strings, booleans or integers "
        "within int64."
    )


# The graph --------------------------------------------------------------------------------------


class Graph:
    """An ONNX model that is being built."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def constant(self, value: Any) -> str:
        """Add an array and return its name."""
        from onnx import numpy_helper

        name = f"{OURS}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its result."""
        from onnx import helper

        name = output or f"{OURS}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def model(self) -> Any:
        """Return the model."""
        from onnx import helper

        return helper.make_model(
            helper.make_graph(
                self.nodes, "RobustClassifier", self.inputs, self.outputs, self.constants
            ),
            producer_name="robustclf",
            producer_version=__version__,
            ir_version=10,
            opset_imports=[
                helper.make_opsetid("", OPSET),
                helper.make_opsetid("ai.onnx.ml", ML_OPSET),
            ],
        )


def _tensor(name: str, kind: int, *shape: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, ["rows", *shape])


def _encoded(graph: Graph, encoder: Any, columns: list[Column], missing: str) -> str:
    """Add what the encoder does, and return the name of the encoded rows."""
    numbers = [column.name for column in columns if column.values is None]
    x = graph.add("Concat", *numbers, axis=1) if numbers else ""
    if isinstance(encoder, Numbers):
        return x
    kind = _kind(encoder.dtype)
    parts = _numbers(graph, encoder, x) if numbers else []
    for j in encoder._one_hot:
        parts.append(_indicators(graph, columns[j], missing))
    for j in encoder._coded:
        parts.append(_codes(graph, columns[j], missing))
    return graph.add("Concat", *(graph.add("Cast", p, to=kind) for p in parts), axis=1)


def _kind(dtype: Any) -> int:
    from onnx import helper

    kind: int = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return kind


def _numbers(graph: Graph, encoder: TabularEncoder, x: str) -> list[str]:
    """Add ``z / sqrt(1 + (z / 3)^2)``, 0 where missing, and the indicators of missing numbers."""
    missing = graph.add("IsNaN", x)
    if np.isfinite(encoder.unit_).any():
        x = _logarithms(graph, encoder, x)
    z = graph.add("Sub", x, graph.constant(encoder.center_))
    z = graph.add("Clip", z, graph.constant(-MAX), graph.constant(MAX))
    z = graph.add("Div", z, graph.constant(encoder.scale_))
    z = graph.add("Clip", z, graph.constant(-FAR), graph.constant(FAR))
    root = graph.add("Sqrt", graph.add("Add", graph.add("Mul", z, z), graph.constant(9.0)))
    clipped = graph.add("Div", graph.add("Mul", z, graph.constant(3.0)), root)
    parts = [graph.add("Where", missing, graph.constant(0.0), clipped)]
    if encoder._indicated.any():
        indicated = graph.constant(np.flatnonzero(encoder._indicated))
        parts.append(graph.add("Gather", missing, indicated, axis=1))
    return parts


def _logarithms(graph: Graph, encoder: TabularEncoder, x: str) -> str:
    """Add ``sign(d) log(1 + |d| / unit)`` of the numbers with heavy tails, d from their origin."""
    d = graph.add("Sub", x, graph.constant(encoder.origin_))
    ratio = graph.add("Div", graph.add("Abs", d), graph.constant(encoder.unit_))
    log = graph.add("Log", graph.add("Add", ratio, graph.constant(1.0)))
    log = graph.add("Mul", graph.add("Sign", d), log)
    return graph.add("Where", graph.constant(np.isfinite(encoder.unit_)), log, x)


def _indicators(graph: Graph, column: Column, missing: str) -> str:
    """Add an indicator of each value of a category."""
    if column.text:
        code = _codes(graph, column, missing)
        return graph.add("Equal", code, graph.constant([_range(column)]))
    same = graph.add("Equal", column.name, graph.constant([np.array(column.known, dtype=float)]))
    if None not in (column.values or ()):
        return same
    return graph.add("Concat", same, graph.add("IsNaN", column.name), axis=1)


def _codes(graph: Graph, column: Column, missing: str) -> str:
    """Add the codes of a category, ``(sample, 1)``; 0 for what training never saw."""
    if not column.text:
        same = graph.add("Cast", _indicators(graph, column, missing), to=_kind(np.float64))
        return graph.add("MatMul", same, graph.constant(_range(column)[:, None].astype(float)))
    return graph.add(
        "LabelEncoder",
        column.name,
        domain="ai.onnx.ml",
        keys_strings=[missing if value is None else value for value in column.values or ()],
        values_int64s=_range(column).tolist(),
        default_int64=0,
    )


def _range(column: Column) -> NDArray[np.int64]:
    return np.arange(1, 1 + len(column.values or ()), dtype=np.int64)


def _scored(graph: Graph, clf: Any, rows: str) -> str:
    """Add the network, as torch exports it, and return the name of the probabilities."""
    import onnx.compose

    program = export_torch(clf)
    with _exporting(clf):
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["rows"],
            output_names=["output"],
            verbose=False,
        )
    assert made is not None
    network = onnx.compose.add_prefix(made.model_proto, TORCHS).graph
    graph.add("Identity", rows, output=network.input[0].name)
    graph.constants += network.initializer
    for node in network.node:  # torch notes the places in the code, with the paths of this machine
        del node.metadata_props[:]
        single = clf.net_.dtype == torch.float64 and node.op_type in SINGLE
        graph.nodes += _in_single(node) if single else [node]
    return graph.add("Identity", network.output[0].name, output=OUTPUTS[1])


def _in_single(node: Any) -> list[Any]:
    """Put a node that onnxruntime has in float32 alone between casts."""
    from onnx import TensorProto, helper

    given, result = node.input[0], node.output[0]
    node.input[0], node.output[0] = f"{result}/given", f"{result}/single"
    return [
        helper.make_node("Cast", [given], [node.input[0]], to=TensorProto.FLOAT),
        node,
        helper.make_node("Cast", [node.output[0]], [result], to=TensorProto.DOUBLE),
    ]
