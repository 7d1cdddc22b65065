"""What attention knows of the places of its tokens: the base of all kinds, which is the kind that knows nothing."""

from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from mae_transfer.backbones.checkpoints.report import LoadReport
from mae_transfer.backbones.grid import Grid
from mae_transfer.backbones.registry import Spec
from mae_transfer.errors import UserError

OfForward = tuple[Tensor | None, Tensor | None]
"""What all windowed blocks and what all global blocks share in one forward pass."""


class Host(Protocol):
    """The encoder, as a kind of positions sees it (`vit.ViTEncoder`)."""

    vit: Any
    spec: Spec
    name: str
    num_heads: int
    prefix: int
    taps: tuple[int, ...]
    window_size: int
    global_blocks: frozenset[int]
    global_grid: Grid
    native_grid: Grid
    """That of the weights' own position embedding or tables."""
    rel_pos: bool | str
    window_rope: str
    rel_pos_window: nn.Parameter | None
    rel_pos_global: nn.Parameter | None

    def grid_of_block(self, block: int) -> Grid: ...

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None: ...


class Position:
    """Absolute positions only: the position embedding has told the tokens their places before the first block.

    The other kinds are subclasses, listed in `kinds.py`. One object serves all blocks of an encoder. It holds no
    parameter: tables are parameters of the blocks' attention or of the encoder, so that they have their names there.
    """

    option: ClassVar[bool | str | None] = False
    """The value of `backbone.rel_pos` that asks for this kind; None for one that only weights bring."""
    has_tables: ClassVar[bool] = False
    """Attention adds a bias of learned tables. It needs timm's standard blocks, and the tokens of a whole grid."""

    @classmethod
    def in_weights(cls, spec: Spec) -> bool:
        """Whether weights of this spec bring tables of this kind, which are then kept whatever is asked for."""
        return False

    @classmethod
    def new_tables(cls, attn: Any, grid: Grid, prefix: int) -> None:
        """Give a block's attention zero tables for a grid and `prefix` prefix tokens, in place of those it has."""

    def __init__(self, encoder: Host) -> None:
        self.prefix, self.window_size = encoder.prefix, encoder.window_size
        self.global_grid = encoder.global_grid

    def fit(self, encoder: Host, report: LoadReport) -> None:
        """Make the tables, or resize those of the weights to the encoder's windows and grid, and report what was done.

        Raises UserError for tables that cannot be those of this encoder.
        """
        for name, table in report.shared_tables.items():
            raise misfit(report, name, table, "none")

    def of_forward(self, encoder: Host, x: Tensor, grid: Grid) -> OfForward:
        """What the blocks share in the forward pass of tokens x (B, prefix + h * w, C) of a grid."""
        return None, None

    def of_kept(self, encoder: Host, keep: Tensor) -> Tensor | None:
        """What the blocks share in a forward pass of some patches of each image: of the places `keep` int64 (B, n) in
        the native grid, row by row."""
        return None

    def attend(self, attn: Any, x: Tensor, grid: Grid, windowed: bool, shared: Tensor | None) -> Tensor:
        """A block's attention on (B, prefix + h * w, C): the whole image, or windows, `grid` being one window's.

        `shared` is the windowed or the global part of `of_forward`.
        """
        return attn(x)

    def facts(self) -> dict[str, Any]:
        """Fields of the Spec that a run's checkpoint has with these positions, where they are not the spec's own."""
        return {}


def misfit(report: LoadReport, name: str, table: Tensor, has: str) -> UserError:
    """The error for a shared table of a run that the encoder has no place for."""
    return UserError(
        f"checkpoint {report.source}: {name} is {tuple(table.shape)}, the encoder has {has}; pass the "
        "window_size, num_global_blocks, rel_pos and image size of the run it is from."
    )
