"""Plausible wrong answers to assignment 2: each loses its question's points and no other's."""

WRONG = {
    "q1": {
        "minus infinity, and NaN where nothing may be seen": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -float("inf")).softmax(dim=-1) @ v
""",
        "a large negative number: the mean of all values where nothing may be seen": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -1e30).softmax(dim=-1) @ v
""",
        "masked after the softmax, not shared out again": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return (scores.softmax(dim=-1) * mask) @ v
""",
        "the mask read the other way round": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(mask, -float("inf")).softmax(dim=-1)
    return weights.masked_fill(mask.all(-1, keepdim=True), 0.0) @ v
""",
        "exp without subtracting the largest score": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = scores.exp() * mask
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ v
""",
        "the root of the width of the values": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(v.shape[-1])
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return (weights * mask) @ v
""",
        "a gradient that is NaN where nothing may be seen": """
def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    largest = scores.masked_fill(~mask, -float("inf")).amax(-1, keepdim=True)
    weights = (scores - largest).exp().masked_fill(~mask, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ v).nan_to_num(0.0)
""",
        "printed, not returned": """
def masked_attention(q, k, v, mask):
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -math.inf)
    scores = torch.where(mask.any(-1, keepdim=True), scores, torch.zeros_like(scores))
    print((scores.softmax(-1) * mask.any(-1, keepdim=True)) @ v)
""",
    },
    "q2": {
        "rows of the last matrix in place of columns": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    q, k, v = (part.view(B, T, H, d).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))
    heads = F.scaled_dot_product_attention(q, k, v)
    weight = attn.proj.weight.view(H, d, D)
    return torch.einsum("bhtd,hde->hbte", heads, weight)
""",
        "the bias is shared out over the heads": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    q, k, v = (part.view(B, T, H, d).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))
    heads = F.scaled_dot_product_attention(q, k, v)
    weight = attn.proj.weight.view(D, H, d)
    return torch.einsum("bhtd,ehd->hbte", heads, weight) + attn.proj.bias / H
""",
        "qkv stored head by head": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    q, k, v = attn.qkv(x).view(B, T, H, 3, d).permute(3, 0, 2, 1, 4)
    heads = F.scaled_dot_product_attention(q, k, v)
    weight = attn.proj.weight.view(D, H, d)
    return torch.einsum("bhtd,ehd->hbte", heads, weight)
""",
        "scaled by the whole width": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    q, k, v = (part.view(B, T, H, d).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))
    heads = F.scaled_dot_product_attention(q, k, v, scale=D**-0.5)
    weight = attn.proj.weight.view(D, H, d)
    return torch.einsum("bhtd,ehd->hbte", heads, weight)
""",
        "an even share of the output for each head": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    return (attn(x) - attn.proj.bias).expand(H, B, T, D) / H
