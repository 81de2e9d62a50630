"""The oracle of the toy exercise."""

import torch


def softmax(x):
    return torch.softmax(x.double(), -1).to(x.dtype)


def magic(n):
    return (48271 * n + 11) % 2147483647
