"""The four commands, their exit codes, and what they leave behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.dummy import DummyClassifier

from robustclf.__main__ import main
from robustclf.cli import audit, tables
from robustclf.cli.features import Features
from robustclf.cli.model import TableModel, write_predictions
from robustclf.cli.summary import one_in, percent, shown

FAST = ["--quiet", "--device", "cpu", "--max-epochs"]
N = 400


def table(wrong=0.2, seed=0):
    """Two clear classes; a share of the labels is wrong, some are missing."""
    rng = np.random.default_rng(seed)
    true = rng.integers(2, size=N)
    X = 3 * np.eye(2)[true] @ rng.normal(size=(2, 4)) + 0.4 * rng.normal(size=(N, 4))
    flipped = rng.random(N) < wrong
    frame = pd.DataFrame(X.round(4), columns=list("abcd"))
    frame.insert(0, "id", [f"{i:03}" for i in range(N)])
    frame["colour"] = np.where(rng.random(N) < 0.7, true, 1 - true).astype(str)
    frame["colour"] = frame["colour"].map({"0": "red", "1": "NA"})
    frame["note"] = [f"note {i}" for i in range(N)]
    frame["y"] = np.array(["cat", "dog"])[true ^ flipped]
    frame.loc[:4, "y"] = None
    flipped[:5] = False
    return frame, flipped


@pytest.fixture(scope="module")
def noisy():
    return table()


@pytest.fixture
def folder(tmp_path, monkeypatch, noisy):
    noisy[0].to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(name):
    return Path(name).read_text(encoding="utf-8")


def run(capsys, *argv, code=0):
    assert main([*map(str, argv)]) == code
    return capsys.readouterr()


def test_audit(folder, capsys, noisy):
    argv = ["audit", "t.csv", "--label", "y", "--id", "id", *FAST, 12]
    out = run(capsys, *argv).out
    assert names(folder) == ["issues.csv", "report.html", "t.csv"]
    assert "400 rows, 2 classes, 5 columns to learn from; 5 rows without label left out" in out
    assert "column 'note' left out: it is text with 395 values" in out
    assert "% of the labels are wrong" in out
    issues = pd.read_csv("issues.csv", dtype={"id": str})
    assert list(issues) == ["id", "given", "suggested", "probability"]
    assert len(issues) == pytest.approx(noisy[1].sum(), rel=0.2)
    right = noisy[1][issues["id"].astype(int)]
    assert right.mean() > 0.9
    given = noisy[0]["y"][issues["id"].astype(int)].tolist()
    assert issues["given"].tolist() == given
    assert (issues["given"] != issues["suggested"]).all()
    assert issues["probability"].is_monotonic_decreasing
    assert issues["id"][0] in out
    assert "cat" in out.partition("Most confused")[2]

    before = [(folder / name).read_bytes() for name in names(folder)]
    assert "issues.csv exists" in run(capsys, *argv, "--out", "new.html", code=1).err
    assert "report.html exists" in run(capsys, *argv, "--issues", "new.csv", code=1).err
    assert [(folder / name).read_bytes() for name in names(folder)] == before

    found = json.loads(run(capsys, *argv, "--force", "--json", "--top", 7).out)
    assert len(pd.read_csv("issues.csv")) == 7
    assert found["noisy"]
    assert found["wrong_labels"] == len(issues)
    assert found["noise_rate"]["low"] < found["noise_rate"]["rate"] < found["noise_rate"]["high"]
    assert found["suspicious_rows"][0]["id"] == issues["id"][0]
    assert {pair["true"] for pair in found["confused_pairs"]} == {"cat", "dog"}
    assert found["wrote"] == {"report": "report.html", "issues": "issues.csv"}
    assert names(folder) == ["issues.csv", "report.html", "t.csv"]


def test_audit_of_a_clean_table(folder, capsys):
    table(wrong=0)[0].to_csv("clean.csv", index=False)
    argv = ["audit", "clean.csv", "--label", "y", "--fail-above", "0.02", *FAST, 12]
    out = run(capsys, *argv).out
    assert "Nothing needs cleaning" in out
    assert "Worth a look, though not called wrong" in out
    assert (folder / "issues.csv").read_text().splitlines() == ["id,given,suggested,probability"]
    report = (folder / "report.html").read_text()
    assert "Nothing needs cleaning" in report
    assert "Worth a look, though not called wrong" in report


def test_audit_where_the_columns_say_nothing(folder, capsys):
    """The predictions are wrong as often as guesses; the labels need not be."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=N), "y": rng.integers(4, size=N)})
    frame.to_csv("t.csv", index=False)
    argv = ["audit", "t.csv", "--label", "y", *FAST, 4]
    out = run(capsys, *argv).out
    assert "Nothing can be said of these labels" in out
    assert "no better than by guessing" in (folder / "report.html").read_text()
    assert len(pd.read_csv("issues.csv")) == 0
    assert run(capsys, *argv, "--force").err == ""
    argv += ["--fail-above", "0.05", "--force", "--json"]
    told = run(capsys, *argv, code=3)  # not known to be good
    assert told.err.startswith("robustclf: warning: no verdict")
    found = json.loads(told.out)
    assert found["blind"]
    assert found["noise_rate"]["lower_bound"] > 0.05


