"""A second reader of artifacts, written from docs/format.md: standard library and NumPy, nothing of nern.

It reads every file; it predicts weights of codes, and of kxk predictors with ReLU or sine and without norms, heads
'per_size' or 'per_layer'. It trusts the file: it is for comparing, not for use.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"\x89NERN\r\n\x1a"
STEPS = ("3F800000", "3F8B95C2", "3F9837F0", "3FA5FED7", "3FB504F3", "3FC5672A", "3FD744FD", "3FEAC0C7")
DTYPES = {
    "f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "<i1",
    "u8": "<u1", "b": "<u1",
}  # fmt: skip
ALL = 2**64 - 1
STARTS = [*range(1, 8), *(2**o * q for o in range(1, 10) for q in range(4, 8)), 4096]
WIDTHS = [*(b - a for a, b in pairwise(STARTS)), 1]


@dataclass
class Read:
    """What is in a file.

    Attributes:
        description: as it is.
        predictor, kept: tensors by name; 'bf16' as the upper 16 bits of an f32, 'b' as 0 and 1.
        places: of each layer, the place of each kernel.
        outliers: places among all weights, and values.
        probes: as they are.
    """

    description: dict[str, Any]
    predictor: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    places: list[np.ndarray]
    outliers: tuple[np.ndarray, np.ndarray]
    probes: np.ndarray

    def weights(self) -> list[np.ndarray]:
        """The predicted weights of all layers."""
        shapes = layer_shapes(self.description)
        flat = np.concatenate([predict(self, index, shape).ravel() for index, shape in enumerate(shapes)])
        flat[self.outliers[0]] = self.outliers[1]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        return np.split(flat, ends[:-1])


def read(path: str | Path) -> Read:
    """Read a file; ValueError where it is damaged."""
    sections = container(Path(path).read_bytes())
    description = json.loads(zlib.decompress(sections["META"]).decode())
    shapes = layer_shapes(description)
    places = ordering(description["ordering"], Coder(sections.get("ORDR", b"")), shapes)
    groups = [
        tensors(description.get(key, []), sections.get(code, b""), sections.get(raw, b""))
        for key, code, raw in (
            ("predictor", "COD3" if "COD3" in sections else "PRED", "PRAW"),
            ("kept", "KEPT", "KRAW"),
        )
    ]
    count, largest = description.get("outliers") or (0, 0)
    steps = Coder(sections.get("OUTL", b"")).adaptive(count, largest + 1)
    outliers = np.cumsum(steps) - 1, np.frombuffer(sections.get("ORAW", b""), "<f4")
    return Read(description, *groups, places, outliers, np.frombuffer(sections["PROB"], "<f4"))


# --- container -----------------------------------------------------------------------------------------------------


def container(data: bytes) -> dict[str, bytes]:
    """The sections of a file."""
    magic, version, count, zero, size, digest = struct.unpack_from("<8sHHIQ16s", data)
    if (magic, zero, size) != (MAGIC, 0, len(data)) or version not in (1, 3):
        raise ValueError("no artifact of version 1 or 3")
    start = 40 + 28 * count
    if hashlib.blake2b(data[:24] + bytes(16) + data[40:start], digest_size=16).digest() != digest:
        raise ValueError("the header is damaged")
    sections = {}
    for index in range(count):
        name, length, digest = struct.unpack_from("<4sQ16s", data, 40 + 28 * index)
        sections[name.decode("ascii")] = part = data[start : start + length]
        if hashlib.blake2b(part, digest_size=16).digest() != digest:
            raise ValueError(f"section {name!r} is damaged")
        start += length
    if start != len(data) or len(sections) != count:
        raise ValueError("the sections are not the file")
    if ("COD3" in sections) != (version == 3):
        raise ValueError("the sections are not those of the version")
    return sections


# --- range coder ---------------------------------------------------------------------------------------------------


class Coder:
    """The decoder of a code."""

    def __init__(self, code: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(code) // 4}I", code))
        self.next = 2
        self.lower, self.range = 0, ALL
        first, second = (*self.words[:2], 0, 0)[:2]
        self.point = first << 32 | second

    def symbol(self, cumulative: list[int]) -> int:
        """The next symbol of a model with these weights."""
        scale = self.range >> 24
        quantile = ((self.point - self.lower) & ALL) // scale
        if quantile >= 2**24:
            raise ValueError("damaged code")
        low, high = 0, len(cumulative) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cumulative[middle] <= quantile else (low, middle)
        self._narrow(scale, cumulative[low], cumulative[low + 1])
        return low

    def uniform(self, size: int) -> int:
        """The next number below `size`."""
        if size == 1:
            return 0
        weight, scale = 2**24 // size, self.range >> 24
        quantile = ((self.point - self.lower) & ALL) // scale
        if quantile >= 2**24:
            raise ValueError("damaged code")
        symbol = min(quantile // weight, size - 1)
        self._narrow(scale, symbol * weight, 2**24 if symbol == size - 1 else (symbol + 1) * weight)
        return symbol

    def _narrow(self, scale: int, low: int, high: int) -> None:
        self.lower = (self.lower + scale * low) & ALL
        self.range = scale * (high - low)
        if self.range < 2**32:
            self.lower, self.range = (self.lower << 32) & ALL, self.range << 32
            word = self.words[self.next] if self.next < len(self.words) else 0
            self.point = (self.point << 32) & ALL | word
            self.next += 1

    def adaptive(self, count: int, symbols: int) -> np.ndarray:
        """The next `count` numbers of an alphabet."""
        shift = max(0, (symbols - 1).bit_length() - 10)
        alphabet = ((symbols - 1) >> shift) + 1
        high: list[int] = []
        counts, length = [1] * alphabet, 32
        while alphabet > 1 and len(high) < count:
            cumulative = weights_of(counts)
            block = [self.symbol(cumulative) for _ in range(min(length, count - len(high)))]
            for symbol in block:
                counts[symbol] += 2
            high += block
            length = min(2 * length, 4096)
        numbers = np.array(high if alphabet > 1 else [0] * count, np.int64)
        if shift:
            numbers = (numbers << shift) + np.array([self.uniform(1 << shift) for _ in range(count)], np.int64)
        return numbers

    def codes(self, shape: list[int], models: dict[str, list[list[int]]]) -> np.ndarray:
        """The next codes of this shape; the models learn."""
        filters, channels, entries = shape
        if entries == 1:
            entries = next(n for n in range(8, 0, -1) if channels % n == 0)
            channels //= entries
        there, further = np.zeros((2, filters, channels, entries), np.int64)
        share, size = Means(there, np.zeros_like(there)), Means(further, there)
        edges = [step_size(-66 + 3 * number) for number in range(55)]
        for k in range(entries):
            for tile in range(16):
                part = range(filters * tile // 16, filters * (tile + 1) // 16)
                kernels = [(f, c) for f in part for c in range(channels)]
                shares = [min(expected, 1 - 2.0**-12) for expected in share.expected(kernels, k, tile)]
                sizes = size.expected(kernels, k, tile)
                chosen = [sum(edge <= p / (1 - p) for edge in edges[:39]) for p in shares]
                flags = self.symbols(models["zeros"], chosen)
                found = [index for index, flag in enumerate(flags) if flag]
                chosen = [
                    sum(edge <= sizes[index] for edge in edges)
                    + 56 * ((shares[index] >= 0.45) + (shares[index] >= 0.8))
                    for index in found
                ]
                symbols = self.symbols(models["sizes"], chosen)
                values = [STARTS[symbol] + self.uniform(WIDTHS[symbol]) for symbol in symbols]
                beyond = [at for at, symbol in enumerate(symbols) if symbol == len(STARTS) - 1]
                lengths = [self.uniform(24) for _ in beyond]
                for at, length in zip(beyond, lengths, strict=True):
                    values[at] += (1 << length) + self.uniform(1 << length) - 1
                for index, (f, c) in enumerate(kernels):
                    share.counted[f, c, k], there[f, c, k] = 1, flags[index]
                for index, value in zip(found, values, strict=True):
                    further[(*kernels[index], k)] = value - 1
        whole = (further + there).ravel()
        whole[[index for index in np.flatnonzero(whole) if self.uniform(2)]] *= -1
        return whole.reshape(shape)

    def symbols(self, models: list[list[int]], chosen: list[int]) -> list[int]:
        """A symbol of each of these models; they learn afterwards."""
        weights = {model: weights_of(models[model]) for model in set(chosen)}
        found = [self.symbol(weights[model]) for model in chosen]
        for model, symbol in zip(chosen, found, strict=True):
            models[model][symbol] += 32
        return found

    def finish(self) -> None:
        """ValueError where the code does not end here."""
        started = self.range != ALL
        if (not started and self.words) or self.next < len(self.words):
            raise ValueError("the code is too long")
        if started and ((self.point - self.lower) & ALL) >= 2**33 - 1:
            raise ValueError("the code does not end here")


class Means:
    """The means to expect, of values of which some are counted, (filters, channels, entries); zeros are not known yet."""

    def __init__(self, values: np.ndarray, counted: np.ndarray) -> None:
        self.values, self.counted, self.mean = values, counted, 0.5

    def sums(self, at: Any, axes: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of some of the values, and how many were counted among them; as floats."""
        return tuple(np.asarray(t[at].sum(axes), float) for t in (self.values, self.counted))  # type: ignore[return-value]

    def expected(self, kernels: list[tuple[int, int]], k: int, tile: int) -> list[float]:
        """Of entry k of these kernels, all of one part."""
        before, now = np.s_[:, :, :k], np.s_[:, :, k : k + 1]
        if tile == 0:
            self.last = self.mean
        total, count = self.sums(now)
        self.mean = (float(total) + 16.0 * self.last) / (float(count) + 16.0)
        usual, overall = over(*self.sums(before)), over(*self.sums(np.s_[:]))
        by_filter, by_channel = ratios(self.sums(before, (1, 2)), usual), ratios(self.sums(np.s_[:], (0, 2)), overall)
        found = []
        for f, c in kernels:
            place = by_filter[f] * by_channel[c]
            expected, here = self.mean * place, usual * place
            if usual > 0:
                total, count = self.sums(np.s_[f, c, :k])
                expected *= ((float(total) + 24.0 * here) / (float(count) + 24.0)) / here
            found.append(expected)
        return found


