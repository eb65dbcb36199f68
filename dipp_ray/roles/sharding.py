"""Weights laid down as ZeRO 3 keeps them: a rank reads its own part of each, and never holds a network whole."""

from typing import Any

import torch
from torch import Tensor, nn

from dipp_ray.models.hollow import Put
from dipp_ray.models.stored import Stored


def in_parts(settings: dict, device: torch.device) -> Put:
    """How a parameter is laid down in this rank of the process group: cut by DeepSpeed, its own part from the file.

    settings: DeepSpeed's, those of the engine that is to be made.
    """
    from deepspeed.runtime.zero.partition_parameters import Init

    cutter: Any = Init(config_dict_or_path=settings)

    def put(parameter: nn.Parameter, stored: Stored, dtype: torch.dtype) -> None:
        # Memory that nothing is written to, in place of the whole: DeepSpeed knows how to cut what is there alone.
        parameter.data = torch.empty(stored.shape, dtype=dtype, device=device)
        cutter._convert_to_deepspeed_param(parameter)
        cut: Any = parameter
        cut.partition()
        own: Tensor = cut.ds_tensor
        start = min(torch.distributed.get_rank() * own.numel(), cut.ds_numel)
        values = stored.part(start, min(start + own.numel(), cut.ds_numel), dtype)
        own.zero_()  # the last part is filled up
        own[: values.numel()].copy_(values)

    return put
