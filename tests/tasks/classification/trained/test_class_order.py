"""Which output of a classifier is which class folder: by synset, by the file's own names, or in order, and said."""

import random

import pytest
from timm.data import ImageNetInfo

from mae_transfer.errors import UserError
from mae_transfer.tasks.classification.trained.class_order import match_classes

IMAGENET = ImageNetInfo("imagenet-1k")
SYNSETS = IMAGENET.label_names()
LABELS = IMAGENET.label_descriptions()


def test_the_thousand_folders_of_imagenet_are_in_their_own_order() -> None:
    assert sorted(SYNSETS) == SYNSETS
    order = match_classes(SYNSETS, 1000, LABELS)
    assert order.outputs == tuple(range(1000))
    assert order.about == "imagenet-1k, all 1000 classes matched by synset"


@pytest.mark.parametrize("outputs", [1000, 11821, 21841, 21843])
def test_a_part_of_imagenet_is_found_by_name_and_every_output_stays(outputs: int) -> None:
    mine = SYNSETS[7::100]
    subset = {1000: "imagenet-1k", 11821: "imagenet-12k", 21841: "imagenet-22k", 21843: "imagenet-21k-goog"}[outputs]
    known = ImageNetInfo(subset).label_names()
    mine = [name for name in mine if name in set(known)]
    order = match_classes(mine, outputs)
    assert [known[place] for place in order.outputs[: len(mine)]] == mine
    assert sorted(order.outputs) == list(range(outputs))
    assert [known[place] for place in order.outputs] == list(order.names)
    assert f"{len(mine)} of {outputs} classes matched by synset" in order.about


def test_a_swapped_order_is_an_error_or_is_undone() -> None:
    swapped = [LABELS[1], LABELS[0], *LABELS[2:]]
    assert match_classes(SYNSETS, 1000, swapped).outputs[:2] == (0, 1)  # two words of a thousand: no other order
    shuffled = random.Random(0).sample(LABELS, 1000)
    with pytest.raises(UserError, match="not in ImageNet's order: output 0 is .*, where ImageNet has 'tench'"):
        match_classes(SYNSETS, 1000, shuffled)
    order = match_classes(["cat", "cow", "dog"], 3, ["dog", "cat", "cow"])
    assert (order.outputs, order.names) == ((1, 2, 0), ("cat", "cow", "dog"))
    assert "matched by the names in the file" in order.about


def test_names_that_differ_in_case_are_the_same_and_those_in_another_order_an_error() -> None:
    order = match_classes(["Polar_bear", "cat"], 3, ["cat, Felis catus", "dog", "polar bear"])
    assert order.outputs == (2, 0, 1)
    assert "matched by the names in the file" in order.about
    with pytest.raises(UserError, match="output 0 is 'cat' .id2label., where the folders have 'bird'"):
        match_classes(["bird", "cat", "puppy"], 3, ["cat", "dog", "bird"])
    assert match_classes(["bird", "cat", "puppy"], 3, ["bird", "cat", "dog"]).outputs == (0, 1, 2)


def test_others_are_taken_in_order_and_it_is_said() -> None:
    order = match_classes(["a", "b", "c"], 3, ["one", "two", "three"])
    assert order.outputs == (0, 1, 2)
    assert order.about.endswith("in sorted order, a to c; the file has other names, one to three")
    order = match_classes(["a", "b", "c"], 3)
    assert order.about == "3 outputs taken as the class folders in sorted order, a to c; nothing in the file names them"


@pytest.mark.parametrize(
    ("names", "outputs", "labels", "message"),
    [
        (["a", "b"], 3, None, "has 3 outputs; the 2 class folders, such as a, are not as many:"),
        (["0", "1"], 1000, None, "are not as many and are no synsets"),
        (SYNSETS, 999, None, "has 999 outputs; the 1000 class folders"),
        (["a", "b"], 2, ["x", "y", "z"], "has 2 outputs and its file names 3 classes"),
    ],
)
def test_what_does_not_fit_is_an_error(names: list[str], outputs: int, labels: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_classes(names, outputs, labels)
