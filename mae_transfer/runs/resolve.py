"""From options to the configuration of a run.

Later layers win: base, size, init, task, rotary and preset of the recipe, then the options, then the overrides
`key=value`. Anything unknown or out of range is a UserError that names the key and the nearest valid one.
"""

from collections.abc import Mapping
from pathlib import Path

from mae_transfer.backbones import registry
from mae_transfer.backbones.plugins import find_plugin, plugin_names
from mae_transfer.config.load import validate
from mae_transfer.config.overrides import INSTEAD_OF, Overrides, assign, check_key, leaf_keys, parse_overrides
from mae_transfer.config.recipe import check_sections, layers, read_recipe
from mae_transfer.config.roles import Role, keys
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.runs.tasks import config_class, protocol_of, task_card
from mae_transfer.tasks.card import load_object

FEW_LABELS = {"data.fraction": "--fraction", "data.shots": "--shots", "data.draw": "--draws"}
"""Keys of few labels -> their options."""


def load_config(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    preset: str = "full",
    options: Mapping[str, object] | None = None,
    overrides: Overrides = (),
) -> RunConfig:
    """Resolve the configuration of a run.

    Args:
        protocol: of a task that has protocols, None for its default one, or that of the recipe if one is named.
        options: dotted keys to values, from the command line's own flags; those that are None are left to the recipe.
        overrides: they win over everything else.
    """
    card, assigned = task_card(task), parse_overrides(overrides)
    named = next((str(value) for key, value in reversed(assigned) if key == "recipe"), None)
    chosen = protocol_of(card, protocol)
    recipe_name = named or (chosen.recipe if chosen else card.recipe)
    recipe = read_recipe(card.folder, recipe_name)
    if chosen is not None:
        name = recipe["base"].get(card.option)
        if not isinstance(name, str | None):
            raise UserError(f"recipe {recipe_name}: base.{card.option} has to be a name, but is {name!r:.60}")
        of_recipe = protocol_of(card, name)
        if of_recipe is not None and protocol not in (None, of_recipe.name):
            raise UserError(
                f"recipe {recipe_name} is for the {card.option} {of_recipe.name}, not {protocol}; drop one of recipe= "
                f"and --{card.option}"
            )
        chosen = of_recipe
    schema = config_class(card, chosen)
    check_sections(recipe, schema, recipe_name)
    given = [(key, value) for key, value in (options or {}).items() if value is not None] + assigned
    for key, _ in given:
        check_key(schema, key)
    asked = dict(given)
    for key in sorted(keys(schema, Role.PLACE) & asked.keys()):
        if asked[key] is not None and not str(asked[key]).strip():
            raise UserError(f"{'--data (data.root)' if key == 'data.root' else key} is empty; name a folder or file")
    if "train.micro_batch_auto" in asked:
        raise UserError("train.micro_batch_auto is written by the run; give train.micro_batch=auto")
    few = next((key for key in FEW_LABELS if key in asked), None)
    if few is not None and chosen is not None and chosen.load:
        raise UserError(
            f"{few} ({FEW_LABELS[few]}) chooses training images, and the protocol {chosen.name} trains nothing; leave "
            "it out"
        )
    spec = backbone_spec(backbone)
    init = "random" if asked.get("backbone.weights") == "random" else spec.init

    values = layers(recipe, size=spec.size, init=init, task=task, preset=preset, rotary=spec.rotary)
    values |= {"task": task, "preset": preset, "backbone": values.get("backbone", {}) | {"name": backbone}}
    if chosen is not None and chosen.stated:
        for key, value in load_object(chosen.stated)(backbone, asked).items():
            assign(values, key, value)
    for key, value in given:
        assign(values, key, value)
    for key, other in INSTEAD_OF:
        if key in asked and other not in asked:
            assign(values, other, 0 if other == "schedule.warmup_epochs" else None)
    if spec.init == "random":
        if asked.get("backbone.weights") == "pretrained":
            raise UserError(f"backbone {backbone} has no pretrained weights; name another backbone or --weights random")
        values["backbone"]["weights"] = "random"
    elif (spec.origin or asked.get("backbone.checkpoint") is not None) and "backbone.weights" not in asked:
        # a preset's random weights give way to a checkpoint, and to a module with weights of its own
        values["backbone"]["weights"] = "pretrained"
    values["recipe"] = recipe.get("recipe", recipe_name)
    return validate(schema, values, recipe=recipe_name, given=tuple(asked))


def resolve_config(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    data: str | Path | None = None,
    preset: str = "full",
    subset: int | None = None,
    seed: int | None = None,
    engine: str | None = None,
    device: str | None = None,
    tokenizer: str | Path | None = None,
    overrides: Overrides = (),
) -> RunConfig:
    """The configuration that `run_transfer` or `run_pretrain` resolves from the same options.

    protocol: of a pre-training its method.
    """
    card = task_card(task)
    schema = config_class(card, protocol_of(card, protocol))
    pairs = parse_overrides(overrides)
    if data is None and preset == "smoke" and card.synthetic and not names_data(schema, dict(pairs)):
        data = "synthetic"
    if engine is not None and "model.implementation" not in leaf_keys(schema):
        raise UserError(f"--engine {engine} is a detector's, for --task coco; leave it out for {task}")
    options = {
        "backbone.checkpoint": None if checkpoint is None else str(checkpoint),
        "backbone.weights": weights,
        "data.root": None if data is None else str(data),
        "tokenizer.kind": None if tokenizer is None else str(tokenizer),
        "model.implementation": engine,
        "subset": subset,
        "seed": seed,
        "device": device,
    }
    return load_config(task, backbone, protocol=protocol, preset=preset, options=options, overrides=dict(pairs))


def names_data(schema: type[RunConfig], overrides: Overrides) -> bool:
    """Whether an override says where data are."""
    places = keys(schema, Role.PLACE)
    return any(key in places for key, _ in parse_overrides(overrides))


def backbone_spec(name: str) -> registry.Spec:
    """The spec of a backbone. timm is loaded for `timm:<model>`, and a user's package for a name that it adds."""
    if find_plugin(name) is None and not name.startswith(registry.TIMM_PREFIX):
        return registry.find(name, plugin_names())
    from mae_transfer.backbones.timm_vit import resolve

    return resolve(name)
