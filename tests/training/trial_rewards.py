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


class Unfrozen(Fine):
    """No module itself, so that nobody froze its head, and in numpy before it."""

    def __init__(self):
        self.head = torch.nn.Linear(3, 1)

    def reward(self, images, prompts):
        means = images.detach().cpu().numpy().mean((2, 3))
        return self.head(torch.from_numpy(means))[:, 0]


class Unrecorded(Fine):
    @torch.no_grad()
    def reward(self, images, prompts):
        return super().reward(images, prompts)


class Bytes(Fine):
    def reward(self, images, prompts):
        return super().reward((images * 255).to(torch.uint8) / 255.0, prompts)


class InNumpy(Fine):
    def reward(self, images, prompts):
        return images.detach().cpu().numpy().mean((1, 2, 3))
