"""Train by DeepSpeed. No other package imports it, and this file runs before it is imported."""

import os

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
