"""Trained classifiers give the scores of their sources, from files on disk; what does not fit is one line."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.trained import CLASSES, DIM, SIZE, SOURCES, Source

from mae_transfer.backbones.load import load_backbone
from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.protocols.trained import TrainedClassifier
from mae_transfer.tasks.classification.trained.class_order import match_classes
from mae_transfer.tasks.classification.trained.heads import head_beside, head_of_file

NAMES = [f"class{i}" for i in range(CLASSES)]


def classifier(source: Source) -> TrainedClassifier:
    encoder = load_backbone(source.backbone, checkpoint=source.path, img_size=SIZE, final_norm=True, beside=True)
    head = head_of_file(str(source.classifier), encoder) if source.classifier else head_beside(encoder)
    return TrainedClassifier(encoder, head, match_classes(NAMES, head.classes)).eval()


@pytest.mark.parametrize("name", SOURCES)
def test_scores_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    model = classifier(source)
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = source.scores(images), model.logits(images)
    assert wanted.std() > 0.05, "scores that say nothing"
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    raw = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    scores = model({"images": raw})
    assert (scores.shape, scores.dtype) == ((1, 2, CLASSES), torch.float32)


def contents(source: Source) -> tuple[Path, dict[str, torch.Tensor]]:
    path = source.classifier or source.path
    if path.is_dir():
        path = path / "model.safetensors"
        return path, safetensors.torch.load_file(path)
    content: Any = torch.load(path, weights_only=True)
    return path, content.get("model") or content.get("state_dict") or content


def write(path: Path, state: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)


HEADS = ("head.", "head_dist.", "classifier.", "cls_classifier.", "distillation_classifier.", "module.linear.")
NORMS = ("norm.", "fc_norm.", "vit.layernorm.", "deit.layernorm.", "beit.pooler.", "dinov2.layernorm.")


DAMAGED = (
    "MAE fine-tuned",
    "MAE linear probe",
    "DeiT distilled",
    "HF ViT",
    "DINO of four blocks",
)


@pytest.mark.parametrize("name", DAMAGED)
def test_every_tensor_of_a_classifier_is_needed_and_has_its_shape(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path)
    path, state = contents(source)
    of_head = [key for key in state if source.classifier or key.startswith((*HEADS, *NORMS))]
    assert len(of_head) >= 2
    for key in of_head:
        write(path, {other: tensor for other, tensor in state.items() if other != key})
        with pytest.raises(UserError, match="checkpoint ") as error:
            classifier(source)
        assert "\n" not in str(error.value), key
        if state[key].ndim and len(state[key]) == CLASSES:
            write(path, {**state, key: state[key][:-1].clone()})
            with pytest.raises(UserError, match="checkpoint "):
                classifier(source)
        if state[key].ndim == 2:
            write(path, {**state, key: state[key][:, :-1].clone()})
            with pytest.raises(UserError, match=f"{DIM - 1}\\)|numbers"):
                classifier(source)
    write(path, {**state, "head.extra": torch.zeros(3)})
    with pytest.raises(UserError, match=r"unexpected .*head\.extra|no linear classifier"):
        classifier(source)


def test_what_is_used_is_loaded_and_the_rest_is_named(tmp_path: Path) -> None:
    from mae_transfer.runs.resolve import resolve_config
    from mae_transfer.tasks.classification.protocols.trained import Trained

    source = SOURCES["MAE linear probe"](tmp_path)
    config: Any = resolve_config("folder", source.backbone, protocol="trained", checkpoint=source.path)
    protocol = Trained(config)
    protocol.class_names = NAMES
    options: Any = protocol.encoder_options()
    encoder = load_backbone(source.backbone, checkpoint=source.path, **{**options, "img_size": SIZE})
    encoder_alone = encoder.load_report.fingerprint
    protocol.build_model(encoder, CLASSES)
    report = encoder.load_report
    state = torch.load(source.path, weights_only=True)["model"]
    assert {*report.loaded, *report.ignored} == state.keys()
    assert "head.0.running_mean" in report.loaded
    assert report.fingerprint != encoder_alone, "two classifiers on one encoder are two models"


def test_an_encoder_alone_is_nothing_to_evaluate(tmp_path: Path) -> None:
    source = SOURCES["MAE fine-tuned"](tmp_path)
    path, state = contents(source)
    write(path, {key: tensor for key, tensor in state.items() if not key.startswith("head.")})
    with pytest.raises(UserError, match="has no classifier that is read here"):
        classifier(source)
