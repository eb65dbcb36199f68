"""Rewards of a person's own, each with one fault."""

import torch


class Fine:
    def reward(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([float(len(prompt)) for prompt in prompts])


class NotMade(Fine):
    def __init__(self):
        raise KeyError("no weights")


class Raises(Fine):
    def reward(self, images, prompts):
        return images @ torch.zeros(3)


class OfAnotherShape(Fine):
    def reward(self, images, prompts):
        return super().reward(images, prompts)[:, None]


class Detached(Fine):
    def reward(self, images, prompts):
        return super().reward(images.detach(), prompts)


class Flat(Fine):
    def reward(self, images, prompts):
        return (images * 0).sum((1, 2, 3)) + 1


class Infinite(Fine):
    def reward(self, images, prompts):
        return super().reward(images, prompts) / 0


class SteepSquareRoot(Fine):
    def reward(self, images, prompts):
        return super().reward(images, prompts) + (images * 0).sum((1, 2, 3)).sqrt()


class OfTheBatch(Fine):
    def reward(self, images, prompts):
        return (images - images.mean(0)).square().mean((1, 2, 3)) + images.mean((1, 2, 3))
