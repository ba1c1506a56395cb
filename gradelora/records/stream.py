"""The text of a data file, a chunk at a time: unpacked, counted, decoded, its place known."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from typing import IO

# Much more, and the processor's cache holds neither it nor what is read from it.
CHUNK_CHARS = 2**20
SPACE = re.compile(r"[ \t\n\r]*")


class Fault(Exception):
    """A file that cannot be read: its code, where, and what is wrong there (never its text)."""

    def __init__(self, code: str, detail: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(code, detail, line, column)
        self.code, self.detail, self.line, self.column = code, detail, line, column


class Plain:
    """The bytes of a file, unpacked, counted against a limit."""

    def __init__(self, stream: IO[bytes], max_bytes: int) -> None:
        self.stream, self.left, self.max_bytes = stream, max_bytes, max_bytes

    def skip_bom(self) -> bool:
        """Drop a UTF-8 byte order mark at the beginning; whether there was one."""
        found = self._raw(3) == codecs.BOM_UTF8
        if not found:
            self.stream.seek(0)
        return found

    def read(self, size: int) -> bytes:
        """At most `size` bytes; empty at the end."""
        return self._counted(self._raw(size))

    def lines(self) -> Iterator[bytes]:
        """Lines with their ends; a line is held whole."""
        # One byte past the limit is enough to know that it is passed.
        while line := self._counted(self._raw_line(self.left + 1)):
            yield line

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise Fault("too_large", f"unpacks to more than the {self.max_bytes} bytes allowed")
        return data

    def _raw(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Fault("bad_gzip", "the gzip data is damaged or cut off") from error

    def _raw_line(self, size: int) -> bytes:
        try:
            return self.stream.readline(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Fault("bad_gzip", "the gzip data is damaged or cut off") from error


def open_plain(raw: IO[bytes], zipped: bool, max_bytes: int) -> Plain:
    """The unpacked bytes of an open file, at most `max_bytes` of them."""
    return Plain(io.BufferedReader(gzip.GzipFile(fileobj=raw)) if zipped else raw, max_bytes)


class Window:
    """Decoded text of which a consumed beginning is forgotten; knows its line and column."""

    def __init__(self, plain: Plain) -> None:
        self.plain, self.decoder = plain, codecs.getincrementaldecoder("utf-8")()
        self.text, self.line, self.column, self.ended = "", 1, 1, False

    def grow(self, consumed: int) -> bool:
        """Forget `consumed` characters and read on; False at the end of the file."""
        if self.ended:
            return False
        self.line, self.column = self.place(consumed)
        rest = self.text[consumed:]
        # At least doubling: a record longer than a chunk is not scanned again for every chunk.
        data = self.plain.read(max(CHUNK_CHARS, len(rest)))
        self.ended = not data
        try:
            self.text = rest + self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode()
            self.text = rest + good
            raise Fault("not_utf8", "a byte that is no UTF-8", *self.place(len(self.text))) from error
        return True

    def place(self, position: int) -> tuple[int, int]:
        """Line and column, from 1, of a position in the text."""
        return place_in(self.text, position, self.line, self.column)

    def skip_space(self, position: int) -> int:
        """The next position that is no white space, as position 0 after reading on if needed."""
        while (position := SPACE.match(self.text, position).end()) == len(self.text):  # type: ignore[union-attr]
            if not self.grow(position):
                return position
            position = 0
        return position


def place_in(text: str, position: int, line: int = 1, column: int = 1) -> tuple[int, int]:
    """Line and column of a position in a text that begins at `line` and `column`."""
    newline = text.rfind("\n", 0, position)
    if newline < 0:
        return line, column + position
    return line + text.count("\n", 0, position), position - newline
