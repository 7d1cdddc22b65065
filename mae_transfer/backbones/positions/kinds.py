"""The kinds of positions, and which of them an encoder has.

A new kind is a file beside this one and a line in KINDS.
"""

from timm.models.vision_transformer import VisionTransformer

from mae_transfer.backbones.positions.decomposed import DecomposedTables
from mae_transfer.backbones.positions.per_block import PerBlockTables, have_one_table
from mae_transfer.backbones.positions.position import Position
from mae_transfer.backbones.positions.rotary import Rotary
from mae_transfer.backbones.positions.shared import SharedTables
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

KINDS: tuple[type[Position], ...] = (Rotary, PerBlockTables, DecomposedTables, SharedTables, Position)


def kind_in_weights(spec: Spec) -> type[Position]:
    """The kind that weights of this spec bring; `Position` if they bring none."""
    return next((kind for kind in KINDS if kind.in_weights(spec)), Position)


def kind_of(spec: Spec, asked: bool | str, vit: VisionTransformer) -> type[Position]:
    """The kind of an encoder for which `backbone.rel_pos` is `asked`: what the weights bring is kept.

    Tables of the weights are shared where that is asked for and all blocks have the same one, as after BEiT's
    pre-training. Raises UserError for tables beside rotary positions.
    """
    brought, wanted = kind_in_weights(spec), next(kind for kind in KINDS if kind.option == asked)
    if brought is Rotary and wanted.has_tables:
        raise UserError(
            f"backbone.rel_pos={str(asked).lower()}: {spec.name} has rotary positions, and attention takes no tables "
            "of relative positions beside them; set backbone.rel_pos=false."
        )
    if brought is Position or (brought is PerBlockTables and wanted is SharedTables and have_one_table(vit)):
        return wanted
    return brought
