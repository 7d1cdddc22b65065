"""Claims of the MAE paper, each with the two sides that it compares and the paper's numbers (`claims.yaml`)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mae_transfer.config.yaml import read_yaml

CLAIMS = Path(__file__).with_name("claims.yaml")


class Claim(BaseModel):
    """The head of the file says what each key is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    says: str
    source: str
    better: str
    worse: str
    published: Mapping[str, tuple[float, float] | float]
    factor: str | None = None
    task: str | None = None
    up_to: float | None = None


def read_claims() -> list[Claim]:
    """All claims, in the order of the file."""
    return [Claim.model_validate(entry) for entry in read_yaml(CLAIMS, "list of claims").values()]
