"""Data larger than memory: read in pieces, shuffled through a buffer, and otherwise as any data."""

import pickle
import sys
import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from robustclf import (
    ArraySource,
    DatasetSource,
    ParquetSource,
    RobustClassifier,
    list_strategies,
    make_strategy,
)
from robustclf._build import auto_epochs
from robustclf._stream import ShuffleBuffer, StreamedRows, sample_rows
from robustclf.sources import Source
from robustclf.stopping import PredictionChangeStopping
from robustclf.strategies import Strategy

N, BUFFER = 600, 100


@pytest.fixture(scope="module")
def table():
    """Rows with a missing value, and labels of three classes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4)).astype(np.float32)
    X[5, 1] = np.nan
    return X, np.digitize(X[:, 0] + 0.5 * X[:, 2], [-0.5, 0.5])


@pytest.fixture
def memmap(table, tmp_path):
    np.save(tmp_path / "X.npy", table[0])
    return np.load(tmp_path / "X.npy", mmap_mode="r")


def full_batches(**params):
    """Every step sees all rows, so that their order does not matter."""
    params = {
        "loss": "gce",
        "batch_size": N,
        "max_epochs": 20,
        "lr": 0.05,
        "hidden": (8,),
        "random_state": 0,
    } | params
    return RobustClassifier(**params)


def quick(**params):
    return RobustClassifier(
        **{"loss": "gce", "max_epochs": 2, "hidden": (8,), "random_state": 0} | params
    )


def close(fitted, expected, X):
    assert_allclose(fitted.predict_proba(X), expected.predict_proba(X), rtol=1e-4, atol=1e-6)


class Recording:
    """An array on disk that knows how many of its rows were in memory at once."""

    def __init__(self, X):
        self.X, self.shape = X, X.shape
        self.reads, self.now, self.most = 0, 0, 0

    def __getitem__(self, rows):
        part = self.X[rows].copy()
        self.reads += 1
        self.now += len(part)
        self.most = max(self.most, self.now)
        weakref.finalize(part, self.forget, len(part))
        return part

    def forget(self, n):
        self.now -= n


@pytest.fixture
def taken(monkeypatch):
    """How many rows were asked for by their numbers, each time."""
    sizes, take = [], Source.take

    def record(self, rows):
        sizes.append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(Source, "take", record)
    return sizes


class Seen(Strategy):
    """Records the batches of a fit."""

    def __init__(self, log=None):
        self.log = log

    def __sklearn_clone__(self):
        return self

    def on_batch(self, net, batch):
        self.log.append((net.epoch, net.warming, batch))
        return batch


# The buffer -----------------------------------------------------------------------------------


def blocks(n, size, taken=None):
    for start in range(0, n, size):
        index = np.arange(start, min(start + size, n))
        if taken is not None:
            taken.append(len(index))
        yield index, np.stack([index, 10 * index], axis=1)


@pytest.mark.parametrize("size", [1, 7, 40, 100])
def test_every_row_leaves_the_buffer_once(size):
    taken = []
    buffer = ShuffleBuffer(30, blocks(100, size, taken), np.random.default_rng(0))
    out = []
    for n in (20, 20, 30, 5, 25):
        index, x = buffer.draw(n)
        assert_array_equal(x, np.stack([index, 10 * index], axis=1))
        out += index.tolist()
        assert sum(taken) - len(out) <= 30 + size
    assert sorted(out) == list(range(100))


def test_a_buffer_of_all_rows_shuffles_them_fully():
    place = np.zeros((6, 3))  # how often a row was in the first, second and third pair
    rng = np.random.default_rng(0)
    for _ in range(1_000):
        buffer = ShuffleBuffer(6, blocks(6, 4), rng)
        for pair in range(3):
            place[buffer.draw(2)[0], pair] += 1
    assert_allclose(place / 1_000, 1 / 3, atol=0.06)


def test_a_smaller_buffer_mixes_rows_as_far_as_it_is_long():
    buffer = ShuffleBuffer(200, blocks(1_000, 10), np.random.default_rng(0))
    lag = np.concatenate([buffer.draw(10)[0] - 10 * i for i in range(100)])
    assert lag.max() < 200
    assert 60 < lag.std() < 200


def test_rows_repeat_as_often_as_they_are_asked_for(table):
    X, _ = table
    rows = StreamedRows(ArraySource(X, shuffle_buffer=BUFFER), lambda x: x, X[:3])
    times = np.arange(N) % 3
    index, x = map(
        np.concatenate, zip(*rows.shuffled(times, np.random.default_rng(0)), strict=True)
    )
    assert_array_equal(np.bincount(index, minlength=N), times)
    assert_array_equal(x, X[index])
    assert (np.diff(index) < 0).sum() > 50  # the pieces come in another order


# Fits -----------------------------------------------------------------------------------------


def test_a_memmap_that_fits_into_the_buffer_is_fitted_as_the_array(table, memmap):
    X, y = table
    streamed, expected = quick().fit(memmap, y), quick().fit(X, y)
    assert_array_equal(streamed.predict_proba(memmap), expected.predict_proba(X))
    assert streamed.history_[:, "train_loss"] == expected.history_[:, "train_loss"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"loss": "ce", "class_weight": "balanced", "strategy": "elr", "n_members": 2},
        {"loss": "ce", "strategy": "co_teaching", "precision": "float64"},
        {"numeric_embedding": "piecewise_linear", "optimizer": "sam", "warm_up": 0.5},
    ],
)
def test_streamed_steps_on_all_rows_are_those_of_the_fit_in_memory(table, memmap, params):
    X, y = table
    weight = np.linspace(0, 2, N)
    source = ArraySource(memmap, shuffle_buffer=BUFFER)
    streamed = full_batches(**params).fit(source, y, sample_weight=weight)
    expected = full_batches(**params).fit(X, y, sample_weight=weight)
    assert_allclose(streamed.encoder_.center_, expected.encoder_.center_)
    close(streamed, expected, X)


def test_the_batches_of_an_epoch_are_the_rows_with_what_is_known_of_them(table):
    X, y = table
    log, weight = [], np.linspace(0, 2, N)
    clf = quick(strategy=Seen(log), batch_size=64, dropout=0.0)
    clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y, sample_weight=weight)
    for epoch in range(2):
        batches = [batch for at, _, batch in log if at == epoch]
        index = torch.cat([batch.index for batch in batches]).numpy()
        assert sorted(index) == list(range(1, N))  # the first has no weight
        assert {len(batch.index) for batch in batches} == {66, 67}
        x = torch.cat([batch.x for batch in batches]).numpy()
        assert_array_equal(x, clf.encoder_.transform(X)[index])
        assert_array_equal(torch.cat([batch.target for batch in batches]), y[index])
        given = torch.cat([batch.weight[0] for batch in batches]).numpy()
        assert_allclose(given, (weight / weight[1:].mean())[index], rtol=1e-5)
    first, second = ([b.index.tolist() for at, _, b in log if at == e] for e in (0, 1))
    assert first != second


def test_random_state_governs_the_stream(table):
    X, y = table
    source = ArraySource(X, shuffle_buffer=BUFFER)
    state = torch.random.get_rng_state()
    one, other = quick().fit(source, y), quick().fit(source, y)
    assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert_array_equal(state, torch.random.get_rng_state())
    third = quick(random_state=1).fit(source, y)
    assert (one.predict_proba(X) != third.predict_proba(X)).any()


def test_a_streamed_fit_is_as_good(noisy_digits):
    X, y, flipped = noisy_digits
    order = np.argsort(y, kind="stable")  # the worst order
    X, y, flipped = X[order], y[order], flipped[order]
    clf = RobustClassifier(loss="gce", max_epochs=25, hidden=(64,), random_state=0)
    in_memory = clf.fit(X, y).score(X[~flipped], y[~flipped])
    streamed = clf.fit(ArraySource(X, shuffle_buffer=250), y).score(X[~flipped], y[~flipped])
    assert streamed > 0.8, (streamed, in_memory)
    assert streamed > in_memory - 0.02, (streamed, in_memory)


def test_cross_fitting_gives_every_row_its_own_probabilities(table):
    X, y = table
    params = {"cross_fit": 3, "track_dynamics": True}
    expected = full_batches(**params).fit(X, y)
    clf = full_batches(**params).fit(ArraySource(X, shuffle_buffer=BUFFER), y)
    assert clf.oof_proba_.shape == (N, 3)
    assert_allclose(clf.oof_proba_, expected.oof_proba_, rtol=1e-4, atol=1e-6)
    assert_allclose(clf.dynamics_.loss, expected.dynamics_.loss, rtol=1e-3, atol=1e-6)


def test_the_warm_up_of_a_stream_ends_within_an_epoch(table):
    X, y = table
    log = []
    clf = quick(strategy=Seen(log), max_epochs=1, batch_size=60, warm_up=0.3)
    clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y)
    assert [warming for _, warming, _ in log] == [True] * 3 + [False] * 7
    log.clear()
    clf.fit(X, y)
    assert not any(warming for _, warming, _ in log)


def test_auto_epochs_see_twenty_million_rows_of_a_stream():
    most = 20_000_000
    assert [auto_epochs(n, most) for n in (10_000, 10**6, 10**7, 10**9)] == [40, 20, 2, 1]


def test_no_more_rows_of_a_stream_are_held_out_than_fit_in_memory(table, monkeypatch):
    monkeypatch.setattr("robustclf._build.HELD_ROWS", 100)
    X, y = table
    log = []
    clf = quick(strategy=Seen(log), early_stopping=True, validation_fraction=0.5)
    clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y)
    assert "valid_acc" in clf.history_[-1]
    trained = {row for at, _, batch in log if at == 0 for row in batch.index.tolist()}
    assert N - len(trained) == pytest.approx(100, abs=2)


def test_rows_to_watch_come_from_a_source(table):
    X, y = table
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = quick(early_stopping=True).fit(ArraySource(X, shuffle_buffer=BUFFER), y, X_val=dataset)
    assert max(clf.history_[:, "valid_acc"]) == pytest.approx(clf.score(X, y))


@pytest.mark.filterwarnings("ignore:strategy 'transition':UserWarning")  # of two epochs
@pytest.mark.parametrize("alias", list_strategies())
def test_a_strategy_streams_or_says_that_it_cannot(table, told, taken, alias, monkeypatch):
    monkeypatch.setattr("robustclf.sources._base.CHUNK_ROWS", 64)
    monkeypatch.setattr("robustclf._stream.SAMPLE_ROWS", 64)
    X, y = table
    rows = Recording(X)
    source = ArraySource(rows, shuffle_buffer=BUFFER)
    clf = quick(loss="ce", strategy=alias)
    if "all_rows" in make_strategy(alias).needs:
        with pytest.raises(ValueError, match=r"strategy .*needs the features of all rows.* 600\)"):
            clf.fit(source, y)
        assert rows.reads == 0
        clf.fit(ArraySource(X, shuffle_buffer=N), y)
    else:
        clf.fit(source, y, **told(alias, N))
        assert rows.most <= 2 * 64
        assert max(taken) <= 64, "add 'all_rows' to its needs"
        assert np.isfinite(clf.predict_proba(X)).all()


def test_a_stopping_rule_that_needs_all_rows_is_refused(table):
    X, y = table
    clf = quick(early_stopping=PredictionChangeStopping())
    with pytest.raises(ValueError, match="early_stopping=PredictionChangeStopping"):
        clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y)


def test_trusted_rows_are_read_by_their_numbers(table):
    X, y = table
    trusted = np.arange(0, N, 7)
    strategy = make_strategy("transition", matrix="trusted")
    clf = quick(loss="ce", strategy=strategy, max_epochs=4)
    clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y, trusted=trusted)
    assert np.isfinite(clf.predict_proba(X)).all()


# Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"early_stopping": True, "cross_fit": 2}])
def test_few_rows_are_in_memory_at_once(params, taken, monkeypatch):
    monkeypatch.setattr("robustclf.sources._base.CHUNK_ROWS", 64)
    monkeypatch.setattr("robustclf._stream.SAMPLE_ROWS", 100)
    monkeypatch.setattr("robustclf._build.HELD_ROWS", 100)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5_000, 3))
    recording = Recording(X)
    source = ArraySource(recording, shuffle_buffer=300)
    clf = quick(**params).fit(source, X[:, 0] > 0)
    assert recording.reads > 2 * 5_000 / 64
    assert recording.most <= 2 * 64
    assert max(taken) <= 101
    recording.most = 0
    assert len(clf.predict(source)) == 5_000
    assert recording.most <= 2 * 64


def test_an_encoder_sees_a_sample_spread_over_the_rows(monkeypatch):
    monkeypatch.setattr("robustclf._stream.SAMPLE_ROWS", 400)
    monkeypatch.setattr("robustclf._stream.SAMPLE_PIECES", 40)
    X = np.arange(10_000.0)[:, None]
    source = ArraySource(X, shuffle_buffer=1_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = sample_rows(source, None)
        some = sample_rows(source, (np.arange(10_000) % 2).astype(float))
    assert len(np.unique(rows)) == 400
    assert (np.histogram(rows, bins=10, range=(0, 10_000))[0] > 10).all()
    assert (some % 2 == 1).all()
    assert_array_equal(source.take(rows)[:, 0], rows)


def test_a_buffer_is_256_megabytes_unless_it_is_told():
    source = ArraySource(np.broadcast_to(np.float32(0), (10**9, 50)))
    assert source.buffer_rows * 50 * 4 == pytest.approx(2**28, rel=1e-4)
    assert not source.fits
    assert source.chunk_rows == 16_384
    assert ArraySource(np.broadcast_to(0, (10, 2**30))).chunk_rows == 1


# Parquet --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours():
    """Columns of numbers, text and categories with missing values, and labels that are text."""
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    kind = rng.choice(["a", "b", "c"], N).astype(object)
    kind[::50] = None
    size = rng.normal(size=N)
    return {
        "id": np.arange(N),
        "size": [None if i == 7 else value for i, value in enumerate(size)],
        "kind": kind.tolist(),
        "flag": (rng.random(N) < 0.5).tolist(),
        "label": np.where((size > 0) ^ (kind == "a"), "yes", "no").tolist(),
    }


@pytest.fixture
def folder(colours, tmp_path):
    """Three files in two folders, 200 rows each, in row groups of 40."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pa.table(colours)
    whole = whole.set_column(2, "kind", whole["kind"].dictionary_encode())
    (tmp_path / "deep").mkdir()
    for i, name in enumerate(("a.parquet", "b.parquet", "deep/c.parquet")):
        pq.write_table(whole.slice(200 * i, 200), tmp_path / name, row_group_size=40)
    return tmp_path


