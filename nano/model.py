"""SPHINX-Nano in PyTorch: the light architecture, small, with the public checkpoint's tensor names.

Two encoders (ConvNeXt at 512, DINOv2 at 224), a projection, a LLaMA decoder or a sparse mixture. Module names are chosen so
that `state_dict()` is the checkpoint, but for the prefix `llma.` and the mixture's fused experts (see `to_checkpoint`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Config:
    """Sizes. Row lengths are multiples of 256 wherever those of the real model are."""

    cnx_depths: tuple[int, ...] = (1, 1, 1, 1)
    cnx_dims: tuple[int, ...] = (64, 256, 256, 256)
    dino_dim: int = 256
    dino_depth: int = 2
    dino_hidden: int = 256
    dino_grid: int = 8
    dim: int = 256
    n_layers: int = 5
    n_heads: int = 8
    n_kv_heads: int = 4
    hidden: int = 256
    vocab: int = 768
    experts: int = 0  # 0: dense
    used: int = 2
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def public(self) -> dict:
        """`config.json`."""
        out = {"dim": self.dim, "n_layers": self.n_layers, "n_heads": self.n_heads, "n_kv_heads": self.n_kv_heads,
               "norm_eps": self.norm_eps, "rope_theta": self.rope_theta, "max_seq_len": 1024, "vocab_size": self.vocab}
        if self.experts:
            return out | {"hidden_dim": self.hidden, "moe": {"num_experts_per_tok": self.used, "num_experts": self.experts}}
        return out | {"multiple_of": 256, "ffn_dim_multiplier": self.hidden / int(8 * self.dim / 3)}


# ---- ConvNeXt ------------------------------------------------------------------------------------------------------------
def cut(x: torch.Tensor, p: int) -> torch.Tensor:
    """`[B, H, W, C]` to `[B, H/p, W/p, C·p·p]`, channel first inside a patch, as a convolution's weight is flattened."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).permute(0, 1, 3, 5, 2, 4).reshape(b, h // p, w // p, c * p * p)


class Patches(nn.Module):
    """A convolution whose stride is its size, as a matrix on patches. `[B, H, W, C]` in and out."""

    def __init__(self, c: int, out: int, p: int):
        super().__init__()
        self.p = p
        self.weight = nn.Parameter(torch.randn(out, c, p, p) / math.sqrt(c * p * p))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return F.linear(cut(x, self.p), self.weight.flatten(1), self.bias)


class ConvBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv_dw = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.norm = nn.LayerNorm(c, eps=1e-5)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c, 4 * c), "fc2": nn.Linear(4 * c, c)})
        self.gamma = nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x):
        h = self.conv_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        h = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm(h))))
        return x + h * self.gamma


class Stage(nn.Module):
    def __init__(self, before: int, c: int, depth: int):
        super().__init__()
        if before:
            self.downsample = nn.Sequential(nn.LayerNorm(before, eps=1e-5), Patches(before, c, 2))
        self.blocks = nn.Sequential(*(ConvBlock(c) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.downsample(x) if hasattr(self, "downsample") else x)


class ConvNeXt(nn.Module):
    """`[B, S, S, 3]`, CLIP-normalised, to `[B, S/32, S/32, C]`."""

    def __init__(self, depths, dims):
        super().__init__()
        self.stem = nn.Sequential(Patches(3, dims[0], 4), nn.LayerNorm(dims[0], eps=1e-5))
        before = (0, *dims[:-1])
        self.stages = nn.Sequential(*(Stage(b, c, n) for b, c, n in zip(before, dims, depths)))
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1], eps=1e-5)})

    def forward(self, x):
        return self.head["norm"](self.stages(self.stem(x)))


# ---- DINOv2 --------------------------------------------------------------------------------------------------------------
def cubic_matrix(n_in: int, n_out: int, step: float) -> torch.Tensor:
    """`[n_out, n_in]`: four cubic taps (a = -0.75), clamped at the edges, `step` input samples per output sample."""
    a, m = -0.75, torch.zeros(n_out, n_in)
    for o in range(n_out):
        src = step * (o + 0.5) - 0.5
        base = math.floor(src)
        t = src - base
        near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1
        far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        for k, weight in enumerate((far(t + 1), near(t), near(1 - t), far(2 - t))):
            m[o, min(max(base - 1 + k, 0), n_in - 1)] += weight
    return m


class Scale(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((c,), 0.5))


