"""The configuration: typed dataclasses, YAML files with inheritance, checks before any work starts."""

from nern.config.imports import import_module, import_modules
from nern.config.original import OriginalConfig, SmoothnessConfig
from nern.config.schema import (
    Config,
    EmbeddingsConfig,
    EvaluationConfig,
    LoggingConfig,
    NernConfig,
    NetworkConfig,
    OptimConfig,
    PermutationsConfig,
    TaskConfig,
)
from nern.config.settings import (
    Settings,
    check_key,
    check_keys,
    from_namespace,
    item_class,
    known_keys,
    read_config_file,
)
from nern.config.yaml_files import nested, parse_yaml

__all__ = [
    "Config",
    "EmbeddingsConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "NernConfig",
    "NetworkConfig",
    "OptimConfig",
    "OriginalConfig",
    "PermutationsConfig",
    "Settings",
    "SmoothnessConfig",
    "TaskConfig",
    "check_key",
    "check_keys",
    "from_namespace",
    "import_module",
    "import_modules",
    "item_class",
    "known_keys",
    "nested",
    "parse_yaml",
    "read_config_file",
]
