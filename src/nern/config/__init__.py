"""The configuration: typed dataclasses, YAML files with inheritance, checks before any work starts."""

from nern.config.original import OriginalConfig
from nern.config.schema import (
    Config,
    EmbeddingsConfig,
    LoggingConfig,
    NernConfig,
    NetworkConfig,
    OptimConfig,
    TaskConfig,
)

__all__ = [
    "Config",
    "EmbeddingsConfig",
    "LoggingConfig",
    "NernConfig",
    "NetworkConfig",
    "OptimConfig",
    "OriginalConfig",
    "TaskConfig",
]
