"""Tables of text from an R package's lazy-load database, as JSON.

    python3 lazyload.py DATABASE NAME...

DATABASE is the path of `Rdata.rdb` without its ending. Prints {name: {column: [value, ...]}} of data frames, or {name:
[value, ...]} of vectors. Of R's serialisation format ("R Internals", section 1.8) this knows what such objects consist
of, and stops at anything else.
"""

import json
import lzma
import struct
import sys
import zlib


class Reader:
    """One serialised object, in XDR."""

    def __init__(self, data):
        if data[:2] != b"X\n":
            raise ValueError("not R's binary XDR serialisation")
        self.data = data
        self.place = 2
        version, _, _ = self.numbers("3i")
        if version == 3:
            self.raw(self.numbers("i")[0])
        self.symbols = []

    def raw(self, size):
        start, self.place = self.place, self.place + size
        return self.data[start : self.place]

    def numbers(self, form):
        form = ">" + form
        return struct.unpack(form, self.raw(struct.calcsize(form)))

    def item(self):
        """An object; vectors with attributes come as (values, attributes)."""
        (flags,) = self.numbers("i")
        kind, attributed, tagged = flags & 255, flags >> 9 & 1, flags >> 10 & 1
        if kind in (254, 242, 253):  # NULL and two environments
            return None
        if kind == 255:  # a symbol seen before
            return self.symbols[(flags >> 8) - 1]
        if kind == 1:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == 2:
            return self.pairs(attributed, tagged)
        if kind == 9:
            (size,) = self.numbers("i")
            return None if size == -1 else self.raw(size).decode("latin-1" if flags >> 12 & 4 else "utf-8")
        if kind == 238:  # a vector by another representation: here only a range of integers
            return self.range()
        (count,) = self.numbers("i")
        if kind in (10, 13):
            values = list(self.numbers(f"{count}i"))
        elif kind == 14:
            values = list(self.numbers(f"{count}d"))
        elif kind in (16, 19):
            values = [self.item() for _ in range(count)]
        else:
            raise ValueError(f"an R object of type {kind}")
        return (values, self.item()) if attributed else (values, {})

    def pairs(self, attributed, tagged):
        attributes = self.item() if attributed else None
        del attributes
        name = self.item() if tagged else None
        value = self.item()
        return {name: value} | (self.item() or {})

    def range(self):
        self.item()
        (count, first, step), _ = self.item()
        self.item()
        return [int(first + step * index) for index in range(int(count))], {}


def expand(chunk):
    """A chunk of the database: its size, how it is compressed, the rest."""
    kind = chunk[4:5]
    if kind == b"Z":
        return lzma.decompress(chunk[5:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return zlib.decompress(chunk[4:])


def plain(item):
    """Levels in place of a factor's numbers, columns by name in place of a data frame."""
    values, attributes = item
    if "levels" in attributes:
        levels = attributes["levels"][0]
        return [levels[number - 1] for number in values]
    if "names" in attributes:
        return {name: plain(value) for name, value in zip(attributes["names"][0], values)}
    return values


def main(database, names):
    with open(database + ".rdx", "rb") as file:
        index = plain(Reader(zlib.decompress(file.read(), 47)).item())
    with open(database + ".rdb", "rb") as file:
        data = file.read()
    objects = {}
    for name in names:
        start, size = index["variables"][name]
        objects[name] = plain(Reader(expand(data[start : start + size])).item())
    json.dump(objects, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
