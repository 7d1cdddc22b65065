"""A checkpoint as a training by mmengine leaves it: its tensors and class names are read, its logs are not made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner.checkpoint import get_state_dict, save_checkpoint, weights_to_cpu
from support.tiny_models import segmentor

import mae_transfer as mt
from mae_transfer.backbones.checkpoints import files
from mae_transfer.errors import UserError
from mae_transfer.tasks.ade20k.trained.read import read

CLASSES = tuple(f"thing {number}" for number in range(150))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """The entries of `Runner.save_checkpoint` after a few steps, and the weights in them."""
    path, model = tmp_path_factory.mktemp("mmengine") / "epoch_1.pth", segmentor()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    hub = MessageHub("mmengine_logs")
    for step in range(3):
        hub.update_scalar("train/loss", 0.5 / (1 + step))
        hub.update_scalar("train/lr", np.float64(1e-4))
        hub.update_info("iter", step)
    meta = {"epoch": 1, "iter": 3, "seed": 0, "cfg": "", "dataset_meta": {"classes": CLASSES, "palette": None}}
    content = {"meta": meta, "state_dict": weights_to_cpu(get_state_dict(model)), "message_hub": hub.state_dict()}
    save_checkpoint({**content, "optimizer": optimizer.state_dict(), "param_schedulers": []}, str(path))
    return path, model.state_dict()


def test_it_is_read_without_its_logs(trained: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, wanted = trained
    theirs = torch.load(path, weights_only=False)
    assert type(theirs["message_hub"]["log_scalars"]["train/loss"]).__name__ == "HistoryBuffer"
    content = files.read(path)
    assert content.keys() == theirs.keys() - {"message_hub"}
    assert content["meta"]["dataset_meta"]["classes"] == CLASSES
    assert content["state_dict"].keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(content["state_dict"][name], tensor), name
    found = read(path)
    assert (found.layout, found.labels) == ("mmsegmentation", [*CLASSES])
    model, task = mt.load_model(path, backbone="mae_vit_nano")
    assert task == "ade20k"
    assert torch.equal(model.state_dict()["decode_head.conv_seg.bias"], wanted["decode_head.conv_seg.bias"])


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 + 1",)


def test_code_beside_the_logs_is_refused(trained: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    content = torch.load(trained[0], weights_only=False)
    torch.save({**content, "more": Harm()}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"refused, it holds Python code .*eval") as error:
        files.read(tmp_path / "model.pth")
    assert "\n" not in str(error.value)
    torch.save({"state_dict": {"weight": np.zeros(3)}}, tmp_path / "numpy.pth")
    with pytest.raises(UserError, match="refused, it holds Python code .*numpy"):
        files.read(tmp_path / "numpy.pth")
