"""Chapters 2 and 13: what a position embedding is, how it is resized, how positions compare."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.layers.pos_embed_rel import gen_relative_position_index
from torchvision.models.vision_transformer import interpolate_embeddings
from transformers import DeiTConfig, ViTConfig
from transformers.models.deit.modeling_deit import DeiTEmbeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings

from vitmini.positions import (
    RESIZE_MODES,
    LearnedPositions2D,
    RelativePositionBias,
    position_similarity,
    resize_pos_embed,
    resize_positions,
    sincos_positions,
)

GRIDS = [(3, 3), (2, 4), (5, 1), (1, 1)]
each_grid = pytest.mark.parametrize("grid", GRIDS)
each_prefix = pytest.mark.parametrize("prefix", [0, 1, 2])


def filled(module):
    """The module with parameters that differ from entry to entry."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def cells(grid):
    return [(row, column) for row in range(grid[0]) for column in range(grid[1])]


# Sines and cosines ----------------------------------------------------------------------------


@each_grid
@pytest.mark.parametrize(("dim", "temperature"), [(8, 10_000.0), (16, 10_000.0), (12, 20.0)])
def test_sincos_equals_big_visions_formula_number_by_number(grid, dim, temperature):
    table = sincos_positions(grid, dim, temperature)
    assert table.shape == (grid[0] * grid[1], dim) and table.dtype == torch.float32
    quarter = dim // 4
    for n, (row, column) in enumerate(cells(grid)):
        for i in range(quarter):
            omega = 1 / temperature ** (i / (quarter - 1))
            expected = [f(p * omega) for p in (column, row) for f in (math.sin, math.cos)]
            assert table[n, i::quarter].tolist() == pytest.approx(expected, abs=1e-5)


def test_sincos_defaults_to_temperature_10000():
    assert torch.equal(sincos_positions((2, 3), 16), sincos_positions((2, 3), 16, 10_000.0))
    assert not torch.allclose(sincos_positions((2, 3), 16), sincos_positions((2, 3), 16, 100.0))


def test_sincos_tells_columns_in_the_first_half_and_rows_in_the_second():
    x, y = sincos_positions((3, 5), 16).view(3, 5, 16).split(8, dim=-1)
    assert torch.equal(x, x[:1].expand_as(x)) and torch.equal(y, y[:, :1].expand_as(y))
    assert len({tuple(v) for v in x[0].tolist()}) == 5
    assert len({tuple(v) for v in y[:, 0].tolist()}) == 3


