"""Hidden correctness checks of 3.2 lora_finetuning.

Core is tasks 1 to 5; tasks 6 (merge, disable), 7 (files) and 8 (memory) are stretch, and no core check touches them.

The layer is held against W + s·BA in float64; the model against what peft itself computed and wrote
(components/peft_adapters, since importing peft takes seconds); scores and losses against a LLaMA in float64 without
padding. Models come from components/tiny_llama_qa and components/peft_adapters.

Mended in the specification:
* `unmerge` keeps the old weight: subtracting s·BA does not give it back.
* Dropout is checked without a fixed generator: with A = I and B a row of ones, the sum of powers of two says which
  inputs were dropped.
* The conclusion must not enter the prompt, whatever the model scores: prompts are compared token by token.
* `answer_loss` and `pubmedqa_metrics` are functions of their own, so that each can be judged by itself.
* An optimiser over frozen parameters makes no state for them; the mistake that costs memory is an unfrozen base.
* The second data set has the answers renamed, so that neither the majority nor the words of the answers help.
"""

from __future__ import annotations

import functools
import json
import math
import runpy
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, sk, task

COMPONENTS = Path(__file__).parents[3] / "components"
TINY, PEFT = COMPONENTS / "tiny_llama_qa", COMPONENTS / "peft_adapters"
F32, F64 = torch.float32, torch.float64
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SPECS = {
    "two": {"r": 4, "alpha": 16.0, "targets": ("q_proj", "v_proj")},
    "all": {"r": 2, "alpha": 6.0, "targets": PROJECTIONS, "use_rslora": True},
}
records = runpy.run_path(str(TINY / "language.py"))["records"]


# --- models and data in the worker ------------------------------------------------------------------------------------


@probe
def load_model(module, folder):
    """The LLaMA of a directory in the hub's layout, float32, evaluation mode."""
    import json
    from pathlib import Path

    import torch
    from safetensors.torch import load_file
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config = LlamaConfig(**json.loads((Path(folder) / "config.json").read_text()))
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
    return model.eval()


@probe
def load_tokenizer(module, folder, bos=True):
    """The tokenizer of a directory; `bos=False` takes its BOS away.

    As LLaMA's does, it puts BOS before what it encodes unless it is told not to add special tokens.
    """
    from pathlib import Path

    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    backend.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, **({"bos_token": "<s>"} if bos else {}))


@probe
def logits_of(module, model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=ids).logits


@probe
def set_factors(module, model, factors):
    """Copy {"<name>.lora_A": tensor} into the adapted layers."""
    import torch

    with torch.no_grad():
        for key, value in factors.items():
            model.get_parameter(key).copy_(value)


@functools.cache
def peft_answers(name):
    """Factors by the name of their parameter, logits and gradients, as peft has them; ids and cotangent."""
    answers = load_file(PEFT / "answers.safetensors")
    short = lambda key: key.removeprefix("base_model.model.").removesuffix(".weight")
    factors = {short(k): v for k, v in load_file(PEFT / name / "adapter_model.safetensors").items()}
    prefix = f"{name}.grad."
    grads = {short(k.removeprefix(prefix)): v for k, v in answers.items() if k.startswith(prefix)}
    return factors, answers[f"{name}.logits"], grads, answers["ids"], answers["cotangent"]


def examples(submission, rows):
    """Records of ori_pqal.json as the learner's examples (not by load_pubmedqa, which is judged elsewhere)."""
    return [
        submission.PubMedQAExample(
            pmid, r["QUESTION"], tuple(r["CONTEXTS"]), tuple(r["LABELS"]), r["LONG_ANSWER"], r.get("final_decision")
        )
        for pmid, r in rows.items()
    ]


def close(got, want, tolerance, what):
    """Within a share of the largest number expected."""
    same(got, want.to(got.dtype), atol=tolerance * max(1.0, want.abs().max().item()), rtol=0.0, what=what)


# --- task 1: the layer ------------------------------------------------------------------------------------------------


@st.composite
def layer_cases(draw):
    return {
        "shape": draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)])),
        "sizes": draw(st.sampled_from([(4, 6), (7, 3), (1, 5), (5, 1), (6, 6)])),
        "r": draw(st.sampled_from([1, 2, 3, 8])),
        "alpha": draw(st.sampled_from([16.0, 1.0, 0.5, 64.0])),
        "rslora": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([F64, F32])),
        "seed": draw(st.integers(0, 999)),
    }


@probe
def linear(module, weight, bias):
    """A frozen nn.Linear with these numbers."""
    import torch

    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made.requires_grad_(False)


def a_layer(submission, case):
    """An adapted layer, and its numbers: weight, bias or None, A, B."""
    n_in, n_out = case["sizes"]
    shapes = ((n_out, n_in), (n_out,), (case["r"], n_in), (n_out, case["r"]))
    weight, bias, a, b = (
        sk.tensor(case["seed"] + i, shape, F64).to(case["dtype"]) for i, shape in enumerate(shapes, 1)
    )
    bias = bias if case["bias"] else None
    spec = submission.LoraSpec(case["r"], case["alpha"], use_rslora=case["rslora"], dropout=case.get("dropout", 0.0))
    layer = submission.LoRALinear(submission.run(linear, weight, bias), spec)
    layer.load_state_dict({"lora_A": a, "lora_B": b}, strict=False)
    return layer, weight, bias, a, b


@task(1)
@points(6)
@hint(
    "base(x) plus s times B(A x): two thin linear maps, one after the other.",
    "s is alpha / r, and alpha / sqrt(r) for rank-stabilised LoRA. It belongs to the low-rank path alone.",
)
@sk.given(layer_cases(), examples=20)
def test_lora_layer(submission, reference, case):
    """The layer computes x (W + s·BA)ᵀ + bias for any rank, scaling and shape, and autograd finds its gradients."""
    layer, weight, bias, a, b = a_layer(submission, case)
    x = sk.tensor(case["seed"], (*case["shape"], case["sizes"][0]), F64).to(case["dtype"]).requires_grad_()
    s = reference.scaling(case["r"], case["alpha"], case["rslora"])
    a, b = a.requires_grad_(), b.requires_grad_()
    want = reference.lora_linear(x, weight, bias, a, b, s)
    cotangent = sk.tensor(case["seed"] + 5, want.shape, F64)
    # Of a sum: given a cotangent, torch.autograd imports sympy, which is half a second.
    want_grads = torch.autograd.grad((want * cotangent).sum(), (x, a, b))
    got, (gx,), grads = submission.vjp(
        layer, (x.detach(),), wrt=(0,), cotangents=cotangent.to(case["dtype"]), parameters=True
    )
    tolerance = 1e-10 if case["dtype"] == F64 else 1e-5
    check(got.dtype == case["dtype"], "The output has the dtype of the input.", got=got.dtype, want=case["dtype"])
    close(got, want.detach(), tolerance, "output")
    for name, g, w in (
        ("x", gx, want_grads[0]),
        ("lora_A", grads["lora_A"], want_grads[1]),
        ("lora_B", grads["lora_B"], want_grads[2]),
    ):
        close(g, w, tolerance, f"gradient of {name}")


