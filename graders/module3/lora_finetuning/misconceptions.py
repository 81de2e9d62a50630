"""Wrong readings of LoRA and of PubMedQA, each as the code it leads to.

They run in the namespace of the model answer: `original` is what is replaced, `_factors`, `_example` and the rest are
its helpers.
"""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import json
import math
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from llmkata.checks import misconception

# --- the layer --------------------------------------------------------------------------------------------------------


@misconception(
    "scale_alpha",
    replaces="LoRALinear.__init__",
    caught_by="test_lora_layer",
    feedback="This behaves exactly as if the scaling were alpha instead of alpha/r: dividing by r keeps the "
    "size of the update when you change the rank.",
)
def __init__(self, base, spec):
    original(self, base, spec)
    self.scaling = spec.scaling * (math.sqrt(spec.r) if spec.use_rslora else spec.r)


@misconception(
    "rslora_linear",
    replaces="LoRALinear.__init__",
    caught_by="test_lora_layer",
    feedback="Rank-stabilised scaling divides by sqrt(r), not by r: with use_rslora your update is too small "
    "by sqrt(r).",
)
def __init__(self, base, spec):
    original(self, base, spec)
    self.scaling = spec.alpha / spec.r


@misconception(
    "b_random",
    replaces="LoRALinear.__init__",
    caught_by="test_init_is_identity",
    feedback="At step 0 the adapted model must be the base model. One factor random, the other zero: A is "
    "drawn, B is not.",
)
def __init__(self, base, spec):
    original(self, base, spec)
    nn.init.kaiming_uniform_(self.lora_B, a=math.sqrt(5))


@misconception(
    "dropout_on_output",
    replaces="LoRALinear.forward",
    caught_by="test_dropout_on_input",
    feedback="Dropout belongs on the input of A. On the output of BA whole numbers of the update vanish at "
    "once, and the r numbers in between never see any.",
)
def forward(self, x):
    y = self.base(x)
    if self.merged or not self.enabled:
        return y
    update = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling
    return y + F.dropout(update, self.dropout, self.training)


@misconception(
    "dropout_on_base",
    replaces="LoRALinear.forward",
    caught_by="test_dropout_on_input",
    feedback="You dropped inputs of the frozen layer as well: base(x) sees x as it is, dropout is for the low- "
    "rank path alone.",
)
def forward(self, x):
    if self.merged or not self.enabled:
        return self.base(x)
    x = F.dropout(x, self.dropout, self.training)
    return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scaling


@misconception(
    "materialised",
    replaces="LoRALinear.forward",
    caught_by="test_train_flops",
    matches="flops",
    feedback="You form W + s·BA in every step: r·in·out for the product, and its gradient is a full dW, which "
    "LoRA is there to avoid. Multiply x by A, then by B.",
)
def forward(self, x):
    if self.merged or not self.enabled or (self.training and self.dropout > 0):
        return original(self, x)
    return F.linear(x, self.base.weight + (self.lora_B @ self.lora_A) * self.scaling, self.base.bias)


# --- into a model -----------------------------------------------------------------------------------------------------


@misconception(
    "targets_by_substring",
    replaces="inject_lora",
    caught_by="test_frozen_base",
    feedback="You look for a target anywhere in the name. A target is the whole last component: 'proj' is not "
    "'q_proj', and 'attn' means no module at all.",
)
def inject_lora(model, spec):
    if lora_layers(model):
        raise ValueError("this model has LoRA layers already")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in linear if any(target in name for target in spec.targets)]
    if not found:
        raise ValueError(f"no linear layer is named like one of the targets {', '.join(spec.targets)}")
    model.requires_grad_(False)
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(model.get_submodule(name), spec))
    return found


@misconception(
    "only_targets_frozen",
    replaces="inject_lora",
    caught_by="test_frozen_base",
    feedback="You froze the layers that got an adapter; embeddings, norms, the head and all other layers still "
    "require grad. Freeze the whole model first.",
)
def inject_lora(model, spec):
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    names = original(model, spec)
    for name, p in model.named_parameters():
        if name in flags:
            p.requires_grad_(flags[name])
    return names


