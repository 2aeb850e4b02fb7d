"""Everyone's weights, the same logits: timm, torchvision, Hugging Face and Google's files."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import vitmini as vm

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def grown(model):
    """Weights so large that every part of the model matters, also what starts at zero or one."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        scale = 0.02 if p.ndim < 2 or "pos" in name else p[0].numel() ** -0.5
        nn.init.normal_(p, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=scale * 2)
    return model


def timm_model(**more):
    kind = VisionTransformerDistilled if more.pop("distilled", False) else VisionTransformer
    return grown(kind(**TIMM | {"num_classes": 11} | more))


def images_of(config, count=2, seed=0):
    size = vm.patches.as_pair(config.image_size, "image_size")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.in_channels, *size, generator=generator)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


VARIANTS = {
    "plain": {},
    "rectangular": {"img_size": (32, 48)},
    "rectangular patches": {"img_size": (24, 64), "patch_size": (4, 16)},
    "grey": {"in_chans": 1},
    "five channels": {"in_chans": 5},
    "distilled": {"distilled": True},
    "distilled, rectangular": {"distilled": True, "img_size": (16, 40)},
    "mean": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "layer scale": {"init_values": 0.1},
    "no bias": {"qkv_bias": False},
    "no positions": {"pos_embed": "none"},
    "class token without a position": {"no_embed_class": True},
    "tanh": {"act_layer": "gelu_tanh"},
    "another eps": {"norm_layer": lambda width, **kw: nn.LayerNorm(width, eps=1e-3, **kw)},
    "odd widths": {"mlp_ratio": 2.7, "num_heads": 6},
    "one head": {"num_heads": 1},
    "many classes": {"num_classes": 1000},
    "rates": {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.2},
}
each_variant = pytest.mark.parametrize("more", VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_logits_are_timms(more):
    theirs = timm_model(**dict(more)).eval()
    ours = vm.from_timm(theirs)
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) <= 1e-6
        features = theirs.forward_features(x)
        assert relative(ours.forward_features(x), features) <= 1e-6


@each_variant
def test_gradients_are_timms(more):
    theirs = timm_model(**dict(more)).eval()  # evaluation mode: no rates, one pair of logits
    ours = vm.from_timm(theirs)
    x = images_of(ours.config)
    labels = torch.tensor([3, 7])
    for model in (ours, theirs):
        F.cross_entropy(model(x), labels).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        target = wanted[name]
        if name == "pos_embed" and target.shape != p.grad.shape:  # timm has no row for the prefix
            target = torch.cat([p.grad[:, : p.shape[1] - target.shape[1]], target], 1)
        assert torch.allclose(p.grad, target, rtol=1e-4, atol=1e-6), name


def test_a_distilled_model_gives_timms_pair_in_training():
    theirs = timm_model(distilled=True).train()
    theirs.set_distilled_training(True)
    ours = vm.from_timm(theirs)
    x = images_of(ours.config)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert relative(a, b) <= 1e-6


@pytest.mark.parametrize("name", [n for n in vm.list_models() if "patch" in n])
def test_presets_have_timms_names_shapes_and_configuration(name):
    with torch.device("meta"):
        ours, theirs = vm.create_model(name), timm.create_model(name, num_classes=1000)
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_presets_load_timms_weights_strictly(name):
    theirs = timm.create_model(name).eval()
    ours = vm.create_model(name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) <= 1e-6
    assert vm.from_timm(theirs).config == ours.config


