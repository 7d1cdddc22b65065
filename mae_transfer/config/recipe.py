"""Recipe files: `configs/<folder>/<recipe>.yaml`, or a file of the user's own.

A recipe has the sections `base` and `presets`. It may have `sizes`, `inits` and `tasks`, whose layers are merged in
that order (`layers`), `rotary`, the layer of encoders with rotary positions, and `search`: the values that its source
says to try.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError, nearest
from mae_transfer.files import user_path

LAYERS = {"base": 1, "sizes": 2, "inits": 2, "tasks": 2, "rotary": 1, "presets": 2, "search": 2}
"""Section -> levels of mappings that are there whatever the task: of `presets` the presets and their keys."""
SECTIONS = ("recipe", "extends", *LAYERS)


def config_folder() -> Path:
    """`configs/` beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def recipe_folder(name: str) -> Path:
    """The folder of a task's recipes: a name in `configs/`, or the path of a folder in another package."""
    return config_folder() / name  # an absolute path stays as it is


def read_recipe(folder: str, name: str, _above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe by its name, or one's own by the path of its YAML file.

    Its `extends: <recipe>` takes over all of another recipe, and what the file itself says wins.
    """
    own = name.endswith((".yaml", ".yml"))
    path = user_path(name) if own else recipe_folder(folder) / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in recipe_folder(folder).glob("*.yaml"))
        raise UserError(
            f"unknown recipe '{name}' of {Path(folder).name}{nearest(name, known)}; recipes: {', '.join(known)}"
        )
    recipe = read_yaml(path, "recipe")
    if "extends" in recipe:
        other = recipe["extends"]
        if not isinstance(other, str) or other in (*_above, name):
            raise UserError(f"recipe {path}: extends has to name another recipe, and none that extends this one")
        below, recipe = recipe, read_recipe(folder, other, (*_above, name))
        merge(recipe, {key: value for key, value in below.items() if key != "extends"})
    if not {"base", "presets"} <= recipe.keys():
        raise UserError(f"recipe {path} needs the sections 'base' and 'presets'; configs/coco/ has an example")
    for section, value in recipe.items():
        if section not in SECTIONS:
            raise UserError(f"recipe {path}: unknown section '{section}'{nearest(str(section), SECTIONS)}")
        if section == "recipe" and not isinstance(value, str):
            raise UserError(f"recipe {path}: recipe has to be a name, but is {value!r:.60}")
        if section in LAYERS:
            _check_mapping(f"recipe {path}: {section}", value, LAYERS[section])
    _check_search(f"recipe {path}: search", recipe.get("search", {}), recipe["presets"])
    return recipe


def _check_mapping(place: str, value: object, levels: int) -> None:
    """UserError unless the value is a mapping with words as keys and, with more levels, so are those in it."""
    if not isinstance(value, Mapping):
        raise UserError(f"{place} has to be a mapping of keys to values, but is {value!r:.60}")
    for key, inner in value.items():
        if not isinstance(key, str):
            raise UserError(f"{place}: the key {key!r} has to be a word; write it in quotes")
        if levels > 1 and inner is not None:
            _check_mapping(f"{place}.{key}", inner, levels - 1)


def _check_search(place: str, search: Mapping[str, Any], presets: Mapping[str, Any]) -> None:
    """UserError unless it holds lists of values, by preset and key, or by initialisation, preset and key."""
    for name, inner in search.items():
        grids = {name: inner} if name in presets else {f"{name}.{preset}": of for preset, of in (inner or {}).items()}
        for where, grid in grids.items():
            _check_mapping(f"{place}.{where}", grid or {}, 1)
            for key, values in (grid or {}).items():
                if not isinstance(values, list) or not values:
                    raise UserError(f"{place}.{where}.{key} has to be a list of values, but is {values!r:.60}")


def check_sections(recipe: Mapping[str, Any], schema: type[BaseModel], name: str) -> None:
    """UserError if a layer of the recipe has something else where the configuration has a section of keys."""
    for section, levels in LAYERS.items():
        if section != "search":
            of_section = recipe.get(section, {})
            for key, layer in ({"": of_section} if levels == 1 else of_section).items():
                _check_layer(f"recipe {name}: {section}.{key}".rstrip("."), layer or {}, schema)


def _check_layer(place: str, layer: Mapping[str, Any], schema: type[BaseModel]) -> None:
    for key, value in layer.items():
        field = schema.model_fields.get(key)
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            _check_mapping(f"{place}.{key}", value, 1)
            _check_layer(f"{place}.{key}", value, field.annotation)


def layers(
    recipe: Mapping[str, Any], *, size: str | None, init: str, task: str, preset: str, rotary: bool = False
) -> dict[str, Any]:
    """The values of a recipe for one encoder size, initialisation, task and preset, as nested mappings; `rotary` of an
    encoder with rotary positions."""
    presets = recipe["presets"]
    if preset not in presets:
        raise UserError(f"unknown preset '{preset}'{nearest(preset, presets)}; presets: {', '.join(presets)}")
    values: dict[str, Any] = {}
    parts = [recipe["base"]]
    parts += [recipe.get(section, {}).get(key) for section, key in (("sizes", size), ("inits", init), ("tasks", task))]
    parts += [recipe.get("rotary")] if rotary else []
    for layer in (*parts, presets[preset]):
        merge(values, layer or {})
    return values


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Merge nested mappings in place; a leaf of `layer` replaces that of `into`."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
