"""Budgets of 3.2 lora_finetuning.

The FLOPs of a training step are taken from the recorded program, run again on fresh values. Calls of the model are
counted by a model that is handed in. Bytes of the optimiser and bytes of the injection are summed where they arise.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

from llmkata.checks import check, hint, needs, points, probe, task

COMPONENTS = Path(__file__).parents[3] / "components"
TINY = COMPONENTS / "tiny_llama_qa"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
records = runpy.run_path(str(TINY / "language.py"))["records"]

# --- a training step --------------------------------------------------------------------------------------------------

HIDDEN, MIDDLE, VOCABULARY, LAYERS, HEADS, R = 128, 344, 64, 2, 4, 8
CONFIG = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": MIDDLE, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": False, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}  # fmt: skip
SHAPES = {f"self_attn.{n}_proj": (HIDDEN, HIDDEN) for n in "qkvo"} | {
    "mlp.gate_proj": (MIDDLE, HIDDEN), "mlp.up_proj": (MIDDLE, HIDDEN), "mlp.down_proj": (HIDDEN, MIDDLE)
}  # fmt: skip


def random_weights(rng):
    """Weights of a LLaMA of CONFIG, float32."""
    weights = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=rng),
        "lm_head.weight": torch.randn(VOCABULARY, HIDDEN, generator=rng) / HIDDEN**0.5,
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for i in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{i}.{name}.weight"] = torch.ones(HIDDEN)
        for name, shape in SHAPES.items():
            weights[f"model.layers.{i}.{name}.weight"] = torch.randn(shape, generator=rng) / shape[1] ** 0.5
    return weights


@probe
def training_step(module, config, weights, factors, targets, rank, ids, cotangent):
    """Logits and the gradients of all factors, of a LLaMA with these weights and factors."""
    import torch
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)  # its buffer was on meta
    model.load_state_dict(weights, assign=True)
    module.inject_lora(model, module.LoraSpec(rank, 2.0 * rank, targets))
    with torch.no_grad():
        for key, value in factors.items():
            model.get_parameter(key).copy_(value)
    logits = model(input_ids=ids, use_cache=False).logits
    logits.backward(cotangent)
    return logits.detach(), {key: model.get_parameter(key).grad for key in factors}


def step_run(budget, reference, rng, targets):
    """The replayed step with these targets; 2 sequences of 32 tokens."""
    weights = random_weights(rng)
    names = [f"model.layers.{i}.{n}" for i in range(LAYERS) for n in SHAPES if n.rpartition(".")[2] in targets]
    factors = {}
    for name in names:
        out, width = SHAPES[name.split(".", 3)[3]]
        factors[f"{name}.lora_A"] = torch.randn(R, width, generator=rng) / width**0.5
        factors[f"{name}.lora_B"] = torch.randn(out, R, generator=rng) / R**0.5
    ids = torch.randint(VOCABULARY, (2, 32), generator=rng)
    cotangent = torch.randn(2, 32, VOCABULARY, generator=rng)

    def scenario(s, weights, factors, cotangent):
        return s.run(training_step, CONFIG, weights, factors, targets, R, ids, cotangent)

    def expect(weights, factors, cotangent):
        leaves = {k: v.double().requires_grad_() for k, v in factors.items()}
        pairs = {n: (leaves[f"{n}.lora_A"], leaves[f"{n}.lora_B"]) for n in names}
        adapted = reference.adapted({k: v.double() for k, v in weights.items()}, pairs, 2.0)
        logits = torch.stack([reference.llama(adapted, CONFIG, row) for row in ids])
        # Of a sum: given a cotangent, torch.autograd imports sympy, which is half a second.
        grads = torch.autograd.grad((logits * cotangent).sum(), list(leaves.values()))
        return logits.detach().float(), {k: g.float() for k, g in zip(leaves, grads, strict=True)}

    return budget.replay(scenario, weights, factors, cotangent, expect=expect, tol=1e-2)


@task(2)
@points(5)
@needs("test_matches_peft", "test_frozen_base")
@hint(
    "Two thin products, B(A x), each way. Forming W + s·BA costs 2·r·in·out, and then its gradient the full dW.",
    "A frozen base needs no dW: that third of the FLOPs of full fine-tuning is what LoRA saves in time.",
)
def test_train_flops(submission, budget, reference, torch_rng):
    """A training step costs two thirds of full fine-tuning: no gradient of a frozen weight, no product BA."""
    # T = 64 tokens. Weights in products: N = 2 (4·128² + 3·128·344) + 64·128 = 403 456; attention of 2 sequences and 4
    # heads: 4·2·4·32²·32 = 1 048 576 a layer forward, twice that backward, M = 3·2 of it = 6 291 456.
    # Full fine-tuning: 6NT + M = 161 218 560.
    # LoRA: 2NT forward, 2NT for the gradients of what weights are multiplied with (but not of the first layer's input:
    # less 2T·128² for each of q, k, v where only factors need it), and for a layer of in x out 3 times 2Tr(in + out),
    # less 2Tr·in for the first layer's A.
    tokens = 64
    n = LAYERS * sum(o * i for o, i in SHAPES.values()) + VOCABULARY * HIDDEN
    attention = 3 * LAYERS * 4 * 2 * HEADS * 32**2 * (HIDDEN // HEADS)
    full = 6 * n * tokens + attention
    for targets, limit in ((PROJECTIONS, 0.76), (("q_proj", "v_proj"), 0.69)):
        run = step_run(budget, reference, torch_rng, targets)
        budget.require(
            f"FLOPs of a step with {len(targets)} targets",
            run.flops,
            at_most=limit * full,
            at_least=0.5 * full,
            reference=full,
        )


# --- memory of the optimiser ------------------------------------------------------------------------------------------


@probe
def optimizer_bytes(module, folder, rows, spec, called):
    """finetune for two steps; tells the bytes of the optimiser's state and the trainable parameters it should have."""
    import json
    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import PreTrainedTokenizerFast
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    folder = Path(folder)
    tok = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(folder / "tokenizer.json")),
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})

    def watch(optimizer, *_):
        state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        called(sum(t.numel() * t.element_size() for t in state))

    hook = register_optimizer_step_post_hook(watch)
    examples = [
        module.PubMedQAExample(p, r["QUESTION"], tuple(r["CONTEXTS"]), (), "", r["final_decision"])
        for p, r in rows.items()
    ]
    module.finetune(
        model, tok, examples, module.LoraSpec(**spec), steps=2, lr=1e-3, batch_size=2, seed=0, max_length=40
    )
    hook.remove()


