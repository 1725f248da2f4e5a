"""Declares the operators of torchvision without which it cannot be imported.

PyPI's build has them for a torch with CUDA. vLLM's Qwen3.5 imports torchvision for text too, in
processes of its own as well, so that every Python of its environment runs this first.
"""

import torch

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