FEATURES = ["size", "kind", "flag"]


def test_a_folder_of_parquet_files_is_one_table(folder, colours, monkeypatch):
    monkeypatch.setattr("robustclf.sources._base.PIECE_ROWS", 80)
    source = ParquetSource(folder, label="label")
    assert source.columns == ["id", *FEATURES]
    assert source.shape == (N, 4)
    assert source.bounds().tolist() == [0, 80, 160, 200, 280, 360, 400, 480, 560, 600]
    assert source.labels().tolist() == colours["label"]
    assert source.load()["id"].to_pylist() == list(range(N))
    assert source.take(np.array([3, 250, 599]))["id"].to_pylist() == [3, 250, 599]
    files = ParquetSource([folder / "deep", folder / "a.parquet"], columns=["id"])
    assert files.load()["id"].to_pylist()[:201] == [*range(400, 600), 0]


def test_parquet_is_fitted_as_the_table_in_memory(folder, colours):
    import pyarrow as pa

    X = pa.table({name: colours[name] for name in FEATURES})
    expected = full_batches().fit(X, colours["label"])
    clf = full_batches().fit(
        ParquetSource(folder, "label", columns=FEATURES, shuffle_buffer=BUFFER)
    )
    assert clf.classes_.tolist() == ["no", "yes"]
    assert clf.feature_names_in_.tolist() == FEATURES
    whole = ParquetSource(folder)  # prediction picks the columns by their names
    assert_allclose(clf.predict_proba(whole), clf.predict_proba(X), rtol=1e-6)
    close(clf, expected, X)
    assert clf.score(whole, ParquetSource(folder, "label").labels()) > 0.9


