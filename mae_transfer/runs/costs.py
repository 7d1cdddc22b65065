"""What a run will cost, before it is made: memory, operations, hours, disk. No GPU and no data are needed.

The run's own model makes two steps of two sizes under `engine/dry_run.py`. Bytes are those of tensors: the allocator's
rounding, workspaces and the CUDA context are left to `RESERVE`.
"""

import dataclasses
from dataclasses import dataclass

import torch

from mae_transfer.backbones.flops import encoder_flops
from mae_transfer.config.overrides import Overrides, parse_overrides
from mae_transfer.config.sections import RunConfig
from mae_transfer.engine.dry_run import DryRun, as_on_cuda
from mae_transfer.engine.ema import make_ema
from mae_transfer.engine.loop import check_plan, micro_batch_sizes
from mae_transfer.engine.optim import build_optimizer
from mae_transfer.engine.shard import check_blocks, check_shard
from mae_transfer.engine.task import BaseTask
from mae_transfer.errors import UserError
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.step_cost import (
    CARDS,
    GIB,
    RESERVE,
    SHARE,
    duration,
    first_batch,
    reserve,
    smallest_micro_batch,
    takes_batch_norm,
)
from mae_transfer.runs.tasks import make_task, task_card

IMAGENET = 1281167
"""Training images of ImageNet-1K, of which a pre-training's epochs are counted without data."""


