"""open_clip's CLIP written anew in plain torch, with the names of its state dict: what HPSv2's files hold."""

import torch
from torch import nn
from torch.nn import functional as F

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def quick_gelu(x):
    """OpenAI's CLIP has this where open_clip's models have GELU."""
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    activation = staticmethod(F.gelu)

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        width = sizes.vision_width
        self.conv1 = nn.Conv2d(3, width, sizes.patch, sizes.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((sizes.image // sizes.patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, sizes.vision_layers, sizes.vision_heads)
        self.proj = nn.Parameter(torch.empty(width, sizes.features))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenClip(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.visual = Visual(sizes)
        self.transformer = Transformer(sizes.text_width, sizes.text_layers, sizes.text_heads)
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes.tokens, sizes.text_width))
        self.ln_final = nn.LayerNorm(sizes.text_width)
        self.text_projection = nn.Parameter(torch.empty(sizes.text_width, sizes.features))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def openai(self):
        """This model as OpenAI's CLIP computes."""
        for block in (*self.visual.transformer.resblocks, *self.transformer.resblocks):
            block.activation = quick_gelu
        return self

    def text(self, ids):
        """[B, length] -> [B, features]; the features of the highest id, which is the end of text."""
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1).to(self.positional_embedding.dtype)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection

    def cosine(self, images, ids):
        """images [B, 3, size, size] in [0, 1] -> [B]"""
        return (self.image(images) * F.normalize(self.text(ids), dim=-1)).sum(-1)

    def image(self, images):
        """images [B, 3, size, size] in [0, 1] -> unit features [B, features]"""
        return F.normalize(self.visual((images - MEAN.to(images)) / STD.to(images)), dim=-1)
