"""Pretraining of masked language models with DeepSpeed, from one laptop CPU to many nodes."""

__version__ = "0.1.0"
