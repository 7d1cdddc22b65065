"""Several runs from one command: the one planner under series, searches and suites.

An axis is a list of choices: protocols, numbers of blocks, draws of few labels, the values of a recipe's search. A run
is one choice of each axis. Every configuration is resolved here, before any run starts.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mae_transfer.config.overrides import (
    INSTEAD_OF,
    Overrides,
    check_key,
    field_of,
    leaf_keys,
    parse_override,
    parse_overrides,
)
from mae_transfer.config.recipe import read_recipe
from mae_transfer.config.sections import RunConfig
from mae_transfer.errors import UserError
from mae_transfer.files import user_path
from mae_transfer.runs.names import RUNS, check_output, default_output, run_label
from mae_transfer.runs.resolve import backbone_spec, resolve_config
from mae_transfer.runs.tasks import config_class, protocol_of, task_card
from mae_transfer.runs.unread import refuse_unread
from mae_transfer.tasks.card import TaskCard

CURVE = (0, 0.5, 1, 2, 4, 6, 12, 18, 24)
"""Blocks of MAE Figure 9; the encoder's depth ends it."""
MOST_RUNS = 10_000

Pairs = tuple[tuple[str, Any], ...]
"""(dotted key, value), as overrides."""


@dataclass(frozen=True)
class Choice:
    """One value on an axis."""

    protocol: str | None = None
    pairs: Pairs = ()


@dataclass(frozen=True)
class Run:
    """A run to make, in the folder `path`."""

    config: RunConfig
    path: Path
    point: Pairs = ()
    """Its values of a search."""

    @property
    def point_label(self) -> str:
        """ "optim.lr=1e-4 optim.weight_decay=0.1"; empty for a run that is no point of a search."""
        return " ".join(f"{key}={value}" for key, value in self.point)


def plan_runs(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    blocks: str | None = None,
    layers: str | None = None,
    shots: int | None = None,
    fraction: str | None = None,
    draws: int | None = None,
    search: bool = False,
    output: str | Path | None = None,
    folder: Path = RUNS,
    allow_unread: bool = False,
    overrides: Overrides = (),
    **options: Any,
) -> list[Run]:
    """The runs that these options ask for, in order, with their folders.

    Args:
        protocol: names with commas between them.
        blocks: numbers with commas between them, or `curve`: a run of the protocol partial each, 0 being the linear
            probe of classification.
        layers: 0-based numbers of blocks with commas between them, or `all`: a run for each of them, which
            share one pass of the encoder.
        fraction: percentages of the training images with commas between them, a run each; 100 is all of them.
        draws: runs with data.draw = 0 .. draws - 1, for each number of shots or percentage.
        search: a run for every combination of values that the recipe's section `search` names for the preset; an
            override of a searched key fixes it, or is a list of values to try instead.
        output: the folder of a single run, or the folder that has the folders of several.
        folder: without `output`, where each run has a folder named by its configuration.
        allow_unread: take overrides that no run reads too.
        options: those of `resolve_config`.

    Raises:
        UserError: options that do not go together, overrides without effect, and all that `resolve_config` refuses.
    """
    check_output(output)
    output = None if output is None else user_path(output)
    card, given = task_card(task), parse_overrides(overrides)
    if search and any(option is not None for option in (blocks, layers, shots, fraction, draws)):
        raise UserError(
            "--search makes a run for each value of a grid; leave out --blocks, --layers, --shots, --fraction "
            "and --draws"
        )
    variants = _protocols(card, backbone, protocol, blocks, dict(given))
    if layers is not None:
        _check_layers(card, variants, dict(given))
        variants = [Choice(v.protocol, pairs) for v in variants for pairs in _layers(layers, backbone)]
    _check_reach([choice.protocol or "" for choice in variants], given)
    points = _search_points(card, backbone, protocol, options, given) if search else [()]
    tried = {key for key, _ in points[0]}
    asked = [key for key, _ in given]
    given = [(key, value) for key, value in given if key not in tried]  # lists of values are in the points
    draws_of = _draws(card, shots, fraction, draws)
    if len(variants) * len(points) * len(draws_of) > MOST_RUNS:
        raise UserError(f"these options ask for more than {MOST_RUNS} runs; make them in parts")
    planned: dict[str, tuple[RunConfig, Pairs]] = {}
    for variant, point, draw in itertools.product(variants, points, draws_of):
        pairs = dict([*variant.pairs, *point, *draw, *given])
        config = resolve_config(task, backbone, protocol=variant.protocol, overrides=pairs, **options)
        planned.setdefault(config.model_dump_json(), (config, point))
    runs = list(planned.values())
    for config, _ in runs:
        check_output(output, config)
    if not allow_unread:
        refuse_unread((config, asked) for config, _ in runs)
    if len(runs) == 1 and not search:
        config, point = runs[0]
        return [Run(config, default_output(config, folder) if output is None else Path(output), point)]
    return [
        Run(config, default_output(config, folder) if output is None else Path(output) / _folder(config, point), point)
        for config, point in runs
    ]