def test_sincos_inner_product_depends_on_the_displacement_only():
    grid, dim = (4, 6), 32
    table = sincos_positions(grid, dim).double()
    omega = 10_000.0 ** -(torch.arange(dim // 4).double() / (dim // 4 - 1))
    for p, (row, column) in zip(table, cells(grid), strict=True):
        for q, (other_row, other_column) in zip(table, cells(grid), strict=True):
            expected = ((column - other_column) * omega).cos() + ((row - other_row) * omega).cos()
            assert (p @ q).item() == pytest.approx(expected.sum().item(), abs=1e-5)


def test_sincos_has_no_two_equal_positions_on_a_grid_of_14():
    distance = torch.cdist(*[sincos_positions((14, 14), 192)] * 2)
    assert distance.fill_diagonal_(1).min() > 0.5


# Learned rows and columns ---------------------------------------------------------------------


@each_grid
@each_prefix
def test_learned_2d_gives_each_patch_its_column_half_then_its_row_half(grid, prefix):
    positions = filled(LearnedPositions2D(grid, 6, prefix))
    embed = positions()
    assert embed.shape == (1, prefix + grid[0] * grid[1], 6)
    assert torch.equal(embed[0, :prefix], positions.prefix)
    for n, (row, column) in enumerate(cells(grid)):
        halves = embed[0, prefix + n].split(3)
        assert torch.equal(halves[0], positions.columns[column])
        assert torch.equal(halves[1], positions.rows[row])


@each_prefix
def test_learned_2d_has_half_a_vector_a_row_half_a_column_and_one_a_prefix_token(prefix):
    count = sum(p.numel() for p in LearnedPositions2D((14, 10), 64, prefix).parameters())
    assert count == (14 + 10) * 32 + prefix * 64


def test_learned_2d_gradient_reaches_every_entry_as_often_as_it_is_used():
    positions = LearnedPositions2D((3, 5), 4, 2)
    positions().sum().backward()
    for name, times in (("prefix", 1), ("rows", 5), ("columns", 3)):
        gradient = positions.get_parameter(name).grad
        assert torch.equal(gradient, torch.full_like(gradient, times))


def test_learned_2d_starts_as_small_numbers_that_differ():
    torch.manual_seed(0)
    for table in LearnedPositions2D((40, 50), 64, 40).parameters():
        assert table.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(table.mean().item()) < 2e-3


# Relative bias --------------------------------------------------------------------------------


@each_grid
@each_prefix
def test_relative_bias_equals_a_loop_over_pairs_of_tokens(grid, prefix):
    module, (rows, columns) = filled(RelativePositionBias(grid, 2, prefix)), grid
    bias, where = module(), [None] * prefix + cells(grid)
    T = prefix + rows * columns
    assert bias.shape == (2, T, T)
    for i, query in enumerate(where):
        for j, key in enumerate(where):
            if query and key:  # the middle of the table is offset 0
                down, right = query[0] - key[0], query[1] - key[1]
                expected = module.offsets[:, down + rows - 1, right + columns - 1]
            else:  # patch to prefix, prefix to patch, prefix to prefix
                expected = module.prefix[:, 0 if query else 1 if key else 2]
            assert torch.equal(bias[:, i, j], expected)


@pytest.mark.parametrize("grid", [(3, 3), (2, 4), (14, 14)])
def test_relative_bias_indexes_its_table_as_timm_does(grid):
    module = filled(RelativePositionBias(grid, 3, 1))
    assert torch.equal(
        module()[:, 1:, 1:],
        module.offsets.flatten(1)[:, gen_relative_position_index(grid)],
    )
    # timm, as BEiT, ends the table with: class to patch, patch to class, class to class
    table = torch.cat([module.offsets.flatten(1), module.prefix[:, [1, 0, 2]]], dim=1)
    index = gen_relative_position_index(grid, class_token=True)
    assert torch.equal(module(), table[:, index])


@each_prefix
def test_relative_bias_starts_at_zero_and_counts_its_parameters(prefix):
    module = RelativePositionBias((3, 5), 4, prefix)
    assert torch.equal(module(), torch.zeros(4, 15 + prefix, 15 + prefix))
    assert sum(p.numel() for p in module.parameters()) == 4 * (5 * 9 + 3)
    assert list(module.state_dict()) == ["offsets", "prefix"]


@each_prefix
def test_relative_bias_gradient_is_exact(prefix):
    module = filled(RelativePositionBias((2, 3), 2, prefix)).double()
    names = [name for name, _ in module.named_parameters()]

    def bias(*tables):
        tables = dict(zip(names, tables, strict=True))
        return torch.func.functional_call(module, tables, ()) ** 2

    assert torch.autograd.gradcheck(bias, tuple(module.parameters()))


def test_relative_bias_gradient_counts_the_pairs_that_share_an_offset():
    module = RelativePositionBias((2, 3), 2, 2)
    module().sum().backward()
    pairs = torch.tensor([[1.0, 2, 3, 2, 1], [2, 4, 6, 4, 2], [1, 2, 3, 2, 1]])
    assert torch.equal(module.offsets.grad, pairs.expand(2, 3, 5))
    assert torch.equal(module.prefix.grad, torch.tensor([12.0, 12, 4]).expand(2, 3))


def test_relative_bias_can_be_traced_whole_by_torch_compile():
    module = filled(RelativePositionBias((2, 3), 2, 1))
    # aot_eager traces forward and backward but needs no C++ compiler, and seconds, not a minute
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    (compiled() ** 2).sum().backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (module() ** 2).sum().backward()
    assert torch.equal(compiled(), module())
    for p, gradient in zip(module.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, gradient, atol=1e-5)


@pytest.mark.parametrize("kind", [LearnedPositions2D, RelativePositionBias])
def test_modules_made_without_memory_take_weights_later(kind):
    full = filled(kind((2, 3), 4, 2))
    with torch.device("meta"):
        empty = kind((2, 3), 4, 2)
        assert empty().shape == full().shape
    empty.to_empty(device="cpu").load_state_dict(full.state_dict())
    assert torch.equal(empty(), full())


@pytest.mark.parametrize("kind", [LearnedPositions2D, RelativePositionBias])
def test_modules_move_to_another_type(kind):
    assert kind((2, 3), 4).double()().dtype == torch.float64


# Resizing -------------------------------------------------------------------------------------


def embedding(grid, prefix=1, dim=6, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(1, prefix + grid[0] * grid[1], dim).to(dtype)


def formula(pos_embed, old, prefix, resize):
    """Resize by `resize`, a function of maps (1, D, rows, columns): the frame of all loaders."""
    maps = pos_embed[:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    patches = resize(maps).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([pos_embed[:, :prefix], patches], dim=1)


def close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


RESIZES = [  # old, new
    ((4, 4), (7, 7)),
    ((7, 7), (4, 4)),
    ((14, 14), (24, 24)),
    ((3, 5), (6, 4)),
    ((6, 4), (3, 5)),
    ((2, 6), (3, 4)),  # as many patches, in another shape
    ((1, 1), (3, 2)),
    ((3, 4), (1, 1)),
]
each_resize = pytest.mark.parametrize(("old", "new"), RESIZES)


@each_resize
@each_prefix
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_equals_timms(old, new, prefix, mode, antialias):
    pos = embedding(old, prefix)
    ours = resize_pos_embed(pos, new, old, prefix, mode=mode, antialias=antialias)
    theirs = resample_abs_pos_embed(pos, new, old, prefix, interpolation=mode, antialias=antialias)
    assert close(ours, theirs)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 4), (2, 9))])
