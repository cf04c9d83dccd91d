"""Which networks nern takes: decided here, for every command and function alike."""

from __future__ import annotations

import copy
import itertools
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from nern.errors import NernError

DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "b": torch.bool,
}  # fmt: skip
MOST_NAME, MOST_AXES = 512, 16  # characters of a name in a file, axes of a tensor
_NUMBER = 8  # characters that the number of one of several networks may take of a name
_EXTRA = "_extra_state"  # last part of the name of what `get_extra_state` gives


def copy_of(network: nn.Module) -> nn.Module:
    """A deep copy of a network. Raises NernError for one that nern does not take (`check_network`)."""
    check_network(network)
    return _copied(network, {})


def _copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; `memo` (by id): what is shared with it."""
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:  # whatever a part of it raises
        raise _refused(
            network,
            f"it cannot be copied ({_one_line(error)}). Remove weight_norm or pruning from it, and what it holds besides "
            "tensors and plain values, such as locks, generators and open files",
        ) from error


def check_network(network: nn.Module) -> None:
    """Raise NernError for a network that nern cannot represent, copy, save and load: scripted, lazy, on no device, of
    tensors that share memory, of kinds of number that no file holds, or with a state dict of its own making."""
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise _refused(network, f"{name or 'it'} is scripted or traced by torch.jit; give the module itself")
        own = type(module)
        plain = own.set_extra_state is nn.Module.set_extra_state
        if plain and own.get_extra_state is not nn.Module.get_extra_state:
            raise _refused(network, f"{name or 'it'} has get_extra_state without set_extra_state")
    parameters = dict(network.named_parameters(remove_duplicate=False))
    named = parameters | dict(network.named_buffers(remove_duplicate=False))
    for name, tensor in named.items():
        if is_lazy(tensor):
            raise _refused(network, f"{name} has no shape yet (a lazy module); run the network once")
        if tensor.is_meta:
            raise _refused(network, f"{name} has no values (it is on device meta)")
        if tensor.layout != torch.strided or tensor.is_quantized or is_traceable_wrapper_subclass(tensor):
            raise _refused(network, f"{name} is sparse, quantised or wrapped; plain tensors are needed")
        if type(tensor) not in (Tensor, nn.Parameter):
            raise _refused(
                network, f"{name} is of a class of its own, {type(tensor).__name__}; plain tensors are needed"
            )
    try:
        state = network.state_dict(keep_vars=True)
    except Exception as error:  # whatever a module raises
        raise _refused(network, f"its state_dict() fails ({_one_line(error)})") from error
    for name in parameters:
        if state.get(name) is not parameters[name]:
            raise _refused(network, f"its state_dict() does not hold its parameter {name}")
    for name, value in state.items():
        extra = name.rpartition(".")[2] == _EXTRA
        if name not in named and not extra:
            raise _refused(network, f"its state_dict() holds {name}, no parameter or buffer of it")
        if isinstance(value, Tensor):
            _check_tensor(network, name, value)
    _check_memory(network, named)
    _copied(network, {id(tensor): tensor for tensor in named.values()})


def _check_tensor(network: nn.Module, name: str, tensor: Tensor) -> None:
    if not name.isprintable() or len(name) > MOST_NAME - _NUMBER:
        raise _refused(network, f"{name[:80]!r} is no name: at most {MOST_NAME - _NUMBER} printable characters")
    if name == "__metadata__":
        raise _refused(network, f"{name} is no name that a file of safetensors can hold")
    if tensor.dtype not in DTYPES.values():
        raise _refused(network, f"{name} holds {tensor.dtype}; it can be {', '.join(map(str, DTYPES.values()))}")
    if tensor.dim() > MOST_AXES:
        raise _refused(network, f"{name} has {tensor.dim()} axes; at most {MOST_AXES}")


def _check_memory(network: nn.Module, named: dict[str, Tensor]) -> None:
    """Raise NernError for tensors that overlap without being the same one, and for one that overlaps itself."""
    places = dict[int, tuple[str, int, int, str]]()  # device, first byte, byte behind the last one, name; by id
    for name, tensor in named.items():
        if torch._debug_has_internal_overlap(tensor) == 1:
            raise _refused(network, f"{name} holds one number in several places (it was expanded); clone it")
        if tensor.numel() and id(tensor) not in places:
            last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            end = tensor.data_ptr() + (last + 1) * tensor.element_size()
            places[id(tensor)] = (str(tensor.device), tensor.data_ptr(), end, name)
    for (device, _, end, first), (other, begin, _, second) in itertools.pairwise(
        sorted(places.values(), key=itemgetter(0, 1))
    ):
        if device == other and begin < end:
            raise _refused(
                network, f"{first} and {second} share memory, but are two tensors: make them one, or clone one of them"
            )


def _refused(network: nn.Module, why: str) -> NernError:
    return NernError(f"{type(network).__name__} cannot be represented: {why}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
