"""Overrides that no run of a command reads are refused; recipes and runs that share a command are not."""

import pytest

from mae_transfer.cli.pretrain import main as pretrain
from mae_transfer.cli.transfer import main as transfer
from mae_transfer.config.overrides import leaf_keys
from mae_transfer.errors import UserError
from mae_transfer.runs.plan import plan_runs
from mae_transfer.runs.tasks import config_class, protocol_of, task_card
from mae_transfer.tasks.card import load_object


def plan(protocol: str | None, *overrides: str, task: str = "folder") -> int:
    return len(plan_runs(task, "random_vit_nano", protocol=protocol, overrides=list(overrides)))


@pytest.mark.parametrize(
    ("protocol", "override", "message"),
    [
        (
            "finetune",
            "probe.k=[5]",
            r"probe.k: protocol=finetune never reads it \(knn does\); it reads nothing of probe",
        ),
        (
            "knn",
            "probe.blocks=[1,4]",
            r"protocol=knn never reads it \(linear does\); the nearest that it reads is probe\.",
        ),
        ("linear", "probe.c_count=3", r"protocol=linear never reads it \(logreg does\); the nearest .* is probe\."),
        ("logreg", "optim.lr=1", r"never reads it \(finetune, partial, linear and attentive do\); it reads nothing of"),
        ("knn", "train.global_batch=8", r"the nearest that it reads is train\.\w+"),
        ("knn", "data.flip=0.5", r"protocol=knn never reads it \(finetune, partial, linear and attentive do\)"),
        ("linear", "model.mixup=0.8", r"protocol=linear never reads it \(finetune and partial do\)"),
        ("attentive", "optim.layer_decay=0.65", r"protocol=attentive never reads it \(finetune and partial do\)"),
        ("attentive", "data.holdout=0.1", r"never reads it \(linear, logreg and knn do\)"),
        ("finetune", "model.blocks=2", r"never reads it \(partial does\); the nearest that it reads is model\."),
        ("finetune", "optim.momentum=0.95", r"optim.kind=adamw never reads it \(sgd and lars do\); .* is optim\."),
        ("linear", "optim.betas=[0.9,0.95]", r"optim.kind=sgd never reads it \(adamw does\)"),
        ("linear", "data.crop=center data.scale_min=0.5", r"data.crop=center never reads it \(random and single do\)"),
        ("finetune", "schedule.power=0.9", r"schedule.kind=cosine never reads it \(poly does\)"),
    ],
)
def test_a_setting_that_is_never_read_is_one_line(protocol: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan(protocol, *override.split())
    assert "\n" not in str(caught.value)


def test_every_task_knows_its_optimizer() -> None:
    with pytest.raises(UserError, match=r"optim.kind=adamw never reads it \(sgd and lars do\)"):
        plan(None, "optim.momentum=0.95", task="coco")
    assert plan(None, "optim.momentum=0.95", "optim.kind=sgd", task="coco") == 1
    assert plan(None, "data.scale_min=0.5", task="coco") == plan("linear", "data.scale_min=0.5") == 1


def test_one_run_of_the_command_that_reads_it_is_enough() -> None:
    assert plan("linear,knn", "probe.k=[5]", "probe.lrs=[0.1]", "data.holdout=0.1", "schedule.steps=3") == 2
    with pytest.raises(UserError, match="probe.c_count: protocol=linear never reads it"):
        plan("linear,knn", "probe.c_count=3")


def test_what_cannot_change_a_result_is_taken_anywhere() -> None:
    assert plan("knn", "train.log_every=1", "probe.cache=false", "backbone.grad_checkpointing=true") == 1


def test_each_setting_of_a_probe_or_head_has_a_reader() -> None:
    card = task_card("imagenet")
    named = {name for protocol in card.protocols for name in load_object(protocol.code).reads}
    known = leaf_keys(config_class(card, protocol_of(card, None)))
    own = {key for key in known if key.startswith(("probe.", "model."))}
    assert own - named == {"probe.cache", "probe.stored_layers"}
    assert named <= {*known, "schedule"}


def test_a_printed_configuration_refuses_what_its_run_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for main, options in (
        (pretrain, ["--method", "mae", "--backbone", "vit_nano_p8"]),
        (transfer, ["--task", "coco", "--backbone", "random_vit_nano"]),
    ):
        command = [*options, "--print-config", "optim.momentum=0.95"]
        assert main(command) == 2
        assert "optim.kind=adamw never reads it" in capsys.readouterr().err
        assert main([*command, "--allow-unread"]) == 0
        assert "momentum: 0.95" in capsys.readouterr().out
