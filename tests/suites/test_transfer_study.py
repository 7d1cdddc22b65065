"""The study compares pre-trainings of the same compute: counted by torch on the models of its own configurations."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_transfer.config.recipe import config_folder
from mae_transfer.pretrain.task import PretrainTask
from mae_transfer.pretrain.tokenizers.kmeans import KMeansTokenizer
from mae_transfer.suites.plan import plan_suite

IMAGES = 4


def test_pre_trainings_of_the_study_cost_the_same() -> None:
    data = {name: f"/nowhere/{name}" for name in ("tiny_imagenet", "persons", "camvid", "flowers")}
    _, runs = plan_suite(config_folder() / "suites/transfer_study.yaml", data=data)
    of_seed = {run.row: run.config for run in runs if run.config.task == "pretrain" and run.seed == 0}
    costs = {}
    for row, config in of_seed.items():
        data_config = config.data.model_copy(update={"root": "synthetic"})
        config = config.model_copy(update={"data": data_config, "subset": IMAGES})
        task = PretrainTask(config)
        model = task.build_model(task.build_encoder()).train()
        if row == "beit":
            patch, words = model.encoder.patch_size, config.tokenizer.vocab_size
            model.tokens.tokenizer = KMeansTokenizer(torch.rand(words, 3 * patch**2), patch_size=patch)
        batch = task.train_dataset.collate([task.train_dataset[(0, index)] for index in range(IMAGES)])
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused one is not counted
            sum(model(batch).values()).backward()
        a_step = counter.get_total_flops() / IMAGES * config.train.global_batch
        costs[row] = a_step * config.schedule.steps
    assert costs.keys() == {"mae", "beit", "supervised"}
    for cost in costs.values():
        assert cost == pytest.approx(costs["mae"], rel=0.03), "whole steps, so not to the last operation"
