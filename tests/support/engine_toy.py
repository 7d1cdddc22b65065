"""A tiny task for the engine's tests, and real processes to run it in.

Faults are injected from inside: a process kills itself at a known point, which an outside `kill -9` hits only by luck.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support import processes
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mae_transfer.config.sections import (
    BackboneConfig,
    DataSection,
    EvalSection,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from mae_transfer.engine.distributed import make_fabric, shut_down
from mae_transfer.engine.end_together import ranks_end_together
from mae_transfer.engine.loop import TrainResult, train
from mae_transfer.engine.rng import seed_for_model
from mae_transfer.engine.task import Evaluation
from mae_transfer.errors import DivergedError, StoppedBySignal, UserError
from mae_transfer.runs.run import open_run_folder

STEPS, BATCH, IMAGES = 12, 4, 10
"""Of the usual toy run: steps reach into two epochs, and evaluations fall after steps 3, 5, 8 and 10."""


class Encoder(nn.Module):
    depth, num_layers = 2, 4

    def __init__(self, noise: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 8, 4, 4)
        self.pos_embed = nn.Parameter(torch.randn(1, 4, 8) * 0.02)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.3 if noise else 0.0)) for _ in "ab"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = x + block(x)
        return x

    def layer_id(self, name: str) -> int:
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0


class Model(nn.Module):
    """Noise: dropout in the encoder, BatchNorm after it, and a draw from numpy's global generator."""

    def __init__(self, encoder: Encoder, noise: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.noise = noise
        self.norm = nn.BatchNorm1d(8) if noise else nn.Identity()
        self.head = nn.Linear(8, 2)

    def forward(self, batch: dict[str, Any]) -> Any:
        features = self.norm(self.encoder(batch["images"]).transpose(1, 2)).mean(2)
        if self.training and self.noise:
            features = features * np.random.uniform(0.9, 1.1)
        error = (self.head(features) - batch["targets"]) ** 2
        return {"loss_x": error[:, 0].mean(), "loss_y": error[:, 1].mean()} if self.training else error


class Data:
    def __init__(self, seed: int, dtype: torch.dtype, images: int, bad: dict[int, str], pause: float) -> None:
        self.seed, self.dtype, self.images, self.bad, self.pause = seed, dtype, images, bad, pause

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        time.sleep(self.pause)
        if self.bad.get(index) == "error":
            raise UserError(f"image{index}.jpg is truncated; replace it")
        rng = np.random.default_rng((self.seed, epoch, index))
        image = torch.from_numpy(np.random.default_rng(index).normal(size=(3, 8, 8)) + 0.1 * rng.normal(size=(3, 8, 8)))
        if self.bad.get(index) == "nan":
            image[0, 0, 0] = float("nan")
        return {
            "image": image.to(self.dtype),
            "target": torch.tensor([index % 3, index % 2], dtype=self.dtype),
            "index": index,
        }

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "targets": torch.stack([sample["target"] for sample in samples]),
            "names": [f"image{sample['index']}.jpg" for sample in samples],
        }


class ToyTask:
    fixed_sizes = True

    def __init__(
        self,
        seed: int = 0,
        *,
        noise: bool = True,
        dtype: torch.dtype = torch.float32,
        images: int = IMAGES,
        bad: dict[int, str] | None = None,
        pause: float = 0.0,
    ) -> None:
        self.train_dataset = Data(seed, dtype, images, bad or {}, pause)
        self.noise, self.dtype = noise, dtype

    def build_model(self, encoder: Encoder) -> Model:
        return Model(encoder, self.noise).to(self.dtype)

    def sample_names(self, batch: dict[str, Any]) -> list[str]:
        return list(batch["names"])

    def evaluate(self, model: nn.Module, fabric: Any, progress: bool) -> Evaluation:
        assert not model.training
        data = self.train_dataset
        batch = data.collate([data[(0, index)] for index in range(len(data))])
        with torch.no_grad():
            return Evaluation({"error": float(model(batch).mean()), "undefined": float("nan")})


