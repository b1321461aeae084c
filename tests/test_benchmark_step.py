import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
steps = importlib.import_module("step")

TINY = steps.Setting(steps.Job(20, 2, 3, 4, 5, epochs=1), n_members=2)


def test_flops_by_hand():
    weights = 2 * 4 + 4 * 4 + 4 * 3
    assert steps.flops(TINY) == 2 * 2 * 5 * (weights + weights + (weights - 2 * 4))


def test_products_are_those_that_are_counted(monkeypatch):
    counted, bmm = [], torch.bmm

    def counting(a, b):
        counted.append(2 * a.numel() * b.shape[-1])
        return bmm(a, b)

    monkeypatch.setattr(torch, "bmm", counting)
    steps.products(TINY)()
    assert sum(counted) == steps.flops(TINY)


@pytest.mark.parametrize("name", ["products", "step", "step, no dropout"])
def test_variants_run(name):
    assert steps.measure(TINY, [name], turns=1, least=1e-4)[name] > 0


def test_a_step_moves_the_weights(monkeypatch):
    nets, prepare = [], steps.RobustClassifier._prepare

    def remembered(clf, *args):
        prepared = prepare(clf, *args)
        nets.append(prepared.net)
        return prepared

    monkeypatch.setattr(steps.RobustClassifier, "_prepare", remembered)
    step = steps.step(TINY)
    before = [p.clone() for p in nets[0].module_.parameters()]
    step()
    assert any((p != b).any() for p, b in zip(nets[0].module_.parameters(), before, strict=True))


def test_a_row_has_ratios_to_the_products():
    seconds = {"products": 2e-6, "step": 5e-6}
    assert steps.row(TINY, seconds) == ["width 4, batch 5, 2 side by side", "1", "2.50"]
