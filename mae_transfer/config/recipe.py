"""Recipe files: `configs/<folder>/<recipe>.yaml`, or a file of the user's own.

A recipe has the sections `base` and `presets`. It may have `sizes`, `inits` and `tasks`, whose layers are merged in
that order (`layers`), and `search`: the values that its source says to try.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_transfer.config.yaml import read_yaml
from mae_transfer.errors import UserError, nearest

SECTIONS = ("recipe", "extends", "base", "sizes", "inits", "tasks", "presets", "search")


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
    path = Path(name).expanduser() if own else recipe_folder(folder) / f"{name}.yaml"
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
            raise UserError(f"recipe {path}: unknown section '{section}'{nearest(section, SECTIONS)}")
        if section not in ("recipe", "extends") and not isinstance(value, Mapping):
            raise UserError(f"recipe {path}: the section {section} has to be a mapping")
    return recipe


def layers(recipe: Mapping[str, Any], *, size: str | None, init: str, task: str, preset: str) -> dict[str, Any]:
    """The values of a recipe for one encoder size, initialisation, task and preset, as nested mappings."""
    presets = recipe["presets"]
    if preset not in presets:
        raise UserError(f"unknown preset '{preset}'{nearest(preset, presets)}; presets: {', '.join(presets)}")
    values: dict[str, Any] = {}
    parts = [recipe["base"]]
    parts += [recipe.get(section, {}).get(key) for section, key in (("sizes", size), ("inits", init), ("tasks", task))]
    for layer in (*parts, presets[preset]):
        if layer is not None and not isinstance(layer, Mapping):
            raise UserError(f"recipe {recipe.get('recipe', '')}: {layer!r} stands where keys and values should")
        merge(values, layer or {})
    return values


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Merge nested mappings in place; a leaf of `layer` replaces that of `into`."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
