"""Everyone's weights: models of timm, torchvision, Hugging Face and Google as a `ViT`.

One architecture, four spellings. Each converter renames the weights to timm's names and reads the
configuration off their shapes. Then it fills a copy of the model with random numbers, converts
that as well, and compares what both make of two random images: what a `ViT` cannot represent is
refused, never a silent difference.

Chapter: 6 (`notebooks/06-vit.ipynb`).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitmini.encoder import drop_path_rates
from vitmini.model import ViT, ViTConfig
from vitmini.patches import as_pair, patch_grid
from vitmini.positions import sincos_positions

Weights = dict[str, Tensor]
Found = tuple[ViTConfig, Weights, nn.Module]  # of a model: its configuration, weights and head

# Parameters that a `ViT` has no place for, by a part of their names.
_FOREIGN = {
    "fc_norm": "it norms after pooling, not before it: make it with fc_norm=False",
    "reg_token": "it has register tokens",
    "norm_pre": "it norms the tokens before the first block",
    "attn_pool": "it pools by attention",
    "q_norm": "it norms queries and keys",
    "k_norm": "it norms queries and keys",
    "pre_logits": "it has a representation layer (pre_logits) before the head",
    "MAPHead_0": "it pools by attention (MAPHead)",
    "conv_root": "it is a hybrid: a ResNet makes its tokens",
    "patch_embed.backbone": "it is a hybrid: a ConvNet makes its tokens",
}


def from_timm(model: nn.Module) -> ViT:
    """Convert a `VisionTransformer` of timm, distilled or not; the logits stay the same.

    Shapes: a `ViT` with weights of its own, of the model's type, on its device and in its mode.
    Raises: `ValueError` for what a `ViT` cannot represent: other classes, pooling with `fc_norm`,
        register tokens, a norm on queries and keys, rates of dropout that differ.
    Source: `timm/models/vision_transformer.py`; names and shapes are the same as here.
    Chapter: 6
    """
    names = ("VisionTransformer", "VisionTransformerDistilled")
    if type(model).__name__ not in names or not hasattr(model, "global_pool"):
        raise ValueError(f"model must be timm's VisionTransformer, got {_kind(model)}")
    return _convert(model, _read_timm)


def _read_timm(model: nn.Module) -> Found:
    m: Any = model
    weights = dict(model.state_dict())
    _refuse_foreign(weights)
    for b in m.blocks:
        kinds = [type(getattr(b, part, b)).__name__ for part in ("", "attn", "mlp")]
        if kinds != ["Block", "Attention", "Mlp"]:
            raise ValueError(f"model cannot be a ViT: its blocks are of {', '.join(kinds)}")
    if m.global_pool not in ("token", "avg"):
        raise ValueError(f"model cannot be a ViT: it pools by {m.global_pool!r}")
    if m.global_pool == "avg" and "cls_token" in weights:
        raise ValueError(
            "model cannot be a ViT: it has a class token and does not read it "
            "(make it with class_token=False)"
        )
    if "head.weight" not in weights:
        raise ValueError("model has no head: give it one, model.reset_classifier(num_classes)")
    if m.patch_embed.img_size is None:
        raise ValueError("model cannot be a ViT: it takes images of any size, img_size is None")
    prefix = ("cls_token" in weights) + ("dist_token" in weights)
    if m.pos_embed is not None and m.pos_embed.shape[1] == m.patch_embed.num_patches and prefix:
        weights["pos_embed"] = _with_prefix(weights["pos_embed"], prefix)  # no_embed_class
    dropouts, paths = [], []
    for b in m.blocks:
        dropouts += [b.attn.proj_drop, b.mlp.drop1, b.mlp.drop2]
        paths += [b.drop_path1, b.drop_path2]
        if not all(getattr(path, "scale_by_keep", True) for path in paths[-2:]):
            raise ValueError("model cannot be a ViT: its drop path does not scale what it keeps")
    if m.pos_embed is not None:
        dropouts.append(m.pos_drop)  # without positions timm never comes to it
    elif any(getattr(d, "p", 0.0) for d in dropouts):
        raise ValueError("model cannot be a ViT: without positions timm does not drop tokens")
    rate = _only_dropout(model, dropouts, [*paths, m.pos_drop])
    config = _config(
        weights,
        image_size=m.patch_embed.img_size,
        num_heads=_only([b.attn.num_heads for b in m.blocks], "num_heads"),
        norm_eps=_eps(model),
        gelu=_only([_gelu(b.mlp.act) for b in m.blocks], "gelu"),
        pos_embed="none" if m.pos_embed is None else "learned",
        dropout=rate,
        drop_path=_linear_rate([getattr(path, "drop_prob", 0.0) for path in paths]),
    )
    return config, weights, m.head


def from_torchvision(model: nn.Module) -> ViT:
    """Convert a `VisionTransformer` of torchvision; the logits stay the same.

    They agree up to rounding, as closely as the two paths that torchvision's attention can take
    (`torch.backends.mha.set_fastpath_enabled`) agree with each other.
    Shapes: a `ViT` with weights of its own, of the model's type, on its device and in its mode.
    Raises: `ValueError` for what a `ViT` cannot represent: other classes, a convolutional stem, a
        representation layer, another head, dropout of attention weights.
    Source: `torchvision/models/vision_transformer.py`.
    Chapter: 6
    """
    kinds = [(k.__module__.split(".")[0], k.__name__) for k in type(model).__mro__]
    if ("torchvision", "VisionTransformer") not in kinds:
        raise ValueError(f"model must be torchvision's VisionTransformer, got {_kind(model)}")
    return _convert(model, _read_torchvision)


def _read_torchvision(model: nn.Module) -> Found:
    m: Any = model
    if not isinstance(m.conv_proj, nn.Conv2d):
        raise ValueError("model cannot be a ViT: it has a stem of several convolutions")
    layers = list(m.encoder.layers)
    names = (
        (r"conv_proj\.", "patch_embed.proj."),
        (r"class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"ln_([12])\.", r"norm\1."),
        (r"self_attention\.in_proj_", "attn.qkv."),
        (r"self_attention\.out_proj\.", "attn.proj."),
        (r"mlp\.(?:0|linear_1)\.", "mlp.fc1."),
        (r"mlp\.(?:3|linear_2)\.", "mlp.fc2."),
        (r"encoder\.ln\.", "norm."),
        (r"heads\.head\.", "head."),
    )
    weights = _rename(model.state_dict(), names)
    _refuse_foreign(weights)
    if not isinstance(getattr(m.heads, "head", None), nn.Linear):
        raise ValueError("model cannot be a ViT: its head must be one linear layer, heads.head")
    dropouts = [m.encoder.dropout]
    for layer in layers:
        dropouts += [layer.dropout, *(d for d in layer.mlp if isinstance(d, nn.Dropout))]
    config = _config(
        weights,
        image_size=m.image_size,
        num_heads=_only([layer.self_attention.num_heads for layer in layers], "num_heads"),
        norm_eps=_eps(model),
        gelu=_only([_gelu(layer.mlp[1]) for layer in layers], "gelu"),
        dropout=_only_dropout(model, dropouts),
    )
    return config, weights, m.heads.head


def from_huggingface(model: nn.Module) -> ViT:
    """Convert a ViT or distilled DeiT classifier of Hugging Face; the logits stay the same.

    Module names of transformers 4 and 5 are both known, and any `layer_norm_eps`.
    Shapes: a `ViT` with weights of its own, of the model's type, on its device and in its mode.
    Raises: `ValueError` for what a `ViT` cannot represent: other classes, a DeiT whose
        distillation token has no head, other activations, rates of dropout above 0.
    Source: `ViTForImageClassification`, `DeiTForImageClassificationWithTeacher` of transformers.
    Chapter: 6
    """
    wanted = r"(?:(?:vit|deit)\.)?embeddings\.patch_embeddings\.projection\.weight"
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    if not any(re.fullmatch(wanted, k) for k in state):
        raise ValueError(f"model must be a ViT or DeiT of transformers, got {_kind(model)}")
    return _convert(model, _read_huggingface)


def _read_huggingface(model: nn.Module) -> Found:
    m: Any = model
    state = model.state_dict()
    distilled = any(k.endswith("distillation_token") for k in state)
    heads = ("cls_classifier.weight", "distillation_classifier.weight")
    if distilled and not all(k in state for k in heads):
        raise ValueError(
            "model has a distillation token without a head: "
            "use DeiTForImageClassificationWithTeacher"
        )
    if not distilled and "classifier.weight" not in state:
        raise ValueError("model has no head: use ViTForImageClassification")
    names = (
        (r"(?:vit|deit)\.", ""),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.distillation_token", "dist_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
        (r"layernorm_before\.", "norm1."),
        (r"layernorm_after\.", "norm2."),
        (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
        (r"attention\.(?:attention\.query|q_proj)\.", "attn.q."),
        (r"attention\.(?:attention\.key|k_proj)\.", "attn.k."),
        (r"attention\.(?:attention\.value|v_proj)\.", "attn.v."),
        (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
        (r"(?:output\.dense|mlp\.fc2)\.", "mlp.fc2."),
        (r"layernorm\.", "norm."),
        (r"(?:cls_)?classifier\.", "head."),
        (r"distillation_classifier\.", "head_dist."),
    )
    unused = ("pooler.", "embeddings.mask_token")  # neither has a part in the logits
    weights = _rename({k: v for k, v in state.items() if not any(u in k for u in unused)}, names)
    weights = _pack_qkv(weights)
    c = m.config
    gelus = {"gelu": "exact", "gelu_python": "exact"}
    gelus |= dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh"), "tanh")
    if c.hidden_act not in gelus:
        raise ValueError(f"model cannot be a ViT: its activation is {c.hidden_act!r}")
    _only_dropout(model, [])
    config = _config(
        weights,
        image_size=c.image_size,
        num_heads=c.num_attention_heads,
        norm_eps=_eps(model),
        gelu=gelus[c.hidden_act],
    )
    return config, weights, m.cls_classifier if distilled else m.classifier


def load_npz(path: str | Path, image_size: int | tuple[int, int] | None = None) -> ViT:
    """Read a checkpoint of Google: of the ViT repository or of big_vision.

    The model has the tanh GELU that these weights were trained with. Normalise images with mean
    and std 0.5. `image_size` in pixels is needed only where the file does not tell: for grids that
    are not square, and for sin-cos positions of images that are not 224 pixels wide.
    Shapes: a `ViT` in float32, in evaluation mode.
    Raises: `ValueError` for a damaged or foreign file and for what a `ViT` cannot represent (a
        hybrid, pooling by attention, a representation layer); pickled content is never opened.
    Source: `vit_jax/checkpoint.py` of google-research/vision_transformer;
        `big_vision/models/vit.py`.
    Chapter: 6
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path must name a file, got {path!r}")
    size = None if image_size is None else as_pair(image_size, "image_size")
    arrays = _read_npz(Path(path))
    _refuse_foreign(arrays)
    try:
        weights, heads = _from_google(arrays)
        D, _, P, Q = weights["patch_embed.proj.weight"].shape
        prefix = int("cls_token" in weights)
        # The ViT repository adds positions after the class token came, big_vision before.
        names = [name for name in arrays if name.endswith("pos_embedding")]
        before = not any(name.startswith("Transformer/") for name in names)
        fixed = "pos_embed" not in weights  # sines and cosines are not stored
        if not fixed:
            count = weights["pos_embed"].shape[1]
            grid = _grid(count, prefix, before, size and patch_grid(size, (P, Q)))
            if count == grid[0] * grid[1]:
                weights["pos_embed"] = _with_prefix(weights["pos_embed"], prefix)
        elif "Transformer/encoderblock_0/LayerNorm_2/scale" in arrays:
            raise ValueError("its positions are missing")
        else:
            grid = patch_grid(size or (224, 224), (P, Q))
            weights["pos_embed"] = _with_prefix(sincos_positions(grid, D)[None], prefix)
        config = _config(
            weights,
            image_size=(grid[0] * P, grid[1] * Q),
            num_heads=heads,
            norm_eps=1e-6,
            pos_embed="sincos2d" if fixed else "learned",
            gelu="tanh",
        )
        if not all(w.isfinite().all() for w in weights.values()):
            raise ValueError("its weights are not finite")
        return _assemble(config, weights).eval()
    except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} is not a whole Vision Transformer of Google: {one_line(error)}"
        ) from None


