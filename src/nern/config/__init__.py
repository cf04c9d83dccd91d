"""The configuration: typed dataclasses, YAML files with inheritance, checks before any work starts."""

from nern.config.imports import import_module, import_modules
from nern.config.original import OriginalConfig
from nern.config.phases import CURVATURE_IMAGES, ROUNDING_IMAGES
from nern.config.schema import (
    Config,
    EmbeddingsConfig,
    LoggingConfig,
    NernConfig,
    NetworkConfig,
    OptimConfig,
    TaskConfig,
    phase_batches,
    phase_optim,
)
from nern.config.settings import (
    Settings,
    check_key,
    check_keys,
    checked_keys,
    item_class,
    known_keys,
    read_config_file,
)
from nern.config.yaml_files import RECIPES, nested, parse_yaml, recipe_values

__all__ = [
    "CURVATURE_IMAGES",
    "RECIPES",
    "ROUNDING_IMAGES",
    "Config",
    "EmbeddingsConfig",
    "LoggingConfig",
    "NernConfig",
    "NetworkConfig",
    "OptimConfig",
    "OriginalConfig",
    "Settings",
    "TaskConfig",
    "check_key",
    "check_keys",
    "checked_keys",
    "import_module",
    "import_modules",
    "item_class",
    "known_keys",
    "nested",
    "parse_yaml",
    "phase_batches",
    "phase_optim",
    "read_config_file",
    "recipe_values",
]