def make_config(**changes: Any) -> RunConfig:
    """The usual toy run; changes are `section__key=value` or `key=value`."""
    sections: dict[str, dict[str, Any]] = {
        "data": {},
        "optim": {"lr": 0.01, "weight_decay": 0.1, "layer_decay": 0.7, "clip_grad": 0.5, "ema": 0.9},
        "schedule": {"kind": "cosine", "steps": STEPS, "warmup_steps": 3},
        "train": {"global_batch": BATCH, "micro_batch": 3, "eval_every_epochs": 1.0, "checkpoint_every": 4},
    }
    top: dict[str, Any] = {"seed": 3, "device": "cpu"}
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (sections[section] if section else top)[name] = value
    return RunConfig(
        task="toy",
        recipe="toy",
        backbone=BackboneConfig(name="toy"),
        optim=OptimConfig(**sections["optim"]),
        schedule=ScheduleConfig(**sections["schedule"]),
        data=DataSection(**sections["data"]),
        train=TrainConfig(**sections["train"]),
        eval=EvalSection(),
        **top,
    )


def run_toy(
    folder: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    changes: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
) -> TrainResult:
    """One toy run in this process (one rank of it, if started as one)."""
    config = make_config(**(changes or {}))
    fabric = make_fabric(config.device, config.train.precision)
    toy = ToyTask(config.seed, **(task or {}))
    seed_for_model(config.seed)
    model = toy.build_model(Encoder(toy.noise))
    with ranks_end_together(), open_run_folder(fabric, folder, config, resume=resume) as opened:
        return train(fabric, toy, model, config, opened, workers=workers, resume=resume)


# ---- processes


def start(folder: Path, ranks: int = 1, launcher: str = "torchrun", **options: Any) -> processes.Ranks:
    """Start the ranks of a toy run."""
    return processes.start(_child, folder, options, ranks=ranks, launcher=launcher)


def run_ranks(folder: Path, ranks: int = 1, **options: Any) -> list[int | None]:
    return start(folder, ranks, **options).wait()


def outcome(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a rank left behind when it ended by itself: error type and message, and seconds."""
    result: dict[str, Any] = json.loads((folder.parent / f"{folder.name}.rank{rank}.json").read_text())
    return result


def _child(rank: int, folder: Path, options: dict[str, Any]) -> None:
    if options.pop("keep_errors", False):  # the fork server has the standard error of the test that started it
        errors = os.open(f"{folder}.rank{rank}.err", os.O_WRONLY | os.O_CREAT)
        os.dup2(errors, 2)
    _inject(options.pop("fault", {}), rank)
    sys.exit(_guarded(rank, folder, options))


def _guarded(rank: int, folder: Path, options: dict[str, Any]) -> int:
    error: Exception | None = None
    try:
        result = run_toy(folder, **options)
        torch.save(result.model.state_dict(), folder.parent / f"{folder.name}.rank{rank}.pt")
        shut_down()
    except (UserError, StoppedBySignal, DivergedError) as raised:
        error = raised
    report = {"error": type(error).__name__, "message": str(error)}
    (folder.parent / f"{folder.name}.rank{rank}.json").write_text(json.dumps(report))
    return {UserError: 2, StoppedBySignal: 3, DivergedError: 1}[type(error)] if error else 0


def _inject(fault: dict[str, Any], rank: int) -> None:
    """kill_update=N: SIGKILL instead of the N-th optimizer update. kill_write=N: SIGKILL in the middle of writing the
    N-th checkpoint of this process. limit_update=N: from then on no file can grow past 8 kB. rank: whom it hits."""
    if not fault or fault.get("rank", 0) != rank:
        return
    updates, writes, fsync = 0, 0, os.fsync

    def before_update(*_: Any) -> None:
        nonlocal updates
        updates += 1
        if updates == fault.get("kill_update"):
            os.kill(os.getpid(), signal.SIGKILL)
        if updates == fault.get("limit_update"):
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    def fsync_or_die(descriptor: int) -> None:
        nonlocal writes
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(".tmp"):
            writes += 1
            if writes == fault["kill_write"]:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    register_optimizer_step_pre_hook(before_update)
    if "kill_write" in fault:
        os.fsync = fsync_or_die


if __name__ == "__main__":  # one rank under the real torchrun
    torch.set_num_threads(1)
    sys.exit(_guarded(int(os.environ["RANK"]), Path(sys.argv[1]), json.loads(sys.argv[2])))
