"""SigLIP's vision tower and the aesthetic head written out, from their weights alone: no class of transformers."""

import math

import torch
from torch.nn import functional as F


class SiglipOriginal:
    """weights: of SiglipVisionModel, by its names without `vision_model.`. eps: of its layer norms."""

    def __init__(self, weights, layers, heads, patch, eps=1e-6):
        self.weights, self.layers, self.heads, self.patch, self.eps = weights, layers, heads, patch, eps

    def pooled(self, pixels):
        """Normalised pixels [B, 3, S, S] -> the attention pool's output [B, D]."""
        w = self.weights
        x = F.conv2d(pixels, w["embeddings.patch_embedding.weight"], w["embeddings.patch_embedding.bias"], self.patch)
        x = x.flatten(2).mT + w["embeddings.position_embedding.weight"]
        for i in range(self.layers):
            at = f"encoder.layers.{i}."
            inner = self.norm(x, at + "layer_norm1")
            q, k, v = (self.linear(inner, f"{at}self_attn.{name}_proj") for name in "qkv")
            x = x + self.linear(self.attend(q, k, v), at + "self_attn.out_proj")
            x = x + self.mlp(self.norm(x, at + "layer_norm2"), at + "mlp")
        x = self.norm(x, "post_layernorm")
        probe = w["head.probe"].expand(len(x), -1, -1)
        weight, bias = w["head.attention.in_proj_weight"].chunk(3), w["head.attention.in_proj_bias"].chunk(3)
        q, k, v = (F.linear(given, weight[i], bias[i]) for i, given in enumerate((probe, x, x)))
        x = self.linear(self.attend(q, k, v), "head.attention.out_proj")
        return (x + self.mlp(self.norm(x, "head.layernorm"), "head.mlp"))[:, 0]

    def attend(self, q, k, v):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def mlp(self, x, name):
        return self.linear(F.gelu(self.linear(x, f"{name}.fc1"), approximate="tanh"), f"{name}.fc2")

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.eps)


def aesthetic(features, head):
    """Features [B, D] -> scores [B]: unit length, then the head's matrices one after the other."""
    x = features / features.norm(dim=-1, keepdim=True)
    for i in (0, 2, 4, 6, 8):
        x = torch.einsum("bi,oi->bo", x, head[f"scoring_head.{i}.weight"]) + head[f"scoring_head.{i}.bias"]
    return x[:, 0]
