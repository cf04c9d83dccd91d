"""Compiled loops over the rows of 16-bit maps: a bfloat16 is widened as it is read and narrowed as it is written."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_in_compiled_code: Any = intrinsic
_compiled = numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})


@_in_compiled_code  # type: ignore
def _widen(context: Any, bits: Any) -> Any:
    """The float32 that 16 bits of a bfloat16 stand for: its upper half."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        upper = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(upper, ir.FloatType())

    return types.float32(types.uint16), build


@_in_compiled_code  # type: ignore
def _narrow(context: Any, value: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, ties to even. Not for NaN whose lower half alone is set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, half = builder.bitcast(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16)
        odd = builder.and_(builder.lshr(bits, half), ir.Constant(ir.IntType(32), 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(ir.IntType(32), 0x7FFF)))
        return builder.trunc(builder.lshr(rounded, half), ir.IntType(16))

    return types.uint16(types.float32), build


@_compiled
def row_products(x: Any, y: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """Of rows x and y, their norms and their inner product, in float32."""
    for row in range(x.shape[0]):
        xx, yy, xy = np.float32(0), np.float32(0), np.float32(0)
        for entry in range(x.shape[1]):
            a, b = _widen(x[row, entry]), _widen(y[row, entry])
            xx += a * a
            yy += b * b
            xy += a * b
        out[row, 0], out[row, 1], out[row, 2] = np.sqrt(xx), np.sqrt(yy), xy


@_compiled
def row_combinations(x: Any, y: Any, of_x: Any, of_y: Any, out: Any) -> None:  # pragma: no cover (compiled)
    """Of rows x and y, with a number of each for each row: of_x x + of_y y."""
    for row in range(x.shape[0]):
        a, b = of_x[row], of_y[row]
        for entry in range(x.shape[1]):
            out[row, entry] = _narrow(a * _widen(x[row, entry]) + b * _widen(y[row, entry]))
