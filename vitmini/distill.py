"""Teachers and students: losses, the frozen teacher, the two heads, who disagrees with whom.

Chapter: 10.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitmini.patches import as_pair

if TYPE_CHECKING:
    from vitmini.data import ImageData

KINDS = ("soft", "hard")


def distillation_loss(
    student_logits: Tensor | tuple[Tensor, Tensor],
    teacher_logits: Tensor,
    labels: Tensor,
    kind: str = "soft",
    temperature: float = 3.0,
    weight: float = 0.5,
) -> Tensor:
    """Weigh what the labels say against what the teacher says.

    (1 - weight) * CE(class logits, labels) + weight * term(distillation logits, teacher logits).
    The soft term is `soft_term`; the hard one is the cross-entropy against the class that the
    teacher finds most probable. One tensor of student logits takes both parts.

    Shapes: `student_logits` (B, K), or a pair of them, of the class and of the distillation head;
        `teacher_logits` (B, K), which get no gradient; `labels` (B,), or (B, K) after mixing -> ().
    Raises: `ValueError` when a shape or a number is not as said here.
    Source: Touvron et al. 2021, eq. 2 and 3; Hinton et al. 2015.
    Chapter: 10
    """
    both = isinstance(student_logits, (tuple, list))
    pair = tuple(student_logits) if both else (student_logits, student_logits)
    check_loss(pair, teacher_logits, labels, kind, temperature, weight)
    class_logits, distil_logits = map(at_least_float32, pair)
    if kind == "soft":
        term = soft_term(distil_logits, teacher_logits, temperature)
    else:
        term = F.cross_entropy(distil_logits, teacher_logits.argmax(dim=1))
        term = term.masked_fill(teacher_logits.isnan().any(), math.nan)  # argmax would take one
    return (1 - weight) * F.cross_entropy(class_logits, labels) + weight * term


def soft_term(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """τ² KL(teacher || student) of the softmaxes at temperature τ.

    The square keeps the gradient's size: softening divides it by about τ².
    Shapes: logits (B, K) -> (), summed over classes, averaged over the batch, in nats (natural
        logarithms).
    Raises: `ValueError` when `temperature` is not positive and finite, or the shapes differ.
    Source: Touvron et al. 2021, eq. 2, second part; Hinton et al. 2015, section 2.
    Chapter: 10
    """
    check_loss((student_logits,), teacher_logits, temperature=temperature)
    student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    gap = (teacher - student).masked_fill(teacher == -math.inf, 0.0)  # 0 log 0 is 0
    return (teacher.exp() * gap).sum() / len(gap) * temperature**2


def check_loss(
    student_logits: Sequence[Tensor],
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    kind: str = "soft",
    temperature: float = 3.0,
    weight: float = 0.5,
) -> None:
    """Refuse what `distillation_loss` and `soft_term` cannot mean.

    Raises: `ValueError`, with the argument's name.
    Chapter: 10
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not (isinstance(weight, Real) and 0 <= weight <= 1):
        raise ValueError(f"weight must be in [0, 1], got {weight!r}")
    if not (isinstance(temperature, Real) and 0 < temperature < math.inf):
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    if labels is not None and len(student_logits) != 2:
        raise ValueError(f"student_logits must be one tensor or two, got {len(student_logits)}")
    for logits in student_logits:
        found = [_shape(logits), _shape(teacher_logits)]
        if len(found[0]) != 2 or found[0] != found[1] or 0 in found[0]:
            raise ValueError(
                "student_logits must be (B, K) like teacher_logits, got "
                + " and ".join(map(str, found))
            )
    if labels is None:
        return
    B, K = teacher_logits.shape
    if _shape(labels) not in ((B,), (B, K)):
        raise ValueError(f"labels must be (B,) or (B, K), got {_shape(labels)}")
    if (labels.dtype != torch.int64) if labels.ndim == 1 else not labels.is_floating_point():
        raise ValueError(f"labels must be int64 (B,) or float (B, K), got {labels.dtype}")


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def at_least_float32(logits: Tensor) -> Tensor:
    """Leave logits as they are, but for 16 bits: a loss in these has two or three digits.

    Chapter: 10
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def soft_term_of_deits_code(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0
) -> Tensor:
    """What DeiT's code computes in place of `soft_term`: it also averages over the K classes.

    So it is K times smaller than the paper's equation: a thousand times on ImageNet.
    Shapes: logits (B, K) -> ().
    Raises: `ValueError` as `soft_term` does.
    Source: facebookresearch/deit, `losses.py`: a sum divided by the number of elements.
    Chapter: 10
    """
    return soft_term(student_logits, teacher_logits, temperature) / student_logits.shape[1]


class Teacher(nn.Module):
    """A trained model to learn from: a frozen copy, always in evaluation mode.

    It sees the picture that the student sees, crops, colours and mixing included, but normalised
    with its own `mean` and `std`, and scaled to its own `image_size` where it has one. A picture
    of one channel is shown to a teacher of three as three alike.

    Shapes: called with the student's normalised images (B, C, H, W), and the `mean` and `std` that
        they were normalised with, for pixels in [0, 1] -> logits (B, K), float32. `image_size` in
        pixels, an int or (rows, columns); None: it takes any. `classes` are the names of its K
        classes, where they are known: `train` refuses a teacher of others.
    Raises: `ValueError` when `mean`, `std` or `image_size` make no sense, or the model gives no
        tensor (B, K).
    Source: Touvron et al. 2021, section 4.
    Chapter: 10
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
    ):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        try:
            self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        except (TypeError, ValueError):
            self.mean, self.std = (), ()
        known = self.mean and all(map(math.isfinite, (*self.mean, *self.std)))
        if not known or len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must be a number a channel, std positive, got {mean!r} and {std!r}"
            )
        self.image_size = None if image_size is None else as_pair(image_size, "image_size")
        self.classes = None if classes is None else tuple(classes)
        # A copy: whatever becomes of the model that was given, the teacher stays as it is.
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Any:
        """Stay in evaluation mode: a teacher's batch norm must not learn. Chapter: 10."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        if len(mean) not in (1, len(self.mean)):
            raise ValueError(
                f"images must have {len(self.mean)} channels, as the teacher's, or 1, "
                f"got {len(mean)}"
            )
        scale, shift = [], []
        for i, (own_mean, own_std) in enumerate(zip(self.mean, self.std, strict=True)):
            m, s = mean[i % len(mean)], std[i % len(std)]
            scale.append(s / own_std)
            shift.append((m - own_mean) / own_std)
        if scale != [1.0] * len(scale) or any(shift) or len(mean) != len(self.mean):
            images = images * _filled(scale, images) + _filled(shift, images)
        if self.image_size is not None and images.shape[2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        logits = self.model(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError("model must give one tensor of logits (B, K) in evaluation mode")
        return logits.float()

    def identity(self) -> dict[str, Any]:
        """Say which teacher this is: its class, and a hash of what decides its logits.

        That is how it sees pictures, its weights, and its configuration where vitmini built it:
        heads or strides change the logits, but no shape. Chapter: 10.
        """
        config = getattr(self.model, "config", None)
        known = dataclasses.is_dataclass(config)  # another object may be written as its address
        seen = (self.mean, self.std, self.image_size, config if known else None)
        digest = hashlib.sha256(repr(seen).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {"model": type(self.model).__name__, "sha256": digest.hexdigest()}


def _filled(values: Sequence[float], like: Tensor) -> Tensor:
    """A number a channel, (C, 1, 1), filled in there: copying from the CPU makes a GPU wait."""
    parts = [torch.full((1, 1), v, dtype=like.dtype, device=like.device) for v in values]
    return torch.stack(parts)


# The two heads --------------------------------------------------------------------------------


@torch.no_grad()
def predict_heads(model: Any, data: ImageData, batch_size: int = 1000) -> dict[str, Tensor]:
    """Classify the test images by each head of a distilled model: "class", "distil" and "both".

    "both" averages the two heads' logits, as the model does in evaluation mode.
    Shapes: `model` gives tokens by `forward_features` and has `head` and `head_dist`: a distilled
        `ViT`, a hybrid of one, or timm's -> three times int64 (N,), on the CPU.
    Raises: `ValueError` when the model has one head.
    Source: Touvron et al. 2021, section 5.2, Table 3.
    Chapter: 10
    """
    vit = getattr(model, "vit", model)  # a hybrid's transformer
    if getattr(vit, "head_dist", None) is None:
        raise ValueError("model must be distilled: it has no head_dist")
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    found: dict[str, list[Tensor]] = {"class": [], "distil": [], "both": []}
    for images in data.test_images.split(batch_size):
        tokens = model.forward_features(data.normalize(images.to(device)))
        logits, distil_logits = vit.head(tokens[:, 0]), vit.head_dist(tokens[:, 1])
        for name, some in (("class", logits), ("distil", distil_logits)):
            found[name].append(some.argmax(dim=1).cpu())
        found["both"].append((logits + distil_logits).argmax(dim=1).cpu())
    model.train(was_training)
    return {name: torch.cat(parts) for name, parts in found.items()}


def evaluate_heads(model: Any, data: ImageData) -> dict[str, float]:
    """Measure each head of a distilled model on the test images: "class", "distil" and "both".

    Shapes: accuracies in [0, 1].
    Raises: `ValueError` as `predict_heads` does.
    Source: Touvron et al. 2021, Table 3.
    Chapter: 10
    """
    labels = data.test_labels.cpu()
    predictions = predict_heads(model, data)
    return {name: (p == labels).double().mean().item() for name, p in predictions.items()}


@torch.no_grad()
def token_similarity(model: Any, images: Tensor) -> Tensor:
    """Compare class and distillation token, layer by layer, by their cosine.

    Shapes: `images` normalised (B, C, H, W) -> (L + 1,), means over the images: what the first
        block gets (with positions), then what each block gives.
    Raises: `ValueError` when the model is not a distilled `ViT`.
    Source: Touvron et al. 2021, section 4 (0.06 between the learned tokens, 0.93 in the end).
    Chapter: 10
    """
    for name in ("dist_token", "embed"):  # timm's has the one and not the other
        if not hasattr(model, name):
            raise ValueError(f"model must be a distilled ViT: it has no {name}")
    was_training = model.training
    tokens, similarities = model.eval().embed(images), []
    for block in (nn.Identity(), *model.blocks):
        tokens = block(tokens)
        similarities.append(F.cosine_similarity(tokens[:, 0], tokens[:, 1], dim=1).mean())
    model.train(was_training)
    return torch.stack(similarities)


def disagreement(predictions: Mapping[str, Tensor]) -> Tensor:
    """Count how often each two classifiers decide differently on the same images.

    Shapes: `predictions` maps names to classes (N,); give the labels as one of them, and their row
        holds error rates -> (M, M), float64, shares in [0, 1], in the order of the names.
    Raises: `ValueError` when there is nothing to compare, or something else than (N,) classes.
    Source: Touvron et al. 2021, Table 4.
    Chapter: 10
    """
    if not predictions:
        raise ValueError("predictions must hold at least one classifier's")
    for name, p in predictions.items():
        if not isinstance(p, Tensor):
            raise ValueError(f"predictions must be tensors, got {type(p).__name__} for {name!r}")
    shapes = {name: tuple(p.shape) for name, p in predictions.items()}
    first = next(iter(shapes.values()))
    for name, shape in shapes.items():
        if len(shape) != 1 or shape != first or not shape[0]:
            raise ValueError(
                f"predictions must be classes (N,) of the same images, got {shape} for {name!r}"
            )
    together = torch.stack([p.cpu() for p in predictions.values()])  # (M, N)
    return (together[:, None] != together[None]).double().mean(dim=2)
