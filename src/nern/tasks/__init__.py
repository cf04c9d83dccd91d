"""Tasks: the data that original networks were trained on."""

from nern.tasks.base import Task, build_task, register_task
from nern.tasks.cifar import cifar10, cifar100
from nern.tasks.digits import digits
from nern.tasks.image_folder import imagefolder, imagenet
from nern.tasks.images import ImageTensors
from nern.tasks.loaders import Unreadable
from nern.tasks.random_images import leaves, uniform
from nern.tasks.streams import EvalSet, TrainStream

__all__ = [
    "EvalSet",
    "ImageTensors",
    "Task",
    "TrainStream",
    "Unreadable",
    "build_task",
    "cifar10",
    "cifar100",
    "digits",
    "imagefolder",
    "imagenet",
    "leaves",
    "register_task",
    "uniform",
]
