"""The configuration: typed dataclasses, YAML files with inheritance, checks before any work starts."""

from nern.config.imports import import_module, import_modules
from nern.config.original import OriginalConfig, SmoothnessConfig
from nern.config.phases import (
    DistillationConfig,
    PhaseOptimConfig,
    QuantisationConfig,
    ReconstructionConfig,
    RefinementConfig,
    TeacherConfig,
    by_phases,
    phase_batches,
    phase_optim,
)
from nern.config.recipes import RECIPES, recipe_values
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
    checked_keys,
    from_namespace,
    item_class,
    known_keys,
    read_config_file,
)
from nern.config.yaml_files import nested, parse_yaml

__all__ = [
    "RECIPES",
    "Config",
    "DistillationConfig",
    "EmbeddingsConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "NernConfig",
    "NetworkConfig",
    "OptimConfig",
    "OriginalConfig",
    "PermutationsConfig",
    "PhaseOptimConfig",
    "QuantisationConfig",
    "ReconstructionConfig",
    "RefinementConfig",
    "Settings",
    "SmoothnessConfig",
    "TaskConfig",
    "TeacherConfig",
    "by_phases",
    "check_key",
    "check_keys",
    "checked_keys",
    "from_namespace",
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