@misconception(
    "backup_from_the_start",
    replaces="LoRALinear.__init__",
    caught_by="test_meta_injection",
    matches="bytes",
    feedback="Each new layer copies its weight, merged or not: that doubles the memory of the model. Keep the "
    "old weight only while a merge is in force.",
)
def __init__(self, base, spec):
    original(self, base, spec)
    self.backup = (base.weight.detach().clone(),)


# --- the data ---------------------------------------------------------------------------------------------------------


@misconception(
    "splitlines",
    replaces="load_pubmedqa",
    caught_by="test_load_pubmedqa",
    feedback="str.splitlines also splits at U+2028 and U+0085, which stand inside abstracts. A line of JSON "
    "ends with '\\n'.",
)
def load_pubmedqa(path):
    text = Path(path).read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and "pubid" not in whole:
        return original(path)
    found = []
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            context = row["context"]
            found.append(_example(row["pubid"], row["question"], context["contexts"], context.get("labels"),
                                  row.get("long_answer"), row.get("final_decision")))  # fmt: skip
    return found


@misconception(
    "truncate_tail",
    replaces="encode_prompt",
    caught_by="test_prompt_truncation",
    feedback="Long abstracts pushed the question and the answer cue out of the window: you cut the ids of the "
    "whole prompt. Cut words of the contexts, then fill the template.",
)
def encode_prompt(ex, tokenizer, max_length):
    original(ex.__class__(ex.pmid, ex.question, (), (), "", None), tokenizer, max_length)  # the question must fit
    room = max_length - max(len(option_ids(tokenizer, option)) for option in OPTIONS)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    text = PROMPT.format(contexts=" ".join(" ".join(ex.contexts).split()), question=ex.question)
    return (bos + tokenizer.encode(text, add_special_tokens=False))[:room]


@misconception(
    "no_room_for_the_answer",
    replaces="encode_prompt",
    caught_by="test_prompt_truncation",
    feedback="The prompt alone fills max_length: with the answer behind it the sequence is too long. Leave "
    "room for the longest option.",
)
def encode_prompt(ex, tokenizer, max_length):
    return original(ex, tokenizer, max_length + max(len(option_ids(tokenizer, option)) for option in OPTIONS))


@misconception(
    "conclusion_leak",
    replaces="encode_prompt",
    caught_by="test_prompt_truncation",
    feedback="LONG_ANSWER, the conclusion, stands in your prompt. It gives the label away; such a score would "
    "not survive an abstract whose conclusion is not known.",
)
def encode_prompt(ex, tokenizer, max_length):
    contexts = (*ex.contexts, ex.long_answer)
    return original(ex.__class__(ex.pmid, ex.question, contexts, ex.labels, "", ex.decision), tokenizer, max_length)


@misconception(
    "loss_on_prompt",
    replaces="encode_example",
    caught_by="test_training_rows",
    feedback="Your labels are the input_ids: you are training the model to write abstracts. Only the answer's "
    "tokens count, the prompt's are -100.",
)
def encode_example(ex, tokenizer, max_length):
    found = original(ex, tokenizer, max_length)
    return {"input_ids": found["input_ids"], "labels": list(found["input_ids"])}


