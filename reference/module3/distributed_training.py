"""Oracle of 3.3: one process with the batches of all ranks, in float64; PyTorch's sampler; sums instead of rings.

The small language model of the grader's ranks is here as a function of its parameters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler


def shard_indices(n, world_size, rank, *, epoch, seed, shuffle, drop_last):
    sampler = DistributedSampler(
        range(n), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed, drop_last=drop_last
    )
    sampler.set_epoch(epoch)
    return list(sampler)


def plan_buckets(nbytes, cap_bytes, dtypes=None):
    """Each bucket is the longest admissible run at the end of what is left, but at least one parameter."""
    left, plan = list(range(len(nbytes))), []
    while left:
        fits = [
            k
            for k in range(1, len(left) + 1)
            if sum(nbytes[i] for i in left[-k:]) <= cap_bytes
            and (dtypes is None or len({dtypes[i] for i in left[-k:]}) == 1)
        ]
        k = max(fits, default=1)
        plan.append(left[-k:][::-1])
        left = left[:-k]
    return plan


def communication_report(nbytes, world_size, cap_bytes):
    collectives, payload, others = len(plan_buckets(nbytes, cap_bytes)), sum(nbytes), world_size - 1
    return {
        "collectives": collectives,
        "payload_bytes": payload,
        "ring_bytes_per_rank": (payload * others + payload * others) // world_size,
        "ring_messages_per_rank": sum(others + others for _ in range(collectives)),
    }


def logits(weights, ids):
    """Embedding, mean so far, two tanh layers, and the embedding again; weights: embedding, w1, b1, w2, b2."""
    embedding, w1, b1, w2, b2 = weights
    h = embedding[ids].cumsum(1) / torch.arange(1, ids.shape[1] + 1).view(1, -1, 1)
    h = torch.tanh(torch.tanh(h @ w1.T + b1) @ w2.T + b2)
    return h @ embedding.T


def token_losses(weights, sequence):
    """The loss of each token but the first, given those before it."""
    return F.cross_entropy(logits(weights, sequence[None])[0, :-1], sequence[1:], reduction="none")


def gradients(loss, weights):
    return [torch.zeros_like(w) if g is None else g
            for w, g in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True))]


def pooled(weights, sequences):
    """(mean loss per token, its gradients) of all sequences together."""
    weights = [w.detach().double().requires_grad_() for w in weights]
    loss = torch.cat([token_losses(weights, s) for s in sequences]).mean()
    return float(loss), gradients(loss, weights)


def descend(weights, steps, lr):
    """Gradients of plain SGD, step by step, each on its own list of sequences."""
    weights, history = [w.double() for w in weights], []
    for sequences in steps:
        _, grads = pooled(weights, sequences)
        history.append(grads)
        weights = [w - lr * g for w, g in zip(weights, grads)]
    return history


def trained(weights, dataset, world_size, *, steps, per_step, lr, seed):
    """(losses, weights) of SGD with momentum 0.9 in one process, on what all ranks take in each step."""
    streams = []
    for rank in range(world_size):
        stream, epoch = [], 0
        while len(stream) < steps * per_step:
            stream += shard_indices(
                len(dataset), world_size, rank, epoch=epoch, seed=seed, shuffle=True, drop_last=False
            )
            epoch += 1
        streams.append(stream)
    weights = [w.double() for w in weights]
    velocity, losses = [torch.zeros_like(w) for w in weights], []
    for step in range(steps):
        taken = [i for stream in streams for i in stream[step * per_step : (step + 1) * per_step]]
        loss, grads = pooled(weights, [dataset[i] for i in taken])
        velocity = [0.9 * v + g for v, g in zip(velocity, grads)]
        weights = [w - lr * v for w, v in zip(weights, velocity)]
        losses.append(loss)
    return losses, weights


def mean_gradients(losses, parameters):
    """Average over ranks of the gradients of each rank's loss, a function of the parameters (a dict)."""
    total = None
    for loss in losses:
        leaves = {name: p.detach().double().requires_grad_() for name, p in parameters.items()}
        grads = gradients(loss(leaves), list(leaves.values()))
        total = grads if total is None else [a + b for a, b in zip(total, grads)]
    return {name: g / len(losses) for name, g in zip(parameters, total)}


def chain_gradients(layers, inputs):
    """Per layer (weight, bias) gradients of a chain of tanh layers, summed over the inputs' mean squares."""
    leaves = [t.detach().double().requires_grad_() for layer in layers for t in layer]
    total = 0.0
    for x in inputs:
        x = x.double()
        for w, b in zip(leaves[::2], leaves[1::2]):
            x = torch.tanh(x @ w.T + b)
        total = total + x.square().mean()
    grads = gradients(total, leaves)
    return list(zip(grads[::2], grads[1::2]))