def test_resizing_defaults_to_timms_defaults(old, new):
    pos = embedding(old)
    assert close(resize_pos_embed(pos, new), resample_abs_pos_embed(pos, new))


@each_resize
def test_resizing_without_antialias_equals_deits_and_hugging_faces(old, new):
    pos = embedding(old)
    theirs = formula(
        pos, old, 1, lambda m: F.interpolate(m, size=new, mode="bicubic", align_corners=False)
    )
    assert close(resize_pos_embed(pos, new, old, antialias=False), theirs)


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("new", [(6, 6), (3, 3), (7, 2), (1, 5), (4, 8)])
def test_resizing_without_antialias_equals_hugging_faces_own_code(new, prefix):
    config, kind = [(ViTConfig, ViTEmbeddings), (DeiTConfig, DeiTEmbeddings)][prefix - 1]
    theirs = kind(config(hidden_size=8, image_size=20, patch_size=4, num_attention_heads=2))
    torch.nn.init.normal_(theirs.position_embeddings)
    pos = theirs.position_embeddings.detach()
    tokens = torch.zeros(1, prefix + new[0] * new[1], 8)
    expected = theirs.interpolate_pos_encoding(tokens, 4 * new[0], 4 * new[1]).detach()
    assert close(resize_pos_embed(pos, new, (5, 5), prefix, antialias=False), expected)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("old", "new"), [((4, 3), (7, 1)), ((2, 1), (5, 1)), ((6, 1), (4, 1))])
def test_a_single_column_is_resized_as_a_single_row_is(old, new, mode):
    """PyTorch's antialiased kernel gives every row of a single column the first one's values."""
    pos = embedding(old, 0)
    turned = pos[0].view(*old, 6).transpose(0, 1).flatten(0, 1)[None]
    expected = resize_pos_embed(turned, new[::-1], old[::-1], 0, mode=mode)
    assert close(resize_pos_embed(pos, new, old, 0, mode=mode), expected)
    assert expected[0].std(dim=0).min() > 0.01
    if new[0] > old[0] and mode == "bilinear" and old[1] == 1:  # growing needs no antialiasing
        without = resize_pos_embed(pos, new, old, 0, mode=mode, antialias=False)
        assert close(resize_pos_embed(pos, new, old, 0, mode=mode), without)


@each_resize
@each_prefix
def test_google_mode_equals_scipys_linear_zoom(old, new, prefix):
    pos = embedding(old, prefix)
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    grid = scipy.ndimage.zoom(pos[0, prefix:].reshape(*old, -1).numpy(), zoom, order=1)
    theirs = torch.cat([pos[:, :prefix], torch.from_numpy(grid).flatten(0, 1)[None]], dim=1)
    assert close(resize_pos_embed(pos, new, old, prefix, mode="google"), theirs)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (14, 24), (2, 1)])
def test_torchvision_mode_equals_torchvisions_loader(old, new):
    pos = embedding((old, old))
    state = OrderedDict({"encoder.pos_embedding": pos})
    theirs = interpolate_embeddings(new * 16, 16, state)["encoder.pos_embedding"]
    assert close(resize_pos_embed(pos, (new, new), mode="torchvision"), theirs)