def _grid(count: int, prefix: int, before: bool, told: tuple[int, int] | None) -> tuple[int, int]:
    """Find the grid of `count` positions: as told, or a square."""
    if told:  # a file of big_vision from before 2022 may have a row for the class token, too
        fits = (count, count - prefix) if before else (count - prefix,)
        if told[0] * told[1] not in fits:
            raise ValueError(f"pos_embed has {count} rows, no grid of {told[0]}x{told[1]} patches")
        return told
    patches = count if before else count - prefix
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise ValueError(f"pos_embed has {count} rows, not of one square grid: give image_size")
    return side, side


def from_pretrained(name: str, source: str = "timm") -> ViT:
    """Fetch published weights and convert them: of timm by its names, or of torchvision.

    Shapes: a `ViT` in evaluation mode. `name` is timm's ("vit_base_patch16_224") or, with
        `source="torchvision"`, torchvision's ("vit_b_16"). Normalise images as the source says:
        `timm.data.resolve_model_data_config`, or torchvision's `weights.transforms()`.
    Raises: `ValueError` for an unknown source or name, `ImportError` without timm,
        `ConnectionError` when the weights cannot be fetched, such as offline (after about a
        minute with timm, whose hub tries again and again).
    Chapter: 6
    """
    if not isinstance(name, str):
        raise ValueError(f"name must be a string, got {name!r}")
    if source not in ("timm", "torchvision"):
        raise ValueError(f"source must be timm or torchvision, got {source!r}")
    if source == "torchvision":
        from torchvision.models import get_model, list_models

        if not name.startswith("vit_") or name not in list_models():
            known = ", ".join(n for n in list_models() if n.startswith("vit_"))
            raise ValueError(f"name must be one of {known}; got {name!r}")
        return from_torchvision(_fetch(name, lambda: get_model(name, weights="DEFAULT"))).eval()
    try:
        import timm
    except ImportError:
        raise ImportError("from_pretrained needs timm: pip install timm") from None
    if not timm.is_model(name):
        raise ValueError(f"name must be a model of timm (timm.list_models('*vit*')), got {name!r}")
    if not timm.models.is_model_pretrained(name):
        raise ValueError(f"name must be a model that timm has weights for, {name!r} has none")
    return from_timm(_fetch(name, lambda: timm.create_model(name, pretrained=True))).eval()


