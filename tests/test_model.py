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


KINDS = ("learned", "learned2d", "sincos2d", "relative", "none")
each_kind = pytest.mark.parametrize("pos_embed", KINDS)
each_prefix = pytest.mark.parametrize(
    "prefix", [{"pool": "mean"}, {"pool": "cls"}, {"distilled": True}], ids=["mean", "cls", "two"]
)


def grown(**overrides):
    """A model in evaluation mode with parameters so large that everything in it matters."""
    model = small(**overrides).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


@each_kind
@each_prefix
@pytest.mark.parametrize("image_size", [(8, 12), (8, 8), (4, 16)])
def test_tokens_come_after_the_prefix(prefix, pos_embed, image_size):
    model = grown(pos_embed=pos_embed, image_size=image_size, **prefix)
    images, seen = torch.randn(3, 3, *image_size), []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features, count = model.forward_features(images), model.num_prefix_tokens
    patches = model.patch_embed(images)
    assert count == {"mean": 0, "cls": 1}.get(prefix.get("pool"), 2)
    assert features.shape == (3, count + patches.shape[1], 16)
    assert model(images).shape == (3, 5)
    positions = model.positions()
    positions = torch.zeros(1, features.shape[1], 16) if positions is None else positions
    assert positions.shape == (1, features.shape[1], 16)
    tokens = [model.get_parameter(name) for name in ("cls_token", "dist_token")[:count]]
    tokens = torch.cat([*(t.expand(3, -1, -1) for t in tokens), patches], dim=1)
    assert torch.allclose(seen[0], tokens + positions, atol=1e-6)


def test_the_class_token_comes_before_the_distillation_token():
    model = small(distilled=True, pos_embed="none")
    model.cls_token.data.fill_(1)
    model.dist_token.data.fill_(2)
    model.blocks = torch.nn.Identity()
    model.norm = torch.nn.Identity()
    features = model.forward_features(torch.zeros(1, 3, 8, 8))
    assert features[0, 0].unique().item() == 1 and features[0, 1].unique().item() == 2


@each_prefix
def test_each_kind_of_positions_has_its_own_parameters_and_nothing_more(prefix):
    def extra(kind):
        model = small(pos_embed=kind, image_size=(8, 12), **prefix)
        names = {n: p for n, p in model.named_parameters() if "pos" in n}
        everything = sum(p.numel() for p in model.parameters())
        return model, names, everything

    plain, none, base = extra("none")
    count = plain.num_prefix_tokens
    assert not none and plain.positions() is None
    model, names, total = extra("learned")
    assert set(names) == {"pos_embed"} and total - base == (count + 6) * 16
    assert model.positions() is model.pos_embed
    model, names, total = extra("learned2d")
    assert set(names) == {f"pos_embed.{n}" for n in ("rows", "columns", "prefix")}
    assert total - base == (2 + 3) * 8 + count * 16
    assert model.pos_embed.rows.shape == (2, 8) and model.pos_embed.columns.shape == (3, 8)
    assert torch.equal(model.positions(), model.pos_embed())
    model, names, total = extra("sincos2d")
    assert not names and total == base and "pos_embed" in model.state_dict()
    assert torch.equal(model.positions()[0, count:], vm.sincos_positions((2, 3), 16))
    assert not model.positions()[0, :count].any()
    model, names, total = extra("relative")
    assert total - base == 2 * 2 * (3 * 5 + 3) and model.positions() is None
    assert {n: tuple(p.shape) for n, p in names.items()} == {  # tables of its own for each layer
        f"blocks.{i}.attn.rel_pos.{n}": shape
        for i in (0, 1)
        for n, shape in (("offsets", (2, 3, 5)), ("prefix", (2, 3)))
    }


@pytest.mark.parametrize("init", ["deit", "google"])
def test_fresh_positions_are_drawn_small_and_a_fresh_relative_bias_is_zero(init):
    arguments = {"image_size": 48, "dim": 32, "init": init}
    for kind in ("learned", "learned2d"):
        positions = small(pos_embed=kind, **arguments).positions()
        assert positions.std().item() == pytest.approx(0.02, rel=0.1)
    relative = small(pos_embed="relative", **arguments)
    assert all(not block.attn.rel_pos().any() for block in relative.blocks)


@each_prefix
def test_a_fresh_relative_model_equals_one_without_positions(prefix):
    relative = small(pos_embed="relative", image_size=(8, 12), **prefix).eval()
    plain = small(pos_embed="none", image_size=(8, 12), **prefix).eval()
    missing = relative.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("rel_pos" in k for k in missing.missing_keys)
    images = torch.randn(2, 3, 8, 12)
    assert torch.allclose(relative(images), plain(images), atol=1e-6)


