"""Networks as plain data, from which they are built again without running anything unknown."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robustclf.modules import EMBEDDINGS, Network, TabularInput, make_embedding, make_network

M = TypeVar("M", bound=nn.Module)
Arrays = dict[str, NDArray[Any]]


def pack(network: Network) -> dict[str, Any] | Network:
    """Return the names, numbers and arrays that :func:`unpack` builds ``network`` from.

    A network around a module that is not of this package is copied to the CPU instead: only pickle
    can store it.

    Examples
    --------
    >>> inputs = TabularInput(1, n_dense=2, n_numeric=2, cardinalities=())
    >>> how = {"hidden": (4,), "activation": "relu", "dropout": 0.0}
    >>> packed = pack(make_network("mlp", inputs, 1, 3, seeds=[0], **how))
    >>> packed["arguments"]["module"], packed["weights"]["body.head.weight"].shape
    ('mlp', (1, 4, 3))
    >>> unpack(packed)(torch.zeros(5, 2)).shape
    torch.Size([1, 5, 3])
    """
    if network.arguments is None:
        return copy.deepcopy(network).cpu()
    inputs = network.inputs
    aliases = {EMBEDDINGS.get(name): name for name in EMBEDDINGS.names()}
    kind: Any = type(inputs.embedding)
    return {
        "arguments": network.arguments,
        "n_members": network.n_members,
        "n_dense": inputs.n_dense,
        "n_numeric": inputs.n_numeric,
        "embedded": inputs.embedded,
        "cardinalities": [table.cardinality for table in inputs.categories],
        "embedding": aliases.get(kind),
        "weights": to_arrays(network),
    }


def unpack(packed: dict[str, Any] | Network) -> Network:
    """Build the network that :func:`pack` described, on the CPU."""
    if isinstance(packed, Network):
        return packed
    n_members, weights = packed["n_members"], packed["weights"]
    columns = {name: packed[name] for name in ("n_dense", "n_numeric", "cardinalities", "embedded")}
    left = weights.get("inputs.embedding.left")
    bins = {} if left is None else {"n_bins": left.shape[1]}
    numbers = np.zeros((1, len(packed["embedded"])))
    embedding = make_embedding(packed["embedding"], numbers, n_members, **bins)
    inputs = TabularInput(n_members, embedding=embedding, **columns)
    network = make_network(inputs=inputs, n_members=n_members, seeds=(), **packed["arguments"])
    return from_arrays(network, weights)


def to_arrays(module: nn.Module) -> Arrays:
    """Return the weights and buffers of a module; on the CPU they share its memory."""
    return {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}


def from_arrays(module: M, arrays: Arrays) -> M:
    """Put copies of the arrays into a module, in their precision."""
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    for dtype in {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}:
        module.to(dtype)
    module.load_state_dict(state)
    return module