def test_labels_in_memory_go_before_those_of_the_file(folder, colours):
    source = ParquetSource(folder, "label", columns=FEATURES, shuffle_buffer=BUFFER)
    given = np.where(np.arange(N) % 2, "yes", "maybe")
    assert quick().fit(source, given).classes_.tolist() == ["maybe", "yes"]


def test_rows_without_label_in_a_file_are_left_out(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    x = np.random.default_rng(0).normal(size=300)
    label = [None if i % 3 == 0 else int(value > 0) for i, value in enumerate(x)]
    pq.write_table(pa.table({"x": x, "label": label}), tmp_path / "t.parquet")
    source = ParquetSource(tmp_path / "t.parquet", "label", shuffle_buffer=50)
    with pytest.warns(UserWarning, match="100 of 300 rows have no label"):
        clf = quick(max_epochs=20, lr=0.05).fit(source)
    assert clf.classes_.tolist() == [0, 1]
    assert clf.score(source, x > 0) > 0.9


def test_a_transformer_of_others_gets_data_frames(folder):
    pytest.importorskip("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder

    transformer = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["kind"]), ("passthrough", ["flag"])
    )
    source = ParquetSource(folder, "label", columns=["kind", "flag"], shuffle_buffer=BUFFER)
    clf = quick(preprocess=transformer).fit(source)
    assert clf.predict_proba(source).shape == (N, 2)


