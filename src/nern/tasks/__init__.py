"""Tasks: the data that original networks were trained on."""

from nern.tasks.base import Task, build_task, register_task
from nern.tasks.cifar import cifar10, cifar100
from nern.tasks.digits import digits
from nern.tasks.image_folder import imagefolder
from nern.tasks.imagenet import imagenet
from nern.tasks.images import ImageTensors
from nern.tasks.random_images import inversion, leaves, uniform
from nern.tasks.streams import EvalSet, TrainStream
from nern.tasks.unreadable import Unreadable

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
    "inversion",
    "leaves",
    "register_task",
    "uniform",
]
