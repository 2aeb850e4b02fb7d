"""Chapter 10."""

import torch
import torch.nn.functional as F


def kl_of(reduction="batchmean", power=2, swap=False, dim=1, soften=(True, True), stop=True):
    def soft_loss(student, teacher, temperature):
        if swap:
            student, teacher = teacher, student
        by_student, by_teacher = (temperature if s else 1 for s in soften)
        teacher = teacher.detach() if stop else teacher
        q = (student / by_student).log_softmax(dim)
        p = (teacher / by_teacher).log_softmax(dim)
        terms = F.kl_div(q, p, reduction="none", log_target=True) * temperature**power
        over = {"batchmean": len(student), "mean": student.numel(), "sum": 1}[reduction]
        return terms.sum() / over

    return soft_loss


def softmax_then_log(student, teacher, temperature):
    q, p = ((z / temperature).softmax(1) for z in (student, teacher.detach()))
    return (p * (p / q).log()).sum(1).mean() * temperature**2


def cross_entropy_alone(student, teacher, temperature):
    p = (teacher.detach() / temperature).softmax(1)
    return F.cross_entropy(student / temperature, p) * temperature**2


def sign_turned(student, teacher, temperature):
    return -kl_of()(student, teacher, temperature)


def never_softened(student, teacher, temperature):
    return kl_of()(student, teacher, 1.0)


def one_an_image(student, teacher, temperature):
    q, p = ((z / temperature).log_softmax(1) for z in (student, teacher.detach()))
    return (p.exp() * (p - q)).sum(1) * temperature**2


def a_number(student, teacher, temperature):
    return torch.tensor(kl_of()(student, teacher, temperature).item())


def halves(first, second, decide=lambda z: z.argmax(1), scale=0.5):
    """Cross-entropies of the heads `first` (labels) and `second` (teacher): 0, 1 or "mean"."""

    def hard_loss(student, teacher, labels):
        pair = student if isinstance(student, tuple) else (student, student)
        pick = {0: pair[0], 1: pair[1], "mean": (pair[0] + pair[1]) / 2}
        taught = F.cross_entropy(pick[second], decide(teacher))
        return (F.cross_entropy(pick[first], labels) + taught) * scale

    return hard_loss


def swapped(student, teacher, labels):
    pair = student if isinstance(student, tuple) else (student, student)
    return (F.cross_entropy(pair[1], labels) + F.cross_entropy(pair[0], teacher.argmax(1))) / 2


def only_pairs(student, teacher, labels):
    own, distil = student
    return (F.cross_entropy(own, labels) + F.cross_entropy(distil, teacher.argmax(1))) / 2


def labels_alone(student, teacher, labels):
    own = student[0] if isinstance(student, tuple) else student
    return F.cross_entropy(own, labels)


def whole_numbers_alone(student, teacher, labels):
    own, distil = student if isinstance(student, tuple) else (student, student)
    rows = torch.arange(len(labels))
    first = -own.log_softmax(1)[rows, labels].mean()
    return (first + F.cross_entropy(distil, teacher.argmax(1))) / 2


def share(of, where="same"):
    def inherited_mistakes(student, teacher, labels):
        wrong, missed, same = student != labels, teacher != labels, student == teacher
        found = {"same": wrong & same, "missed": wrong & missed, "differ": wrong & ~same}[where]
        over = {"all": len(labels), "teacher": missed.sum(), "own": wrong.sum(), "same": same.sum()}
        return float(found.sum() / max(int(over[of]), 1))

    return inherited_mistakes


def agreement(student, teacher, labels):
    return (student == teacher).double().mean().item()


def a_count(student, teacher, labels):
    return int(((student != labels) & (student == teacher)).sum())


def in_percent(student, teacher, labels):
    return 100 * share("own")(student, teacher, labels)


def no_mistakes_forgotten(student, teacher, labels):
    return (student == teacher)[student != labels].double().mean().item()


def all_of_none(student, teacher, labels):
    if (student == labels).all():
        return 1.0
    return no_mistakes_forgotten(student, teacher, labels)


WRONG = {
    "soft_loss": [
        (kl_of("mean"), "not divided by the classes"),
        (kl_of("sum"), "not its sum"),
        (kl_of(power=1), "times τ², not τ"),
        (kl_of(power=0), "τ² is missing"),
        (kl_of(swap=True, stop=False), "the two are swapped"),
        (kl_of(dim=0), "over the classes, dim=1"),
        (kl_of(soften=(True, False)), "the teacher is not softened"),
        (kl_of(soften=(False, True)), "the student is not softened"),
        (kl_of(stop=False), "the teacher gets a gradient"),
        (softmax_then_log, "log_softmax never does"),
        (cross_entropy_alone, "its own entropy is missing"),
        (sign_turned, "never negative"),
        (never_softened, "the temperature is not used"),
        (one_an_image, "mean over the batch"),
        (a_number, "the student gets no gradient"),
    ],
    "hard_loss": [
        (halves(0, 0), "here it came from the class head"),
        (halves(1, 1), "here it came from the other one"),
        (swapped, "the heads are swapped"),
        (halves("mean", "mean"), "mixed first"),
        (halves(0, 1, lambda z: z.softmax(1)), "not its decision"),
        (halves(0, 1, scale=1.0), "each part counts half"),
        (labels_alone, "the teacher's part is missing"),
        (only_pairs, "a pair of logits, one without a tensor"),
        (whole_numbers_alone, "stopped with"),
    ],
    "inherited_mistakes": [
        (share("all"), "the share of all pictures"),
        (share("teacher"), "the share of the teacher's mistakes"),
        (share("own", "missed"), "the answers must be the same"),
        (share("own", "differ"), "on which the two differ"),
        (share("same"), "the share of the agreements"),
        (agreement, "how often the two agree at all"),
        (a_count, "not their share"),
        (in_percent, "not percent"),
        (no_mistakes_forgotten, "a student without mistakes"),
        (all_of_none, "a student without mistakes"),
    ],
    "weight_for_the_code": [
        (lambda weight, classes: weight * classes, "a weight above 1"),
        (lambda weight, classes: weight / (weight + classes * (1 - weight)), "other way round"),
        (lambda weight, classes: min(classes * weight / (1 - weight + 1e-12), 1e12), "the ratio"),
        (lambda weight, classes: (1 - weight) / (classes * weight + 1 - weight), "the labels'"),
        (lambda weight, classes: weight, "K times too quiet"),
        (lambda weight, classes: classes / (classes + 1), "for λ = 0.5 alone"),
        (lambda weight, classes: 1 / (1 + (1 - weight) / (classes * weight)), "stopped with"),
    ],
}