@each_kind
def test_a_model_made_without_memory_takes_weights_later(pos_embed):
    full, images = grown(pos_embed=pos_embed), torch.randn(2, 3, 8, 8)
    with torch.device("meta"):
        empty = small(pos_embed=pos_embed)
        assert empty(torch.empty(2, 3, 8, 8)).shape == (2, 5)
    empty.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert torch.equal(empty.eval()(images), full(images))


@each_kind
@each_prefix
def test_every_parameter_that_the_logits_depend_on_learns(pos_embed, prefix):
    model = grown(pos_embed=pos_embed, image_size=(8, 12), **prefix).train()
    logits = model(torch.randn(3, 3, 8, 12))
    (sum(logits) if prefix.get("distilled") else logits).square().sum().backward()
    unused = {n for n, p in model.named_parameters() if not p.grad.any()}
    if pos_embed == "relative" and model.num_prefix_tokens:
        # the last layer's patches are read by nobody, nor is what they see of one another
        assert unused == {"blocks.1.attn.rel_pos.offsets"}
    elif pos_embed == "relative":
        assert unused == {f"blocks.{i}.attn.rel_pos.prefix" for i in (0, 1)}
    else:
        assert unused == {n for n, p in model.named_parameters() if p.numel() == 0}


def test_distilled_gives_a_pair_in_training_and_the_mean_in_evaluation():
    model, images = small(distilled=True), torch.randn(2, 3, 8, 8)
    pair = model.train()(images)
    assert isinstance(pair, tuple) and len(pair) == 2
    assert torch.allclose(model.eval()(images), (pair[0] + pair[1]) / 2, atol=1e-6)


@each_kind
@each_prefix
def test_shuffled_patches_give_the_same_logits_without_positions_only(pos_embed, prefix):
    model = grown(pos_embed=pos_embed, image_size=(8, 12), **prefix)
    images = torch.randn(2, 3, 8, 12)
    shuffled = vm.unpatchify(vm.patchify(images, 4)[:, [2, 0, 5, 3, 1, 4]], 4, (8, 12))
    same = torch.allclose(model(images), model(shuffled), atol=1e-5)
    assert same == (pos_embed == "none")
    assert same or not torch.allclose(model(images), model(shuffled), atol=1e-2)


def test_a_fresh_digits_model_gives_every_class_the_same_chance(digits):
    logits = vm.create_model("vit_digits")(digits.normalize(digits.train_images[:8]))
    loss = F.cross_entropy(logits, digits.train_labels[:8]).item()
    assert abs(loss - torch.log(torch.tensor(10.0)).item()) < 1e-6


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
        ({"pos_embed": "sincos2d", "dim": 4}, "pos_embed='sincos2d' .* got 4"),
        ({"pos_embed": "learned2d", "dim": 15, "num_heads": 3}, "even dim, got 15"),
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


def test_a_size_has_one_spelling():
    assert small(image_size=(8, 8)).config == small(image_size=[8, 8]).config == small().config
    assert small(image_size=(8, 12)).config.image_size == (8, 12)


def test_a_model_without_memory_is_filled_by_init_weights():
    for kind in KINDS:
        with torch.device("meta"):
            model = small(pos_embed=kind)
        model = model.to_empty(device="cpu")
        for tensor in model.state_dict().values():
            tensor.fill_(7.0)
        torch.manual_seed(0)
        vm.init_weights(model, "deit")
        assert not any((v == 7.0).any() for v in model.state_dict().values())
        if kind == "sincos2d":
            assert torch.equal(model.positions(), small(pos_embed=kind).positions())


