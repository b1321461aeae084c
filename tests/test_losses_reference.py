"""Values and gradients of the papers' published implementations, in float64."""

import json
import re
from pathlib import Path

import pytest
import torch

from robustclf.losses import make_loss

CASES = json.loads((Path(__file__).parent / "reference" / "losses.json").read_text())["cases"]
KEY = re.compile(
    r"(?P<alias>[\w-]+)(?P<params>( \w+=\S+)*)( first visit)?( \((?P<convention>.*)\))?"
)
NAMES = {"lambda": "lam", "lambda0": "lam0"}
CONVENTIONS = {
    "focal factor detached in gradient": {"detach_focal": True},
    "softplus/mean scores": {"normalization": "softplus"},
    "scores z*K/||z||_1": {"normalization": "l1", "n_steps": 1},
    None: {},
}


def loss_of(key):
    """'gce q=0.3' -> make_loss("gce", q=0.3)."""
    match = KEY.fullmatch(key)
    alias = match["alias"].replace("-", "_")
    given = dict(param.split("=") for param in match["params"].split())
    params = {NAMES.get(name, name): float(value) for name, value in given.items()}
    params |= CONVENTIONS[match["convention"]]
    if alias in ("rce", "sce"):  # the published code takes this logarithm in float32
        params["A"] = torch.tensor(1e-4).log().item()
    return make_loss(alias, **{k: int(v) if k == "t" else v for k, v in params.items()})


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
    if key.startswith(("rce", "sce", "ngce", "js")):  # the published code clamps every p_k at 1e-7
        rows = logits.softmax(-1).amin(-1) > 1e-7
        assert rows.sum() >= 5
    torch.testing.assert_close(value[rows], expected[rows], rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(grad[rows], expected_grad[rows], rtol=1e-6, atol=1e-14)


def test_every_published_case_is_there():
    assert sum(len(case["losses"]) for case in CASES) == 102
