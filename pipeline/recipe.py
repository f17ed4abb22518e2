"""Reading a recipe: YAML, overrides, and errors that list what is known."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from schemas.config import RunConfig
from workers.catalog import explain_invalid
from workers.errors import UserError

MAX_DEPTH = 24
"""Levels of a recipe; the deepest option there is lies at five."""
MAX_LENGTH = 64 * 1024
"""Characters of a recipe, aliases written out: a few lines of aliases can stand for terabytes."""
_BROKEN = (
    yaml.YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What PyYAML raises on a text that is not YAML, nests deeply, or says ``!!int x`` (found by
fuzzing)."""

PATHS = (
    ("dataset", "root"),
    ("model", "checkpoint"),
    ("model", "trunk_checkpoint"),
    ("model", "answers_file"),
    ("model", "dictionary"),
    ("model", "features"),
)
"""Options that are paths of the recipe's author, or lists of them, relative to the working
directory, or URLs."""
FOLDERS = (("model", "path"),)
"""Options that are such paths where a folder of that name is there, and names of the Hub else."""

MOVABLE = ("resources", "limits", *(".".join(path) for path in (*PATHS, *FOLDERS)))
"""What may be given anew for a run that is there: where the work is done, and where the files lie
now, whose digests the run has."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe at ``path`` with ``--set key=value`` overrides applied."""
    if not path.exists():
        known = ", ".join(sorted(str(p) for p in Path("recipes").glob("*.yaml"))) or "none here"
        raise UserError(f"{path}: no such recipe. Recipes in recipes/: {known}.")
    data = _load(_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, not {type(data).__name__}.")
    return parse(override(data, overrides), str(path))


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe's mapping with every ``key=value`` applied."""
    data = copy.deepcopy(data)
    for assignment in overrides:
        _apply(data, assignment)
    return data


def under(assignment: str, keys: Sequence[str]) -> bool:
    """Whether ``key=value`` sets one of the keys, or what lies below one."""
    return any(f"{assignment.partition('=')[0]}.".startswith(f"{key}.") for key in keys)


def allowed(overrides: Sequence[str], keys: Sequence[str], command: str) -> Sequence[str]:
    """The overrides, once none of them would change what a run that is there was made with."""
    for assignment in overrides:
        if "=" in assignment and not under(assignment, keys):
            raise UserError(
                f"--set {assignment:.200}: `{command}` works on maps that are there; this would be "
                f"ignored, or mix two runs. It takes {', '.join(keys)}. More methods: `run` the "
                "recipe with them into the same --out; anything else: into another."
            )
    return overrides


def parse(data: dict[str, Any], where: str) -> RunConfig:
    """A recipe's mapping as a validated configuration."""
    try:
        config = RunConfig.model_validate(_absolute(data))
        config.model_dump_json()
    except ValidationError as error:
        raise UserError(f"{where}:\n{explain_invalid('', RunConfig, error)}") from None
    except PydanticSerializationError as error:
        raise UserError(
            f"{where}: a string of it is no text that can be written down ({error!s:.200}); a "
            "recipe is UTF-8, without halves of surrogate pairs"
        ) from None
    return config


def _absolute(data: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its paths absolute, so that workers and later commands find them from any
    folder."""
    data = dict(data)
    for section, key in (*PATHS, *FOLDERS):
        options = data.get(section)
        value = options.get(key) if isinstance(options, dict) else None
        if isinstance(value, list) and all(isinstance(path, str) for path in value):
            own: Any = [_anywhere(section, key, path) for path in value]
        elif isinstance(value, str) and ((section, key) in PATHS or is_folder(value)):
            own = _anywhere(section, key, value)
        else:
            continue
        data[section] = {**data[section], key: own}
    return data


def _anywhere(section: str, key: str, value: str) -> str:
    """A path made absolute; a dataset's URL as it is, for the dataset to take or refuse."""
    if "://" not in value:
        return str(Path(value).absolute())
    if section == "dataset":
        return value
    raise UserError(
        f"{section}.{key}: {value:.200}: a model's files are read from disk alone. Download them, "
        "and give their path."
    )


def is_folder(value: str) -> bool:
    """Whether a folder of this name is there; no folder has a name of a null byte or of a page."""
    return "\0" not in value and len(value) < 4096 and Path(value).is_dir()


def _apply(data: dict[str, Any], assignment: str) -> None:
    """``store.shard_size=8`` sets ``data["store"]["shard_size"]``; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise UserError(
            f"--set {assignment:.200}: write it as key=value, for instance store.shard_size=8"
        )
    *parents, last = key.split(".")
    for parent in parents:
        inner = data.get(parent)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif isinstance(inner, list) and all(isinstance(item, str) for item in inner):
            inner = dict.fromkeys(inner)
        elif not isinstance(inner, dict):
            inner = {}
        data[parent] = inner
        data = inner
    data[last] = _load(value, f"--set {assignment:.200}")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_LENGTH + 1)
        return raw.decode()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a recipe"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save it as UTF-8 text") from None


class _Loader(yaml.SafeLoader):
    """Stops at a depth: PyYAML's time grows with its square."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _load(text: str, where: str) -> Any:
    """A YAML text's value, once it is known to be of a size that can be handled."""
    if len(text) > MAX_LENGTH:
        raise UserError(f"{where}: longer than {MAX_LENGTH} characters, the limit of a recipe.")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check(root, where)
        return loader.construct_document(root)
    except _BROKEN as error:
        raise UserError(
            f"{where}: not valid YAML: {str(error) or type(error).__name__:.500}"
        ) from None


def _check(root: yaml.Node, where: str) -> None:
    """Refuse what is endless, deep or huge with every alias written out, and a key given twice."""
    left, stack = MAX_LENGTH, [(root, 1)]
    while stack:
        node, depth = stack.pop()
        children = _children(node, where)
        left -= len(node.value) if isinstance(node, yaml.ScalarNode) else 1
        if depth > MAX_DEPTH or left < 0:
            raise UserError(
                f"{where}: nested more than {MAX_DEPTH} levels deep, or longer than {MAX_LENGTH} "
                "characters with its aliases written out; say it more plainly."
            )
        stack.extend((child, depth + 1) for child in children)


def _children(node: yaml.Node, where: str) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return node.value
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        line = node.start_mark.line + 1
        raise UserError(f"{where}: line {line}: {twice[1]!r:.80} is there twice; keep one of them.")
    return [part for pair in node.value for part in pair]
