"""Training-free baseline: masked average pooling and cosine similarity."""

from methods.prototype.module import Prototype

__all__ = ["Prototype"]