@task(4)
@points(3)
@needs("test_finetune_contract")
@hint("[p for p in model.parameters() if p.requires_grad], after the injection.")
def test_optimizer_bytes(submission, budget):
    """AdamW's state is 8 bytes for each number of a factor, and nothing for the base."""
    # q and v, r = 4, 2 layers: 4 · 4 · 128 = 2048 numbers, 16 384 bytes, and 8 step counters of 4. The base would be
    # 96 960 · 8 = 775 680 more.
    told = []
    submission.run(optimizer_bytes, str(TINY), records("general", 4, seed=71), {"r": 4, "alpha": 8.0}, told.append)
    check(len(told) == 2, "The optimiser steps once a step.", got=len(told), want=2)
    ideal = 8 * 4 * 4 * 128
    budget.require(
        "bytes of AdamW's state", max(told), at_most=1.02 * ideal, at_least=ideal, reference=ideal, unit="bytes"
    )


# --- calls of the model -----------------------------------------------------------------------------------------------


@probe
def scores_counted(module, prompts, options, size, called):
    """score_options on a bag of embeddings that tells of each call."""
    from types import SimpleNamespace

    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(32, 8)

        def forward(self, input_ids, attention_mask=None, **_):
            called(input_ids.shape[0])
            h = self.embed(input_ids).cumsum(1)
            return SimpleNamespace(logits=h @ self.embed.weight.T)

    class Tokenizer:
        bos_token_id, eos_token_id, pad_token_id = None, 1, 0

        def encode(self, text, add_special_tokens=True):
            return [{"yes": 2, "no": 3, "maybe": 4}[word] for word in text.split()]

    return module.score_options(Model(), Tokenizer(), prompts, options, size)