def of_seed(run: Run, seed: int, folder: Path) -> Run:
    """The same run with another seed, in a folder of its own in `folder`."""
    config = run.config.model_copy(update={"seed": seed})
    return Run(config, default_output(config, folder), run.point)


def _folder(config: RunConfig, point: Pairs) -> str:
    if point:
        return ",".join(f"{key}={value}" for key, value in point)
    return run_label(config) or task_card(config.task).protocols[0].name  # a protocol that runs do not name


def _protocols(
    card: TaskCard, backbone: str, protocol: str | None, blocks: str | None, given: dict[str, object]
) -> list[Choice]:
    names: list[str | None] = [None] if protocol is None else [name.strip() for name in protocol.split(",")]
    found = [protocol_of(card, name) for name in names]  # an unknown one is found first
    _check_once(f"--{card.option}", names)
    if blocks is not None and "partial" not in names:
        raise UserError("--blocks goes with --protocol partial")
    choices = []
    for name, of_name in zip(names, found, strict=True):
        at_zero = of_name.at_zero if of_name else ""
        if name != "partial" or (blocks is None and "model.blocks" in given):
            choices.append(Choice(name))
        elif blocks is None:
            raise UserError("--protocol partial needs --blocks: a number, a list such as 1,2,4, or curve")
        else:
            for number in parse_blocks(blocks, backbone):
                trains = number or not at_zero
                choices.append(Choice(name, (("model.blocks", number),)) if trains else Choice(at_zero))
    return choices


def _draws(card: TaskCard, shots: int | None, fraction: str | None, draws: int | None) -> list[Pairs]:
    """Few labels: the values of `data.shots` or `data.fraction` with each of their draws."""
    for option, value, key in (("--shots", shots, "data.shots"), ("--fraction", fraction, "data.fraction")):
        if value is not None and key not in _keys(card):
            what = "image classification" if shots is not None else "tasks that have data.fraction"
            raise UserError(f"{option} is for {what}, not for the task {card.name}")
    if shots is not None and fraction is not None:
        raise UserError("--shots and --fraction: give one of them")
    if draws is not None and ((shots is None and fraction is None) or draws < 1):
        raise UserError("--draws goes with --shots or --fraction, and is 1 or more")
    if draws is not None and draws > MOST_RUNS:
        raise UserError(f"--draws {draws}: at most {MOST_RUNS}")
    found: list[Pairs] = []
    for percent in parse_fractions(fraction) if fraction is not None else []:
        of_percent = range(draws or 1) if percent < 100 else []
        found += [(("data.fraction", percent), ("data.draw", draw)) for draw in of_percent] or [()]
    if shots is not None:
        found = [(("data.shots", shots), ("data.draw", draw)) for draw in range(draws or 1)]
    return found or [()]


def parse_fractions(text: str) -> list[float]:
    """'1' or '1,2,5,10,100' -> percentages above 0 and up to 100."""
    numbers = []
    for part in str(text).split(","):
        try:
            number = float(part)
        except ValueError:
            number = 0.0
        if not 0 < number <= 100:
            raise UserError(
                f"--fraction {part.strip()}: give percent of the training images, such as 1 or 1,2,5,10,100"
            )
        numbers.append(number)
    _check_once("--fraction", [f"{number:g}" for number in numbers])  # as in the names of their folders
    return numbers


def _check_once(option: str, values: Sequence[object]) -> None:
    """UserError for a value of a list that is there twice, which would be one run."""
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise UserError(f"{option}: {value} is there {'twice' if count == 2 else f'{count} times'}; give it once")


def _keys(card: TaskCard) -> list[str]:
    return leaf_keys(config_class(card, protocol_of(card, None)))


def _search_points(
    card: TaskCard,
    backbone: str,
    protocol: str | None,
    options: dict[str, object],
    given: Sequence[tuple[str, object]],
) -> list[Pairs]:
    """Every combination of the values that the recipe documents for the preset, and for the encoder's initialisation
    where that differs, with those of `key=value,value`; UserError if there are none."""
    if protocol is not None and "," in protocol:
        raise UserError("--search goes with one protocol")
    chosen, assigned = protocol_of(card, protocol), dict(given)
    name = str(assigned.get("recipe", chosen.recipe if chosen else card.recipe))
    search, preset = read_recipe(card.folder, name).get("search", {}), options.get("preset", "full")
    schema = config_class(card, chosen)
    tried = {key: values for key, value in given if (values := _values(schema, key, value)) is not None}
    if not search.get(preset) and not tried:
        raise UserError(
            f"recipe {name} documents no search for the preset {preset}: give values to try, such as --search "
            f"optim.lr=1e-4,2e-4, or add its section search.{preset}"
        )
    random = (options.get("weights") or assigned.get("backbone.weights")) == "random"
    init = "random" if random else backbone_spec(backbone).init
    grid = (search.get(preset) or {}) | ((search.get(init) or {}).get(preset) or {})
    for key in grid:
        check_key(schema, key)
    instead = {key: list(map(_number, v)) for key, v in assigned.items() if key in grid and isinstance(v, list)}
    instead = tried | instead
    for key, values in instead.items():
        if not values or any(isinstance(value, list | dict) for value in values):
            example = ",".join(map(str, grid.get(key, [1, 2])))
            raise UserError(f"{key}={values}: give a list of values to try, such as {key}='[{example}]'")
    fixed = {*assigned, *(other for key, other in INSTEAD_OF if key in assigned)} - instead.keys()
    free = {key: values for key, values in (grid | instead).items() if key not in fixed}
    return [tuple(zip(free, values, strict=True)) for values in itertools.product(*free.values())]


