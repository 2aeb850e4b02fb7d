"""The recorded experiments of chapters 12 and 13: positions that grow, and other resolutions."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import vitmini as vm
from vitmini import inside, siblings
from vitmini.__main__ import main
from vitmini.profiles import Profile
from vitmini.records import write_json

CI = Profile("ci", "cpu")


def rehearse(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    assert main(["experiment", name, "--out", str(tmp_path)]) == 0
    return json.loads((tmp_path / f"{name}.json").read_text())


def model_of(grid):
    size = (4 * grid[0], 4 * grid[1])
    options = {"dim": 64, "num_heads": 4, "pos_embed": "sincos2d"}
    return vm.create_model("vit_cifar_mini", image_size=size, **options)


# What is said of a position embedding -----------------------------------------------------------


def test_sines_and_cosines_are_a_grid_and_noise_is_none():
    model = model_of((8, 8))
    found = inside.describe_positions(model, model.positions())
    assert found["near"] > 0.1 and found["row_column"] > 0.05 and found["distance"] < -0.5
    noise = torch.randn(1, 65, 64, generator=torch.Generator().manual_seed(0))
    found = inside.describe_positions(model, noise)
    assert all(abs(found[key]) < 0.03 for key in ("near", "row_column", "distance"))


def test_the_three_numbers_against_loops():
    model = model_of((3, 4))
    positions = torch.randn(1, 13, 64, generator=torch.Generator().manual_seed(1))
    found = inside.describe_positions(model, positions)
    patches = positions[0, 1:].double()
    near, others, line, rest, cosines, distances = [], [], [], [], [], []
    for i in range(12):
        for j in range(12):
            dy, dx = abs(i // 4 - j // 4), abs(i % 4 - j % 4)
            cosine = float(patches[i] @ patches[j] / patches[i].norm() / patches[j].norm())
            assert found["similarity"][i][j] == pytest.approx(cosine, abs=0.0051)
            if i == j:
                continue
            others.append(cosine)
            cosines.append(cosine)
            distances.append((dy * dy + dx * dx) ** 0.5)
            if dy + dx == 1:
                near.append(cosine)
            elif distances[-1] >= 2:
                (line if 0 in (dy, dx) else rest).append(cosine)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert found["near"] == pytest.approx(mean(near) - mean(others), abs=1e-4)
    assert found["row_column"] == pytest.approx(mean(line) - mean(rest), abs=1e-4)
    correlation = torch.corrcoef(torch.tensor([cosines, distances]))[0, 1].item()
    assert found["distance"] == pytest.approx(correlation, abs=1e-4)


# The experiments ------------------------------------------------------------------------------


def test_position_growth_runs_in_seconds(tmp_path, monkeypatch):
    result = rehearse("position-growth", tmp_path, monkeypatch)
    curves = result["curves"]
    assert curves["epochs"] == [0, 2]
    maps = torch.tensor(curves["similarity_learned"])
    assert maps.shape == (2, 16, 16) and not torch.equal(maps[0], maps[1])
    assert torch.tensor(curves["similarity_learned2d"]).shape == (1, 16, 16)
    assert len(curves["near_learned"][0]) == 3  # before the first epoch, after each of two
    bias = torch.tensor(curves["relative_bias"])
    assert bias.shape == (2, 2, 7, 7) and bias.abs().max() > 0
    assert torch.tensor(curves["patch_kernels"]).shape == (16, 1, 2, 2)
    assert torch.tensor(curves["resnet_kernels"]).shape == (64, 1, 3, 3)
    for kind in ("learned", "learned2d", "relative", "resnet"):
        assert 0 <= result["metrics"][f"test_accuracy_{kind}"]["mean"] <= 1


def test_resolution_runs_in_seconds_and_keeps_what_is_the_same_size(tmp_path, monkeypatch):
    metrics = rehearse("resolution", tmp_path, monkeypatch)["metrics"]
    for size in (6, 8, 12):
        for mode in inside.CONVENTIONS:
            assert 0 <= metrics[f"before_{mode}_{size}"]["mean"] <= 1
        assert 0 <= metrics[f"after_{size}"]["mean"] <= 1
    same = [metrics[f"before_{mode}_8"]["mean"] for mode in inside.CONVENTIONS]
    assert len({*same, metrics["truncated_8"]["mean"]}) == 1
    assert "truncated_6" in metrics and "truncated_12" not in metrics


@pytest.mark.parametrize("moment", ["before_look", "after_look"])
def test_a_watched_run_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, digits, moment):
    plan = inside.plan_inside(CI)
    plan = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, epochs=3))
    data = inside.first_images(digits, 200)
    whole = inside.watch_positions(plan, "learned", 0, tmp_path / "whole", data)
    real = inside.write_whole

    def cut(path, content):
        if path.name == "learned-0-2.json" and moment == "before_look":
            raise KeyboardInterrupt
        real(path, content)
        if path.name == "learned-0-2.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(inside, "write_whole", cut)
    with pytest.raises(KeyboardInterrupt):
        inside.watch_positions(plan, "learned", 0, tmp_path / "cut", data)
    monkeypatch.setattr(inside, "write_whole", real)
    again = inside.watch_positions(plan, "learned", 0, tmp_path / "cut", data)
    assert again["seen"] == whole["seen"] and len(again["seen"]) == 4
    one, two = (tmp_path / n / "learned-0" / "model.safetensors" for n in ("whole", "cut"))
    assert one.read_bytes() == two.read_bytes()
    monkeypatch.setattr(inside, "train", None)  # nothing is trained a second time
    assert inside.watch_positions(plan, "learned", 0, tmp_path / "cut", data) == again


def test_a_model_stays_as_it_is_when_another_size_is_measured(digits):
    plan = inside.plan_inside(CI)
    data = inside.first_images(digits, 50)
    model = inside.build_model(plan.recipe, data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inside.measure_size(plan, model, data, 6, 0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and model.config.image_size == 8


def test_scaled_images_keep_their_range_and_mean(digits):
    data = inside.first_images(digits, 20)
    assert inside.scaled(data, 8) is data
    large = inside.scaled(data, 16)
    assert large.train_images.shape == (20, 1, 16, 16) and large.train_images.dtype == torch.uint8
    means = large.train_images.double().mean(), data.train_images.double().mean()
    assert means[0] == pytest.approx(means[1].item(), rel=0.02)
    assert torch.equal(large.test_labels, data.test_labels)


@pytest.mark.parametrize("profile", ["ci", "cpu", "gpu"])
def test_every_plan_holds_sizes_that_its_patches_divide(profile):
    plan = inside.plan_inside(Profile(profile, "cpu"))
    options = {k: v for k, v in plan.recipe.model_options.items() if k != "pos_embed"}
    config = vm.get_config(plan.recipe.model, **options)
    assert all(size % config.patch_size == 0 for size in plan.sizes)
    assert config.image_size in plan.sizes and config.pool == "cls"
    assert plan.epochs[0] == 0 and plan.epochs[-1] == plan.recipe.epochs


# Files ----------------------------------------------------------------------------------------


def test_results_are_written_with_a_row_of_numbers_in_a_line():
    values = {"a": "[\n1 ] {", "b": ["[", "x  y"], "c": [[1, 2.5], [3]], "d": [], "e": [{"f": [1]}]}
    text = write_json(values)
    assert json.loads(text) == values
    assert "  [1, 2.5],\n  [3]\n" in text


# The embedded models, seed by seed ------------------------------------------------------------


def test_siblings_runs_in_seconds_and_measures_what_the_library_says(tmp_path, monkeypatch, digits):
    result = rehearse("siblings", tmp_path, monkeypatch)
    curves, metrics = result["curves"], result["metrics"]
    for kind in ("plain", "distilled"):
        distance = torch.tensor(curves[f"distance_test_{kind}"])
        assert distance.shape == (2, 2, 2)  # seeds, layers, heads
        assert distance.min() > 0 and distance.max() < 8.5  # on 4 x 4 patches of 2
        assert not torch.equal(distance[0], distance[1]), "no seed is another one's copy"
        assert len(metrics[f"test_accuracy_{kind}"]["values"]) == 2
        by_layer = torch.tensor([metrics[f"distance_test_{kind}_{n}"]["values"] for n in (1, 2)])
        assert torch.allclose(by_layer, distance.mean(-1).T, atol=1e-3)
    shared = torch.tensor(curves["shared_test_distilled"])
    assert shared.shape == (2, 2) and shared.min() > 0 and shared.max() <= 1
    assert "shared_test_plain" not in curves and "distance_photos_plain" not in curves


def test_what_is_measured_of_heads_is_that_of_a_loop():
    model = vm.create_model("vit_cifar_mini", distilled=True, depth=2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) * 0.3)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = siblings.measure_heads(model, images)
    maps = vm.attention_maps(model, images)
    exact = vm.attention_distance(maps, (8, 8), 4, num_prefix_tokens=2)
    assert torch.allclose(torch.tensor(found["distance"]), exact, atol=1e-3)
    total = 0.0
    for image in range(3):
        for head in range(3):
            a, b = (maps[1, image, head, token, 2:].tolist() for token in (0, 1))
            total += sum(min(x / sum(a), y / sum(b)) for x, y in zip(a, b, strict=True))
    assert found["shared"][1] == pytest.approx(total / 9, abs=1e-4)


def test_the_embedded_models_stand_for_the_first_seed_of_a_cpu():
    plan = siblings.plan_siblings(Profile("cpu", "cpu"))
    for kind, name in plan.embedded.items():
        card = vm.load_card(name)
        ours = {k: getattr(plan.models[kind], k) for k in card["recipe"]}
        assert ours == card["recipe"] and card["recipe"]["seed"] == plan.seeds[0]
        assert vm.load_pretrained(name).config.distilled == (kind == "distilled")
    assert not siblings.plan_siblings(Profile("gpu", "cuda")).embedded
