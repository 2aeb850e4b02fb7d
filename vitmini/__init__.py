"""vitmini: the Vision Transformer and DeiT, small, fast and readable.

The library of the course *Vision Transformers from Scratch*, a module a chapter.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch as _torch

if tuple(int(v) for v in _torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
    raise ImportError(f"vitmini needs PyTorch 2.6 or newer, found {_torch.__version__}")

from vitmini.attention import Attention, attention_by_hand, attention_weights
from vitmini.augment import random_affine, random_flip
from vitmini.baselines import (
    create_baseline,
    find_config,
    list_baselines,
    training_flops,
)
from vitmini.benchmark import compare_models, measure_time, peak_memory
from vitmini.colab import offer_download, run_folder
from vitmini.convert import (
    from_huggingface,
    from_pretrained,
    from_timm,
    from_torchvision,
    load_npz,
)
from vitmini.data import ImageData, load_data
from vitmini.distill import (
    Teacher,
    disagreement,
    distillation_loss,
    evaluate_heads,
    predict_heads,
    soft_term,
    soft_term_of_deits_code,
    token_similarity,
)
from vitmini.encoder import MLP, Block, DropPath, LayerScale, drop_path_rates
from vitmini.initialisation import init_weights
from vitmini.inspection import (
    attention_distance,
    attention_maps,
    attention_rollout,
    cka,
    cls_attention,
    layer_tokens,
    measure_attention_distance,
    patch_distances,
    patch_filters,
)
from vitmini.live import LiveCurve
from vitmini.model import ViT, ViTConfig, create_model, get_config, list_models
from vitmini.optim import choose_precision
from vitmini.patches import PatchEmbed, patch_grid, patchify, unpatchify
from vitmini.pictures import load_photo
from vitmini.positions import (
    LearnedPositions2D,
    RelativePositionBias,
    position_similarity,
    resize_pos_embed,
    resize_positions,
    sincos_positions,
)
from vitmini.pretrained import list_pretrained, load_card, load_pretrained
from vitmini.profiles import Profile, choose_profile
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.records import list_results, load_result
from vitmini.runs import load_run, load_teacher
from vitmini.summary import count_flops, describe_layers, summary_table
from vitmini.throughput import matrix_rate, measure_loop, model_share
from vitmini.train import evaluate, train

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "RECIPES",
    "Attention",
    "Block",
    "DropPath",
    "ImageData",
    "LayerScale",
    "LearnedPositions2D",
    "LiveCurve",
    "PatchEmbed",
    "Profile",
    "RelativePositionBias",
    "Teacher",
    "TrainConfig",
    "ViT",
    "ViTConfig",
    "attention_by_hand",
    "attention_distance",
    "attention_maps",
    "attention_rollout",
    "attention_weights",
    "checks",
    "choose_precision",
    "choose_profile",
    "cka",
    "cls_attention",
    "compare_models",
    "count_flops",
    "create_baseline",
    "create_model",
    "describe_layers",
    "disagreement",
    "distillation_loss",
    "drop_path_rates",
    "evaluate",
    "evaluate_heads",
    "find_config",
    "from_huggingface",
    "from_pretrained",
    "from_timm",
    "from_torchvision",
    "get_config",
    "init_weights",
    "layer_tokens",
    "list_baselines",
    "list_models",
    "list_pretrained",
    "list_results",
    "load_card",
    "load_data",
    "load_npz",
    "load_photo",
    "load_pretrained",
    "load_result",
    "load_run",
    "load_teacher",
    "matrix_rate",
    "measure_attention_distance",
    "measure_loop",
    "measure_time",
    "model_share",
    "offer_download",
    "patch_distances",
    "patch_filters",
    "patch_grid",
    "patchify",
    "peak_memory",
    "plot",
    "position_similarity",
    "predict_heads",
    "random_affine",
    "random_flip",
    "resize_pos_embed",
    "resize_positions",
    "run_folder",
    "sincos_positions",
    "soft_term",
    "soft_term_of_deits_code",
    "summary_table",
    "token_similarity",
    "train",
    "training_flops",
    "unpatchify",
    "widgets",
]


def __getattr__(name: str) -> Any:  # figures and checks load matplotlib only when they are used
    if name in ("checks", "plot", "widgets"):
        return importlib.import_module(f"vitmini.{name}")
    raise AttributeError(f"module 'vitmini' has no attribute {name!r}")