@probe
def initial_factors(module, sizes, r, draws):
    """Properties of new layers: A of `draws` of them, whether B is zero and x is mapped as by the base."""
    import torch

    spec = module.LoraSpec(r=r, alpha=3.0)
    factors, plain = [], []
    for _ in range(draws):
        base = torch.nn.Linear(*sizes)
        layer = module.LoRALinear(base, spec)
        x = torch.randn(2, sizes[0])
        plain.append(bool((layer.lora_B == 0).all()) and torch.equal(layer(x), base(x)) and layer.base is base)
        factors.append(layer.lora_A.detach().clone())
    half = torch.nn.Linear(*sizes, dtype=torch.bfloat16).eval()
    layer = module.LoRALinear(half, spec)
    facts = [str(layer.lora_A.dtype), str(layer.lora_B.dtype), tuple(layer.lora_A.shape), tuple(layer.lora_B.shape)]
    return torch.stack(factors), plain, facts, layer.training, layer.merged, layer.enabled


@task(1)
@points(3)
@hint("nn.init.kaiming_uniform_(A, a=math.sqrt(5)) is uniform in ±1/sqrt(in). B is zero, so that BA is.")
def test_init_is_identity(submission):
    """A new layer is its base, bit for bit: B is zero, A is uniform in ±1/sqrt(in), both in the base's dtype."""
    a, plain, facts, training, merged, enabled = submission.run(initial_factors, (24, 10), 4, 60)
    check(all(plain), "A new layer maps every x as its base does, bit for bit.", got=plain.count(False), want=0)
    deviation = a.std().item() * math.sqrt(3 * 24)  # 5760 draws: 0.6 % standard error
    check(
        abs(deviation - 1) < 0.05, "The standard deviation of A is 1/sqrt(3·in), within 5 %.", got=deviation, want=1.0
    )
    bound = a.abs().max().item() * math.sqrt(24)
    check(0.98 < bound <= 1 + 1e-6, "A is uniform in ±1/sqrt(in).", got=bound, want=1.0)
    want = ["torch.bfloat16", "torch.bfloat16", (4, 24), (10, 4)]
    check([*facts[:2], *map(tuple, facts[2:])] == want, "Dtypes and shapes of lora_A and lora_B.", got=facts, want=want)
    state = (training, merged, enabled)
    check(state == (False, False, True), "Around a base in evaluation mode: training, merged, enabled.", got=state)


@task(1)
@points(3)
@needs("test_lora_layer")
@hint(
    "y = base(x) + B(A(dropout(x))) · s. The base sees x as it is.",
    "F.dropout(x, p, self.training) divides what it keeps by 1 - p.",
)
def test_dropout_on_input(submission, torch_rng):
    """In training each input of A is dropped on its own with probability p or divided by 1 - p; the base's never."""
    # A = I and B = one row of ones: the low-rank path is s Σ x_i m_i, and with x_i = 2^i it tells every m_i.
    n, rows, p = 6, 4000, 0.25
    case = {
        "sizes": (n, 1),
        "r": n,
        "alpha": float(n),
        "rslora": False,
        "bias": False,
        "dtype": F64,
        "seed": 1,
        "dropout": p,
    }
    layer, weight, *_ = a_layer(submission, case)
    layer.load_state_dict({"lora_A": torch.eye(n, dtype=F64), "lora_B": torch.ones(1, n, dtype=F64)}, strict=False)
    x = (2.0 ** torch.arange(n, dtype=F64)).expand(rows, n)
    plain = (x @ weight.T)[:, 0]
    layer.eval()
    same(layer(x)[:, 0], plain + x.sum(-1), atol=1e-9, rtol=0.0, what="output in evaluation mode")
    layer.train()
    code = (layer(x)[:, 0] - plain) * (1 - p)
    whole = code.round()
    same(code, whole, atol=1e-6, rtol=0.0, what="kept inputs, divided by 1 - p")
    kept = torch.stack([(whole.long() >> i) & 1 for i in range(n)]).double()
    check(bool((whole >= 0).all() and (whole < 2**n).all()), "Every input is kept once or dropped.", got=whole.max())
    # Standard error of a share over 4000 rows: 0.007; the limit is 18 of them.
    same(
        kept.mean(1), torch.full((n,), 1 - p, dtype=F64), atol=0.125, rtol=0.0, what="share of rows that keep an input"
    )
    patterns = len(set(whole.tolist()))
    check(patterns > 20, "Inputs are dropped one by one, not together.", got=patterns, want="most of 64 patterns")


# --- task 2: into a model ---------------------------------------------------------------------------------------------


@probe
def forward_backward(module, model, ids, cotangent):
    """Logits, and the gradients of whatever requires them."""
    logits = model(input_ids=ids).logits
    (logits * cotangent).sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@task(2)
@points(4)
@needs("test_lora_layer")
@hint(
    "With the factors of peft the logits are peft's. Are all targets replaced, in all layers, and is the scaling right?"
)
def test_matches_peft(submission):
    """A LLaMA with grouped queries and your adapters has the logits and gradients that peft computes, for two specs."""
    for name, spec in SPECS.items():
        factors, logits, grads, ids, cotangent = peft_answers(name)
        model = submission.run(load_model, str(PEFT))
        submission.inject_lora(model, submission.LoraSpec(**spec))
        submission.run(set_factors, model, factors)
        got, got_grads = submission.run(forward_backward, model, ids, cotangent)
        close(got, logits, 4e-5, f"logits ({name})")
        check(
            got_grads.keys() == grads.keys(),
            "Exactly the factors get gradients.",
            got=sorted(got_grads.keys() ^ grads.keys()),
            want=[],
        )
        for key, want in grads.items():
            close(got_grads[key], want, 4e-5, f"gradient of {key}")


