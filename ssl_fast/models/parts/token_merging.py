"""Token merging (ToMe): every block of a vision transformer joins its r most similar pairs of patches.

Patches are dealt in turn to two sets A and B; each of A finds the one of B whose key (mean over heads) is nearest by
cosine; the r best pairs become their mean, weighted by how many patches each stands for. Attention counts a token as
often as it has patches:

    softmax(Q K^T / sqrt(d) + log s) V,   s: patches in each token

Nothing is learned, and it serves in training and inference alike. Every patch then gets the row of the token that it
went into, so all kinds of pooling, and maps of patches, mean what they did before.

Reference: Bolya et al. 2023, arXiv:2210.09461, section 3 (matching, Eq. 1, between attention and MLP), Appendix D.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_fast.models.parts.sequence import attention_branch, embed, mlp_branch, require_plain_blocks


def schedule(text: str, depth: int) -> tuple[float, ...]:
    """What each block merges: a number of patches (1 or more) or a share of its patches (below 1).

    Args:
        text: "8", "0.1", or one for each block, "16,8,8,0,...".
        depth: blocks of the network.

    Raises:
        ValueError: not such a list, or of another length.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    values = values * depth if len(values) == 1 else values
    if len(values) != depth or not all(v >= 0 and (v <= 0.5 or v == int(v)) for v in values):
        raise ValueError(
            f"backbone.merge_tokens: expected a number of patches, a share up to 0.5, or a list of {depth} of them "
            f"(one a block), got {text!r}"
        )
    return values


def add_token_merging(model: Any, text: str, name: str) -> None:
    """Makes a ViT or EVA-02 merge tokens, in place; no tensor is added, and class and register tokens are never merged.

    A block merges at most half of its patches. A merged token of EVA-02 has the rotation of its member of B.

    Raises:
        ValueError: another family, or a schedule that does not fit.
    """
    require_plain_blocks(model, "merge_tokens", name)
    model.merge_tokens = schedule(text, len(model.blocks))
    model.forward_features = MethodType(_forward_features, model)


