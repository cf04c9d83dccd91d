"""Recipes: what keys that are not given mean. A recipe is a YAML file of the package, as a `base` beneath all others."""

from __future__ import annotations

import copy
from functools import cache
from importlib import resources
from typing import Any

from nern.config.yaml_files import nested, parse_yaml
from nern.errors import unknown_name

RECIPES = ("published", "nern", "codes")


def recipe_values(name: object) -> dict[str, Any]:
    """The nested dict of recipe `name`. Raises NernError, with the choices, if there is none of that name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    if name == "published":  # the defaults of the schema
        return {}
    return copy.deepcopy(_read(str(name)))


@cache  # every check of a config asks
def _read(name: str) -> dict[str, Any]:
    text = (resources.files("nern") / "configs" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return nested(parse_yaml(text))
