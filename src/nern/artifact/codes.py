"""Codes as bytes: whole numbers around zero, each coded by how large its neighbours were.

What is known of a number before it is coded is its place: the filter, the channel and the entry of the code, and the kernel
to which it belongs. The sizes of the numbers that were coded before it there give the size to expect, and this chooses one
of a few models, which learn while they code. `docs/format.md` says it in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from nern.artifact.entropy import Decoder, Encoder
from nern.errors import NernError
from nern.representation.grid import step_size

MODELS, SYMBOLS = 40, 16  # models, by the size to expect; of each, sizes 0 to 14, and 15 for all larger ones
FIRST, APART = -66, 3  # number of the step below which is the first model, and between two models
SEEN, WEIGHT = 512, 32  # how often each model has seen its sizes before the first, and how much each one counts
TILES = 16  # parts of the filters: each knows the ones before
PRIOR, KERNEL_PRIOR, ENTRY_PRIOR = 4.0, 8.0, 16.0  # numbers that a filter or channel, a kernel, an entry counts as seen
MOST_ENTRIES = 8  # into which the channels of a layer of single weights are dealt
MOST_PARTS = 2**18  # of all codes of a stream, that are coded one after the other
MOST_BITS = 24  # of a size beyond the models

Sizes = Int[np.ndarray, "filters channels entries"]
Code = Callable[[np.ndarray, np.ndarray | None, np.ndarray], np.ndarray]


def dealt(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape as which codes of this shape are coded: channels of single weights are dealt into entries."""
    filters, channels, entries = shape
    if entries > 1:
        return filters, channels, entries
    entries = next(n for n in range(MOST_ENTRIES, 0, -1) if channels % n == 0)
    return filters, channels // entries, entries


def check_parts(shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise NernError for codes of these shapes that take too long: they have too many entries, or too many tensors."""
    parts = sum(dealt(shape)[2] * min(shape[0], TILES) for shape in shapes)
    if parts > MOST_PARTS:
        raise NernError(f"codes are coded in {parts:,} parts; more than {MOST_PARTS:,} take too long")


def new_models() -> Int[np.ndarray, "models symbols"]:
    """Counts of each size in each model, before anything was coded: geometric distributions."""
    counts = np.ones((MODELS, SYMBOLS), np.int64)
    for model in range(MODELS):
        expected = step_size(FIRST + APART * model - 1)
        ratio = expected / (1 + expected)
        share = 1 - ratio
        for symbol in range(SYMBOLS):
            counts[model, symbol] = max(1, int(SEEN * share))
            share *= ratio
    return counts


EDGES = np.array([step_size(FIRST + APART * number) for number in range(MODELS - 1)])


def coded(shape: tuple[int, int, int], sizes: Sizes | None, models: np.ndarray, code: Code) -> Sizes:
    """Sizes of at most 15 of one layer, coded or decoded entry after entry.

    Args:
        shape: of the layer (`dealt`).
        sizes: to be coded; None: they are decoded.
        models: counts, which learn.
        code: (model of each number, numbers or None, models) -> numbers; codes or decodes some numbers.
    """
    filters, channels, entries = shape
    known = np.zeros(shape, np.int64)
    of_kernel, of_channel, of_filter = np.zeros((filters, channels)), np.zeros(channels), np.zeros(filters)
    mean = 0.5
    for entry in range(entries):
        before, mean_before = float(of_filter.sum()) / max(entry * filters * channels, 1), mean
        by_filter = _ratios(of_filter, before, entry * channels)
        total, count = 0, 0
        for tile in range(TILES):
            part = slice(filters * tile // TILES, filters * (tile + 1) // TILES)
            if part.start == part.stop:
                continue
            mean = (total + ENTRY_PRIOR * mean_before) / (count + ENTRY_PRIOR)
            seen = entry * filters + part.start
            by_channel = _ratios(of_channel, float(of_channel.sum()) / max(seen * channels, 1), seen)
            place = by_filter[part, None] * by_channel[None]
            expected = mean * place
            if before > 0:
                usual = before * place
                expected *= ((of_kernel[part] + KERNEL_PRIOR * usual) / (entry + KERNEL_PRIOR)) / usual
            chosen = np.searchsorted(EDGES, expected.ravel(), side="right")
            found = code(chosen, None if sizes is None else sizes[part, :, entry].ravel(), models)
            np.add.at(models, (chosen, found), WEIGHT)
            block = found.reshape(expected.shape)
            known[part, :, entry] = block
            of_kernel[part] += block
            of_channel += block.sum(0)
            of_filter[part] += block.sum(1)
            total, count = total + int(block.sum()), count + block.size
    return known


def _ratios(sums: Float[np.ndarray, " n"], mean: float, count: int) -> Float[np.ndarray, " n"]:
    """Of sums over `count` numbers each, their means over the mean of all."""
    if count == 0 or mean == 0:
        return np.ones(len(sums))
    return ((sums + PRIOR * mean) / (count + PRIOR)) / mean


def encode_codes(coder: Encoder, codes: Int[np.ndarray, "filters channels entries"], models: np.ndarray) -> None:
    """Code whole numbers. `models`: of all layers of a stream, `new_models()` at first."""
    numbers = codes.reshape(dealt(codes.shape)).astype(np.int64)
    sizes = np.abs(numbers)

    def code(chosen: np.ndarray, values: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
        assert values is not None
        coder.drawn(values, _shares(counts)[chosen])
        return values

    coded(numbers.shape, np.minimum(sizes, SYMBOLS - 1), models, code)
    flat, size = numbers.ravel(), sizes.ravel()
    coder.uniform((flat[flat != 0] < 0).astype(np.int64), np.full(int((flat != 0).sum()), 2))
    beyond = size[size >= SYMBOLS - 1] - (SYMBOLS - 1) + 1
    lengths = np.frexp(beyond.astype(np.float64))[1].astype(np.int64) - 1  # binary digits but the first
    if len(lengths) and int(lengths.max()) >= MOST_BITS:
        raise NernError(f"codes of up to {int(size.max()):,} steps cannot be held; take a larger step")
    coder.uniform(lengths, np.full(len(lengths), MOST_BITS))
    coder.uniform(beyond - (1 << lengths), 1 << lengths)


def coded_bytes(layers: Sequence[Int[np.ndarray, "filters channels entries"]]) -> int:
    """Bytes that codes of several layers need."""
    encoder, models = Encoder(), new_models()
    for layer in layers:
        encode_codes(encoder, layer, models)
    return len(encoder.finish())


def decode_codes(
    coder: Decoder, shape: tuple[int, ...], models: np.ndarray
) -> Int[np.ndarray, "filters channels entries"]:
    """What `encode_codes` coded."""

    def code(chosen: np.ndarray, values: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
        found: np.ndarray = coder.drawn(_shares(counts)[chosen])
        return found

    sizes = coded(dealt(shape), None, models, code).ravel()
    signs = coder.uniform(np.full(int((sizes > 0).sum()), 2))
    large = sizes == SYMBOLS - 1
    lengths = coder.uniform(np.full(int(large.sum()), MOST_BITS))
    rest = coder.uniform(1 << lengths)
    negative = np.zeros(len(sizes), bool)
    negative[sizes > 0] = signs == 1
    sizes[large] += (1 << lengths) + rest - 1
    return np.where(negative, -sizes, sizes).reshape(shape)


def _shares(counts: np.ndarray) -> Float[np.ndarray, "models symbols"]:
    shares: np.ndarray = counts / counts.sum(1, keepdims=True)
    return shares
