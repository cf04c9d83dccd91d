"""Pickles of weights files, followed without making anything of them: what loading them would call, and what that costs.

PyTorch's restricted unpickler (`torch.load` with `weights_only`) runs none of a file's code, but it does what a file asks
of the functions that it knows: allocate as much as a number says, copy one list a million times, hash a tuple that holds
itself 2**60 times over. Here each opcode is followed with sizes in place of values, and such a file is refused first.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import torch

from nern.errors import NernError

_COST, _COST_EACH = 2**20, 2  # of all calls: values copied, and so many more for each byte of the file
_ODD_KEYS = 1000  # keys besides text and plain numbers: their hashes can be made to collide
_KEY_SIZE, _ENDLESS = 1000, 2**60  # values in a key, those within it written out; no sizes beyond are told apart
# whose third argument is a shape
_OF_SIZE = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
_CONTAINERS = {"builtins.set", "collections.Counter", "collections.OrderedDict"}
_CALLED = _OF_SIZE | _CONTAINERS | {
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_sparse_tensor",
    "torch.serialization._get_layout", "torch.Size", "torch.device", "builtins.complex", "_codecs.encode",
}  # fmt: skip
_WITH_TYPE = "torch._tensor._rebuild_from_type_v2"  # calls its first argument with those in its third
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PLAIN = {"BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE", "SHORT_BINSTRING"}
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set", "EMPTY_TUPLE": "tuple"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Value:
    """What a value of a pickle takes.

    Args:
        kind: 'plain', 'global', 'stored' (numbers in the file), a container's, or the name of what is called to make it.
        size: values within it; a tuple's written out, as hashing it goes through them.
        items: of lists and tuples; of mappings the keys.
        plain: a number or text itself; of a global its name.
    """

    __slots__ = ("items", "kind", "plain", "size")

    def __init__(self, kind: str, size: int = 1, items: Sequence[_Value] = (), plain: Any = None) -> None:
        self.kind, self.size, self.plain = kind, size, plain
        self.items: Any = list(items) if kind in ("list", "dict", "set") else items


class _Follower:
    def __init__(self, kinds: Collection[str], most: int, records: Mapping[str, int] | None) -> None:
        self.own, self.kinds, self.most, self.records = set(kinds), _CALLED | set(kinds), most, records
        self.cost, self.odd = 0, 0
        self.stack: list[_Value] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Value] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        if name in _PLAIN:
            stack.append(_Value("plain", len(argument) if isinstance(argument, str) else 1, plain=argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", *_TUPLES):
            items = self._from(len(stack) - _TUPLES[name] if name in _TUPLES else self.marks.pop())
            stack.append(_Value("tuple", min(1 + sum(item.size for item in items), _ENDLESS), items))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(self._call(stack.pop(), arguments))
        elif name == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        elif name in ("APPEND", "APPENDS"):
            self._put(self._from(len(stack) - 1 if name == "APPEND" else self.marks.pop()))
        elif name in ("SETITEM", "SETITEMS"):
            keys = self._from(len(stack) - 2 if name == "SETITEM" else self.marks.pop())[::2]
            self._check_keys(keys)
            self._put(keys)
        elif name in _CONSTANTS:
            stack.append(_Value("plain", plain=_CONSTANTS[name]))
        elif name in _EMPTY:
            stack.append(_Value(_EMPTY[name]))
        elif name == "GLOBAL":
            module, _, what = argument.partition(" ")
            module, what = NAME_MAPPING.get((module, what), (IMPORT_MAPPING.get(module, module), what))
            stack.append(_Value("global", plain=f"{module}.{what}"))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name not in ("PROTO", "STOP"):
            raise NernError(f"holds the opcode {name}, which torch.save does not write, and is refused")

    def _from(self, start: int) -> list[_Value]:
        """What lies on the stack from there on, taken off."""
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _put(self, items: list[_Value]) -> None:
        container = self.stack[-1]
        container.items = [*container.items] if isinstance(container.items, tuple) else container.items
        container.items += items
        container.size += len(items)

    def _build(self, state: _Value) -> None:
        """A state for what is on the stack: of an ordered mapping what PyTorch keeps there; of a stand-in any."""
        built = self.stack[-1].kind
        plain = state.kind == "dict" and all(key.plain == "_metadata" for key in state.items)
        if not (built in self.own or (built == "collections.OrderedDict" and plain)):
            raise NernError(f"sets the state of {built}, which no weights need, and is refused")
        self._pay(state.size)

    def _pay(self, cost: int) -> None:
        self.cost += cost
        if self.cost > _COST + _COST_EACH * self.most:
            raise NernError("would take far more time and room to load than goes with its bytes, and is refused")

    def _stored(self, told: _Value) -> _Value:
        """Numbers that lie in the file: ('storage', kind, key, device, how many, ...)."""
        count = told.items[4].plain if len(told.items) > 4 else None
        if not isinstance(count, int) or not 0 <= count <= self.most:
            raise NernError(f"tells of {count} numbers and has {self.most:,} bytes, and is refused")
        if self.records is not None:  # some versions of PyTorch read beyond the end of what is too short
            kind = getattr(torch, str(told.items[1].plain).rpartition(".")[2], None)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, that its typed storages are old
                each = getattr(kind, "dtype", torch.uint8).itemsize
            size, has = each * count, self.records.get(told.items[2].plain, 0)
            if has < size:
                raise NernError(f"cannot be read: {size:,} bytes of a tensor should be in it, but {has:,} are")
        return _Value("stored", count)

    def _call(self, called: _Value, arguments: _Value) -> _Value:
        name, items = called.plain, arguments.items
        named = called.kind == "global" and arguments.kind == "tuple"
        if named and name == _WITH_TYPE:
            self._pay(arguments.size)
            return self._call(items[0], items[2])
        if not named or name not in self.kinds:
            raise NernError(code_refused(name if called.kind == "global" else called.kind))
        self._pay(sum(1 if item.kind == "stored" else item.size for item in items))
        made = _Value(name, min(1 + sum(item.size for item in items), _ENDLESS), items)
        if name == "_codecs.encode" and items[1].plain not in ("latin1", "latin-1"):
            # others make it grow, again and again
            raise NernError("encodes text as no pickle does, and is refused")
        if name in _CONTAINERS:
            made.items = []
            for item in (item for container in items for item in container.items):
                of_pair = name != "builtins.set" and item.items
                self._check_keys([item.items[0]] if of_pair else [item])
        if name in _OF_SIZE:
            shape = items[2].items[0] if items[2].kind == "torch.Size" else items[2]
            made.size = math.prod(axis.plain for axis in shape.items)
            if not 0 <= made.size <= items[0].size:
                raise NernError(
                    "holds a tensor of more numbers than are in the file for it (it was expanded); clone it"
                )
        return made

    def _check_keys(self, keys: Iterable[_Value]) -> None:
        for key in keys:
            if key.kind == "plain" and not (isinstance(key.plain, int) and abs(key.plain) >= 2**60):
                continue
            self.odd += 1
            if key.size > _KEY_SIZE or self.odd > _ODD_KEYS:
                raise NernError("holds mappings or sets with keys that no weights need, and is refused")


def code_refused(name: str) -> str:
    """What is said of a file that names this function or class."""
    return (
        f"holds Python objects besides tensors ({name}); they could run code and are refused. Save plain tensors instead "
        "(of a network: torch.save(model.state_dict(), path), or safetensors)."
    )


def check_pickle(stream: BinaryIO, kinds: Collection[str], most: int, records: Mapping[str, int] | None = None) -> None:
    """Follow a pickle to its end; nothing in it is called.

    Args:
        stream: at its beginning.
        kinds: names of functions and classes that it may call, besides those that make tensors and plain containers.
        most: bytes of the file: tensors may hold as many numbers.
        records: bytes that the file has for the numbers of each storage, by its key; None: they lie behind the pickle.

    Raises:
        NernError: it calls another one; loading it would take far more time or room than goes with its bytes; it holds
            what `torch.save` does not write. The message is what is said of the file.
        ValueError, IndexError, KeyError, TypeError, AttributeError: it is no pickle, or a damaged one.
    """
    follower = _Follower(kinds, most, records)
    for opcode, argument, _ in pickletools.genops(stream):
        follower.follow(opcode.name, argument)
