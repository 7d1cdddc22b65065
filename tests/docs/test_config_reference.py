"""docs/config.md is what the configuration classes say today, and has every field."""

import importlib.util

from support.paths import ROOT

from mae_transfer.config.overrides import leaf_keys
from mae_transfer.runs.tasks import config_class, task_cards


def test_the_page_is_up_to_date_and_whole() -> None:
    path = ROOT / "docs" / "make_config_reference.py"
    spec = importlib.util.spec_from_file_location("make_config_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == module.reference(), "run python docs/make_config_reference.py"
    for card in task_cards():
        for protocol in card.protocols or (None,):
            for key in leaf_keys(config_class(card, protocol)):
                assert f"| `{key}` |" in page, key
    undocumented = [line for line in page.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert undocumented == []
