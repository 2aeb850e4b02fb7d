"""Chapter 0."""

import math

import torch


def count_instead_of_share(logits, labels):
    return (logits.argmax(dim=1) == labels).sum()


def percent(logits, labels):
    return 100 * (logits.argmax(dim=1) == labels).float().mean()


def over_the_batch(logits, labels):
    return (logits.argmax(dim=0)[: len(labels)] == labels[: logits.shape[1]]).float().mean()


def error_rate(logits, labels):
    return (logits.argmax(dim=1) != labels).float().mean()


def mean_of_booleans(logits, labels):
    return (logits.argmax(dim=1) == labels).mean()


def divides_by_four(logits, labels):
    return (logits.argmax(dim=1) == labels).sum() / 4


def forgets_return(logits, labels):
    (logits.argmax(dim=1) == labels).float().mean()


def swapped(labels, predictions, num_classes):
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for i, j in zip(predictions, labels, strict=True):
        matrix[i, j] += 1
    return matrix


def adds_each_pair_once(labels, predictions, num_classes):
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.long)
    matrix[labels, predictions] += 1
    return matrix


def only_the_classes_seen(labels, predictions, num_classes):
    return swapped(labels, predictions, int(labels.max()) + 1).T


def bincount_without_minlength(labels, predictions, num_classes):
    counts = torch.bincount(labels * num_classes + predictions)
    return counts.view(num_classes, num_classes)


def four_classes_always(labels, predictions, num_classes):
    return swapped(labels, predictions, 4).T


def shares_of_rows(labels, predictions, num_classes):
    matrix = swapped(labels, predictions, num_classes).T.float()
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)


WRONG = {
    "accuracy": [
        (count_instead_of_share, "divide it by the number of images"),
        (percent, "in percent"),
        (mean_of_booleans, "needs .float()"),
        (error_rate, "share of wrong answers"),
        (over_the_batch, "dimension 1"),
        (divides_by_four, "30 images of 7 classes"),
        (forgets_return, "return statement missing"),
    ],
    "chance_loss": [
        (lambda k: -math.log(k), "sign is missing"),
        (lambda k: math.log2(k), "in bits"),
        (lambda k: math.log10(k), "base 10"),
        (lambda k: 1 / k, "that is the probability"),
        (lambda k: 2.302585, "use num_classes"),
    ],
    "confusion_matrix": [
        (swapped, "rows and columns are swapped"),
        (adds_each_pair_once, "adds only one of them"),
        (only_the_classes_seen, "count all num_classes"),
        (bincount_without_minlength, "minlength"),
        (four_classes_always, "follows num_classes"),
        (shares_of_rows, "do not divide"),
    ],
}