@misconception(
    "padding_is_learned",
    replaces="collate",
    caught_by="test_training_rows",
    feedback="Labels are padded with pad_id: the model learns to predict padding. -100 is what the loss leaves out.",
)
def collate(items, pad_id):
    batch = original(items, pad_id)
    return {**batch, "labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, pad_id)}


# --- training ---------------------------------------------------------------------------------------------------------


@misconception(
    "loss_not_shifted",
    replaces="answer_loss",
    caught_by="test_answer_only_loss",
    feedback="Logits at position t predict the token at t + 1. Unshifted, the model learns to repeat the token "
    "it reads.",
)
def answer_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


@misconception(
    "mean_over_positions",
    replaces="answer_loss",
    caught_by="test_answer_only_loss",
    feedback="You divide by all positions, prompt and padding included: the loss and the gradient shrink with "
    "the length of the abstracts. The mean is over the labelled tokens.",
)
def answer_loss(model, batch):
    labels = batch["labels"][:, 1:]
    return original(model, batch) * (labels != -100).sum() / labels.numel()


@misconception(
    "gradients_pile_up",
    replaces="finetune",
    caught_by="test_finetune_steps",
    feedback="Losses are right for the first step only: you never set gradients to zero, so each step goes along the sum of "
    "all earlier ones.",
)
def finetune(model, tokenizer, examples, spec, *, steps, lr, batch_size, seed, max_length):
    items = [encode_example(ex, tokenizer, max_length) for ex in examples]
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not lora_layers(model):
            inject_lora(model, spec)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        with mode(model, training=True):
            for indices in batches(len(items), batch_size, steps, seed):
                loss = answer_loss(model, collate([items[i] for i in indices], pad_token(tokenizer)))
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses


@misconception(
    "left_in_training_mode",
    replaces="finetune",
    caught_by="test_finetune_contract",
    feedback="After training the model is still in training mode: the next evaluation runs with dropout.",
)
def finetune(model, tokenizer, examples, spec, **options):
    losses = original(model, tokenizer, examples, spec, **options)
    model.train()
    return losses


@misconception(
    "frozen_by_lr_zero",
    replaces="finetune",
    caught_by="test_optimizer_bytes",
    matches="bytes",
    feedback="The base is in the optimiser with a learning rate of 0. It does not move, but AdamW keeps 8 "
    "bytes for each of its numbers, and its gradients are computed. Give it only what requires grad.",
)
def finetune(model, tokenizer, examples, spec, *, steps, lr, batch_size, seed, max_length):
    items = [encode_example(ex, tokenizer, max_length) for ex in examples]
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not lora_layers(model):
            inject_lora(model, spec)
        trainable = [p for p in model.parameters() if p.requires_grad]
        frozen = [p.requires_grad_() for p in model.parameters() if not p.requires_grad]
        groups = [{"params": trainable}, {"params": frozen, "lr": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0)
        with mode(model, training=True):
            for indices in batches(len(items), batch_size, steps, seed):
                loss = answer_loss(model, collate([items[i] for i in indices], pad_token(tokenizer)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    for p in frozen:
        p.requires_grad_(False)
    return losses


# --- scores and metrics -----------------------------------------------------------------------------------------------


@misconception(
    "score_at_last_column",
    replaces="score_options",
    caught_by="test_score_options",
    feedback="logits[:, -1] is the last column, and with padding on the right that is a padding position for "
    "all but the longest rows. Read each row at its own last token.",
)
def score_options(model, tokenizer, prompts, options=OPTIONS, batch_size=16):
    endings = [option_ids(tokenizer, option) for option in options]
    heads = list(dict.fromkeys(tuple(ids[:-1]) for ids in endings))
    rows = [(i, head) for i in range(len(prompts)) for head in heads]
    scores = torch.zeros(len(prompts), len(options))
    with torch.no_grad(), mode(model, training=False):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            items = [{"input_ids": prompts[i] + list(head), "labels": []} for i, head in part]
            batch = collate(items, pad_token(tokenizer))
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for row, (i, head) in zip(logits, part, strict=True):
                log_p = row[-1 - len(head) :].float().log_softmax(-1)
                for k, ids in enumerate(endings):
                    if tuple(ids[:-1]) == head:
                        scores[i, k] = log_p[range(len(ids)), ids].sum()
    return scores


@misconception(
    "mean_of_tokens",
    replaces="score_options",
    caught_by="test_score_options",
    feedback="You average the log-probabilities of an option's tokens. log P(option | prompt) is their sum.",
)
def score_options(model, tokenizer, prompts, options=OPTIONS, batch_size=16):
    sizes = torch.tensor([len(option_ids(tokenizer, option)) for option in options])
    return original(model, tokenizer, prompts, options, batch_size) / sizes


@misconception(
    "log_of_softmax",
    replaces="score_options",
    caught_by="test_score_options",
    feedback="softmax and then log: a probability below 1e-45 is 0 in float32, and its log is -inf. "
    "log_softmax never forms it.",
)
def score_options(model, tokenizer, prompts, options=OPTIONS, batch_size=16):
    return original(model, tokenizer, prompts, options, batch_size).exp().log()


@misconception(
    "one_row_per_option",
    replaces="score_options",
    caught_by="test_forward_calls",
    matches="calls",
    feedback="You run the model once for each pair of prompt and option. The logits after the prompt hold all "
    "options of one token at once.",
)
def score_options(model, tokenizer, prompts, options=OPTIONS, batch_size=16):
    columns = [original(model, tokenizer, prompts, [option], batch_size) for option in options]
    return torch.cat(columns, dim=1)


@misconception(
    "micro_as_macro",
    replaces="pubmedqa_metrics",
    caught_by="test_metrics_official",
    feedback="Counted over all questions, F1 is the accuracy again. PubMedQA reports macro-F1, the mean over "
    "the answers, which is what the rare 'maybe' (11 %) is there for.",
)
def pubmedqa_metrics(truth, predictions):
    found = original(truth, predictions)
    return {**found, "macro_f1": found["accuracy"]}


@misconception(
    "always_three_classes",
    replaces="pubmedqa_metrics",
    caught_by="test_metrics_official",
    feedback="An option that occurs neither among the answers nor among the predictions counts as F1 = 0 in "
    "your mean. The official script leaves it out.",
)
def pubmedqa_metrics(truth, predictions):
    found = original(truth, predictions)
    present = len(set(truth) | set(predictions))
    return {**found, "macro_f1": found["macro_f1"] * present / len(OPTIONS)}


@misconception(
    "confusion_transposed",
    replaces="pubmedqa_metrics",
    caught_by="test_metrics_official",
    feedback="Rows of the confusion matrix are the true answers, columns what was said; yours is the other way round.",
)
def pubmedqa_metrics(truth, predictions):
    found = original(truth, predictions)
    return {**found, "confusion": [list(column) for column in zip(*found["confusion"], strict=True)]}


# --- merging and switching off ----------------------------------------------------------------------------------------


@misconception(
    "merge_without_scale",
    replaces="LoRALinear.merge",
    caught_by="test_merge",
    feedback="Your merged weight is W + BA: the model is off by the factor alpha/r that the forward pass has.",
)
def merge(self):
    scaling, self.scaling = self.scaling, 1.0
    original(self)
    self.scaling = scaling


@misconception(
    "unmerge_by_subtraction",
    replaces="LoRALinear.unmerge",
    caught_by="test_merge",
    feedback="W + s·BA - s·BA is not W in floating point: after merging and unmerging a few times the base has "
    "drifted. Keep the old weight and put it back.",
)
def unmerge(self):
    if self.merged:
        weight = self.base.weight.detach() - self.scaling * (self.lora_B @ self.lora_A).detach()
        self.base.weight = nn.Parameter(weight, requires_grad=self.base.weight.requires_grad)
        self.unmerged_weight, self.merged = None, False


@misconception(
    "merge_in_place",
    replaces="LoRALinear.merge",
    caught_by="test_merge",
    feedback="You add to the weight in place: a module that shares it (a tied embedding) gets the update too.",
)
def merge(self):
    if self.merged:
        return
    with torch.no_grad():
        self.unmerged_weight = self.base.weight.detach().clone()
        self.base.weight.add_(self.lora_B @ self.lora_A, alpha=self.scaling)
    self.merged = True


@misconception(
    "merge_in_half",
    replaces="LoRALinear.merge",
    caught_by="test_merge_in_half_precision",
    feedback="BA, its multiple and the sum are each rounded to bfloat16: several roundings where one would do. "
    "Multiply and add in float32.",
)
def merge(self):
    if self.merged:
        return
    weight = self.base.weight
    with torch.no_grad():
        merged = weight + self.scaling * (self.lora_B @ self.lora_A)
    self.unmerged_weight = weight.detach()
    self.base.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
    self.merged = True


@misconception(
    "not_restored_after_an_error",
    replaces="adapter_disabled",
    caught_by="test_adapter_disabled",
    feedback="An exception inside the block leaves the adapters switched off for good: what restores them "
    "belongs into `finally`.",
)
@contextmanager
def adapter_disabled(model):
    before = [(layer, layer.merged, layer.enabled) for layer in lora_layers(model).values()]
    for layer, _, _ in before:
        layer.unmerge()
        layer.enabled = False
    yield
    for layer, merged, enabled in before:
        layer.enabled = enabled
        if merged:
            layer.merge()


@misconception(
    "merged_is_forgotten",
    replaces="adapter_disabled",
    caught_by="test_adapter_disabled",
    feedback="`enabled = False` does nothing for a layer that is merged: the update is in its weight. Unmerge "
    "it for the block.",
)
@contextmanager
def adapter_disabled(model):
    before = [(layer, layer.enabled) for layer in lora_layers(model).values()]
    try:
        for layer, _ in before:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in before:
            layer.enabled = enabled


@misconception(
    "unload_without_merge",
    replaces="merge_and_unload",
    caught_by="test_merge_and_unload",
    feedback="You put the base layers back as they were: all that was learned is gone. Merge first.",
)
def merge_and_unload(model):
    for layer in lora_layers(model).values():
        layer.unmerge()
    for name, layer in lora_layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.base)
    return model


# --- files ------------------------------------------------------------------------------------------------------------


@misconception(
    "state_dict_names",
    replaces="save_adapter",
    caught_by="test_save_adapter",
    feedback="Your file has the names of your own modules. peft looks for "
    "base_model.model.<name>.lora_A.weight and silently starts from zero where it finds nothing.",
)
def save_adapter(model, spec, directory, base_model_name=""):
    original(model, spec, directory, base_model_name)
    factors = {key: p.detach().contiguous() for key, p in model.named_parameters() if "lora_" in key}
    save_file(factors, Path(directory) / "adapter_model.safetensors")


@misconception(
    "whole_model_saved",
    replaces="save_adapter",
    caught_by="test_save_adapter",
    feedback="The weights of the base are in your file. An adapter is the factors alone: megabytes beside gigabytes.",
)
def save_adapter(model, spec, directory, base_model_name=""):
    original(model, spec, directory, base_model_name)
    base = {key: p.detach().contiguous() for key, p in model.named_parameters() if "lora_" not in key}
    factors = {key: p.detach().contiguous() for key, p in _factors(model).items()}
    save_file(base | factors, Path(directory) / "adapter_model.safetensors")


@misconception(
    "scaling_of_the_model",
    replaces="load_adapter",
    caught_by="test_load_adapter",
    feedback="You load the factors and keep the scaling that the model had. alpha and use_rslora stand in the "
    "file, and the factors mean nothing without them.",
)
def load_adapter(model, directory):
    before = {name: layer.scaling for name, layer in lora_layers(model).items()}
    merged = [layer for layer in lora_layers(model).values() if layer.merged]
    for layer in merged:
        layer.unmerge()
    spec = original(model, directory)
    for name, layer in lora_layers(model).items():
        layer.scaling = before.get(name, layer.scaling)
    for layer in merged:
        layer.merge()
    return spec


@misconception(
    "unknown_factors_ignored",
    replaces="load_adapter",
    caught_by="test_load_adapter",
    feedback="Factors that the model does not have are skipped without a word, so an adapter of another model "
    "seems to load. Compare the two sets of names.",
)
def load_adapter(model, directory):
    directory = Path(directory)
    if lora_layers(model):
        loaded, known = load_file(directory / "adapter_model.safetensors"), _factors(model)
        if loaded.keys() > known.keys():
            save_file({key: loaded[key] for key in known}, directory / "adapter_model.safetensors")
    return original(model, directory)


# --- memory -----------------------------------------------------------------------------------------------------------


@misconception(
    "moments_only",
    replaces="memory_plan",
    caught_by="test_memory_plan",
    feedback="You counted Adam's two moments, 8 bytes. A trained parameter has 16: weight and gradient in 16 "
    "bits, the fp32 master, and the moments.",
)
def memory_plan(config, spec):
    plan = original(config, spec)
    return plan | {"lora_state_bytes": 8 * plan["trainable_params"], "full_finetune_bytes": 8 * plan["total_params"]}


@misconception(
    "adapter_in_the_base",
    replaces="memory_plan",
    caught_by="test_memory_plan",
    feedback="total_params is the base alone: count it before the injection, or leave the factors out.",
)
def memory_plan(config, spec):
    plan = original(config, spec)
    total = plan["total_params"] + plan["trainable_params"]
    return plan | {"total_params": total, "weight_bytes_bf16": 2 * total, "full_finetune_bytes": 16 * total}