def test_torchvision_mode_aligns_the_corners_of_any_grid():
    pos = embedding((3, 5)).view(1, 16, 6)
    new = resize_pos_embed(pos, (7, 4), (3, 5), mode="torchvision")
    old_corners, new_corners = [1, 5, 11, 15], [1, 4, 25, 28]
    assert close(new[:, new_corners], pos[:, old_corners])


@each_resize
def test_dino_mode_equals_its_formula(old, new):
    pos = embedding(old)
    scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    theirs = formula(pos, old, 1, lambda m: F.interpolate(m, scale_factor=scale, mode="bicubic"))
    assert close(resize_pos_embed(pos, new, old, mode="dino"), theirs)


def keys_cubic(distance, a=-0.75):
    """The cubic kernel of Keys (1981), with the a that PyTorch takes."""
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def cubic_weights(old, new, scale):
    """(new, old): pixel centres, edges repeated, steps of 1/scale pixels of the old grid."""
    weights = np.zeros((new, old))
    for n in range(new):
        centre = (n + 0.5) / scale - 0.5
        for i in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[n, min(max(i, 0), old - 1)] += keys_cubic(centre - i)
    return weights


@each_resize
@each_prefix
def test_dino_mode_equals_a_bicubic_sum_by_hand_with_a_tenth_of_a_patch_too_much(old, new, prefix):
    pos = embedding(old, prefix)
    grid = pos[0, prefix:].double().numpy().reshape(*old, -1)
    rows, columns = (cubic_weights(o, n, (n + 0.1) / o) for o, n in zip(old, new, strict=True))
    patches = np.einsum("ri,cj,ijd->rcd", rows, columns, grid).reshape(1, new[0] * new[1], -1)
    theirs = torch.cat([pos[:, :prefix], torch.from_numpy(patches).float()], dim=1)
    assert close(resize_pos_embed(pos, new, old, prefix, mode="dino"), theirs)
    if min(old) > 1:  # and the tenth matters
        exact = resize_pos_embed(pos, new, old, prefix, antialias=False)
        assert not close(exact, theirs, 1e-3)


@pytest.mark.parametrize("mode", ["google", "torchvision", "dino"])
def test_antialias_does_not_matter_where_a_convention_has_none(mode):
    pos = embedding((7, 7))
    without = resize_pos_embed(pos, (4, 4), mode=mode, antialias=False)
    assert torch.equal(resize_pos_embed(pos, (4, 4), mode=mode), without)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_prefix_rows_pass_through_bit_by_bit(mode, dtype):
    pos = embedding((3, 4), 2, dtype=dtype)
    new = resize_pos_embed(pos, (5, 2), (3, 4), 2, mode=mode)
    assert new.dtype == dtype and torch.equal(new[:, :2], pos[:, :2])


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_the_same_grid_returns_the_embedding_as_it_is(mode):
    for pos in (embedding((3, 4)), embedding((3, 4)).half()):
        assert resize_pos_embed(pos, (3, 4), (3, 4), mode=mode) is pos


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_resized_in_float32_and_rounded_once(mode, dtype):
    pos = embedding((4, 4), dtype=dtype)
    new = resize_pos_embed(pos, (7, 7), mode=mode)
    assert torch.equal(new, resize_pos_embed(pos.float(), (7, 7), mode=mode).to(dtype))


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("new", [(6, 7), (2, 3)])
def test_gradients_flow_through_resizing_and_weights_sum_to_one(mode, new):
    pos = embedding((3, 5)).requires_grad_()
    resize_pos_embed(pos, new, (3, 5), mode=mode).sum().backward()
    assert torch.equal(pos.grad[:, 0], torch.ones(1, 6))
    expected = torch.full((1, 6), float(new[0] * new[1]))
    assert torch.allclose(pos.grad[:, 1:].sum(1), expected, atol=1e-3)


def test_conventions_differ_as_much_as_was_measured():
    """Relative RMS difference to timm on smooth waves and a tenth of noise, for 14 -> 24 and 7.

    The embedding that was measured is not stored; another smooth one comes within a quarter.
    """
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, 64, 1, 1, generator=generator)
    along = torch.linspace(0, math.pi, 14)
    waves = torch.sin(3.4 * (u[0] * along[:, None] + u[1] * along) + 2 * math.pi * u[2])
    noise = torch.randn(waves.shape, generator=generator)
    pos = (waves / waves.std() + 0.1 * noise).flatten(1).T[None]
    measured = {
        ("google", True): (0.084, 0.218),
        ("bilinear", False): (0.045, 0.039),  # timm's own loader of .npz files
        ("bicubic", False): (0.025, 0.099),
        ("dino", True): (0.033, 0.112),
        ("torchvision", True): (0.077, 0.230),
    }
    for side, values in zip((24, 7), zip(*measured.values(), strict=True), strict=True):
        timm = resize_pos_embed(pos, (side, side), num_prefix_tokens=0)
        for (mode, antialias), value in zip(measured, values, strict=True):
            other = resize_pos_embed(pos, (side, side), None, 0, mode, antialias)
            assert ((other - timm).norm() / timm.norm()).item() == pytest.approx(value, rel=0.25)


