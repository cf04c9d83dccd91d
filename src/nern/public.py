"""The public names of the package, each from its module; `nern.NAME` looks here when first used."""

from nern.api import Fitted, fit, fit_config
from nern.artifact import Artifact, DamagedFileError, load
from nern.catalog import Inspection, inspect, list_networks
from nern.config import Config, OriginalConfig
from nern.errors import NernError, NonFiniteLossError
from nern.jobs.artifacts import info, unpack, verify
from nern.jobs.evaluating import evaluate, load_run
from nern.jobs.original import resume_original, train_original
from nern.jobs.packing import PackOptions, pack, save
from nern.jobs.report import report
from nern.jobs.training import resume, train
from nern.originals.base import OriginalNetwork, register_original
from nern.originals.input_format import InputFormat
from nern.sweeps.run import sweep
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors

__all__ = [
    "Artifact",
    "Config",
    "DamagedFileError",
    "Fitted",
    "ImageTensors",
    "InputFormat",
    "Inspection",
    "NernError",
    "NonFiniteLossError",
    "OriginalConfig",
    "OriginalNetwork",
    "PackOptions",
    "evaluate",
    "fit",
    "fit_config",
    "info",
    "inspect",
    "list_networks",
    "load",
    "load_run",
    "pack",
    "register_original",
    "register_task",
    "report",
    "resume",
    "resume_original",
    "save",
    "sweep",
    "train",
    "train_original",
    "unpack",
    "verify",
]
