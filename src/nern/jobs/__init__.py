"""The jobs behind the commands: train, resume, evaluate, train an original."""

from nern.jobs.evaluating import config_of_run, evaluate, load_run
from nern.jobs.original import resume_original, train_original
from nern.jobs.training import resume, train

__all__ = ["config_of_run", "evaluate", "load_run", "resume", "resume_original", "train", "train_original"]
