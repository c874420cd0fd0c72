"""The only package that imports DeepSpeed. This file runs before any module of it, and so before DeepSpeed."""

import os

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
