"""A large JSON file read piece by piece: its long lists are handed over in blocks, so that none is in memory whole."""

import codecs
import gc
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from pydantic_core import from_json

from mae_transfer.files import DEPTH, DIGITS, JSON, check_depth, json_decoder, parse_json

BLOCK = 10_000
"""Entries of a list that are handed over at once, or as many objects as are read at once."""
PIECE = 2**18
"""Bytes that are read at once."""
TAIL = 2**14
"""Characters at the end of what is read in which the last entry of a list is looked for first."""
_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
_QUOTE = 2
_MARKED = b'[{]}"'
_MARKS = bytes.maketrans(_MARKED, b"\x01\x01\xff\xff\x02")
_OTHERS = bytes(set(range(256)) - set(_MARKED))
_BEFORE_COLON = np.isin(np.arange(256), list(b'" \t\n\r'))
_EVERY = 15
_LONG = b"0" * (DIGITS // _EVERY)
"""Every 15th character of a number that is too long, at least."""
_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")

Take = Callable[[list[JSON]], None]


def read_in_blocks(path: Path, take: Mapping[str, Take]) -> tuple[JSON, str]:
    """The value of a JSON file without the lists of the keys in `take`, and the SHA-256 of its bytes.

    Args:
        take: key of the outermost object -> what is called with the entries of its list, some at a time and in their
            order. A value that is no list stays.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `parse_json`; entries before what is wrong have been handed over then.
    """
    try:
        with path.open("rb") as file, _uncollected():
            window = _Window(file)
            value = _outermost(window, take)
            window.finish()
            return value, window.digest.hexdigest()
    except ValueError:
        parse_json(path.read_bytes())  # says what is wrong, and where in the file
        raise


class _Window:
    """The part of a text that is looked at, from `at` on."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = hashlib.sha256()
        self.text, self.at, self.ended = "", 0, False
        self._until = self._beyond = 0
        self._file, self._decode = file, json_decoder().raw_decode
        head = file.read(4)
        self._decoder = codecs.getincrementaldecoder(json.detect_encoding(head))()
        self._add(head)
        self.more()
        self.text = self.text.removeprefix("\ufeff")

    def _add(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.text = self.text[self.at :] + self._decoder.decode(piece, final=not piece)
        self.at = 0

    def more(self) -> None:
        """Read on; what is left of a value that is longer than a piece doubles, so that it is tried few times."""
        piece = self._file.read(max(PIECE, len(self.text) - self.at))
        self._add(piece)
        self.ended = not piece
        self._until = self._beyond = len(self.text)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def skip(self, allowed: str) -> str:
        """Step over the next character, which is one of `allowed`."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(f"{allowed!r} is expected")
        self.at += 1
        return found

    def value(self, depth: int) -> JSON:
        """The value that begins here, at most `depth` levels deep."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self.text, self.at)
            except RecursionError:
                raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                # A number may go on in the next piece.
                if self.ended or self.text[end : end + 1] in {",", "}", "]", ":", " ", "\n", "\r", "\t"}:
                    break
            self.more()
        if self.text.count("[", self.at, end) + self.text.count("{", self.at, end) > depth:
            check_depth(value, depth)
        self.at = end
        return value

    def enter(self) -> None:
        """Step into a list."""
        self.skip("[")
        self._until = self._beyond = len(self.text)

    def objects(self) -> list[JSON]:
        """As many of the objects of a list as have their end and a successor here, all at once, which is faster; none
        where that does not work out."""
        if len(self.text) - self.at < PIECE // 2 and not self.ended:
            self.more()
        tail = TAIL
        while self._until > self.at:
            between = list(_BETWEEN.finditer(self.text, max(self.at, self._until - tail), self._until))
            if not between and self._until - tail <= self.at:
                break
            if not between:
                tail *= 8
                continue
            first, last = self.at, between[-1].start() + 1
            if value := self._list(f"[{self.text[first:last]}]"):
                self.at = between[-1].end()
                self._until = (last + self._beyond) // 2
                return value
            self._beyond = last  # the list ends before
            self._until = (first + last) // 2
        return []

    def _list(self, text: str) -> list[JSON]:
        """The value of a text that is meant to be a list; none where it is no JSON."""
        try:
            content = text.encode()
            value: list[JSON] = from_json(content, cache_strings="keys")
            if not _is_strict(value, content):
                value = self._decode(text, 0)[0]
                check_depth(value, DEPTH - 1)
        except (ValueError, RecursionError):
            return []
        return value

    def finish(self) -> None:
        if self.peek():
            raise ValueError("there is more after the end")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through lists that are there, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_strict(value: list[JSON], content: bytes) -> bool:
    """Whether `parse_json` surely takes a text that pydantic's parser has read as a list, to the same value.

    That parser refuses all that Python's does. But of a key that is twice in an object it takes the last, and it takes
    deeper nesting and longer numbers.
    """
    if set(map(type, value)) != {dict}:
        return False
    rows = cast("list[dict[str, JSON]]", value)
    characters = np.frombuffer(content, dtype=np.uint8)
    colons = np.flatnonzero(characters == ord(":"))
    most = _BEFORE_COLON[characters[colons - 1]].sum()  # keys, and what looks like their ends within strings
    keys = sum(map(len, rows))
    if keys != most:
        keys += sum(len(inner) for row in rows for inner in row.values() if type(inner) is dict)
    if keys != most or _LONG in content[::_EVERY].translate(_AS_ZEROS):
        return False
    if content.count(b"[") + content.count(b"{") <= 1 + len(rows):
        return True
    if b"\\" in content and (b'\\"' in content or b"\\\\" in content):  # a quote that ends no string, perhaps
        return False
    marks = np.frombuffer(content.translate(_MARKS, _OTHERS), dtype=np.int8)
    quotes = marks == _QUOTE
    outside = np.cumsum(quotes, dtype=np.int32) % 2 == 0
    return int(np.cumsum(marks * (outside & ~quotes), dtype=np.int32).max()) < DEPTH


def _outermost(window: _Window, take: Mapping[str, Take]) -> JSON:
    if window.peek() != "{":
        return window.value(DEPTH)
    found: dict[str, JSON] = {}
    taken: set[str] = set()
    window.skip("{")
    if window.peek() == "}":
        window.skip("}")
        return found
    while True:
        key = window.value(1)
        if not isinstance(key, str) or key in found or key in taken:
            raise ValueError(f"the key {key!r:.60} is no string, or twice in an object")
        window.skip(":")
        if key in take and window.peek() == "[":
            taken.add(key)
            _hand_over(window, take[key])
        else:
            found[key] = window.value(DEPTH - 1)
        if window.skip(",}") == "}":
            return found


def _hand_over(window: _Window, take: Take) -> None:
    """The entries of the list that begins here."""
    window.enter()
    if window.peek() == "]":
        window.skip("]")
        take([])
        return
    block: list[JSON] = []
    while True:
        if rows := window.objects():
            take([*block, *rows])
            block = []
        block.append(window.value(DEPTH - 2))
        last = window.skip(",]") == "]"
        if last or len(block) == BLOCK:
            take(block)
            block = []
        if last:
            return
