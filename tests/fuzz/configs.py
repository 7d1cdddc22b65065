"""Recipe files and `key=value` overrides, odd and damaged, through `transfer --print-config`."""

from pathlib import Path
from random import Random
from typing import Any

import yaml
from campaign import Trial, Wrong, command
from mutate import ODD_TEXTS, mutate_bytes, mutate_tree

from mae_transfer.cli.transfer import main
from mae_transfer.config.overrides import leaf_keys
from mae_transfer.config.recipe import config_folder
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import load_config

TASKS = (("coco", "coco/mask_rcnn_li2021"), ("ade20k", "ade20k/upernet_mae"), ("folder", "classification/finetune_mae"))


class Family:
    def __init__(self, folder: Path) -> None:
        self.recipe = folder / "recipe.yaml"
        self.files: list[tuple[str, bytes, dict[str, Any], dict[str, Any], list[str]]] = []
        for task, name in TASKS:
            content = next(config_folder().glob(f"{name}*.yaml")).read_bytes()
            self.recipe.write_bytes(content)
            keys = leaf_keys(type(load_config(task, "random_vit_nano", preset="smoke")))
            self.files.append((task, content, yaml.safe_load(content), self.read(task, f"recipe={self.recipe}"), keys))

    def read(self, task: str, *overrides: str) -> dict[str, Any]:
        options = ["--task", task, "--backbone", "random_vit_nano", "--preset", "smoke", "--print-config"]
        out, _ = command(main, [*options, *overrides])
        config = yaml.safe_load(out)
        if not isinstance(config, dict):
            raise Wrong(f"no configuration is printed: {out[:200]}")
        return config

    def trial(self, rng: Random) -> Trial:
        task, content, tree, expected, keys = rng.choice(self.files)
        if rng.random() < 0.4:
            if rng.random() < 0.5:
                what, changed = mutate_bytes(content, rng)
            else:
                what, _, odd = mutate_tree(tree, rng)
                changed = yaml.safe_dump(odd, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
            self.recipe.write_bytes(changed)

            def judge(config: dict[str, Any]) -> str | None:
                return None if same(config, expected) else "a recipe of other legal values"

            return Trial(f"recipe of {task}, {what}", lambda: self.read(task, f"recipe={self.recipe}"), judge)
        key, value = rng.choice(keys), rng.choice(ODD_TEXTS)
        if rng.random() < 0.2:
            key = rng.choice(
                (key[:-1], key.upper(), key.partition(".")[2], "", key + ".x", "." + key, key.partition(".")[0])
            )
        if rng.random() < 0.3:
            value = str(rng.choice((1, 2, 10**6, 10**9, 10**30, -1, 0.1, 1e-300, 1e300, 0)))

        def check(config: dict[str, Any]) -> str | None:
            found: Any = config
            for part in key.strip().split("."):
                found = found[part]
            if not stands_for(value, found):
                raise Wrong(f"{key}={value[:80]!r} became {found!r}"[:300])
            return None

        def run() -> dict[str, Any]:
            if "\0" in value + key:  # no argument of a process can hold it
                raise UserError("a zero byte in an argument")
            return self.read(task, f"{key}={value}")

        return Trial(f"override of {task}, {key[:40]}={value[:40]!r}", run, check)


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def stands_for(text: str, found: Any) -> bool:
    """Whether a text may mean a value, by YAML 1.2's plain scalars; whatever is no number, truth or null is a text."""
    plain = text.partition("#")[0].strip()
    if found is None:
        return plain in ("", "null", "~")
    if isinstance(found, bool):
        return plain.lower().lstrip("+") in (
            ("true", "1", "yes", "on", "t", "y") if found else ("false", "0", "no", "off", "f", "n")
        )
    if isinstance(found, int | float):
        try:
            return float(plain) == float(found)
        except ValueError:
            return False
    if isinstance(found, list):
        return plain.startswith(("[", "- ")) or bool(plain)
    return bool(str(found)) or not plain.strip("'\"")