@pytest.mark.parametrize("more", [{}, {"distilled": True}, VARIANTS["mean"]])
def test_autocast_differs_from_timm_no_more_than_timm_from_itself(more):
    """The noise of timm against itself: the same model, the other of its two attentions."""
    theirs = timm_model(**dict(more)).eval()
    ours, twin = vm.from_timm(theirs), copy.deepcopy(theirs)
    for block in twin.blocks:
        block.attn.fused_attn = False
    x = images_of(ours.config, count=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mine, target, other = (m(x).float() for m in (ours, theirs, twin))
    noise = (other - target).abs().max()
    assert noise > 0 and (mine - target).abs().max() <= noise


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler here")
def test_compiled_logits_differ_from_timms_no_more_than_timms_from_uncompiled_ones():
    theirs = timm_model().eval()
    ours = vm.from_timm(theirs)
    x = images_of(ours.config)
    with torch.no_grad():
        plain = theirs(x)
        mine, target = torch.compile(ours)(x), torch.compile(theirs)(x)
    noise = max(relative(target, plain), 1e-6)
    assert relative(mine, target) <= noise and relative(mine, plain) <= 2 * noise


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept(dtype):
    theirs = timm_model().eval().to(dtype)
    ours = vm.from_timm(theirs)
    assert all(p.dtype == dtype for p in ours.parameters())
    x = images_of(ours.config).to(dtype)
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) <= (1e-12 if dtype == torch.float64 else 0.02)


def test_the_source_is_left_alone_and_shares_nothing():
    theirs = timm_model().train()
    theirs.blocks[1].eval()
    before = copy.deepcopy(theirs.state_dict())
    torch.manual_seed(5)
    ours = vm.from_timm(theirs)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(5))
    assert theirs.training and not theirs.blocks[1].training and ours.training
    assert not theirs.head._forward_pre_hooks and not ours.head._forward_pre_hooks
    for p in ours.parameters():
        assert p.requires_grad and p.is_leaf
        p.data.zero_()
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"global_pool": "avg", "class_token": False}, "fc_norm=False"),
        ({"global_pool": "avg", "fc_norm": False}, "class_token=False"),
        ({"global_pool": "map"}, "pools by attention"),
        ({"global_pool": "max", "fc_norm": False, "class_token": False}, "pools by 'max'"),
        ({"reg_tokens": 4}, "register tokens"),
        ({"qk_norm": True}, "norms queries and keys"),
        ({"pre_norm": True}, "before the first block"),
        ({"num_classes": 0}, "has no head"),
        ({"attn_drop_rate": 0.1}, r"rate 0\.1"),
        ({"drop_rate": 0.1}, r"rate 0\.1"),
        ({"patch_drop_rate": 0.1}, r"rate 0\.1"),
        ({"proj_drop_rate": 0.1}, "dropout is not one"),
        ({"act_layer": "relu"}, "activation is ReLU"),
        ({"final_norm": False}, "norm.bias is missing"),
        ({"block_fn": timm.models.vision_transformer.ResPostBlock}, "ResPostBlock"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "ParallelScaling"),
        ({"attn_layer": "diff"}, "blocks are of Block"),
        ({"mlp_layer": timm.layers.SwiGLU}, "SwiGLU"),
        ({"norm_layer": timm.layers.RmsNorm}, "norm"),
        ({"scale_mlp_norm": True}, "norm"),
        ({"scale_attn_norm": True}, "norm"),
        ({"proj_bias": False}, "bias"),
    ],
)
def test_what_a_vit_is_not_is_refused_in_one_line(more, words):
    model = VisionTransformer(**TIMM | {"num_classes": 11} | more)
    with pytest.raises(ValueError, match=words) as told:
        vm.from_timm(model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("zero", [False, True])
def test_a_silent_difference_is_found_even_behind_a_zero_head(zero):
    """What no name, shape or option tells: here each block adds something of its own."""

    class Odd(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) + 0.01 * x

    model = timm_model(norm_layer=Odd)
    if zero:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    with pytest.raises(ValueError, match="computes something that a ViT does not"):
        vm.from_timm(model)


class Causal(timm.layers.Attention):
    """timm's attention under its own name, that lets no token look ahead."""

    def forward(self, x, attn_mask=None, is_causal=False):
        return super().forward(x, attn_mask, is_causal=True)


Causal.__name__ = "Attention"


def spoil(part, attribute, value):
    def change(model):
        setattr(model.get_submodule(part), attribute, value)

    return change


@pytest.mark.parametrize(
    ("make", "change"),
    [
        # what its own weights would not show: branches that hardly count yet
        ({"init_values": 1e-5, "attn_layer": Causal}, None),
        ({"attn_layer": Causal}, None),
        ({}, spoil("blocks.1.attn", "scale", 0.2)),
        ({}, spoil("blocks.2.norm2", "eps", 1e-4)),
        ({}, spoil("blocks.2.norm1", "eps", 1e-4)),
        ({}, spoil("blocks.1.mlp", "act", nn.GELU("tanh"))),
        ({"pos_embed": "none", "pos_drop_rate": 0.3, "proj_drop_rate": 0.3}, None),
        ({"drop_path_rate": 0.2}, spoil("blocks.2.drop_path2", "drop_prob", 0.1)),
        ({"drop_path_rate": 0.2}, spoil("blocks.2.drop_path1", "scale_by_keep", False)),
        ({}, lambda model: setattr(model.blocks, "1", model.blocks[0])),
    ],
)
@pytest.mark.parametrize("half", [False, True])
def test_no_difference_is_silent(make, change, half):
    model = VisionTransformer(**TIMM | {"num_classes": 1} | make)
    for block in model.blocks:
        block.attn.fused_attn = False  # which honours the scale
    if change:
        change(model)
    with pytest.raises(ValueError, match=r"^model cannot be a ViT: ") as told:
        vm.from_timm(model.bfloat16() if half else model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_good_model_in_half_precision_converts_however_it_computes(dtype):
    for seed in range(8):
        torch.manual_seed(seed)
        model = VisionTransformer(**TIMM | {"num_classes": 1}).to(dtype)
        for block in model.blocks:
            block.attn.fused_attn = False
        assert vm.from_timm(model).head.weight.dtype == dtype


def test_identities_in_the_place_of_dropouts_are_fine():
    model = timm_model()
    model.pos_drop = model.head_drop = model.blocks[0].attn.proj_drop = nn.Identity()
    assert vm.from_timm(model).config.dropout == 0


def test_models_without_weights_are_named():
    with torch.device("meta"):
        model = VisionTransformer(**TIMM)
    with pytest.raises(ValueError, match="meta device"):
        vm.from_timm(model)


def test_a_model_converted_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        ours = vm.from_timm(timm_model())
    ours(images_of(ours.config)).sum().backward()
    assert ours.head.weight.grad is not None


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None, timm.create_model("resnet18"), "vit"])
@pytest.mark.parametrize("convert", [vm.from_timm, vm.from_torchvision, vm.from_huggingface])
def test_other_models_are_named(convert, model):
    with pytest.raises(ValueError, match=r"^model must be .*, got \w+"):
        convert(model)


