"""ResNets and hybrids: what they are made of, and that they train as a ViT does."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

import vitmini as vm
from vitmini.__main__ import main
from vitmini.baselines import (
    BASELINES,
    HybridConfig,
    ResNetConfig,
    build_network,
    build_resnet,
    feature_map,
    read_config,
    write_config,
)
from vitmini.optim import build_optimizers, build_trainer
from vitmini.train import build_model, train_epoch

SMALL = {"dim": 16, "depth": 1, "num_heads": 2}
SHORT = vm.TrainConfig(
    model="resnet_mini", model_options={"stages": (1,)}, epochs=3, batch_size=32, warmup=1
)
MODELS = {
    "resnet": {"model": "resnet_mini", "model_options": {"stages": (1,)}},
    "hybrid": {"model": "hybrid_mini", "model_options": SMALL | {"stages": (1,)}},
}
each_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def few(digits):
    part = {"train_images": digits.train_images[:80], "train_labels": digits.train_labels[:80]}
    test = {"test_images": digits.test_images[:40], "test_labels": digits.test_labels[:40]}
    return dataclasses.replace(digits, **part, **test)


def fresh(config, data):
    torch.manual_seed(config.seed)
    return build_model(config, data)


# What they are made of ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "flops"),
    [("resnet18_cifar", 11_173_962, 3.33), ("resnet50_cifar", 23_520_842, 7.78)],
)
def test_resnets_have_the_known_parameters_and_training_flops(name, parameters, flops):
    with torch.device("meta"):
        model = vm.create_baseline(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert vm.training_flops(vm.find_config(name)) / 1e9 == pytest.approx(flops, abs=0.005)


def test_flops_of_a_training_step_are_almost_three_forward_passes():
    config = vm.get_config("vit_cifar")
    image_gradient = 2 * 64 * 48 * 384  # of the patch projection: nobody asks for it
    assert vm.training_flops(config) == 3 * vm.count_flops(config) - image_gradient


def test_counting_flops_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    vm.training_flops(vm.find_config("hybrid_mini"))
    assert torch.equal(torch.rand(2), expected)


def test_a_resnet_is_torchvisions_but_for_its_stem():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs, ours = resnet18(num_classes=10).eval(), vm.create_baseline("resnet18_cifar").eval()
    weights = theirs.state_dict()
    assert set(weights) == set(ours.state_dict())
    del weights["conv1.weight"]
    left = ours.load_state_dict(weights, strict=False)
    assert left.missing_keys == ["conv1.weight"]
    images = torch.randn(2, 3, 8, 8)
    theirs.conv1, theirs.maxpool = ours.conv1, torch.nn.Identity()
    assert torch.equal(ours(images), theirs(images))
    assert ours.conv1.kernel_size == (3, 3) and ours.conv1.stride == (1, 1)
    wanted = (2 / (64 * 9)) ** 0.5  # He et al. 2015, by the outputs, as torchvision's other layers
    assert ours.conv1.weight.std().item() == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("stages", [(1,), (1, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize(("size", "stride"), [(8, 1), ((9, 14), 2), (5, 3)])
def test_the_configuration_knows_the_feature_map(block, stages, size, stride):
    config = ResNetConfig(size, 2, 7, block, stages, stride)
    model = build_resnet(config).eval()
    rows, columns = (size, size) if isinstance(size, int) else size
    images = torch.randn(2, 2, rows, columns)
    found = feature_map(model)(images)
    assert found.shape == (2, config.width, *config.grid)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert torch.allclose(logits, model.fc(found.mean(dim=(2, 3))), atol=1e-5)


def test_the_hybrids_tokens_are_the_feature_map_of_the_cnn():
    torch.manual_seed(0)
    model = vm.create_baseline("hybrid_mini", image_size=(8, 12), in_channels=1, **SMALL).eval()
    images, seen = torch.randn(2, 1, 8, 12), []
    found = model.cnn(images)  # (B, C, rows, columns)
    assert found.shape[2:] == (2, 3) and model.vit.config.patch_size == 1
    model.vit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = model(images)
    tokens = found.flatten(2).mT  # row by row: a position is a token
    projection = model.vit.patch_embed.proj
    by_hand = F.linear(tokens, projection.weight.flatten(1), projection.bias)
    by_hand = by_hand + model.vit.positions()[:, 1:]
    assert torch.allclose(seen[0][:, 1:], by_hand, atol=1e-5)
    assert torch.equal(logits, model.vit(found))
    assert torch.equal(model.vit.head(model.forward_features(images)[:, 0]), logits)


def test_the_hybrids_cnn_has_the_names_and_weights_of_a_resnet():
    model = vm.create_baseline("hybrid_cifar")
    resnet = build_resnet(model.config.cnn)
    left = model.cnn.load_state_dict(resnet.state_dict(), strict=False)
    assert left.missing_keys == [] and left.unexpected_keys == ["fc.weight", "fc.bias"]
    flops = [vm.training_flops(vm.find_config(n)) for n in ("hybrid_cifar", "vit_cifar")]
    assert 0.9 < flops[0] / flops[1] < 1  # a comparison at equal cost


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_written_and_read_as_json(name):
    config = vm.find_config(name, image_size=(8, 16), num_classes=3)
    assert read_config(json.loads(json.dumps(write_config(config)))) == config
    images = torch.zeros(2, 3, 8, 16, device="meta")
    with torch.device("meta"):
        assert build_network(config)(images).shape == (2, 3)


def test_a_vit_is_written_as_ever():
    config = vm.get_config("vit_digits")
    assert write_config(config) == dataclasses.asdict(config)
    assert vm.find_config("vit_digits", dim=32) == vm.get_config("vit_digits", dim=32)


def test_the_vits_have_their_list_and_the_baselines_theirs():
    assert not set(vm.list_models()) & set(vm.list_baselines())
    assert all(isinstance(vm.get_config(name), vm.ViTConfig) for name in vm.list_models())
    with pytest.raises(ValueError, match="name must be one of vit_tiny"):
        vm.create_model("resnet18_cifar")
    with pytest.raises(ValueError, match="name must be one of resnet18_cifar"):
        vm.create_baseline("vit_cifar")


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("resnet18", {}, "name must be one of .*resnet18_cifar"),
        ("resnet18_cifar", {"dim": 8}, "'dim' is not a field of resnet18_cifar"),
        ("hybrid_cifar", {"patch_size": 4}, "'patch_size' is not a field of hybrid_cifar"),
        ("resnet18_cifar", {"stages": ()}, "stages must be one to four"),
        ("resnet18_cifar", {"stages": (1, 0)}, "stages must be one to four"),
        ("resnet18_cifar", {"stages": (10**9,)}, "stages must be one to four"),
        ("resnet18_cifar", {"stages": 2}, "stages must be one to four"),
        ("resnet18_cifar", {"block": "wide"}, "block must be one of basic, bottleneck"),
        ("resnet18_cifar", {"block": ["basic"]}, "block must be one of basic, bottleneck"),
        ("resnet18_cifar", {"stem_stride": 0}, "stem_stride must be a positive int"),
        ("resnet18_cifar", {"num_classes": 2.0}, "num_classes must be a positive int"),
        ("resnet18_cifar", {"image_size": 0}, "image_size must be"),
        ("hybrid_cifar", {"num_heads": 7}, "num_heads must divide"),
    ],
)
def test_what_cannot_be_built_is_refused(name, overrides, words):
    with pytest.raises(ValueError, match=words):
        vm.find_config(name, **overrides)


def test_a_hybrid_whose_parts_do_not_fit_is_refused():
    cnn, vit = ResNetConfig(8, 1, 10, stages=(1,)), vm.get_config("vit_digits")
    with pytest.raises(ValueError, match="vit must read 1x1 patches of the cnn's map, 64 channels"):
        HybridConfig(cnn, vit)
    with pytest.raises(ValueError, match="cnn must be a ResNetConfig"):
        HybridConfig(vit, vit)
    model = vm.create_baseline("hybrid_mini", image_size=8, **SMALL)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 8, 8\)"):
        model(torch.zeros(1, 3, 8, 16))


# Training ----------------------------------------------------------------------------------------


@each_model
def test_a_baseline_trains_is_kept_and_found_again(model, few, tmp_path):
    config = dataclasses.replace(SHORT, **MODELS[model])
    history = vm.train(fresh(config, few), few, config, tmp_path / "run")
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    loaded, description = vm.load_run(tmp_path / "run")
    assert not loaded.training and description["model"]["kind"] == model
    assert vm.evaluate(loaded, few)["accuracy"] == history[-1]["test_accuracy"]
    counters = [v for k, v in loaded.state_dict().items() if k.endswith("num_batches_tracked")]
    assert counters and all(v.dtype == torch.int64 and v.item() == 6 for v in counters)


@each_model
def test_a_baseline_resumes_to_the_same_bytes(model, few, tmp_path):
    config = dataclasses.replace(SHORT, **MODELS[model], ema=0.9, cutmix=1.0, crop=1)
    vm.train(fresh(config, few), few, config, tmp_path / "whole")

    def cut_off(record):
        if record["epoch"] < config.epochs:
            raise KeyboardInterrupt

    for _ in range(config.epochs - 1):
        with pytest.raises(KeyboardInterrupt):
            vm.train(
                fresh(config, few), few, config, tmp_path / "parts", resume=True, on_epoch=cut_off
            )
    vm.train(fresh(config, few), few, config, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "parts"))
    assert whole == parts


@each_model
def test_the_command_line_knows_a_baselines_run(model, tmp_path, monkeypatch, capsys):
    from PIL import Image

    recipe = dataclasses.replace(vm.RECIPES["digits"], **MODELS[model], epochs=1)
    monkeypatch.setitem(vm.RECIPES, "own", recipe)
    out = str(tmp_path / "run")
    assert main(["train", "--recipe", "own", "--device", "cpu", "--out", out]) == 0
    assert main(["evaluate", out, "--device", "cpu"]) == 0
    tested = capsys.readouterr().out.splitlines()
    assert tested[-1].split()[2].rstrip(",") == tested[-2].split()[-1]
    Image.new("L", (20, 30), 90).save(tmp_path / "a.png")
    assert main(["predict", out, str(tmp_path / "a.png"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("%") == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "forest"),
        ("kind", 3),
        ("stages", [10**9]),
        ("stages", "ab"),
        ("block", None),
        ("surprise", 1),
    ],
)
def test_a_hostile_config_of_a_baseline_is_refused(field, value, few, tmp_path):
    config = dataclasses.replace(SHORT, epochs=1)
    vm.train(fresh(config, few), few, config, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["model"][field] = value
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="damaged or not this run's"):
        vm.load_run(tmp_path)


def test_averaged_weights_have_averaged_statistics(few):
    """Batch norm's mean follows the weights' rule; its counter is the model's."""
    config = dataclasses.replace(SHORT, ema=0.75)
    trainer = build_trainer(fresh(config, few), config)
    trainer.model.train()
    seen = []
    for step in range(4):
        images = few.normalize(few.train_images[16 * step : 16 * step + 16])
        trainer.model(images).sum().backward()
        trainer.update()
        seen.append(trainer.model.bn1.running_mean.clone())
    mean = seen[0]
    for value in seen[1:]:
        mean = 0.75 * mean + 0.25 * value
    average = trainer.evaluated.bn1
    assert torch.allclose(average.running_mean, mean, atol=1e-7)
    assert not torch.allclose(average.running_mean, seen[-1], atol=1e-3)
    assert average.num_batches_tracked == trainer.model.bn1.num_batches_tracked == 4


