"""Plausible wrong answers to assignment 4: each loses its question's points and no other's."""

from wrong_answers import swapped

SOFT = """
def soft_loss_and_gradient(student, teacher, temperature):
    log_q = (student / temperature).log_softmax(dim=1)
    log_p = (teacher / temperature).log_softmax(dim=1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * (log_p - log_q), 0.0)
    loss = temperature**2 * terms.sum(dim=1).mean()
    return loss, temperature * (log_q.exp() - p) / len(student)
"""

POWER = """
def gradient_power(student, teacher, low, high):
    def length(temperature):
        p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
        return ((q - p) / temperature / len(student)).norm().item()

    return math.log(length(high) / length(low)) / math.log(high / low)

def limit_gradient(student, teacher):
    B, K = student.shape
    gap = student - teacher
    return (gap - gap.mean(dim=1, keepdim=True)) / (K * B)
"""

FACTOR = """
def measured_factor(term, batch, classes, temperature):
    factors, dice = [], torch.Generator().manual_seed(0)
    for scales in ((3.0, 0.3), (0.3, 3.0)):
        draw = torch.randn(2, batch, classes, generator=dice, dtype=torch.float64)
        student, teacher = (temperature * a * z for a, z in zip(scales, draw))
        right = vm.soft_term(student, teacher, temperature)
        factors.append(float(term(student, teacher, temperature) / right))
    if abs(factors[0] - factors[1]) > 1e-3 * abs(factors[0]):
        raise ValueError("no multiple of the KL")
    return factors[0]

def effective_weight(weight, factor):
    return factor * weight / (factor * weight + 1 - weight)
"""

TOKEN = """
import dataclasses

def add_distillation_token(vit):
    config = vit.config
    if config.distilled or config.pool != "cls" or config.pos_embed != "learned":
        raise ValueError("vit must have a class token, learned positions, and no second token")
    model = vm.ViT(dataclasses.replace(config, distilled=True))
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    state["dist_token"] = state["cls_token"].clone()
    old = state["pos_embed"]
    state["pos_embed"] = torch.cat([old[:, :1], old[:, :1], old[:, 1:]], dim=1)
    for part in ("weight", "bias"):
        state[f"head_dist.{part}"] = state[f"head.{part}"].clone()
    model.load_state_dict(state)
    return model.train(vit.training)

def two_answers(model, images):
    training = model.training
    model.eval()
    with torch.no_grad():
        tokens = model.forward_features(images)
        own, distil = model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])
    model.train(training)
    return own, distil, (own + distil) / 2
"""

TABLE = """
def disagreement_table(answers):
    together = torch.stack(list(answers.values()))
    return (together[:, None] != together[None]).double().mean(dim=2)

def inheritance(answers, student, twin, teacher, control):
    def differ(a, b):
        return (answers[a] != answers[b]).double()

    h = differ(twin, teacher) - differ(student, teacher)
    h = h - (differ(twin, control) - differ(student, control))
    return h.mean().item(), (h.std() / math.sqrt(len(h))).item()
"""

FROZEN = """
class FrozenTeacher(nn.Module):
    def __init__(self, model, mean, std):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, images, mean, std):
        def channels(values):
            return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)

        pixels = images * channels(std) + channels(mean)
        return self.model((pixels - channels(self.mean)) / channels(self.std))
"""

LOOP = """
def distil(student, teacher, images, labels, augment, epochs, kind="hard", temperature=3.0,
           weight=0.5, learning_rate=2e-3, batch_size=64, seed=0):
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind must be soft or hard, got {kind!r}")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.05)
    student.train()
    teacher.eval()
    history = []
    for _ in range(epochs):
        total = 0.0
        for ids in torch.randperm(len(images), generator=generator).split(batch_size):
            x = augment(images[ids], generator)
            with torch.no_grad():
                taught = teacher(x)
            given = student(x)
            own, distilled = given if isinstance(given, tuple) else (given, given)
            if kind == "hard":
                term = F.cross_entropy(distilled, taught.argmax(dim=1))
            else:
                q = (distilled / temperature).log_softmax(dim=1)
                p = (taught / temperature).log_softmax(dim=1)
                term = temperature**2 * (p.exp() * (p - q)).sum(dim=1).mean()
            loss = (1 - weight) * F.cross_entropy(own, labels[ids]) + weight * term
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(ids)
        history.append(total / len(images))
    student.eval()
    return history
"""