def _values(schema: type[RunConfig], key: str, value: object) -> list[Any] | None:
    """The values to try of `optim.lr=1e-4,2e-4` or `optim.lr=[1e-4,2e-4]`; None of a single value.

    A field that takes the whole, such as `optim.betas=[0.9,0.95]` or a path with a comma in it, has one value.
    """
    if isinstance(value, str) and "," in value:
        parts = [parse_override(f"{key}={part}")[1] for part in value.split(",")]
    elif isinstance(value, list) and value:
        parts = value
    else:
        return None
    check_key(schema, key)
    annotation = field_of(schema, key).annotation
    assert annotation is not None
    kind: TypeAdapter[object] = TypeAdapter(annotation)
    takes = [not _refused(kind, each) for each in (value, *parts)]
    return [_number(part) for part in parts] if not takes[0] and all(takes[1:]) else None


def _refused(kind: TypeAdapter[object], value: object) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return True
    return False


def _number(value: object) -> Any:
    """'8e-5', which YAML takes for a text, as the number that a recipe's 8.0e-5 is: its run has the same folder."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_reach(protocols: Sequence[str], given: Sequence[tuple[str, object]]) -> None:
    """UserError for an override of one recipe's optimizer that would reach the runs of another: rates of LARS and AdamW
    are a factor of a thousand apart."""
    of_one = [key for key, _ in given if key.startswith("optim.")]
    if of_one and len(set(protocols)) > 1:
        raise UserError(
            f"{of_one[0]} would reach runs of several recipes ({', '.join(dict.fromkeys(protocols))}); make them one "
            "protocol at a time (0 blocks is the protocol linear)"
        )


def _check_layers(card: TaskCard, variants: Sequence[Choice], given: dict[str, object]) -> None:
    """UserError for a protocol that does not read the features of one block, or one that is told another one."""
    able = [protocol.name for protocol in card.protocols if protocol.layers]
    for variant in variants:
        chosen = protocol_of(card, variant.protocol)
        if chosen is None or not chosen.layers:
            names = " or ".join(able)
            raise UserError(
                f"--layers goes with --protocol {names} of --task {card.name}" if able
                else f"--layers is for tasks with a protocol that reads one layer, not for {card.name}"
            )  # fmt: skip
    if "probe.layers" in given:
        raise UserError("--layers and probe.layers: give one of them")


def _layers(text: str, backbone: str) -> list[Pairs]:
    """'all' or '0,5,11' -> the settings of the run of each block; all blocks are stored by the pass of any of them."""
    spec = backbone_spec(backbone)
    if spec.stages:
        raise UserError(f"--layers: {backbone} is hierarchical, and probes read its last map alone; leave it out")
    parts = [part.strip() for part in str(text).split(",")]
    if parts == ["all"]:
        parts = list(map(str, range(spec.depth)))
    wrong = next((part for part in parts if not part.isdecimal() or int(part) >= spec.depth), None)
    if wrong is not None:
        raise UserError(f"--layers {wrong}: {backbone} has the blocks 0 to {spec.depth - 1}; give some of them, or all")
    stored = sorted(map(int, parts))
    _check_once("--layers", stored)
    return [(("probe.layers", [number]), ("probe.stored_layers", stored)) for number in stored]


def parse_blocks(text: str, backbone: str) -> list[float]:
    """'4', '0.5,1,2' or 'curve' -> numbers of blocks that the backbone has."""
    depth = backbone_spec(backbone).depth
    if text == "curve":
        return [*(number for number in CURVE if number < depth), depth]
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            number = -1.0
        if number != 0.5 and not (number.is_integer() and 0 <= number <= depth):
            raise UserError(f"--blocks {part.strip()}: {backbone} takes 0, 0.5, 1, 2, ... {depth}, or curve")
        numbers.append(number)
    _check_once("--blocks", [f"{number:g}" for number in numbers])
    return numbers
