"""Follows the channels of a network: traces it, runs it once, and notes what each operation ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nern.originals.channel_rules import FUNCTIONS, METHODS, MODULES, QUESTIONS, elementwise
from nern.originals.channel_ties import Flow, Ties, as_they_are, flows_in


def channel_ties(network: nn.Module, images: Tensor) -> Ties:
    """Trace a network, run it on `images`, and note what its operations tie. Raises whatever tracing or running raises."""
    follower = _Follower(network)
    with torch.inference_mode(False), torch.no_grad():
        follower.run(images)
    return follower.ties


class _Follower(fx.Interpreter):
    """Runs a traced network and follows its channels."""

    def __init__(self, network: nn.Module) -> None:
        names: dict[int, str] = {}
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            names.setdefault(id(tensor), name)
        graph = fx.Tracer().trace(network)
        super().__init__(fx.GraphModule(network, graph))
        self.names, self.ties = names, Ties()
        self.flows: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run it, and follow the channels of what it gives."""
        value = super().run_node(n)
        args, kwargs = fx.map_arg((n.args, n.kwargs), lambda node: self.flows[node])
        given = [*flows_in(args), *flows_in(kwargs)]
        if n.op == "output":
            for flow in given:
                self.ties.pin_flow(flow)
            return value
        found = self._followed(n, value, args, kwargs) if n.op == "call_module" or given or n.op == "get_attr" else None
        if found is None or not _fits(found, value):
            if given or n.op == "call_module":
                self._pin(n, given, value)
            found = as_they_are(value)
        self.flows[n] = found
        return value

    def _pin(self, n: fx.Node, given: Sequence[Flow], value: Any) -> None:
        """What is not understood keeps the order of all it takes, but for questions about shapes."""
        if not flows_in(as_they_are(value)) and n.target in QUESTIONS:
            return
        tensors = []
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            tensors = [*module.parameters(), *module.buffers()]
        for flow in [*given, *(self._tensor(tensor) for tensor in tensors)]:
            self.ties.pin_flow(flow)

    def _tensor(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        name = self.names.get(id(tensor))
        return as_they_are(tensor) if name is None else self.ties.of_tensor(name, tensor)

    def _followed(self, n: fx.Node, value: Any, args: Any, kwargs: Any) -> Any:
        rule: Callable[..., Any] | None
        if n.op == "get_attr":
            return self._tensor(value) if isinstance(value, Tensor) else None
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            rule = MODULES.get(type(module))
            if rule is None or _hooked(module):
                return None
            args = (module, self._tensor, *args)
        else:
            rule = (METHODS if n.op == "call_method" else FUNCTIONS).get(n.target)  # type: ignore[arg-type]
            if rule is None and getattr(n.target, "__name__", "") == "stochastic_depth":  # torchvision's
                rule = elementwise
        if rule is None:
            return None
        try:
            return rule(self.ties, value, *args, **kwargs)
        except (
            TypeError,
            AttributeError,
            IndexError,
            ValueError,
            AssertionError,
        ):  # called in a way that the rule does not know
            return None


def _hooked(module: Any) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or hasattr(module, "parametrizations")


def _fits(found: Any, value: Any) -> bool:
    flows, plain = flows_in(found), flows_in(as_they_are(value))
    return len(flows) > 0 and [f.shape for f in flows] == [f.shape for f in plain]