PACK = """
def pack(teacher_logits, k, temperature):
    B, K = teacher_logits.shape
    if not 1 <= k <= K:
        raise ValueError(f"k must be from 1 to {K}, got {k}")
    log_p = (teacher_logits.detach() / temperature).log_softmax(dim=1)
    values, order = log_p.sort(dim=1, descending=True)
    none = torch.full((B,), -math.inf, dtype=log_p.dtype)
    rest = values[:, k:].logsumexp(dim=1) if k < K else none
    return {"log_p": values[:, :k], "index": order[:, :k], "rest": rest}

def packed_loss(student_logits, packed, temperature):
    log_p, index, rest = packed["log_p"], packed["index"], packed["rest"]
    K, k = student_logits.shape[1], log_p.shape[1]
    log_q = (student_logits / temperature).log_softmax(dim=1)
    loss = (log_p.exp() * (log_p - log_q.gather(1, index))).sum(dim=1)
    if k < K:
        others = torch.ones_like(log_q).scatter(1, index, 0.0)
        mean_q = (log_q * others).sum(dim=1) / (K - k)
        loss = loss + rest.exp() * (rest - math.log(K - k) - mean_q)
    return temperature**2 * loss.mean()
"""

FUNCTIONAL = """
def soft_loss_and_gradient(student, teacher, temperature):
    def loss(z):
        q, p = ((logits / temperature).log_softmax(1) for logits in (z, teacher))
        return temperature**2 * torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(1).mean()

    return loss(student), torch.func.grad(loss)(student)
"""

