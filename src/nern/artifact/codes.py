"""Codes as bytes: whole numbers around zero, each coded by what its neighbours were.

What is known of a number before it is coded is its place: the filter, the channel and the entry of the code, and the kernel
to which it belongs. The numbers that were coded before it there give the share of numbers that are not zero, and the size of
those, to expect. Each chooses one of a few models, which learn while they code: whether the number is zero, and if not, its
size. `docs/format.md` says it in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from nern.artifact.entropy import Decoder, Encoder
from nern.errors import NernError
from nern.representation.grid import step_size

FIRST, APART = -66, 3  # number of the step below which is the first model, and between two models
ZERO_MODELS, SIZE_MODELS = 40, 56  # by the odds, and by the size less 1, to expect
CLASSES = (0.45, 0.8)  # shares of numbers that are not zero: sizes below, between and above have models of their own
MOST_SHARE = 1 - 2.0**-12
OCTAVES = 9  # of sizes from 8 on that are told in quarters; smaller ones are told exactly
SEEN, WEIGHT = 2048, 32  # how often each model has seen its symbols before the first, and how much each one counts
TILES = 16  # parts of the filters: each knows the ones before
# numbers that a filter or channel, a kernel, an entry counts as seen
PRIOR, KERNEL_PRIOR, ENTRY_PRIOR = 8.0, 24.0, 16.0
MOST_ENTRIES = 8  # into which the channels of a layer of single weights are dealt
MOST_PARTS = 2**18  # of all codes of a stream, that are coded one after the other
MOST_BITS = 24  # of a size beyond the models

OLD_SYMBOLS, OLD_SEEN, OLD_PRIOR, OLD_KERNEL_PRIOR = 16, 512, 4.0, 8.0  # of version 2: sizes 0 to 14, 15 for all larger

Numbers = Int[np.ndarray, " n"]
Codes = Int[np.ndarray, "filters channels entries"]

# The sizes with which symbols begin: 1 to 8, then four in each doubling; the last one stands for all from there on.
STARTS = np.array(
    [*range(1, 8), *(2**o * q for o in range(1, OCTAVES + 1) for q in range(4, 8)), 4 * 2 ** (OCTAVES + 1)]
)
WIDTHS = np.append(np.diff(STARTS), 1)


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


# --- models -------------------------------------------------------------------------------------------------------


def _edges(models: int) -> Float[np.ndarray, " edges"]:
    """What is expected at least of each model but the first."""
    return np.array([step_size(FIRST + APART * number) for number in range(models - 1)])


def _expected(models: int) -> list[float]:
    """What stands for all that a model may expect."""
    return [step_size(FIRST + APART * number - 1) for number in range(models)]


def _counts(shares: Iterable[float], seen: int) -> list[int]:
    return [max(1, int(seen * share)) for share in shares]


@cache
def _of_zeros() -> Int[np.ndarray, "models 2"]:
    """Counts of zeros and others, before anything was coded."""
    return np.array([_counts((1 / (1 + odds), odds / (1 + odds)), SEEN) for odds in _expected(ZERO_MODELS)])


@cache
def _of_sizes() -> Int[np.ndarray, "models symbols"]:
    """Counts of each symbol, before anything was coded: geometric distributions of sizes, from 1 on."""
    found = []
    for expected in _expected(SIZE_MODELS):
        beyond, share = [], 1.0  # share of the sizes from each one on
        for _ in range(STARTS[-1]):
            beyond.append(share)
            share *= expected / (1 + expected)
        at = [beyond[start - 1] for start in STARTS]
        found.append(_counts((a - b for a, b in zip(at, [*at[1:], 0.0], strict=True)), SEEN))
    return np.array(found * (len(CLASSES) + 1))


@cache
def _counts_of_version_2() -> Int[np.ndarray, "models symbols"]:
    found = []
    for expected in _expected(ZERO_MODELS):
        ratio = expected / (1 + expected)
        shares = [1 - ratio]
        for _ in range(OLD_SYMBOLS - 1):
            shares.append(shares[-1] * ratio)
        found.append(_counts(shares, OLD_SEEN))
    return np.array(found)


class Expected:
    """The mean to expect of numbers that come entry after entry, and in an entry in parts of the filters: from the means of
    those before in their filter, their channel, their kernel and their entry.

    Args:
        filters, channels: of the kernels.
        prior, kernel_prior: numbers that filters and channels, and kernels, count as seen at the mean of all.
    """

    def __init__(self, filters: int, channels: int, prior: float, kernel_prior: float) -> None:
        self.prior, self.kernel_prior, self.mean = prior, kernel_prior, 0.5
        self.kernels, self.channels, self.filters = (
            np.zeros((2, *size)) for size in ((filters, channels), (channels,), (filters,))
        )  # of each the sum of its numbers, and how many they are

    def begin(self) -> None:
        """Go on with the next entry."""
        self.before, self.last = _mean(self.filters), self.mean
        self.entry = np.zeros(2)
        self.of_filters = self._ratios(self.filters, self.before)

    def of(self, part: slice) -> Float[np.ndarray, "filters channels"]:
        """What is expected of the numbers of this part of the filters in this entry."""
        self.mean = (self.entry[0] + ENTRY_PRIOR * self.last) / (self.entry[1] + ENTRY_PRIOR)
        place = self.of_filters[part, None] * self._ratios(self.channels, _mean(self.channels))[None]
        expected = self.mean * place
        if self.before > 0:
            usual, (sums, counts) = self.before * place, self.kernels[:, part]
            expected *= ((sums + self.kernel_prior * usual) / (counts + self.kernel_prior)) / usual
        return np.asarray(expected)

    def see(self, part: slice, values: np.ndarray, counted: np.ndarray) -> None:
        """Take note of the numbers of the part; those not `counted` are zero."""
        seen = np.stack([values, counted])
        self.kernels[:, part] += seen
        self.channels += seen.sum(1)
        self.filters[:, part] += seen.sum(2)
        self.entry += seen.sum((1, 2))

    def _ratios(self, seen: Float[np.ndarray, "2 n"], mean: float) -> Float[np.ndarray, " n"]:
        """The means of filters or channels, over that of all."""
        sums, counts = seen
        return np.asarray(((sums + self.prior * mean) / (counts + self.prior)) / mean) if mean else np.ones(len(sums))


def _mean(seen: Float[np.ndarray, "2 n"]) -> float:
    total, count = seen.sum(1)
    return float(total / count) if count else 0.0


def _shares(counts: np.ndarray) -> Float[np.ndarray, "models symbols"]:
    shares: np.ndarray = counts / counts.sum(1, keepdims=True)
    return shares


def _parts(filters: int) -> Iterator[slice]:
    """The parts of the filters of an entry, but for empty ones."""
    ends = [filters * tile // TILES for tile in range(TILES + 1)]
    yield from (slice(start, stop) for start, stop in pairwise(ends) if start < stop)


# --- both ways ----------------------------------------------------------------------------------------------------


class _Coder(Protocol):
    """Codes numbers, and gives them back. A reader does not look at them, and gives back those that were coded."""

    def drawn(self, shares: Float[np.ndarray, "n symbols"], numbers: Numbers) -> Numbers:
        """Numbers, each as likely as its row of `shares` says."""
        ...

    def uniform(self, sizes: Numbers, numbers: Numbers) -> Numbers:
        """Numbers of which each is below its size, all as likely."""
        ...


class _Writer:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def drawn(self, shares: np.ndarray, numbers: Numbers) -> Numbers:
        self.encoder.drawn(numbers, shares)
        return numbers

    def uniform(self, sizes: Numbers, numbers: Numbers) -> Numbers:
        self.encoder.uniform(numbers, sizes)
        return numbers


class _Reader:
    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def drawn(self, shares: np.ndarray, numbers: Numbers) -> Numbers:
        return self.decoder.drawn(shares)

    def uniform(self, sizes: Numbers, numbers: Numbers) -> Numbers:
        return self.decoder.uniform(sizes)


class Models:
    """Counts of the symbols of each model, which all tensors of a section share; made where a tensor asks for them."""

    @cached_property
    def zeros(self) -> np.ndarray:
        """Of zeros and others."""
        return _of_zeros().copy()

    @cached_property
    def sizes(self) -> np.ndarray:
        """Of the sizes of others."""
        return _of_sizes().copy()

    @cached_property
    def of_version_2(self) -> np.ndarray:
        """Of sizes from 0 on."""
        return _counts_of_version_2().copy()


def _coded(coder: _Coder, shape: tuple[int, ...], numbers: np.ndarray, models: Models) -> Codes:
    """Numbers of a tensor of this shape, coded or decoded."""
    filters, channels, entries = dealt(shape)
    numbers = numbers.reshape(filters, channels, entries)
    known = np.zeros(numbers.shape, np.int64)
    share, size = (Expected(filters, channels, PRIOR, KERNEL_PRIOR) for _ in range(2))
    for entry in range(entries):
        share.begin()
        size.begin()
        for part in _parts(filters):
            own = np.abs(numbers[part, :, entry].ravel())
            shares = np.minimum(share.of(part), MOST_SHARE).ravel()
            chosen = np.searchsorted(ZERO_EDGES, shares / (1 - shares), side="right")
            there = coder.drawn(_shares(models.zeros)[chosen], (own > 0).astype(np.int64))
            np.add.at(models.zeros, (chosen, there), WEIGHT)
            where = there == 1
            classes = np.searchsorted(CLASSES, shares[where], side="right")
            chosen = np.searchsorted(SIZE_EDGES, size.of(part).ravel()[where], side="right") + SIZE_MODELS * classes
            found = np.zeros(len(own), np.int64)
            found[where] = _sized(coder, own[where], chosen, models)
            block, counted = (values.reshape(-1, channels) for values in (found, there))
            known[part, :, entry] = block
            share.see(part, counted, np.ones_like(counted))
            size.see(part, np.maximum(block - 1, 0), counted)
    return _signed(coder, known, numbers).reshape(shape)


def _sized(coder: _Coder, sizes: Numbers, chosen: Numbers, models: Models) -> Numbers:
    """Sizes from 1 on: the symbol of each by its model, then where in the symbol it is."""
    if not len(chosen):
        return chosen
    symbols = coder.drawn(_shares(models.sizes)[chosen], np.searchsorted(STARTS, sizes, side="right") - 1)
    np.add.at(models.sizes, (chosen, symbols), WEIGHT)
    starts, beyond = STARTS[symbols], symbols == len(STARTS) - 1
    found = starts + coder.uniform(WIDTHS[symbols], np.where(beyond, 0, sizes - starts))
    if beyond.any():
        found[beyond] = _beyond(coder, sizes[beyond] - STARTS[-1]) + STARTS[-1]
    return found


def _beyond(coder: _Coder, sizes: Numbers) -> Numbers:
    """Sizes from 0 on, of any number of binary digits."""
    lengths = np.frexp((sizes + 1).astype(np.float64))[1].astype(np.int64) - 1
    if len(lengths) and int(lengths.max()) >= MOST_BITS:
        raise NernError(f"codes of up to {int(sizes.max()):,} steps cannot be held; take a larger step")
    ones = 1 << coder.uniform(np.full(len(sizes), MOST_BITS), lengths)
    return ones + coder.uniform(ones, sizes + 1 - ones) - 1


def _signed(coder: _Coder, sizes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sizes with the signs of the numbers."""
    flat, negative = sizes.ravel(), np.zeros(sizes.size, bool)
    there = flat > 0
    two = np.full(int(there.sum()), 2)
    negative[there] = coder.uniform(two, (numbers.ravel()[there] < 0).astype(np.int64)) == 1
    return np.where(negative, -flat, flat)