# torchvision -------------------------------------------------------------------------------


def torchvision_model(**more):
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 3, "hidden_dim": 48}
    return grown(TorchvisionViT(**sizes | {"mlp_dim": 100, "num_classes": 11} | more))


@pytest.mark.parametrize("more", [{}, {"patch_size": 16}, {"dropout": 0.1}, {"mlp_dim": 49}])
@pytest.mark.parametrize("channels", [3, 1])
def test_logits_and_gradients_are_torchvisions(more, channels):
    theirs = torchvision_model(**more).eval()
    P = theirs.patch_size
    theirs.conv_proj = grown(nn.Conv2d(channels, 48, P, P))
    ours = vm.from_torchvision(theirs)
    x, labels = images_of(ours.config), torch.tensor([3, 7])
    for model in (ours, theirs):
        F.cross_entropy(model(x), labels).backward()
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) <= 1e-6
    pairs = {
        "patch_embed.proj.weight": theirs.conv_proj.weight,
        "pos_embed": theirs.encoder.pos_embedding,
        "cls_token": theirs.class_token,
        "blocks.1.attn.qkv.weight": theirs.encoder.layers[1].self_attention.in_proj_weight,
        "blocks.2.mlp.fc2.bias": theirs.encoder.layers[2].mlp[3].bias,
    }
    for name, p in pairs.items():
        assert torch.allclose(ours.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"representation_size": 5}, "representation layer"),
        ({"attention_dropout": 0.1}, r"rate 0\.1"),
    ],
)
def test_what_torchvision_adds_is_refused(more, words):
    with pytest.raises(ValueError, match=words):
        vm.from_torchvision(torchvision_model(**more))


