"""The contract of pre-training methods: what a subclass may define."""

import pytest

from mae_transfer.pretrain.methods.method import Method


def test_a_misspelt_hook_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"Mine\.make_view: Method has no such hook, did you mean make_views\?"):
        type("Mine", (Method,), {"make_view": lambda self: None})


def test_own_names_begin_with_an_underscore() -> None:
    hooks = {"title": lambda self: "mine", "build_model": lambda self, encoder, num_classes: encoder}
    mine = type("Mine", (Method,), {**hooks, "_helper": lambda self: None})
    assert mine(None).title() == "mine"
    assert mine(None).draw_pictures(None, None, "val", None) == ()


def test_a_method_has_a_title_and_a_model() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Mine", (Method,), {})(None)