def _forward_features(model: Any, x: Tensor, **_: Any) -> Tensor:
    x, rope = embed(model, x)
    first, patches = model.num_prefix_tokens, x.shape[1] - model.num_prefix_tokens
    size: Tensor | None = None  # patches in each token [N, T, 1]; None: one
    place = torch.arange(patches, device=x.device).expand(x.shape[0], -1)  # of each patch among the tokens
    for block, amount in zip(model.blocks, model.merge_tokens, strict=True):
        attended, keys = attention(block.attn, block.norm1(x), size, rope)
        x = x + attention_branch(block, attended)
        now = x.shape[1] - first
        r = min(int(amount if amount >= 1 else amount * now), now // 2)
        if r:
            pairs = match(keys[:, first:], r)
            x, size = weighted_mean(x, x.new_ones(*x.shape[:2], 1) if size is None else size, pairs, first)
            place = moved(pairs, now).gather(1, place)
            rope = None if rope is None else kept(rope.expand(x.shape[0], -1, -1), pairs)
        x = x + mlp_branch(block, x)
    spread = take(x[:, first:], place)
    return model.norm(torch.cat([x[:, :first], spread], dim=1))  # type: ignore[no-any-return]


def attention(
    module: Any,
    x: Tensor,  # [N, T, F]
    size: Tensor | None,  # [N, T, 1]; None: all 1
    rope: Tensor | None,  # [P, R] or [N, P, R]
) -> tuple[Tensor, Tensor]:
    """Proportional attention by the weights of timm's `Attention` or `EvaAttention`.

    Returns:
        The output [N, T, F], and the keys before rotation, averaged over heads [N, T, D].
    """
    q, k, v = _project(module, x)  # each [N, heads, T, D]
    keys = k.mean(dim=1)
    if rope is not None:
        q, k = (_rotate(module, rows, rope) for rows in (q, k))
    bias = None if size is None else size.log().to(q.dtype)[:, None, None, :, 0]  # [N, 1, 1, T]
    dropout = module.attn_drop.p if module.training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    out = module.norm(out.transpose(1, 2).flatten(2))
    if module.gate is not None:
        out = out * module.gate(x).sigmoid()
    return module.proj_drop(module.proj(out)), keys


def _project(module: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if module.qkv is not None:
        qkv = module.qkv(x)
        if getattr(module, "q_bias", None) is not None:
            qkv = qkv + torch.cat((module.q_bias, module.k_bias, module.v_bias))
        rows = qkv.chunk(3, dim=-1)
    else:
        rows = tuple(project(x) for project in (module.q_proj, module.k_proj, module.v_proj))
    q, k, v = (part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for part in rows)
    return module.q_norm(q), module.k_norm(k), v


def _rotate(module: Any, rows: Tensor, rope: Tensor) -> Tensor:
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    first = module.num_prefix_tokens
    rope = rope if rope.ndim == 2 else rope.unsqueeze(1)
    turned = apply_rot_embed_cat(rows[:, :, first:], rope, half=module.rotate_half)
    return torch.cat([rows[:, :, :first], turned], dim=2).to(rows.dtype)


Pairs = tuple[Tensor, Tensor, Tensor]  # places in A that stay [N, A - r], that merge [N, r], and into which of B [N, r]


@torch.no_grad()
def match(
    keys: Tensor,  # [N, P, D]
    r: int,
) -> Pairs:
    """Bipartite soft matching: the r best pairs between the even and the odd patches."""
    keys = F.normalize(keys.float(), dim=-1)
    nearest, target = (keys[:, ::2] @ keys[:, 1::2].mT).max(dim=-1)
    order = nearest.sort(dim=-1, descending=True)[1]  # ONNX has no stable one; torch's is, on CPU and CUDA
    merged = order[:, :r]
    return order[:, r:], merged, target.gather(1, merged)


def merge(
    x: Tensor,  # [N, P, F]
    pairs: Pairs,
) -> Tensor:  # [N, P - r, F]
    """Sums the pairs; patches of A that stay come first, then B. A product, so that no order of adding is random."""
    stay, merged, target = pairs
    b = x[:, 1::2]
    onto = F.one_hot(target, b.shape[1]).to(x.dtype)  # [N, r, B]
    return torch.cat([take(x[:, ::2], stay), b + onto.mT @ take(x[:, ::2], merged)], dim=1)


def weighted_mean(
    x: Tensor,  # [N, T, F]
    size: Tensor,  # [N, T, 1]
    pairs: Pairs,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Tokens [N, T - r, F] and their sizes [N, T - r, 1] after merging; the first `first` tokens stay as they are."""
    count = merge(size[:, first:], pairs)
    mean = merge(x[:, first:] * size[:, first:], pairs) / count
    return torch.cat([x[:, :first], mean], dim=1), torch.cat([size[:, :first], count], dim=1)


def kept(
    x: Tensor,  # [N, P, R]
    pairs: Pairs,
) -> Tensor:  # [N, P - r, R]
    """Rows in the order of `merge`, without what is merged away."""
    return torch.cat([take(x[:, ::2], pairs[0]), x[:, 1::2]], dim=1)


def moved(pairs: Pairs, patches: int) -> Tensor:
    """The place [N, P] of every patch after `merge`."""
    stay, merged, target = pairs
    n = stay.shape[1]
    place = target.new_empty(target.shape[0], patches)
    place[:, 1::2] = torch.arange(n, n + patches // 2, device=place.device)
    ranks = torch.arange(n, device=place.device).expand(place.shape[0], -1)
    place[:, ::2] = place[:, ::2].scatter(1, stay, ranks).scatter(1, merged, target + n)
    return place


def take(
    x: Tensor,  # [N, P, F]
    rows: Tensor,  # [N, M]
) -> Tensor:  # [N, M, F]
    """Rows of each sample."""
    return x.gather(1, rows.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
