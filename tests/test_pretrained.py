"""Weights that come with the library: they load, fit their card, and are small."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
from conftest import ROOT
from embed import add_seeds, embed, embed_siblings
from embed import main as embed_main
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vitmini as vm
from vitmini.data import normalize
from vitmini.train import build_model

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


@pytest.mark.parametrize("name", ["vit_cifar", "vit_base_patch16_224"])
def test_a_preset_without_weights_says_so_and_where_to_get_some(name):
    if name in vm.list_pretrained():
        pytest.skip("it has weights by now")
    with pytest.raises(ValueError, match=rf"no trained weights of {name} come with vitmini") as no:
        vm.load_pretrained(name)
    assert "create_model" in str(no.value) and "\n" not in str(no.value)
    for other in (None, 3, ["vit_cifar"], ""):
        with pytest.raises(ValueError, match="name must be one of"):
            vm.load_card(other)


def test_the_recipes_of_embedded_models_make_files_that_may_travel():
    for recipe, token in (("cifar10-tiny", False), ("cifar10-tiny-distilled", True)):
        config = vm.RECIPES[recipe]
        with torch.device("meta"):
            model = vm.create_model(config.model, **config.model_options)
        assert 2 * sum(v.numel() for v in model.state_dict().values()) + 30_000 < 6_000_000
        assert model.config.distilled == token == (config.distill != "none")
        assert (model.config.pos_embed, model.config.pool) == ("learned", "cls")
    mini = vm.RECIPES["cifar10-mini-distilled"]
    assert vm.create_model(mini.model, **mini.model_options).config.distilled


# Putting a run into the package ---------------------------------------------------------------


def run_of(digits, out, seed=0, teacher=None, **options):
    config = vm.TrainConfig(
        epochs=2, batch_size=64, warmup=1, seed=seed, model_options=options, cpu_threads=1
    )
    config = dataclasses.replace(config, precision="float32")
    few = dataclasses.replace(
        digits, train_images=digits.train_images[:300], train_labels=digits.train_labels[:300]
    )
    if teacher is not None:
        config = dataclasses.replace(config, distill="hard")
    vm.train(build_model(config, few), few, config, out, teacher=teacher)
    return few


SMALL = {"dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    data = run_of(digits, folder / "0", **SMALL)
    for seed in (1, 2):
        run_of(digits, folder / str(seed), seed, **SMALL)
    run_of(digits, folder / "other", 3, **{**SMALL, "depth": 2})
    teacher = vm.load_teacher(folder / "0")
    run_of(digits, folder / "taught", 0, teacher, distilled=True, **SMALL)
    return folder, data


def put(runs, name="own", run="0", seeds=(), to="weights", **more):
    folder, data = runs
    paths = [folder / seed for seed in seeds]
    return embed(folder / run, name, "For tests.", paths, folder=folder / to, data=data, **more)


def test_a_finished_run_becomes_weights_and_a_card(runs, monkeypatch):
    card = put(runs, seeds=("1", "2"), device="an abacus")
    path = runs[0] / "weights"
    assert sorted(p.name for p in path.iterdir()) == ["own.json", "own.safetensors"]
    monkeypatch.setattr("vitmini.pretrained._folder", lambda: path)
    assert vm.list_pretrained() == ["own"] and vm.load_card("own") == json.loads(json.dumps(card))
    model, (trained, description) = vm.load_pretrained("own"), vm.load_run(runs[0] / "0")
    assert not model.training and model.config == trained.config
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.half().float())
    assert card["test_accuracy"] == round(vm.evaluate(model, runs[1])["accuracy"], 4)
    histories = [(runs[0] / s / "metrics.jsonl").read_text().splitlines() for s in "012"]
    values = [round(json.loads(lines[-1])["test_accuracy"], 4) for lines in histories]
    assert card["test_accuracy_seeds"]["values"] == values and card["seeds"] == [0, 1, 2]
    assert card["test_accuracy_seeds"]["stderr"] > 0
    assert card["device"] == "an abacus" and card["limits"] == "For tests."
    assert card["recipe"] == description["train"] and card["classes"] == list(runs[1].classes)
    assert {"date", "commit", "versions", "data", "mean", "std", "seconds"} <= set(card)
    assert "teacher" not in card


def test_the_card_of_a_distilled_model_tells_its_heads_and_its_teacher(runs, monkeypatch):
    card = put(runs, run="taught", to="two")
    monkeypatch.setattr("vitmini.pretrained._folder", lambda: runs[0] / "two")
    model = vm.load_pretrained("own")
    assert model.config.distilled and set(card["test_accuracy_heads"]) == {
        "class",
        "distil",
        "both",
    }
    assert card["test_accuracy_heads"]["both"] == card["test_accuracy"]
    assert card["teacher"] == vm.load_teacher(runs[0] / "0").identity()
    images = runs[1].normalize(runs[1].test_images[:4])
    assert vm.attention_maps(model, images).shape == (1, 4, 2, 6, 6)


def test_a_card_learns_of_more_seeds_and_the_weights_stay(runs):
    put(runs, to="more")
    folder = runs[0] / "more"
    weights = (folder / "own.safetensors").read_bytes()
    card = add_seeds("own", [runs[0] / "1"], "an abacus", folder)
    assert card["seeds"] == [0, 1] and card["seeds_added"][0]["device"] == "an abacus"
    at_once = put(runs, seeds=("1", "2"), to="at-once")
    card = add_seeds("own", [runs[0] / "2"], folder=folder)
    assert card == json.loads((folder / "own.json").read_text())
    assert card["test_accuracy_seeds"] == at_once["test_accuracy_seeds"]
    assert card["seeds"] == [0, 1, 2] and len(card["seeds_added"]) == 2
    assert (folder / "own.safetensors").read_bytes() == weights
    words = {
        "1": r"seeds must all differ, got \[0, 1, 2, 1\]",
        "other": "its recipe differs",
        "taught": "its recipe differs",
        "none": "is not a folder that holds a run",
    }
    for run, message in words.items():
        with pytest.raises(ValueError, match=message):
            add_seeds("own", [runs[0] / run], folder=folder)
    with pytest.raises(ValueError, match="name must be that of a card"):
        add_seeds("mine", [runs[0] / "1"], folder=folder)
    assert card == json.loads((folder / "own.json").read_text())


def test_a_card_from_before_there_were_options_learns_too(runs):
    put(runs, to="old")
    folder, path = runs[0] / "old", runs[0] / "old" / "own.json"
    card = json.loads(path.read_text())
    for key in ("precision", "crop", "distill", "jitter"):
        del card["recipe"][key]
    del card["test_accuracy_seeds"], card["seeds"]
    path.write_text(json.dumps(card))
    assert add_seeds("own", [runs[0] / "1"], folder=folder)["seeds"] == [0, 1]
    card["recipe"]["precision"] = "auto"  # on a GPU that is another one
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="its recipe differs"):
        add_seeds("own", [runs[0] / "1"], folder=folder)


def test_both_models_of_the_experiment_are_embedded_with_all_their_seeds(runs, tmp_path):
    folder, data = runs
    for name, run in (
        ("plain-0", "0"),
        ("plain-1", "1"),
        ("plain-2", "2"),
        ("distilled-0", "taught"),
    ):
        shutil.copytree(folder / run, tmp_path / name)
    (tmp_path / "plain-0.json").write_text("{}")  # what the experiment keeps beside them
    cards = embed_siblings(tmp_path, "For tests.", out=tmp_path / "out", data=data)
    assert [card["name"] for card in cards] == ["vit_digits", "vit_digits_distilled"]
    assert [card["seeds"] for card in cards] == [[0, 1, 2], [0]]
    assert len(list((tmp_path / "out").iterdir())) == 4
    with pytest.raises(ValueError, match="holds no run plain-SEED of the experiment siblings"):
        embed_siblings(tmp_path / "out", "For tests.", out=tmp_path / "never", data=data)


def broken(runs, tmp_path, change):
    shutil.copytree(runs[0] / "0", tmp_path / "0")
    change(tmp_path / "0")
    return tmp_path, runs[1]


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


CHANGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no finished run"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "does not hold all epochs"),
    "empty metrics": (lambda f: (f / "metrics.jsonl").write_text(""), "does not hold all epochs"),
    "an epoch is missing": (
        lambda f: (f / "metrics.jsonl").write_text(
            (f / "metrics.jsonl").read_text().splitlines()[1] + "\n"
        ),
        "does not hold all epochs",
    ),
    "no test accuracy": (
        lambda f: (f / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n'),
        "does not hold all epochs and a test accuracy: resume the run",
    ),
    "no numbers": (
        lambda f: (f / "metrics.jsonl").write_text("[]\n3\n"),
        "does not hold all epochs",
    ),
    "too large for float16": (
        lambda f: change_weights(f, lambda w: w["norm.bias"].fill_(1e6)),
        r"numbers in norm.bias that are too large for float16",
    ),
    "worse when rounded": (
        lambda f: change_weights(
            f, lambda w: [w[k].mul_(1e-9) for k in ("norm.weight", "norm.bias", "head.bias")]
        ),
        r"of the test images right, .* in float16",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_that_must_not_travel_is_refused_and_nothing_is_written(runs, tmp_path, what):
    change, words = CHANGES[what]
    with pytest.raises(ValueError, match=words) as raised:
        put(broken(runs, tmp_path, change))
    assert "\n" not in str(raised.value) and not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "../own"}, "name must be lower-case"),
        ({"name": "Own"}, "name must be lower-case"),
        ({"run": "missing"}, "is not a folder that holds a run"),
        ({"seeds": ("other",)}, "other is another run than .* more than its seed differs"),
        ({"seeds": ("taught",)}, "more than its seed differs"),
        ({"seeds": ("1", "1")}, r"seeds must all differ, got \[0, 1, 1\]"),
        ({"seeds": ("0",)}, r"seeds must all differ"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(runs, arguments, words):
    with pytest.raises(ValueError, match=words):
        put(runs, to="never", **arguments)
    assert not (runs[0] / "never").exists()


def test_only_a_small_vit_on_its_own_data_travels(runs, digits, monkeypatch, tmp_path):
    folder, _ = runs
    with pytest.raises(ValueError, match=r"is not what .* was trained on"):
        put((folder, digits), to="never")
    monkeypatch.setattr("embed.LARGEST", 1000)
    with pytest.raises(ValueError, match=r"bytes in float16, at most 1,000 travel"):
        put(runs, to="never")
    resnet = vm.create_baseline("resnet_mini")
    monkeypatch.setattr("embed.load_run", lambda _: (resnet, vm.load_run(folder / "0")[1]))
    with pytest.raises(ValueError, match="holds a ResNet: only a ViT travels"):
        put(runs, to="never")
    assert not (folder / "never").exists()


def test_the_script_says_what_is_wrong_in_one_line(capsys, tmp_path):
    assert embed_main([str(tmp_path / "none"), "own"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("embed: ") and error.count("\n") == 1
    for arguments in ([], ["--card", "own"], ["x"], ["x", "own", "--card", "own"]):
        with pytest.raises(SystemExit):
            embed_main(arguments)
