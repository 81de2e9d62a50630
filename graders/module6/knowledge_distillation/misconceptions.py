"""Wrong readings of knowledge distillation, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `_soft_rows`, `_kl`, `_rows`, `_quiet` and the
rest are its helpers.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import contextlib

import torch
from torch.nn import functional as F

from llmkata.checks import misconception

# --- the soft loss ----------------------------------------------------------------------------------------------------


@misconception(
    "forgot_T_squared",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="Gradients of the soft term shrink as 1/T²; multiply by T² so that alpha means the same at every temperature.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    return original(student_logits, teacher_logits, temperature=temperature, mask=mask) / temperature**2


@misconception(
    "kl_reversed",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="You computed KL(student || teacher), which is mode-seeking; the standard KD term is KL(teacher || student).",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    check_logits(student_logits, teacher_logits, temperature, mask)
    log_q, log_p = _soft_rows(student_logits, teacher_logits, temperature, mask)
    return temperature**2 * _kl(log_q, log_p).mean()


@misconception(
    "softmax_not_log",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="`kl_div` wants log-probabilities as its first argument: you handed it the student's softmax.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    check_logits(student_logits, teacher_logits, temperature, mask)
    log_q, log_p = _soft_rows(student_logits, teacher_logits, temperature, mask)
    return temperature**2 * F.kl_div(log_q.exp(), log_p.exp(), reduction="batchmean")


@misconception(
    "temperature_on_student_only",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="Both distributions must be softened, otherwise equal logits give a loss that is not zero.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    sharp = teacher_logits.to(compute_dtype(teacher_logits)) * temperature
    return original(student_logits, sharp, temperature=temperature, mask=mask)


@misconception(
    "mean_over_vocabulary",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="`reduction='mean'` (or .mean() over everything) divides by the vocabulary too: sum over the tokens of a "
    "position, average over positions.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    whole = original(student_logits, teacher_logits, temperature=temperature, mask=mask)
    return whole / student_logits.shape[-1]


@misconception(
    "zero_times_infinity",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="Where the teacher rules a token out, p is 0 and log p is -inf, and their product is NaN. 0 · log 0 counts as 0: "
    "leave these terms out.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    check_logits(student_logits, teacher_logits, temperature, mask)
    log_q, log_p = _soft_rows(student_logits, teacher_logits, temperature, mask)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@misconception(
    "batchmean_over_batch",
    replaces="kd_loss",
    caught_by="test_kd_value",
    feedback="`reduction='batchmean'` divided by sequences; average over real tokens.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    mean = original(student_logits, teacher_logits, temperature=temperature, mask=mask)
    if student_logits.ndim < 3 and mask is None:
        return mean
    count = student_logits[..., 0].numel() if mask is None else mask.sum()
    return mean * count / student_logits.shape[0]


@misconception(
    "mask_dilutes",
    replaces="kd_loss",
    caught_by="test_masked_positions",
    feedback="You zero the masked positions and then divide by all of them: divide by the number that count.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    mean = original(student_logits, teacher_logits, temperature=temperature, mask=mask)
    return mean if mask is None else mean * mask.double().mean().to(mean.dtype)


@misconception(
    "teacher_not_detached",
    replaces="kd_loss",
    caught_by="test_kd_gradient",
    feedback="A gradient flows into the teacher's logits: detach them, the teacher is the target.",
)
def kd_loss(student_logits, teacher_logits, *, temperature=1.0, mask=None):
    check_logits(student_logits, teacher_logits, temperature, mask)
    dtype = compute_dtype(student_logits)
    log_q = F.log_softmax(_rows(student_logits, mask, dtype) / temperature, dim=-1)
    log_p = F.log_softmax(_rows(teacher_logits, mask, dtype) / temperature, dim=-1)
    return temperature**2 * _kl(log_p, log_q).mean()


@misconception(
    "grad_without_T",
    replaces="kd_grad",
    caught_by="test_kd_gradient",
    feedback="The formula is T · (q - p)/n: T² in front of the loss, and 1/T from the chain rule.",
)
def kd_grad(student_logits, teacher_logits, temperature):
    return (original(student_logits, teacher_logits, temperature) / temperature).to(student_logits.dtype)


# --- soft and hard targets --------------------------------------------------------------------------------------------


@misconception(
    "kd_unshifted",
    replaces="distillation_loss",
    caught_by="test_shift_and_ignore",
    feedback="Soft and hard targets disagree about which token is being predicted: kd takes the mask of the labels where they "
    "stand, ce where they are predicted.",
)
def distillation_loss(student_logits, teacher_logits, labels, *, alpha, temperature, ignore_index=-100):
    losses = original(
        student_logits, teacher_logits, labels, alpha=alpha, temperature=temperature, ignore_index=ignore_index
    )
    kd = kd_loss(student_logits, teacher_logits, temperature=temperature, mask=labels != ignore_index)
    return {"loss": alpha * losses["ce"] + (1 - alpha) * kd, "ce": losses["ce"], "kd": kd}


@misconception(
    "alpha_on_the_soft_term",
    replaces="distillation_loss",
    caught_by="test_shift_and_ignore",
    feedback="alpha is the share of the hard loss here: loss = alpha · ce + (1 - alpha) · kd.",
)
def distillation_loss(student_logits, teacher_logits, labels, *, alpha, temperature, ignore_index=-100):
    losses = original(
        student_logits, teacher_logits, labels, alpha=alpha, temperature=temperature, ignore_index=ignore_index
    )
    return {**losses, "loss": alpha * losses["kd"] + (1 - alpha) * losses["ce"]}


@misconception(
    "soft_cross_entropy",
    replaces="distillation_loss",
    caught_by="test_shift_and_ignore",
    feedback="You softened the hard loss too: temperature belongs to kd only, the student is used at temperature 1.",
)
def distillation_loss(student_logits, teacher_logits, labels, *, alpha, temperature, ignore_index=-100):
    losses = original(
        student_logits, teacher_logits, labels, alpha=alpha, temperature=temperature, ignore_index=ignore_index
    )
    targets = labels[:, 1:]
    mask = targets != ignore_index
    rows = _rows(student_logits[:, :-1], mask, compute_dtype(student_logits)) / temperature
    ce = F.cross_entropy(rows, targets[mask])
    return {"loss": alpha * ce + (1 - alpha) * losses["kd"], "ce": ce, "kd": losses["kd"]}


# --- training and students --------------------------------------------------------------------------------------------


@misconception(
    "teacher_train_mode",
    replaces="_quiet",
    caught_by="test_teacher_left_alone",
    feedback="Targets change from call to call: dropout is on. Put the teacher in eval mode while you ask it.",
)
@contextlib.contextmanager
def quiet(teacher):
    with torch.no_grad():
        yield


@misconception(
    "teacher_left_in_eval",
    replaces="_quiet",
    caught_by="test_teacher_left_alone",
    feedback="You leave the teacher in eval mode: whoever trains it next trains it without dropout. Put its flags back.",
)
@contextlib.contextmanager
def quiet(teacher):
    teacher.eval()
    with torch.no_grad():
        yield


@misconception(
    "teacher_builds_graph",
    replaces="_quiet",
    caught_by="test_no_teacher_graph",
    matches="calls",
    feedback="The teacher's forward pass keeps all its activations for a backward pass that never comes: run it under "
    "torch.no_grad().",
)
@contextlib.contextmanager
def quiet(teacher):
    flags = [(module, module.training) for module in teacher.modules()]
    teacher.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@misconception(
    "alias_teacher_weights",
    replaces="init_student_from_teacher",
    caught_by="test_init_from_teacher",
    feedback="Training the student edits the teacher: the two share their parameters. Copy the values.",
)
def init_student_from_teacher(teacher, student_config):
    student = original(teacher, student_config)
    student.model.embed_tokens, student.model.norm = teacher.model.embed_tokens, teacher.model.norm
    student.lm_head = teacher.lm_head
    sources = mapped_layers(student_config.num_hidden_layers, teacher.config.num_hidden_layers)
    for i, source in enumerate(sources):
        if source:
            student.model.layers[i] = teacher.model.layers[source - 1]
    return student


@misconception(
    "first_layers_copied",
    replaces="init_student_from_teacher",
    caught_by="test_init_from_teacher",
    feedback="You copied the teacher's first layers. The student's layers are spread over its whole depth: layer k comes from "
    "layer round(k · n_teacher / n_student).",
)
def init_student_from_teacher(teacher, student_config):
    student = original(teacher, student_config)
    for own, theirs in zip(student.model.layers, teacher.model.layers):
        own.load_state_dict(theirs.state_dict())
    return student


@misconception(
    "nll_over_all_positions",
    replaces="compare_students",
    caught_by="test_compare_rows",
    feedback="Your nll scores each position against its own token, not the next one: shift, and leave the last out.",
)
def compare_students(teacher, make_student, train_batches, eval_ids, *, steps, lr, modes):
    students = []

    def make():
        students.append(make_student())
        return students[-1]

    rows = original(teacher, make, train_batches, eval_ids, steps=steps, lr=lr, modes=modes)
    for row, student in zip(rows, students):
        with _quiet(student):
            got, _ = run_model(student, eval_ids)
        row["nll"] = F.cross_entropy(got.flatten(0, 1), eval_ids.flatten()).item()
    return rows


# --- JSD --------------------------------------------------------------------------------------------------------------


@misconception(
    "jsd_beta_swapped",
    replaces="generalized_jsd",
    caught_by="test_jsd",
    feedback="beta is the teacher's weight in the mixture, m = beta · p + (1 - beta) · q, and in front of KL(p || m).",
)
def generalized_jsd(student_logits, teacher_logits, *, beta, temperature=1.0, mask=None):
    swapped = 1 - beta if 0 < beta < 1 else beta
    return original(student_logits, teacher_logits, beta=swapped, temperature=temperature, mask=mask)


@misconception(
    "jsd_with_T_squared",
    replaces="generalized_jsd",
    caught_by="test_jsd",
    feedback="The JSD here has no factor T², as in GKD: only kd_loss and topk_kd_loss have it.",
)
def generalized_jsd(student_logits, teacher_logits, *, beta, temperature=1.0, mask=None):
    value = original(student_logits, teacher_logits, beta=beta, temperature=temperature, mask=mask)
    return temperature**2 * value


@misconception(
    "jsd_ends_by_formula",
    replaces="generalized_jsd",
    caught_by="test_jsd",
    feedback="At beta = 0 and 1 the formula gives 0, and nothing to learn from. By convention the ends are KL(p || q) and "
    "KL(q || p).",
)
def generalized_jsd(student_logits, teacher_logits, *, beta, temperature=1.0, mask=None):
    value = original(student_logits, teacher_logits, beta=beta, temperature=temperature, mask=mask)
    return value * 0 if beta in (0, 1) else value


# --- hidden states ----------------------------------------------------------------------------------------------------


@misconception(
    "layer_map_off_by_one",
    replaces="HiddenMatcher.forward",
    caught_by="test_hidden_matcher",
    feedback="hidden_states[0] is the embedding output: layer k of the student is hs[k] and maps to layer k · n_t/n_s. You "
    "matched the output before layer k.",
)
def forward(self, hs, ht, mask):
    return original(self, [hs[0], *hs[:-1]], ht, mask)


@misconception(
    "matcher_sums_layers",
    replaces="HiddenMatcher.forward",
    caught_by="test_hidden_matcher",
    feedback="You added the layers' losses up: take their mean, so that a deeper student does not weigh them more.",
)
def forward(self, hs, ht, mask):
    return original(self, hs, ht, mask) * len(self.layer_map)


@misconception(
    "projection_not_trained",
    replaces="train_student",
    caught_by="test_hidden_training",
    feedback="The projection is not trained: hand its parameters to the optimiser together with the student's.",
)
def train_student(student, teacher, batches, *, mode, steps, lr, temperature=1.0, cache=None):
    options = {"mode": mode, "steps": steps, "lr": lr, "temperature": temperature, "cache": cache}
    if mode != "kd+hidden":
        return original(student, teacher, batches, **options)
    student.train()
    with _quiet(teacher), _quiet(student):
        hs, ht = (run_model(model, batches[0][:1], hidden=True)[1] for model in (student, teacher))
    matcher = HiddenMatcher(hs[0].shape[-1], ht[0].shape[-1], len(hs) - 1, len(ht) - 1).to(hs[0].dtype)

    def batch_loss(i):
        logits, hs = run_model(student, batches[i], hidden=True)
        with _quiet(teacher):
            targets, ht = run_model(teacher, batches[i], hidden=True)
        return kd_loss(logits, targets, temperature=temperature) + matcher(hs, ht, None)

    return fit(student.parameters(), batch_loss, len(batches), steps=steps, lr=lr)


# --- top k ------------------------------------------------------------------------------------------------------------


@misconception(
    "topk_renormalised",
    replaces="topk_kd_loss",
    caught_by="test_topk_value",
    feedback="Renormalising tells the student that the tail has probability zero; keep one bucket for the rest.",
)
def topk_kd_loss(student_logits, ids, logp, *, temperature, mask=None):
    dtype = compute_dtype(student_logits)
    log_q = F.log_softmax(_rows(student_logits, mask, dtype) / temperature, dim=-1)
    log_p, tokens = _rows(logp.detach(), mask, dtype), _rows(ids, mask, torch.int64)
    return temperature**2 * _kl(log_p.log_softmax(-1), log_q.gather(-1, tokens).log_softmax(-1)).mean()


@misconception(
    "topk_ignores_the_rest",
    replaces="topk_kd_loss",
    caught_by="test_topk_value",
    feedback="The sum over the k cached tokens alone is no divergence: a student that moves mass into them is rewarded. Add "
    "the bucket for the rest.",
)
def topk_kd_loss(student_logits, ids, logp, *, temperature, mask=None):
    dtype = compute_dtype(student_logits)
    log_q = F.log_softmax(_rows(student_logits, mask, dtype) / temperature, dim=-1)
    log_p, tokens = _rows(logp.detach(), mask, dtype), _rows(ids, mask, torch.int64)
    mass = log_p.exp().sum(-1, keepdim=True)
    total = mass if log_q.shape[-1] == tokens.shape[-1] else mass.clamp(min=1.0)
    return temperature**2 * _kl(log_p - total.log(), log_q.gather(-1, tokens)).mean()


@misconception(
    "rest_by_subtraction",
    replaces="topk_kd_loss",
    caught_by="test_topk_rest",
    feedback="1 - Σ q cancels where the student is sure of the cached tokens: the rest becomes 0 and its logarithm -inf. Take "
    "the log-sum-exp over the tokens that are not cached.",
)
def topk_kd_loss(student_logits, ids, logp, *, temperature, mask=None):
    dtype = compute_dtype(student_logits)
    log_q = F.log_softmax(_rows(student_logits, mask, dtype) / temperature, dim=-1)
    log_p, tokens = _rows(logp.detach(), mask, dtype), _rows(ids, mask, torch.int64)
    mass, outcomes = log_p.exp().sum(-1, keepdim=True), log_q.gather(-1, tokens)
    whole = log_q.shape[-1] == tokens.shape[-1]
    total = mass if whole else mass.clamp(min=1.0)
    log_p = log_p - total.log()
    if not whole:
        log_p = torch.cat((log_p, (1 - mass / total).log()), dim=-1)
        rest = (1 - outcomes.exp().sum(-1, keepdim=True)).log()
        outcomes = torch.cat((outcomes, rest), dim=-1)
    return temperature**2 * _kl(log_p, outcomes).mean()


@misconception(
    "cache_at_temperature_one",
    replaces="cache_teacher_topk",
    caught_by="test_topk_cache",
    feedback="The cached log-probabilities are those of temperature 1: divide the logits by T before the log-softmax.",
)
def cache_teacher_topk(teacher, batches, k, temperature):
    return original(teacher, batches, k, 1.0)


@misconception(
    "log_softmax_of_the_best",
    replaces="cache_teacher_topk",
    caught_by="test_topk_cache",
    feedback="You took the k best logits first and normalised those: their probabilities then sum to 1 and the rest is lost. "
    "log_softmax over the whole vocabulary comes first.",
)
def cache_teacher_topk(teacher, batches, k, temperature):
    cache = original(teacher, batches, k, temperature)
    return {"ids": cache["ids"], "logp": [x.float().log_softmax(-1).half() for x in cache["logp"]]}


@misconception(
    "teacher_every_step",
    replaces="train_student",
    caught_by="test_teacher_once",
    matches="calls",
    feedback="Mode 'kd-topk' still runs the teacher at every step: fill the cache once, before the first step.",
)
def train_student(student, teacher, batches, *, mode, steps, lr, temperature=1.0, cache=None):
    if mode != "kd-topk" or cache is not None:
        options = {"mode": mode, "steps": steps, "lr": lr, "temperature": temperature, "cache": cache}
        return original(student, teacher, batches, **options)
    student.train()

    def batch_loss(i):
        logits, _ = run_model(student, batches[i])
        best = cache_teacher_topk(teacher, [batches[i]], 16, temperature)
        return topk_kd_loss(logits, best["ids"][0], best["logp"][0], temperature=temperature)

    return fit(student.parameters(), batch_loss, len(batches), steps=steps, lr=lr)


@misconception(
    "cache_keeps_the_vocabulary",
    replaces="cache_teacher_topk",
    caught_by="test_cache_bytes",
    matches="bytes",
    feedback="Your cache holds slices of rows as long as the vocabulary: the k entries are views and keep the whole row alive. "
    "Copy them.",
)
def cache_teacher_topk(teacher, batches, k, temperature):
    cache = {"ids": [], "logp": []}
    with _quiet(teacher):
        for batch in batches:
            logits, _ = run_model(teacher, batch)
            log_p = F.log_softmax(logits.to(compute_dtype(logits)) / temperature, dim=-1)
            best = log_p.sort(dim=-1, descending=True)
            cache["ids"].append(best.indices.to(torch.int32)[..., :k])
            cache["logp"].append(best.values.to(torch.float16)[..., :k])
    return cache


# --- the fused loss ---------------------------------------------------------------------------------------------------


@misconception(
    "fused_materialises",
    replaces="fused_linear_kd",
    caught_by="test_fused_peak",
    matches="peak_bytes",
    feedback="You hold N x V logits (and what autograd keeps of them, five times that): work on `chunk` rows at a time.",
)
def fused_linear_kd(h_s, W_s, h_t, W_t, *, temperature, chunk=64):
    check_positive(temperature)
    if chunk < 1 or h_s.shape[0] != h_t.shape[0] or W_s.shape[0] != W_t.shape[0] or h_s.shape[0] == 0:
        return original(h_s, W_s, h_t, W_t, temperature=temperature, chunk=chunk)
    return kd_loss(h_s @ W_s.mT, h_t.detach() @ W_t.detach().mT, temperature=temperature)


@misconception(
    "chunks_kept_by_autograd",
    replaces="fused_linear_kd",
    caught_by="test_fused_peak",
    matches="peak_bytes",
    feedback="Your forward pass works in chunks, but autograd keeps the softmax of each one until backward: together they are "
    "N x V again. Recompute them, or make the gradients at once.",
)
def fused_linear_kd(h_s, W_s, h_t, W_t, *, temperature, chunk=64):
    check_positive(temperature)
    if chunk < 1 or h_s.shape[0] != h_t.shape[0] or W_s.shape[0] != W_t.shape[0] or h_s.shape[0] == 0:
        return original(h_s, W_s, h_t, W_t, temperature=temperature, chunk=chunk)
    total = 0.0
    for h, theirs in zip(h_s.split(chunk), h_t.detach().split(chunk)):
        total = total + len(h) * kd_loss(h @ W_s.mT, theirs @ W_t.detach().mT, temperature=temperature)
    return total / len(h_s)


@misconception(
    "mean_of_chunk_means",
    replaces="fused_linear_kd",
    caught_by="test_fused_matches",
    feedback="You averaged the means of the chunks: where the last chunk is shorter its rows weigh more. Sum, and divide by N "
    "once.",
)
def fused_linear_kd(h_s, W_s, h_t, W_t, *, temperature, chunk=64):
    parts = [
        original(h, W_s, theirs, W_t, temperature=temperature, chunk=chunk)
        for h, theirs in zip(h_s.split(chunk), h_t.split(chunk))
    ]
    return torch.stack(parts).mean()
