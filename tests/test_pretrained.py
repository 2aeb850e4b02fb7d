"""Weights that come with the library: they load, fit their card, and are small."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

import vitmini as vm
from vitmini.data import normalize

FOLDER = ROOT / "vitmini" / "weights"
each_model = pytest.mark.parametrize("name", vm.list_pretrained())


def test_every_card_has_weights_and_every_weight_a_card():
    assert {p.stem for p in FOLDER.glob("*.safetensors")} == set(vm.list_pretrained())
    assert {p.stem for p in FOLDER.glob("*.json")} == set(vm.list_pretrained())
    assert vm.list_pretrained()


@each_model
def test_the_file_is_small_and_in_float16(name):
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 6_000_000
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in list(file.keys())} == {torch.float16}


@each_model
def test_the_card_says_what_was_measured_on_what(name):
    card = vm.load_card(name)
    model = vm.load_pretrained(name)
    assert len(card["classes"]) == model.config.num_classes
    assert len(card["mean"]) == len(card["std"]) == model.config.in_channels
    assert 0 < card["test_accuracy"] <= 1 and card["seconds"] > 0 and card["limits"]
    assert re.fullmatch(r"[0-9a-f]{12}", card["commit"]), "trained from a committed library"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", card["date"])


@each_model
def test_a_pretrained_model_computes_and_has_learned(name):
    torch.manual_seed(0)
    card, model = vm.load_card(name), vm.load_pretrained(name)
    fresh = vm.ViT(model.config).eval()
    assert not model.training
    photos = torch.stack([vm.load_photo(p, 32) for p in ("cat", "flower", "china")])
    x = normalize(photos, card["mean"], card["std"])
    with torch.no_grad():
        logits = model(x)
        assert logits.isfinite().all()
        assert logits.std() > 3 * fresh(x).std(), "a trained model is surer than a fresh one"


def test_a_model_without_weights_is_refused_with_those_that_have_some():
    for load in (vm.load_pretrained, vm.load_card):
        with pytest.raises(ValueError, match=r"name must be one of .*; got '../train-digits'"):
            load("../train-digits")
