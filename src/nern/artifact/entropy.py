"""Whole numbers as bytes, near their entropy: one range coder (constriction), and models that learn while they code.

Nothing but integers and exactly rounded divisions decides on a code: decoding gives the same numbers on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from constriction import stream
from jaxtyping import Float, Int

from nern.errors import NernError

Categorical, Uniform = stream.model.Categorical, stream.model.Uniform

FIRST_BLOCK, LAST_BLOCK = 32, 4096  # symbols coded by one state of the model: it learns after each block
MOST_SYMBOLS = 1024  # of a model; what larger alphabets have beyond is in lower bits, coded as they are
MOST_UNIFORM = 2**23
MOST_ADAPTIVE = MOST_SYMBOLS * MOST_UNIFORM  # symbols of an alphabet: the lower bits are uniform
AT_ONCE = 2**20  # numbers decoded by one call: what lies between call and result stays small

Integers = Int[np.ndarray, " n"]


class Encoder:
    """Codes sequences of integers one after the other."""

    def __init__(self) -> None:
        self._coder = stream.queue.RangeEncoder()

    def uniform(self, values: Integers, sizes: Integers) -> None:
        """Code values of which each is below its size, all as likely. Sizes are at most 2**23."""
        chosen = sizes > 1  # of one possibility nothing is said
        self._coder.encode(values[chosen].astype(np.int32), Uniform(), sizes[chosen].astype(np.int32))

    def adaptive(self, values: Integers, symbols: int) -> None:
        """Code values from 0 to `symbols` - 1, by how often each has occurred so far. At most 2**33 symbols."""
        shift, alphabet = _split(symbols)
        high, low = values >> shift, values & ((1 << shift) - 1)
        if alphabet > 1:

            def code(model: Any, start: int, end: int) -> np.ndarray:
                block = high[start:end]
                self._coder.encode(block.astype(np.int32), model)
                return block

            _in_blocks(len(values), alphabet, code)
        if shift:
            self.uniform(low, np.full(len(values), 1 << shift))

    def drawn(self, values: Integers, shares: Float[np.ndarray, "n symbols"]) -> None:
        """Code values, each as likely as its row of `shares` says."""
        self._coder.encode(values.astype(np.int32), Categorical(perfect=False), shares)

    def finish(self) -> bytes:
        """The code: 32-bit words, little-endian."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Gives back what an `Encoder` coded, asked in the same order with the same arguments.

    Whatever the bytes are, values are below their sizes, or it is an error; after the end of the bytes zeros are read.

    Raises:
        NernError: the code is no whole number of words, or none that an encoder writes.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise NernError(f"a code of {len(data)} bytes is not a whole number of 32-bit words")
        self._coder = stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._untouched = bool(data)
        self.bits = 8 * len(data)

    def uniform(self, sizes: Integers) -> Integers:
        chosen = sizes > 1
        values = np.zeros(len(sizes), np.int64)
        values[chosen] = self._decode(Uniform(), sizes[chosen].astype(np.int32))
        return values

    def adaptive(self, count: int, symbols: int) -> Integers:
        if symbols > MOST_ADAPTIVE:
            raise NernError(f"an alphabet of {symbols:,} symbols is too large; at most {MOST_ADAPTIVE:,}")
        shift, alphabet = _split(symbols)
        values: np.ndarray[Any, np.dtype[np.integer]] = np.zeros(count, np.int32 if symbols <= 2**31 else np.int64)
        if alphabet > 1:

            def decode(model: Any, start: int, end: int) -> np.ndarray:
                values[start:end] = self._decode(model, end - start)
                return values[start:end]

            _in_blocks(count, alphabet, decode)
        if shift:
            for start in range(0, count, AT_ONCE):
                high = values[start : start + AT_ONCE]
                values[start : start + AT_ONCE] = (high << shift) | self.uniform(np.full(len(high), 1 << shift))
            if count and int(values.max()) >= symbols:
                raise NernError(f"a code holds {int(values.max()):,}, beyond its {symbols:,} symbols")
        return values

    def drawn(self, shares: Float[np.ndarray, "n symbols"]) -> Integers:
        return self._decode(Categorical(perfect=False), shares).astype(np.int64)

    def finish(self) -> None:
        """Raises NernError if something is left of the code."""
        if self._untouched or not self._coder.maybe_exhausted():
            raise NernError("a coded section is longer than its content")

    def _decode(self, model: Any, argument: Any) -> np.ndarray:
        self._untouched = False
        try:
            return self._coder.decode(model, argument)
        except (AssertionError, ValueError) as error:
            raise NernError("a coded section is damaged: no encoder writes such bytes") from error


def _split(symbols: int) -> tuple[int, int]:
    """Bits of each value that are coded as they are, and how many symbols the model of the others has."""
    shift = max(0, (symbols - 1).bit_length() - (MOST_SYMBOLS - 1).bit_length())
    return shift, ((symbols - 1) >> shift) + 1


def _in_blocks(count: int, symbols: int, code: Callable[[Any, int, int], np.ndarray]) -> None:
    """Code blocks of growing length, each by the counts of all before it; every symbol counts as seen half a time."""
    counts, start, length = np.ones(symbols, np.int64), 0, FIRST_BLOCK
    while start < count:
        end = min(start + length, count)
        block = code(Categorical(counts / counts.sum(), perfect=False), start, end)
        counts += 2 * np.bincount(block, minlength=symbols)
        start, length = end, min(2 * length, LAST_BLOCK)