@dataclass(frozen=True)
class Plan:
    """What one run costs. Bytes, operations (a multiplication and an addition are two), hours of wall time."""

    title: str
    parameters: int
    trained_parameters: int
    images: int
    """Training images of an epoch; of a protocol without training all images that the encoder sees."""
    steps: int
    """0: nothing is trained."""
    global_batch: int
    gpus: int
    forward_flops: float
    """Of one image, the whole model."""
    train_flops: float
    """Of one image, forward and backward; `forward_flops` where nothing is trained."""
    fixed_bytes: int
    """Of a GPU in the forward and backward pass without their images: weights, gradients, optimizer, EMA, buckets."""
    image_bytes: int
    """What each image of a micro-batch adds to them."""
    update_bytes: int
    """In the update, which has temporaries of its own and no images; with `train.shard` in an evaluation, which has the
    whole weights beside the parts."""
    micro_batch: int
    """The recipe's."""
    gpu_memory: float
    """GiB of a card."""
    largest: int
    """The largest micro-batch that fits and that the task can train on, at most a GPU's part of the global batch, or
    `eval.batch_size` where nothing is trained; 0 if none is."""
    checkpoint_bytes: int
    """Of those that the run keeps."""
    batch_norm: bool
    """Whether the model takes statistics of its micro-batches, so that another size is another model."""
    reserve: float = RESERVE
    """Of a card's memory, that is kept free."""
    auto: bool = False
    """Whether `micro_batch` is `auto`, which takes `largest`."""
    shard_gpus: int | None = None
    """The fewest GPUs on which a micro-batch of 1 fits with `train.shard`, where none does without."""
    shard_bytes: int | None = None
    """What each of them then holds."""

    def memory(self, micro_batch: int) -> int:
        """Bytes of tensors at the peak of a step."""
        return max(self.update_bytes, self.fixed_bytes + micro_batch * self.image_bytes)

    def hours(self, peak: float, share: float = SHARE) -> float:
        """Wall time on `gpus` cards of that many TFLOP/s at that share of them."""
        seen = self.steps * self.global_batch or self.images
        return seen * self.train_flops / (peak * 1e12 * share * self.gpus) / 3600

    def to_dict(self) -> dict[str, object]:
        """All values, with `hours` by card."""
        return dataclasses.asdict(self) | {"hours": {card: self.hours(peak) for card, peak in CARDS.items()}}

    def lines(self) -> list[str]:
        """As `mae-transfer plan` prints it."""
        per_gpu = self.global_batch // self.gpus or self.micro_batch
        sizes = sorted({1, 2, 4, 8, 16, 32, 64, self.micro_batch, self.largest, per_gpu} - {0})
        table = "  ".join(f"{m}: {self.memory(m) / GIB:.1f}" for m in sizes if m <= per_gpu)
        times = "  ".join(f"{card} {duration(self.hours(peak))}" for card, peak in CARDS.items())
        rate = self.gpus * CARDS["H100"] * 1e12 * SHARE / self.train_flops
        what = f"{self.images:,} images"
        if self.steps:
            what = f"{self.steps:,} steps of {self.global_batch} images, {self.images:,} training images"
        flops = f"{self.forward_flops / 1e12:.4g} TFLOP an image forward, {self.train_flops / 1e12:.4g} in all"
        lines = [
            self.title,
            f"  work        {what}",
            f"  parameters  {self.parameters / 1e6:.1f} M, {self.trained_parameters / 1e6:.1f} M trained",
            f"  operations  {flops}",
            f"  memory      GiB of each GPU by micro-batch: {table}",
            f"              {self.gpu_memory:g} GiB a GPU, {self.reserve:.0%} kept free: {self._fits(per_gpu)}",
        ]
        if self.shard_gpus and self.shard_bytes:
            each = f"{self.shard_bytes / GIB:.1f} GiB on each of {self.shard_gpus} GPUs with a micro-batch of 1"
            lines.append(f"              train.shard=true cuts weights and optimizer states: {each}")
        if self.batch_norm:
            lines.append(
                "              batch norm takes its statistics over a micro-batch: another size is another recipe"
            )
        of = f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}"
        lines.append(f"  time        {of} at {SHARE:.0%} of their peak: {times}")
        lines.append(f"  loading     {rate:,.0f} images a second keep {of} H100 busy")
        if self.steps:
            lines.append(f"  disk        {self.checkpoint_bytes / GIB:.1f} GiB of checkpoints")
        return lines

    def _fits(self, per_gpu: int) -> str:
        """What fits and what is set; larger ones than `per_gpu` are not asked for."""
        if not self.steps and self.largest == per_gpu:
            return f"eval.batch_size={per_gpu} fits"
        fits = f"{self.largest} is the largest that fits" if self.largest else "not even 1 fits"
        if self.largest == per_gpu:
            fits = f"{per_gpu} fits, all of a GPU's part of the global batch"
        if not self.steps:
            return f"{fits}; eval.batch_size={per_gpu} is set"
        return f"{fits}; train.micro_batch={'auto takes it' if self.auto else f'{self.micro_batch} is set'}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def plan(
    task: str,
    backbone: str,
    *,
    protocol: str | None = None,
    method: str | None = None,
    data: str | None = None,
    preset: str = "full",
    gpus: int = 1,
    gpu_memory: float = 80,
    weights: str | None = None,
    tokenizer: str | None = None,
    subset: int | None = None,
    overrides: Overrides = (),
) -> Plan:
    """What a run costs; the same as `mae-transfer plan` with the options of these names.

    Args:
        task: of a transfer, or `pretrain`.
        method: of a pre-training.
        data: the data set's folder. Without it a benchmark's own numbers of images and classes are taken.
        gpus: GPUs in all.
        gpu_memory: GiB of each.
        weights, subset, overrides: as those of `run_transfer`.
        tokenizer: as that of `run_pretrain`.

    Raises:
        UserError: bad input, or a number of images that cannot be known without data.
    """
    if gpus < 1 or not 0 < gpu_memory < 1e6:
        raise UserError(f"--gpus {gpus}, --gpu-memory {gpu_memory:g}: give a number of GPUs and the GiB of each")
    if protocol is not None and "," in protocol:
        raise UserError(
            f"--protocol {protocol}: plan takes one protocol at a time; give {protocol.split(',')[0]} alone"
        )
    card = task_card(task)
    known = data is not None or "data.root" in dict(parse_overrides(overrides))
    if not known and card.benchmark is None and card.transfers:
        raise UserError(f"--task {task}: its number of images is unknown; give --data")
    config = resolve_config(
        *(task, backbone),
        protocol=protocol or method,
        data=data if known else "synthetic",
        preset=preset,
        weights=weights,
        tokenizer=tokenizer,
        subset=subset,
        overrides=overrides,
    )
    return plan_run(config, gpus=gpus, gpu_memory=gpu_memory)


