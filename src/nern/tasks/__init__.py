"""Tasks: the data that original networks were trained on."""

from nern.tasks.base import EvalSet, Task, TrainStream, build_task, register_task
from nern.tasks.cifar import cifar10, cifar100
from nern.tasks.digits import digits
from nern.tasks.images import ImageTensors
from nern.tasks.random_images import uniform

__all__ = [
    "EvalSet",
    "ImageTensors",
    "Task",
    "TrainStream",
    "build_task",
    "cifar10",
    "cifar100",
    "digits",
    "register_task",
    "uniform",
]