def test_files_that_cannot_work(folder, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(ValueError, match=r"unknown column of .*'labl'.*did you mean 'label'"):
        ParquetSource(folder, label="labl")
    with pytest.raises(ValueError, match=r"'siz'.*did you mean 'size'"):
        ParquetSource(folder, columns=["siz"])
    for columns in (["size", "size"], ["size", "label"]):
        with pytest.raises(ValueError, match=r"distinct and without the label 'label', got"):
            ParquetSource(folder, "label", columns=columns)
    with pytest.raises(ValueError, match=r"a list of some, got \[\]"):
        ParquetSource([])
    with pytest.raises(ValueError, match=r"Which column holds the labels\?"):
        quick().fit(ParquetSource(folder))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        ParquetSource(folder / "none.parquet")
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no Parquet file"):
        ParquetSource(empty)
    (text := tmp_path / "text.csv").write_text("size,label\n1,2\n")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        ParquetSource(text)
    pq.write_table(pa.table({"size": pa.array([], pa.float64())}), empty / "t.parquet")
    with pytest.raises(ValueError, match="has 0 rows and 1 columns"):
        ParquetSource(empty)
    pq.write_table(pa.table({"size": ["a"]}), empty / "u.parquet")
    with pytest.raises(ValueError, match=r"'size' is of type string in .*u.parquet.* double in"):
        ParquetSource(empty)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install robustclf\[parquet\]"):
        ParquetSource(folder)


def test_prediction_misses_a_column(folder, tmp_path):
    import pyarrow.parquet as pq

    clf = quick().fit(ParquetSource(folder, "label", columns=FEATURES))
    part = tmp_path / "part.parquet"
    pq.write_table(ParquetSource(folder).load().drop_columns("kind"), part)
    with pytest.raises(ValueError, match=r"unknown column of .*'kind'"):
        clf.predict(ParquetSource(part))


# Datasets -------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.y[i]


class ManyItems(Items):
    def __getitems__(self, rows):
        return [(torch.from_numpy(self.X[i]), torch.tensor(self.y[i])) for i in rows]

    def __getitem__(self, i):
        assert i == 0, "ask for many at once"
        return super().__getitem__(i)


class Stream(IterableDataset):
    """A length that nobody knows."""

    def __init__(self, X, y, change=None):
        self.X, self.y, self.change, self.passes = X, y, change, 0

    def __iter__(self):
        self.passes += 1
        order = np.arange(len(self.X))
        if self.change and self.passes > 2:
            order = self.change(order)
        return ((self.X[i], self.y[i]) for i in order)


@pytest.mark.parametrize("kind", [Items, ManyItems, Stream])
def test_a_dataset_is_fitted_as_its_rows(table, kind):
    X, y = table
    expected = full_batches().fit(ArraySource(X, shuffle_buffer=BUFFER), y)
    dataset = kind(X, y)
    clf = full_batches().fit(DatasetSource(dataset, shuffle_buffer=BUFFER))
    close(clf, expected, X)
    assert clf.score(dataset, y) == clf.score(X, y)
    assert_array_equal(clf.predict_proba(dataset), clf.predict_proba(X))
    small = quick().fit(dataset)
    assert_array_equal(small.predict_proba(X), quick().fit(X, y).predict_proba(X))


@pytest.mark.parametrize("kind", [Items, Stream])
@pytest.mark.parametrize("buffer", [BUFFER, "auto"])
def test_a_gap_among_the_labels_of_a_dataset_is_no_class(table, kind, buffer):
    X, y = table
    labels = np.array(["a", "b", "c"])[y].tolist()
    labels[0] = np.nan
    with pytest.warns(UserWarning, match="1 of 600 rows have no label"):
        clf = quick().fit(DatasetSource(kind(X, labels), shuffle_buffer=buffer))
    assert clf.classes_.tolist() == ["a", "b", "c"]


def test_labels_beside_a_dataset_spare_a_pass(table):
    X, y = table
    stream = Stream(X, np.full(N, 7))
    clf = quick().fit(DatasetSource(stream, shuffle_buffer=BUFFER), y)
    assert clf.classes_.tolist() == [0, 1, 2]
    first_row, sample, epochs = 1, 1, 2
    assert stream.passes == first_row + sample + epochs
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[600, 599\]"):
        quick().fit(DatasetSource(Items(X, y), shuffle_buffer=BUFFER), y[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.random.default_rng(0).permutation, "labels of .* differ from those of the first pass"),
        (lambda order: order[:-1], "gave 599 rows in this pass instead of 600"),
        (lambda order: np.append(order, 0), "differ from those of the first pass"),
    ],
)
def test_an_iterable_that_changes_is_refused(table, change, message):
    source = DatasetSource(Stream(*table, change), shuffle_buffer=BUFFER)
    with pytest.raises(ValueError, match=message):
        quick().fit(source)


