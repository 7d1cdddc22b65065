"""Suite files, odd and damaged, through `suite FILE --status`."""

import shutil
from pathlib import Path
from random import Random
from typing import Any

import yaml
from campaign import Trial, Wrong, command
from mutate import ODD_TEXTS, mutate_bytes, mutate_tree

from mae_transfer.cli.suite import main

SUITE: dict[str, Any] = {
    "name": "small",
    "preset": "smoke",
    "seeds": [0, 1],
    "overrides": ["train.checkpoint_every=10"],
    "pretrain": [{"label": "mae", "method": "mae", "backbone": "vit_nano", "seeds": [0, 1]}],
    "backbones": [{"name": "random_vit_nano", "label": "random"}],
    "tasks": [
        {"task": "folder", "label": "own", "protocol": ["linear", "knn"], "shots": 2, "draws": 2},
        {"task": "ade20k", "backbones": ["random"], "overrides": ["optim.lr=1e-4"]},
    ],
}


class Family:
    def __init__(self, folder: Path) -> None:
        self.file, self.output = folder / "suite.yaml", folder / "runs"
        self.whole = yaml.safe_dump(SUITE, sort_keys=False).encode()
        self.file.write_bytes(self.whole)
        self.expected = self.read()

    def read(self) -> str:
        shutil.rmtree(self.output, ignore_errors=True)
        out, _ = command(main, [str(self.file), "--status", "--output", str(self.output)])
        if not out.strip():
            raise Wrong("no matrix is printed")
        if self.output.exists():
            raise Wrong("--status writes a folder")
        return out

    def trial(self, rng: Random) -> Trial:
        kind = rng.random()
        if kind < 0.35:
            what, content = mutate_bytes(self.whole, rng)
        elif kind < 0.8:
            what, _, tree = mutate_tree(SUITE, rng)
            content = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
        else:
            lines = self.whole.decode().splitlines()
            at, text = rng.randrange(len(lines)), rng.choice(ODD_TEXTS)
            lines[at] = lines[at].partition(":")[0] + ": " + text
            what, content = f"line {at}: {text[:30]!r}", "\n".join(lines).encode("utf-8", "surrogatepass")
        self.file.write_bytes(content)
        return Trial(what, self.read, lambda out: None if out == self.expected else "a suite of other legal values")