WRONG = {
    "q1": {
        "a mean over classes, as PyTorch's default": swapped(
            SOFT,
            ("terms.sum(dim=1).mean()", "terms.mean()"),
            ("/ len(student)", "/ student.numel()"),
        ),
        "τ² forgotten in the gradient": swapped(
            SOFT, ("temperature * (log_q", "(1 / temperature) * (log_q")
        ),
        "τ² kept whole in the gradient": swapped(
            SOFT, ("temperature * (log_q", "temperature**2 * (log_q")
        ),
        "the gradient of a sum over the batch": swapped(SOFT, (" / len(student)", "")),
        "teacher and student swapped": swapped(SOFT, ("(log_q.exp() - p)", "(p - log_q.exp())")),
        "softmax, then a logarithm": swapped(
            SOFT,
            (
                "log_q = (student / temperature).log_softmax(dim=1)",
                "log_q = (student / temperature).softmax(dim=1).log()",
            ),
        ),
        "0 log 0 is not a number": swapped(
            SOFT, ("torch.where(p > 0, p * (log_p - log_q), 0.0)", "p * (log_p - log_q)")
        ),
        "left to autograd": """
def soft_loss_and_gradient(student, teacher, temperature):
    student = student.clone().requires_grad_()
    q, p = ((z / temperature).log_softmax(1) for z in (student, teacher))
    loss = temperature**2 * torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(1).mean()
    loss.backward()
    return loss.detach(), student.grad
""",
        "autograd switched on again": """
def soft_loss_and_gradient(student, teacher, temperature):
    with torch.enable_grad():
        z = student.clone().requires_grad_()
        q, p = ((logits / temperature).log_softmax(1) for logits in (z, teacher))
        loss = temperature**2 * torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(1).mean()
        loss.backward()
    return loss.detach(), z.grad
""",
        "left to torch.func": FUNCTIONAL,
        "left to torch.func, forwards": swapped(
            FUNCTIONAL,
            ("\ndef soft", "\nfrom torch.func import jacfwd\n\ndef soft"),
            ("torch.func.grad", "jacfwd"),
        ),
        "always in double precision": swapped(
            SOFT, ("(student / temperature)", "(student.double() / temperature)")
        ),
        "always in single precision": swapped(
            SOFT,
            ("(student / temperature)", "(student.float() / temperature)"),
            ("(teacher / temperature)", "(teacher.float() / temperature)"),
        ),
    },
    "q2": {
        "measured with the factor in it": swapped(
            POWER, ("(q - p) / temperature /", "(q - p) * temperature /")
        ),
        "the inner derivative forgotten": swapped(POWER, ("(q - p) / temperature /", "(q - p) /")),
        "the sign": swapped(POWER, ("length(high) / length(low)", "length(low) / length(high)")),
        "a logarithm to the base of two in one place": swapped(
            POWER, ("/ math.log(high / low)", "/ math.log2(high / low)")
        ),
        "the limit without the classes": swapped(POWER, ("/ (K * B)", "/ B")),
        "the limit without the batch": swapped(POWER, ("/ (K * B)", "/ K")),
        "the rows' means left in": swapped(POWER, ("(gap - gap.mean(dim=1, keepdim=True))", "gap")),
        "the limit in single precision": swapped(
            POWER, ("gap = student - teacher", "gap = (student - teacher).float()")
        ),
    },
    "q3": {
        "the ratio the other way round": swapped(
            FACTOR,
            (
                "term(student, teacher, temperature) / right",
                "right / term(student, teacher, temperature)",
            ),
        ),
        "a fixed K": swapped(FACTOR, ("return factors[0]", "return 1 / classes")),
        "the temperature is not passed on": swapped(
            FACTOR, ("term(student, teacher, temperature)", "term(student, teacher, 3.0)")
        ),
        "one draw tells nothing about the next": swapped(
            FACTOR,
            ("for scales in ((3.0, 0.3), (0.3, 3.0))", "for scales in ((3.0, 0.3),)"),
            ("factors[1]", "factors[-1]"),
        ),
        "two draws of one kind": swapped(
            FACTOR,
            ("((3.0, 0.3), (0.3, 3.0))", "((1.0, 1.0), (1.0, 1.0))"),
            ("temperature * a * z", "a * z"),
        ),
        "a swapped pair is taken as it comes": swapped(FACTOR, ("> 1e-3 *", "> 1e3 *")),
        "what the code's weight should be": swapped(
            FACTOR,
            (
                "factor * weight / (factor * weight + 1 - weight)",
                "weight / (weight + factor * (1 - weight))",
            ),
        ),
        "the product is no weight yet": swapped(
            FACTOR, ("factor * weight / (factor * weight + 1 - weight)", "factor * weight")
        ),
    },
    "q4": {
        "the new position at the end": swapped(
            TOKEN, ("[old[:, :1], old[:, :1], old[:, 1:]]", "[old, old[:, :1]]")
        ),
        "the new position from the first patch": swapped(
            TOKEN, ("[old[:, :1], old[:, :1], old[:, 1:]]", "[old[:, :1], old[:, 1:2], old[:, 1:]]")
        ),
        "the new head is left as drawn": swapped(
            TOKEN, ('state[f"head.{part}"].clone()', 'model.state_dict()[f"head_dist.{part}"]')
        ),
        "both heads read the class token": swapped(
            TOKEN, ("model.head_dist(tokens[:, 1])", "model.head_dist(tokens[:, 0])")
        ),
        "evaluation mode forgotten": swapped(TOKEN, ("    model.eval()\n", "")),
        "answers with gradients": swapped(
            TOKEN, ("    with torch.no_grad():\n        tokens", "    if True:\n        tokens")
        ),
        "left in evaluation mode": swapped(TOKEN, ("    model.train(training)\n", "")),
        "only its own flag is put back": swapped(
            TOKEN, ("    model.train(training)\n", "    model.training = training\n")
        ),
        "an average of softmaxes": swapped(
            TOKEN, ("(own + distil) / 2", "(own.softmax(1) + distil.softmax(1)) / 2")
        ),
        "no errors": swapped(
            TOKEN,
            ('config.distilled or config.pool != "cls" or config.pos_embed != "learned"', "False"),
        ),
        "shared memory": swapped(
            TOKEN,
            (
                "    model.load_state_dict(state)\n",
                "    model.load_state_dict(state)\n    model.blocks = vit.blocks\n",
            ),
        ),
    },
    "q5": {
        "agreement in the place of disagreement": swapped(
            TABLE, ("together[:, None] !=", "together[:, None] ==")
        ),
        "float32": swapped(TABLE, (".double().mean(dim=2)", ".float().mean(dim=2)")),
        "a tensor and a float": swapped(TABLE, ("return h.mean().item()", "return h.mean()")),
        "counts in the place of shares": swapped(
            TABLE, (".double().mean(dim=2)", ".double().sum(dim=2)")
        ),
        "without the control": swapped(
            TABLE, ("    h = h - (differ(twin, control) - differ(student, control))\n", "")
        ),
        "student and twin swapped": swapped(
            TABLE, ("return h.mean().item()", "return -h.mean().item()")
        ),
        "errors added as if the answers were independent": swapped(
            TABLE,
            (
                "(h.std() / math.sqrt(len(h))).item()",
                "math.sqrt(sum(differ(a, b).var().item() for a in (student, twin)"
                " for b in (teacher, control)) / len(h))",
            ),
        ),
        "the deviation divides by N": swapped(TABLE, ("h.std()", "h.std(unbiased=False)")),
        "the deviation, not the error of the mean": swapped(TABLE, (" / math.sqrt(len(h))", "")),
    },
    "q6": {
        "the teacher is put into training mode with all else": swapped(
            FROZEN, ("super().train(False)", "super().train(mode)")
        ),
        "no copy": swapped(FROZEN, ("copy.deepcopy(model)", "model")),
        "its weights still ask for gradients": swapped(FROZEN, (".requires_grad_(False)", "")),
        "gradients reach the pictures": swapped(FROZEN, ("    @torch.no_grad()\n", "")),
        "the units swapped": swapped(
            FROZEN,
            (
                "images * channels(std) + channels(mean)",
                "images * channels(self.std) + channels(self.mean)",
            ),
            (
                "(pixels - channels(self.mean)) / channels(self.std)",
                "(pixels - channels(mean)) / channels(std)",
            ),
        ),
        "the student's pictures are changed in place": swapped(
            FROZEN,
            (
                "pixels = images * channels(std) + channels(mean)",
                "pixels = images.mul_(channels(std)).add_(channels(mean))",
            ),
        ),
        "the student's units kept": swapped(
            FROZEN, ("(pixels - channels(self.mean)) / channels(self.std)", "images")
        ),
        "the first channel's numbers for all": swapped(
            FROZEN, ("torch.tensor(values,", "torch.tensor(values[:1],")
        ),
    },
    "q7": {
        "the teacher sees the originals": swapped(
            LOOP, ("taught = teacher(x)", "taught = teacher(images[ids])")
        ),
        "another augmentation for the teacher": swapped(
            LOOP, ("taught = teacher(x)", "taught = teacher(augment(images[ids], generator))")
        ),
        "a teacher without weight is not asked": swapped(
            LOOP,
            ("taught = teacher(x)", "taught = teacher(x) if weight else torch.zeros(len(x), 4)"),
        ),
        "the teacher in training mode": swapped(
            LOOP, ("    teacher.eval()\n", "    teacher.train()\n")
        ),
        "both parts from the class head": swapped(
            LOOP,
            (
                "own, distilled = given if isinstance(given, tuple) else (given, given)",
                "own = distilled = given[0] if isinstance(given, tuple) else given",
            ),
        ),
        "the heads' masters swapped": swapped(
            LOOP, ("own, distilled = given if", "distilled, own = given if")
        ),
        "a mean over the classes": swapped(LOOP, (".sum(dim=1).mean()", ".mean()")),
        "τ² forgotten": swapped(LOOP, ("temperature**2 * (p.exp()", "(p.exp()")),
        "the weights swapped": swapped(
            LOOP,
            (
                "(1 - weight) * F.cross_entropy(own, labels[ids]) + weight * term",
                "weight * F.cross_entropy(own, labels[ids]) + (1 - weight) * term",
            ),
        ),
        "a mean of batches": swapped(
            LOOP,
            ("total += loss.item() * len(ids)", "total += loss.item()"),
            ("total / len(images)", "total / math.ceil(len(images) / batch_size)"),
        ),
        "gradients add up": swapped(LOOP, ("            optimizer.zero_grad()\n", "")),
        "the student stays in training mode": swapped(LOOP, ("    student.eval()\n", "")),
        "any other kind is soft": swapped(LOOP, ('if kind not in ("soft", "hard")', "if False")),
    },
    "stretch": {
        "the rest as one minus the sum": swapped(
            PACK,
            (
                "values[:, k:].logsumexp(dim=1) if k < K else none",
                "(1 - values[:, :k].exp().sum(1)).log()",
            ),
        ),
        "the rest dropped from the loss": swapped(PACK, ("if k < K:\n", "if False:\n")),
        "the rest is one class": swapped(
            PACK, ("rest - math.log(K - k) - mean_q", "rest - mean_q")
        ),
        "the chances kept are made to sum to 1": swapped(
            PACK,
            ('"log_p": values[:, :k]', '"log_p": values[:, :k].log_softmax(dim=1)'),
        ),
        "k is not looked at": swapped(PACK, ("not 1 <= k <= K", "False")),
    },
}