def test_fixed_positions_are_exact_whatever_the_default_type_is():
    expected = vm.sincos_positions((3, 3), 16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(vm.sincos_positions((3, 3), 16), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("config", [None, {}, "vit_cifar", vm.ViTConfig])
def test_a_vit_wants_a_configuration(config):
    with pytest.raises(ValueError, match="config must be a ViTConfig"):
        vm.ViT(config)


@pytest.mark.parametrize("registers", [0, 3])
def test_embed_is_what_the_first_block_gets(registers):
    """The seam for one's own tokens: extra ones at the end change no code elsewhere."""

    class Extra(vm.ViT):
        def embed(self, images):
            x = super().embed(images)
            return torch.cat([x, torch.ones(len(x), registers, 16)], dim=1)

    plain = small().eval()
    model = Extra(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert model.forward_features(images).shape == (2, 5 + registers, 16)
    assert torch.equal(model(images), plain(images)) == (registers == 0)


# Another resolution ---------------------------------------------------------------------------


@each_kind
@each_prefix
@pytest.mark.parametrize("image_size", [16, (12, 20), (4, 8), (8, 12), (20, 4)])
def test_a_resized_model_has_the_same_weights_and_positions_of_the_new_grid(
    pos_embed, prefix, image_size
):
    model = grown(pos_embed=pos_embed, image_size=(8, 12), **prefix)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(2, 3, 8, 12)
    logits = model(images)
    other = model.resized(image_size)
    rows, columns = vm.patches.as_pair(image_size, "image_size")
    assert other is not model and other.grid == (rows // 4, columns // 4)
    assert other.config == vm.ViTConfig(**{**vars(model.config), "image_size": image_size})
    assert other(torch.randn(2, 3, rows, columns)).shape == (2, 5)
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, tensor in other.state_dict().items():
        assert "pos" in name or torch.equal(tensor, before[name]), name
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr() or not tensor.numel()
        tensor.fill_(7.0)  # the original does not notice
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert torch.equal(model(images), logits) and model.grid == (2, 3)


@each_kind
@each_prefix
@pytest.mark.parametrize("mode", vm.positions.RESIZE_MODES)
def test_a_resized_models_positions_are_resized_by_the_mode(pos_embed, prefix, mode):
    model = grown(pos_embed=pos_embed, image_size=(8, 12), **prefix)
    other = model.resized((16, 16), mode)
    if pos_embed == "sincos2d":  # computed anew, whatever the mode
        count = model.num_prefix_tokens
        assert torch.equal(other.positions()[0, count:], vm.sincos_positions((4, 4), 16))
        assert not other.positions()[0, :count].any()
    elif pos_embed not in ("relative", "none"):
        count = model.num_prefix_tokens
        expected = vm.resize_pos_embed(model.positions(), (4, 4), (2, 3), count, mode)
        assert torch.allclose(other.positions(), expected, atol=1e-5)
    fresh = vm.ViT(other.config)
    fresh.load_state_dict(other.state_dict())  # it is a model like any other
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(fresh.eval()(images), other(images))


def test_antialias_reaches_the_positions_and_an_unknown_mode_is_named():
    model = grown(image_size=(32, 32))
    with_it, without = (model.resized(12, antialias=a) for a in (True, False))
    expected = vm.resize_pos_embed(model.pos_embed, (3, 3), antialias=False)
    assert torch.equal(without.pos_embed, expected)
    assert not torch.allclose(with_it.pos_embed, without.pos_embed, atol=1e-2)
    with pytest.raises(ValueError, match="mode must be one of"):
        model.resized(12, mode="nearest")
    for size in (13, 0, (8, 9), "8"):
        with pytest.raises(ValueError, match="image_size"):
            model.resized(size)


@each_kind
def test_there_and_back_to_the_same_size_gives_the_same_logits(pos_embed):
    model = grown(pos_embed=pos_embed, image_size=(8, 12))
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(model.resized((8, 12))(images), model(images))
    there_and_back = model.resized((16, 24)).resized((8, 12))
    assert (there_and_back(images) - model(images)).abs().mean() < model(images).abs().mean()


def test_a_resized_model_keeps_type_modes_and_what_learns():
    model = grown(pos_embed="learned2d", dropout=0.1).to(torch.bfloat16).train()
    model.blocks[0].eval().requires_grad_(False)
    model.pos_embed.rows.requires_grad_(False)
    other = model.resized(16)
    for old, new in zip(model.modules(), other.modules(), strict=True):
        assert old.training == new.training
    for (name, old), new in zip(model.named_parameters(), other.parameters(), strict=True):
        assert old.requires_grad == new.requires_grad and new.dtype == torch.bfloat16, name
        assert isinstance(new, torch.nn.Parameter) and new.is_leaf and new.grad is None
    model(torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)).sum().backward()
    assert all(p.grad is None for p in model.resized(16).parameters())


def test_resizing_draws_no_random_numbers_and_needs_no_second_initialisation():
    model = grown(init="mimetic", dim=16, num_heads=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model.resized(16)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_class_can_be_written_into_a_notebook_cell_as_it_stands():
    """A cell has no `from __future__ import annotations`: names in signatures must exist."""
    import generate

    names = dict(vars(vm.model))
    names.pop("ViT")
    exec(generate.definition("vitmini/model.py", "ViT"), names)
    model = names["ViT"](small().config)
    assert type(model.resized(16)) is names["ViT"] is not vm.ViT


def test_a_class_of_ones_own_stays_what_it_is():
    class Own(vm.ViT):
        pass

    assert type(Own(small().config).resized(16)) is Own


def test_a_resized_model_trains(digits):
    model = vm.create_model("vit_digits").resized(12)
    assert torch.nn.functional.interpolate(digits.test_images[:2].float(), 12).shape[-1] == 12
    logits = model(torch.randn(4, 1, 12, 12))
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())