def plan_run(config: RunConfig, *, gpus: int, gpu_memory: float) -> Plan:
    """What the run of a configuration costs. No weights file is read: new weights have the same size."""
    card, benchmark = task_card(config.task), task_card(config.task).benchmark
    config, auto = with_new_weights(config), config.train.micro_batch == "auto"
    few = {key: getattr(config.data, key, None) for key in ("fraction", "shots")}
    whole = config.data.root == "synthetic" and config.preset != "smoke"
    if whole:  # counted below: the generated images are too few to draw from
        off = {key: None for key, value in few.items() if value is not None}
        config = config.model_copy(update={"data": config.data.model_copy(update=off)})
    task = make_task(config)
    images, val = len(task.train_dataset), int(task.data_summary["val_images"])
    if whole:
        images, val = (benchmark.train_images, benchmark.val_images) if benchmark else (IMAGENET, 0)
        images = round(images * (few["fraction"] or 100) / 100)
        if few["shots"] and benchmark:
            images = min(images, few["shots"] * benchmark.classes)
        if config.subset is not None:
            images, val = min(images, config.subset), min(val, config.subset)
        if benchmark is not None:
            task.with_classes(benchmark.classes)
    steps = check_plan(config, images, gpus).total if task.trains else 0
    alone = _train(task) if task.trains else _features(task)
    per_gpu = config.train.global_batch // gpus if task.trains else config.eval.batch_size
    name = getattr(config, card.option, "") or ""
    check_shard(config, gpus, task.shards, f"{config.task} {name}".strip())
    measured, memory = alone.of_each(config, gpus), gpu_memory * GIB
    largest = _largest(task, measured, gpus=gpus, memory=memory)
    shard_gpus = shard_bytes = None
    if not largest and task.shards and alone.whole and not config.train.shard:
        for ranks in (gpus * 2**power for power in range(gpus == 1, 11)):
            cut = alone.sharded(ranks)
            if config.train.global_batch % ranks == 0 and _largest(task, cut, gpus=ranks, memory=memory):
                shard_gpus, shard_bytes = ranks, max(cut.update, cut.fixed + cut.image)
                break
    return Plan(
        title=" ".join(filter(None, (config.task, name, f"({config.recipe}, {config.preset})", config.backbone.name))),
        parameters=measured.parameters,
        trained_parameters=measured.trained,
        images=images if task.trains else images + val,
        steps=steps,
        global_batch=config.train.global_batch if task.trains else 0,
        gpus=gpus,
        forward_flops=measured.forward,
        train_flops=measured.all,
        fixed_bytes=measured.fixed,
        image_bytes=measured.image,
        update_bytes=measured.update,
        micro_batch=largest if auto else min(config.train.micro_batch_size, per_gpu) if task.trains else per_gpu,
        gpu_memory=gpu_memory,
        largest=largest,
        checkpoint_bytes=measured.state * config.train.keep_checkpoints,
        batch_norm=measured.batch_norm,
        reserve=reserve(task),
        auto=auto,
        shard_gpus=shard_gpus,
        shard_bytes=shard_bytes,
    )


def largest_micro_batch(task: BaseTask, *, gpus: int, memory: float) -> int:
    """`Plan.largest` of a task that trains, whose configuration is `with_new_weights`. memory: bytes of each GPU."""
    return _largest(task, _train(task).of_each(task.config, gpus), gpus=gpus, memory=memory)


def with_new_weights(config: RunConfig) -> RunConfig:
    """What a plan builds: no weights file is read, and of `train.micro_batch=auto` the images are one."""
    train = config.train.with_micro_batch(1, auto=True) if config.train.micro_batch == "auto" else config.train
    new = {"weights": "random", "checkpoint": None, "checkpoint_key": None}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=new), "train": train})


