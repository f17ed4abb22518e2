"""Recipes that are refused instead of crashing, hanging or doing something else than they say."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import override, parse, read_recipe
from schemas.config import RunConfig
from workers import catalog
from workers.errors import UserError

GOOD: dict[str, Any] = {"dataset": "shapes", "model": "demo", "methods": {"occlusion": {}}}


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        read_recipe(path)
    return str(caught.value)


def built(**changes: Any) -> RunConfig:
    """A good recipe with changes, as far as the catalogue."""
    config = parse({**GOOD, **changes}, "recipe")
    catalog.methods(config.methods)
    catalog.metrics(config.metrics)
    return config


@pytest.mark.parametrize(
    "value",
    ["9" * 5000, "2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "!!float x", "!!int ''"],
    ids=["digits", "date", "int", "bool", "timestamp", "float", "empty int"],
)
def test_recipe_value_that_yaml_cannot_build_is_refused(tmp_path: Path, value: str) -> None:
    assert "not valid YAML" in refusal(tmp_path / "recipe.yaml", f"seed: {value}")
    with pytest.raises(UserError, match="not valid YAML"):
        override(GOOD, [f"seed={value}"])


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_recipe_nested_without_end_is_refused_soon(tmp_path: Path, opening: str) -> None:
    path = tmp_path / "recipe.yaml"
    assert "not valid YAML" in refusal(path, f"seed: \n  {opening * 5_000}")


@pytest.mark.parametrize("merge", [False, True], ids=["lists", "merged keys"])
def test_recipe_whose_aliases_stand_for_terabytes_is_refused(tmp_path: Path, merge: bool) -> None:
    start = "x0: &x0 {a: 1}\n"
    opening, closing = ("{<<: [", "]}") if merge else ("[", "]")
    lines = [
        f"x{i}: &x{i} {opening}{', '.join([f'*x{i - 1}'] * 10)}{closing}" for i in range(1, 12)
    ]
    assert "aliases written out" in refusal(tmp_path / "recipe.yaml", start + "\n".join(lines))


def test_recipe_that_contains_itself_is_refused(tmp_path: Path) -> None:
    assert "nested more than" in refusal(tmp_path / "recipe.yaml", "methods: &a {occlusion: *a}")


def test_recipe_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    text = "methods:\n  saliency:\n  saliency: {score: logit}\n"
    assert "'saliency' is there twice" in refusal(tmp_path / "recipe.yaml", text)


def test_recipe_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8" in refusal(tmp_path / "recipe.yaml", b"seed: \xff")
    assert "limit of a recipe" in refusal(tmp_path / "recipe.yaml", "#" * 10**6)
    with pytest.raises(UserError, match="Is a directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"occlusion": {"name": "x"}}, "methods.occlusion.name: unknown key"),
        ({"occlusion": {"method": [1]}}, "methods.occlusion: unknown name [1]"),
        ({"occlusion": False}, "methods.occlusion: Input should be a valid dictionary"),
        ([["occlusion"]], "methods: Input should be a valid dictionary"),
        ({"../../x": {"method": "occlusion"}}, "String should match pattern"),
        ({"a:b": {"method": "occlusion"}}, "String should match pattern"),
    ],
)
def test_recipe_methods_that_are_none_are_refused(methods: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        built(methods=methods)
    assert message in str(caught.value)


def test_override_below_a_list_of_no_names_is_refused() -> None:
    with pytest.raises(UserError, match="unknown name 'a'"):
        built(**override({**GOOD, "methods": [["occlusion"]]}, ["methods.a={}"]))


def test_recipe_with_many_mistakes_tells_the_first_twenty() -> None:
    with pytest.raises(UserError) as caught:
        built(targets=["x" * 10_000] * 1_000)
    assert str(caught.value).endswith(" more mistakes.")
    assert str(caught.value).count("targets.") == 20
    assert len(str(caught.value)) < 10_000


def test_recipe_with_half_a_surrogate_pair_is_refused() -> None:
    data = {"dataset": {"name": "photos", "root": "\ud800"}, "model": "demo", "methods": ["center"]}
    with pytest.raises(UserError, match="no text that can be written down"):
        parse(data, "recipe")


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")),
    ids=lambda path: path.name,
)
def test_every_recipe_is_valid(path: Path) -> None:
    config = read_recipe(path, [])
    assert catalog.methods(config.methods)
    catalog.metrics(config.metrics)
    catalog.dataset(config.dataset)
    catalog.model_spec(config.model)