class VitBlock(nn.Module):
    def __init__(self, c: int, hidden: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(c, 3 * c), "proj": nn.Linear(c, c)})
        self.ls1, self.ls2 = Scale(c), Scale(c)
        self.mlp = nn.ModuleDict({"w12": nn.Linear(c, 2 * hidden), "w3": nn.Linear(hidden, c)})

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).reshape(b, t, 3, c // 64, 64).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c)
        x = x + self.ls1.gamma * self.attn["proj"](mixed)
        gate, up = self.mlp["w12"](self.norm2(x)).chunk(2, -1)
        return x + self.ls2.gamma * self.mlp["w3"](F.silu(gate) * up)


class DinoV2(nn.Module):
    """`[B, 224, 224, 3]`, ImageNet-normalised, to `[B, 257, C]`."""

    def __init__(self, c: int, depth: int, hidden: int, grid: int):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": Patches(3, c, 14)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, c))
        self.mask_token = nn.Parameter(torch.zeros(1, c), requires_grad=False)
        self.pos_embed = nn.Parameter(0.2 * torch.randn(1, 1 + grid * grid, c))
        self.blocks = nn.ModuleList(VitBlock(c, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.register_buffer("resize", cubic_matrix(grid, 16, 1 / ((16 + 0.1) / grid)), persistent=False)

    def forward(self, x):
        y = self.patch_embed["proj"](x).flatten(1, 2)
        g = self.resize.shape[1]
        table = self.pos_embed[0, 1:].reshape(g, g, -1)
        table = torch.einsum("yi,xj,ijc->yxc", self.resize, self.resize, table).reshape(256, -1)
        y = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(y), -1, -1), y + table], 1)
        for block in self.blocks:
            y = block(y)
        return self.norm(y)


class Towers(nn.Module):
    """Both encoders. `squares`: `[B, 512, 512, 3]` 8-bit, padded and resized. Returns `[B, 257, C]` of each."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.openclip_convnext_xxl = ConvNeXt(cfg.cnx_depths, cfg.cnx_dims)
        self.dinov2_vitg14 = DinoV2(cfg.dino_dim, cfg.dino_depth, cfg.dino_hidden, cfg.dino_grid)
        cm, cs, dm, ds = (torch.tensor(t) for t in (CLIP_MEAN, CLIP_STD, DINO_MEAN, DINO_STD))
        for name, value in {"clip_mean": cm, "clip_std": cs, "dino_scale": cs / ds, "dino_shift": (cm - dm) / ds,
                            "small": cubic_matrix(512, 224, 512 / 224)}.items():
            self.register_buffer(name, value, persistent=False)

    def pixels(self, squares):
        return (squares.float() / 255 - self.clip_mean) / self.clip_std

    def vit_input(self, x):
        """The 512 square without antialiasing to 224, as the model does, in DINOv2's colours."""
        x = torch.einsum("xj,bijc->bixc", self.small, x)
        x = torch.einsum("yi,bixc->byxc", self.small, x)
        return x * self.dino_scale + self.dino_shift

    def convnext(self, x):
        y = self.openclip_convnext_xxl(x).flatten(1, 2)
        return torch.cat([y.mean(1, keepdim=True), y], 1)

    def forward(self, squares):
        x = self.pixels(squares)
        return self.convnext(x), self.dinov2_vitg14(self.vit_input(x))


# ---- the decoder ---------------------------------------------------------------------------------------------------------
class RmsNorm(nn.Module):
    def __init__(self, c: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(c)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x, cos, sin):
    """Pairs of neighbouring channels, turned. `x`: `[B, T, heads, d]`; `cos`, `sin`: `[B or 1, T, 1, d/2]`."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        d = cfg.dim // cfg.n_heads
        self.d = d
        self.wq, self.wo = nn.Linear(cfg.dim, cfg.dim, bias=False), nn.Linear(cfg.dim, cfg.dim, bias=False)
        self.wk, self.wv = (nn.Linear(cfg.dim, cfg.n_kv_heads * d, bias=False) for _ in range(2))

    def forward(self, x, turn, mask, cache=None, heed=None):
        q, k, v = (w(x).unflatten(-1, (-1, self.d)) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, *turn), rotate(k, *turn)
        if heed is not None:
            heed.append((q, k))
        if cache is not None:
            cache.append((k, v))
            k, v = (torch.cat(part, 1) for part in zip(*cache))
            cache[:] = [(k, v)]
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, enable_gqa=True)
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(cfg.dim, cfg.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(cfg.hidden, cfg.dim, bias=False)

    def forward(self, x, balance=None):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """`w1`, `w3`: `[E, hidden, dim]`; `w2`: `[E, hidden, dim]`, the transpose of a linear layer's, as the checkpoint has it."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.used = cfg.used
        self.gate = nn.Linear(cfg.dim, cfg.experts, bias=False)
        for name in ("w1", "w2", "w3"):
            fan = cfg.hidden if name == "w2" else cfg.dim
            setattr(self, name, nn.Parameter(torch.randn(cfg.experts, cfg.hidden, cfg.dim) / math.sqrt(3 * fan)))

    def forward(self, x, balance=None):
        flat = x.flatten(0, -2)
        p = torch.softmax(self.gate(flat).float(), -1)
        top, ids = p.topk(self.used, -1)
        top = (top / top.sum(-1, keepdim=True)).to(flat.dtype)
        out = torch.zeros_like(flat)
        for e in range(len(self.w1)):
            rows, slot = (ids == e).nonzero(as_tuple=True)
            if len(rows):
                h = flat[rows]
                h = F.silu(h @ self.w1[e].T) * (h @ self.w3[e].T)
                out = out.index_add(0, rows, (h @ self.w2[e]) * top[rows, slot, None])
        if balance is not None:
            balance.append((p, ids))
        return out.view_as(x)