def change_head(head):
    def change(model):
        model.heads = head

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_head(nn.Linear(48, 5)), "one linear layer, heads.head"),
        (change_head(nn.Identity()), "one linear layer, heads.head"),
        (spoil("heads", "head", nn.Identity()), "one linear layer, heads.head"),
        (spoil("encoder.layers.encoder_layer_1.mlp", "1", nn.GELU("tanh")), "gelu is not one"),
        (spoil("encoder.layers.encoder_layer_1.ln_2", "eps", 1e-5), "norm_eps is not one"),
        (lambda m: setattr(m.encoder, "layers", nn.Sequential()), "no blocks"),
        (lambda m: m.heads.add_module("drop", nn.Dropout(0.5)), "heads.drop drops with rate 0.5"),
    ],
)
def test_a_changed_torchvision_model_is_refused_in_words(change, words):
    model = torchvision_model()
    change(model)
    with pytest.raises(ValueError, match=words):
        vm.from_torchvision(model)


def test_a_subclass_of_torchvisions_model_is_its_like():
    class Mine(TorchvisionViT):
        pass

    assert vm.from_torchvision(Mine(32, 8, 2, 2, 16, 32)).config.dim == 16


def test_a_fresh_torchvision_model_with_its_zero_head_converts():
    theirs = TorchvisionViT(32, 8, 2, 2, 16, 32)
    assert vm.from_torchvision(theirs).training == theirs.training


# Hugging Face ------------------------------------------------------------------------------

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 3, "intermediate_size": 100, "num_labels": 11}


class OldNames(nn.Module):
    """A model of transformers 5 under the names of transformers 4, which are also the files'."""

    PAIRS = (
        (".layers.", ".encoder.layer."),
        (".attention.q_proj.", ".attention.attention.query."),
        (".attention.k_proj.", ".attention.attention.key."),
        (".attention.v_proj.", ".attention.attention.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    )

    def __init__(self, model):
        super().__init__()
        self.inner = model
        self.config = model.config

    @property
    def classifier(self):
        return self.inner.classifier

    @property
    def cls_classifier(self):
        return self.inner.cls_classifier

    def state_dict(self):
        renamed = {}
        for key, value in self.inner.state_dict().items():
            for new, old in self.PAIRS:
                key = key.replace(new, old)
            renamed[key] = value
        return renamed

    def forward(self, images):
        return self.inner(images)


HF_VARIANTS = {
    "plain": {},
    "an eps of their own": {"layer_norm_eps": 1e-3},
    "rectangular": {"image_size": (16, 40)},
    "grey": {"num_channels": 1},
    "no bias": {"qkv_bias": False},
    "tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "gelu_new": {"hidden_act": "gelu_new"},
}


@pytest.mark.parametrize("names", [lambda m: m, OldNames], ids=["as they are", "old names"])
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("more", HF_VARIANTS.values(), ids=HF_VARIANTS)
def test_logits_are_hugging_faces(more, distilled, names):
    kinds = (DeiTForImageClassificationWithTeacher, DeiTConfig)
    kind, config = kinds if distilled else (ViTForImageClassification, ViTConfig)
    theirs = grown(kind(config(**SIZES | more))).eval()
    ours = vm.from_huggingface(names(theirs).eval())
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours(x), theirs(x).logits) <= 1e-6
    assert ours.config.norm_eps == more.get("layer_norm_eps", 1e-12)


def test_old_names_are_those_of_their_files(tmp_path):
    """The stand-in above is right: its names are those that transformers writes."""
    from safetensors.torch import load_file

    model = ViTForImageClassification(ViTConfig(**SIZES))
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(OldNames(model).state_dict())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: ViTModel(ViTConfig(**SIZES)), "no head"),
        (lambda: DeiTForImageClassification(DeiTConfig(**SIZES)), "WithTeacher"),
        (lambda: ViTForImageClassification(ViTConfig(**SIZES, hidden_act="relu")), "'relu'"),
        (
            lambda: ViTForImageClassification(ViTConfig(**SIZES, hidden_dropout_prob=0.1)),
            r"rate 0\.1",
        ),
    ],
)
def test_what_hugging_face_has_besides_is_refused(model, words):
    with pytest.raises(ValueError, match=words):
        vm.from_huggingface(model())


