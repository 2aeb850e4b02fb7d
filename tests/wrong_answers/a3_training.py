"""Plausible wrong answers to assignment 3: each loses its question's points and no other's."""

from wrong_answers import swapped

RATE = """
def rate_at(step, total, warmup, peak, floor=0.0):
    if not 0 <= step < total or not 0 <= warmup <= total:
        raise ValueError("step and warmup must lie in the run")
    if step < warmup:
        return peak * (step + 1) / warmup
    top = max(warmup - 1, 0)
    progress = (step - top) / max(total - 1 - top, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
"""

GROUPS = """
def decay_groups(model, weight_decay):
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weights = {id(layer.weight) for layer in model.modules() if isinstance(layer, kinds)}
    decay, rest = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decay if id(parameter) in weights else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0}]

def decay_factor(rates, weight_decay):
    return math.prod(1 - rate * weight_decay for rate in rates)
"""

BY_NAME = """
def decay_groups(model, weight_decay):
    tables = {"cls_token", "dist_token", "pos_embed", "rel_pos"}
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim > 1 and not tables & set(name.split("."))
            (decay if matrix else rest).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay},
            {"params": rest, "weight_decay": 0.0}]
""" + GROUPS[GROUPS.index("def decay_factor") :]

MIX = """
def mix(images, targets, partner, share, centre=None):
    if centre is None:
        mixed = share * images + (1 - share) * images[partner]
    else:
        H, W = images.shape[2:]
        side = math.sqrt(1 - share)
        (row, column), half_h, half_w = centre, int(H * side) // 2, int(W * side) // 2
        top, bottom = max(row - half_h, 0), min(row + half_h, H)
        left, right = max(column - half_w, 0), min(column + half_w, W)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner][:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (H * W)
    return mixed, share * targets + (1 - share) * targets[partner], share

def soft_cross_entropy(logits, targets):
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
"""

STEP = """
def accumulated_step(model, optimizer, images, targets, part, max_norm):
    optimizer.zero_grad()
    total = 0.0
    for x, y in zip(images.split(part), targets.split(part)):
        loss = F.cross_entropy(model(x), y) * (len(x) / len(images))
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return total

@torch.no_grad()
def update_average(average, model, beta, step):
    beta = min(beta, step / (step + 1))
    own, new = average.state_dict(), model.state_dict()
    for name, value in own.items():
        if value.is_floating_point():
            value.mul_(beta).add_(new[name], alpha=1 - beta)
        else:
            value.copy_(new[name])
"""

RESUME = """
def save_run(run, path):
    state = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.state_dict(),
        "order": run.generator.get_state(),
        "dropout": torch.get_rng_state(),
        "step": run.step,
        "records": run.records,
    }
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)

def load_run(run, path):
    state = torch.load(path, weights_only=True)
    for name in ("model", "optimizer", "average"):
        getattr(run, name).load_state_dict(state[name])
    run.generator.set_state(state["order"])
    torch.set_rng_state(state["dropout"])
    run.step, run.records = state["step"], state["records"]
"""

ABC = """
abc = {
    "A": ("labels shuffled", lambda log: (
        log["val_loss"][-1] > math.log(10)
        and log["train_acc"][-1] > log["val_acc"][-1] + 0.1)),
    "B": ("evaluated in training mode", lambda log: log["val_acc"] != log["val_again"]),
    "C": ("learning rate too high", lambda log: max(log["lr"]) > 0.03),
}
"""

DEF = """
def_runs = {
    "D": ("healthy", lambda log: (
        log["val_acc"][-1] > 0.8 and log["val_acc"] == log["val_again"]
        and abs(log["val_acc"][-1] - log["test"]) < 0.05
        and log["train_acc"][-1] > log["val_acc"][-1] + 0.04)),
    "E": ("post-norm without warm-up", lambda log: (
        log["lr"][0] > 0.0025 and max(log["lr"]) < 0.01)),
    "F": ("validation images in the training set", lambda log: (
        log["val_acc"][-1] > log["test"] + 0.04
        and abs(log["val_acc"][-1] - log["train_acc"][-1]) < 0.03)),
}
"""

DIAGNOSE = """
def diagnose(log):
    if log["val_acc"] != log["val_again"]:
        return "evaluated in training mode"
    if max(log["lr"]) > 0.01:
        return "learning rate too high"
    if log["lr"][0] > 0.8 * max(log["lr"]):
        return "post-norm without warm-up"
    if log["val_loss"][-1] > math.log(10):
        return "labels shuffled"
    if log["val_acc"][-1] > log["test"] + 0.04:
        return "validation images in the training set"
    return "healthy"
"""

