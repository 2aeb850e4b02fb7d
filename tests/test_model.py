"""The model, as far as the frame needs it: shapes, counts, names, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import vitmini as vm

COUNTS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "vit_cifar": 10_695_562,
    "vit_digits": 102_666,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts_are_the_published_ones(name, count):
    with torch.device("meta"):
        model = vm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("name", vm.list_models())
def test_every_preset_maps_images_to_logits(name):
    with torch.device("meta"):
        model = vm.create_model(name).eval()
        c = model.config
        images = torch.zeros(2, c.in_channels, c.image_size, c.image_size)
    assert model(images).shape == (2, c.num_classes)


def small(**overrides):
    torch.manual_seed(0)
    given = {"image_size": 8, "patch_size": 4, "num_classes": 5}
    given |= {"dim": 16, "depth": 2, "num_heads": 2}
    return vm.ViT(vm.ViTConfig(**(given | overrides)))


def test_state_dict_has_timms_keys():
    keys = set(small(distilled=True).state_dict())
    assert {"cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight"} <= keys
    assert {"blocks.1.attn.qkv.weight", "blocks.0.mlp.fc1.bias", "blocks.0.norm2.weight"} <= keys
    assert {"norm.weight", "head.weight", "head_dist.bias"} <= keys


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", ["learned", "sincos2d", "none"])
def test_tokens_come_after_the_prefix(pool, pos_embed):
    model = small(pool=pool, pos_embed=pos_embed, image_size=(8, 12))
    images = torch.randn(3, 3, 8, 12)
    assert model.forward_features(images).shape == (3, 6 + (pool == "cls"), 16)
    assert model(images).shape == (3, 5)


def test_distilled_gives_a_pair_in_training_and_the_mean_in_evaluation():
    model, images = small(distilled=True), torch.randn(2, 3, 8, 8)
    pair = model.train()(images)
    assert isinstance(pair, tuple) and len(pair) == 2
    assert torch.allclose(model.eval()(images), (pair[0] + pair[1]) / 2, atol=1e-6)


def test_attention_is_softmax_of_scaled_products():
    attention, x = vm.Attention(12, 3), torch.randn(2, 5, 12)
    q, k, v = attention.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
    by_hand = (q @ k.transpose(-2, -1) / 4**0.5).softmax(-1) @ v
    by_hand = attention.proj(by_hand.transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(attention(x), by_hand, atol=1e-6)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_adds_both_branches_to_the_stream(norm):
    block, x = vm.Block(8, 2, norm=norm), torch.randn(2, 3, 8)
    if norm == "pre":
        y = x + block.attn(block.norm1(x))
        y = y + block.mlp(block.norm2(y))
    else:
        y = block.norm1(x + block.attn(x))
        y = block.norm2(y + block.mlp(y))
    assert torch.allclose(block(x), y, atol=1e-6)


def test_without_positions_shuffled_patches_give_the_same_logits():
    model, images = small(pos_embed="none").eval(), torch.randn(1, 3, 8, 8)
    shuffled = vm.unpatchify(vm.patchify(images, 4)[:, [2, 0, 3, 1]], 4, 8)
    assert torch.allclose(model(images), model(shuffled), atol=1e-6)
    model = small().eval()
    for parameter in model.parameters():  # larger than fresh ones, as training makes them
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(model(images), model(shuffled), atol=1e-3)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = vm.DropPath(0.25), torch.ones(8000, 2, 3)
    y = drop.train()(x)
    assert {round(v, 6) for v in y.flatten().tolist()} == {0.0, round(1 / 0.75, 6)}
    assert (y.amin((1, 2)) == y.amax((1, 2))).all()
    assert abs(y.mean().item() - 1) < 0.03
    assert torch.equal(drop.eval()(x), x)


def test_drop_rate_rises_linearly_with_depth():
    model = small(drop_path=0.3, depth=4)
    assert [round(b.drop_path.rate, 6) for b in model.blocks] == [0.0, 0.1, 0.2, 0.3]


def test_google_weights_are_xavier_for_each_of_queries_keys_values():
    model = vm.ViT(vm.ViTConfig(8, 4, num_classes=5, dim=384, depth=1, num_heads=6, init="google"))
    for part in model.blocks[0].attn.qkv.weight.chunk(3):
        assert abs(part.std().item() / (2 / 768) ** 0.5 - 1) < 0.02
    assert model.head.weight.abs().max() == 0


def test_a_fresh_digits_model_gives_every_class_the_same_chance(digits):
    logits = vm.create_model("vit_digits")(digits.normalize(digits.train_images[:8]))
    loss = F.cross_entropy(logits, digits.train_labels[:8]).item()
    assert abs(loss - torch.log(torch.tensor(10.0)).item()) < 1e-6


def test_sincos_positions_follow_big_vision():
    grid, dim = (3, 5), 16
    pos, quarter = vm.sincos_positions(grid, dim), dim // 4
    for row in range(3):
        for column in range(5):
            for i in range(quarter):
                w = 10000.0 ** -(i / (quarter - 1))
                expected = torch.tensor([column * w, column * w, row * w, row * w])
                expected = torch.stack(
                    [expected[0].sin(), expected[1].cos(), expected[2].sin(), expected[3].cos()]
                )
                assert torch.allclose(pos[row * 5 + column, i::quarter], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 9}, "image_size"),
        ({"num_heads": 3}, "num_heads must divide dim = 16, got 3"),
        ({"depth": 0}, "depth"),
        ({"dim": 16.0}, "dim"),
        ({"num_classes": True}, "num_classes"),
        ({"pool": "max"}, "pool must be one of cls, mean"),
        ({"pos_embed": "fourier"}, "pos_embed must be one of"),
        ({"norm": "none"}, "norm must be one of pre, post"),
        ({"gelu": "relu"}, "gelu"),
        ({"init": "best"}, "init"),
        ({"dropout": 1.0}, "dropout"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio"),
        ({"mlp_ratio": "4"}, "mlp_ratio"),
        ({"dropout": None}, "dropout"),
        ({"layer_scale": float("nan")}, "layer_scale"),
        ({"layer_scale": True}, "layer_scale"),
        ({"distilled": 1}, "distilled"),
        ({"qkv_bias": "yes"}, "qkv_bias"),
        ({"pos_embed": "sincos2d", "dim": 18, "num_heads": 2}, "multiple of 4"),
        ({"distilled": True, "pool": "mean"}, "pool='cls'"),
    ],
)
def test_impossible_configurations_are_refused_when_they_are_made(fields, words):
    with pytest.raises(ValueError, match=words):
        small(**fields)


def test_unknown_models_and_fields_are_named():
    with pytest.raises(ValueError, match=r"vit_base_patch16_224.*got 'vit_giant'"):
        vm.create_model("vit_giant")
    with pytest.raises(ValueError, match="'width' is not a field"):
        vm.create_model("vit_digits", width=3)


def test_model_stays_readable():
    from conftest import ROOT

    assert len((ROOT / "vitmini/model.py").read_text().splitlines()) < 250
