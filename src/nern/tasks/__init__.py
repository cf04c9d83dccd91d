"""Tasks: the data that original networks were trained on. The modules below register them, in this order."""

from nern.tasks import cifar, digits, image_folder, random_images

__all__ = ["cifar", "digits", "image_folder", "random_images"]
