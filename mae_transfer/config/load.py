"""From a recipe file, a preset and `key=value` overrides to one validated configuration.

Later layers win: base, size, init, task and preset of `configs/<the task's folder>/<recipe>.yaml`, then the command
line's options, then its `key=value` overrides. Anything unknown or out of range is a UserError that names the key and
the nearest valid one.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mae_transfer.backbones import registry
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError


@dataclass(frozen=True)
class TaskEntry:
    """Where a task's configuration comes from."""

    schema: str
    """module:class of its configuration, or module:mapping from protocols to classes."""
    folder: str
    """Folder of its recipes in `configs/`."""
    recipe: str = ""
    """The default recipe of a task without protocols."""
    protocols: tuple[tuple[str, str], ...] = ()
    """(protocol, its default recipe); the first is the default protocol."""
    option: str = "protocol"
    """What a protocol is called on the command line and in the configuration."""


CLASSIFICATION = TaskEntry(
    "mae_transfer.tasks.classification.config:ClassificationConfig",
    "classification",
    protocols=(
        ("finetune", "finetune_mae"),
        ("partial", "partial_mae"),
        ("linear", "linear_mae"),
        ("attentive", "attentive"),
        ("knn", "knn"),
        ("logreg", "logreg"),
    ),
)

TASKS = {
    "ade20k": TaskEntry("mae_transfer.tasks.ade20k.config:Ade20kConfig", "ade20k", "upernet_mae"),
    "coco": TaskEntry("mae_transfer.tasks.coco.config:CocoConfig", "coco", "mask_rcnn_li2021"),
    "imagenet": CLASSIFICATION,
    "inat2017": CLASSIFICATION,
    "inat2018": CLASSIFICATION,
    "inat2019": CLASSIFICATION,
    "inat2021": CLASSIFICATION,
    "places205": CLASSIFICATION,
    "places365": CLASSIFICATION,
    "folder": CLASSIFICATION,
}

PRETRAIN = TaskEntry(
    "mae_transfer.pretrain.config:METHODS",
    "pretrain",
    protocols=(("mae", "mae"), ("beit", "beit"), ("supervised", "supervised"), ("dvae", "dvae")),
    option="method",
)
"""Not to transfer to. Its methods are what protocols are to a task, each with a configuration class of its own."""

INSTEAD_OF = (
    ("schedule.steps", "schedule.epochs"),
    ("schedule.epochs", "schedule.steps"),
    ("schedule.warmup_steps", "schedule.warmup_epochs"),
    ("schedule.warmup_epochs", "schedule.warmup_steps"),
)
"""Naming the first of a pair replaces the recipe's value of the second."""

FLAGS_ONLY = {
    "task": "--task",
    "protocol": "--protocol",
    "method": "--method",
    "preset": "--preset",
    "backbone.name": "--backbone",
}
"""Keys that choose the recipe's layers, and so cannot be set after them."""


def config_class(task: str, protocol: str | None = None) -> type[RunConfig]:
    """The configuration class of a task; UserError for an unknown task, with the nearest name."""
    entry = task_entry(task)
    module, name = entry.schema.split(":")
    found = getattr(importlib.import_module(module), name)
    return found[protocol or entry.protocols[0][0]] if isinstance(found, dict) else found


def task_entry(task: str) -> TaskEntry:
    """The entry of a task; UserError for an unknown one, with the nearest name."""
    if task == "pretrain":
        return PRETRAIN
    if task not in TASKS:
        raise UserError(f"unknown task '{task}'{nearest(task, TASKS)}; tasks: {', '.join(TASKS)}")
    return TASKS[task]


def default_recipe(task: str, protocol: str | None) -> str:
    """The recipe of a task, and of its protocol if it has some; UserError for one it has not."""
    entry = task_entry(task)
    recipes = dict(entry.protocols)
    if protocol is not None and not recipes:
        with_some = ", ".join(name for name in TASKS if TASKS[name].protocols)
        raise UserError(f"--protocol {protocol}: the task {task} has no protocols; these have some: {with_some}")
    if protocol is not None and protocol not in recipes:
        raise UserError(
            f"unknown {entry.option} '{protocol}'{nearest(protocol, recipes)}; {entry.option}s of {task}: "
            f"{', '.join(recipes)}"
        )
    return recipes[protocol or next(iter(recipes))] if recipes else entry.recipe