@pytest.mark.parametrize(
    "kind", ["BeitForImageClassification", "Dinov2ForImageClassification", "IJepaModel"]
)
def test_relatives_of_the_vit_are_refused_in_words(kind):
    import transformers

    sizes = {k: v for k, v in SIZES.items() if k != "num_labels"}
    config = getattr(transformers, kind.split("For")[0].removesuffix("Model") + "Config")(**sizes)
    with pytest.raises(ValueError, match=r"^model "):
        vm.from_huggingface(getattr(transformers, kind)(config))


def test_dropouts_that_hugging_faces_configuration_does_not_know_are_found():
    model = ViTForImageClassification(ViTConfig(**SIZES))
    model.vit.embeddings.dropout.p = 0.5
    with pytest.raises(ValueError, match=r"vit\.embeddings\.dropout drops with rate 0\.5"):
        vm.from_huggingface(model)


# Google's files ------------------------------------------------------------------------------


def google_arrays(D=24, L=2, H=3, P=(4, 4), C=3, K=5, grid=(3, 3), cls=True, big_vision=False):
    """Random parameters with Flax's names and shapes, as the two repositories store them."""
    draw = np.random.default_rng(0)

    def kernel(*shape):
        fan = max(int(np.prod(shape[:-1])), 1)
        return (draw.normal(size=shape) * fan**-0.5).astype(np.float32)

    d = D // H
    first, second = ("MultiHeadDotProductAttention_0", "MlpBlock_0"), "LayerNorm_1"
    if not big_vision:
        first, second = ("MultiHeadDotProductAttention_1", "MlpBlock_3"), "LayerNorm_2"
    out = {"embedding/kernel": kernel(*P, C, D), "embedding/bias": kernel(D)}
    out |= {"head/kernel": kernel(D, K), "head/bias": kernel(K)}
    N = grid[0] * grid[1]
    if cls:
        out["cls"] = kernel(1, 1, D)
    if big_vision:
        out["pos_embedding"] = kernel(1, N, D)
    else:
        out["Transformer/posembed_input/pos_embedding"] = kernel(1, N + cls, D)
    norms = ["encoder_norm"]
    for i in range(L):
        block = f"encoderblock_{i}"
        norms += [f"{block}/LayerNorm_0", f"{block}/{second}"]
        for part in ("query", "key", "value"):
            out[f"Transformer/{block}/{first[0]}/{part}/kernel"] = kernel(D, H, d)
            out[f"Transformer/{block}/{first[0]}/{part}/bias"] = kernel(H, d)
        out[f"Transformer/{block}/{first[0]}/out/kernel"] = kernel(H, d, D)
        out[f"Transformer/{block}/{first[0]}/out/bias"] = kernel(D)
        for j, (a, b) in enumerate(((D, 2 * D), (2 * D, D))):
            out[f"Transformer/{block}/{first[1]}/Dense_{j}/kernel"] = kernel(a, b)
            out[f"Transformer/{block}/{first[1]}/Dense_{j}/bias"] = kernel(b)
    for norm in norms:
        out[f"Transformer/{norm}/scale"] = 1 + kernel(D)
        out[f"Transformer/{norm}/bias"] = kernel(D)
    return {f"params/{k}": v for k, v in out.items()} if big_vision else out