@pytest.mark.parametrize(("model", "sizes"), [("resnet_mini", {32}), ("vit_digits", {32, 16})])
def test_a_short_last_batch_is_dropped_where_there_is_batch_norm(model, sizes, few, monkeypatch):
    config = dataclasses.replace(SHORT, model=model, model_options={})
    trainer, seen = build_trainer(fresh(config, few), config), set()
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.add(len(inputs[0])))
    train_epoch(trainer, few, torch.arange(80), config, 1, torch.Generator())
    assert seen == sizes


def test_weight_decay_pulls_at_convolutions_and_not_at_batch_norm(few):
    model = fresh(dataclasses.replace(SHORT, **MODELS["hybrid"]), few)
    (optimizer,) = build_optimizers(model, SHORT)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    free = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert {"cnn.conv1.weight", "cnn.layer1.0.conv2.weight", "vit.head.weight"} <= decayed
    assert {"cnn.bn1.weight", "cnn.layer1.0.bn2.bias", "vit.cls_token", "vit.pos_embed"} <= free
    assert decayed | free == set(names.values()) and not decayed & free


def test_muon_takes_a_hybrids_blocks_and_refuses_a_resnet(few):
    config = dataclasses.replace(SHORT, optimizer="muon")
    _, muon = build_optimizers(fresh(dataclasses.replace(config, **MODELS["hybrid"]), few), config)
    assert len(muon.param_groups[0]["params"]) == 4
    with pytest.raises(ValueError, match="optimizer must be adamw or sgd"):
        build_optimizers(fresh(config, few), config)


