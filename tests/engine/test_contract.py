"""A contract refuses what it does not know, when the subclass is defined."""

from abc import abstractmethod

import pytest

from mae_transfer.engine.contract import Contract
from mae_transfer.tasks.classification.protocols.finetune import Finetune
from mae_transfer.tasks.classification.protocols.protocol import Protocol


class Greeter(Contract):
    loud = False

    @abstractmethod
    def greet(self) -> str: ...

    def part(self) -> str:
        return "bye"


def test_hooks_and_private_helpers_are_taken() -> None:
    class Shouter(Greeter):
        loud = True

        def greet(self) -> str:
            return self._word()

        def _word(self) -> str:
            return "HELLO"

    class Louder(Shouter):
        def part(self) -> str:
            return "BYE"

    assert (Louder().greet(), Louder().part(), Shouter().part()) == ("HELLO", "BYE", "bye")


def test_a_misspelt_hook_is_a_type_error_with_the_nearest_one() -> None:
    with pytest.raises(
        TypeError,
        match=r"Shouter\.gret: Greeter has no such hook, did you mean greet\? it has greet, loud, part, reads",
    ):

        class Shouter(Greeter):
            def gret(self) -> str:
                return "HELLO"

    with pytest.raises(TypeError, match=r"Mute\.laud: Greeter has no such hook, did you mean loud\?"):

        class Mute(Greeter):
            laud = True


@pytest.mark.parametrize("base", [Protocol, Finetune])
def test_protocols_are_such_a_contract(base: type[Protocol]) -> None:
    with pytest.raises(TypeError, match=r"Mine\.check_batch: Protocol has no such hook, did you mean check_batches\?"):
        type("Mine", (base,), {"check_batch": lambda self, sizes: None})
    with pytest.raises(TypeError, match=r"Mine\.trians: Protocol has no such hook, did you mean trains\?"):
        type("Mine", (base,), {"trians": False})