def load_config(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    preset: str = "full",
    options: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Resolve the configuration of a run.

    Args:
        protocol: of a task that has protocols, None for its default one, or that of the recipe if one is named.
        options: dotted keys to values, from the command line's own flags; those that are None are left to the recipe.
        overrides: `key=value` strings with dotted keys and YAML values; they win over everything else.
    """
    overrides = list(overrides)
    assigned = [parse_override(text) for text in overrides]
    recipe_name = default_recipe(task, protocol)
    entry, schema = task_entry(task), config_class(task, protocol)
    recipe_name = next((str(value) for key, value in reversed(assigned) if key == "recipe"), recipe_name)
    recipe = read_recipe(entry.folder, recipe_name)
    if protocol not in (None, recipe["base"].get(entry.option)):
        raise UserError(
            f"recipe {recipe_name} is for the {entry.option} {recipe['base'].get(entry.option)}, not {protocol}; drop "
            f"one of recipe= and --{entry.option}"
        )
    if preset not in recipe["presets"]:
        raise UserError(
            f"unknown preset '{preset}'{nearest(preset, recipe['presets'])}; presets: {', '.join(recipe['presets'])}"
        )
    given = [(key, value) for key, value in (options or {}).items() if value is not None] + assigned
    for key, _ in given:
        check_key(schema, key)
    asked = dict(given)
    spec = backbone_spec(backbone)
    init = "random" if asked.get("backbone.weights") == "random" else spec.init

    values: dict[str, Any] = {"task": task, "preset": preset, "backbone": {"name": backbone}}
    for layer in (
        recipe["base"],
        recipe.get("sizes", {}).get(spec.size),
        recipe.get("inits", {}).get(init),
        recipe.get("tasks", {}).get(task),
        recipe["presets"][preset],
    ):
        merge(values, layer or {})
    for key, value in given:
        assign(values, key, value)
    for key, other in INSTEAD_OF:
        if key in asked and other not in asked:
            assign(values, other, 0 if other == "schedule.warmup_epochs" else None)
    if spec.init == "random":
        if asked.get("backbone.weights") == "pretrained":
            raise UserError(f"backbone {backbone} has no pretrained weights; name another backbone or --weights random")
        values["backbone"]["weights"] = "random"
    elif asked.get("backbone.checkpoint") is not None and "backbone.weights" not in asked:
        values["backbone"]["weights"] = (
            "pretrained"  # a preset's random weights give way to a checkpoint that was named
        )
    values["recipe"] = recipe.get("recipe", recipe_name)
    return validate(schema, values)


def search_grid(
    task: str, *, protocol: str | None = None, preset: str = "full", overrides: Iterable[str] = ()
) -> dict[str, list[Any]]:
    """Key -> values of the search that a recipe documents for a preset; every combination is a run.

    A key that an override sets is left out: it has one value then. UserError if the recipe documents none.
    """
    schema = config_class(task)
    assigned = dict(parse_override(text) for text in overrides)
    name = str(assigned.get("recipe", default_recipe(task, protocol)))
    grid = read_recipe(task_entry(task).folder, name).get("search", {}).get(preset)
    if not grid:
        raise UserError(f"recipe {name} documents no search for the preset {preset}: add its section search.{preset}")
    for key, values in grid.items():
        check_key(schema, key)
        if not isinstance(values, list) or not values:
            raise UserError(f"recipe {name}: search.{preset}.{key} must be a list of values")
    fixed = {*assigned, *(other for key, other in INSTEAD_OF if key in assigned)}
    return {key: values for key, values in grid.items() if key not in fixed}


def backbone_spec(name: str) -> registry.Spec:
    """The spec of a registered backbone, or of `timm:<model>`, for which timm has to be loaded."""
    if not name.startswith(registry.TIMM_PREFIX):
        return registry.find(name)
    from mae_transfer.backbones.timm_vit import spec_of

    return spec_of(name)


def config_folder() -> Path:
    """`configs/` beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def read_recipe(folder: str, name: str) -> dict[str, Any]:
    """A recipe of `configs/<folder>/` by its name, or one's own by the path of its YAML file.

    Its `extends: <recipe>` takes over all of another recipe, and what the file itself says wins.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else config_folder() / folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in (config_folder() / folder).glob("*.yaml"))
        raise UserError(f"unknown recipe '{name}' of {folder}{nearest(name, known)}; recipes: {', '.join(known)}")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(recipe, dict) and "extends" in recipe:
        own, recipe = recipe, read_recipe(folder, recipe["extends"])
        merge(recipe, {key: value for key, value in own.items() if key != "extends"})
    if not isinstance(recipe, dict) or not {"base", "presets"} <= recipe.keys():
        raise UserError(f"recipe {path} needs the sections 'base' and 'presets'; configs/coco/ has an example")
    return recipe


def parse_override(text: str) -> tuple[str, Any]:
    """'optim.lr=4e-5' -> ('optim.lr', '4e-5'); the value is YAML, numbers are converted by the schema."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UserError(f"'{text}' is not an override; write key=value, for example optim.lr=4e-5")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"override '{text}': the value is not valid YAML") from None


def merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Merge nested mappings in place; a leaf of `layer` replaces that of `into`."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


def leaf_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration class."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += leaf_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def check_key(schema: type[BaseModel], key: str) -> None:
    if key in FLAGS_ONLY:
        raise UserError(f"{key}= chooses the recipe's values and cannot be an override; use {FLAGS_ONLY[key]}")
    known = leaf_keys(schema)
    if key not in known:
        raise UserError(f"unknown config key '{key}'{nearest(key, known)}; --print-config shows them all")


def validate(schema: type[RunConfig], values: dict[str, Any]) -> RunConfig:
    """Build the configuration; the first problem becomes a one-line UserError."""
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        got = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", got {first['input']!r}"
        hint = nearest(key, leaf_keys(schema)) if first["type"] == "extra_forbidden" else ""
        where = f"config key '{key}': " if key else ""  # a check of several sections names its keys itself
        raise UserError(f"{where}{first['msg'].removeprefix('Value error, ')}{got}{hint}{more}") from None
    if (config.schedule.epochs is None) == (config.schedule.steps is None):
        raise UserError("give exactly one of schedule.epochs and schedule.steps (set the other to null)")
    return config


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' or an empty string. A wrong section is forgiven: `lr` finds `optim.lr`."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    found = [k for k in known if k.rpartition(".")[2] == word] or found
    return f", did you mean {' or '.join(found[:2])}?" if found else ""


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