def test_datasets_that_cannot_work(table):
    X, y = table
    ragged = [*X[:20], X[20, :2]]
    with pytest.raises(ValueError, match=r"Row 20 of .* has 2 features, the first row has 4"):
        quick().fit(Items(ragged, y[:21]))
    with pytest.raises(ValueError, match=r"An item must be \(x, y\), .*got array"):
        quick().fit(DatasetSource(TensorItems(X)))
    with pytest.raises(ValueError, match="has no items"):
        quick().fit(Items(X[:0], y))
    with pytest.raises(ValueError, match=r"a vector of numbers"):
        quick().fit(Items(X.reshape(N, 2, 2), y), y)
    with pytest.raises(TypeError, match="pass its dataset"):
        quick().fit(DataLoader(Items(X, y)))
    with pytest.raises(TypeError, match=r"is it ParquetSource\('t.parquet', label=...\)\?"):
        quick().fit("t.parquet", "label")


class TensorItems(Items):
    def __init__(self, X):
        super().__init__(X, None)

    def __getitem__(self, i):
        return self.X[i]


# Prediction and chunks ------------------------------------------------------------------------


@pytest.mark.parametrize("preprocess", ["auto", None])
def test_prediction_of_a_memmap_goes_by_chunks(table, memmap, preprocess, monkeypatch):
    X, y = np.nan_to_num(table[0]), table[1]
    monkeypatch.setattr("robustclf.sources._base.CHUNK_ROWS", 64)
    clf = quick(preprocess=preprocess, loss="evidential", n_members=2).fit(X, y)
    rows = ArraySource(Recording(X))
    for method in ("predict_proba", "decision_function", "member_proba", "vacuity", "embed"):
        given, expected = getattr(clf, method)(rows), getattr(clf, method)(X)
        assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    assert_array_equal(clf.predict(rows), clf.predict(X))
    assert rows.X.most <= 2 * 64
    assert preprocess is None or clf.predict(memmap).shape == (N,)