def over(total: np.ndarray, count: np.ndarray) -> float:
    """A mean, or 0 of nothing."""
    return float(total) / float(count) if count else 0.0


def ratios(seen: tuple[np.ndarray, np.ndarray], mean: float) -> list[float]:
    """Means of some sums over the mean of all."""
    pairs = zip(*(part.tolist() for part in seen), strict=True)
    return [((total + 8.0 * mean) / (count + 8.0)) / mean if mean else 1.0 for total, count in pairs]


def new_models() -> dict[str, list[list[int]]]:
    """How often the models of codes count each symbol as seen."""
    odds = [step_size(-66 + 3 * number - 1) for number in range(56)]
    zeros = [[max(1, int(2048 * share)) for share in (1 / (1 + e), e / (1 + e))] for e in odds[:40]]
    sizes = []
    for expected in odds:
        beyond = [1.0]
        while len(beyond) < STARTS[-1]:
            beyond.append(beyond[-1] * (expected / (1 + expected)))
        at = [*(beyond[start - 1] for start in STARTS), 0.0]
        sizes.append([max(1, int(2048 * (a - b))) for a, b in pairwise(at)])
    return {"zeros": zeros, "sizes": [list(counts) for _ in range(3) for counts in sizes]}


def weights_of(counts: list[int]) -> list[int]:
    """Cumulative weights of a model that saw symbols so often."""
    whole = sum(counts)
    shares = [count / whole for count in counts]
    total = 0.0
    for share in shares:
        total += share
    scale, running, cumulative = (2**24 - len(counts)) / total, 0.0, []
    for symbol, share in enumerate(shares):
        cumulative.append(math.floor(running * scale) + symbol)
        running += share
    return [*cumulative, 2**24]