ZERO_EDGES, SIZE_EDGES = _edges(ZERO_MODELS), _edges(SIZE_MODELS)


# --- version 2 ----------------------------------------------------------------------------------------------------


def _coded_of_version_2(coder: _Coder, shape: tuple[int, ...], numbers: np.ndarray, models: Models) -> Codes:
    """`_coded` as version 2 of the format has it: one model for zeros and sizes."""
    filters, channels, entries = dealt(shape)
    numbers = numbers.reshape(filters, channels, entries)
    known, size = np.zeros(numbers.shape, np.int64), Expected(filters, channels, OLD_PRIOR, OLD_KERNEL_PRIOR)
    for entry in range(entries):
        size.begin()
        for part in _parts(filters):
            own, expected = np.abs(numbers[part, :, entry]), size.of(part)
            chosen = np.searchsorted(ZERO_EDGES, expected.ravel(), side="right")
            shares = _shares(models.of_version_2)[chosen]
            found = coder.drawn(shares, np.minimum(own, OLD_SYMBOLS - 1).ravel())
            np.add.at(models.of_version_2, (chosen, found), WEIGHT)
            block = found.reshape(expected.shape)
            known[part, :, entry] = block
            size.see(part, block, np.ones_like(block))
    signed = _signed(coder, known, numbers)
    large = np.abs(signed) == OLD_SYMBOLS - 1
    rest = _beyond(coder, np.abs(numbers.ravel()[large]) - (OLD_SYMBOLS - 1))
    signed[large] += np.sign(signed[large]) * rest
    return signed.reshape(shape)


WRITTEN = "codes3"  # how codes are held in new files
HELD = {WRITTEN: _coded, "codes": _coded_of_version_2}  # and how they may be


# --- codes --------------------------------------------------------------------------------------------------------


def encode_codes(coder: Encoder, codes: Codes, models: Models, held: str = WRITTEN) -> None:
    """Code whole numbers. `models`: of all tensors of a section, new at first."""
    HELD[held](_Writer(coder), codes.shape, codes.astype(np.int64), models)


def decode_codes(coder: Decoder, shape: tuple[int, ...], models: Models, held: str = WRITTEN) -> Codes:
    """What `encode_codes` coded."""
    return HELD[held](_Reader(coder), shape, np.zeros(shape, np.int64), models)


def coded_bytes(layers: Sequence[Codes]) -> int:
    """Bytes that codes of several layers need."""
    encoder, models = Encoder(), Models()
    for layer in layers:
        encode_codes(encoder, layer, models)
    return len(encoder.finish())
