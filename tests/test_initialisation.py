"""How weights are drawn: each scheme against its definition and against the library it is from."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models import VisionTransformer

import vitmini as vm
from vitmini.initialisation import SCHEMES, init_weights

timm_vit = pytest.importorskip("timm.models.vision_transformer")

WIDTH, DEPTH, HEADS = 192, 4, 3
SIZE = {"image_size": 32, "patch_size": 8, "dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
each_scheme = pytest.mark.parametrize("init", SCHEMES)


def fresh(init="deit", seed=0, **more):
    torch.manual_seed(seed)
    return vm.ViT(vm.ViTConfig(**SIZE | {"num_classes": 100} | more, init=init))


def stds(model, name):
    return [p.std().item() for n, p in model.named_parameters() if n.endswith(name)]


def near(values, wanted, rel=0.03):
    return all(value == pytest.approx(wanted, rel=rel) for value in values) and len(values) > 0


def test_deit_draws_every_linear_layer_and_table_with_std_002():
    model = fresh("deit")
    for name in ("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight", "head.weight"):
        assert near(stds(model, name), 0.02)
    assert near(stds(model, "pos_embed"), 0.02)
    bound = (3 * 8 * 8) ** -0.5  # PyTorch's own for a convolution: uniform in ±1/sqrt(fan in)
    conv = model.patch_embed.proj
    assert near([conv.weight.std().item()], bound / 3**0.5)
    assert conv.weight.abs().max() <= bound and conv.bias.abs().max() <= bound


def test_google_is_xavier_for_each_of_queries_keys_and_values():
    model = fresh("google")
    for block in model.blocks:
        for part in block.attn.qkv.weight.chunk(3):
            assert near([part.std().item()], (2 / (2 * WIDTH)) ** 0.5)
            assert part.abs().max() <= (6 / (2 * WIDTH)) ** 0.5
    assert near(stds(model, "attn.proj.weight"), (2 / (2 * WIDTH)) ** 0.5)
    assert near(stds(model, "fc1.weight") + stds(model, "fc2.weight"), (2 / (5 * WIDTH)) ** 0.5)
    assert near(stds(model, "patch_embed.proj.weight"), (3 * 64) ** -0.5)
    assert near(stds(model, "fc1.bias") + stds(model, "fc2.bias"), 1e-6, rel=0.2)


def test_torchvision_is_xavier_on_the_fused_matrix():
    model = fresh("torchvision")
    assert near(stds(model, "qkv.weight"), (2 / (4 * WIDTH)) ** 0.5)
    assert near(stds(fresh("google"), "qkv.weight"), 2**0.5 * stds(model, "qkv.weight")[0])


def test_torchvision_draws_as_torchvisions_own_model_does():
    ours = fresh("torchvision")
    torch.manual_seed(1)
    theirs = VisionTransformer(32, 8, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=100)
    names = {
        "patch_embed.proj.weight": "conv_proj.weight",
        "attn.qkv.weight": "in_proj_weight",
        "attn.proj.weight": "out_proj.weight",
        "fc1.weight": "mlp.0.weight",
        "fc2.weight": "mlp.3.weight",
        "pos_embed": "pos_embedding",
    }
    for mine, other in names.items():
        for a, b in zip(stds(ours, mine), stds(theirs, other), strict=True):
            assert a == pytest.approx(b, rel=0.04), mine
    for name in ("cls_token", "head.weight", "head.bias"):
        assert not ours.get_parameter(name).any()
    assert not theirs.class_token.any() and not theirs.heads.head.weight.any()
    for block in ours.blocks:
        assert not block.attn.qkv.bias.any() and not block.attn.proj.bias.any()


def test_scaled_divides_what_writes_to_the_stream_by_the_root_of_2l():
    deit, scaled = fresh("deit"), fresh("scaled")
    for (name, a), (_, b) in zip(deit.named_parameters(), scaled.named_parameters(), strict=True):
        writes = name.endswith(("attn.proj.weight", "fc2.weight"))
        assert torch.allclose(a / (2 * DEPTH) ** 0.5 if writes else a, b), name
    assert near(stds(scaled, "fc2.weight"), 0.02 / math.sqrt(8))


def test_mimetic_queries_meet_their_own_keys_and_values_are_taken_away():
    """Against the product that each pair of factors has to give, not against the factors."""
    model = fresh("mimetic")
    eye = torch.eye(WIDTH)
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        for q_head, k_head in zip(q.chunk(HEADS), k.chunk(HEADS), strict=True):
            product = q_head.T @ k_head
            assert torch.linalg.matrix_rank(product) == WIDTH // HEADS
            assert (product.diag().mean() / product.std()) > 3  # the diagonal stands out
        rest = block.attn.proj.weight @ v / 0.4 + eye  # this is Z
        assert rest.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
        assert abs(rest.mean().item()) < 1e-3 and abs(rest.diag().mean().item()) < 0.02
        assert rest.abs().max() <= (3 / WIDTH) ** 0.5 + 1e-4  # uniform


def test_a_mimetic_head_of_full_rank_is_the_whole_product():
    """With one head nothing is cut off, so that the product must be 0.7 (Z + I) itself."""
    model = fresh("mimetic", num_heads=1)
    for block in model.blocks:
        q, k, _ = block.attn.qkv.weight.chunk(3)
        rest = q.T @ k / 0.7 - torch.eye(WIDTH)
        assert rest.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
        assert rest.abs().max() <= (3 / WIDTH) ** 0.5 + 1e-4


def test_a_mimetic_token_looks_at_its_like():
    """What the scheme is for: fresh attention has its mass on the diagonal."""

    def diagonal(init):
        attn = fresh(init, num_heads=1).blocks[0].attn
        tokens = torch.nn.functional.layer_norm(torch.randn(1, 16, WIDTH), (WIDTH,))
        q, k, _ = attn.qkv(tokens).chunk(3, dim=-1)
        return vm.attention_weights(q, k)[0].diag().mean().item()

    assert diagonal("deit") == pytest.approx(1 / 16, rel=0.1)
    assert diagonal("mimetic") > 0.9


@each_scheme
@pytest.mark.parametrize("more", [{}, {"distilled": True}, {"pool": "mean"}, {"qkv_bias": False}])
def test_a_second_draw_leaves_nothing_of_the_first(init, more):
    model = fresh(init, pos_embed="learned2d", layer_scale=1e-4, **more)
    for p in model.parameters():
        torch.nn.init.constant_(p, 7.0)
    torch.manual_seed(0)
    init_weights(model, init)
    again = model.state_dict()
    assert not any((p == 7.0).any() for p in model.parameters())
    torch.manual_seed(0)
    init_weights(model, init)
    assert all(torch.equal(again[k], v) for k, v in model.state_dict().items())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (model.blocks[0].ls1.gamma == 1e-4).all() and (model.norm.weight == 1).all()


@each_scheme
@pytest.mark.parametrize("pos_embed", ["learned", "learned2d", "relative", "none"])
def test_every_scheme_draws_every_kind_of_positions(init, pos_embed):
    model = fresh(init, pos_embed=pos_embed)
    if pos_embed in ("learned", "learned2d"):
        assert model.positions().std().item() == pytest.approx(0.02, rel=0.1)
    if pos_embed == "relative":
        assert not any(block.attn.rel_pos().any() for block in model.blocks)


@each_scheme
def test_a_zero_head_says_nothing_yet(init):
    images = torch.randn(2, 3, 32, 32)
    model = fresh(init, zero_head=True, distilled=True)
    assert all(not logits.any() for logits in model(images))
    says_something = fresh(init)(images).detach().any()
    assert says_something == (init in ("deit", "scaled", "mimetic"))


@each_scheme
def test_every_scheme_can_be_built_without_memory(init):
    with torch.device("meta"):
        assert vm.ViT(vm.ViTConfig(init=init)).head.weight.is_meta


def test_schemes_draw_timms_model_too():
    torch.manual_seed(0)
    model = timm_vit.VisionTransformer(
        32, 8, num_classes=100, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS
    )
    assert near(stds(model, "qkv.weight"), 0.02)  # timm's default is DeiT's
    init_weights(model, "google")
    assert near(stds(model, "qkv.weight"), WIDTH**-0.5) and not model.head.weight.any()


def test_an_unknown_scheme_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"scheme must be one of deit, google.*got 'he'"):
        init_weights(fresh(), "he")
