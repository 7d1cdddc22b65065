"""A file read in blocks: the values and refusals of `parse_json`, wherever a piece of the file ends."""

import json
from pathlib import Path

import pytest

from mae_transfer.data import json_stream
from mae_transfer.data.json_stream import read_in_blocks
from mae_transfer.files import JSON, file_digest, parse_json

VALUES = [
    '{"rows": [{"a": 1}, {"b": [2.5, -1e5, true, null]}, "é\\"[{", 12345, []], "info": {"x": [{}]}, "n": 1234567}',
    ' \n{ "rows" :\t[ ] , "more" : [ 1 , 2 ] }\r\n',
    '{"rows": {"no": "list"}, "info": "[[[["}',
    '{"rows": [{"a": "}, {"}, {"b": [{"c": 1}, {"d": 2}]}, 3, {"e": "["}, {"f": {}}], "other": [{"g": 1}, {"h": 2}]}',
    "{}",
    "[1, 2, {}]",
    "12345678",
    '{"rows": [1.5e3, NaN, Infinity, 0]}',
    '{"rows": [{"a": "x:y", "b": ":z"}, {"a": "\\":"}, {"c": " : "}, {"d" : 1}, {"e"\n: 2}]}',
    '{"rows": [{"a": {"b": 1}}, {"a": {"b": {"c": 2}}}, {"a": [{"b": 1}]}, {}]}',
    '{"rows": [{"a": 18446744073709551616}, {"a": -0}, {"a": -0.0}, {"a": 1e400}, {"a": NaN}, {"a": 0.1e-7}, {}]}',
    '{"rows": [{"a": "]]}}", "b": [[1]]}, {"a": "\\"]", "b": [[1]]}, {"a": "[\\\\", "b": [[1]]}]}',
    '{"rows": [{"a": "\\ud800"}, {"a": "\\ud83d\\ude00"}, {"b": "\x7f"}]}',
]
WRONG = [
    "",
    '{"rows": [1, 2}',
    '{"rows": [1, 2]',
    '{"rows": [1, 2]} 3',
    '{"rows": [1 2]}',
    '{"rows": [{"a": 1, "a": 2}]}',
    '{"rows": [], "rows": []}',
    '{"info": 1, "info": 2}',
    '{"rows": [12e]}',
    '{"rows": [tru]}',
    '{"rows": [1,]}',
    '{"rows": [' + "[" * 200 + "]" * 200 + "]}",
    '{"info": ' + "[" * 101 + "]" * 101 + "}",
    '{"rows": [' + "9" * 1001 + "]}",
    '{"rows": [{"a": ' + "[" * 99 + "]" * 99 + '}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": "' + "}" * 99 + '", "b": ' + "[" * 99 + "]" * 99 + '}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": "' + "}" * 99 + '\\"", "b": ' + "[" * 99 + "]" * 99 + '}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": 1}, {"b": 2, "b": 3}, {"c": 1}]}',
    '{"rows": [{"a": 1}, {"b": {"c": 2, "c": 3}}, {"c": 1}]}',
    '{"rows": [{"a": 1, "\\u0061": 2}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a" : 1, "a"\n: 2}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a" : 1, "a": 2}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": 1, "a"\n: 2}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": ":", "b": " :", "a": 1}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": ' + "9" * 1001 + '}, {"b": 1}, {"c": 1}]}',
    '{"rows": [{"a": 1}, {"b": tru}, {"c": 1}, {"d": 1}]}',
    "{1: 2}",
    '{"rows": ["\t"]}',
]


@pytest.fixture(params=[1, 8, 4096])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE", request.param)
    monkeypatch.setattr(json_stream, "BLOCK", 2)


def read(path: Path) -> JSON:
    """The whole value, its list `rows` put together again."""
    rows: list[JSON] = []
    blocks: list[list[JSON]] = []

    def take(block: list[JSON]) -> None:
        rows.extend(block)
        blocks.append(block)

    value, sha256 = read_in_blocks(path, {"rows": take})
    assert sha256 == file_digest(path)
    return value | {"rows": rows} if blocks and isinstance(value, dict) else value


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
@pytest.mark.parametrize("text", VALUES)
def test_the_same_value(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(text.encode(encoding))
    assert repr(read(path)) == repr(parse_json(path.read_bytes())) or read(path) == parse_json(path.read_bytes())


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("text", [text.encode() for text in WRONG] + [b'{"rows": ["\xff"]}', b'\xef\xbb\xbf{"a"'])
def test_the_same_refusal(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(text)
    with pytest.raises(ValueError) as wanted:
        parse_json(text)
    with pytest.raises(ValueError) as found:
        read(path)
    assert str(found.value) == str(wanted.value)


def test_long_entries_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "TAIL", 16)
    monkeypatch.setattr(json_stream, "BLOCK", 1)
    path = tmp_path / "some.json"
    rows: list[JSON] = [{"a": [i] * 100} for i in range(200)]
    path.write_text(json.dumps({"rows": rows}))
    counts: list[int] = []
    read_in_blocks(path, {"rows": lambda block: counts.append(len(block))})
    assert sum(counts) == len(rows)
    assert max(counts) > 100


def test_lists_that_end_within_a_piece_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK", 1)
    rows: dict[str, JSON] = {key: [{key: i, "b": [i]} for i in range(1000)] for key in ("one", "two")}
    path = tmp_path / "some.json"
    path.write_text(json.dumps(rows))
    blocks: dict[str, list[list[JSON]]] = {key: [] for key in rows}
    value, _ = read_in_blocks(path, {key: found.append for key, found in blocks.items()})
    assert value == {}
    assert {key: [row for block in found for row in block] for key, found in blocks.items()} == rows
    assert max(map(len, blocks.values())) < 30
