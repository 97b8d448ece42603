import random

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.sources.sorting import sort_by_id


def tables(ids, size=7):
    rows = [{"id": name, "place": place} for place, name in enumerate(ids)]
    return [pa.Table.from_pylist(rows[at : at + size]) for at in range(0, len(rows), size)]


def expected(ids):
    return sorted({name: place for place, name in reversed(list(enumerate(ids)))}.items())


def result(found):
    return [(row["id"], row["place"]) for table in found for row in table.to_pylist()]


@given(
    ids=st.lists(st.text(alphabet="ab\u00fc\U0001f98a\u0001", max_size=4), max_size=200),
    run_bytes=st.sampled_from([1, 200, 1000, 10**6]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_come_in_order_and_of_an_id_the_first(tmp_path, ids, run_bytes):
    assert result(sort_by_id(tables(ids), tmp_path / "sort", run_bytes)) == expected(ids)
    assert not (tmp_path / "sort").exists()


def test_parts_are_of_the_size_of_a_run(tmp_path):
    ids = [f"{number:06d}" for number in range(20_000)]
    random.Random(0).shuffle(ids)
    whole = sum(table.nbytes for table in tables(ids, 500))
    found = list(sort_by_id(tables(ids, 500), tmp_path / "sort", whole // 5))
    assert result(found) == expected(ids)
    assert len(found) > 4
    assert max(table.nbytes for table in found) < whole // 2


def test_rows_of_one_id_alone_fit_in_memory_too(tmp_path):
    found = list(sort_by_id(tables(["same"] * 5000, 100), tmp_path / "sort", 2000))
    assert result(found) == [("same", 0)]


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "000000.arrow").write_bytes(b"cut")
    assert result(sort_by_id(tables(["b", "a"]), tmp_path / "sort")) == [("a", 1), ("b", 0)]


def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        list(sort_by_id(tables(["a"]), tmp_path / "file" / "sort"))
