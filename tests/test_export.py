"""A reconstructed network is an ordinary module: it is exported, scripted by tracing, fine-tuned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nern


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nern.load("pretrained:digits-resnet8.nern").network()


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=rng)


def test_torch_export_gives_the_same_outputs(network: nn.Module, images: Tensor) -> None:
    program = torch.export.export(network, (images,))
    torch.testing.assert_close(program.module()(images), network(images))


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
def test_onnx_gives_the_same_outputs(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    import onnxruntime

    path = str(tmp_path / "network.onnx")
    torch.onnx.export(network, (images,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(outputs, network(images).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_it_can_be_fine_tuned(images: Tensor) -> None:
    network = nern.load("pretrained:digits-resnet8.nern").network()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(images).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
