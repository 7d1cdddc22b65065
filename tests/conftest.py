"""Markers that follow from what a test module uses: `process` and `reference`."""

import re
from pathlib import Path

import pytest

PROCESSES = re.compile(r"subprocess|support\.command_line|run_ranks|torch\.distributed\.run|multiprocessing")
REFERENCES = re.compile(r"\b(transformers|detectron2|mmseg|mmcv|pycocotools|mae_reference|ade20k_reference)\b")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    texts: dict[Path, str] = {}
    for item in items:
        text = texts.setdefault(item.path, item.path.read_text(encoding="utf-8"))
        if PROCESSES.search(text):
            item.add_marker(pytest.mark.process)
        if REFERENCES.search(text):
            item.add_marker(pytest.mark.reference)