WRONG = {
    "q1": {
        "the first step has no rate": swapped(
            RATE, ("peak * (step + 1) / warmup", "peak * step / warmup")
        ),
        "the chapter's cosine, which ends a step late": swapped(
            RATE,
            ("top = max(warmup - 1, 0)", "top = warmup"),
            ("total - 1 - top", "total - top"),
        ),
        "the fall begins a step late": swapped(RATE, ("top = max(warmup - 1, 0)", "top = warmup")),
        "the floor is added to the peak": swapped(
            RATE, ("floor + (peak - floor) *", "floor + peak *")
        ),
        "a division by zero in a run of one step": swapped(
            RATE, ("max(total - 1 - top, 1)", "(total - 1 - top)")
        ),
        "no errors": swapped(
            RATE,
            ("not 0 <= step < total or not 0 <= warmup <= total", "False"),
        ),
    },
    "q2": {
        "every parameter with two axes decays": swapped(
            GROUPS, ("id(parameter) in weights", "parameter.ndim > 1")
        ),
        "the chapter's rule, by axes and names": BY_NAME,
        "the chapter's rule, and no norms": swapped(
            BY_NAME,
            (
                "    decay, rest = [], []\n",
                "    norms = {id(m.weight) for m in model.modules() if type(m) is nn.LayerNorm}\n"
                "    decay, rest = [], []\n",
            ),
            (
                "matrix = parameter.ndim > 1",
                "matrix = parameter.ndim > 1 and id(parameter) not in norms",
            ),
        ),
        "layers by their kind, and then by name all the same": swapped(
            GROUPS,
            ("in model.parameters()", "in model.named_parameters()"),
            ("for parameter", "for name, parameter"),
            ("id(parameter) in weights", 'id(parameter) in weights and "pos_embed" not in name'),
        ),
        "linear layers only, kernels forgotten": swapped(GROUPS, (", nn.Conv1d, nn.Conv2d", ",")),
        "biases of these layers, too": swapped(
            GROUPS,
            (
                "id(layer.weight) for layer in model.modules() if isinstance(layer, kinds)",
                "id(p) for layer in model.modules() if isinstance(layer, kinds) "
                "for p in layer.parameters()",
            ),
        ),
        "a shared matrix once for each layer": swapped(
            GROUPS,
            (
                "in model.parameters():",
                "in (p for m in model.modules() for p in m.parameters(recurse=False)):",
            ),
        ),
        "frozen parameters stay in": swapped(GROUPS, ("parameter.requires_grad", "True")),
        "rates add up before they act": swapped(
            GROUPS,
            (
                "math.prod(1 - rate * weight_decay for rate in rates)",
                "1 - sum(rates) * weight_decay",
            ),
        ),
    },
    "q3": {
        "the drawn share in the targets": swapped(
            MIX,
            ("        share = 1 - (bottom - top) * (right - left) / (H * W)\n", ""),
        ),
        "partner and own share changed over": swapped(
            MIX,
            (
                "mixed, share * targets + (1 - share) * targets[partner]",
                "mixed, (1 - share) * targets + share * targets[partner]",
            ),
        ),
        "the side is the share, without a root": swapped(
            MIX, ("math.sqrt(1 - share)", "1 - share")
        ),
        "a rectangle of odd height keeps its last row": swapped(
            MIX, ("min(row + half_h, H)", "min(max(row - half_h, 0) + int(H * side), H)")
        ),
        "the images are changed in place": swapped(MIX, ("images.clone()", "images")),
        "the partner is the neighbour in a turned batch": swapped(
            MIX, ("images[partner]", "images.flip(0)")
        ),
        "rows and columns changed over": swapped(
            MIX, ("(row, column), half_h", "(column, row), half_h")
        ),
        "a mean over classes as well": swapped(MIX, (".sum(dim=1).mean()", ".mean()")),
        "softmax, then a logarithm": swapped(
            MIX, ("logits.log_softmax(dim=1)", "logits.softmax(dim=1).log()")
        ),
    },
    "q4": {
        "the mean of the parts' means": swapped(
            STEP, ("len(x) / len(images)", "1 / len(images.split(part))")
        ),
        "every part counts as a full one": swapped(
            STEP, ("len(x) / len(images)", "part / len(images)")
        ),
        "clipped after every part": swapped(
            STEP,
            (
                "        total += loss.item()\n",
                "        total += loss.item()\n"
                "        nn.utils.clip_grad_norm_(model.parameters(), max_norm)\n",
            ),
        ),
        "one backward for all parts": swapped(
            STEP,
            ("        loss.backward()\n        total += loss.item()\n", "        total += loss\n"),
            ("    nn.utils", "    total.backward()\n    nn.utils"),
            ("return total", "return total.item()"),
        ),
        "old gradients count": swapped(
            STEP, ("    optimizer.zero_grad()\n    total = 0.0", "    total = 0.0")
        ),
        "equal chunks, not parts of at most that size": swapped(
            STEP,
            ("images.split(part), targets.split(part)", "images.chunk(part), targets.chunk(part)"),
        ),
        "the average keeps its random start": swapped(
            STEP, ("    beta = min(beta, step / (step + 1))\n", "")
        ),
        "β and 1 − β changed over": swapped(
            STEP,
            (
                "value.mul_(beta).add_(new[name], alpha=1 - beta)",
                "value.mul_(1 - beta).add_(new[name], alpha=beta)",
            ),
        ),
        "buffers forgotten": swapped(
            STEP,
            (
                "own, new = average.state_dict(), model.state_dict()",
                "own, new = (dict(m.named_parameters()) for m in (average, model))",
            ),
        ),
    },
    "q5": {
        "the optimizer's memory forgotten": swapped(
            RESUME,
            ('        "optimizer": run.optimizer.state_dict(),\n', ""),
            ('("model", "optimizer", "average")', '("model", "average")'),
        ),
        "the average begins again from the weights": swapped(
            RESUME,
            ('        "average": run.average.state_dict(),\n', ""),
            ('("model", "optimizer", "average")', '("model", "optimizer")'),
            (
                "    run.generator.set",
                "    run.average.load_state_dict(run.model.state_dict())\n    run.generator.set",
            ),
        ),
        "the global dice forgotten": swapped(
            RESUME,
            ('        "dropout": torch.get_rng_state(),\n', ""),
            ('    torch.set_rng_state(state["dropout"])\n', ""),
        ),
        "the order is seeded anew": swapped(
            RESUME,
            ('        "order": run.generator.get_state(),\n', ""),
            ('run.generator.set_state(state["order"])', "run.generator.manual_seed(0)"),
        ),
        "the step counter begins at 0": swapped(
            RESUME,
            ('        "step": run.step,\n', ""),
            (
                'run.step, run.records = state["step"], state["records"]',
                'run.step, run.records = 0, state["records"]',
            ),
        ),
        "written straight to its place": swapped(
            RESUME,
            ('path.with_suffix(".part")', "path"),
            ("    os.replace(part, path)\n", ""),
        ),
        "the old file removed first": swapped(
            RESUME,
            (
                "    with open(part",
                "    if os.path.exists(path):\n        os.remove(path)\n    with open(part",
            ),
        ),
        "whole in another place, then copied into its own": swapped(
            RESUME,
            ("os.replace(part, path)", "path.write_bytes(part.read_bytes())"),
        ),
        "saving seeds the dice, for tidiness": swapped(
            RESUME, ("    part = path", "    torch.manual_seed(run.step)\n    part = path")
        ),
    },
    "q6": {
        "any run that fails is a matter of the rate": swapped(
            ABC, ('"labels shuffled"', '"learning rate too low"')
        ),
        "two names changed over": swapped(
            ABC,
            ('"learning rate too high"', '"post-norm without warm-up"'),
        ),
        "training mode taken for overfitting": swapped(
            ABC, ('"evaluated in training mode"', '"overfitting without any other fault"')
        ),
        "evidence that holds for two runs": swapped(
            ABC, ('max(log["lr"]) > 0.03', 'log["val_acc"][-1] < 0.2')
        ),
        "evidence to the third decimal": swapped(
            ABC, ('log["val_acc"] != log["val_again"]', 'log["test"] == 0.908')
        ),
    },
    "q7": {
        "the leak taken for the healthy run": swapped(
            DEF,
            ('"healthy"', '"overfitting without any other fault"'),
            ('"validation images in the training set"', '"healthy"'),
        ),
        "post-norm taken for a rate too high": swapped(
            DEF, ('"post-norm without warm-up"', '"learning rate too high"')
        ),
        "evidence that holds for the healthy run, too": swapped(
            DEF,
            (
                'log["val_acc"][-1] > log["test"] + 0.04\n'
                '        and abs(log["val_acc"][-1] - log["train_acc"][-1]) < 0.03',
                'log["val_acc"][-1] > 0.9',
            ),
        ),
        "evidence to the third decimal": swapped(
            DEF, ('log["lr"][0] > 0.0025 and max(log["lr"]) < 0.01', 'log["test"] == 0.197')
        ),
    },
    "stretch": {
        "by a number of one run": swapped(
            DIAGNOSE, ('log["val_acc"] != log["val_again"]', 'log["test"] == 0.908')
        ),
        "by the loss alone": swapped(
            DIAGNOSE,
            ('max(log["lr"]) > 0.01', 'log["train_loss"][-1] > 2.2'),
            (
                'log["lr"][0] > 0.8 * max(log["lr"])',
                'log["train_loss"][-1] > 1.8 and log["val_loss"][-1] < 1.9',
            ),
        ),
        "whatever is perfect in validation leaks": swapped(
            DIAGNOSE, ('log["val_acc"][-1] > log["test"] + 0.04', 'log["val_acc"][-1] == 1.0')
        ),
        "every leak is healthy": swapped(
            DIAGNOSE, ('log["val_acc"][-1] > log["test"] + 0.04', "False")
        ),
    },
}
