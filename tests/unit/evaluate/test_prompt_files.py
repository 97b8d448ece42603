import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.running import Downloads
from pipeline.download.files import Files
from pipeline.download.retry import Retry
from pipeline.errors import UserError
from pipeline.evaluate.prompt_files import Named, fetch, read_named, spread
from tests.web import HOST, Site

PARTI = (
    'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tmany meanings\n"G I G G L E" painted on a wall\tArts\tWriting\t\n'
)
DRAWBENCH = '"Prompts","Category"\n"A red car, fast.","Colors"\n"A ""red""\nsign",Text\n,Text\n'


@pytest.fixture
def read(tmp_path):
    def go(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return read_named(tmp_path / name, name)

    return go


def test_tables_of_tabs_keep_quotes(read):
    assert read("parti.tsv", PARTI) == [Named("bond", "Abstract"), Named('"G I G G L E" painted on a wall', "Arts")]


@pytest.mark.parametrize("name", ["drawbench.csv", "tq"])
def test_tables_of_commas_read_quotes(read, name):
    assert read(name, DRAWBENCH) == [Named("A red car, fast.", "Colors"), Named('A "red"\nsign', "Text")]


def test_plain_text_has_a_prompt_a_line(read):
    assert read("mine.txt", "\ufeffa cat\n\n  a dog  \n") == [Named("a cat", ""), Named("a dog", "")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "Text,Category\na,b\n", "a.csv: its first line names no column Prompt or Prompts"),
        ("a.tsv", "Prompt\n", "a.tsv: 0 prompts"),
        ("a.txt", "a" * 2001, "a.txt: prompt 1 has 2,001 letters; at most 2,000"),
        ("a.csv", "Prompt\n" + '"' + "a" * 200_000 + '"', "a.csv: line 2: field larger than field limit"),
    ],
)
def test_what_is_no_file_of_prompts(read, name, text, message):
    with pytest.raises(UserError, match=message):
        read(name, text)


@pytest.fixture
def files(tmp_path):
    allowed = Downloads(allow_hosts=[HOST], attempts=1)
    return Files(tmp_path / "downloads", allowed, Retry(first=0.01, longest=0.05))


def test_a_file_of_the_web_is_fetched_and_its_hash_checked(files):
    with Site() as site:
        url, right = site.add("/prompts.txt", b"a cat\n"), hashlib.sha256(b"a cat\n").hexdigest()
        assert read_named(fetch("key", url, files, right), url) == [Named("a cat", "")]
        with pytest.raises(UserError, match=r"^key: http.*prompts.txt: .*0000"):
            fetch("key", url, files, "0" * 64)
        with pytest.raises(UserError, match=r"^key: http.*missing.txt: .*404"):
            fetch("key", site.url("/missing.txt"), files)


def test_a_file_that_is_not_there(files, tmp_path):
    with pytest.raises(UserError, match=r"^key: .*none.txt: .*not there"):
        fetch("key", str(tmp_path / "none.txt"), files)


def test_spread_takes_the_first_of_every_group_in_turn():
    assert spread("aaabbc", 4) == [0, 1, 3, 5] and spread("aaabbc", 3) == [0, 3, 5]
    assert spread("aab", None) == spread("aab", 9) == [0, 1, 2]


@given(st.lists(st.sampled_from("abc")), st.integers(1, 12))
def test_spread_leaves_no_group_out_that_has_a_place(groups, limit):
    chosen = spread(groups, limit)
    assert len(chosen) == min(limit, len(groups)) and chosen == sorted(set(chosen))
    shares = [sum(groups[i] == name for i in chosen) for name in set(groups)]
    rest = [groups.count(name) for name in set(groups)]
    assert all(a >= b - 1 or a == whole for a, whole in zip(shares, rest, strict=True) for b in shares)
