"""Oracle of 6.4 knowledge_distillation: float64, position by position, every probability written out.

Divergences are sums over the outcomes that are possible; logarithms come from a log-sum-exp, so that probabilities
which underflow still have one. Gradients of the fused loss come from autograd through products that hold
everything. Training is a plain loop over parameters in a dict, with AdamW written out.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import logsumexp

F64 = torch.float64


def log_distribution(row, temperature):
    """log softmax(row / T) of one position, by a log-sum-exp."""
    z = np.asarray(row, dtype=np.float64) / temperature
    top = z.max()
    return z - (top + math.log(np.exp(z - top).sum()))


def kl(log_p, log_q):
    """Σ p (log p - log q) over the outcomes with p > 0."""
    possible = np.exp(log_p) > 0
    log_p, log_q = log_p[possible], log_q[possible]
    return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def positions(logits, mask=None):
    """The rows of (..., V) whose mask is True."""
    rows = logits.detach().double().numpy().reshape(-1, logits.shape[-1])
    return rows if mask is None else rows[mask.numpy().reshape(-1)]


def pairs(student, teacher, temperature, mask):
    """(log p, log q) of each position that counts."""
    for s, t in zip(positions(student, mask), positions(teacher, mask)):
        yield log_distribution(t, temperature), log_distribution(s, temperature)


def scalar(values):
    return torch.tensor(sum(values) / len(values), dtype=F64)


def kd_loss(student, teacher, *, temperature=1.0, mask=None):
    return temperature**2 * scalar([kl(p, q) for p, q in pairs(student, teacher, temperature, mask)])


def kd_grad(student, teacher, temperature, mask=None):
    """T (q - p) / n at the positions that count, 0 elsewhere."""
    grad = np.zeros((student[..., 0].numel(), student.shape[-1]))
    real = np.arange(len(grad)) if mask is None else np.flatnonzero(mask.numpy())
    for row, (p, q) in zip(real, pairs(student, teacher, temperature, mask)):
        grad[row] = temperature * (np.exp(q) - np.exp(p)) / len(real)
    return torch.from_numpy(grad).reshape(student.shape)


def generalized_jsd(student, teacher, *, beta, temperature=1.0, mask=None):
    losses = []
    for p, q in pairs(student, teacher, temperature, mask):
        if beta in (0, 1):
            losses.append(kl(p, q) if beta == 0 else kl(q, p))
            continue
        m = logsumexp([p, q], axis=0, b=[[beta], [1 - beta]])
        losses.append(beta * kl(p, m) + (1 - beta) * kl(q, m))
    return scalar(losses)


def distillation_loss(student, teacher, labels, *, alpha, temperature, ignore_index=-100):
    """Every position is asked in turn whether it has a target, and which."""
    ce, kd = [], []
    batch, length = labels.shape
    for b in range(batch):
        for t in range(length - 1):
            target = int(labels[b, t + 1])
            if target != ignore_index:
                s, teach = student[b, t].double().numpy(), teacher[b, t].double().numpy()
                ce.append(-log_distribution(s, 1.0)[target])
                p, q = log_distribution(teach, temperature), log_distribution(s, temperature)
                kd.append(temperature**2 * kl(p, q))
    ce, kd = scalar(ce), scalar(kd)
    return {"loss": alpha * ce + (1 - alpha) * kd, "ce": ce, "kd": kd}


def layer_map(n_student, n_teacher):
    """The nearest teacher layer to k · n_t / n_s, the even one of two equally near."""
    nearest = []
    for k in range(1, n_student + 1):
        best = min(range(n_teacher + 1), key=lambda j: (abs(j * n_student - k * n_teacher), j % 2))
        nearest.append(best)
    return nearest


def hidden_loss(weight, hs, ht, mask, kind):
    """The matcher's loss with this projection (d_t, d_s)."""
    per_layer = []
    for k, source in enumerate(layer_map(len(hs) - 1, len(ht) - 1), start=1):
        terms = []
        for s, t in zip(positions(hs[k], mask), positions(ht[source], mask)):
            got = weight.double().numpy() @ s
            if kind == "mse":
                terms.append(float(np.mean((got - t) ** 2)))
            else:
                terms.append(1 - float(got @ t / (np.linalg.norm(got) * np.linalg.norm(t))))
        per_layer.append(sum(terms) / len(terms))
    return scalar(per_layer)