@pytest.mark.parametrize("change", [{"image_size": 16}, {"in_channels": 3}])
@pytest.mark.parametrize("name", ["resnet_mini", "hybrid_mini", "vit_digits"])
def test_a_model_for_other_pictures_is_refused(name, change, few, tmp_path):
    """A ResNet takes any size; then its folder would say the wrong one."""
    build = vm.create_model if name == "vit_digits" else vm.create_baseline
    model = build(name, **({"image_size": 8, "in_channels": 1} | change))
    wanted = "1x16x16" if "image_size" in change else "3x8x8"
    words = f"model must take the data's images, 1x8x8, got one for {wanted}"
    with pytest.raises(ValueError, match=words):
        vm.train(model, few, dataclasses.replace(SHORT, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_flops_are_counted_of_configurations():
    for given in (None, "vit_cifar", vm.create_baseline("resnet_mini")):
        with pytest.raises(ValueError, match="config must be one of ViTConfig, ResNetConfig"):
            vm.training_flops(given)


def test_any_module_trains_but_only_vitminis_are_kept(few, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    config = dataclasses.replace(SHORT, epochs=10, learning_rate=1e-2)
    history = vm.train(model, few, config)
    assert history[-1]["test_accuracy"] > 0.5
    with pytest.raises(ValueError, match="model must be one that vitmini built"):
        vm.train(model, few, config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