def test_partial_fit_learns_from_the_chunks_of_a_memmap(table, memmap):
    _, y = table
    clf = RobustClassifier(loss="gce", hidden=(16,), lr=0.01, warm_up=0, random_state=0)
    for _ in range(15):
        for start in range(0, N, 200):
            rows = slice(start, start + 200)
            clf.partial_fit(memmap[rows], y[rows], classes=[0, 1, 2])
    assert clf.score(memmap, y) > 0.9


def test_partial_fit_loads_a_source(table):
    X, y = table
    clf = quick().partial_fit(DatasetSource(Items(X, y)), classes=[0, 1, 2])
    expected = quick().partial_fit(X, y, classes=[0, 1, 2])
    assert_array_equal(clf.predict_proba(X), expected.predict_proba(X))


def test_a_streamed_model_keeps_no_data(table):
    X, y = table
    big = ArraySource(np.concatenate([X] * 50), shuffle_buffer=BUFFER)
    params = {"strategy": "elr", "loss": "ce", "track_dynamics": False, "max_epochs": 1}
    clf = quick(**params).fit(big, np.tile(y, 50))
    assert len(pickle.dumps(clf)) < big.X.nbytes / 4
    assert_array_equal(pickle.loads(pickle.dumps(clf)).predict(X), clf.predict(X))