def test_audit_fails_above_a_rate(folder, capsys):
    argv = ["audit", "t.csv", "--label", "y", *FAST, 12]
    run(capsys, *argv, "--fail-above", "0.02", code=3)
    assert names(folder) == ["issues.csv", "report.html", "t.csv"]  # the report says why
    run(capsys, *argv, "--fail-above", "0.5", "--force", code=0)
    rows = pd.read_csv("issues.csv")["id"]  # numbered from 1
    labels = pd.read_csv("t.csv")["y"]
    assert labels[rows - 1].tolist() == pd.read_csv("issues.csv")["given"].tolist()


def test_the_report_names_the_file_of_issues(folder, capsys):
    argv = ["audit", "t.csv", "--label", "y", "--issues", "a&b.csv", *FAST, 12]
    run(capsys, *argv)
    report = read("report.html")
    assert "also in <code>a&amp;b.csv</code>" in report
    assert "issues.csv" not in report
    run(capsys, *argv, "--top", 3, "--force")
    assert "the first 3 also in <code>a&amp;b.csv</code>" in read("report.html")


def test_audit_may_fail_below_what_is_worth_cleaning(folder, capsys):
    """The test knows one tolerance, --fail-above any."""
    table(wrong=0.04, seed=3)[0].to_csv("t.csv", index=False)
    argv = ["audit", "t.csv", "--label", "y", "--json", *FAST, 12]
    found = json.loads(run(capsys, *argv, "--fail-above", 0.001, code=3).out)
    assert not found["noisy"]
    assert not found["blind"]
    assert 0 < found["noise_rate"]["lower_bound"] < 0.02 < found["noise_rate"]["rate"]
    run(capsys, *argv, "--fail-above", 0.02, "--force")


def test_audit_scores_rows_that_were_not_sampled(folder, capsys, noisy, monkeypatch):
    monkeypatch.setattr(tables, "chunk_rows", lambda n: 37)
    argv = ["audit", "t.csv", "--label", "y", "--id", "id", "--max-rows", 200, *FAST, 20]
    found = json.loads(run(capsys, *argv, "--json").out)
    assert found["trained_on"] == 200
    issues = pd.read_csv("issues.csv", dtype={"id": str})
    assert len(issues) == found["wrong_labels"] > 0.1 * N
    assert noisy[1][issues["id"].astype(int)].mean() > 0.8
    assert "5 networks were fitted to 200 rows drawn at random" in read("report.html")


