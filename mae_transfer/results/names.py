"""Names and orders of initialisations, sizes and presets in tables and plots."""

from collections.abc import Callable, Iterable, Sequence

INIT_TITLES = {
    "random": "random",
    "sup": "supervised",
    "mocov3": "MoCo v3",
    "dino": "DINO",
    "ibot": "iBOT",
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
    "beit": "BEiT",
    "simmim": "SimMIM",
    "mae": "MAE",
    "pixio": "Pixio",
}
"""Known initialisations in the order of the paper's table; others follow by name."""
INIT_ORDER = list(INIT_TITLES)
SIZE_ORDER = ["nano", "ti", "s", "s+", "b", "l", "h", "h+"]
PRESETS = ("full", "mini", "smoke")
PRESET_NOTES = {
    "full": "The full recipe on another data set than the published numbers.",
    "mini": "Mini runs: a small recipe of this project, comparable with each other and with nothing published.",
    "smoke": "Smoke runs: a few steps on a tiny subset or generated images. They show that the code runs; the "
    "numbers mean nothing.",
}


def init_title(init: str) -> str:
    return INIT_TITLES.get(init, init)


def in_order(names: Iterable[str], order: Sequence[str], key: Callable[[str], str] = str) -> list[str]:
    """Those that `order` has first, in its order, then the others by name."""
    return sorted(names, key=lambda name: (order.index(key(name)) if key(name) in order else len(order), name))


def sizes_in_order(sizes: Iterable[str]) -> list[str]:
    return in_order(sizes, SIZE_ORDER, lambda size: size.rstrip("0123456789"))


def size_title(size: str) -> str:
    """'b' -> 'B', 'h448' -> 'H 448'; one that is no standard size, such as 384x12, as it is."""
    letters = size.rstrip("0123456789")
    if letters not in SIZE_ORDER:
        return size
    name = letters.upper() if len(letters.rstrip("+")) == 1 else letters
    return f"{name} {size[len(letters) :]}".strip()


def metric_title(title: str, better: str) -> str:
    """A metric's title, with its direction where lower is better and the title does not say so."""
    return f"{title} (lower is better)" if better == "lower" and "lower is better" not in title else title
