import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
data = importlib.import_module("data")
issues = importlib.import_module("issues")


def test_ranking_by_hand():
    wrong = np.array([True, False, True, False])
    assert issues.ranking(np.array([4.0, 3.0, 2.0, 1.0]), wrong) == {
        "auroc": 0.75,
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
        "recall": 0.5,
    }
    assert issues.ranking(np.ones(4), np.zeros(4, bool)) == {}


def test_error_of_a_transition_by_hand():
    true, given = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    assert issues.transition_error([[0.75, 0.25], [0, 1]], given, true) == 0
    assert issues.transition_error(np.eye(2), given, true) == pytest.approx(0.25 * 4 / 6)


def test_audits_are_whole_tables_with_their_noise():
    X, given, true = data.load_audit("breast_cancer", "pair", 0.2, seed=0)
    assert X.shape == (569, 30)
    assert (given != true).mean() == pytest.approx(0.2, abs=1 / 569)
    assert len(data.load_audit("digits", "none", 0, seed=0, max_rows=500)[1]) == 500


@pytest.mark.parametrize("name", ["cifar10n", "trec", "jira-derby"])
def test_missing_data_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTCLF_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set ROBUSTCLF_DATA"):
        data.load_audit(name, "real", 0, seed=0)


def line(dataset, noise, model, auroc, **more):
    ranked = {"auroc": auroc, "average_precision": auroc, "recall": auroc}
    result = {"dataset": dataset, "noise": noise, "seed": 0, "max_rows": 5000, "model": model}
    transitions = dict.fromkeys(issues.TRANSITIONS, 0.1)
    result |= {"scores": {"self_confidence": ranked if noise != "none" else {}}}
    result |= {"true_rate": 0.2, "rate": 0.25, "flagged": 0.1, "precision": 0.9, "seconds": 2.0}
    result |= {"covered": True, "bound_holds": True, "noisy": True, "transitions": transitions}
    return json.dumps(result | more)


def test_summary_takes_what_all_systems_have(tmp_path, capsys):
    path, models = tmp_path / "issues.jsonl", ("robustclf", "cleanlab", "cleanlab-forest")
    lines = [line("digits", "pair-.4", m, a) for m, a in zip(models, (0.9, 0.7, 0.8), strict=True)]
    lines += [line("dna", "pair-.4", "robustclf", 0.1)]
    lines += [line("digits", "none", m, None, precision=None) for m in models]
    lines += [line("jira-derby", "real", m, 0.6) for m in models]
    path.write_text("\n".join(lines))
    args = ["--summary", "--results", str(path), "--csv", str(tmp_path)]
    issues.summarise(issues.parse_args(args))
    table = (tmp_path / "issue_auroc.csv").read_text().splitlines()
    assert table[0] == "system,method,mean,pair-.4,jira"
    assert table[1] == "robustclf,self_confidence,0.750,0.900,0.600"
    assert "error of the rate,robustclf,,0.050" in (tmp_path / "issue_rates.csv").read_text()
    assert "mean 1.00" in capsys.readouterr().out