def test_the_progress_bar_moves_within_an_epoch(table, monkeypatch):
    X, y = table
    shown = []

    class Bar:
        def __init__(self, total, unit, disable):
            self.n = 0

        def update(self, n=1):
            self.n += n
            shown.append(self.n)

        def set_postfix(self, **values):
            pass

        def close(self):
            pass

    monkeypatch.setattr("robustclf._progress.tqdm", Bar)
    clf = quick(verbose=1, batch_size=150)
    clf.fit(ArraySource(X, shuffle_buffer=BUFFER), y)
    assert shown == [0.25, 0.5, 0.75, 1, 1, 1.25, 1.5, 1.75, 2, 2]
    shown.clear()
    clf.fit(X, y)
    assert shown == [1, 2]


@pytest.mark.parametrize("buffer", [0, -5, 2.5, "all", True, None])
def test_a_buffer_is_a_number_of_rows(table, buffer):
    with pytest.raises(ValueError, match="shuffle_buffer must be a number of rows"):
        ArraySource(table[0], shuffle_buffer=buffer)


def test_arrays_that_cannot_work(table, memmap):
    X, y = table
    with pytest.raises(ValueError, match="Expected 2D array"):
        ArraySource(X[0])
    with pytest.raises(ValueError, match=r"no labels: fit\(X, y\)"):
        quick().fit(ArraySource(X, shuffle_buffer=BUFFER))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        quick().fit(ArraySource(memmap, shuffle_buffer=BUFFER), y[1:])
    broken = X.copy()
    broken[400, 2] = np.inf
    with pytest.raises(ValueError, match="contains infinity"):
        quick().fit(ArraySource(broken, shuffle_buffer=BUFFER), y)
    clf = quick().fit(X, y)
    with pytest.raises(ValueError, match="3 features"):
        clf.predict(ArraySource(X[:, :3]))
    for method in (clf.predict, clf.predict_proba, clf.decision_function):
        with pytest.raises(ValueError, match="Found 0 rows in this ArraySource"):
            method(ArraySource(X[:0]))
