"""Tables are read chunk by chunk, and what is no table is refused."""

import gzip
import weakref

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustclf._files import written
from robustclf.cli import tables
from robustclf.cli.features import ENOUGH, Features, Kinds
from robustclf.cli.files import InputError, check_outputs
from robustclf.cli.survey import UNLABELLED, survey
from robustclf.cli.tables import open_table

ROWS = 60


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "name": [f"r{i:03}" for i in range(ROWS)],
            "size": rng.normal(size=ROWS).round(3),
            "kind": np.array(["a", "b", "c"])[rng.integers(3, size=ROWS)],
            "flag": rng.random(ROWS) < 0.5,
            "y": np.array(["no", "yes"])[rng.integers(2, size=ROWS)],
        }
    )


def write(folder, text, name="t.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_is_found(tmp_path, frame, separator):
    path = tmp_path / "t.csv"
    frame.to_csv(path, sep=separator, index=False)
    found = survey(open_table(path), "y", "name")
    assert found.classes.tolist() == ["no", "yes"]
    assert found.features.kinds == {"size": "number", "kind": "text", "flag": "text"}
    assert list(found.ids) == frame["name"].tolist()
    X = found.features.read(found.table, found.labelled)
    np.testing.assert_array_equal(X["size"], frame["size"].astype("float32"))
    assert X["size"].dtype == np.float32
    assert X["kind"].dtype == "category"
    assert X["kind"].tolist() == frame["kind"].tolist()


def test_a_header_may_quote_its_separator(tmp_path):
    path = write(tmp_path, '"size, in, m";y\n' + "1;a\n2;b\n" * 5)
    assert open_table(path).names == ["size, in, m", "y"]


@pytest.mark.parametrize("blank", [",,\n", "\n , ,\n", "\ufeff,,\r\n\r\n", '"\n",,\n'])
def test_a_header_may_come_after_empty_cells(tmp_path, blank):
    path = write(tmp_path, blank + "a,b,y\n" + "1,2,u\n,,\n3,4,v\n" * 5)
    found = survey(open_table(path), "y")
    assert found.classes.tolist() == ["u", "v"]
    assert found.codes.tolist() == [0, UNLABELLED, 1] * 5
    assert found.features.kinds == {"a": "number", "b": "number"}
    assert found.features.read(found.table, np.arange(2))["a"].tolist()[0] == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path, "größe,y\n" + "1,ä\n2,ö\n" * 5, encoding=encoding)
    name = "utf-8" if encoding == "utf-8-sig" else encoding
    for spelled in (name, name.replace("-", "_"), name.replace("-", "")):
        found = survey(open_table(path, spelled), "y")
        assert found.classes.tolist() == ["ä", "ö"]
        assert list(found.features.kinds) == ["größe"]


def test_compressed(tmp_path, frame):
    path = tmp_path / "t.csv.gz"
    frame.to_csv(path, index=False)
    assert survey(open_table(path), "y", "name").codes.tolist() == (frame["y"] == "yes").tolist()


