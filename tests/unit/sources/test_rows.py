import csv
import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.sources import Columns
from pipeline.errors import UserError
from pipeline.ledger import Unusable
from pipeline.sources import members, rows
from pipeline.sources.columns import Needed
from pipeline.sources.sample import MAX_TEXT_BYTES

ROWS = [{"url": f"http://x.org/{number}", "caption": f'the "{number}", ü\U0001f98a'} for number in range(5)]
PLAIN = Needed.of(Columns(), "url")


def written(kind, values=ROWS):
    """A table as bytes."""
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(values), buffer)
        return buffer.getvalue()
    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps(row) + "\n" for row in values).encode()
    if kind == "tsv":
        return "".join("\t".join(cells) + "\n" for cells in [values[0], *(row.values() for row in values)]).encode()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, values[0])
    writer.writeheader()
    writer.writerows(values)
    return buffer.getvalue().encode()


@pytest.fixture
def read(tmp_path):
    """Rows of a file of this name and content."""

    def go(name, data, needed=PLAIN, header=None):
        path = tmp_path / name
        path.write_bytes(data)
        return list(rows.read(path, needed, header))

    return go


def packed(name, data):
    """As the name says: .gz, .tgz, .zip or a plain tar with the member data/table.KIND."""
    kind, _, pack = name.partition(".")
    if pack == "gz":
        return f"table.{kind}.gz", gzip.compress(data)
    buffer = io.BytesIO()
    if pack == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.md", "about")
            archive.writestr(f"data/table.{kind}", data)
    else:
        with tarfile.open(fileobj=buffer, mode="w" if pack == "tar" else "w:gz") as tar:
            info = tarfile.TarInfo(f"data/table.{kind}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return f"table.{kind}.{pack}", buffer.getvalue()


KINDS = ["parquet", "csv", "tsv", "jsonl", "ndjson"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_holds_the_same_rows(read, kind):
    found = read(f"table.{kind}", written(kind))
    assert [row.values for row in found] == ROWS
    assert [row.fault for row in found] == [None] * 5
    assert found[0].place.startswith(f"table.{kind}:")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", ["gz", "tar", "tgz", "tar.gz", "zip"])
def test_every_format_in_every_packing(read, kind, pack):
    assert [row.values for row in read(*packed(f"{kind}.{pack}", written(kind)))] == ROWS


def test_a_gz_within_an_archive(read, make):
    data = make.tar([("a.jsonl.gz", gzip.compress(written("jsonl"))), ("b.csv", written("csv"))])
    assert [row.values for row in read("table.tar", data)] == 2 * ROWS


def test_a_tar_of_texts_is_a_row_an_image(read, make):
    data = make.tar([("./sa_1.txt", b"one\n"), ("deep/sa_2.txt", b"\xff"), ("big.txt", b"x" * (MAX_TEXT_BYTES + 1))], "w:gz")
    found = read("SA1B_caption.tar.gz", data)
    assert [(row.values, row.is_text, bool(row.fault)) for row in found] == [
        ({"id": "sa_1", "caption": b"one\n"}, True, False),
        ({"id": "sa_2", "caption": b"\xff"}, True, False),
        ({}, True, True),
    ]


def test_a_member_that_is_unsafe_is_a_row_with_a_fault(read, make):
    found = read("t.tar", make.tar([("../a.txt", b"1"), ("b.txt", b"2")]))
    assert [row.fault is None for row in found] == [False, True]


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a.tar", None, "holds no rows"),
        ("a.txt", b"x", "not a table that is known here"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("a.parquet", written("parquet").replace(b"caption", b"\x80aption"), "not a readable Parquet file"),
        ("a.csv", "url,caption\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_what_is_no_table_is_a_users_mistake(read, make, name, data, words):
    with pytest.raises(UserError, match=words):
        read(name, make.tar([("a.jpg", b"1")]) if data is None else data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_is_named_with_those_that_are_there(read, kind):
    needed = Needed.of(Columns(url="link", captions=["text", "title"], license="rights"), "url")
    with pytest.raises(UserError, match=r"no column link, rights, text or title \(there are: url, caption\)"):
        read(f"table.{kind}", written(kind), needed)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_dots_name_nested_columns(read, kind):
    values = [{"a": {"b": {"c": "x"}}, "a.b": "dotted", "n": {"m": None}}, {"a": None, "a.b": None, "n": {"m": 1}}]
    found = read(f"t.{kind}", written(kind, values), Needed(("a.b.c", "a.b", "n.m"), ()))
    assert len(found) == 2
    with pytest.raises(UserError, match=r"no column a\.b\.d"):
        read(f"t.{kind}", written(kind, values), Needed(("a.b.d",), ()))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_header_from_the_config_makes_the_first_line_data(read, kind):
    data = written(kind).split(b"\n", 1)[1]
    found = read(f"t.{kind}", data, header=["url", "caption"])
    assert [row.values for row in found] == ROWS
    assert found[0].place == f"t.{kind}:1"


def test_a_tsv_has_no_quotes(read):
    found = read("t.tsv", b'u1\t"open\nu2\tsays "hi"\n', header=["url", "caption"])
    assert [row.values["caption"] for row in found] == ['"open', 'says "hi"']


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_crlf_blank_lines_and_a_missing_end_are_no_fault(read, kind):
    data = written(kind).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    blank = data.replace(b"\r\n", b"\r\n\r\n")
    assert [row.values for row in read(f"t.{kind}", b"\xef\xbb\xbf" + blank.removesuffix(b"\r\n\r\n"))] == ROWS


def test_quoted_cells_hold_commas_quotes_and_lines(read):
    found = read("t.csv", b'url,caption\r\nu1,"a, ""b""\r\nc"\r\nu2,d\r\n')
    assert [row.values["caption"] for row in found] == ['a, "b"\r\nc', "d"]
    assert [row.place for row in found] == ["t.csv:2", "t.csv:4"]


def test_empty_and_missing_cells_are_none(read):
    found = read("t.csv", b'url,caption\nu1,\nu2\n"",c\n')
    assert [row.values for row in found] == [{"url": "u1", "caption": None}, {"url": "u2"}, {"url": None, "caption": "c"}]


@pytest.mark.parametrize(
    ("kind", "line", "fault"),
    [
        ("jsonl", b"{cut\n", "not JSON"),
        ("jsonl", b"[1]\n", "no object with fields"),
        ("jsonl", b"[" * 100_000 + b"\n", "not JSON"),
        ("jsonl", b"9" * 10_000 + b"\n", "not JSON"),
        ("jsonl", b" " * (rows.MAX_LINE_BYTES + 9) + b"\n", "line too long"),
        ("csv", b"u,an unquoted, comma\n", "more cells than columns"),
        ("csv", b'u,"x"y\n', "not CSV"),
        ("csv", b"u," + b"x" * (csv.field_size_limit() + 1) + b"\n", "not CSV"),
        ("csv", b"x" * (rows.MAX_LINE_BYTES + 9) + b"\n", "line too long"),
        ("tsv", b"u\ta\tb\n", "more cells than columns"),
        ("tsv", b"x" * (rows.MAX_LINE_BYTES + 9) + b"\n", "line too long"),
    ],
)
def test_a_line_that_is_no_row_costs_no_other(read, kind, line, fault):
    first, *others = written(kind).splitlines(keepends=True)
    found = read(f"t.{kind}", b"".join([first, others[0], line, *others[1:]]))
    assert [row.fault for row in found if row.fault] == [fault]
    assert [row.values for row in found if not row.fault] == ROWS
    assert next(row.place for row in found if row.fault) == f"t.{kind}:3"


def test_a_quote_that_nothing_closes_names_its_line(read):
    lines = b"".join(b"u%d,caption\n" % number for number in range(100_000))
    with pytest.raises(UserError, match=r"t\.csv:2: a quote opens here"):
        read("t.csv", b'url,caption\nu,"open\n' + lines)


def test_a_quote_open_at_the_end_is_one_bad_row(read):
    found = read("t.csv", b'url,caption\nu1,a\nu2,"open\nu3,b\n')
    assert [(row.place, row.fault) for row in found] == [("t.csv:2", None), ("t.csv:3", "not CSV")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_bytes_that_are_not_utf8_stay_in_their_cell(read, kind):
    found = read(f"t.{kind}", written(kind, [*ROWS, {"url": "u", "caption": "a MARK"}, *ROWS]).replace(b"MARK", b"\xff"))
    assert [row.fault for row in found] == [None] * 11
    assert found[5].values == {"url": "u", "caption": "a \udcff"}
    assert [row.values for row in found if row is not found[5]] == 2 * ROWS


def test_a_nul_in_a_csv_is_a_letter(read):
    assert read("t.csv", b"url,caption\nu,a\0b\n")[0].values["caption"] == "a\0b"


def test_text_of_a_parquet_that_is_not_utf8_comes_as_bytes(read):
    bad = pa.array([b"ok", b"\xff"]).view(pa.string())
    nested = pa.StructArray.from_arrays([bad], ["x"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"url": ["a", "b"], "caption": bad, "deep": nested, "many": lists}), buffer)
    found = read("t.parquet", buffer.getvalue(), Needed(("url", "caption", "deep.x", "many"), ()))
    assert [row.values["caption"] for row in found] == [b"ok", b"\xff"]
    assert found[1].values["deep"] == {"x": b"\xff"}
    assert found[1].values["many"] == [b"\xff"]


def test_only_the_columns_that_are_needed_are_read(read):
    values = [row | {"image": "x" * 1000, "deep": {"a": "1", "b": "2"}} for row in ROWS]
    found = read("t.parquet", written("parquet", values), Needed(("url", "deep.a"), ()))
    assert found[0].values == {"url": ROWS[0]["url"], "deep": {"a": "1"}}


@pytest.mark.parametrize("column", ["flat", "deep.x", "many"])
def test_a_parquet_that_repeats_a_huge_cell_is_stopped_before_it_is_in_memory(tmp_path, column):
    """20 MB once on disk are 40 GB in 2,000 rows."""
    huge, count = "x" * 20 * 2**20, 2000
    once = pa.DictionaryArray.from_arrays(pa.array([0] + [1] * (count - 1), pa.int32()), pa.array(["s", huge]))
    values = {
        "flat": once,
        "deep": pa.StructArray.from_arrays([once], ["x"]),
        "many": pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), once),
    }
    path = tmp_path / "t.parquet"
    with pq.ParquetWriter(path, pa.table(values).schema, dictionary_pagesize_limit=2**30) as writer:
        writer.write_table(pa.table(values))
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match="a cell of 20971520 bytes after row 0, the limit is 1048576"):
        list(rows.read(path, Needed((column,), ())))
    assert pa.total_allocated_bytes() - before < 2**28


def test_a_huge_cell_that_stands_once_is_stopped(read):
    with pytest.raises(UserError, match="after row 0"):
        read("t.parquet", written("parquet", [*ROWS, {"url": "u", "caption": "x" * (MAX_TEXT_BYTES + 1)}]))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_bomb_of_text_is_stopped(read, kind, monkeypatch):
    monkeypatch.setattr(members, "FREE_BYTES", 10**5)
    data = written(kind) + b"\n" * 10**7
    with pytest.raises(Unusable, match="too_large: decompresses to more than"):
        read(f"t.{kind}.gz", gzip.compress(data))


@pytest.mark.parametrize("name", ["jsonl.gz", "jsonl.tgz", "csv.gz"])
def test_a_cut_file_says_so(read, name):
    name, data = packed(name, written(name.partition(".")[0], 2000 * ROWS))
    with pytest.raises(Unusable, match="truncated_archive"):
        read(name, data[: len(data) // 2])
