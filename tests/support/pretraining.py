"""Configurations of pre-trainings, and what a step of one gives."""

from typing import Any

from torch import Tensor, nn

from mae_transfer.runs.resolve import resolve_config


def resolve_pretrain(method: str, backbone: str, **options: Any) -> Any:
    """The configuration of a method; options as those of `resolve_config`."""
    return resolve_config("pretrain", backbone, protocol=method, **options)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model: nn.Module, batch: dict[str, Any], key: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one step in training mode; the model has no gradients afterwards."""
    loss = model.train()(batch)[key]
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    return loss, found