@task(5)
@points(4)
@needs("test_score_options")
@hint("The logits after the prompt speak about all options at once: one row per prompt is enough.")
def test_forward_calls(submission, budget, torch_rng):
    """Forty prompts and three options of one token take three calls of the model, in batches of 16."""
    # ceil(40/16) = 3. One row per prompt and option: ceil(120/16) = 8; unbatched: 120.
    rows = []
    lengths = torch.randint(1, 9, (40,), generator=torch_rng).tolist()
    prompts = [torch.randint(5, 32, (n,), generator=torch_rng).tolist() for n in lengths]
    submission.run(scores_counted, prompts, ("yes", "no", "maybe"), 16, rows.append)
    check(max(rows) <= 16, "At most batch_size rows a call.", got=max(rows), want=16)
    budget.require("calls of the model", len(rows), at_most=3, at_least=3, unit="calls", trust="handed in")


# --- the real size ----------------------------------------------------------------------------------------------------


@probe
def inject_seven_billion(module, config, spec):
    """inject_lora into LLaMA-7B on meta: bytes that operators make, and what became of the model."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    before = sum(p.numel() for p in model.parameters())
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            result = func(*args, **(kwargs or {}))
            for t in tree_leaves(result):
                if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in old:
                    made.append((t.device.type, t.untyped_storage().nbytes()))
            return result

    with Watch():
        module.inject_lora(model, module.LoraSpec(**spec))
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "base": before,
        "added": sum(p.numel() for p in model.parameters()) - before,
        "trained": sum(p.numel() for p in trained),
        "devices": sorted({p.device.type for p in model.parameters()}),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "made on meta": sum(n for device, n in made if device == "meta"),
        "made in memory": sum(n for device, n in made if device != "meta"),
    }


@task(8)
@points(4)
@needs("test_frozen_base")
@hint(
    "torch.empty(..., device=weight.device, dtype=weight.dtype), and the very Linear as base.",
    "weight.float(), a deepcopy or a new nn.Linear make 27 GB of a model that has 13.",
)
def test_meta_injection(submission, budget):
    """Injecting into LLaMA-7B makes the factors, where and as the weights are, and copies no weight."""
    # r = 16 on 7 projections of 32 layers: 39 976 960 numbers of 2 bytes, 80 MB; on meta, so nothing in memory.
    # A float32 copy of the projections would be 25.9 GB.
    seven = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}  # fmt: skip
    got = submission.run(inject_seven_billion, seven, {"r": 16, "alpha": 32.0, "targets": PROJECTIONS})
    check(got["base"] == 6_738_415_616, "Parameters of LLaMA-7B.", got=got["base"], want=6_738_415_616)
    check(
        (got["added"], got["trained"]) == (39_976_960, 39_976_960),
        "Parameters that are new, and that are trained.",
        got=(got["added"], got["trained"]),
        want=39_976_960,
    )
    check(got["devices"] == ["meta"], "All parameters are where the model is.", got=got["devices"])
    check(got["dtypes"] == ["torch.bfloat16"], "Factors have the dtype of the base.", got=got["dtypes"])
    ideal = 2 * 39_976_960
    budget.require(
        "bytes made on meta", got["made on meta"], at_most=2.1 * ideal, at_least=ideal, reference=ideal, unit="bytes"
    )
    budget.require("bytes made in memory", got["made in memory"], at_most=2**20, unit="bytes")
