"""The section of the protocols that keep the encoder frozen: linear, attentive, knn, logreg."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mae_transfer.config.layers import StoredLayers
from mae_transfer.config.roles import Role
from mae_transfer.config.sections import PowerOfTen, Section

Pooling = Literal["cls", "avg", "cls+avg"]


class ProbeConfig(Section):
    """What a probe reads from the frozen encoder, and how."""

    final_norm: bool = True
    """Features go through the weights' own LayerNorm after the blocks; false takes the blocks' output."""
    cache: Annotated[bool, Role.OPERATIONAL] = True
    """Without augmentation: compute the features of all images once, keep them in the run folder and train on them."""
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    """linear: read the last n blocks, their features side by side; several n make a head each."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """knn, logreg: 0-based numbers of the blocks that are read, side by side; null is the last one."""
    stored_layers: StoredLayers = ()
    """knn, logreg: blocks whose features the pass over the images stores as well, each for a run of its own; `--layers`
    sets it."""
    pooling: tuple[Pooling, ...] = Field(("cls",), min_length=1)
    """linear, knn, logreg: the class token, the average of the patch tokens, or both side by side (in `cls+avg` the
    average is that of the last block alone, as in DINOv2). knn and logreg take one."""
    lrs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """linear: peak learning rates, a head each; none is one head at optim.lr."""
    batch_norm: bool = True
    """linear: BatchNorm without affine parameters before the classifier; it is folded into it at the end."""
    init_std: float = Field(0.01, gt=0)
    """Standard deviation of the first weights: linear, of the classifier; attentive, of the pooling block."""
    queries: int = Field(1, ge=1)
    """attentive: learned queries; the classifier reads the average of what they pool."""
    attention_heads: int | None = Field(None, ge=1)
    """attentive: heads of the cross-attention; None is the encoder's number."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 100, 200), min_length=1)
    """knn: numbers of neighbours."""
    temperature: float = Field(0.07, ge=1e-4)
    """knn: a neighbour votes with the weight exp(cosine similarity / temperature)."""
    c_powers: tuple[PowerOfTen, PowerOfTen] = (-6.0, 5.0)
    """logreg: the inverse regularisation strength C goes from 10 to the first to 10 to the second power."""
    c_count: int = Field(45, ge=1, le=1000)
    """logreg: number of values of C, evenly spaced in the power."""
    max_iter: int = Field(1000, ge=1)
    """logreg: iterations of L-BFGS for each C."""
    tolerance: float = Field(1e-4, gt=0)
    """logreg: a fit stops when no entry of its gradient is larger than this share of the objective, or of 1 if that is
    less, in principal components of features and classes, each in units in which the mean loss is curved by one at
    zero weights."""

    @model_validator(mode="after")
    def _check(self) -> "ProbeConfig":
        for name in ("blocks", "pooling", "lrs", "k"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} names one twice")
        if self.c_powers[0] > self.c_powers[1]:
            raise ValueError(f"c_powers {list(self.c_powers)}: the first is the lower one")
        return self
