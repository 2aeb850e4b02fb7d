"""Graded questions that ask for one's own code refuse the library's, under whatever name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import jacfwd
from torch.nn.functional import scaled_dot_product_attention as attend

import vitmini as vm
from vitmini.checks import WrongAnswer, own_work
from vitmini.patches import patchify as cut

IMAGES = torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("shortcut", [vm.patchify, cut, lambda *a: vm.patches.patchify(*a)])
def test_a_function_of_the_library_is_refused_under_every_name_and_works_again_afterwards(shortcut):
    with (
        pytest.raises(WrongAnswer, match=r"yourself: patches\.patch"),
        own_work("patches.patchify"),
    ):
        shortcut(IMAGES, 4)
    assert shortcut(IMAGES, 4).shape == (1, 4, 48)


def test_a_function_under_a_decorator_is_refused():
    model = vm.create_model("vit_digits")
    digits = torch.randn(1, 1, 8, 8)
    with pytest.raises(WrongAnswer, match="attention_maps"), own_work("inspection.attention_maps"):
        vm.attention_maps(model, digits)
    assert vm.attention_maps(model, digits).ndim == 5


def test_a_class_of_the_library_is_refused_and_works_again_afterwards():
    with pytest.raises(WrongAnswer, match=r"attention\.Attention"), own_work("attention.Attention"):
        vm.Attention(8, 2)
    assert vm.Attention(8, 2)(torch.randn(1, 3, 8)).shape == (1, 3, 8)


@pytest.mark.parametrize("name", ["scaled_dot_product_attention", "cross_entropy", "kl_div"])
def test_a_function_of_pytorch_is_refused_imported_or_not(name):
    given = {"scaled_dot_product_attention": (IMAGES, IMAGES, IMAGES)}.get(name, (IMAGES, IMAGES))
    with pytest.raises(WrongAnswer, match=name), own_work(f"torch.nn.functional.{name}"):
        getattr(F, name)(*given)
    with pytest.raises(WrongAnswer), own_work("torch.nn.functional.scaled_dot_product_attention"):
        attend(IMAGES, IMAGES, IMAGES)


def test_a_derivative_is_refused_and_works_again_afterwards():
    with pytest.raises(WrongAnswer, match=r"torch\.func\.jacfwd"), own_work("torch.func.jacfwd"):
        jacfwd(torch.sin)(torch.zeros(2))
    assert torch.equal(jacfwd(torch.sin)(torch.zeros(2)), torch.eye(2))


def test_everything_else_goes_on_and_an_error_of_the_answer_restores_the_library():
    with own_work("patches.patchify", "torch.nn.functional.softmax"):
        assert F.log_softmax(IMAGES, -1).shape == IMAGES.shape
    with pytest.raises(KeyError), own_work("patches.patchify"):
        raise KeyError("the answer stops")
    assert vm.patchify(IMAGES, 4).shape == (1, 4, 48)


@pytest.mark.parametrize("ends", [None, KeyError])
@pytest.mark.parametrize("name", ["patches.patchify", "torch.nn.functional.gelu"])
def test_a_refusal_that_the_answer_takes_itself_is_told_at_the_end(name, ends):
    with pytest.raises(WrongAnswer, match=rf"yourself: {name} is not to be used"), own_work(name):
        try:
            vm.patchify(IMAGES, 4)
            F.gelu(IMAGES)
        except Exception:
            pass
        if ends is not None:
            raise ends("something else, because of that")
    with own_work(name):  # and the next answer does not pay for it
        pass


@pytest.mark.parametrize("name", ["patches.nothing", "nowhere.patchify", "torch.nn.nothing"])
def test_a_name_that_does_not_exist_is_an_error_of_the_author(name):
    with pytest.raises(ValueError, match="own_work knows no"), own_work(name):
        pass
