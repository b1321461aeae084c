"""Values and gradients of the papers' published implementations, in float64."""

import json
from pathlib import Path

import pytest
import torch

from robustclf.losses import Normalized, make_loss

CASES = json.loads((Path(__file__).parent / "reference" / "losses.json").read_text())["cases"]
DETACHED = " (focal factor detached in gradient)"


def loss_of(key):
    """'gce q=0.3' -> make_loss("gce", q=0.3)."""
    alias, *params = key.removesuffix(DETACHED).split()
    params = {name: float(value) for name, value in (param.split("=") for param in params)}
    if key.endswith(DETACHED):
        params["detach_focal"] = True
    if alias in ("rce", "sce"):  # the published code takes this logarithm in float32
        params["A"] = torch.tensor(1e-4).log().item()
    if alias == "ngce":
        return Normalized(make_loss("gce", **params))
    return make_loss(alias, **params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['n_classes']} classes")
@pytest.mark.parametrize("key", CASES[0]["losses"])
def test_published_values_and_gradients(case, key):
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    value = loss_of(key)(logits, torch.tensor(case["label"]))
    (grad,) = torch.autograd.grad(value.sum(), logits)
    expected, expected_grad = (
        torch.tensor(case["losses"][key][part], dtype=torch.float64) for part in ("value", "grad")
    )
    rows = torch.full_like(value, True, dtype=torch.bool)
    if key.startswith(("rce", "sce", "ngce")):  # the published code clamps every p_k at 1e-7
        rows = logits.softmax(-1).amin(-1) > 1e-7
        assert rows.sum() >= 5
    torch.testing.assert_close(value[rows], expected[rows], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad[rows], expected_grad[rows], rtol=1e-12, atol=1e-14)