""",
        "the output without this head, in place of the head": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    q, k, v = (part.view(B, T, H, d).transpose(1, 2) for part in attn.qkv(x).chunk(3, dim=-1))
    heads = F.scaled_dot_product_attention(q, k, v)
    weight = attn.proj.weight.view(D, H, d)
    each = torch.einsum("bhtd,ehd->hbte", heads, weight)
    return each.sum(0) - each
""",
        "other columns are zeroed, and stay so": """
def head_contributions(attn, x):
    B, T, D = x.shape
    H, d = attn.num_heads, D // attn.num_heads
    each = []
    for h in range(H):
        kept = attn.proj.weight.clone()
        attn.proj.weight.zero_()[:, h * d : (h + 1) * d] = kept[:, h * d : (h + 1) * d]
        each.append(attn(x) - attn.proj.bias)
        if h < H - 1:
            attn.proj.weight.copy_(kept)
    return torch.stack(each)
""",
    },
    "q3": {
        "a single head": """
def test_scale(make):
    attn, x, d, H = make(8, 1).double().attn, torch.randn(2, 5, 8).double(), 8, 1
    with torch.no_grad():
        attn.qkv.weight.mul_(4.0)
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        want = attn.proj(heads.transpose(1, 2).flatten(2))
    assert torch.allclose(attn(x), want)
""",
        "the output number by number: the merged heads are found, too": """
def test_scale(make):
    attn, x, d, H = make(8, 2).double().attn, torch.randn(2, 5, 8).double(), 4, 2
    with torch.no_grad():
        attn.qkv.weight.mul_(4.0)
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        want = attn.proj(heads.transpose(1, 2).flatten(2))
    assert torch.allclose(attn(x), want)
""",
        "fresh weights and a wide tolerance": """
def test_scale(make):
    attn, x, d, H = make(8, 2).attn, torch.randn(2, 5, 8), 4, 2
    with torch.no_grad():
        attn.proj.weight.fill_(1.0)
        attn.proj.bias.zero_()
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        want = 8 * heads.sum()
    assert torch.allclose(attn(x).sum(), want, atol=10.0)
""",
        "only the bug that is shown": """
def test_scale(make):
    attn, x, d, H = make(8, 2).double().attn, torch.randn(2, 5, 8).double(), 4, 2
    with torch.no_grad():
        attn.qkv.weight.mul_(4.0)
        attn.proj.weight.fill_(1.0)
        attn.proj.bias.zero_()
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        wrong = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1) @ v
    assert not torch.allclose(attn(x).sum(), 8 * wrong.sum())
""",
        "sizes for which 1/8 is right": """
def test_scale(make):
    attn, x, d, H = make(128, 2).double().attn, torch.randn(2, 5, 128).double(), 64, 2
    with torch.no_grad():
        attn.qkv.weight.mul_(4.0)
        attn.proj.weight.fill_(1.0)
        attn.proj.bias.zero_()
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        want = 128 * heads.sum()
    assert torch.allclose(attn(x).sum(), want)
""",
        "one width of a head, for which one constant is right": """
def test_scale(make):
    for dim, H in ((8, 2), (12, 3), (20, 5)):
        attn, x, d = make(dim, H).double().attn, torch.randn(2, 5, dim).double(), dim // H
        with torch.no_grad():
            attn.qkv.weight.mul_(4.0)
            attn.proj.weight.fill_(1.0)
            attn.proj.bias.zero_()
            q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, -1))
            heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
            want = dim * heads.sum()
        assert torch.allclose(attn(x).sum(), want)
""",
        "exactly equal": """
def test_scale(make):
    attn, x, d, H = make(8, 2).attn, torch.randn(2, 5, 8), 4, 2
    with torch.no_grad():
        attn.qkv.weight.mul_(4.0)
        attn.proj.weight.fill_(1.0)
        attn.proj.bias.zero_()
        q, k, v = (t.unflatten(-1, (H, d)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
        heads = (q @ k.transpose(-2, -1) * d**-0.5).softmax(dim=-1) @ v
        want = 8 * heads.sum()
    assert attn(x).sum() == want
""",
        "stops with another exception, for qkv taken apart wrongly": """
def test_scale(make):
    attn, x = make(8, 2).attn, torch.randn(2, 5, 8)
    q, k, v = attn.qkv(x).view(2, 5, 2, 3, 4).unbind(2)
    assert torch.allclose(attn(x), q @ k.transpose(-2, -1) @ v)
""",
        "asks the block which bug it has": """
def test_scale(make):
    assert make(8, 2).bug != "scale"
""",
    },
    "q4": {
        "two heads: the merged heads are found, too": """
def test_mask(make):
    attn = make(8, 2).double().attn
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    changed = torch.where(mask[..., None], x, torch.randn_like(x))
    assert torch.allclose(attn(x, mask)[mask], attn(changed, mask)[mask])
""",
        "the tokens that were changed are compared as well": """
def test_mask(make):
    attn = make(8, 1).double().attn
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    changed = torch.where(mask[..., None], x, torch.randn_like(x))
    assert torch.allclose(attn(x, mask), attn(changed, mask))
""",
        "one mask for all images": """
def test_mask(make):
    attn = make(8, 1).double().attn
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]]).bool().expand(3, 6)
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    changed = torch.where(mask[..., None], x, torch.randn_like(x))
    assert torch.allclose(attn(x, mask)[mask], attn(changed, mask)[mask])
""",
        "only that the mask does something": """
def test_mask(make):
    attn = make(8, 1).double().attn
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    assert not torch.allclose(attn(x, mask), attn(x))
""",
        "compared with the right scores": """
def test_mask(make):
    attn = make(8, 2).double().attn
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0]]).bool()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in attn.qkv(x).chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])
    assert torch.allclose(attn(x, mask), attn.proj(y.transpose(1, 2).flatten(2)))
""",
        "a mask that forbids nothing": """
def test_mask(make):
    attn = make(8, 1).double().attn
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    assert torch.allclose(attn(x, torch.ones(2, 6, dtype=torch.bool)), attn(x))
""",
    },
    "q5": {
        "through the whole block": """
def test_gelu(make):
    block, x = make(8, 2).double(), torch.randn(2, 5, 8).double()
    with torch.no_grad():
        y = x + block.attn(block.norm1(x))
        h = block.norm2(y)
        want = y + block.mlp.fc2(F.gelu(block.mlp.fc1(h)))
        assert torch.allclose(block(x), want)
""",
        "only that it is not linear": """
def test_gelu(make):
    mlp, x = make(8, 2).double().mlp, torch.randn(2, 5, 8).double()
    zero = mlp(torch.zeros_like(x))
    assert not torch.allclose(mlp(2 * x) - zero, 2 * (mlp(x) - zero))
""",
        "a GELU at the end is never below -0.17": """
def test_gelu(make):
    mlp, x = make(8, 2).double().mlp, 10 * torch.randn(20, 5, 8).double()
    assert mlp(x).min() < -0.2
""",
        "no room for the tanh approximation": """
def test_gelu(make):
    mlp, x = make(8, 2).double().mlp, 3 * torch.randn(2, 5, 8).double()
    assert torch.allclose(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))), rtol=0, atol=1e-8)
""",
        "small inputs, for which activations hardly differ": """
def test_gelu(make):
    mlp, x = make(8, 2).double().mlp, 0.01 * torch.randn(2, 5, 8).double()
    assert torch.allclose(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))), atol=0.3)
""",
    },
    "q6": {
        "fresh norms, of which one is as good as the other": """
def test_norm(make):
    block, x = make(8, 2).double(), 3 * torch.randn(2, 5, 8).double()
    with torch.no_grad():
        want = x + block.attn(block.norm1(x))
        want = want + block.mlp(block.norm2(want))
        assert torch.allclose(block(x), want)
""",
        "only whether the output is normalised": """
def test_norm(make):
    block, x = make(8, 2).double(), 3 * torch.randn(2, 5, 8).double()
    spread = block(x).std(-1, correction=0)
    assert not torch.allclose(spread, torch.ones_like(spread), atol=1e-3)
""",
        "silent branches: the block should be the identity": """
def test_norm(make):
    block, x = make(8, 2).double(), 3 * torch.randn(2, 5, 8).double()
    with torch.no_grad():
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
        for norm in (block.norm1, block.norm2):
            norm.bias.add_(1.0)
        assert torch.allclose(block(x), x)
""",
        "branches computed anew, with their own bugs": """
def test_norm(make):
    block, x = make(8, 2).double(), 3 * torch.randn(2, 5, 8).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.5 * torch.randn_like(p))
        want = x + block.attn(block.norm1(x))
        hidden = F.gelu(block.mlp.fc1(block.norm2(want)))
        assert torch.allclose(block(x), want + block.mlp.fc2(hidden))
""",
        "tokens that are normalised already, so that the norms do nothing": """
def test_norm(make):
    block = make(8, 2).double()
    x = F.layer_norm(torch.randn(2, 5, 8).double(), (8,))
    with torch.no_grad():
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        assert torch.allclose(block(x), x + block.attn(block.norm1(x)), atol=1e-4)
""",
    },
    "q7": {
        "the whole branch is computed, then dropped": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    coins = torch.rand(len(x), 1, 1) >= rate
    return x + gamma * branch(x) * coins / (1 - rate)
""",
        "without the factor 1 / (1 - rate)": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    kept = (torch.rand(len(x)) >= rate).nonzero().flatten()
    if len(kept) == 0:
        return x.clone()
    return x.index_add(0, kept, gamma * branch(x[kept]))
""",
        "always the same number of images": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    kept = torch.randperm(len(x))[: round(len(x) * (1 - rate))].sort().values
    if len(kept) == 0:
        return x.clone()
    return x.index_add(0, kept, gamma * branch(x[kept]) / (1 - rate))
""",
        "one coin for the batch": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    if torch.rand(()) < rate:
        return x.clone()
    return x + gamma * branch(x) / (1 - rate)
""",
        "changed in place": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    kept = (torch.rand(len(x)) >= rate).nonzero().flatten()
    with torch.no_grad():
        if len(kept):
            x[kept] += gamma * branch(x[kept]) / (1 - rate)
    return x
""",
        "the branch is called with no image": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    kept = (torch.rand(len(x)) >= rate).nonzero().flatten()
    return x.index_add(0, kept, gamma * branch(x[kept]) / (1 - rate))
""",
        "kept with the probability rate": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    kept = (torch.rand(len(x)) < rate).nonzero().flatten()
    if len(kept) == 0:
        return x.clone()
    return x.index_add(0, kept, gamma * branch(x[kept]) / (1 - rate))
""",
        "one image at a time": """
def residual(x, branch, gamma, rate, training):
    if not 0 <= rate < 1:
        raise ValueError(rate)
    if not training or rate == 0:
        return x + gamma * branch(x)
    rows = []
    for image in x.split(1):
        keep = torch.rand(()) >= rate
        rows.append(image + gamma * branch(image) / (1 - rate) if keep else image)
    return torch.cat(rows)
""",
        "the rate is looked at in training alone": """
def residual(x, branch, gamma, rate, training):
    if not training:
        return x + gamma * branch(x)
    if not 0 <= rate < 1:
        raise ValueError(rate)
    kept = (torch.rand(len(x)) >= rate).nonzero().flatten()
    if len(kept) == 0:
        return x.clone()
    return x.index_add(0, kept, gamma * branch(x[kept]) / (1 - rate))
""",
        "any rate will do": """
def residual(x, branch, gamma, rate, training):
    if not training:
        return x + gamma * branch(x)
    keep = torch.rand(len(x)) >= rate
    if not keep.any():
        return x.clone()
    out = x.clone()
    out[keep] = x[keep] + gamma * branch(x[keep]) / (1 - rate)
    return out
""",
    },
    "q8": {
        "the variance in place of the mean square": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density = density / density.sum()

    def scale(c):
        y = f(math.sqrt(c) * z)
        mean = (density * y).sum()
        return (density * (y - mean).square()).sum().item()

    low, high = 1e-4, 1e4
    if not scale(low) <= 1 <= scale(high):
        raise ValueError("no factor")
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if scale(middle) < 1 else (low, middle)
    return low
""",
        "the deviation in place of the variance": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density = density / density.sum()

    def scale(c):
        return (density * f(c * z).square()).sum().item()

    low, high = 1e-4, 1e4
    if not scale(low) <= 1 <= scale(high):
        raise ValueError("no factor")
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if scale(middle) < 1 else (low, middle)
    return low
""",
        "the size after one layer, as if f were linear": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    mean = (density * f(z).square()).sum() / density.sum()
    if mean < 1e-4 or float(f(torch.tensor(100.0))) <= 1.0:
        raise ValueError("no factor")
    return 1 / mean.item()
""",
        "an interval that is too short": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density = density / density.sum()

    def scale(c):
        return (density * f(math.sqrt(c) * z).square()).sum().item()

    low, high = 1e-2, 1e2
    if not scale(low) <= 1 <= scale(high):
        raise ValueError("no factor")
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if scale(middle) < 1 else (low, middle)
    return low
""",
        "a few random numbers": """
def variance_factor(f):
    z, low, high = torch.randn(100), 1e-4, 1e4

    def scale(c):
        return f(math.sqrt(c) * z).square().mean().item()

    if not scale(low) <= 1 <= scale(high):
        raise ValueError("no factor")
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if scale(middle) < 1 else (low, middle)
    return low
""",
        "the end of the interval where there is no answer": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density, low, high = density / density.sum(), 1e-4, 1e4
    for _ in range(200):
        middle = math.sqrt(low * high)
        small = (density * f(math.sqrt(middle) * z).square()).sum() < 1
        low, high = (middle, high) if small else (low, middle)
    return low
""",
        "a tensor in place of a float": """
def variance_factor(f):
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    density = density / density.sum()

    def scale(c):
        return (density * f(torch.sqrt(c) * z).square()).sum()

    low, high = torch.tensor(1e-4).double(), torch.tensor(1e4).double()
    if not scale(low) <= 1 <= scale(high):
        raise ValueError("no factor")
    for _ in range(200):
        middle = torch.sqrt(low * high)
        low, high = (middle, high) if scale(middle) < 1 else (low, middle)
    return low
""",
    },
    "q9": {
        "one head is enough in evaluation": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "the class token is always there": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, 1 + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "the MLP is always four times as wide": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, 4 * D
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "biases that are not there": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * True + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "one LayerScale a block": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "one relative table for all heads": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += (2 * rows - 1) * (2 * columns - 1) + 3
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "a multiply-add counts as one": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops // 2
""",
        "the head reads all tokens": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * T * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters, flops
""",
        "floats from a division": """
def cost(config):
    c, D, K, H = config, config.dim, config.num_classes, config.num_heads
    rows, columns = vm.patch_grid(c.image_size, c.patch_size)
    P, Q = (c.patch_size,) * 2 if isinstance(c.patch_size, int) else c.patch_size
    N, prefix, heads = rows * columns, (c.pool == "cls") + c.distilled, 1 + c.distilled
    T, pixels, hidden = N + prefix, c.in_channels * P * Q, int(D * c.mlp_ratio)
    positions = {"learned": T * D, "learned2d": (rows + columns) * (D // 2) + prefix * D}
    block = 4 * D + 3 * D * D + 3 * D * c.qkv_bias + D * D + D + 2 * D * hidden + hidden + D
    if c.layer_scale is not None:
        block += 2 * D
    if c.pos_embed == "relative":
        block += H * ((2 * rows - 1) * (2 * columns - 1) + 3)
    parameters = pixels * D + D + prefix * D + positions.get(c.pos_embed, 0)
    parameters += c.depth * block + 2 * D + heads * (D * K + K)
    flops = 2 * N * pixels * D + 2 * heads * D * K
    flops += c.depth * (8 * T * D * D + 4 * T * T * D + 4 * T * D * hidden)
    return parameters / 1, flops / 1
""",
        "the library counts": """
def cost(config):
    layers = vm.describe_layers(config)
    return sum(r.parameters for r in layers), sum(r.flops for r in layers)
""",
    },
    "stretch": {
        "the whole matrix after all": """
def attention_gradients(q, k, v, grad, block):
    scale = q.shape[-1] ** -0.5
    P = (q @ k.T * scale).softmax(-1)
    dP = grad @ v.T
    dS = P * (dP - (P * dP).sum(1, keepdim=True)) * scale
    return dS @ k, dS.T @ q, P.T @ grad
""",
        "softmax block by block": """
def attention_gradients(q, k, v, grad, block):
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(0, len(k), block):
        part = slice(i, i + block)
        P = (q @ k[part].T * scale).softmax(-1)
        dP = grad @ v[part].T
        dS = P * (dP - (P * dP).sum(1, keepdim=True)) * scale
        dq += dS @ k[part]
        dk[part], dv[part] = dS.T @ q, P.T @ grad
    return dq, dk, dv
""",
        "scores that overflow": """
def attention_gradients(q, k, v, grad, block):
    scale = q.shape[-1] ** -0.5
    groups = [slice(i, i + block) for i in range(0, len(k), block)]
    total = sum((q @ k[g].T * scale).exp().sum(1, keepdim=True) for g in groups)
    out = sum((q @ k[g].T * scale).exp() @ v[g] for g in groups) / total
    inner = (grad * out).sum(1, keepdim=True)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for g in groups:
        P = (q @ k[g].T * scale).exp() / total
        dS = P * (grad @ v[g].T - inner) * scale
        dq += dS @ k[g]
        dk[g], dv[g] = dS.T @ q, P.T @ grad
    return dq, dk, dv
""",
        "the scale is forgotten on the way back": """
def attention_gradients(q, k, v, grad, block):
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(0, len(q), block):
        part = slice(i, i + block)
        P = (q[part] @ k.T * scale).softmax(-1)
        dP = grad[part] @ v.T
        dS = P * (dP - (P * dP).sum(1, keepdim=True))
        dq[part] = dS @ k
        dk += dS.T @ q[part]
        dv += P.T @ grad[part]
    return dq, dk, dv
""",
    },
}