class Layer(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.attention = Attention(cfg)
        self.feed_forward = Mixture(cfg) if cfg.experts else FeedForward(cfg)
        self.attention_norm, self.ffn_norm = RmsNorm(cfg.dim, cfg.norm_eps), RmsNorm(cfg.dim, cfg.norm_eps)

    def forward(self, x, turn, mask, cache=None, balance=None, heed=None):
        x = x + self.attention(self.attention_norm(x), turn, mask, cache, heed)
        return x + self.feed_forward(self.ffn_norm(x), balance)


class Decoder(nn.Module):
    """Projection, tags and language model. Rows of a picture come as the two encoders' features, side by side."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.tok_embeddings = nn.Embedding(cfg.vocab, cfg.dim)
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.n_layers))
        self.norm = RmsNorm(cfg.dim, cfg.norm_eps)
        self.output = nn.Linear(cfg.dim, cfg.vocab, bias=False)
        self.visual_proj = nn.Sequential(nn.Linear(cfg.cnx_dims[-1] + cfg.dino_dim, cfg.dim), nn.LayerNorm(cfg.dim, eps=1e-5))
        self.start_img, self.end_img = (nn.Parameter(torch.randn(1, 1, cfg.dim)) for _ in range(2))
        nn.init.normal_(self.tok_embeddings.weight, std=0.7)
        nn.init.normal_(self.output.weight, std=cfg.dim ** -0.5)
        for name, w in self.named_parameters():
            if name.endswith(("wo.weight", "w2.weight", "w2")) and name.startswith("layers"):
                w.data /= math.sqrt(2 * cfg.n_layers)

    def rows(self, features):
        """`[B, 257, F]` to `[B, 259, dim]`."""
        b = len(features)
        return torch.cat([self.start_img.expand(b, -1, -1), self.visual_proj(features), self.end_img.expand(b, -1, -1)], 1)

    def turns(self, positions):
        """Cosines and sines for `positions` `[B or 1, T]`."""
        d = self.cfg.dim // self.cfg.n_heads
        freq = self.cfg.rope_theta ** (-torch.arange(0, d, 2).float() / d)
        angle = positions.float()[..., None, None] * freq
        return angle.cos(), angle.sin()

    def forward(self, x, positions, mask, caches=None, balance=None, heed=None):
        """`balance` collects what each layer's router chose, `heed` the queries and keys of each layer: for the trainer."""
        turn = self.turns(positions)
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, mask, caches[i] if caches is not None else None, balance, heed)
        return self.norm(x)


# ---- the checkpoint ------------------------------------------------------------------------------------------------------
def to_checkpoint(towers: Towers, decoder: Decoder) -> dict[str, torch.Tensor]:
    """The public layout: prefix `llma.`, half precision, a mixture's experts stacked in rows."""
    out = {}
    for name, value in (decoder.state_dict() | towers.state_dict()).items():
        if value.dim() == 3 and ".feed_forward.w" in name:
            value = value.flatten(0, 1)
        out["llma." + name] = value.half().contiguous()
    return out


def from_checkpoint(state: dict[str, torch.Tensor], cfg: Config) -> tuple[Towers, Decoder]:
    """Modules in f32 from a checkpoint's tensors."""
    towers, decoder = Towers(cfg), Decoder(cfg)
    for module in (towers, decoder):
        own = module.state_dict()
        module.load_state_dict({k: state["llma." + k].float().reshape(v.shape) for k, v in own.items()})
    return towers.eval(), decoder.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    for cfg in (Config(), Config(experts=8)):
        towers, decoder = Towers(cfg), Decoder(cfg)
        n = [count(m) for m in (towers.openclip_convnext_xxl, towers.dinov2_vitg14, decoder)]
        print(asdict(cfg), f"ConvNeXt {n[0]:,} DINOv2 {n[1]:,} decoder {n[2]:,}: {2 * sum(n) / 1e6:.2f} MB in f16")
