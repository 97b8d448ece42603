import json

import pytest

from pipeline.errors import UserError
from pipeline.evaluate.geneval.prompts import Requirement, read_prompts

# Lines of the six kinds, as in the published file.
LINES = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "tv remote", "count": 1}], "prompt": "two"},
    {"tag": "counting", "include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}], "prompt": "3"},
    {"tag": "colors", "include": [{"class": "vase", "count": 1, "color": "pink"}], "prompt": "a photo of a pink vase"},
    {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["above", 0]}],
     "prompt": "a photo of a cat above a dog"},
    {"tag": "color_attr", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
]  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def go(text):
        file = tmp_path / "prompts.jsonl"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_prompts(file, "here")

    return go


def test_the_published_format(read):
    text = "\n".join(map(json.dumps, LINES)) + "\n\n"
    found = read(text)
    assert [row.tag for row in found.rows] == [line["tag"] for line in LINES]
    assert found.rows[4].include[1] == Requirement(name="cat", count=1, position=("above", 0))
    assert found.names == ["bench", "cat", "clock", "dog", "tv remote", "vase"]
    assert found.sha256 != read(text + "\n").sha256, "of the bytes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "style"}, "here: line 2: tag: Input should be 'single_object'"),
        ({"include": []}, "here: line 2: include: List should have at least 1 item"),
        ({"include": [{"class": "dog", "count": 0}]}, "here: line 2: include.0.count: Input should be greater than"),
        ({"include": [{"class": "dog", "count": 17}]}, "include.0.count: Input should be less than or equal to 16"),
        ({"include": [{"class": "dog", "count": "2"}]}, "include.0.count: Input should be a valid integer"),
        ({"include": [{"class": "dog", "count": 1, "color": "mauve"}]}, "include.0.color: Input should be 'red'"),
        ({"include": [{"class": "dog. cat", "count": 1}]}, "include.0.class: String should match pattern"),
        ({"include": [{"class": "dog", "count": 1, "place": 3}]}, "include.0.place: Extra inputs are not permitted"),
        ({"include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}, "include.0.position: 0 is no earlier entry"),
        ({"include": [{"class": "dog", "count": 1, "position": ["behind", 0]}]}, "include.0.position.0: Input should be"),
        ({"prompt": "x" * 2001}, "prompt: String should have at most 2000 characters"),
        ({"prompt": None}, "prompt: Input should be a valid string"),
    ],
)
def test_a_mistake_names_the_line_and_the_key(read, change, message):
    bad = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"} | change
    with pytest.raises(UserError) as error:
        read(f"{json.dumps(LINES[0])}\n{json.dumps(bad)}\n")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 prompts; it must have 1 to 100,000"),
        ("not json\n", "here: line 1: Invalid JSON"),
        ("[1, 2]\n", "here: line 1: Input should be an object"),
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b" " * (16 * 2**20 + 1), "a file of prompts has at most 16,777,216"),
    ],
)
def test_what_is_no_such_file(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text)