@pytest.mark.parametrize("cells", [10, 100, 100_000])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_chunks_do_not_matter(tmp_path, frame, monkeypatch, cells, kind):
    monkeypatch.setattr(tables, "CELLS", cells)
    monkeypatch.setattr(tables, "chunk_rows", lambda n: max(cells // n, 1))
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    found = survey(open_table(path), "y", "name")
    rows = np.array([0, 7, 8, 31, 59])
    X = found.features.read(found.table, rows)
    assert found.codes.tolist() == (frame["y"] == "yes").tolist()
    np.testing.assert_array_equal(X["size"], frame["size"][rows].astype("float32"))
    assert X["kind"].tolist() == frame["kind"][rows].tolist()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_chunk_is_alive_at_a_time(tmp_path, frame, monkeypatch, kind):
    """So that memory does not grow with the file."""
    path = tmp_path / f"t.{kind}"
    big = pd.concat([frame] * 50, ignore_index=True)
    big.to_csv(path, index=False) if kind == "csv" else big.to_parquet(path)
    table = open_table(path)
    monkeypatch.setattr(tables, "chunk_rows", lambda n: 100)
    chunks, alive, read = [], [], type(table).chunks

    def counted(self, *args, **kwargs):
        for chunk in read(self, *args, **kwargs):
            assert len(chunk) <= 100
            alive.append(sum(other() is not None for other in chunks))
            chunks.append(weakref.ref(chunk))
            yield chunk
            del chunk

    monkeypatch.setattr(type(table), "chunks", counted)
    found = survey(table, "y")
    found.features.read(table, np.arange(0, 3000, 7))
    assert len(alive) == 60
    assert max(alive) <= 1  # the last one, whose name is bound until the next is there


def test_labels_and_ids_are_text_as_in_the_file(tmp_path):
    path = write(tmp_path, "id,a,y\n007,1,01\n008,2,NA\n009,3, 01 \n010,4,NA\n011,5,\n")
    found = survey(open_table(path), "y", "id")
    assert found.classes.tolist() == ["01", "NA"]
    assert found.codes.tolist() == [0, 1, 0, 1, UNLABELLED]
    assert list(found.ids) == ["007", "008", "009", "010", "011"]
    assert any("'NA' is taken for a class" in note for note in found.notes)


def test_a_cell_that_is_no_number_is_missing(tmp_path):
    numbers = "".join(f"{i},{i % 2},x\n" for i in range(30))
    path = write(tmp_path, f"a,y,z\n{numbers}broken,1,x\n?,0,x\ninf,1,x\n")
    found = survey(open_table(path), "y")
    assert found.features.kinds == {"a": "number", "z": "text"}
    assert any("'broken'" in note for note in found.notes)
    assert any("1 infinite" in note for note in found.notes)
    X = found.features.read(found.table, np.arange(33))
    assert X["a"].isna().tolist() == [False] * 30 + [True] * 3


@pytest.mark.parametrize("n_rows", [3, 33])
def test_a_truth_value_is_no_number_whatever_is_beside_it(tmp_path, monkeypatch, n_rows):
    monkeypatch.setattr(tables, "chunk_rows", lambda n: n_rows)
    numbers = "".join(f"{i},{i % 2}\n" for i in range(30))
    path = write(tmp_path, f"a,y\n{numbers}True,1\nFalse,0\nTrue,1\n")
    found = survey(open_table(path), "y")
    assert found.features.kinds == {"a": "number"}
    assert any("'True'" in note for note in found.notes)
    X = found.features.read(found.table, np.arange(33))
    assert X["a"].isna().tolist() == [False] * 30 + [True] * 3


@pytest.mark.parametrize("n_chunks", [1, 4])
def test_kinds_of_many_rows(n_chunks):
    n = 3 * ENOUGH
    frame = pd.DataFrame(
        {"number": np.arange(n) / 7, "text": np.array(["a", "1"])[np.arange(n) % 2]}
    )
    kinds = Kinds(list(frame))
    for chunk in np.array_split(np.arange(n), n_chunks):
        kinds.see(frame.iloc[chunk])
    features, notes = kinds.features()
    assert features.kinds == {"number": "number", "text": "text"}
    assert notes == []


def test_useless_columns_are_dropped_with_a_reason():
    n = 40
    X = pd.DataFrame(
        {
            "constant": np.float32(1),
            "empty": np.float32(np.nan),
            "partly": np.where(np.arange(n) % 2, np.float32(1), np.float32(np.nan)),
            "counter": np.arange(n, dtype=np.float32) + 5,
            "unique": pd.Categorical([f"v{i}" for i in range(n)]),
            "good": pd.Categorical(["a", "b"] * (n // 2)),
        }
    )
    kinds = dict.fromkeys(X.columns, "number") | {"unique": "text", "good": "text"}
    features, dropped = Features(kinds).useful(X, np.arange(n))
    assert list(features.kinds) == ["partly", "good"]
    assert dropped["constant"] == "it is the same in all rows"
    assert dropped["empty"] == "it is empty"
    assert dropped["counter"] == "it counts the rows"
    assert "40 values" in dropped["unique"]


def test_parquet_types(tmp_path):
    import datetime
    import decimal

    n = 20
    day = [datetime.date(2024, 1, 1 + i) for i in range(n)]
    table = pa.table(
        {
            "day": pa.array(day),
            "at": pa.array([datetime.datetime.combine(d, datetime.time()) for d in day]),
            "price": pa.array([decimal.Decimal(i) for i in range(n)]),
            "flag": pa.array([True, None] * (n // 2)),
            "kind": pa.array(["a", "b"] * (n // 2)).dictionary_encode(),
            "list": pa.array([[1]] * n),
            "y": pa.array([1.0, 2.0] * (n // 2)),
        }
    )
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    found = survey(open_table(path), "y")
    text = {"flag", "kind"}
    assert found.features.kinds == {
        name: "text" if name in text else "number" for name in table.column_names[:5]
    }
    assert any("'list'" in note for note in found.notes)
    assert len(found.classes) == 2
    X = found.features.read(found.table, np.arange(n))
    assert np.diff(X["day"]).tolist() == [1] * (n - 1)
    assert X["price"].tolist() == list(range(n))


def test_truth_values_are_one_category_in_both_formats(tmp_path):
    frame = pd.DataFrame({"flag": [True, False, None] * 8, "a": range(24), "y": list("uv") * 12})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.astype({"flag": "boolean"}).to_parquet(tmp_path / "t.parquet")
    read = []
    for name in ("t.csv", "t.parquet"):
        found = survey(open_table(tmp_path / name), "y")
        assert found.features.kinds == {"flag": "text", "a": "number"}
        read.append(found.features.read(found.table, np.arange(24))["flag"])
    assert read[0].cat.categories.tolist() == read[1].cat.categories.tolist() == ["False", "True"]
    assert (read[0].cat.codes == read[1].cat.codes).all()


def test_sample_keeps_every_class(tmp_path):
    labels = ["common"] * 500 + ["rare"] * 3 + ["scarce"] * 8 + [""] * 5
    path = write(tmp_path, "a,y\n" + "".join(f"{i * 7 % 13},{y}\n" for i, y in enumerate(labels)))
    found = survey(open_table(path), "y")
    rows = found.sample(50, seed=0)
    assert len(rows) == 50
    assert (np.diff(rows) > 0).all()
    count = np.bincount(found.codes[rows], minlength=3)
    assert count[1] == 3  # all there are
    assert count[2] >= 5
    np.testing.assert_array_equal(rows, found.sample(50, seed=0))
    assert rows.tolist() != found.sample(50, seed=1).tolist()
    np.testing.assert_array_equal(found.sample(1000, seed=0), np.arange(511))
    with pytest.raises(InputError, match="at least 13"):
        found.sample(12, seed=0)
    assert found.unlabelled(5, seed=0).tolist() == list(range(511, 516))
    drawn = [found.unlabelled(2, seed).tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


NOT_TABLES = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n", "but empty"),
    "html": (b"\n<!doctype html><table>", "but HTML"),
    "json": (b'{"a": 1}', "but JSON"),
    "excel": (b"PK\x03\x04rest", "Excel"),
    "binary": (b"abc\0\1\2", "but binary"),
    "header only": (b"a,b,y\n", "no rows"),
    "no utf-8": ("a,y\nä,1\n".encode("cp1252"), "--encoding"),
    "cells too many": (b"a,y\n1,2,3\n4,5,6\n", "more cells"),
    "some cells too many": (b"a,y\n1,2\n4,5,6\n", "not a table"),
    "columns twice": (b"a,a,y\n1,2,3\n", "'a' more than once"),
    "broken parquet": (b"PAR1 and no more", "not a whole Parquet file"),
    "broken gzip": (b"\x1f\x8bnothing", "does not end in .gz"),
    "one class": (b"a,y\n1,x\n2,x\n3,x\n4,\n", "one class only, 'x'"),
    "no label": (b"a,y\n1,\n2,\n", "empty in all 2 rows"),
    "too many classes": (
        b"a,y\n" + b"".join(b"1,%d\n" % (i // 3) for i in range(3003)),
        "more than 1,000 different values",
    ),
    "numbers for labels": (b"a,y\n1,1.5\n2,2.5\n3,3.5\n", "they are no classes"),
}


@pytest.mark.parametrize("what", NOT_TABLES)
def test_what_is_no_table_is_refused(tmp_path, what):
    content, message = NOT_TABLES[what]
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message):
        survey(open_table(path), "y")


def test_a_row_with_too_many_cells_is_refused_whichever_columns_are_read(tmp_path):
    table = open_table(write(tmp_path, "a,b,c\n1,2,3\n4,5,6,7\n"))
    with pytest.raises(InputError, match="not a table"):
        list(table.chunks(["a", "b"]))


def test_a_missing_file_or_column_names_the_closest(tmp_path, frame):
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=r"did you mean 'table.csv'"):
        open_table(tmp_path / "tabel.csv")
    with pytest.raises(InputError, match="is a folder"):
        open_table(tmp_path)
    with pytest.raises(InputError, match=r"'sise' for --label.*did you mean 'size'"):
        survey(open_table(path), "sise")
    with pytest.raises(InputError, match=r"'nme' for --id.*did you mean 'name'"):
        survey(open_table(path), "y", "nme")
    with pytest.raises(InputError, match="for --drop"):
        survey(open_table(path), "y", drop=("nme",))


def test_an_id_is_there_once(tmp_path, frame):
    path = tmp_path / "t.csv"
    frame.assign(name=["r0", "r1", "r0", *frame["name"][3:]]).to_csv(path, index=False)
    with pytest.raises(InputError, match="'r0' is in rows 1 and 3, and 1 rows"):
        survey(open_table(path), "y", "name")
    frame.assign(name=["r0", None, *frame["name"][2:]]).to_csv(path, index=False)
    with pytest.raises(InputError, match="empty in 1 rows, the first is row 2"):
        survey(open_table(path), "y", "name")


def test_compressed_by_half(tmp_path, frame):
    path = write(tmp_path, gzip.compress(frame.to_csv(index=False).encode() * 50)[:-40], "t.csv.gz")
    with pytest.raises(InputError, match="is not a table"):
        survey(open_table(path), "y")


def test_outputs_that_must_not_be_written(tmp_path):
    table, other = tmp_path / "t.csv", tmp_path / "old.csv"
    table.write_text("a,y\n")
    other.touch()
    for force in (False, True):
        with pytest.raises(InputError, match="is an input"):
            check_outputs([table], [tmp_path / "." / "t.csv"], force=force)
        with pytest.raises(InputError, match="twice"):
            check_outputs([table], [tmp_path / "a", tmp_path / "a"], force=force)
        with pytest.raises(InputError, match="no folder"):
            check_outputs([table], [tmp_path / "none" / "a"], force=force)
    with pytest.raises(InputError, match="--force"):
        check_outputs([table], [other], force=False)
    check_outputs([table], [other], force=True)
    for force in (False, True):
        with pytest.raises(InputError, match=r"there is no file .*odl.csv.*did you mean 'old.csv'"):
            check_outputs([tmp_path / "odl.csv"], [other], force=force)
    link = tmp_path / "link.csv"
    link.symlink_to(table)
    with pytest.raises(InputError, match="is an input"):
        check_outputs([table], [link], force=True)


def test_outputs_are_written_whole_or_not_at_all(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before")

    def fail():
        with written(old, new) as temporary:
            for path in temporary:
                path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old", "before")]