# All weights that depend on positions ----------------------------------------------------------


@each_resize
@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_learned_2d_resized_by_halves_is_its_whole_table_resized(old, new, mode):
    module = filled(LearnedPositions2D(old, 6, 2))
    weights = {f"pos_embed.{n}": p for n, p in module.named_parameters()}
    resized = resize_positions(weights, old, new, 2, mode)
    halves = {n.removeprefix("pos_embed."): w for n, w in resized.items()}
    other = LearnedPositions2D(new, 6, 2)
    other.load_state_dict(halves)
    assert close(other(), resize_pos_embed(module(), new, old, 2, mode), 2e-5)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_relative_offsets_keep_their_distance_in_the_picture(mode):
    """A bias that falls by 1 a patch on a grid of 5 falls by 1/2 a patch on one of 10."""
    down, right = torch.meshgrid(torch.arange(-4.0, 5), torch.arange(-4.0, 5), indexing="ij")
    weights = {
        "a.rel_pos.offsets": torch.stack([down, right]),
        "a.rel_pos.prefix": torch.ones(2, 3),
    }
    resized = resize_positions(weights, (5, 5), (10, 10), 1, mode)
    assert torch.equal(resized["a.rel_pos.prefix"], torch.ones(2, 3))
    offsets = resized["a.rel_pos.offsets"]
    assert offsets.shape == (2, 19, 19)
    assert close(offsets[0], offsets[1].T, 1e-4)
    assert close(offsets, -offsets.flip(1, 2), 1e-4) or mode == "dino"  # which is a little off
    step = (offsets[0, 14, 9] - offsets[0, 4, 9]).item() / 10
    assert step == pytest.approx(
        {"google": 8 / 18, "torchvision": 8 / 18}.get(mode, 9 / 19), rel=0.03
    )


def test_what_has_no_position_is_copied_not_shared():
    weights = {"head.weight": torch.randn(3, 4), "pos_embed": torch.randn(1, 5, 4)}
    for new in ((2, 2), (3, 3)):
        resized = resize_positions(weights, (2, 2), new)
        assert torch.equal(resized["head.weight"], weights["head.weight"])
        for name in weights:
            assert resized[name].data_ptr() != weights[name].data_ptr()


# Similarity -----------------------------------------------------------------------------------


@each_grid
@each_prefix
@pytest.mark.parametrize("batch", [True, False])
def test_similarity_is_the_cosine_of_each_pair_of_patches(grid, prefix, batch):
    pos = embedding(grid, prefix)
    similarity = position_similarity(pos if batch else pos[0], grid, prefix)
    assert similarity.shape == (*grid, *grid) and similarity.dtype == torch.float32
    patches = pos[0, prefix:].numpy().reshape(*grid, -1)  # the class row is the first, not the last
    for i, j in cells(grid):
        for k, m in cells(grid):
            a, b = patches[i, j], patches[k, m]
            cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
            assert similarity[i, j, k, m].item() == pytest.approx(cosine, abs=1e-5)


def test_similarity_of_a_patch_with_itself_is_one_whatever_its_length():
    pos = embedding((3, 4)) * torch.logspace(-5, 5, 13)[:, None]
    diagonal = position_similarity(pos, (3, 4)).view(12, 12).diagonal()
    assert close(diagonal, torch.ones(12))


def test_a_zero_vector_resembles_nothing():
    pos = embedding((2, 3))
    pos[:, 1 + 4] = 0  # row 1, column 1
    similarity = position_similarity(pos, (2, 3))
    assert similarity[1, 1].abs().max() == 0 and similarity[:, :, 1, 1].abs().max() == 0
    assert similarity[0, 0, 0, 0] > 0.99


def test_similarity_of_half_precision_is_computed_in_float32():
    pos = embedding((3, 3), dtype=torch.bfloat16)
    assert torch.equal(position_similarity(pos, (3, 3)), position_similarity(pos.float(), (3, 3)))


