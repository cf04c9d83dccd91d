"""Train the small ResNet of the quickstart and write it, with its card, to src/nern/pretrained.

    python tools/train_digits_resnet.py

ResNet8 on scikit-learn's digits: SGD with Nesterov momentum, one-cycle learning rate, crops padded by one pixel.
"""

import json
from pathlib import Path

import torch

import nern
from nern.files import save_safetensors, write_json, write_text
from nern.originals.cifar_resnet import CifarResNet
from nern.randomness import forked_rng
from nern.tasks.digits import digits
from nern.tasks.streams import TensorStream

SEED, EPOCHS, BATCH_SIZE, PEAK_LR = 0, 60, 64, 0.1
OUT = Path(nern.__file__).parent / "pretrained" / "digits-resnet8"
KWARGS = {"in_channels": 1, "num_classes": 10, "option": "A", "widths": [16, 32, 64]}


def main() -> None:
    """Train, evaluate, write."""
    train, test = digits({}, {})
    with forked_rng(SEED, "network"):
        network = CifarResNet(8, **KWARGS)
    stream = TensorStream(train, BATCH_SIZE, SEED)
    steps = EPOCHS * stream.steps_per_epoch
    optimizer = torch.optim.SGD(network.parameters(), lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, steps)
    network.train()
    for step in range(steps):
        images, labels = stream.batch(step)
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in test.batches(200))
    accuracy = 100 * correct / len(test)
    print(f"accuracy {accuracy:.2f} % on {len(test)} test images")
    save_safetensors(OUT.with_suffix(".safetensors"), network.state_dict())
    write_json(OUT.with_suffix(".json"), KWARGS)
    write_text(
        OUT.with_suffix(".md"),
        f"# {OUT.name}\n\nResNet8 ({sum(p.numel() for p in network.parameters()):,} parameters) trained on 1,200 of "
        "scikit-learn's 1,797 digits (8 x 8 pixels).\n\n"
        f"- accuracy: {accuracy:.2f} % on the {len(test)} others ({correct} right)\n"
        f"- made by: `python tools/train_digits_resnet.py` (seed {SEED}, {EPOCHS} epochs, torch {torch.__version__})\n"
        f"- arguments: `{json.dumps(KWARGS)}`\n",
    )


if __name__ == "__main__":
    main()
