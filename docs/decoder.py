"""A gptpack file -> named float32 arrays. A page to port from: numpy, and no line of gptpack.

docs/format.md says why, this says how: preamble, header, sections, coder, values. It checks digests
and the weights' hash; the limits that a reader of hostile files must keep are left out. Sections by
zstd or brotli need those libraries. `python docs/decoder.py FILE` prints the names."""

import bisect
import hashlib
import importlib
import itertools
import json
import lzma
import struct
import sys
import zlib
from functools import reduce
from math import isqrt, prod

import numpy as np

ALL, ROWS, COLUMNS, NONE = slice(None), slice(1), slice(1, 2), slice(0)
GRID = [("row_scales", "<i2", ROWS), ("column_scales", "<i2", COLUMNS), ("codes", "<i2", ALL)]
OFFSETS = [*GRID[:2], ("column_offsets", "<u2", COLUMNS), GRID[2]]
METHODS = {  # the arrays of each: name, type, and which dimensions of the tensor they have
    "float32": [("values", "<f4", ALL)],
    **{name: [("values", kind, ALL)] for name, kind in (("float16", "<f2"), ("bfloat16", "<u2"))},
    "int8": [("scales", "<f2", ROWS), ("codes", "|i1", ALL)],
    "int8-tensor": [("scales", "<f4", NONE), ("codes", "|i1", ALL)],
    **{m + o: a for m in ("uniform", "trellis") for o, a in (("", GRID), ("-offsets", OFFSETS))},
}
# 2^(15 + j / 16) and 2^(23 + j / 64), by square roots that are rounded down
ROOTS = [reduce(lambda x, _: isqrt(x), range(4), 2 ** (15 * 16 + j)) for j in range(16)]
FINE = [reduce(lambda x, _: isqrt(x), range(6), 2 ** (24 * 64 + j)) for j in range(64)]
SIGNIFICANDS = np.array([(value + 1) // 2 for value in FINE], np.float32)
H0, H1 = (0o5, 0o13, 0o23, 0o45, 0o103, 0o235, 0o515), (0o2, 0o4, 0o4, 0o10, 0o24, 0o126, 0o362)


def decode(data: bytes) -> tuple[dict, dict[str, np.ndarray], dict[str, bytes]]:
    """The header, the tensors by name as a model's state has them, and the files beside them."""
    magic, version, flags, stored, _raw, size = struct.unpack_from("<8sHHIIQ", data)
    assert (magic, size, version in (1, 2)) == (b"\x89GPTPK\r\n", len(data), True), "no such file"
    text = data[60 : 60 + stored]
    assert hashlib.sha256(data[:28] + text).digest() == data[28:60], "the front is damaged"
    header = json.loads(zlib.decompress(text) if flags & 1 else text)
    rows, remaining, place = header["tensors"], iter(header["sections"]), 60 + stored
    arrays: list[dict[str, np.ndarray]] = [{} for _ in rows]

    def section() -> tuple[str, str, bytes]:
        nonlocal place
        name, codec, layout, count, _raw, digest = next(remaining)
        part, place = data[place : place + count], place + count
        assert hashlib.sha256(part).hexdigest().startswith(digest), f"section {name} is damaged"
        return codec, layout, part

    for method in dict.fromkeys(row[2] for row in rows):
        members = [index for index, row in enumerate(rows) if row[2] == method]
        states = [rows[index][3].get("states", 1) for index in members]
        for name, kind, dimensions in METHODS[method]:
            shapes = [tuple(rows[index][1][dimensions]) for index in members]
            found = decode_section(*section(), shapes, np.dtype(kind), states)
            for index, array in zip(members, found, strict=True):
                bits = kind == "<u2"  # of bfloat16: the upper half of a float32
                arrays[index][name] = (array.astype("<u4") << 16).view("<f4") if bits else array
    tensors, files, state = {}, {}, hashlib.sha256()
    if header.get("files"):
        content = expand(*section()[::2], sum(count for _, count in header["files"]))
        for name, count in header["files"]:
            files[name], content = content[:count], content[count:]
    for (name, shape, method, parameters, _), held in zip(rows, arrays, strict=True):
        value = values(parameters, held)
        state.update(name.encode() + b"\0" + struct.pack(f"<B{len(shape)}Q", len(shape), *shape))
        state.update(value.astype("<f4").tobytes())
        tensors[name] = value.T if parameters.get("transposed") and version > 1 else value
    assert state.hexdigest() == header["weights_sha256"], "this decoder is wrong"
    return header, tensors, files


def expand(codec: str, stored: bytes, size: int) -> bytes:
    """The bytes that a codec of bytes made `stored` of."""
    if codec == "lzma":
        size = min(max(4096, 1 << (size - 1).bit_length()), 1 << 24)  # of the dictionary
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": size}]
        return lzma.decompress(stored, format=lzma.FORMAT_RAW, filters=filters)
    if codec == "zstd":
        return importlib.import_module("zstandard").ZstdDecompressor().decompress(stored)
    return stored if codec == "raw" else importlib.import_module(codec).decompress(stored)


def decode_section(codec, layout, stored, shapes, dtype, states) -> list[np.ndarray]:
    """The arrays of a section, of these shapes."""
    sizes = [*map(prod, shapes)]
    if codec == "range" and len(shapes[0]) == 2:
        return [array.astype(dtype) for array in decode_matrices(stored, shapes, states)]
    if codec == "range":
        flat = decode_vector(stored, sum(sizes)).astype(dtype)
    else:
        raw = expand(codec, stored, sum(sizes) * dtype.itemsize)
        if layout == "planes":
            raw = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        flat = np.frombuffer(raw, dtype)
    pairs = zip(np.split(flat, np.cumsum(sizes)[:-1]), shapes, strict=True)
    column = layout == "column"
    return [p.reshape(s[::-1]).T if column and len(s) == 2 else p.reshape(s) for p, s in pairs]


def cumulated(logs: list[int]) -> list[int]:
    """Where each symbol's frequency begins, and 2^24, of logarithms in 1/16 octave."""
    weights = [ROOTS[c % 16] << (c >> 4) for c in (min(max(log, 0), 320) for log in logs)]
    found = [w * (2**24 - len(weights)) // sum(weights) + 1 for w in weights]
    found[weights.index(max(weights))] += 2**24 - sum(found)
    return [0, *itertools.accumulate(found)]


EVEN = [range(0, 2**24 + 1, 2 ** (24 - n)) for n in range(24)]  # where 2^n equal ones begin
LENGTHS = cumulated([320 - 16 * min(n + 1, 19) for n in range(24)])


class Stream:
    """A range-coded payload, and a method for each kind of thing that it holds."""

    def __init__(self, payload: bytes) -> None:
        self.kind, count = struct.unpack_from("<BI", payload)
        self.words = iter([*struct.unpack_from(f"<{count}I", payload, 5), 0, 0, 0])
        self.range = 2**64 - 1
        self.point = next(self.words) << 32 | next(self.words)  # less the interval's lower end

    def symbol(self, starts: list[int]) -> int:
        scale = self.range >> 24
        k = bisect.bisect_right(starts, self.point // scale) - 1
        self.point -= scale * starts[k]
        self.range = scale * (starts[k + 1] - starts[k])
        if self.range < 2**32:
            self.range, self.point = self.range << 32, self.point << 32 | next(self.words)
        return k

    def folded(self, count: int) -> list[int]:
        lengths = [self.symbol(LENGTHS) for _ in range(count)]
        found = [0] * count
        for n, i in sorted((n, i) for i, n in enumerate(lengths) if n):
            found[i] = 2**n - 1 + self.symbol(EVEN[n])
        return found

    def number(self) -> int:
        (u,) = self.folded(1)
        return -(u + 1) // 2 if u % 2 else u // 2

    def values(self, tables: list[tuple[int, list[int]]], indexes: np.ndarray) -> np.ndarray:
        """A value for each of `indexes` of tables (lowest value, starts): table by table."""
        found, escapes = np.zeros(len(indexes), np.int64), []
        for i in np.argsort(indexes, kind="stable"):
            lowest, starts = tables[indexes[i]]
            place = self.symbol(starts)
            found[i] = lowest + place
            if place == len(starts) - 2:
                escapes.append((i, lowest, place))
        for (i, lowest, size), u in zip(escapes, self.folded(len(escapes)), strict=True):
            found[i] = lowest - (u + 1) // 2 if u % 2 else lowest + size + u // 2
        return found

    def integers(self, count: int) -> np.ndarray:
        centre, s = self.number(), self.symbol(EVEN[7])
        slope = (4 + (s >> 1) % 4) << (s >> 3)
        logs = [320 - ((slope * abs(k) ** (1 + s % 2)) >> 8) for k in range(-127, 128)]
        return centre + self.values([(-127, cumulated([*logs, 160]))], np.zeros(count, np.int64))

    def tables(self, count: int, lanes: int) -> list[tuple[int, list[int]]]:
        fields = [self.integers(count) for _ in range(6)]  # low, size, escape, peak, centre, curve
        for field in fields:
            for i in range(lanes, count):
                field[i] += field[i - lanes]
        residuals = iter(self.integers(int(fields[1].sum())).tolist())
        found = []
        for low, size, escape, peak, centre, curvature in np.stack(fields, 1).tolist():
            r = list(itertools.islice(residuals, size))
            curve = ROOTS[curvature % 16] << (curvature >> 4)
            m = min(max(((centre + 8) >> 4) - low, 0), size - 1)
            logs = []
            for p in range(size):
                between = [*range(m + 1, p + 1), *range(p, m)]
                bend = r[m] + sum((abs(p - i) + 1) * r[i] for i in between)
                logs.append(peak - (((16 * (low + p) - centre) ** 2 * curve) >> 34) + bend)
            found.append((low, cumulated([*logs, escape])))
        return found


def decode_vector(payload: bytes, count: int) -> np.ndarray:
    stream = Stream(payload)
    if (mode := stream.number()) < 2:
        found = stream.integers(count)
    else:
        found = stream.number() + stream.values(stream.tables(1, 1), np.zeros(count, np.int64))
    return np.cumsum(found) if mode % 2 else found


def decode_matrices(payload: bytes, shapes: list, states: list[int]) -> list[np.ndarray]:
    stream = Stream(payload)
    lanes = stream.kind
    lowest, classes = stream.number(), stream.number()
    group = np.concatenate(([0], np.cumsum(stream.integers(classes - 1))))
    levels = [(stream.integers(rows), stream.integers(columns)) for rows, columns in shapes]
    tables = stream.tables(lanes * (int(group[-1]) + 1), lanes)
    found = [np.zeros(shape, np.int64) for shape in shapes]
    machines = [np.zeros(columns, np.int64) for _, columns in shapes]
    height = [1 if lanes > 1 else max(1, 2**18 // columns) for _, columns in shapes]
    tops = [(m, top) for m, (rows, _) in enumerate(shapes) for top in range(0, rows, height[m])]
    key = (lambda place: place[1]) if lanes > 1 else tuple  # the rows of all matrices, or by blocks
    for _, places in itertools.groupby(sorted(tops, key=key), key):
        step = [(m, slice(top, top + height[m])) for m, top in places]
        level = [levels[m][0][rows, None] + levels[m][1] - lowest for m, rows in step]
        classed = [lanes * group[np.clip(each, 0, classes - 1)] for each in level]
        wanted = [w + (machines[m] & lanes - 1) for w, (m, _) in zip(classed, step, strict=True)]
        codes = stream.values(tables, np.concatenate([w.ravel() for w in wanted]))
        for (m, rows), w in zip(step, wanted, strict=True):
            found[m][rows], codes = codes[: w.size].reshape(w.shape), codes[w.size :]
            if lanes > 1:
                machines[m] = stepped(machines[m], found[m][rows][0], states[m])
    return found


def stepped(state: np.ndarray, codes: np.ndarray, states: int) -> np.ndarray:
    """The states of a trellis after a row of codes."""
    h0, h1 = H0[states.bit_length() - 3], H1[states.bit_length() - 3]
    return (state >> 1) ^ ((state & 1) * (h0 >> 1)) ^ ((codes & 1) * (h1 >> 1))


def scales(indexes: np.ndarray, per_octave: int) -> np.ndarray:
    """The scales that indexes on a logarithmic grid stand for."""
    octave, place = np.divmod(indexes.astype(np.int32), per_octave)
    return np.ldexp(SIGNIFICANDS[place * 64 // per_octave], octave - 23).astype(np.float32)


def values(parameters: dict, held: dict[str, np.ndarray]) -> np.ndarray:
    """What a tensor's arrays stand for; each operation is one of float32."""
    if "values" in held:
        return held["values"].astype(np.float32)
    points = held["codes"].astype(np.int64)
    if "scales" in held:
        scale = held["scales"].astype(np.float32)
        return points.astype(np.float32) * (scale[:, None] if scale.ndim else scale)
    row, state = scales(held["row_scales"], 64), np.zeros(points.shape[1], np.int64)
    for r, codes in enumerate(points.copy() if "states" in parameters else ()):
        points[r] += codes + (state & 1)
        state = stepped(state, codes, parameters["states"])
    row = row * np.float32(0.5 if "states" in parameters else 1)
    found = points.astype(np.float32) * row[:, None] * scales(held["column_scales"], 4)
    return found + held["column_offsets"] if "column_offsets" in held else found


if __name__ == "__main__":
    print(*decode(np.fromfile(sys.argv[1], np.uint8).tobytes())[1], sep="\n")
