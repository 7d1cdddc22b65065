"""Which output of a trained classifier is which class folder.

ImageNet's classifiers (1K, 12K, 21K, 22K) have their outputs in the order of timm's lists of synsets, which is that of
sorted folder names; class folders named by synsets are found in it by name, so that a part of ImageNet may be evaluated
by a classifier of all of it. Other classifiers have an output for each class folder, in the order of sorted names,
unless the file names its classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from timm.data import ImageNetInfo, infer_imagenet_subset

from mae_transfer.errors import UserError

ENOUGH = 0.9
"""Share of labels that have to be ImageNet's own for a file's names to be read as those."""


@dataclass(frozen=True)
class ClassOrder:
    """`outputs`: for each class of the data set its output, then all other outputs. `names`: of all of them, in this
    order. `about`: a line that says how they were matched."""

    outputs: tuple[int, ...]
    names: tuple[str, ...]
    about: str


def match_classes(class_names: Sequence[str], outputs: int, labels: Sequence[str] | None = None) -> ClassOrder:
    """Match the classes of a data set with the outputs of a classifier.

    Args:
        labels: what the file calls its outputs, where it does.

    Raises:
        UserError: they cannot be matched, or the file's names are in another order than ImageNet's.
    """
    subset = infer_imagenet_subset({"num_classes": outputs})
    synsets = ImageNetInfo(subset).label_names() if subset else []
    place = {name: number for number, name in enumerate(synsets)}
    if labels is not None and len(labels) != outputs:
        raise UserError(f"the classifier has {outputs} outputs and its file names {len(labels)} classes; mend id2label")
    if labels is not None and len(set(labels)) == len(labels) and set(class_names) <= set(labels):
        own = {name: number for number, name in enumerate(labels)}
        return _ordered(class_names, own, labels, f"{outputs} classes, matched by the names in the file")
    if labels is not None and _match_plainly(class_names, labels):
        at = {_plain(label): number for number, label in enumerate(labels)}
        own = {name: at[_plain(name)] for name in class_names}
        return _ordered(class_names, own, labels, f"{outputs} classes, matched by the names in the file, but for case")
    if synsets and all(name in place for name in class_names):
        _check_labels(labels, subset)
        part = "all" if len(class_names) == outputs else f"{len(class_names)} of"
        return _ordered(class_names, place, synsets, f"{subset}, {part} {outputs} classes matched by synset")
    if len(class_names) != outputs:
        like = f", such as {class_names[0]}," if class_names else ""
        hint = " and are no synsets" if synsets else ""
        raise UserError(
            f"the classifier has {outputs} outputs; the {len(class_names)} class folders{like} are not as many{hint}: "
            "give it the classes that it was trained on"
        )
    about = f"{outputs} outputs taken as the class folders in sorted order, {class_names[0]} to {class_names[-1]}"
    if labels is None:
        return ClassOrder(tuple(range(outputs)), tuple(class_names), f"{about}; nothing in the file names them")
    _check_positions(class_names, labels)
    about = f"{about}; the file has other names, {labels[0]} to {labels[-1]}"
    return ClassOrder(tuple(range(outputs)), tuple(class_names), about)


def own_order(outputs: int) -> ClassOrder:
    """Of a classifier by itself."""
    numbers = range(outputs)
    return ClassOrder(tuple(numbers), tuple(map(str, numbers)), "the file's own, without data")


def _ordered(class_names: Sequence[str], place: dict[str, int], all_names: Sequence[str], about: str) -> ClassOrder:
    mine = [place[name] for name in class_names]
    taken = set(mine)
    rest = [number for number in range(len(all_names)) if number not in taken]
    return ClassOrder((*mine, *rest), (*class_names, *(all_names[number] for number in rest)), about)


def _check_labels(labels: Sequence[str] | None, subset: str | None) -> None:
    """UserError if the file's names of ImageNet's classes are in another order than ImageNet's."""
    if labels is None or subset is None:
        return
    wanted = [_first(text) for text in ImageNetInfo(subset).label_descriptions()]
    found = [_first(text) for text in labels]
    known = sum(name in set(wanted) for name in found)
    right = sum(a == b for a, b in zip(found, wanted, strict=True))
    if known >= ENOUGH * len(wanted) > right:
        first = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        raise UserError(
            f"the file's classes (id2label) are not in ImageNet's order: output {first} is '{labels[first]}', where "
            f"ImageNet has '{wanted[first]}'; mend its id2label, or the order of its outputs"
        )


def _match_plainly(class_names: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether each class folder has one output of its name, whatever the case, underscores and further names."""
    mine, theirs = ([_plain(name) for name in names] for names in (class_names, labels))
    counts = Counter(theirs)
    return len(set(mine)) == len(mine) and all(counts[name] == 1 for name in mine)


def _check_positions(class_names: Sequence[str], labels: Sequence[str]) -> None:
    """UserError if the file has the name of a class folder at another output than the sorted order gives it."""
    known = {_plain(label) for label in labels}
    for number, (name, label) in enumerate(zip(class_names, labels, strict=True)):
        if _plain(name) in known and _plain(name) != _plain(label):
            raise UserError(
                f"the class folders in sorted order are not the classifier's: output {number} is '{label}' (id2label), "
                f"where the folders have '{name}'; name every folder as the file does"
            )


def _plain(name: str) -> str:
    return _first(name).replace("_", " ").replace("-", " ")


def _first(label: str) -> str:
    return label.split(",")[0].strip().lower()
