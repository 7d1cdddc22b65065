"""Whether the outputs of a segmentation model are the classes of the masks, by the names that its file has."""

from collections.abc import Sequence

from mae_transfer.errors import UserError


def check_classes(names: Sequence[str], labels: Sequence[str] | None, source: str) -> str:
    """A line that says how the outputs were taken for the classes of the masks: by number, which is what both have.

    Args:
        names: of the data's classes, in order.
        labels: of the file's outputs, in order; None where it has none.

    Raises:
        UserError: the file has other classes in number, or one of these at another place.
    """
    taken = f"{len(names)} outputs taken as classes {names[0]} to {names[-1]}"
    if labels is None:
        return f"{taken}; nothing in the file names them"
    if len(labels) != len(names):
        raise UserError(
            f"checkpoint {source}: has {len(labels)} classes ({labels[0]} to {labels[-1]}), and the data have "
            f"{len(names)}; set data.num_classes and data.class_names to those that it was trained on"
        )
    mine, theirs = [_plain(name) for name in names], [_plain(label) for label in labels]
    known = set(theirs)
    for number, (name, label) in enumerate(zip(mine, theirs, strict=True)):
        if name != label and name in known:
            raise UserError(
                f"checkpoint {source}: its output {number} is '{labels[number]}', where the masks have "
                f"'{names[number]}': another order of classes; number the masks, and data.class_names, as the file does"
            )
    same = sum(name == label for name, label in zip(mine, theirs, strict=True))
    if same == len(names):
        return f"{taken}, as the file names them"
    other = next(i for i in range(len(names)) if mine[i] != theirs[i])
    return f"{taken}; {len(names) - same} have another name in the file, such as {labels[other]} for {names[other]}"


def _plain(name: str) -> str:
    """The first of several names, as ADE20K's files have them with `,` or `;` between."""
    return name.replace(";", ",").split(",")[0].strip().lower().replace("_", " ")
