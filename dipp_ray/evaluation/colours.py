"""How loud images are: what drifts first where a reward is overdone."""

import numpy as np
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601


def saturation(images: Tensor) -> np.ndarray:
    """[B] in [0, 1], fp64, of images [B, 3, H, W] in [0, 1]: the mean saturation of HSV, 0 of grey and of black."""
    high, low = images.double().amax(1), images.double().amin(1)
    return ((high - low) / high.clamp(min=1 / 510)).mean((1, 2)).cpu().numpy()  # below half a level there is no colour


def contrast(images: Tensor) -> np.ndarray:
    """[B] in [0, 1/2], fp64: the standard deviation of the luma over an image's pixels."""
    luma = (images.double() * images.new_tensor(LUMA).double().view(-1, 1, 1)).sum(1)
    return luma.flatten(1).std(1, correction=0).cpu().numpy()