# --- tensors -------------------------------------------------------------------------------------------------------


def tensors(described: list[list[Any]], code: bytes, raw: bytes) -> dict[str, np.ndarray]:
    """A group of tensors."""
    coder, start, found, models = Coder(code), 0, {}, new_models()
    for name, shape, dtype, held, *grid in described:
        count = math.prod(shape)
        if held == "grid":
            step, low, symbols = grid
            values = (coder.adaptive(count, symbols) + low).astype(np.float64) * step_size(step)
            values = to_dtype(values, dtype)
        elif held == "codes3":
            values = to_dtype(coder.codes(shape, models).astype(np.float64) * step_size(*grid), dtype)
        else:
            kind = np.dtype(DTYPES["f16" if held == "f16" else dtype])
            values = np.frombuffer(raw, kind, count, start)
            start += count * kind.itemsize
            values = to_dtype(values.astype(np.float64), dtype) if held == "f16" else values
        found[name] = values.reshape(shape)
    coder.finish()
    if start != len(raw):
        raise ValueError("more bytes than tensors")
    return found


def step_size(number: int) -> float:
    """The size of a step."""
    return math.ldexp(struct.unpack(">f", bytes.fromhex(STEPS[number % 8]))[0], number // 8)


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in 64 bits as numbers of a dtype."""
    with np.errstate(over="ignore"):
        if dtype in ("f16", "bf16"):
            values = values.astype(np.float32)
        if dtype != "bf16":
            return values.astype(DTYPES[dtype])
    bits = values.view(np.uint32).astype(np.int64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


# --- layers, orderings ---------------------------------------------------------------------------------------------


def layer_shapes(description: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """(filters, channels, height, width) of each layer."""
    shapes = []
    for network in description["networks"]:
        for _, (filters, channels, *kernel), _ in network["represented"]:
            shapes.append((filters, channels, math.prod(kernel[:-1]), kernel[-1] if kernel else 1))
    return shapes


def permutation(coder: Coder, n: int) -> list[int]:
    """A permutation of 0 to n - 1."""
    left = list(range(n))
    return [left.pop(coder.uniform(n - index)) for index in range(n)]


def ordering(mode: str, coder: Coder, shapes: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """Of each layer, the place of each kernel."""
    places = []
    for filters, channels, _, _ in shapes:
        place = np.arange(filters * channels)
        if mode == "crossfilter":
            place[permutation(coder, filters * channels)] = np.arange(filters * channels)
        elif mode in ("infilter", "infilter_path"):
            order = permutation(coder, filters)
            of_filters = [permutation(coder, channels) for _ in range(filters)]
            for p, f in enumerate(order):
                for q, c in enumerate(of_filters[f]):
                    place[f * channels + c] = p * channels + q
        elif mode != "none":
            raise ValueError(f"unknown ordering {mode}")
        places.append(place)
    coder.finish()
    return places


# --- predicted weights ---------------------------------------------------------------------------------------------


def predict(read: Read, index: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The kernels of a layer, outliers aside: (kernels, height, width)."""
    nern, shapes = read.description["nern"], layer_shapes(read.description)
    if nern["method"] == "codes":
        sizes = [s[2:] for s in shapes]
        head = index if nern["heads"] == "per_layer" else list(dict.fromkeys(sizes)).index(shape[2:])
        basis = read.predictor[f"bases.{head}"]
        codes = read.predictor[f"codes.{index}"] * (read.predictor["steps"][index] * np.float32(16))
        return (codes.reshape(-1, len(basis)) @ basis.T).reshape(-1, *shape[2:])
    if nern["method"] != "kxk" or nern["norm_layer"] != "none" or nern["heads"] == "shared":
        raise NotImplementedError("kxk predictors without norms, with heads of their own")
    act = {"sine": np.sin, "relu": lambda x: np.maximum(x, np.float32(0))}[nern["act_layer"]]
    p = {name: tensor.astype(np.float32) for name, tensor in read.predictor.items()}
    x = encoding(read, index, shapes)
    for number in range(nern["num_blocks"] - 1):
        x = act(x @ p[f"layers.{number}.weight"].T + p[f"layers.{number}.bias"])
    sizes = [s[2:] for s in shapes]
    distinct = list(dict.fromkeys(sizes))
    several = len(distinct if nern["heads"] == "per_size" else shapes) > 1
    head = f"layer{index}" if nern["heads"] == "per_layer" else f"{shape[2]}x{shape[3]}"
    name = f"final_linear_layers.{head}" if several else "final_linear_layer"
    x = x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
    if nern["output_scales"] != "none":
        x *= p["output_scales"][distinct.index(shape[2:]) if nern["output_scales"] == "per_size" else index]
    return x.reshape(-1, *shape[2:])


def encoding(read: Read, index: int, shapes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """The encodings of a layer's kernels."""
    e, place = read.description["nern"]["embeddings"], read.places[index]
    levels, kernels = e["enc_levels"], len(place)
    if e["type"] in ("order", "order_random"):
        if e["type"] == "order":
            highest = max(1.0, e["bandwidth"] * kernels)
            g = highest ** (np.arange(levels) / max(levels - 1, 1))
        else:
            g = np.sort(np.abs(normal_numbers(1881531232, levels, np.float64))) * kernels * e["bandwidth"]
        layer = np.zeros((kernels, len(shapes)), np.float32)
        layer[:, index] = 1
        phases = phase(place[:, None] * (g / 2) / kernels)
        return np.concatenate([np.sin(phases), np.cos(phases), layer], 1)
    indices, gauss_scale = divided_indices(read, index, shapes), list(e["gauss_scale"])
    if e["type"] == "basic":
        powers = np.float32(e["base"]) ** np.arange(levels, dtype=np.float32)
        parts = []
        for x in indices:
            angles = x.astype(np.float32)[:, None] * powers * np.float32(math.pi)
            parts.append(np.stack([np.sin(angles), np.cos(angles)], 2).reshape(kernels, -1))
        return np.sum(parts, 0) if e["fusion_mode"] == "sum" else np.concatenate(parts, 1)
    gauss_scale = [gauss_scale[0]] * (len(indices) - len(gauss_scale)) + gauss_scale
    matrix = normal_numbers(0, levels * len(indices) ** 2, np.float32).reshape(-1, len(indices)).astype(np.float32)
    matrix *= np.array(gauss_scale, np.float32)
    angles = np.sum([phase(x[:, None] * b.astype(np.float64)) for x, b in zip(indices, matrix.T, strict=True)], 0)
    return np.stack([np.sin(angles), np.cos(angles)], 2).reshape(kernels, -1)


def phase(turns: np.ndarray) -> np.ndarray:
    """2 pi times what is beyond whole turns."""
    return (2 * math.pi * (turns - np.round(turns))).astype(np.float32)


def divided_indices(read: Read, index: int, shapes: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """(network where there are several, layer, filter, channel) of a layer's kernels, divided."""
    networks = read.description["networks"]
    filters, channels, _, _ = shapes[index]
    network = [number for number, of in enumerate(networks) for _ in of["represented"]][index]
    place = read.places[index].astype(np.float64)
    constant = np.ones(len(place))
    indices = [network * constant, index * constant, place // channels, place % channels]
    divisors = {
        "none": [1, 1, 1, 1],
        "local": [len(networks), len(shapes), filters, channels],
        "global": [max(map(max, shapes))] * 4,
    }[read.description["nern"]["embeddings"]["normalization_mode"]]
    several = len(networks) > 1
    return [x / d for x, d in zip(indices, divisors, strict=True)][0 if several else 1 :]


def normal_numbers(seed: int, count: int, kind: type) -> np.ndarray:
    """PyTorch's normal numbers, in 64 bits."""
    words = np.random.RandomState(seed)._bit_generator  # MT19937 with init_genrand

    def uniform(kind: type) -> float:
        if kind is np.float32:
            return (int(words.random_raw()) & (2**24 - 1)) / 2**24
        first, second = int(words.random_raw()), int(words.random_raw())
        return ((first << 32 | second) & (2**53 - 1)) / 2**53

    def sixteen(u: np.ndarray) -> np.ndarray:
        r = np.sqrt(-2 * np.log1p(-u[:8]))
        return np.concatenate([r * np.cos(2 * math.pi * u[8:]), r * np.sin(2 * math.pi * u[8:])])

    if count < 16:
        pairs = []
        for _ in range(-(-count // 2)):
            u, v = uniform(np.float64), uniform(np.float64)
            r = math.sqrt(-2 * math.log1p(-v))
            pairs += [r * math.cos(2 * math.pi * u), r * math.sin(2 * math.pi * u)]
        return np.array(pairs[:count])
    numbers = np.array([uniform(kind) for _ in range(count)])
    for start in range(0, count - 15, 16):
        numbers[start : start + 16] = sixteen(numbers[start : start + 16])
    if count % 16:
        numbers[-16:] = sixteen(np.array([uniform(kind) for _ in range(16)]))
    return numbers
