"""Chapter 7."""

import math

import torch


def schedule(first=1, last=0, straight=True, use_peak=True, hold=True, cool=True):
    def trapezoid(step, total, warmup, cooldown, peak):
        peak = peak if use_peak else 1.0
        if step < warmup:
            return peak * (step + first) / warmup
        if not straight:
            return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        if not hold:
            return peak * (total - step) / (total - warmup)
        if cool and total - step <= cooldown:
            return peak * (total - last - step) / cooldown
        return peak

    return trapezoid


def backwards(step, total, warmup, cooldown, peak):
    if total - step <= warmup:
        return peak * (total - step) / warmup
    return peak if step >= cooldown else peak * (step + 1) / cooldown


def rates(layer_of, power=lambda layer, last: last - layer):
    def layer_rates(model, decay):
        last = len(model.blocks) + 1
        names = [name for name, _ in model.named_parameters()]
        return {name: decay ** power(layer_of(name, last), last) for name in names}

    return layer_rates


def right(name, last):
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return last if name.startswith(("norm.", "head")) else 0


def one_digit(name, last):
    return int(name[7]) + 1 if name.startswith("blocks.") else right(name, last)


def embedding_with_the_head(name, last):
    return right(name, last) if name.startswith("blocks.") else last


def head_with_the_last_block(name, last):
    return last - 1 if name.startswith(("norm.", "head")) else right(name, last)


def blocks_from_0(name, last):
    return right(name, last) - name.startswith("blocks.")


def every_norm_with_the_head(name, last):
    return last if "norm" in name else right(name, last)


def only_the_blocks(model, decay):
    every = rates(right)(model, decay)
    return {name: rate for name, rate in every.items() if name.startswith("blocks.")}


def one_a_block(model, decay):
    return {f"blocks.{i}": decay**i for i in range(len(model.blocks))}


def each_alone(gradients, max_norm):
    return [g * min(1.0, max_norm / g.norm().item()) for g in gradients]


def always(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    return [g * max_norm / norm for g in gradients]


def each_number(gradients, max_norm):
    return [g.clamp(-max_norm, max_norm) for g in gradients]


def sum_of_norms(gradients, max_norm):
    norm = sum(g.norm().item() for g in gradients)
    return [g * min(1.0, max_norm / norm) for g in gradients]


def the_largest(gradients, max_norm):
    norm = max(g.norm().item() for g in gradients)
    return [g * min(1.0, max_norm / norm) for g in gradients]


def untouched(gradients, max_norm):
    return [g.clone() for g in gradients]


def in_place(gradients, max_norm):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    for g in gradients:
        g.mul_(min(1.0, max_norm / norm.item()))
    return gradients


def one_tensor(gradients, max_norm):
    return torch.cat([g.flatten() for g in gradients])


def mixing(
    partner=lambda x: x.flip(0), target_partner=None, swap=False, half=False, axes=False, own=False
):
    def cutmix(images, targets, box):
        top, left, bottom, right = box
        H, W = images.shape[2:]
        area = (bottom - top) * (right - left) / (H * W)
        if axes:
            top, left, bottom, right = left, top, right, bottom
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partner(images)[:, :, top:bottom, left:right]
        if swap:
            mixed = images.flip(0)
            mixed[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right]
        share = 0.5 if half else area if own else 1 - area
        others = (target_partner or (lambda x: x.flip(0)))(targets)
        return mixed, targets * share + others * (1 - share)

    return cutmix


def labels_forgotten(images, targets, box):
    return mixing()(images, targets, box)[0], targets


def only_images(images, targets, box):
    return mixing()(images, targets, box)[0]


def share_of(factor, turn=False):
    def utilisation(flops, images_per_second, peak):
        share = factor * flops * images_per_second / peak
        return 1 / share if turn else share

    return utilisation


WRONG = {
    "trapezoid": [
        (schedule(first=0), "the first step should already have a rate above 0"),
        (schedule(last=1), "the fall should end above 0"),
        (schedule(straight=False), "half a cosine"),
        (schedule(use_peak=False), "is peak used"),
        (schedule(hold=False), "stay at the peak"),
        (schedule(cool=False), "the cooldown is missing"),
        (backwards, "expected"),
    ],
    "layer_rates": [
        (rates(right, lambda layer, last: layer), "the powers count from the end"),
        (rates(one_digit), "block 10 is not block 1"),
        (rates(embedding_with_the_head), "patches, tokens and positions are layer 0, the farthest"),
        (rates(head_with_the_last_block), "a layer of their own"),
        (rates(blocks_from_0), "the first block is layer 1"),
        (rates(right, lambda layer, last: 0), "all of them have the rate of the head"),
        (rates(every_norm_with_the_head), "only the last norm"),
        (only_the_blocks, "is missing"),
        (one_a_block, "is missing"),
    ],
    "clip_gradients": [
        (each_alone, "by its own norm"),
        (always, "not made longer"),
        (each_number, "one factor for all"),
        (sum_of_norms, "by their squares"),
        (the_largest, "not the largest"),
        (untouched, "nothing was cut"),
        (in_place, "changed in place"),
        (one_tensor, "expected a list of 3"),
    ],
    "cutmix": [
        (mixing(partner=lambda x: x.roll(1, 0)), "the partner of image i"),
        (mixing(partner=lambda x: x.flip(-1)), "mirrors each image"),
        (mixing(partner=lambda x: x), "the images are as they were"),
        (mixing(swap=True), "the inside of the box"),
        (mixing(axes=True), "rows come first"),
        (mixing(own=True), "what was not pasted"),
        (mixing(half=True), "not one half"),
        (mixing(target_partner=lambda x: x.roll(1, 0)), "the same partners"),
        (labels_forgotten, "the targets are as they were"),
        (only_images, "expected a pair"),
    ],
    "utilisation": [
        (share_of(1), "the forward pass alone"),
        (share_of(2), "not as much as it"),
        (share_of(6), "two FLOPs already"),
        (share_of(1.5), "do not halve"),
        (share_of(300), "not percent"),
        (share_of(3, turn=True), "what is used over what there is"),
    ],
}
