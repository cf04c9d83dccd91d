"""Tasks: the data that original networks were trained on. The modules below register them, in this order."""

from nern.tasks import cifar, digits, image_folder, random_images
from nern.tasks.loaders import Unreadable

__all__ = ["Unreadable", "cifar", "digits", "image_folder", "random_images"]
