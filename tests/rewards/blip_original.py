"""ImageReward written anew in plain torch with the names of its state dict: BLIP's ViT, its BERT, and the head."""

import math

import torch
from open_clip_original import MEAN, STD
from torch import nn


def attend(query, key, value, heads, mask=0.0):
    """Softmax attention of [B, L, width] over [B, M, width]; mask is added to the logits."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.mT / math.sqrt(query.shape[-1]) + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


class VisionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn["proj"](attend(*self.attn["qkv"](self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTower(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        width = sizes.vision_width
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (sizes.image // sizes.patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, sizes.patch, sizes.patch)})
        self.blocks = nn.ModuleList([VisionBlock(width, sizes.vision_heads) for _ in range(sizes.vision_layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Output(nn.Module):
    """dense, then the norm of the sum with what went in: BERT's order."""

    def __init__(self, width_in, width):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width_in, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    def __init__(self, width, width_seen, heads):
        super().__init__()
        self.heads = heads
        names = {"query": width, "key": width_seen, "value": width_seen}
        self.self = nn.ModuleDict({name: nn.Linear(seen, width) for name, seen in names.items()})
        self.output = Output(width, width)

    def forward(self, x, seen, mask=0.0):
        y = attend(self.self["query"](x), self.self["key"](seen), self.self["value"](seen), self.heads, mask)
        return self.output(y, x)


class TextBlock(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        width = sizes.text_width
        self.attention = Attention(width, width, sizes.text_heads)
        self.crossattention = Attention(width, sizes.vision_width, sizes.text_heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = Output(4 * width, width)

    def forward(self, x, patches, mask):
        x = self.crossattention(self.attention(x, x, mask), patches)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class TextEmbeddings(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.text_width)
        self.position_embeddings = nn.Embedding(sizes.positions, sizes.text_width)
        self.LayerNorm = nn.LayerNorm(sizes.text_width, eps=1e-12)
        self.register_buffer("position_ids", torch.arange(sizes.positions)[None])

    def forward(self, ids):
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]])


class TextEncoder(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.embeddings = TextEmbeddings(sizes)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList([TextBlock(sizes) for _ in range(sizes.text_layers)])})

    def forward(self, ids, patches):
        mask = (ids == 0)[:, None, None] * -10_000.0  # padding is not read
        x = self.embeddings(ids)
        for block in self.encoder["layer"]:
            x = block(x, patches, mask.to(x.dtype))
        return x


class Head(nn.Module):
    """The head of ImageReward and of the aesthetic predictor, with the dropout of its training."""

    def __init__(self, width, widths):
        super().__init__()
        a, b, c, d = widths
        self.layers = nn.Sequential(
            *(nn.Linear(width, a), nn.Dropout(0.2), nn.Linear(a, b), nn.Dropout(0.2)),
            *(nn.Linear(b, c), nn.Dropout(0.1), nn.Linear(c, d), nn.Linear(d, 1)),
        )

    def forward(self, x):
        return self.layers(x)


class Blip(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.visual_encoder, self.text_encoder = VisionTower(sizes), TextEncoder(sizes)
        # In the file, but not in the score.
        self.vision_proj, self.text_proj = nn.Linear(sizes.vision_width, 4), nn.Linear(sizes.text_width, 4)


class OriginalImageReward(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.blip, self.mlp = Blip(sizes), Head(sizes.text_width, sizes.head)

    def score(self, images, ids):
        """images [B, 3, size, size] in [0, 1], ids [B, tokens] -> [B]"""
        patches = self.blip.visual_encoder((images - MEAN.to(images)) / STD.to(images))
        return (self.mlp(self.blip.text_encoder(ids, patches)[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072
