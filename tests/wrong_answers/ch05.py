"""Chapter 5."""

import math

import torch
from torch import nn


def per_part(weight, draw, dim=0):
    parts = [draw(torch.empty_like(part)) for part in weight.chunk(3, dim=dim)]
    return torch.cat(parts, dim=dim)


def fused(weight):
    return nn.init.xavier_uniform_(torch.empty_like(weight))


def cut_columns(weight):
    return per_part(weight, nn.init.xavier_uniform_, dim=1)


def values_forgotten(weight):
    result = weight.clone()
    for part in result.chunk(3)[:2]:
        nn.init.xavier_uniform_(part)
    return result


def drawn_once(weight):
    return nn.init.xavier_uniform_(torch.empty_like(weight.chunk(3)[0])).repeat(3, 1)


def normal(weight):
    return per_part(weight, nn.init.xavier_normal_)


def bound_as_deviation(weight):
    return per_part(weight, lambda part: part.normal_(std=(3 / weight.shape[1]) ** 0.5))


def deviation_as_bound(weight):
    a = weight.shape[1] ** -0.5
    return per_part(weight, lambda part: part.uniform_(-a, a))


def he(weight):
    return per_part(weight, lambda part: nn.init.kaiming_uniform_(part, nonlinearity="relu"))


def stacked(weight):
    return torch.stack([nn.init.xavier_uniform_(torch.empty_like(p)) for p in weight.chunk(3)])


def divide(model, by, names=("attn.proj.weight", "mlp.fc2.weight")):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks.") and name.endswith(names):
                parameter.div_(by(len(model.blocks)))
    return model


def root(depth):
    return (2 * depth) ** 0.5


def queries_too(model):
    return divide(model, root, ("attn.qkv.weight", "attn.proj.weight", "mlp.fc2.weight"))


def biases_too(model):
    return divide(model, root, ("attn.proj.weight", "mlp.fc2.weight", "mlp.fc2.bias"))


def first_layer_of_the_mlp(model):
    return divide(model, root, ("attn.proj.weight", "mlp.fc1.weight"))


def attention_only(model):
    return divide(model, root, "attn.proj.weight")


def by_the_root_of_l(model):
    return divide(model, lambda depth: depth**0.5)


def without_root(model):
    return divide(model, lambda depth: 2 * depth)


def multiplied(model):
    return divide(model, lambda depth: 1 / root(depth))


def by_the_place(model):
    with torch.no_grad():
        for place, block in enumerate(model.blocks, 1):
            block.attn.proj.weight.div_(root(place))
            block.mlp.fc2.weight.div_(root(place))
    return model


def not_returned(model):
    divide(model, root)


def drawn_afresh(model):
    for block in model.blocks:
        nn.init.normal_(block.attn.proj.weight, std=0.02 / root(len(model.blocks)))
    return model


WRONG = {
    "leaky_factor": [
        (lambda slope: (2 / (1 + slope**2)) ** 0.5, "without the root"),
        (lambda slope: (1 + slope**2) / 2, "c is one over it"),
        (lambda slope: 2.0, "He's factor for slope 0"),
        (lambda slope: 2 / (1 + slope), "enters as its square"),
        (lambda slope: 1 / (1 + slope**2), "the 2 is missing"),
        (lambda slope: 2 / (1 + abs(slope) ** 3), "half of the mean square passes"),
    ],
    "xavier_qkv": [
        (fused, "Xavier for the fused shape"),
        (cut_columns, "chunk the rows"),
        (values_forgotten, "the values are as they were"),
        (drawn_once, "are the same numbers"),
        (normal, "uniform, not normal"),
        (bound_as_deviation, "it is not their deviation"),
        (deviation_as_bound, "as the bound"),
        (he, "He's 2 / fan-in"),
        (stacked, "torch.stack adds an axis"),
    ],
    "shared_scale": [
        (lambda depth, growth: growth ** (1 / depth) - 1, "take the root"),
        (lambda depth, growth: ((growth - 1) / depth) ** 0.5, "they do not add"),
        (lambda depth, growth: (math.log(growth) / depth) ** 0.5, "which is the bound"),
        (lambda depth, growth: growth ** (1 / (2 * depth)) - 1, "the cross term vanishes"),
        (lambda depth, growth: growth ** (1 / depth), "the factor of a layer"),
        (lambda depth, growth: growth ** (0.5 / depth), "take 1 away before the root"),
        (lambda depth, growth: depth**-0.5, "should be the growth"),
    ],
    "quiet_writers": [
        (queries_too, "attn.qkv.weight was changed"),
        (biases_too, "a bias that should stay"),
        (first_layer_of_the_mlp, "mlp.fc1.weight was changed"),
        (attention_only, "it was not changed"),
        (by_the_root_of_l, "each block writes twice"),
        (without_root, "variances add up"),
        (multiplied, "it was multiplied"),
        (drawn_afresh, "it is something else"),
        (by_the_place, "the place of its block"),
        (not_returned, "not_returned(ViT) returned None"),
        (lambda model: model.state_dict(), "return the model"),
    ],
}
