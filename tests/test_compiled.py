"""Functions compiled when they are first called."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numba.core.registry
import pytest

from nern.compiled import Compiled, compiled

_compiled = compiled(cache=False, error_model="numpy")


@_compiled
def _quotient(a: Any, b: Any) -> Any:
    return a / b


@_compiled
def _sum_of_quotients(a: Any, n: Any) -> Any:
    total = 0.0
    for i in range(n):
        total += _quotient(a, i)
    return total


quotient = _quotient  # as another module has it, which imported it by name


def test_functions_call_each_other_with_their_options() -> None:
    assert isinstance(quotient, Compiled)
    assert _sum_of_quotients(1.0, 3) == math.inf  # Python would raise ZeroDivisionError
    assert quotient(1.0, 4.0) == 0.25
    assert isinstance(_quotient, numba.core.registry.CPUDispatcher)


@pytest.mark.parametrize(
    "work",
    [
        "import nern.cli",
        "import nern; nern.load('pretrained:resnet20-cifar10.nern').network()",
    ],
)
def test_compiler_and_plots_are_imported_only_where_they_are_needed(work: str) -> None:
    code = f"import sys; {work}; print(*sorted({{'numba', 'matplotlib', 'scipy.linalg'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""
