"""Declares the operators of torchvision without which it cannot be imported.

PyPI's build has them for a torch with CUDA. vLLM's Qwen3.5 imports torchvision for text too, in
processes of its own as well, so that every Python of its environment runs this first.
"""

import torch
from torch import library

if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(f"torchvision::{name}", signature)