def flax_forward(arrays, images):
    """The model of `vit_jax/models_vit.py` and `big_vision/models/vit.py`, line by line."""
    a = {k.removeprefix("params/"): torch.from_numpy(v).double() for k, v in arrays.items()}
    big_vision = "pos_embedding" in a or "Transformer/posembed_input/pos_embedding" not in a

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * a[f"Transformer/{name}/scale"] + a[f"Transformer/{name}/bias"]

    kernel = a["embedding/kernel"]
    P, Q, _, D = kernel.shape
    B, _, H, W = images.shape
    tiles = images.double().reshape(B, -1, H // P, P, W // Q, Q)
    x = torch.einsum("bcipjq,pqcd->bijd", tiles, kernel).reshape(B, -1, D) + a["embedding/bias"]
    if big_vision:
        x = x + a.get("pos_embedding", vm.sincos_positions((H // P, W // Q), D).double())
    if "cls" in a:
        x = torch.cat([a["cls"].expand(B, -1, -1), x], 1)
    if not big_vision:
        x = x + a["Transformer/posembed_input/pos_embedding"]
    i = 0
    mha, mlp, second = ("_0", "_0", "_1") if big_vision else ("_1", "_3", "_2")
    while f"Transformer/encoderblock_{i}/LayerNorm_0/scale" in a:
        block = f"encoderblock_{i}"
        base = f"Transformer/{block}/MultiHeadDotProductAttention{mha}"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            torch.einsum("btd,dhe->bthe", y, a[f"{base}/{n}/kernel"]) + a[f"{base}/{n}/bias"]
            for n in ("query", "key", "value")
        )
        weights = (torch.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        y = torch.einsum("bhqk,bkhe->bqhe", weights, v)
        x = x + torch.einsum("bqhe,hed->bqd", y, a[f"{base}/out/kernel"]) + a[f"{base}/out/bias"]
        y, base = norm(x, f"{block}/LayerNorm{second}"), f"Transformer/{block}/MlpBlock{mlp}"
        y = F.gelu(y @ a[f"{base}/Dense_0/kernel"] + a[f"{base}/Dense_0/bias"], approximate="tanh")
        x = x + y @ a[f"{base}/Dense_1/kernel"] + a[f"{base}/Dense_1/bias"]
        i += 1
    x = norm(x, "encoder_norm")
    x = x[:, 0] if "cls" in a else x.mean(1)
    return x @ a["head/kernel"] + a["head/bias"]


def saved(tmp_path, arrays):
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz"


NPZ = {
    "class token": {},
    "mean": {"cls": False},
    "one row": {"grid": (1, 4)},
    "rectangular patches": {"P": (2, 6), "grid": (2, 3)},
    "grey": {"C": 1},
    "one patch": {"grid": (1, 1)},
    "three layers, two heads": {"L": 3, "H": 2},
}


@pytest.mark.parametrize("big_vision", [False, True], ids=["ViT repository", "big_vision"])
@pytest.mark.parametrize("more", NPZ.values(), ids=NPZ)
def test_logits_are_googles(tmp_path, more, big_vision):
    arrays = google_arrays(**more, big_vision=big_vision)
    (rows, columns), (P, Q) = more.get("grid", (3, 3)), more.get("P", (4, 4))
    size = None if rows == columns else (rows * P, columns * Q)
    ours = vm.load_npz(saved(tmp_path, arrays), size)
    assert ours.config.gelu == "tanh" and not ours.training
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours.double()(x.double()), flax_forward(arrays, x)) <= 1e-6


def test_a_grid_that_is_told_leaves_room_for_the_class_token(tmp_path):
    """The ViT repository stores a row for it: 3x3 patches are ten rows, not nine."""
    path = saved(tmp_path, google_arrays())
    assert vm.load_npz(path, 12).grid == (3, 3)
    with pytest.raises(ValueError, match="10 rows, no grid of 2x5 patches"):
        vm.load_npz(path, (8, 20))


def test_fixed_positions_of_big_vision_are_not_in_its_file(tmp_path):
    arrays = google_arrays(cls=False, big_vision=True, P=(16, 16))
    del arrays["params/pos_embedding"]
    ours = vm.load_npz(saved(tmp_path, arrays), 64)
    assert ours.config.pos_embed == "sincos2d" and ours.grid == (4, 4)
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours.double()(x.double()), flax_forward(arrays, x)) <= 1e-6
    assert vm.load_npz(saved(tmp_path, arrays)).config.image_size == 224


def test_an_optimizer_bfloat16_and_stacked_blocks_are_understood(tmp_path):
    arrays = google_arrays(big_vision=True)
    plain = vm.load_npz(saved(tmp_path, arrays))
    first = [k for k in arrays if "encoderblock_0" in k]
    for key in first:
        parts = [arrays.pop(key), arrays.pop(key.replace("block_0", "block_1"))]
        arrays[key.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
    arrays["opt/step"] = np.array(7)
    arrays["params/head/bias"] = (
        (arrays["params/head/bias"].view(np.uint32) >> 16).astype(np.uint16).view("V2")
    )
    other = vm.load_npz(saved(tmp_path, arrays))
    for name, value in plain.state_dict().items():
        tolerance = 1e-2 if name == "head.bias" else 0
        assert torch.allclose(other.state_dict()[name], value, rtol=tolerance, atol=0), name


@pytest.mark.parametrize("big_vision", [False, True])
def test_timm_reads_the_same_file_alike(tmp_path, big_vision):
    arrays = google_arrays(D=48, L=3, P=(8, 8), grid=(4, 4), K=11, big_vision=big_vision)
    path = saved(tmp_path, arrays)
    ours = vm.load_npz(path)
    more = {"no_embed_class": True} if big_vision else {}
    theirs = VisionTransformer(
        **TIMM, num_classes=11, mlp_ratio=2.0, act_layer="gelu_tanh", **more
    ).eval()
    theirs.load_pretrained(str(path), prefix="params/" if big_vision else "")
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours(x), theirs(x)) <= 1e-6


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def broken_files(path):
    whole = path.read_bytes()
    yield "cut", whole[: len(whole) // 2]
    yield "empty", b""
    yield "text", b"not a checkpoint"
    middle = len(whole) // 2
    yield "flipped", whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    path = saved(tmp_path, google_arrays())
    for name, content in broken_files(path):
        bad = tmp_path / f"{name}.npz"
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npz is ") as told:
            vm.load_npz(bad)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trap": np.array([Trap()], dtype=object)}, "damaged or no .npz"),
        ({"more": np.zeros(3, np.float32)}, "more is"),
        ({"head/kernel": None}, r"head\.weight"),
        ({"embedding/kernel": None}, "not a whole"),
        ({"embedding/kernel": np.zeros((3, 4), np.float32)}, "not a whole"),
        ({"Transformer/encoder_norm/bias": np.zeros(5, np.float32)}, r"norm\.bias is \(5,\)"),
        ({"Transformer/encoderblock_1/LayerNorm_2/scale": None}, r"norm2\.weight is missing"),
        ({"conv_root/kernel": np.zeros(3, np.float32)}, "hybrid"),
        ({"pre_logits/kernel": np.zeros((24, 24), np.float32)}, "representation layer"),
        ({"MAPHead_0/probe": np.zeros((1, 1, 24), np.float32)}, "pools by attention"),
        ({"cls": np.zeros((1, 1, 24), np.int64)}, "int64"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, change, words):
    arrays = google_arrays() | change
    path = saved(tmp_path, {k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=words):
        vm.load_npz(path)


@pytest.mark.parametrize("big_vision", [False, True])
@pytest.mark.parametrize("grid", [(2, 4), (3, 5), (1, 3), (4, 6), (2, 5), (1, 2), (1, 5)])
def test_a_grid_that_is_not_square_is_never_taken_for_a_square_one(tmp_path, grid, big_vision):
    arrays = google_arrays(grid=grid, big_vision=big_vision)
    path = saved(tmp_path, arrays)
    with pytest.raises(ValueError, match="give image_size"):
        vm.load_npz(path)
    ours = vm.load_npz(path, (4 * grid[0], 4 * grid[1]))
    x = images_of(ours.config)
    with torch.no_grad():
        assert relative(ours.double()(x.double()), flax_forward(arrays, x)) <= 1e-6


def test_big_visions_old_files_have_a_row_for_the_class_token(tmp_path):
    arrays = google_arrays(big_vision=True)
    new = vm.load_npz(saved(tmp_path, arrays))
    row = np.ones((1, 1, 24), np.float32)
    arrays["params/cls"] = arrays["params/cls"] - row
    arrays["params/pos_embedding"] = np.concatenate([row, arrays["params/pos_embedding"]], 1)
    old = vm.load_npz(saved(tmp_path, arrays), 12)
    with pytest.raises(ValueError, match="give image_size"):  # it could be 2 x 5 without that row
        vm.load_npz(saved(tmp_path, arrays))
    x = images_of(new.config)
    with torch.no_grad():
        assert torch.allclose(old(x), new(x), atol=1e-5)


def test_queries_keys_and_values_have_biases_all_or_none(tmp_path):
    arrays = google_arrays()
    for part in ("query", "key", "value"):
        path = saved(tmp_path, {k: v for k, v in arrays.items() if f"/{part}/bias" not in k})
        with pytest.raises(ValueError, match="and no blocks"):
            vm.load_npz(path)
    none = {k: v for k, v in arrays.items() if not k.endswith(("query/bias", "key/bias"))}
    none = {k: v for k, v in none.items() if "value/bias" not in k}
    assert not vm.load_npz(saved(tmp_path, none)).config.qkv_bias


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Transformer/posembed_input/pos_embedding": None}, "positions are missing"),
        ({"Transformer/encoderblock_0/LayerNorm_1/scale": np.ones(24, np.float32)}, "two of its"),
        ({"head/bias": np.full(5, np.nan, np.float32)}, "not finite"),
    ],
)
def test_mixed_and_incomplete_layouts_are_refused(tmp_path, change, words):
    arrays = google_arrays() | change
    path = saved(tmp_path, {k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=words):
        vm.load_npz(path)


def test_layers_of_different_heads_are_refused(tmp_path):
    arrays, other = google_arrays(H=3), google_arrays(H=6)
    mixed = arrays | {k: v for k, v in other.items() if "encoderblock_1/Multi" in k}
    with pytest.raises(ValueError, match="heads differ"):
        vm.load_npz(saved(tmp_path, mixed))


def test_big_visions_clock_is_not_a_weight(tmp_path):
    arrays = google_arrays(big_vision=True) | {"chrono/steps": np.array(3), "opt/0/mu": np.ones(2)}
    assert vm.load_npz(saved(tmp_path, arrays)).config.dim == 24


def test_a_missing_file_and_another_format_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError):
        vm.load_npz(tmp_path / "nowhere.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"no \.npz"):
        vm.load_npz(tmp_path / "one.npy")


def test_an_image_size_that_does_not_fit_is_refused(tmp_path):
    path = saved(tmp_path, google_arrays())
    with pytest.raises(ValueError, match="pos_embed"):
        vm.load_npz(path, 16)
    with pytest.raises(ValueError, match="does not divide"):
        vm.load_npz(path, 13)


# Fetching --------------------------------------------------------------------------------------


def test_pretrained_weights_are_fetched_and_converted(monkeypatch):
    asked = {}

    def create(name, **more):
        asked.update(more, name=name)
        return timm_model()

    monkeypatch.setattr(timm, "create_model", create)
    model = vm.from_pretrained("vit_tiny_patch16_224")
    assert asked == {"name": "vit_tiny_patch16_224", "pretrained": True} and not model.training

    def get(name, weights):
        asked.update(name=name, weights=weights)
        return torchvision_model()

    monkeypatch.setattr("torchvision.models.get_model", get)
    assert vm.from_pretrained("vit_b_16", source="torchvision").config.dim == 48
    assert asked["weights"] == "DEFAULT"


@pytest.mark.parametrize(
    ("name", "source"), [("vit_tiny_patch16_224", "timm"), ("vit_b_16", "torchvision")]
)
def test_no_network_is_one_line(monkeypatch, name, source):
    def offline(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("torchvision.models.get_model", offline)
    with pytest.raises(ConnectionError, match="is this machine online") as told:
        vm.from_pretrained(name, source)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("vit_tiny_patch16_224", "hub", "source must be"),
        ("vit_enormous", "timm", "'vit_enormous'"),
        ("test_vit4", "timm", "test_vit4"),
        ("resnet18", "torchvision", "vit_b_16.*'resnet18'"),
        ("vit_tiny_patch16_224", "torchvision", "vit_b_16"),
        (None, "timm", "name must be a string"),
    ],
)
def test_unknown_names_and_sources_are_told(monkeypatch, name, source, words):
    monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: name != "test_vit4")
    with pytest.raises(ValueError, match=words):
        vm.from_pretrained(name, source)