def _fetch(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # each library and each of its versions has its own
        raise ConnectionError(
            f"the weights of {name} could not be fetched ({type(error).__name__}: "
            f"{one_line(error)}); is this machine online?"
        ) from error


def _rename(state: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> Weights:
    """Replace each known part of each key, from left to right, as a whole part."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in names:
            key = re.sub(rf"(?<![^./]){pattern}", name, key, count=1)
        if key in renamed:
            raise ValueError(f"model cannot be a ViT: two of its parameters would be {key}")
        renamed[key] = value
    return renamed


def _pack_qkv(weights: Weights) -> Weights:
    """Join queries, keys and values, in this order, to one matrix (3D, D) a layer."""
    packed = {}
    for key, value in weights.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", key)
        if not match:
            packed[key] = value
            continue
        parts = [f"{match[1]}{letter}.{match[3]}" for letter in "qkv"]
        missing = [part for part in parts if part not in weights]
        if missing:
            raise ValueError(f"model cannot be a ViT: it has {key} and no {missing[0]}")
        packed[f"{match[1]}qkv.{match[3]}"] = torch.cat([weights[part] for part in parts])
    return packed


def _config(weights: Weights, image_size: Any, **told: Any) -> ViTConfig:
    """Read off the shapes what they tell; the rest is told."""
    for key in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "head.weight"):
        if key not in weights:
            raise ValueError(f"model cannot be a ViT: it has no {key}")
    H, W = as_pair(image_size if isinstance(image_size, int) else tuple(image_size), "image_size")
    D, channels, P, Q = weights["patch_embed.proj.weight"].shape
    depth = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    hidden = weights["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / D if int(D * (hidden / D)) == hidden else (hidden + 0.5) / D
    return ViTConfig(
        image_size=H if H == W else (H, W),
        patch_size=P if P == Q else (P, Q),
        in_channels=channels,
        num_classes=weights["head.weight"].shape[0],
        dim=D,
        depth=depth,
        mlp_ratio=ratio,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        pool="cls" if "cls_token" in weights else "mean",
        distilled="dist_token" in weights,
        layer_scale=1e-5 if "blocks.0.ls1.gamma" in weights else None,  # where it started: unknown
        **told,
    )


def _convert(model: nn.Module, read: Callable[[nn.Module], Found]) -> ViT:
    """Read a model, build the `ViT`, and prove on random numbers that it is the same function."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    if any(p.is_meta for _, p in parameters):
        raise ValueError("model has no weights: it is on the meta device")
    if len({id(p) for _, p in parameters}) < len(parameters):
        raise ValueError("model cannot be a ViT: some of its layers share their parameters")
    with torch.inference_mode(False), torch.no_grad():
        config, weights, _ = read(model)
        ours = _assemble(config, weights)
        _compare(model, read)
    return ours.train(model.training)


def _assemble(config: ViTConfig, weights: Weights) -> ViT:
    with torch.device("meta"):
        ours = ViT(config)
    wanted = {k: tuple(v.shape) for k, v in ours.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in weights.items()}
    wrong = sorted(k for k in wanted | given if wanted.get(k) != given.get(k))
    if wrong:
        k = wrong[0]
        raise ValueError(
            f"model cannot be a ViT: {k} is {given.get(k, 'missing')}, "
            f"where a ViT has {wanted.get(k, 'no such parameter')}"
        )
    ours.load_state_dict({k: v.detach().clone() for k, v in weights.items()}, assign=True)
    return ours


def _compare(model: nn.Module, read: Callable[[nn.Module], Found]) -> None:
    """Compare a copy of the model, full of random numbers in float32, with its own conversion.

    Its own weights would prove less: behind a zero head, or on branches that start near zero,
    two functions can look alike.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).float().eval()
    for name, p in probe.named_parameters():
        noise = torch.randn(p.shape, generator=generator, device="cpu")
        if p.ndim < 2:  # norms and scales about 1, biases about 0
            noise = 0.2 * noise + name.endswith(("weight", "gamma"))
        else:
            noise *= 0.5 if p.shape[0] == 1 else p[0].numel() ** -0.5
        p.copy_(noise)
    config, weights, head = read(probe)
    twin = _assemble(config, weights).eval()
    size = (2, config.in_channels, *twin.patch_embed.image_size)
    images = torch.randn(size, generator=generator, device="cpu").to(twin.head.weight)
    (ours, logits), (theirs, target) = _seen(twin, twin.head, images), _seen(probe, head, images)
    scale = (theirs.abs() @ twin.head.weight.abs().T).max()  # what the logits are sums of
    alike = ours.shape == theirs.shape and logits.shape == target.shape
    alike = alike and bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())
    if not alike or not (logits - target).abs().max() <= 1e-5 * scale:
        raise ValueError(
            "model cannot be a ViT: with the same weights its logits are others, "
            "so it computes something that a ViT does not"
        )


def _seen(model: nn.Module, head: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the head, and the logits."""
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    out = model(images)
    hook.remove()
    return inputs[0], getattr(out, "logits", out)


def _read_npz(path: Path) -> Weights:
    """Read the parameters of a file, without executing anything in it; big_vision's have a prefix.

    Raises: `ValueError` for a file that is damaged, foreign, or holds more than arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = {name: name for name in file.files}
            if any(name.startswith("params/") for name in names):  # not its optimizer and clock
                names = {n.removeprefix("params/"): n for n in names if n.startswith("params/")}
            return {name: _tensor(file[stored]) for name, stored in names.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise ValueError(f"{path} is damaged or no .npz of arrays: {one_line(error)}") from None


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype == np.dtype("V2"):  # bfloat16, which numpy has not
        return torch.from_numpy(array.view(np.uint16).astype(np.int32) << 16).view(torch.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"it holds {array.dtype}, not floating point")
    return torch.from_numpy(array.astype(np.float32))


def _from_google(arrays: Weights) -> tuple[Weights, int]:
    """Give Google's parameters timm's names and shapes; also the number of heads.

    Flax numbers its modules: attention is `MultiHeadDotProductAttention_1` and the MLP
    `MlpBlock_3` in the ViT repository, both `_0` in big_vision. Kernels are (in, out).
    """
    names = (
        (r"(?:Transformer/)?(?:posembed_input/)?pos_embedding", "pos_embed"),
        (r"Transformer/encoder_norm/", "norm."),
        (r"Transformer/encoderblock_(\d+)/", r"blocks.\1."),
        (r"LayerNorm_0/", "norm1."),
        (r"LayerNorm_[12]/", "norm2."),
        (r"MlpBlock_[03]/Dense_0/", "mlp.fc1."),
        (r"MlpBlock_[03]/Dense_1/", "mlp.fc2."),
        (r"MultiHeadDotProductAttention_[01]/out/", "attn.proj."),
        (r"MultiHeadDotProductAttention_[01]/query/", "attn.q."),
        (r"MultiHeadDotProductAttention_[01]/key/", "attn.k."),
        (r"MultiHeadDotProductAttention_[01]/value/", "attn.v."),
        (r"embedding/", "patch_embed.proj."),
        (r"head/", "head."),
        (r"cls$", "cls_token"),
        (r"(?:kernel|scale)$", "weight"),
    )
    weights = _rename(_unstack(arrays), names)
    D, H, d = weights["blocks.0.attn.q.weight"].shape
    shapes = {w.shape for k, w in weights.items() if re.search(r"attn\.[qkv]\.weight", k)}
    if len(shapes) > 1:
        raise ValueError(f"its heads differ from layer to layer: {sorted(map(tuple, shapes))}")
    for key, value in weights.items():
        if key == "patch_embed.proj.weight":
            value = value.permute(3, 2, 0, 1)  # (P, Q, C, D) -> (D, C, P, Q)
        elif re.search(r"attn\.[qkv]\.weight", key):
            value = value.reshape(D, H * d).T  # (D, H, d) -> (D, D)
        elif re.search(r"attn\.[qkv]\.bias", key):
            value = value.reshape(H * d)  # (H, d) -> (D,)
        elif key.endswith("attn.proj.weight"):
            value = value.reshape(H * d, D).T  # (H, d, D) -> (D, D)
        elif key.endswith(("fc1.weight", "fc2.weight", "head.weight")):
            value = value.T
        weights[key] = value
    return _pack_qkv(weights), H


def _unstack(arrays: Weights) -> Weights:
    """Part what big_vision stacks when it scans over the blocks, (L, ...), into blocks."""
    parted = {}
    for key, value in arrays.items():
        if key.startswith("Transformer/encoderblock/"):
            rest = key.removeprefix("Transformer/encoderblock/")
            for i, one in enumerate(value):
                name = f"Transformer/encoderblock_{i}/{rest}"
                if name in arrays:
                    raise ValueError(f"{name} is there twice")
                parted[name] = one
        else:
            parted[key] = value
    return parted


def _with_prefix(pos_embed: Tensor, count: int) -> Tensor:
    """Positions that leave the prefix tokens as they are: rows of zeros before them."""
    return torch.cat([pos_embed.new_zeros(1, count, pos_embed.shape[2]), pos_embed], dim=1)


def _refuse_foreign(weights: Iterable[str]) -> None:
    for key in weights:
        for name, reason in _FOREIGN.items():
            if name in key:
                raise ValueError(f"model cannot be a ViT: {reason}")


def _only_dropout(
    model: nn.Module, shared: Iterable[nn.Module], other: Iterable[nn.Module] = ()
) -> float:
    """The one rate of the dropouts that a ViT `shared`; none but `other` may have a rate too."""
    rates = {getattr(module, "p", 0.0) for module in shared}
    known = {id(module) for module in (*shared, *other)}
    for name, module in model.named_modules():
        if id(module) in known or not name:  # a model may remember its rates, and not use them
            continue
        for attribute in ("p", "prob", "drop_prob", "dropout", "attention_dropout"):
            rate = getattr(module, attribute, 0.0)
            if isinstance(rate, float) and rate > 0:
                raise ValueError(
                    f"model cannot be a ViT: {name} drops with rate {rate:g}, where a ViT does "
                    "not; set it to 0 first"
                )
    return _only(sorted(rates), "dropout") if rates else 0.0


def _linear_rate(rates: list[float]) -> float:
    """The last rate, where those of the blocks, two each, rise to it in even steps from 0."""
    linear = drop_path_rates(rates[-1], len(rates) // 2)
    if any(abs(rate - linear[i // 2]) > 1e-6 for i, rate in enumerate(rates)):
        raise ValueError("model cannot be a ViT: its drop path rates do not rise linearly")
    return round(rates[-1], 6)


def _eps(model: nn.Module) -> float:
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    return _only([m.eps for m in norms], "norm_eps") if norms else 1e-6


def _gelu(act: nn.Module) -> str:
    name = type(act).__name__
    if name == "GELU":
        return "tanh" if getattr(act, "approximate", "none") == "tanh" else "exact"
    if name == "GELUTanh":
        return "tanh"
    raise ValueError(f"model cannot be a ViT: its activation is {name}")


def _only(values: list, name: str) -> Any:
    if not values:
        raise ValueError("model cannot be a ViT: it has no blocks")
    if len(set(values)) > 1:
        raise ValueError(
            f"model cannot be a ViT: its {name} is not one, {sorted(map(str, set(values)))}"
        )
    return values[0]


def _kind(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__name__}"


def one_line(error: BaseException) -> str:
    """Say an error in one line of at most 200 characters. Chapter: 6."""
    return " ".join(str(error).split())[:200] or type(error).__name__
