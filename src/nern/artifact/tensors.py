"""Tensors as bytes: as they are, in 16 bits, or as multiples of a step, entropy-coded.

Multiples are held as a 'grid' (each by how often it has occurred in the tensor) or as 'codes' (each by the sizes near it).

A group of tensors is described by a list, `TensorCode` each, and held in two strings of bytes: the code of the multiples,
and the rest as it is, little-endian, one tensor after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nern.artifact.codes import HELD, WRITTEN, Models, check_parts, decode_codes, encode_codes
from nern.artifact.entropy import AT_ONCE, Decoder, Encoder, Integers
from nern.errors import NernError
from nern.originals.checked import DTYPES, MOST_AXES, MOST_NAME
from nern.representation.grid import step_size

NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_SYMBOLS = 2**24  # of a tensor of multiples
TAILS = {"grid": 3, **dict.fromkeys(HELD, 1)}  # numbers that a description says beside how it is held
MOST_AXIS = 2**31
HALF_ERROR = 2**-10  # relative, by which a value may change where 16 bits are asked for


@dataclass(frozen=True)
class TensorCode:
    """How one tensor is held."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # 'f32', ...
    held: str = "as"  # as it is; 'f16', its values in 16 bits; 'grid' and 'codes', multiples of a step
    step: int = 0  # number of the step ('grid', 'codes')
    low: int = 0  # the smallest multiple ('grid')
    symbols: int = 1  # how many multiples there are up to the largest ('grid')

    @property
    def count(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def raw_bytes(self) -> int:
        """Bytes among those that are as they are."""
        if self.held in TAILS:
            return 0
        return self.count * DTYPES["f16" if self.held == "f16" else self.dtype].itemsize

    def to_json(self) -> list[Any]:
        """As a list, for the description."""
        tail = [self.step, self.low, self.symbols][: TAILS.get(self.held, 0)]
        return [self.name, list(self.shape), self.dtype, self.held, *tail]

    @staticmethod
    def from_json(value: Any) -> TensorCode:
        """What `to_json` gave. Raises NernError for anything else."""
        head, tail = (list(value[:4]), list(value[4:])) if isinstance(value, list) else ([], [])
        if len(head) != 4 or not all(isinstance(item, str) for item in (head[0], head[2], head[3])):
            raise NernError(f"{repr(value)[:80]} does not describe a tensor")
        name, shape, dtype, held = head
        check_name(name, "a tensor")
        axes: list[Any] = shape if isinstance(shape, list) and len(shape) <= MOST_AXES else [None]
        if not all(is_int(n) and 0 <= n < MOST_AXIS for n in axes) or math.prod(max(n, 1) for n in axes) >= 2**62:
            raise NernError(f"tensor {name!r} has the shape {repr(shape)[:80]}")
        if dtype not in DTYPES or held not in ("as", "f16", *TAILS):
            raise NernError(f"tensor {name!r} is held as {dtype[:16]!r}, {held[:16]!r}; neither is known")
        if len(tail) != TAILS.get(held, 0) or not all(is_int(n) for n in tail):
            raise NernError(f"tensor {name!r} is not described in full")
        code = TensorCode(name, tuple(shape), dtype, held, *tail)
        if held == "grid" and not (1 <= code.symbols <= MOST_SYMBOLS and abs(code.low) <= MOST_SYMBOLS):
            raise NernError(f"tensor {name!r} has {code.symbols} multiples from {code.low} on")
        if held in HELD and (len(code.shape) != 3 or 0 in code.shape or not DTYPES[dtype].is_floating_point):
            raise NernError(f"tensor {name!r} is held as codes, which have three axes and are real numbers")
        if not DTYPES[dtype].is_floating_point:
            if held == "f16" or code.step != 0:
                raise NernError(f"tensor {name!r} of whole numbers ({dtype}) is held as {held!r} with step {code.step}")
            least, most = _range(DTYPES[dtype])
            if held == "grid" and not least <= code.low <= code.low + code.symbols - 1 <= most:
                raise NernError(f"tensor {name!r} has {code.symbols} multiples from {code.low} on, beyond {dtype}")
        step_size(code.step)
        return code


def is_int(value: Any) -> bool:
    """Whether a value of JSON is a whole number (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_name(name: str, what: str) -> None:
    """Raise NernError for a name that is too long, or could not be shown as it is."""
    if not name.isprintable() or len(name) > MOST_NAME:
        raise NernError(f"{name[:80]!r} is no name of {what}: at most {MOST_NAME} printable characters")


def _range(dtype: torch.dtype) -> tuple[int, int]:
    """Least and largest value of a kind of whole numbers."""
    return (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)


@dataclass(frozen=True)
class Coded:
    """That a tensor is held as codes, multiples of the step of this number."""

    step: int


How = int | str | Coded


def encode_tensors(
    tensors: Mapping[str, Tensor], held: Mapping[str, How], otherwise: int | str = "as"
) -> tuple[list[TensorCode], bytes, bytes]:
    """Code tensors: their descriptions, the code of those on a grid, and the bytes of the others.

    Args:
        held: of each name, the number of a step, `Coded`, 'f16', or 'as': every bit as it is, in the fewest bytes. Whole
            numbers are held so at any rate, and in more than 16 bits is held what would not be itself in these, to about
            three digits.
        otherwise: how those are held whose names are missing.

    Raises:
        NernError: a step so small that a tensor has more multiples than can be coded; a kind of number that cannot be held.
    """
    check_parts(tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(held.get(name), Coded))
    codes, encoder, raw, models = [], Encoder(), bytearray(), Models()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        if tensor.dtype not in NAMES:
            raise NernError(
                f"{name} holds {tensor.dtype}, which an artifact cannot; {', '.join(map(str, NAMES))} can be"
            )
        how: How = held.get(name, otherwise) if tensor.is_floating_point() else "as"
        if how == "as" and _few_whole_numbers(tensor):
            how = 0  # multiples of 1
        elif how == "as" and tensor.is_floating_point() and _same_bits(tensor.half().to(tensor.dtype), tensor):
            how = "f16"
        shape, dtype = tuple(tensor.shape), NAMES[tensor.dtype]
        if isinstance(how, str):
            how = "as" if how == "f16" and (tensor.dtype.itemsize <= 2 or not _fits_half(tensor)) else how
            codes.append(TensorCode(name, shape, dtype, how))
            raw += _to_bytes(tensor.half() if how == "f16" else tensor)
            continue
        if isinstance(how, Coded):
            codes.append(TensorCode(name, shape, dtype, WRITTEN, how.step))
            encode_codes(encoder, _multiples_of(tensor, how.step).reshape(shape), models)
            continue
        multiples = _multiples_of(tensor, how)
        low, high = (int(multiples.min()), int(multiples.max())) if len(multiples) else (0, 0)
        if max(high - low + 1, abs(low)) > MOST_SYMBOLS:
            raise NernError(f"{name} reaches from {low:,} to {high:,} steps of {step_size(how):g}; take a larger step")
        codes.append(TensorCode(name, shape, dtype, "grid", how, low, high - low + 1))
        encoder.adaptive(multiples - low, high - low + 1)
    return codes, encoder.finish(), bytes(raw)


def tensor_bits(codes: Sequence[TensorCode], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Of each of the tensors that `encode_tensors` coded, how many values it has and the bits they took: coded again, to see
    where in the code each one ends. They add up to both strings of bytes."""
    encoder, ends, models = Encoder(), [0], Models()
    for c in codes:
        if c.held in HELD:
            encode_codes(encoder, _multiples_of(tensors[c.name], c.step).reshape(c.shape), models, c.held)
        if c.held == "grid":
            encoder.adaptive(_multiples_of(tensors[c.name], c.step) - c.low, c.symbols)
        ends.append(len(encoder.finish()))
    return {
        c.name: (c.count, 8 * (after - before + c.raw_bytes))
        for c, (before, after) in zip(codes, pairwise(ends), strict=True)
    }


def _multiples_of(tensor: Tensor, step: int) -> Integers:
    """The values of a tensor as multiples of a step, flat."""
    found: Integers = (tensor.double() / step_size(step)).round().long().flatten().numpy()
    return found


def _few_whole_numbers(tensor: Tensor) -> bool:
    """Whether multiples of 1 hold every bit of a tensor, and are few enough."""
    if not tensor.numel():
        return True
    low, high = tensor.min().item(), tensor.max().item()  # of NaN neither compares
    if not -MOST_SYMBOLS // 2 < low <= high < MOST_SYMBOLS // 2:
        return False
    return not tensor.is_floating_point() or _same_bits(tensor.double().round().long().to(tensor.dtype), tensor)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same to the bit: NaN and minus zero, too."""
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second)))


def _fits_half(tensor: Tensor) -> bool:
    """Whether 16 bits hold these values: none becomes infinite, nor zero."""
    exact, half = tensor.double(), tensor.half().double()
    near = (half - exact).abs() <= HALF_ERROR * exact.abs()
    return bool((near | (half == exact) | exact.isnan()).all())


def decode_tensors(codes: Sequence[TensorCode], code: bytes, raw: bytes) -> dict[str, Tensor]:
    """What `encode_tensors` coded. Raises NernError where the bytes are not as many as the descriptions say."""
    expected = sum(c.raw_bytes for c in codes)
    if len(raw) != expected:
        raise NernError(f"{len(raw):,} bytes of tensors are there, {expected:,} are described")
    check_parts(c.shape for c in codes if c.held in HELD)
    decoder, tensors, start, models = Decoder(code), dict[str, Tensor](), 0, Models()
    for c in codes:
        dtype = DTYPES[c.dtype]
        if c.held == "grid":
            values = _multiples(decoder, c)
        elif c.held in HELD:
            whole = torch.from_numpy(decode_codes(decoder, c.shape, models, c.held))
            values = (whole.double() * step_size(c.step)).to(dtype)
        else:
            held = torch.float16 if c.held == "f16" else dtype
            values = _from_bytes(raw[start : start + c.raw_bytes], held).to(dtype)
            start += c.raw_bytes
        tensors[c.name] = values.reshape(c.shape)
    decoder.finish()
    return tensors


def _multiples(decoder: Decoder, c: TensorCode) -> Tensor:
    """The values of a tensor of multiples, flat."""
    size, dtype = step_size(c.step), DTYPES[c.dtype]
    if c.symbols == 1:
        return torch.tensor(c.low * size, dtype=torch.float64).to(dtype).repeat(c.count)
    multiples, values = decoder.adaptive(c.count, c.symbols), torch.empty(c.count, dtype=dtype)
    for start in range(0, c.count, AT_ONCE):
        part = torch.from_numpy(multiples[start : start + AT_ONCE]).double() + c.low
        values[start : start + AT_ONCE] = part * size  # exact in 64 bits: a step has 24 bits, a multiple 25
    return values


def _to_bytes(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    if tensor.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    array = flat.numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    plain = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}.get(dtype, dtype)
    kind = torch.empty(0, dtype=plain).numpy().dtype
    tensor = torch.from_numpy(np.frombuffer(data, kind.newbyteorder("<")).astype(kind))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor.to(dtype)
