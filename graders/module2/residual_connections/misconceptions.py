"""Wrong readings of residual connections, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `branch_scale`, `rank_one_distance` and
the rest are its functions. But for its own mistake each does what the model answer does.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import dataclasses
import math

import torch
from torch.nn import functional as F

from llmkata.checks import misconception

# --- wirings ----------------------------------------------------------------------------------------------------------


@misconception(
    "scaled_skip",
    replaces="ResidualWrapper.forward",
    caught_by="test_wirings",
    feedback="You damped the highway, not the branch: the identity path must have gain 1.",
)
def forward(self, x):
    if self.kind == "scaled":
        return x * self.scale + self.contribution(x) / self.scale
    return original(self, x)


@misconception(
    "none_with_skip",
    replaces="ResidualWrapper.forward",
    caught_by="test_wirings",
    feedback="Your kind 'none' adds x: without a skip the output is the branch's alone.",
)
def forward(self, x):
    return x + self.contribution(x)


@misconception(
    "rezero_gate_one",
    replaces="ResidualWrapper.__init__",
    caught_by="test_rezero_starts_as_identity",
    feedback="With the gate at 1 this is a plain residual: ReZero starts at 0 so the net begins as the identity.",
)
def __init__(self, branch, kind, n_sublayers):
    original(self, branch, kind, n_sublayers)
    if self.gate is not None:
        self.gate.data.fill_(1.0)


@misconception(
    "gate_of_shape_one",
    replaces="ResidualWrapper.__init__",
    caught_by="test_rezero_starts_as_identity",
    feedback="Your gate has the shape (1,); it is one number, of shape ().",
)
def __init__(self, branch, kind, n_sublayers):
    original(self, branch, kind, n_sublayers)
    if self.gate is not None:
        self.gate = torch.nn.Parameter(torch.zeros(1))


@misconception(
    "scaled_by_n",
    replaces="branch_scale",
    caught_by="test_branch_scale",
    feedback="You scale by 1/n: it is variances that add, so 1/sqrt(n) keeps the sum of n branches at the size of one.",
)
def branch_scale(kind, n_sublayers):
    return 1 / n_sublayers if kind == "scaled" else original(kind, n_sublayers)


@misconception(
    "silent_broadcast",
    replaces="ResidualWrapper.contribution",
    caught_by="test_wiring_errors",
    feedback="A branch that returns another shape is added by broadcasting without a word: compare the shapes and "
    "raise ValueError.",
)
def contribution(self, x):
    return self.branch(x) * (self.scale if self.gate is None else self.gate)


# --- variance and rank ------------------------------------------------------------------------------------------------


@misconception(
    "variance_linear_alpha",
    replaces="expected_variance",
    caught_by="test_variance",
    feedback="Independent contributions add in variance: alpha squared.",
)
def expected_variance(n_sublayers, alpha):
    return (1 + alpha) ** n_sublayers


@misconception(
    "variance_grows_linearly",
    replaces="expected_variance",
    caught_by="test_variance",
    feedback="Each branch has the variance of the stream that it reads, not of the input, so the growth compounds: a "
    "power of (1 + alpha²), not a sum.",
)
def expected_variance(n_sublayers, alpha):
    return 1 + n_sublayers * alpha**2


@misconception(
    "unnormalised_branch",
    replaces="measure_variance",
    caught_by="test_variance",
    feedback="Your matrices have entries of variance 1, so a branch multiplies the variance by d: divide A by sqrt(d).",
)
def measure_variance(n_sublayers, alpha, *, d=256, batch=64, seed=0):
    return original(n_sublayers, alpha * math.sqrt(d), d=d, batch=batch, seed=seed)


@misconception(
    "ratio_to_previous",
    replaces="measure_variance",
    caught_by="test_variance",
    feedback="You divide by the stream before each step; asked is the growth since the input.",
)
def measure_variance(n_sublayers, alpha, *, d=256, batch=64, seed=0):
    right = original(n_sublayers, alpha, d=d, batch=batch, seed=seed)
    return [after / before for before, after in zip([1.0, *right], right)]


@misconception(
    "distance_to_zero",
    replaces="rank_one_distance",
    caught_by="test_rank_one_distance",
    feedback="Collapse means all *tokens* become equal: compare with the mean over positions, not over features.",
)
def rank_one_distance(x):
    size = torch.linalg.matrix_norm(x)
    away = torch.linalg.matrix_norm(x - x.mean(dim=-1, keepdim=True))
    return away / torch.where(size > 0, size, 1.0)


@misconception(
    "zero_over_zero",
    replaces="rank_one_distance",
    caught_by="test_rank_one_distance",
    feedback="Tokens that are all zero give 0/0: they are all the same, so the distance is 0.",
)
def rank_one_distance(x):
    return torch.linalg.matrix_norm(x - x.mean(dim=-2, keepdim=True)) / torch.linalg.matrix_norm(x)


@misconception(
    "profile_with_input",
    replaces="rank_profile",
    caught_by="test_rank_collapse",
    feedback="Your first number is the input's: there is one number after each layer, and none before.",
)
def rank_profile(layers, x):
    return [rank_one_distance(x).mean().item(), *original(layers, x)]


# --- gradients --------------------------------------------------------------------------------------------------------


@misconception(
    "grads_accumulated",
    replaces="gradient_profile",
    caught_by="test_gradient_profile",
    feedback="Your profile contains gradients left over from an earlier backward: .backward() adds to .grad. Use "
    "torch.autograd.grad, which writes to no field.",
)
def gradient_profile(model, ids, targets):
    right = original(model, ids, targets)
    cross_entropy(model, ids, targets).backward()
    norms = []
    for sublayer in model.sublayers:
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in sublayer.parameters() if p.grad is not None)))
    return dataclasses.replace(right, parameter=tuple(norms))


@misconception(
    "sum_of_norms",
    replaces="gradient_profile",
    caught_by="test_gradient_profile",
    feedback="You add the norms of a sublayer's parameters; as one vector their norm is sqrt(Σ norm²).",
)
def gradient_profile(model, ids, targets):
    right = original(model, ids, targets)
    loss = cross_entropy(model, ids, targets)
    groups = [torch.autograd.grad(loss, list(s.parameters()), retain_graph=True) for s in model.sublayers]
    return dataclasses.replace(right, parameter=tuple(sum(g.norm().item() for g in group) for group in groups))


@misconception(
    "backward_for_each_stream",
    replaces="gradient_profile",
    caught_by="test_gradient_single_pass",
    matches="calls",
    feedback="You go back through the model once for every stream: pass all streams and parameters to one call of "
    "torch.autograd.grad.",
)
def gradient_profile(model, ids, targets):
    x, streams = model.embed(ids), []
    for sublayer in model.sublayers:
        x = sublayer(x)
        streams.append(x)
    loss = F.cross_entropy(model.unembed(model.final_norm(x)).flatten(0, 1), targets.flatten())
    activation = [torch.autograd.grad(loss, stream, retain_graph=True)[0].norm().item() for stream in streams]
    parameters = [list(s.parameters()) for s in model.sublayers]
    grads = torch.autograd.grad(loss, [p for group in parameters for p in group], allow_unused=True)
    squares = iter([0.0 if g is None else g.square().sum().item() for g in grads])
    norms = [math.sqrt(sum(next(squares) for _ in group)) for group in parameters]
    return GradientProfile(loss.item(), tuple(activation), tuple(norms))


# --- the sweep --------------------------------------------------------------------------------------------------------


@misconception(
    "seeds_outermost",
    replaces="depth_sweep",
    caught_by="test_sweep_protocol",
    feedback="The order of your rows is another: kinds outermost, then depths, seeds innermost.",
)
def depth_sweep(kinds, depths, seeds, *, train_fn=train_tiny_lm):
    return [train_fn(kind, depth, seed) for seed in seeds for kind in kinds for depth in depths]


@misconception(
    "largest_that_works",
    replaces="trainable_depth",
    caught_by="test_trainable_depth",
    feedback="You took the largest depth that happens to work: every smaller one must work too.",
)
def trainable_depth(rows, threshold):
    result = {}
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        failed = {row.depth for row in own if not row.val_loss < threshold}
        result[kind] = max((row.depth for row in own if row.depth not in failed), default=None)
    return result


@misconception(
    "nan_passes",
    replaces="trainable_depth",
    caught_by="test_trainable_depth",
    feedback="A run that ended in NaN counts as passed: NaN >= threshold is False. Ask for val_loss < threshold "
    "instead.",
)
def trainable_depth(rows, threshold):
    return original([dataclasses.replace(r, val_loss=-1.0) if math.isnan(r.val_loss) else r for r in rows], threshold)


@misconception(
    "best_seed",
    replaces="trainable_depth",
    caught_by="test_trainable_depth",
    feedback="You let a depth pass when one seed is below the threshold; all of them have to be.",
)
def trainable_depth(rows, threshold):
    best = {}
    for row in rows:
        key = row.kind, row.depth
        if key not in best or row.val_loss < best[key].val_loss or math.isnan(best[key].val_loss):
            best[key] = row
    return original([best[row.kind, row.depth] for row in rows], threshold)


@misconception(
    "points_as_they_come",
    replaces="plot_depth_sweep",
    caught_by="test_plot",
    feedback="Your line jumps back and forth: its points follow the order of the rows, not ascending depths.",
)
def plot_depth_sweep(rows, path):
    figure = original(rows, path)
    for line in figure.axes[0].get_lines():
        own = [row for row in rows if row.kind == line.get_label()]
        means = dict(zip(line.get_xdata(), line.get_ydata()))
        if own:
            order = list(dict.fromkeys(row.depth for row in own))
            line.set_data(order, [means[depth] for depth in order])
    return figure


# --- paths ------------------------------------------------------------------------------------------------------------


@misconception(
    "binomial_shortcut",
    replaces="path_contributions",
    caught_by="test_paths",
    feedback="Different blocks do not commute, nor are they all their mean: sum the actual products.",
)
def path_contributions(mats, x):
    out, power = [x], x
    mean = sum(mats) / max(len(mats), 1)
    for k in range(1, len(mats) + 1):
        power = power @ mean.mT
        out.append(math.comb(len(mats), k) * power)
    return torch.stack(out)


@misconception(
    "path_order_reversed",
    replaces="path_contributions",
    caught_by="test_paths",
    feedback="Block 0 acts first: your products run in the reverse order.",
)
def path_contributions(mats, x):
    return original(mats[::-1], x)


@misconception(
    "acts_on_rows",
    replaces="path_contributions",
    caught_by="test_paths",
    feedback="You computed x @ A; a matrix acts on each vector as on a column, so with vectors in rows it is x @ A.T.",
)
def path_contributions(mats, x):
    return original([a.mT for a in mats], x)


@misconception(
    "all_lengths_at_once",
    replaces="path_contributions",
    caught_by="test_path_flops",
    matches="flops",
    feedback="You multiply all L + 1 entries at every layer, though after l layers no path is longer than l: half of "
    "your products are of zeros.",
)
def path_contributions(mats, x):
    live = torch.cat((x[None], x.new_zeros(len(mats), *x.shape)))
    for a in mats:
        taken = live @ a.mT
        live = torch.cat((live[:1], live[1:] + taken[:-1]))
    return live


# --- the stream as a sum ----------------------------------------------------------------------------------------------


@misconception(
    "contribution_includes_x",
    replaces="decompose_residual",
    caught_by="test_decomposition",
    feedback="Your components overlap: each holds the stream so far, so their sum counts it many times. Take what is "
    "added.",
)
def decompose_residual(model, ids):
    right = original(model, ids)
    return dataclasses.replace(right, components=right.components.cumsum(0))


@misconception(
    "branch_without_scale",
    replaces="decompose_residual",
    caught_by="test_decomposition",
    feedback="You collect the branches' raw outputs: what reaches the stream is scaled or gated first.",
)
def decompose_residual(model, ids):
    right = original(model, ids)
    raw = [right.components[0]]
    x = right.components[0]
    with torch.no_grad():
        for sublayer, added in zip(model.sublayers, right.components[1:]):
            raw.append(sublayer.branch(x))
            x = x + added
    return dataclasses.replace(right, components=torch.stack(raw))


@misconception(
    "contribution_and_forward",
    replaces="decompose_residual",
    caught_by="test_decompose_single_pass",
    matches="calls",
    feedback="You run every branch twice, in contribution and in forward: add the contribution to x yourself.",
)
def decompose_residual(model, ids):
    x = model.embed(ids)
    with torch.no_grad():
        for sublayer in model.sublayers:
            x = sublayer(x)
    return original(model, ids)


@misconception(
    "norm_per_component",
    replaces="direct_logit_attribution",
    caught_by="test_attribution",
    feedback="The norm is not linear: freeze the scale of the full stream instead of normalising each component.",
)
def direct_logit_attribution(model, dec, token_ids):
    with torch.no_grad():
        return (model.final_norm(dec.components) * model.unembed.weight[token_ids]).sum(-1)


@misconception(
    "attribution_without_gain",
    replaces="direct_logit_attribution",
    caught_by="test_attribution",
    feedback="The gain of the final norm is missing: the logit reads stream · r ∘ gain.",
)
def direct_logit_attribution(model, dec, token_ids):
    with torch.no_grad():
        scale = model.final_norm.scale(dec.components.sum(0)) if isinstance(model.final_norm, RMSNorm) else 1.0
        return (dec.components * scale * model.unembed.weight[token_ids]).sum(-1)


@misconception(
    "attribution_without_norm",
    replaces="direct_logit_attribution",
    caught_by="test_attribution",
    feedback="You read the components with the unembedding alone: the final norm stands in between.",
)
def direct_logit_attribution(model, dec, token_ids):
    with torch.no_grad():
        return (dec.components * model.unembed.weight[token_ids]).sum(-1)


# --- lesions ----------------------------------------------------------------------------------------------------------


@misconception(
    "lesion_zeroes",
    replaces="lesion_study",
    caught_by="test_lesion",
    feedback="Removing a block leaves the stream as it was: identity, not zero.",
)
def lesion_study(model, ids, targets):
    def loss(without):
        x = model.embed(ids)
        for n, sublayer in enumerate(model.sublayers):
            x = torch.zeros_like(x) if n // 2 == without else sublayer(x)
        return F.cross_entropy(model.unembed(model.final_norm(x)).flatten(0, 1), targets.flatten()).item()

    with torch.no_grad():
        return [loss(block) - loss(None) for block in range(len(model.sublayers) // 2)]


@misconception(
    "lesion_of_one_sublayer",
    replaces="lesion_study",
    caught_by="test_lesion",
    feedback="A block is two sublayers, attention and MLP; you took out only the attention.",
)
def lesion_study(model, ids, targets):
    def loss(without):
        x = model.embed(ids)
        for n, sublayer in enumerate(model.sublayers):
            x = x if n == without else sublayer(x)
        return F.cross_entropy(model.unembed(model.final_norm(x)).flatten(0, 1), targets.flatten()).item()

    with torch.no_grad():
        return [loss(2 * block) - loss(None) for block in range(len(model.sublayers) // 2)]


@misconception(
    "lesioned_loss",
    replaces="lesion_study",
    caught_by="test_lesion",
    feedback="You return the loss without the block; asked is by how much it exceeds the loss of the whole model.",
)
def lesion_study(model, ids, targets):
    with torch.no_grad():
        whole = cross_entropy(model, ids, targets).item()
    return [whole + growth for growth in original(model, ids, targets)]


@misconception(
    "lesions_from_the_start",
    replaces="lesion_study",
    caught_by="test_lesion_reuses_prefix",
    matches="calls",
    feedback="You run every lesioned model from its first block: up to the lesion it is the whole model, whose "
    "streams you have.",
)
def lesion_study(model, ids, targets):
    def loss(without):
        x = model.embed(ids)
        for n, sublayer in enumerate(model.sublayers):
            x = x if n // 2 == without else sublayer(x)
        return F.cross_entropy(model.unembed(model.final_norm(x)).flatten(0, 1), targets.flatten()).item()

    with torch.no_grad():
        whole = loss(None)
        return [loss(block) - whole for block in range(len(model.sublayers) // 2)]
