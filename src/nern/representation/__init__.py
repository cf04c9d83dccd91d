"""The representation itself: coordinates in, weights out. Knows nothing of data or training."""

from nern.representation.codes import Codes
from nern.representation.encoding import BasicEncoding, Encoding, FourierEncoding
from nern.representation.heads import Heads
from nern.representation.kernels import KernelTable, kernel_shape
from nern.representation.nern import NeRN, build_nern
from nern.representation.order_encoding import OrderEncoding, RandomOrderEncoding
from nern.representation.predictor import build_predictor, parameters_of
from nern.representation.sampling import sample_kernels

__all__ = [
    "BasicEncoding",
    "Codes",
    "Encoding",
    "FourierEncoding",
    "Heads",
    "KernelTable",
    "NeRN",
    "OrderEncoding",
    "RandomOrderEncoding",
    "build_nern",
    "build_predictor",
    "kernel_shape",
    "parameters_of",
    "sample_kernels",
]