def topk_kd_loss(student, ids, logp, *, temperature, mask=None):
    """KL between two distributions over k + 1 outcomes, each written out."""
    losses = []
    for s, tokens, lp in zip(positions(student, mask), positions(ids, mask).astype(int), positions(logp, mask)):
        q, p = log_distribution(s, temperature), np.exp(lp)
        others = np.setdiff1d(np.arange(len(q)), tokens)
        if len(others) == 0 or p.sum() > 1:
            p, rest = p / p.sum(), 0.0
        else:
            rest = 1 - p.sum()
        outcomes = [(a, q[token]) for a, token in zip(p, tokens)]
        if rest > 0:
            outcomes.append((rest, logsumexp(q[others])))
        losses.append(sum(a * (math.log(a) - log_b) for a, log_b in outcomes if a > 0))
    return temperature**2 * scalar(losses)


# --- the fused loss, unfused ------------------------------------------------------------------------------------------


def soft_loss(student, teacher, temperature):
    """`kd_loss` for autograd: all of p and q at once."""
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()


def fused_linear_kd(h_s, W_s, h_t, W_t, temperature):
    """(loss, [gradient of h_s, gradient of W_s])."""
    h, W = (x.detach().double().requires_grad_(True) for x in (h_s, W_s))
    loss = soft_loss(h @ W.T, h_t.double() @ W_t.double().T, temperature)
    return loss.detach(), list(torch.autograd.grad(loss, (h, W)))


# --- training a model that fits into three lines -----------------------------------------------------------------------


def forward(parameters, ids):
    """The small model of the training checks: (logits, hidden states)."""
    states = [parameters["embed"][ids]]
    for mix in parameters["mixes"]:
        states.append(torch.tanh(states[-1] @ mix.T))
    return states[-1] @ parameters["head"].T, states


def adamw(leaves, gradients, memory, step, lr):
    """One step of AdamW without weight decay (beta 0.9 and 0.999, eps 1e-8), in place."""
    for leaf, g, (m, v) in zip(leaves, gradients, memory):
        m.mul_(0.9).add_(0.1 * g)
        v.mul_(0.999).add_(0.001 * g * g)
        scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
        leaf.data -= lr * (m / (1 - 0.9**step)) / scale


def train(student, teacher, batches, *, mode, steps, lr, temperature=1.0, k=16):
    """(losses, parameters afterwards) of `train_student` with two such models of one width."""
    student = {name: x if name == "mixes" else x.clone() for name, x in student.items()}
    student["mixes"] = [x.clone() for x in student["mixes"]]
    width = student["embed"].shape[1]
    projection = torch.eye(width, dtype=F64)
    leaves = [student["embed"], *student["mixes"], student["head"], projection]
    for leaf in leaves:
        leaf.requires_grad_(True)
    memory = [(torch.zeros_like(x), torch.zeros_like(x)) for x in leaves]
    losses = []
    for step in range(steps):
        ids = batches[step % len(batches)]
        logits, hs = forward(student, ids)
        targets, ht = forward(teacher, ids)
        if mode == "ce":
            q = logits[:, :-1].softmax(-1)
            loss = -q.gather(-1, ids[:, 1:, None]).log().mean()
        elif mode == "kd-topk":
            loss = topk_soft_loss(logits, targets, temperature, k)
        else:
            loss = soft_loss(logits, targets, temperature)
        if mode == "kd+hidden":
            sources = layer_map(len(hs) - 1, len(ht) - 1)
            loss = loss + sum(((h @ projection.T - ht[j]) ** 2).mean() for h, j in zip(hs[1:], sources)) / len(sources)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients)]
        adamw(leaves, gradients, memory, step + 1, lr)
        losses.append(float(loss))
    return losses, [x.detach() for x in leaves[:-1]]


def topk_soft_loss(logits, targets, temperature, k):
    """KL over the teacher's k best tokens and the rest, from the stored half-precision logarithms."""
    p, q = (targets / temperature).softmax(-1), (logits / temperature).softmax(-1)
    best = p.argsort(-1, descending=True)[..., :k]
    p_best, q_best = p.gather(-1, best).log().half().double().exp(), q.gather(-1, best)
    total = p_best.sum(-1, keepdim=True)
    if k == p.shape[-1]:
        p_best = p_best / total
        return temperature**2 * (p_best * (p_best.log() - q_best.log())).sum(-1).mean()
    rest_p, rest_q = 1 - total.squeeze(-1), 1 - q_best.sum(-1)
    divergence = (p_best * (p_best.log() - q_best.log())).sum(-1) + rest_p * (rest_p.log() - rest_q.log())
    return temperature**2 * divergence.mean()