def _largest(task: BaseTask, measured: "_Measured", *, gpus: int, memory: float) -> int:
    config: RunConfig = task.config
    free = int(memory * (1 - reserve(task)))
    fits = max(0, (free - measured.fixed) // max(1, measured.image)) if measured.update <= free else 0
    if not task.trains:
        return min(fits, config.eval.batch_size)
    for images in range(min(fits, config.train.global_batch // gpus), 0, -1):
        train = config.train.with_micro_batch(images, auto=True)
        try:
            task.check_batches(micro_batch_sizes(config.model_copy(update={"train": train}), gpus))
        except UserError:
            continue
        return images
    return 0


@dataclass(frozen=True)
class _Measured:
    parameters: int
    trained: int
    forward: float
    all: float
    fixed: int
    image: int
    update: int = 0
    state: int = 0
    batch_norm: bool = False
    cut: int = 0
    """Bytes that `train.shard` cuts: weights, gradients, moments, average."""
    whole: int = 0
    """Bytes of weights and gradients that are whole with it at a time."""

    def of_each(self, config: RunConfig, gpus: int) -> "_Measured":
        """Of each of so many GPUs: a part, or all with DDP's copy of the gradients."""
        if config.train.shard:
            return self.sharded(gpus)
        buckets = 4 * self.trained if gpus > 1 else 0
        return dataclasses.replace(self, fixed=self.fixed + buckets, update=self.update + buckets)

    def sharded(self, gpus: int) -> "_Measured":
        """Of each GPU with `train.shard`."""
        own = self.cut // gpus
        update = max(self.update // gpus, own + 4 * self.parameters)
        return dataclasses.replace(self, fixed=self.fixed - self.cut + own + self.whole, update=update)


def _train(task: BaseTask) -> _Measured:
    """Two steps of each of two micro-batches: the second one has the optimizer's states."""
    config = task.config
    small = smallest_micro_batch(task)
    with DryRun() as memory, as_on_cuda():
        encoder = task.build_encoder()
        check_blocks(config, encoder)
        model = task.build_model(encoder)
        ema = make_ema(model, config.optim.ema) if config.optim.ema else None
        optimizer = build_optimizer(model, config.optim)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision)
        model.train()
        peaks, update, forward, whole = [], 0, 0.0, 0.0
        for size in (small, small, 2 * small):
            batch = first_batch(task, size)
            optimizer.zero_grad(set_to_none=False)  # a later micro-batch of a step finds gradients there
            memory.peak, before = memory.now, memory.flops
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                losses = model(batch)
            after = memory.flops
            torch.stack(list(losses.values())).sum().backward()
            forward, whole = (after - before) / size, (memory.flops - before) / size
            peaks.append(memory.peak)
            memory.peak = memory.now
            optimizer.step()
            if ema is not None:
                ema.update_parameters(model)
            update = memory.peak
            del losses, batch
    trained = [p for p in model.parameters() if p.requires_grad]
    image = max(0, (peaks[2] - peaks[1]) // small)
    moments = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x))
    weights = sum(x.nbytes for x in model.state_dict().values())
    blocks = list(encoder.get_submodule("vit.blocks").children()) if encoder.shards else []
    # Of a block: its weights, those of the next one and their copy on the way; its gradients and their copy.
    each = [sum(p.nbytes * (3 + 2 * p.requires_grad) for p in block.parameters()) for block in blocks]
    in_blocks = {id(p) for block in blocks for p in block.parameters()}
    rest = sum(p.nbytes * (1 + p.requires_grad) for p in model.parameters() if id(p) not in in_blocks)
    return _Measured(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in trained),
        forward=forward,
        all=whole,
        fixed=peaks[1] - small * image,
        image=image,
        update=update,
        state=weights * (2 if ema is not None else 1) + moments,
        batch_norm=takes_batch_norm(model),
        cut=sum(p.nbytes * (1 + p.requires_grad + (ema is not None)) for p in model.parameters()) + moments,
        whole=rest + max(each) if each else 0,
    )


def _features(task: BaseTask) -> _Measured:
    """The encoder on two sizes of batch, without gradients."""
    with DryRun() as memory, as_on_cuda(), torch.no_grad():
        encoder = task.build_encoder().eval()
        side = [length * encoder.patch_size for length in encoder.global_grid]
        peaks = []
        for size in (1, 2):
            memory.peak = memory.now
            encoder(torch.zeros(size, len(encoder.mean), *side))
            peaks.append(memory.peak)
    flops, image = encoder_flops(encoder), peaks[1] - peaks[0]
    count = sum(p.numel() for p in encoder.parameters())
    return _Measured(count, 0, flops, flops, peaks[0] - image, image)
