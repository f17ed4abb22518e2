"""Reading a recipe: YAML, overrides, and errors that list what is known."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.config import RunConfig
from workers.catalog import explain_invalid
from workers.errors import UserError

PATHS = (("dataset", "root"), ("model", "checkpoint"), ("model", "trunk_checkpoint"))
"""Options that are paths of the recipe's author, relative to the working directory."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe at ``path`` with ``--set key=value`` overrides applied."""
    if not path.exists():
        known = ", ".join(sorted(str(p) for p in Path("recipes").glob("*.yaml"))) or "none here"
        raise UserError(f"{path}: no such recipe. Recipes in recipes/: {known}.")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, not {type(data).__name__}.")
    return parse(override(data, overrides), str(path))


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe's mapping with every ``key=value`` applied."""
    data = copy.deepcopy(data)
    for assignment in overrides:
        _apply(data, assignment)
    return data


def parse(data: dict[str, Any], where: str) -> RunConfig:
    """A recipe's mapping as a validated configuration."""
    try:
        return RunConfig.model_validate(_absolute(data))
    except ValidationError as error:
        raise UserError(f"{where}:\n{explain_invalid('', RunConfig, error)}") from None


def _absolute(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its paths absolute, so that workers and later commands find them from any
    folder."""
    data = dict(data)
    for section, key in PATHS:
        options = data.get(section)
        if isinstance(options, dict) and isinstance(options.get(key), str):
            data[section] = {**options, key: str(Path(options[key]).absolute())}
    return data


def _apply(data: dict[str, Any], assignment: str) -> None:
    """``store.shard_size=8`` sets ``data["store"]["shard_size"]``; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise UserError(
            f"--set {assignment}: write it as key=value, for instance store.shard_size=8"
        )
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif isinstance(inner, list):
            inner = dict.fromkeys(inner)
        elif not isinstance(inner, dict):
            inner = {}
        data[parent] = inner
        data = inner
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment}: the value is not valid YAML: {error}") from None