def test_a_large_table_takes_fewer_folds_and_epochs(folder, capsys, noisy, monkeypatch):
    fitted, fit = [], audit.fit
    monkeypatch.setattr(audit, "LARGE", N // 2)
    monkeypatch.setattr(audit, "fit", lambda clf, *rest: [fitted.append(clf), fit(clf, *rest)])
    argv = ["audit", "t.csv", "--label", "y", "--id", "id", *FAST[:-1]]
    run(capsys, *argv)
    assert "3 networks were fitted, each without one row in 3," in read("report.html")
    run(capsys, *argv, "--force", "--max-epochs", 14)
    assert [(clf.cross_fit, clf.max_epochs) for clf in fitted] == [(3, 15), (3, 14)]
    issues = pd.read_csv("issues.csv", dtype={"id": str})
    assert len(issues) > 0.1 * N
    assert noisy[1][issues["id"].astype(int)].mean() > 0.8


def cells(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_clean_prunes(folder, capsys):
    argv = ["clean", "t.csv", "--label", "y", "--id", "id", *FAST, 12]
    told = json.loads(run(capsys, *argv, "--out", "new.csv", "--json").out)
    old, new, log = cells("t.csv"), cells("new.csv"), cells("changes.csv")
    assert 0 < len(log) == told["changed_rows"] == told["wrong_labels"]
    pd.testing.assert_frame_equal(new, old[~old["id"].isin(log["id"])].reset_index(drop=True))
    assert list(log) == ["id", "given", "suggested", "probability", "action"]
    assert set(log["action"]) == {"prune"}
    assert log["id"].is_monotonic_increasing
    assert (new["y"] == "").sum() == 5  # nobody knows of these
    refused = run(capsys, *argv, "--out", "t.csv", "--force", code=1).err
    assert "t.csv is an input" in refused
    assert "changes.csv exists" in run(capsys, *argv, "--out", "third.csv", code=1).err
    assert (
        "name it with one of .csv"
        in run(capsys, *argv, "--out", "t.parquet", "--force", code=1).err
    )


def test_clean_relabels_and_changes_nothing_else(folder, capsys):
    argv = ["clean", "t.csv", "--label", "y", "--id", "id", "--action", "relabel", *FAST, 12]
    run(capsys, *argv, "--out", "new.csv", "--log", "log.csv", "--threshold", 0.9)
    old, new, log = cells("t.csv"), cells("new.csv"), cells("log.csv")
    assert (log["probability"].astype(float) >= 0.9).all()
    changed = old["y"] != new["y"]
    assert old["id"][changed].tolist() == log["id"].tolist() != []
    assert new["y"][changed].tolist() == log["suggested"].tolist()
    pd.testing.assert_frame_equal(old.drop(columns="y"), new.drop(columns="y"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_clean_keeps_line_ends_within_cells_and_of_the_file(folder, capsys, noisy, end):
    memo = "\n" + np.resize(["first\rsecond", "first\nsecond", "first\r\nsecond", "none"], N)
    frame = noisy[0].assign(memo=memo.astype(object), id="\r" + noisy[0]["id"])
    with (folder / "t.csv").open("w", newline="") as handle:
        csv.writer(handle, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(
            [frame.columns, *frame.fillna("").itertuples(index=False, name=None)]
        )
    argv = ["clean", "t.csv", "--label", "y", "--id", "id", "--out", "new.csv", *FAST, 12]
    run(capsys, *argv)
    old, new, log = cells("t.csv"), cells("new.csv"), cells("changes.csv")
    assert 0 < len(log) < len(old) == N
    pd.testing.assert_frame_equal(new, old[~old["id"].isin(log["id"])].reset_index(drop=True))
    assert (folder / "new.csv").read_bytes().startswith(",".join(frame).encode() + end.encode())


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_clean_spells_labels_as_the_file_does(folder, capsys, noisy, kind):
    frame = noisy[0].assign(y=noisy[0]["y"].map({"cat": " cat", "dog": "dog  "}))
    frame.loc[[5, 6], "y"] = frame.loc[[5, 6], "y"].str.strip()  # some few have no spaces
    frame.to_csv("t.csv", index=False) if kind == "csv" else frame.to_parquet("t.parquet")
    load = cells if kind == "csv" else pd.read_parquet
    argv = ["clean", f"t.{kind}", "--label", "y", "--out", f"n.{kind}", "--action", "relabel"]
    run(capsys, *argv, *FAST, 12)
    old, new, log = load(f"t.{kind}"), load(f"n.{kind}"), cells("changes.csv")
    rows = log["id"].astype(int) - 1
    assert set(log["suggested"]) == {"cat", "dog"}
    assert new["y"][rows].tolist() == log["suggested"].map({"cat": " cat", "dog": "dog  "}).tolist()
    pd.testing.assert_frame_equal(new.drop(index=rows), old.drop(index=rows))


@pytest.mark.parametrize("action", ["prune", "relabel"])
def test_clean_keeps_the_types_of_parquet(folder, capsys, noisy, action):
    frame = noisy[0].assign(y=noisy[0]["y"].map({"cat": 3, "dog": 7}).astype("Int8"))
    frame["colour"] = frame["colour"].astype("category")
    frame.to_parquet("t.parquet", row_group_size=100)
    argv = ["clean", "t.parquet", "--label", "y", "--out", "n.parquet", "--action", action]
    run(capsys, *argv, *FAST, 12)
    old, new, log = pq.read_table("t.parquet"), pq.read_table("n.parquet"), cells("changes.csv")
    assert new.schema.equals(old.schema)
    rows = log["id"].astype(int).to_numpy() - 1
    kept = np.setdiff1d(np.arange(N), rows)
    assert len(rows) > 0
    if action == "prune":
        assert new.equals(old.take(kept))
    else:
        assert new.take(kept).equals(old.take(kept))
        assert new["y"].take(rows).to_pylist() == log["suggested"].astype(int).tolist()
        assert new.drop_columns("y").equals(old.drop_columns("y"))


@pytest.mark.parametrize("ordered", [False, True])
def test_clean_keeps_the_categories_of_parquet(folder, capsys, noisy, ordered):
    kind = pd.CategoricalDtype(["none", "dog", "cat"], ordered=ordered)
    noisy[0].assign(y=noisy[0]["y"].astype(kind)).to_parquet("t.parquet", row_group_size=100)
    argv = ["clean", "t.parquet", "--label", "y", "--out", "n.parquet", "--action", "relabel"]
    run(capsys, *argv, *FAST, 12)
    old, new, log = pd.read_parquet("t.parquet"), pd.read_parquet("n.parquet"), cells("changes.csv")
    rows = log["id"].astype(int) - 1
    assert new["y"].dtype == kind
    assert new["y"][rows].tolist() == log["suggested"].tolist() != []
    pd.testing.assert_frame_equal(new.drop(index=rows), old.drop(index=rows))
    assert pq.read_schema("n.parquet").equals(pq.read_schema("t.parquet"))


def test_clean_changes_nothing_in_a_clean_table(folder, capsys):
    table(wrong=0)[0].to_csv("clean.csv", index=False)
    run(capsys, "clean", "clean.csv", "--label", "y", "--out", "new.csv", *FAST, 12)
    pd.testing.assert_frame_equal(cells("clean.csv"), cells("new.csv"))
    assert len(cells("changes.csv")) == 0


def test_fit_reports_its_portfolio_beside_the_result(folder, capsys):
    argv = ["fit", "t.csv", "--label", "y", "--model", "m.joblib", "--json", "--max-epochs", 2]
    shown = run(capsys, *argv)
    assert json.loads(shown.out)["rows"] == N
    assert "Estimated share of wrong labels" in shown.err
    assert joblib.load("m.joblib").classifier.loss == "auto"
    assert not run(capsys, *argv, "--quiet", "--force").err


def test_fit_and_predict(folder, capsys, noisy, monkeypatch):
    argv = ["fit", "t.csv", "--label", "y", "--model", "m.joblib", "--drop", "id", *FAST, 12]
    told = json.loads(run(capsys, *argv, "--recipe", "sce", "--json").out)
    assert told["rows"] == N  # a strategy may learn from those without label
    assert told["columns"] == dict.fromkeys("abcd", "number") | {"colour": "text"}
    model = joblib.load("m.joblib")
    assert model.classifier.loss == "sce"

    # rows alike are predicted alike, whatever is around them
    new = noisy[0].drop(columns=["y", "note"]).iloc[:, ::-1].assign(a=lambda f: f["a"].astype(str))
    new.loc[3, "a"], new.loc[4, "colour"] = "?", "unknown"
    new.to_csv("new.csv", index=False)
    monkeypatch.setattr(tables, "chunk_rows", lambda n: 33)
    run(capsys, "predict", "m.joblib", "new.csv", "--out", "p.csv", "--id", "id", "--proba")
    out = pd.read_csv("p.csv", dtype={"id": str})
    assert out["id"].tolist() == noisy[0]["id"].tolist()
    truth = noisy[0]["y"].where(~noisy[1], noisy[0]["y"].map({"cat": "dog", "dog": "cat"}))
    assert (out["predicted"] == truth)[5:].mean() > 0.95
    np.testing.assert_allclose(out[["proba_cat", "proba_dog"]].sum(axis=1), 1, atol=2e-4)
    np.testing.assert_allclose(out["probability"], out.filter(like="proba_").max(axis=1))
    run(capsys, "predict", "m.joblib", "t.csv", "--out", "q.csv")
    again = pd.read_csv("q.csv")
    assert again["id"].tolist() == list(range(1, N + 1))
    assert again["predicted"][5:].tolist() == out["predicted"][5:].tolist()

    assert (
        "p.csv exists" in run(capsys, "predict", "m.joblib", "t.csv", "--out", "p.csv", code=1).err
    )
    new.drop(columns="c").to_csv("less.csv", index=False)
    error = run(capsys, "predict", "m.joblib", "less.csv", "--out", "r.csv", code=1).err
    assert "no column 'c' for the model" in error
    error = run(capsys, "predict", "t.csv", "t.csv", "--out", "r.csv", code=1).err
    assert "t.csv is not a model" in error
    joblib.dump({"a": 1}, "other.joblib")
    error = run(capsys, "predict", "other.joblib", "t.csv", "--out", "r.csv", code=1).err
    assert "holds a dict" in error
    assert "r.csv" not in names(folder)


def test_an_id_that_is_a_feature_keeps_its_spelling(tmp_path):
    (tmp_path / "t.csv").write_text("a,id\n1,0010\n2,0020\n3,\n")
    table = tables.open_table(tmp_path / "t.csv")
    X = pd.DataFrame({"a": [1.0, 2, 3], "id": [10.0, 20, 0]})
    seen = []

    class Seeing(DummyClassifier):
        def predict_proba(self, X):
            seen.append(X)
            return super().predict_proba(X)

    clf = Seeing().fit(X, ["no", "yes", "yes"])
    model = TableModel(clf, Features({"a": "number", "id": "number"}), "y", "")
    write_predictions(model, table, tmp_path / "p.csv", "id")
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", "0010", "0020", ""]
    np.testing.assert_array_equal(seen[0]["id"], [10, 20, np.nan])


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["audit", "t.csv"],
        ["audit", "t.csv", "--label", "y", "--fail-above", "2"],
        ["audit", "t.csv", "--label", "y", "--top", "-1"],
        ["audit", "t.csv", "--label", "y", "--max-rows", "0"],
        ["fit", "t.csv", "--label", "y", "--model", "m", "--loss", "gec"],
        ["clean", "t.csv", "--label", "y", "--out", "o.csv", "--action", "burn"],
    ],
)
def test_wrong_usage(folder, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "gec" not in argv or "did you mean 'gce'" in capsys.readouterr().err
    assert names(folder) == ["t.csv"]


def test_bad_input(folder, capsys):
    assert "did you mean 'y'" not in run(capsys, "audit", "t.csv", "--label", "z", code=1).err
    error = run(capsys, "audit", "t.csv", "--label", "color", code=1).err
    assert "did you mean 'colour'" in error
    assert error.startswith("robustclf: error: ")
    (folder / "small.csv").write_text("a,y\n" + "1,0\n2,1\n" * 5)
    assert "10 rows with a label" in run(capsys, "audit", "small.csv", "--label", "y", code=1).err
    (folder / "small.csv").write_text("a,y\n" + "1,0\n2,1\n3,\n" * 9)
    argv = ["fit", "small.csv", "--label", "y", "--model", "m", *FAST, 1]
    assert "18 rows with a label" in run(capsys, *argv, code=1).err
    (folder / "bare.csv").write_text("a,y\n" + "1,0\n1,1\n" * 50)
    assert "same in all rows" in run(capsys, "audit", "bare.csv", "--label", "y", code=1).err
    error = run(capsys, "fit", "t.csv", "--label", "y", "--model", "m", "--device", "gpu", code=1)
    assert "device" in error.err
    assert names(folder) == ["bare.csv", "small.csv", "t.csv"]


def test_a_missing_package(folder, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("robustclf.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    error = run(capsys, "audit", "t.csv", "--label", "y", code=1).err
    assert 'needs jinja2: run `pip install "robustclf[cli]"`' in error


def test_an_interrupt_ends_the_fit(folder, capsys, monkeypatch):
    from robustclf._dynamics import DynamicsRecorder

    def interrupt(self, net, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(DynamicsRecorder, "on_epoch_end", interrupt)
    run(capsys, "audit", "t.csv", "--label", "y", *FAST, 3, code=130)
    assert names(folder) == ["t.csv"]


def test_a_killed_run_leaves_nothing(folder):
    """And the module runs as a program, with its progress on stderr."""
    argv = [sys.executable, "-m", "robustclf", "audit", "t.csv", "--label", "y"]
    argv += ["--max-epochs", "1000000"]
    process = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    seen = b""
    deadline = time.monotonic() + 60
    while b"loss=" not in seen and time.monotonic() < deadline:
        seen += os.read(process.stderr.fileno(), 4096)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert b"epoch" in seen
    assert out == b""
    assert names(folder) == ["t.csv"]


def test_words():
    assert [percent(share) for share in (0.5, 0.099, 0.0996, 1.0)] == [
        "50 %",
        "9.9 %",
        "10 %",
        "100 %",
    ]
    assert one_in(0.05) == "one label in 20"
    assert shown("a\nb\x00") == r"a\nb\x00"