def test_sincos_positions_resemble_their_neighbours_most():
    similarity = position_similarity(sincos_positions((5, 7), 64), (5, 7), 0)
    centre = similarity[2, 3].clone()
    centre[2, 3] = 0
    assert {divmod(n, 7) for n in centre.flatten().topk(4).indices.tolist()} == {
        (1, 3),
        (3, 3),
        (2, 2),
        (2, 4),
    }


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sincos_positions((0, 2), 8), r"grid .* got \(0, 2\)"),
        (lambda: sincos_positions((2, 2, 2), 8), "grid"),
        (lambda: sincos_positions("22", 8), "grid .* got '22'"),
        (lambda: sincos_positions((2, 2), 10), "dim must be a multiple of 4 .* got 10"),
        (lambda: sincos_positions((2, 2), 4), "dim .* got 4"),
        (lambda: sincos_positions((2, 2), 0), "dim .* got 0"),
        (lambda: sincos_positions((2, 2), 8.0), "dim .* got 8.0"),
        (lambda: sincos_positions((2, 2), 8, 0.0), "temperature .* got 0.0"),
        (lambda: sincos_positions((2, 2), 8, -1.0), "temperature .* got -1.0"),
        (lambda: sincos_positions((2, 2), 8, math.nan), "temperature .* got nan"),
        (lambda: sincos_positions((2, 2), 8, math.inf), "temperature .* got inf"),
        (lambda: LearnedPositions2D((2, 0), 8), "grid"),
        (lambda: LearnedPositions2D((2, 2), 7), "dim must be even .* got 7"),
        (lambda: LearnedPositions2D((2, 2), 0), "dim .* got 0"),
        (lambda: LearnedPositions2D((2, 2), 8.0), "dim .* got 8.0"),
        (lambda: LearnedPositions2D((2, 2), 8, -1), "num_prefix_tokens .* got -1"),
        (lambda: LearnedPositions2D((2, 2), 8, True), "num_prefix_tokens .* got True"),
        (lambda: RelativePositionBias((2, -2), 2), "grid"),
        (lambda: RelativePositionBias((2, 2), 0), "num_heads"),
        (lambda: RelativePositionBias((2, 2), 2.0), "num_heads"),
        (lambda: RelativePositionBias((2, 2), 2, -1), "num_prefix_tokens .* got -1"),
        (lambda: RelativePositionBias((2, 2), 2, 1.0), "num_prefix_tokens .* got 1.0"),
        (lambda: position_similarity(embedding((2, 3)), (2, 2)), r"4, D\) .* got \(1, 7, 6\)"),
        (lambda: position_similarity(embedding((2, 3)), (2, 3), 0), "pos_embed .* 0 prefix"),
        (lambda: position_similarity(torch.zeros(7), (2, 3)), r"pos_embed .* got \(7,\)"),
        (lambda: position_similarity(torch.zeros(2, 7, 4), (2, 3)), "pos_embed"),
        (lambda: position_similarity(np.zeros((7, 4)), (2, 3)), "pos_embed must be a tensor"),
        (lambda: position_similarity(embedding((2, 3)), (2, 3), -1), "num_prefix_tokens"),
        (lambda: position_similarity(embedding((2, 3)), (6, 0)), "grid"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 3), mode="cubic"), "mode .* 'cubic'"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 0)), "new_grid"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 3), (2, 0)), "old_grid"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 3), (2, 3)), r"6, D\) .* \(1, 5, 6\)"),
        (lambda: resize_pos_embed(embedding((2, 2)), (2, 3), (2, 3)), "pos_embed"),
        (lambda: resize_pos_embed(embedding((2, 3)), (3, 3)), "old_grid .* 6 patches"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 3), None, 5), "old_grid .* 0 patches"),
        (lambda: resize_pos_embed(embedding((2, 2)), (3, 3), None, -1), "num_prefix_tokens"),
        (lambda: resize_pos_embed(embedding((2, 2))[0], (3, 3)), r"pos_embed .* got \(5, 6\)"),
        (lambda: resize_pos_embed(torch.zeros(2, 5, 6), (3, 3)), "pos_embed"),
        (lambda: resize_pos_embed(np.zeros((1, 5, 6)), (3, 3)), "pos_embed must be a tensor"),
        (lambda: resize_pos_embed(None, (3, 3)), "pos_embed"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_that_names_them(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
