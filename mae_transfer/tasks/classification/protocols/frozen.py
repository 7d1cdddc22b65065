"""What the protocols of a frozen encoder have in common: linear, attentive, logreg, knn."""

from typing import ClassVar

from typing_extensions import override

from mae_transfer.tasks.classification.protocols.protocol import Model, Protocol


class FrozenProtocol(Protocol[Model]):
    """A protocol that reads features of an encoder whose weights stay as they are."""

    reads: ClassVar[tuple[str, ...]] = ("probe.final_norm",)

    @override
    def encoder_options(self) -> dict[str, object]:
        return super().encoder_options() | {"final_norm": self.config.probe.final_norm}
