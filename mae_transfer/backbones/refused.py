"""What a model of timm is that no encoder here is built of, and what would help, for one line of an error."""

import timm

OWN_MODULE = "wrap it as a module of your own (docs/extending/encoder.md)"

FAMILIES = {
    "naflexvit": (
        "a NaFlexVit, which packs images of many sizes",
        "pass its file with the plain ViT of its size, as timm:vit_base_patch16_siglip_224, which takes it",
    ),
    "vision_transformer_relpos": (
        "a ViT with timm's own relative positions",
        "pass timm:vit_base_patch16_224 with backbone.rel_pos, or a BEiT",
    ),
    "vision_transformer_hybrid": ("a ViT on the maps of a CNN", f"pass the plain ViT of its size, or {OWN_MODULE}"),
    "vitamin": ("a CNN whose last stage is a ViT", OWN_MODULE),
}
"""Module of timm -> what its models are, and what would help."""


def what_it_is(arch: str) -> str:
    """`a ViT on the maps of a CNN; pass ...`; for other families the name of timm's module."""
    family = timm.models.model_entrypoint(arch).__module__.rpartition(".")[2]
    what, help_ = FAMILIES.get(family, (f"of timm's {family}", f"pass a plain ViT, or {OWN_MODULE}"))
    return f"{what}; {help_}"
