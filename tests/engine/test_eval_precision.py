"""Evaluation has a precision of its own: fp32 unless the recipe says otherwise, whatever the training's."""

from pathlib import Path

import pytest
import torch
from support.engine_toy import make_config
from torch import nn

from mae_transfer.config.sections import EvalSection
from mae_transfer.engine.distributed import check_eval_precision, eval_precision, make_fabric
from mae_transfer.errors import UserError
from mae_transfer.run_folder.settings import settings_id
from mae_transfer.runs.api import run_pretrain
from mae_transfer.runs.resolve import resolve_config
from mae_transfer.runs.settings import make_settings
from mae_transfer.runs.tasks import make_task

SMALL = ["data.image_size=32", "data.workers=0", "eval.pictures=0", "model.decoder_depth=1", "model.decoder_width=32"]


@pytest.mark.parametrize("trained", ["fp32", "bf16"])
@pytest.mark.parametrize(("asked", "given"), [("fp32", torch.float32), ("bf16", torch.bfloat16), (None, None)], ids=str)
def test_autocast_inside_is_the_evaluations(trained: str, asked: str | None, given: torch.dtype | None) -> None:
    config = make_config(train__precision=trained).model_copy(update={"eval": EvalSection(precision=asked)})
    fabric = make_fabric("cpu", trained)
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    of_training = torch.float32 if trained == "fp32" else torch.bfloat16

    def dtype() -> torch.dtype:
        with fabric.autocast():
            return layer(x).dtype

    assert dtype() == of_training
    with eval_precision(fabric, config):
        assert dtype() == (given or of_training)
    assert dtype() == of_training


def test_half_precision_that_the_device_has_not_is_found_at_the_start() -> None:
    config = make_config().model_copy(update={"eval": EvalSection(precision="fp16")})
    with pytest.raises(UserError, match=r"eval.precision=fp16 needs a CUDA device.*fp32 or bf16"):
        check_eval_precision(make_fabric("cpu", "fp32"), config)


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("coco", ["data.image_size=96", "eval.max_detections=2"]),
        ("ade20k", ["model.head_channels=32", "model.aux_channels=32", "backbone.rel_pos=per_block"]),
        ("folder", ["data.image_size=32"]),
    ],
)
def test_every_task_evaluates_in_it(task: str, overrides: list[str]) -> None:
    """Seen where it shows: the dtype of the encoder's products while the task evaluates."""
    common = ["train.precision=bf16", "data.workers=0", *overrides]
    seen: list[torch.dtype] = []
    for asked, expected in (("fp32", torch.float32), ("null", torch.bfloat16)):
        config = resolve_config(
            task, "random_vit_nano", preset="smoke", subset=2, overrides=[*common, f"eval.precision={asked}"]
        )
        made = make_task(config)
        model = made.build_model(made.build_encoder())
        model.encoder.vit.blocks[0].mlp.fc1.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
        fabric = make_fabric("cpu", "bf16")
        with eval_precision(fabric, config):
            made.evaluate(model.eval(), fabric, False)
        assert set(seen) == {expected}
        seen.clear()


def test_a_run_in_bf16_is_evaluated_in_fp32_and_the_record_says_so(tmp_path: Path) -> None:
    """A pre-training's val loss tells the two apart to the last bits, and its settings do."""

    def evaluated(*overrides: str, eval_only: bool = True) -> dict:
        return run_pretrain(
            "mae",
            "vit_nano_p8",
            data="synthetic",
            preset="smoke",
            output=tmp_path / "run",
            eval_only=eval_only,
            overrides=[*SMALL, "train.precision=bf16", *overrides],
        )

    first = evaluated(eval_only=False)
    again, as_trained = evaluated(), evaluated("eval.precision=null")
    assert first["settings"]["eval.precision"] == "fp32"
    assert first["metrics"] == again["metrics"]
    loss, other = first["metrics"]["val_loss"], as_trained["metrics"]["val_loss"]
    assert loss != other
    assert loss == pytest.approx(other, rel=0.05)
    assert as_trained["settings_id"] != first["settings_id"]


def test_a_record_from_before_shares_no_cell_with_a_new_one() -> None:
    """Such runs were evaluated in the training's precision; their settings do not have the field."""
    settings = make_settings(make_config(), data_fingerprint="f", norm_batch=2)
    before = {key: value for key, value in settings.items() if key != "eval.precision"}
    assert before != settings
    assert settings_id(before) != settings_id(settings)