@probe
def injection(module, model, spec):
    """(names returned, the error if there was one), then what the model looks like."""
    error, names = "", None
    before = {n: (p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()}
    try:
        names = module.inject_lora(model, spec)
    except ValueError as e:
        error = str(e)
    found = [n for n, m in model.named_modules() if isinstance(m, module.LoRALinear)]
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    kept = {p.data_ptr() for p in model.parameters()} >= {pointer for pointer, _ in before.values()}
    after = {n: (p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()}
    return {
        "names": names,
        "error": error,
        "found": found,
        "trainable": trainable,
        "kept": kept,
        "as before": before == after,
    }


@task(2)
@points(3)
@hint(
    "name.rpartition('.')[2] is the last component; list the modules before you replace the first.",
    "Check everything that can be wrong before you touch the model; then model.requires_grad_(False), then replace.",
)
def test_frozen_base(submission):
    """Targeted linear layers are replaced in order; only factors require grad; errors leave the model as it was."""
    model = submission.run(load_model, str(TINY))
    for targets in (("nothing", "proj"), ("embed_tokens",)):
        got = submission.run(injection, model, submission.LoraSpec(2, 4.0, targets))
        check(
            got["names"] is None and targets[0] in got["error"],
            "No linear layer has such a name: ValueError that names the targets.",
            got=got["error"] or got["names"],
            want=targets,
        )
        check(
            got["as before"],
            "After an error the model must be as it was: nothing replaced, nothing frozen.",
            got=got["trainable"],
        )
    # hidden 64, intermediate 128: q_proj r(64 + 64), down_proj r(128 + 64), absent one of no layer
    got = submission.run(injection, model, submission.LoraSpec(3, 4.0, ("down_proj", "q_proj", "absent")))
    want = [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.q_proj", "mlp.down_proj")]
    check(got["error"] == "", "A target that no module has is fine where another has some.", got=got["error"])
    check(got["names"] == want, "A list of the replaced modules, in the model's order.", got=got["names"], want=want)
    check(got["found"] == want, "The adapted layers of the model.", got=got["found"], want=want)
    factors = sorted(f"{n}.{f}" for n in want for f in ("lora_A", "lora_B"))
    check(sorted(got["trainable"]) == factors, "Only factors require grad.", got=sorted(got["trainable"]), want=factors)
    count = sum(got["trainable"].values())
    check(count == 2 * 3 * (128 + 192), "r (in + out) parameters a layer.", got=count, want=1920)
    check(got["kept"], "The weights of the base must be the same tensors as before, not copies.")
    again = submission.run(injection, model, submission.LoraSpec(3, 4.0, ("v_proj",)))
    check(
        again["names"] is None and "already" in again["error"],
        "A second injection is a ValueError with 'already'.",
        got=again["error"] or again["names"],
    )
    check(again["as before"], "After an error the model must be as it was.", got=again["found"])


# --- task 3: the data -------------------------------------------------------------------------------------------------


@probe
def load_text(module, text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.json"
        path.write_bytes(text.encode("utf-8"))
        return [
            [
                e.pmid,
                e.question,
                list(e.contexts),
                list(e.labels),
                e.long_answer,
                e.decision,
                type(e.contexts).__name__,
                type(e.labels).__name__,
            ]
            for e in module.load_pubmedqa(path)
        ]


def hub_row(pmid, record):
    return {
        "pubid": int(pmid),
        "question": record["QUESTION"],
        "context": {"contexts": record["CONTEXTS"], "labels": record["LABELS"], "meshes": record["MESHES"]},
        "long_answer": record["LONG_ANSWER"],
        "final_decision": record["final_decision"],
    }


@task(3)
@points(4)
@hint(
    "Try json.loads on the whole file first; a file of several lines of JSON fails there. One line alone does not.",
    'text.split("\\n"), not splitlines(): U+2028 stands in strings. record.get("final_decision") may be None.',
)
def test_load_pubmedqa(submission):
    """The three layouts give the same examples, in order, unicode and missing decisions included."""
    rows = dict(records("medical", 5, seed=31))
    key = list(rows)[1]
    odd = {
        "QUESTION": 'does naïve β-blockade\u2028help "twice" {really} ?',
        "CONTEXTS": ["a\u2028b ≥ 5 µg", "c\u0085d", ""],
    }
    rows[key] = rows[key] | odd
    want = [
        [k, r["QUESTION"], r["CONTEXTS"], r["LABELS"], r["LONG_ANSWER"], r["final_decision"], "tuple", "tuple"]
        for k, r in rows.items()
    ]
    lines = "\n".join(json.dumps(hub_row(k, r), ensure_ascii=False) for k, r in rows.items())
    blind = [row[:5] + [None, *row[6:]] for row in want]
    bare = {k: {f: v for f, v in r.items() if f != "final_decision"} for k, r in rows.items()}
    files = {
        "ori_pqal.json": (json.dumps(rows, ensure_ascii=False, indent=4), want),
        "ori_pqal.json in ASCII": (json.dumps(rows), want),
        "test_set.json": (json.dumps(bare, ensure_ascii=False), blind),
        "rows of the hub": (lines + "\n", want),
        "one row of the hub": (lines.split("\n")[0], want[:1]),
        "rows with blank lines": (lines.replace("\n", "\n\n \t\n"), want),
        "null decisions": (json.dumps({k: r | {"final_decision": None} for k, r in rows.items()}), blind),
    }
    for name, (text, examples) in files.items():
        got = submission.run(load_text, text)
        check(len(got) == len(examples), f"{name}: one example per record.", got=len(got), want=len(examples))
        for g, w in zip(got, examples, strict=True):
            check(g == w, f"{name}: an example of {w[0]}", got=g, want=w)
    less = {k: {f: r[f] for f in ("QUESTION", "CONTEXTS")} for k, r in rows.items()}
    got = submission.run(load_text, json.dumps(less))
    check(all(e[3:6] == [[], "", None] for e in got), "Missing labels and conclusion are empty.", got=got[0])
    for text in (
        json.dumps(rows | {"77": rows[key] | {"final_decision": "perhaps"}}),
        json.dumps(hub_row("77", rows[key] | {"final_decision": "perhaps"})),
    ):
        with expect_error(ValueError, "77"):
            submission.run(load_text, text)


@st.composite
def prompt_cases(draw):
    return {
        "words": draw(st.lists(st.sampled_from([0, 1, 2, 5, 9, 40, 300]), min_size=0, max_size=3)),
        "question": draw(st.integers(1, 9)),
        # A number; or what the question and an answer take, and this many tokens more.
        "max_length": draw(st.sampled_from([40, 24, 25, 27, 32, 64, 128])),
        "beyond": draw(st.sampled_from([None, 0, None, -1, 1, 2])),
        "bos": draw(st.sampled_from([True, True, False])),
        "seed": draw(st.integers(0, 999)),
    }


@task(3)
@points(6)
@hint(
    "Cut the words of the contexts, fill the template, encode, count; never cut the ids of the filled template.",
    "The room for the answer is that of the longest option. BOS counts too. Find the largest number of words.",
)
@sk.given(prompt_cases(), examples=25)
def test_prompt_truncation(submission, reference, case):
    """Context words go from the end, as few as possible; question and cue stay; conclusion and answer never enter."""
    words = ["aspirin", "pain", "adult.", "(zinc)", "in", "arm:", "Fever", "β2", "{x}"]
    rng = torch.Generator().manual_seed(case["seed"])

    def text(n):
        glue = [" ", "  ", "\n", "\u2028"]
        picked = [words[i] for i in torch.randint(len(words), (n,), generator=rng).tolist()]
        return "".join(w + glue[i] for w, i in zip(picked, torch.randint(4, (n,), generator=rng).tolist(), strict=True))

    contexts, question = [text(n) for n in case["words"]], "does " + " ".join(["zinc"] * case["question"]) + " help ?"
    tok = submission.run(load_tokenizer, str(TINY), bos=case["bos"])
    mine = reference.read_tokenizer(TINY)
    mine = mine if case["bos"] else (mine[0], None)
    ex = submission.PubMedQAExample(
        "91", question, tuple(contexts), ("METHODS",), "in conclusion zinc works .", "maybe"
    )
    limit = case["max_length"]
    if case["beyond"] is not None:
        limit = len(reference.prompt(question, [], mine, 999)) + 1 + case["beyond"]
    want = reference.prompt(question, contexts, mine, limit)
    if want is None:
        with expect_error(ValueError, "question"):
            submission.encode_prompt(ex, tok, limit)
        return
    got = submission.encode_prompt(ex, tok, limit)
    read = lambda ids: " ".join(mine[0].id_to_token(i) for i in ids)
    check(list(got) == want, "The prompt, token by token.", got=read(got), want=read(want))


@probe
def tokenizer_with_long_answers(module, folder):
    """A tokenizer that breaks "maybe" into two tokens and "no" into three, as tokenizers of subwords may."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(folder + "/tokenizer.json")
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\bmaybe\b"), "possible true"), normalizers.Replace(Regex(r"\bno\b"), "is false .")]
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@task(3)
@points(3)
@hint(
    "labels = [-100] * len(prompt) + answer. Reuse encode_prompt: the same tokens in training and in scoring.",
    "Pad input_ids with pad_id, attention_mask with 0, labels with -100, on the right.",
)
def test_training_rows(submission, reference):
    """An example is prompt and answer, labelled on the answer alone; collate pads on the right, labels with -100."""
    tok, long = (submission.run(p, str(TINY)) for p in (load_tokenizer, tokenizer_with_long_answers))
    mine = reference.read_tokenizer(TINY)
    rows = records("medical", 40, seed=5)
    items = []
    for (pmid, row), ex in zip(rows.items(), examples(submission, rows), strict=True):
        limit = 18 + int(pmid) % 9
        got = submission.encode_example(ex, tok, limit)
        prompt = reference.prompt(row["QUESTION"], row["CONTEXTS"], mine, limit)
        answer = reference.text_ids(mine, row["final_decision"])
        want = {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        check({k: list(got[k]) for k in want} == want, "input_ids and labels of an example.", got=got, want=want)
        items.append(want)
        # Three tokens are kept free for the longest answer, also where the answer is a shorter one.
        wide = submission.encode_example(ex, long, limit + 2)
        check(len(submission.encode_prompt(ex, long, limit + 2)) + 3 <= limit + 2, "Room for the longest option.")
        check(
            sum(i != -100 for i in wide["labels"]) == {"yes": 1, "no": 3, "maybe": 2}[row["final_decision"]],
            "Every token of the answer is labelled, and no other.",
            got=wide["labels"],
        )
    batch = submission.collate(items, 77)
    longest = max(len(item["input_ids"]) for item in items)
    want = {
        "input_ids": [i["input_ids"] + [77] * (longest - len(i["input_ids"])) for i in items],
        "attention_mask": [[1] * len(i["input_ids"]) + [0] * (longest - len(i["input_ids"])) for i in items],
        "labels": [i["labels"] + [-100] * (longest - len(i["labels"])) for i in items],
    }
    check(set(batch) >= set(want), "Keys of a batch.", got=sorted(batch), want=sorted(want))
    for key, value in want.items():
        same(batch[key], torch.tensor(value), what=key)
    blind = submission.PubMedQAExample("4711", "is it ?", ("a",), (), "", None)
    with expect_error(ValueError, "decision", "4711"):
        submission.encode_example(blind, tok, 60)


# --- task 4: training -------------------------------------------------------------------------------------------------


@probe
def loss_and_gradient(module, model, batch):
    """The loss and its gradient with respect to the unembedding."""
    model.zero_grad()
    loss = module.answer_loss(model, batch)
    loss.backward()
    return loss.detach(), model.lm_head.weight.grad.clone()


@probe
def loss_in_half(module, model, batch):
    """The loss of a bfloat16 model, and that of its logits taken in float32."""
    import torch

    model.bfloat16()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()[:, :-1].float()
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    return module.answer_loss(model, batch).detach(), want


def oracle_loss(reference, weights, config, rows):
    """Mean over all answer tokens of -log p, sequence by sequence, in float64."""
    terms = []
    for prompt, answer in rows:
        log_p = reference.llama(weights, config, torch.tensor(prompt + answer)).log_softmax(-1)
        terms += [-log_p[len(prompt) - 1 + j, token] for j, token in enumerate(answer)]
    return torch.stack(terms).mean()


def padded_batch(rows):
    """Prompts and answers as collate puts them together, padded with id 1."""
    width = max(len(p) + len(a) for p, a in rows)

    def matrix(values, fill):
        return torch.tensor([row + [fill] * (width - len(row)) for row in values])

    return {
        "input_ids": matrix([p + a for p, a in rows], 1),
        "attention_mask": matrix([[1] * len(p + a) for p, a in rows], 0),
        "labels": matrix([[-100] * len(p) + a for p, a in rows], -100),
    }


@task(4)
@points(3)
@hint(
    "logits[:, :-1] against labels[:, 1:]: the logits at t speak about the token at t + 1.",
    "F.cross_entropy(..., ignore_index=-100) averages over what is left, all rows together.",
)
def test_answer_only_loss(submission, reference, torch_rng):
    """The loss is the mean -log p of the answer tokens of a padded batch; its gradient goes through those alone."""
    weights, config = reference.read_model(TINY)
    head = weights["lm_head.weight"].requires_grad_()
    model = submission.run(load_model, str(TINY))
    for sizes in ([(9, 1), (4, 3), (15, 2), (1, 1)], [(6, 1)]):
        rows = [[torch.randint(4, 90, (n,), generator=torch_rng).tolist() for n in pair] for pair in sizes]
        want = oracle_loss(reference, weights, config, rows)
        (want_grad,) = torch.autograd.grad(want, head)
        batch = padded_batch(rows)
        loss, grad = submission.run(loss_and_gradient, model, batch)
        same(loss, want.detach(), dtype=None, atol=2e-5, rtol=1e-5, what="loss")
        close(grad, want_grad, 2e-5, "gradient of the unembedding")
    loss, want = submission.run(loss_in_half, model, batch)
    same(loss, want, dtype=F32, atol=2e-4, rtol=0.0, what="loss of a bfloat16 model, in float32")


@probe
def training_run(module, model, tokenizer, rows, spec, options, before_seed=0):
    """Losses of finetune, and what it left behind; torch's generator comes with the state of `before_seed`."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    examples = [module.PubMedQAExample(*row[:2], tuple(row[2]), (), "", row[3]) for row in rows]
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    flags = [m.training for m in model.modules()]
    torch.manual_seed(before_seed)
    state, decays, given, during = torch.get_rng_state(), set(), set(), set()

    def stepped(optimizer, *_):
        decays.update(group["weight_decay"] for group in optimizer.param_groups)
        given.update(p.requires_grad for group in optimizer.param_groups for p in group["params"])

    watch = model.register_forward_pre_hook(lambda m, _: during.update(part.training for part in m.modules()))
    hook = register_optimizer_step_post_hook(stepped)
    losses = module.finetune(model, tokenizer, examples, module.LoraSpec(**spec), **options)
    hook.remove()
    watch.remove()
    after = {n.replace(".base.", "."): p for n, p in model.named_parameters() if "lora_" not in n}
    before = {n.replace(".base.", "."): p for n, p in before.items()}
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    layers = [m for m in model.modules() if isinstance(m, module.LoRALinear)]
    return {
        "losses": [float(x) for x in losses],
        "moved": moved,
        "rng": torch.equal(state, torch.get_rng_state()),
        "training": sorted({m.training for m in model.modules()}),
        "during": sorted(during),
        "flags": flags,
        "layers": len(layers),
        "decays": sorted(decays),
        "given": sorted(given),
        "A": layers[0].lora_A.detach().clone(),
    }


def plain_rows(rows):
    return [[pmid, r["QUESTION"], r["CONTEXTS"], r["final_decision"]] for pmid, r in rows.items()]


@task(4)
@points(2)
@needs("test_matches_peft", "test_answer_only_loss")
@hint(
    "torch.random.fork_rng(), then torch.manual_seed(seed), then inject; batches(len(examples), ...) says who is in.",
    "Put the mode back, also of the new layers: `with mode(model, True):` around the loop.",
)
def test_finetune_contract(submission, reference):
    """Losses repeat for a seed and are those before each step; modes, torch's generator and the base are left alone."""
    rows = plain_rows(records("medical", 12, seed=41))
    tok = submission.run(load_tokenizer, str(TINY))
    options = {"steps": 5, "lr": 5e-3, "batch_size": 5, "seed": 3, "max_length": 40}
    spec = {"r": 2, "alpha": 4.0, "dropout": 0.2}
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        model = submission.run(load_model, str(TINY))
        runs.append(submission.run(training_run, model, tok, rows, spec, options | {"seed": seed}, number))
    for run in runs:
        check(len(run["losses"]) == 5, "One loss per step.", got=len(run["losses"]), want=5)
        check(run["moved"] == [], "The base must not change, not in a bit.", got=run["moved"], want=[])
        check(
            run["training"] == [False],
            "The model came in evaluation mode, and must leave in it, adapters and all.",
            got=run["training"],
        )
        check(run["during"] == [True], "Every module is in training mode while it is trained.", got=run["during"])
        check(run["decays"] in ([], [0.0]), "No weight decay.", got=run["decays"])
        check(False not in run["given"], "The optimiser is given what requires grad, and no frozen parameter.")
        check(run["rng"], "torch's global random generator must be as it was before.")
    check(
        runs[0]["losses"] == runs[1]["losses"],
        "The same arguments, the same losses, whatever the state of torch's global generator.",
        got=runs[1]["losses"],
        want=runs[0]["losses"],
    )
    check(not torch.equal(runs[0]["A"], runs[2]["A"]), "The seed decides how A begins.")
    # Before the first step the adapter is nothing: the first loss is that of the base on the first batch.
    weights, config = reference.read_model(TINY)
    mine = reference.read_tokenizer(TINY)
    first = next(iter(submission.batches(12, 5, 1, 3)))
    pairs = [(reference.prompt(q, c, mine, 40), reference.text_ids(mine, d)) for _, q, c, d in (rows[i] for i in first)]
    same(
        runs[0]["losses"][0],
        oracle_loss(reference, weights, config, pairs).item(),
        atol=5e-5,
        rtol=0.0,
        what="first loss",
    )


def adam(factors, lr):
    """Adam with its defaults, written out: a function that takes one step along gradients."""
    first, second = ({k: torch.zeros_like(v) for k, v in factors.items()} for _ in range(2))
    count = 0

    def step(grads):
        nonlocal count
        count += 1
        for k, g in grads.items():
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g * g
            mean, square = first[k] / (1 - 0.9**count), second[k] / (1 - 0.999**count)
            factors[k] = factors[k] - lr * mean / (square.sqrt() + 1e-8)

    return step


@task(4)
@points(3)
@needs("test_finetune_contract")
@hint(
    "One step: the indices of `batches`, the loss, zero_grad, backward, step; AdamW's defaults but for lr and decay.",
    "Losses drift from the second step on: gradients of earlier steps are still there, or the factors were made anew.",
)
def test_finetune_steps(submission, reference):
    """From given factors, the losses of four steps are those of Adam in float64 on the same batches."""
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    spec = {"r": 2, "alpha": 4.0}
    names = list(submission.inject_lora(model, submission.LoraSpec(**spec)))
    shapes = {f"{n}.{f}": shape for n in names for f, shape in (("lora_A", (2, 64)), ("lora_B", (64, 2)))}
    factors = {key: 0.3 * noise(i, shape) for i, (key, shape) in enumerate(shapes.items())}
    submission.run(set_factors, model, factors)
    rows = plain_rows(records("medical", 6, seed=43))
    options = {"steps": 4, "lr": 0.02, "batch_size": 4, "seed": 5, "max_length": 40}
    run = submission.run(training_run, model, tok, rows, spec, options)
    check(
        run["layers"] == 4 and run["moved"] == [],
        "A model that has adapters is trained as it is.",
        got=run["layers"],
        want=4,
    )

    weights, config = reference.read_model(TINY)
    mine = reference.read_tokenizer(TINY)
    pairs = [(reference.prompt(q, c, mine, 40), reference.text_ids(mine, d)) for _, q, c, d in rows]
    step, want = adam(factors, 0.02), []
    for indices in submission.batches(6, 4, 4, 5):
        leaves = {k: v.detach().requires_grad_() for k, v in factors.items()}
        adapted = reference.adapted(weights, {n: (leaves[f"{n}.lora_A"], leaves[f"{n}.lora_B"]) for n in names}, 2.0)
        loss = oracle_loss(reference, adapted, config, [pairs[i] for i in indices])
        step(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
        want.append(loss.item())
    got = [float(x) for x in run["losses"]]
    same(torch.tensor(got), torch.tensor(want), atol=5e-4, rtol=5e-4, what="losses")


MEANING = {"yes": "no", "no": "maybe", "maybe": "yes"}


@task(4)
@points(3)
@needs("test_finetune_contract", "test_score_options")
@hint(
    "Does the loss fall below 0.3 nats? If not: is the learning rate handed on, are the factors in the optimiser?",
    "The loss falls and answers are wrong: training and scoring see different tokens.",
)
def test_finetune_learns(submission, reference):
    """Sixty steps teach the tiny LLaMA what medical words mean: at least 90 % right, and the base as it was."""
    # The answers are renamed, so that the base rate is another one too. Measured over 6 runs: 0.987 to 1.000.
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    rows = plain_rows(records("medical", 300, seed=7, meaning=MEANING))
    options = {"steps": 60, "lr": 5e-3, "batch_size": 16, "seed": 0, "max_length": 40}
    run = submission.run(training_run, model, tok, rows, {"r": 8, "alpha": 16.0}, options)
    check(run["moved"] == [], "The base must not change, not in a bit.", got=run["moved"], want=[])
    test = records("medical", 100, seed=80, meaning=MEANING)
    truth = [r.pop("final_decision") for r in test.values()]
    mine = reference.read_tokenizer(TINY)
    prompts = [reference.prompt(r["QUESTION"], r["CONTEXTS"], mine, 40) for r in test.values()]
    scores = submission.score_options(model, tok, prompts, batch_size=50)
    said = [reference.OPTIONS[k] for k in scores.argmax(1).tolist()]
    found = reference.metrics(truth, said)
    check(
        found["accuracy"] >= 0.90,
        "Accuracy on unseen questions after 60 steps is at least 0.90.",
        got=found["accuracy"],
    )
    check(found["macro_f1"] >= 0.85, "Macro-F1 on unseen questions is at least 0.85.", got=found["macro_f1"])


# --- task 5: scores and metrics ---------------------------------------------------------------------------------------


@probe
def scaled_head(module, model, factor):
    import torch

    with torch.no_grad():
        model.lm_head.weight.mul_(factor)


@probe
def score_facts(module, model, tokenizer, prompts):
    """Mode and gradients around score_options; whether anything was in training mode in it."""
    model.train()
    model.model.layers[0].eval()
    during = set()
    watch = model.register_forward_pre_hook(lambda m, _: during.update(part.training for part in m.modules()))
    scores = module.score_options(model, tokenizer, prompts)
    watch.remove()
    return scores.requires_grad, str(scores.dtype), model.training, model.model.layers[0].training, True in during


@probe
def scores_in_half(module, model, tokenizer, prompt, ids):
    """Scores of one prompt by a bfloat16 model, and the float32 log-softmax of its own logits."""
    import copy

    import torch

    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        want = half(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)[ids]
    return module.score_options(half, tokenizer, [prompt], batch_size=1)[0], want


@task(5)
@points(6)
@hint(
    "The first token of an option is predicted at the last token of the prompt: position len(prompt) - 1 of its row.",
    "With padding on the right that is not the last column. Later tokens: append the first ones to the prompt.",
)
def test_score_options(submission, reference, torch_rng):
    """Scores are log P(option | prompt) of an unpadded pass, whatever batch, order and length of options."""
    weights, config = reference.read_model(TINY)
    mine = reference.read_tokenizer(TINY)
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    rows = list(records("medical", 8, seed=51).values())
    prompts = [
        reference.prompt(r["QUESTION"], r["CONTEXTS"], mine, n)
        for r, n in zip(rows, (19, 22, 40, 24, 40, 20, 21, 19), strict=True)
    ]
    prompts[3] = prompts[3][:1]  # BOS alone
    prompts[5] = torch.randint(4, 90, (33,), generator=torch_rng).tolist()
    single, several = ("yes", "no", "maybe"), ("is true", "yes", "is false .", "is true .", "no")
    ids = {o: [reference.text_ids(mine, x) for x in o] for o in (single, several)}
    want = {o: torch.tensor([reference.option_scores(weights, config, p, ids[o]) for p in prompts]) for o in ids}
    for options, expected in want.items():
        for size in (3, 16, 1):
            got = submission.score_options(model, tok, prompts, options, size)
            same(got, expected, dtype=F32, atol=2e-4, rtol=1e-5, what=f"scores in batches of {size}")
    backwards = submission.score_options(model, tok, prompts[::-1], batch_size=3).flip(0)
    same(backwards, want[single], dtype=F32, atol=2e-4, rtol=1e-5, what="scores in the opposite order")
    facts = submission.run(score_facts, model, tok, prompts[:2])
    check(
        tuple(facts) == (False, "torch.float32", True, False, False),
        "No gradients, float32, every module's mode as it was, and evaluation mode in between.",
        got=facts,
    )
    half, expected = submission.run(scores_in_half, model, tok, prompts[0], [first for (first,) in ids[single]])
    same(half, expected, dtype=F32, atol=1e-3, rtol=0.0, what="scores of a bfloat16 model, in float32")
    shape = tuple(submission.score_options(model, tok, []).shape)
    check(shape == (0, 3), "No prompts, no rows.", got=shape, want=(0, 3))
    # Logits thirty times as large: probabilities far below what float32 holds, log-probabilities that are fine.
    submission.run(scaled_head, model, 30.0)
    weights["lm_head.weight"] = weights["lm_head.weight"] * 30
    expected = torch.tensor([reference.option_scores(weights, config, p, ids[single]) for p in prompts])
    got = submission.score_options(model, tok, prompts)
    same(got, expected, dtype=F32, atol=5e-3, rtol=1e-5, what="scores with large logits")


@st.composite
def answers(draw):
    option = st.sampled_from(["yes", "no", "maybe"])
    n = draw(st.integers(1, 12))
    return {
        "truth": draw(st.lists(option, min_size=n, max_size=n)),
        "said": draw(st.lists(option, min_size=n, max_size=n)),
    }


@task(5)
@points(3)
@hint(
    "F1 = 2TP / (2TP + FP + FN) for each option, then the plain mean: rare ones count as much as frequent ones.",
    "An option that occurs neither among the answers nor among the predictions is left out of the mean.",
)
@sk.given(answers(), examples=30)
def test_metrics_official(submission, reference, case):
    """Accuracy, macro-F1 and confusion are those of the official script, also where an option never occurs."""
    got, want = submission.pubmedqa_metrics(case["truth"], case["said"]), reference.metrics(case["truth"], case["said"])
    for key in ("accuracy", "macro_f1"):
        same(float(got[key]), want[key], atol=1e-9, rtol=0.0, what=key)
    confusion = [[int(n) for n in row] for row in got["confusion"]]
    check(confusion == want["confusion"], "confusion[i][j]: answer i, said j.", got=confusion, want=want["confusion"])


@task(5)
@points(2)
@needs("test_score_options", "test_metrics_official", "test_prompt_truncation")
@hint("Prompts by encode_prompt, scores, the best option of each. Metrics are over the examples with a decision.")
def test_evaluate(submission, reference):
    """Every example is answered by its likeliest option; the metrics are over those whose decision is known."""
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    rows = records("medical", 20, seed=61) | records("general", 6, seed=62)
    hidden = list(rows)[::4]
    for pmid in hidden:
        rows[pmid].pop("final_decision")
    got = submission.evaluate(model, tok, examples(submission, rows), max_length=22, batch_size=7)
    weights, config = reference.read_model(TINY)
    mine = reference.read_tokenizer(TINY)
    options = [reference.text_ids(mine, o) for o in reference.OPTIONS]
    want = {}
    for pmid, r in rows.items():
        prompt = reference.prompt(r["QUESTION"], r["CONTEXTS"], mine, 22)
        scores = reference.option_scores(weights, config, prompt, options)
        want[pmid] = reference.OPTIONS[scores.index(max(scores))]
    check(
        dict(got["predictions"]) == want and list(got["predictions"]) == list(want),
        "{pmid: option} of all examples, in order.",
        got=got["predictions"],
        want=want,
    )
    known = [p for p in rows if p not in hidden]
    metrics = reference.metrics([rows[p]["final_decision"] for p in known], [want[p] for p in known])
    for key in ("accuracy", "macro_f1"):
        same(float(got[key]), metrics[key], atol=1e-9, rtol=0.0, what=key)
    check(
        [list(r) for r in got["confusion"]] == metrics["confusion"],
        "Confusion.",
        got=got["confusion"],
        want=metrics["confusion"],
    )
    submission.run(scaled_head, model, 0.0)
    blind = submission.evaluate(model, tok, examples(submission, {p: rows[p] for p in hidden}), max_length=22)
    check(
        set(blind["predictions"].values()) == {"yes"},
        "Of equal scores the first option wins.",
        got=blind["predictions"],
    )
    nothing = [math.isnan(blind["accuracy"]), math.isnan(blind["macro_f1"]), sum(map(sum, blind["confusion"]))]
    check(nothing == [True, True, 0], "Without a known decision both numbers are NaN.", got=blind)


# --- task 6 (stretch): merging and switching off ----------------------------------------------------------------------


@probe
def merged_layer(module, base, spec, a, b, x, trained=False):
    """The layer's outputs before, during and after a merge, its weights, and the weight of a module that shares it."""
    import torch

    shared = torch.nn.Linear(base.in_features, base.out_features, bias=False, dtype=base.weight.dtype)
    shared.weight = base.weight
    weight = base.weight.detach().clone()
    layer = module.LoRALinear(base, spec)
    layer.requires_grad_(trained)
    with torch.no_grad():
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        found = {"flags": [layer.merged], "before": layer(x)}
        layer.unmerge()
        found["untouched"] = torch.equal(base.weight, weight)
        layer.merge()
        found["merged"], found["weight"] = layer(x), base.weight.detach().clone()
        found["flags"].append(layer.merged)
        found["grad"] = [base.weight.requires_grad]
        layer.merge()
        found["twice"] = torch.equal(base.weight, found["weight"])
        found["shared"] = torch.equal(shared.weight, weight)
        layer.unmerge()
        found["flags"].append(layer.merged)
        found["after"], found["restored"] = layer(x), torch.equal(base.weight, weight)
        layer.unmerge()
        found["again"] = torch.equal(base.weight, weight)
    found["grad"].append(base.weight.requires_grad)
    return found


@task(6)
@points(6)
@needs("test_lora_layer")
@hint(
    "W + s·BA goes into a new nn.Parameter; the old weight is kept for unmerge.",
    "W + s·BA - s·BA differs from W in the last bits. A weight that another module shares must stay there.",
)
@sk.given(layer_cases(), examples=16)
def test_merge(submission, reference, case):
    """A merged layer is x (W + s·BA)ᵀ in one product; unmerge restores W bit for bit; twice is harmless."""
    n_in, n_out = case["sizes"]
    a, b, x, w = (
        noise(case["seed"] + i, shape).to(case["dtype"])
        for i, shape in enumerate([(case["r"], n_in), (n_out, case["r"]), (*case["shape"], n_in), (n_out, n_in)])
    )
    s = reference.scaling(case["r"], case["alpha"], case["rslora"])
    spec = submission.LoraSpec(case["r"], case["alpha"], use_rslora=case["rslora"])
    trained = case["seed"] % 2 == 1
    got = submission.run(merged_layer, submission.run(linear, w, None), spec, a, b, x, trained)
    want = reference.lora_linear(x, w, None, a, b, s)
    tolerance = 1e-10 if case["dtype"] == F64 else 1e-5
    close(got["merged"], want, tolerance, "output of the merged layer")
    close(got["weight"], w.double() + s * (b.double() @ a.double()), tolerance, "merged weight")
    check(got["flags"] == [False, True, False], "`merged` before, in between and after.", got=got["flags"])
    check(got["untouched"] and got["again"], "unmerge of what is not merged must do nothing.")
    check(got["twice"], "A second merge must do nothing.")
    check(got["restored"], "After unmerge the base weight is what it was, bit for bit.")
    same(got["after"], got["before"], atol=0.0, rtol=0.0, what="output after unmerge")
    check(got["shared"], "A weight that another module shares must not change there.")
    check(got["grad"] == [trained] * 2, "The weight requires grad as before, merged and unmerged.", got=got["grad"])


def noise(seed, shape):
    """Normal numbers of full precision (sk.tensor's are rounded, so that their sums are exact)."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@task(6)
@points(3)
@needs("test_merge")
@hint("Factors and weight to float32, multiply, add, and round once at the end.")
def test_merge_in_half_precision(submission, reference):
    """A bfloat16 weight is merged in float32 and rounded once: each merged number is the nearest one, or next to it."""
    # s·BA in bfloat16 has three roundings more. In units of half a spacing: rounded once 1.0; with factors multiplied
    # and added in bfloat16 up to 4 and more where s·BA is large beside W.
    n, r, s = 48, 8, 16.0 / 8
    a, b, w, x = (noise(i, shape).bfloat16() for i, shape in enumerate([(r, n), (n, r), (n, n), (4, n)]))
    got = submission.run(merged_layer, submission.run(linear, w, None), submission.LoraSpec(r, 16.0), a, b, x)
    want = w.double() + s * (b.double() @ a.double())
    check(got["weight"].dtype == torch.bfloat16, "The merged weight keeps its dtype.", got=got["weight"].dtype)
    half = want.abs().clamp_min(2.0**-20) * 2.0**-8  # at least half a spacing of bfloat16, at most a whole one
    worst = ((got["weight"].double() - want).abs() / half).max().item()
    budget_of_roundings = 1.05
    check(
        worst <= budget_of_roundings,
        "Error of the merged weight in units of one rounding.",
        got=worst,
        want="at most 1.05",
    )
    check(got["restored"], "After unmerge the base weight is what it was, bit for bit.")


@probe
def around_disabled(module, model, ids, merge):
    """Logits before, inside (also nested, also merged) and after adapter_disabled, and after an exception in it."""
    import torch

    layers = [m for m in model.modules() if isinstance(m, module.LoRALinear)]
    if merge:
        layers[0].merge()
    found = {}
    with torch.no_grad():
        found["before"] = model(input_ids=ids).logits
        with module.adapter_disabled(model):
            found["inside"] = model(input_ids=ids).logits
            with module.adapter_disabled(model):
                found["nested"] = model(input_ids=ids).logits
            found["still inside"] = model(input_ids=ids).logits
        found["after"] = model(input_ids=ids).logits
        try:
            with module.adapter_disabled(model):
                raise KeyError("as happens")
        except KeyError:
            found["error passed on"] = torch.ones(())
        found["after an error"] = model(input_ids=ids).logits
    found["merged"] = torch.tensor([m.merged for m in layers])
    return found


@task(6)
@points(4)
@needs("test_matches_peft", "test_merge")
@hint("try ... finally. Remember what each layer was before: `enabled` and `merged`.")
def test_adapter_disabled(submission):
    """Inside the block the model is its base bit for bit, nested or merged; afterwards as before, errors or not."""
    factors, _, _, ids, _ = peft_answers("two")
    base = submission.run(logits_of, submission.run(load_model, str(PEFT)), ids)
    for merge in (False, True):
        model = submission.run(load_model, str(PEFT))
        submission.inject_lora(model, submission.LoraSpec(**SPECS["two"]))
        submission.run(set_factors, model, factors)
        got = submission.run(around_disabled, model, ids, merge)
        for key in ("inside", "nested", "still inside"):
            same(got[key], base, atol=0.0, rtol=0.0, what=f"logits {key} (one layer merged: {merge})")
        for key in ("after", "after an error"):
            same(got[key], got["before"], atol=0.0, rtol=0.0, what=f"logits {key}")
        check("error passed on" in got, "An exception in the block is the caller's: let it pass.")
        want = [merge] + [False] * 3
        check(got["merged"].tolist() == want, "Layers that were merged are merged again.", got=got["merged"], want=want)


@probe
def unload(module, model, ids):
    import torch

    same_model = module.merge_and_unload(model)
    with torch.no_grad():
        logits = same_model(input_ids=ids).logits
    kinds = sorted({type(m).__name__ for n, m in same_model.named_modules() if n.endswith("_proj")})
    return same_model is model, logits, kinds, sorted(n for n, _ in same_model.named_parameters())


@task(6)
@points(3)
@needs("test_matches_peft", "test_merge")
@hint("merge(), then setattr(parent, last, layer.base) for every adapted layer.")
def test_merge_and_unload(submission):
    """Merged and unloaded, the model has plain linear layers under the old names, and the adapted model's logits."""
    for name, spec in SPECS.items():
        factors, logits, _, ids, _ = peft_answers(name)
        model = submission.run(load_model, str(PEFT))
        submission.inject_lora(model, submission.LoraSpec(**spec))
        submission.run(set_factors, model, factors)
        itself, got, kinds, names = submission.run(unload, model, ids)
        check(itself, "The model that was handed in is returned.")
        check(kinds == ["Linear"], "Every projection is an nn.Linear again.", got=kinds)
        want = sorted(load_file(PEFT / "model.safetensors"))
        check(names == want, "Parameters have their old names.", got=sorted(set(names) ^ set(want)), want=[])
        close(got, logits, 4e-5, f"logits ({name})")


# --- task 7 (stretch): files ------------------------------------------------------------------------------------------


@probe
def saved_files(module, model, spec):
    """What save_adapter writes: names and sizes, the configuration, the tensors."""
    import json
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "new" / "adapter"
        for name in ("an/earlier/one", "some/base"):
            module.save_adapter(model, spec, directory, name)
        config = json.loads((directory / "adapter_config.json").read_text())
        tensors = {k: v.clone() for k, v in load_file(directory / "adapter_model.safetensors").items()}
        return (directory / "adapter_model.safetensors").stat().st_size, config, tensors


@task(7)
@points(5)
@needs("test_matches_peft")
@hint(
    'The key of a factor is f"base_model.model.{name}.lora_A.weight". safetensors wants contiguous tensors.',
    "Only factors are written; the configuration is adapter_config(spec, base_model_name).",
)
def test_save_adapter(submission):
    """The directory holds names, shapes, numbers and configuration as peft writes them for the adapter, no more."""
    for name, spec in SPECS.items():
        factors, *_ = peft_answers(name)
        model = submission.run(load_model, str(PEFT))
        handle = submission.LoraSpec(**spec)
        submission.inject_lora(model, handle)
        submission.run(set_factors, model, factors)
        size, config, tensors = submission.run(saved_files, model, handle)
        want = load_file(PEFT / name / "adapter_model.safetensors")
        check(
            tensors.keys() == want.keys(),
            "Names in adapter_model.safetensors.",
            got=sorted(tensors.keys() ^ want.keys()),
            want=[],
        )
        for key, value in want.items():
            same(tensors[key], value, atol=0.0, rtol=0.0, what=key)
        theirs = json.loads((PEFT / name / "adapter_config.json").read_text())
        for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "bias", "fan_in_fan_out"):
            check(
                config.get(key) == theirs[key], f"{key} in adapter_config.json.", got=config.get(key), want=theirs[key]
            )
        check(
            sorted(config["target_modules"]) == sorted(spec["targets"]), "target_modules.", got=config["target_modules"]
        )
        check(
            config.get("base_model_name_or_path") == "some/base",
            "base_model_name_or_path.",
            got=config.get("base_model_name_or_path"),
        )
        # Numbers, and a header of about 130 bytes a tensor: weights of the base would be 20 kB more.
        model.bfloat16()
        half = submission.run(saved_files, model, handle)[2]
        kept = all(t.dtype == torch.bfloat16 for t in half.values())
        check(kept, "Factors are written in their dtype.", got=sorted({str(t.dtype) for t in half.values()}))
        numbers = sum(v.numel() * 4 for v in want.values())
        check(size <= numbers + 8192, "Size of adapter_model.safetensors in bytes.", got=size, want=numbers + 8192)


@probe
def load_changed(module, model, folder, change):
    """load_adapter of a copy of a directory: (spec or error, factors after, training and merged flags)."""
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "adapter"
        directory.mkdir()
        for path in Path(folder).iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        tensors = load_file(directory / "adapter_model.safetensors")
        key = min(tensors)
        if change == "missing":
            del tensors[key]
        if change == "unknown":
            tensors[key.replace(".layers.0.", ".layers.7.")] = tensors[key].clone()
        if change == "shape":
            tensors[key] = tensors[key][:, :-1].contiguous()
        if change:
            save_file(tensors, directory / "adapter_model.safetensors")
        try:
            spec = module.load_adapter(model, directory)
            result = [spec.r, float(spec.alpha), sorted(spec.targets), spec.dropout, spec.use_rslora]
        except ValueError as e:
            result = str(e)
    layers = [m for m in model.modules() if isinstance(m, module.LoRALinear)]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return result, [m.lora_A.detach().clone() for m in layers], [bool(m.merged) for m in layers], key, trainable


@probe
def unmerged_in_training(module, model, ids):
    """Logits in training mode, of a model whose layers are not merged (any more)."""
    import torch

    for layer in model.modules():
        if isinstance(layer, module.LoRALinear):
            layer.unmerge()
    with torch.no_grad():
        return model.train()(input_ids=ids).logits


@probe
def merge_all(module, model):
    for layer in model.modules():
        if isinstance(layer, module.LoRALinear):
            layer.merge()


@task(7)
@points(5)
@needs("test_matches_peft")
@hint(
    "Inject if the model has no adapters; compare the two sets of names; copy_ under no_grad.",
    "Scaling and dropout come from the file. Compare everything before you copy the first factor.",
)
def test_load_adapter(submission):
    """What peft wrote opens with peft's logits, in a new, an adapted or a merged model; wrong files do not."""
    for name, spec in SPECS.items():
        factors, logits, _, ids, _ = peft_answers(name)
        model = submission.run(load_model, str(PEFT))
        got, _, merged, _, trainable = submission.run(load_changed, model, str(PEFT / name), "")
        check(not any(merged), "A model that was not merged is not merged afterwards.", got=merged)
        want = [spec["r"], spec["alpha"], sorted(spec["targets"]), 0.25 if name == "all" else 0.0, name == "all"]
        check(got == want, "The spec that the file says: r, alpha, targets, dropout, use_rslora.", got=got, want=want)
        check(trainable == sum(f.numel() for f in factors.values()), "Only the factors require grad.", got=trainable)
        close(submission.run(logits_of, model, ids), logits, 4e-5, f"logits ({name})")

        model = submission.run(load_model, str(PEFT))
        submission.inject_lora(model, submission.LoraSpec(**spec | {"alpha": 1.0, "dropout": 0.9}))
        submission.run(set_factors, model, {k: torch.ones_like(v) for k, v in factors.items()})
        submission.run(merge_all, model)
        _, _, merged, _, _ = submission.run(load_changed, model, str(PEFT / name), "")
        check(all(merged), "A merged model is merged afterwards too.", got=merged)
        close(submission.run(logits_of, model, ids), logits, 4e-5, f"logits of a merged model ({name})")
        if name == "two":  # its file says no dropout
            got = submission.run(unmerged_in_training, model, ids)
            close(got, logits, 4e-5, "logits in training mode, by the dropout of the file")

    model = submission.run(load_model, str(PEFT)).bfloat16()
    _, loaded, *_ = submission.run(load_changed, model, str(PEFT / "two"), "")
    check(all(f.dtype == torch.bfloat16 for f in loaded), "Factors get the dtype of the model's.", got=loaded[0].dtype)

    for change in ("missing", "unknown", "shape"):
        model = submission.run(load_model, str(PEFT))
        submission.inject_lora(model, submission.LoraSpec(**SPECS["two"]))
        ones = {k: torch.ones_like(v) for k, v in peft_answers("two")[0].items()}
        submission.run(set_factors, model, ones)
        got, factors, _, key, _ = submission.run(load_changed, model, str(PEFT / "two"), change)
        named = key.replace(".layers.0.", ".layers.7.") if change == "unknown" else key
        check(
            isinstance(got, str) and named in got,
            f"A file with one factor {change}: ValueError that names it.",
            got=got,
            want=named,
        )
        check(all(bool((f == 1).all()) for f in factors), "After an error the factors must be as they were.")


# --- task 8 (stretch): memory -----------------------------------------------------------------------------------------


@probe
def plan(module, options, spec):
    from transformers.models.llama.configuration_llama import LlamaConfig

    config = LlamaConfig(**options)
    before = config.to_dict()
    result = dict(module.memory_plan(config, module.LoraSpec(**spec)))
    return result, config.to_dict() == before


def counted(c, r, targets):
    """Parameters of a LLaMA and of its adapters, layer by layer."""
    h, m, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    head = c.get("head_dim") or h // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    shapes = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
    shapes |= {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}
    bias = (q + 2 * kv + h) if c.get("attention_bias") else 0
    layer = sum(i * o for i, o in shapes.values()) + bias + 2 * h
    ends = v * h * (1 if c["tie_word_embeddings"] else 2) + h
    trained = sum(r * sum(shapes[t]) for t in targets) * c["num_hidden_layers"]
    return c["num_hidden_layers"] * layer + ends, trained


@task(8)
@points(4)
@needs("test_frozen_base")
@hint(
    "with torch.device('meta'): LlamaForCausalLM(config) takes a tenth of a second for any size, and then you count.",
    "parameters() counts tied weights once. 2 bytes a weight in bf16, 16 a trained parameter.",
)
def test_memory_plan(submission):
    """Parameters and bytes for LLaMA-7B and for others: grouped queries, tied embeddings, biases; exact."""
    seven = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}  # fmt: skip
    small = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
             "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True,
             "head_dim": 10}  # fmt: skip
    for config, r, targets in ((seven, 16, PROJECTIONS), (small, 3, ("k_proj", "o_proj"))):
        got, unchanged = submission.run(plan, config, {"r": r, "alpha": 1.0, "targets": targets})
        total, trained = counted(config, r, targets)
        want = {
            "total_params": total, "trainable_params": trained, "weight_bytes_bf16": 2 * total,
            "lora_state_bytes": 16 * trained, "full_finetune_bytes": 16 * total,
        }  # fmt: skip
        check(got == want, "The plan.", got=got, want=want)
        check(unchanged, "The configuration that was handed in must not change.")
    check(
        counted(seven, 16, PROJECTIONS) == (6_738_415_616, 39_976_960), "LLaMA-7B.", got=counted(seven, 16, PROJECTIONS)
    )
