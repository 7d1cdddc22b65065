"""Contracts that outsiders implement: a base class with default hooks, and subclasses that override some.

A misspelt hook would leave the default in force without a word. So a subclass of a contract may add no public name of
its own: `TypeError` at its definition, with the nearest hook. Helpers have a leading underscore.
"""

import difflib
from typing import ClassVar


class Contract:
    """Base of a contract; its direct subclasses are contracts, theirs are implementations."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Configuration keys (`probe.k`) and whole sections (`schedule`) that the implementation reads and others may not.
    A key that no implementation names is read by all."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        contract = next(base for base in reversed(cls.__mro__) if Contract in base.__bases__)
        if cls is contract:
            return
        hooks = sorted({name for base in contract.__mro__ for name in vars(base) if not name.startswith("_")})
        for name in vars(cls):
            if not name.startswith("_") and name not in hooks:
                near = difflib.get_close_matches(name, hooks, n=1)
                meant = f", did you mean {near[0]}?" if near else ";"
                raise TypeError(
                    f"{cls.__name__}.{name}: {contract.__name__} has no such hook{meant} it has {', '.join(hooks)}; "
                    "begin a helper's name with an underscore"
                )
