"""Every JSON value of a file is read, whatever the lines, or the line is named at which it is no JSON."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import records
from finetune.json_documents import documents, first_line
from finetune.records import printable, readable
from spanbert.errors import UserError

FILE = Path("f.json")


def values(text: str) -> list[tuple[int, object]]:
    stream = io.StringIO(text, newline="\n")
    found = list(documents(FILE, *first_line(stream), stream))
    return [(one.line, one.broken.reason if one.broken else one.value) for one in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\ufeff\n", []),
        ('{"data": 1}\n{"data": 2}\n', [(1, {"data": 1}), (2, {"data": 2})]),
        ('{"data": 1}{"data": 2}', [(1, {"data": 1}), (1, {"data": 2})]),
        ('{\n"data": 1\n}\n\n{\n"data": 2\n}', [(1, {"data": 1}), (5, {"data": 2})]),
        ('{"data": 1}\n{\n"data": 2\n}', [(1, {"data": 1}), (2, {"data": 2})]),
        ('{\n"data": 1\n}\ufeff{"data": 2}', [(1, {"data": 1}), (3, {"data": 2})]),
        ("[\n1,\n2\n]", [(1, [1, 2])]),
        ('\n{"a": 1}\n\n\ufeff{"a": 2}\r\n', [(2, {"a": 1}), (4, {"a": 2})]),
        ('{"a": 1}\nx\n{"a": 2}', [(1, {"a": 1}), (2, "line is not valid JSON"), (3, {"a": 2})]),
        ('{"a": \n{"a": 2}\n', [(1, "line is not valid JSON"), (2, {"a": 2})]),
        ('{"a": 1}\n{"a": 1} {}\n', [(1, {"a": 1}), (2, "line is not valid JSON")]),
        ('{"a": 1}\n' + "[" * 100_000, [(1, {"a": 1}), (2, "line is not valid JSON")]),
        ('{"a": 1}\n{"a": ' + "1" * 5000 + "}", [(1, {"a": 1}), (2, "line is not valid JSON")]),
    ],
)
def test_every_value_is_read_with_its_line(text: str, expected: list[tuple[int, object]]) -> None:
    """Two SQuAD files joined by `cat` were read as the first alone: 2 questions of 502, and no word about it."""
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"data": 1}\ngarbage', 2, "Expecting value"),
        ('{"data": 1} garbage', 1, "Expecting value"),
        ('{"data": 1}\n\n{"data": 1,\n"b" 3}', 4, "Expecting ':' delimiter"),
        ('\n{\n"data": [\n', 4, "Expecting value"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"data": ' + "1" * 5000 + "}", 1, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_named_by_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(UserError, match=rf"^f\.json: line {line}: not valid JSON: .*{reason}"):
        values(text)


def test_a_gzip_file_that_unpacks_to_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 200 kB whose one line unpacks to 200 MB, which would all be in memory before it is no JSON."""
    path = tmp_path / "bomb.json.gz"
    path.write_bytes(gzip.compress(b" " * 3_000_000))
    monkeypatch.setattr(records, "LARGEST_UNPACKED", 2_999_999)
    with (
        pytest.raises(UserError, match=r"bomb\.json\.gz: unpacks to more than 2,999,999 bytes.*gunzip"),
        readable(path),
    ):
        pass
    monkeypatch.setattr(records, "LARGEST_UNPACKED", 3_000_000)
    with readable(path) as stream:
        assert len(stream.read()) == 3_000_000


def test_refusing_such_a_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b" " * 100_000_000))
    program = (
        "import sys, tracemalloc\n"
        "from pathlib import Path\n"
        "from finetune import records\n"
        "from finetune.tasks.qa.records import read_questions\n"
        "from spanbert.errors import UserError\n"
        "records.LARGEST_UNPACKED = 90_000_000\n"
        "tracemalloc.start()\n"
        "try:\n"
        "    read_questions(Path(sys.argv[1]), 'train')\n"
        "except UserError:\n"
        "    print(tracemalloc.get_traced_memory()[1])\n"
    )
    root = Path(records.__file__).parents[1]
    arguments = [sys.executable, "-c", program, str(tmp_path / "bomb.json.gz")]
    peak = int(subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True).stdout)
    assert peak < 10_000_000


def test_messages_are_one_printable_line() -> None:
    """A title of half a surrogate pair ended in a traceback where the message about it was printed or written."""
    assert printable("a\nb\ud800\x1b[31m\udcff“ü”") == "a\\nb\\ud800\\x1b[31m\\udcff“ü”"
    assert len(printable("x" * 5000)) == 1000
    json.dumps(printable("\ud800")).encode()
