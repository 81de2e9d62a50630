"""Visible checks of 3.2 lora_finetuning. They earn no points; what they ask for is in README.md."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkata.checks import check, expect_error, hint, probe, same, task

COMPONENTS = Path(__file__).parents[3] / "components"
TINY, PEFT = COMPONENTS / "tiny_llama_qa", COMPONENTS / "peft_adapters"
F64 = torch.float64
records = runpy.run_path(str(TINY / "language.py"))["records"]


@probe
def load_model(module, folder):
    """The LLaMA of a directory in the hub's layout, float32, evaluation mode."""
    import json
    from pathlib import Path

    from safetensors.torch import load_file
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**json.loads((Path(folder) / "config.json").read_text())))
    model.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()})
    return model.eval()


@probe
def load_tokenizer(module, folder):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(folder + "/tokenizer.json"), **special)


@probe
def linear(module, weight):
    import torch

    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    made.load_state_dict({"weight": weight})
    return made


# The worked example of the brief.
W = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], dtype=F64)
A = torch.tensor([[1.0, 1.0, 0.0]], dtype=F64)
B = torch.tensor([[1.0], [-2.0]], dtype=F64)
X = torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def worked_layer(submission, **options):
    layer = submission.LoRALinear(submission.run(linear, W), submission.LoraSpec(1, 0.5, **options))
    layer.load_state_dict({"lora_A": A, "lora_B": B}, strict=False)
    return layer


# --- tasks 1 and 2 ----------------------------------------------------------------------------------------------------


@task(1)
@hint("W x = (7, 2), A x = 3, B A x = (3, -6), and s = 0.5 / 1.")
def test_worked_example(submission):
    """Two outputs, three inputs, rank one: the numbers of the brief; a new layer is its base."""
    new = submission.LoRALinear(submission.run(linear, W), submission.LoraSpec(1, 0.5))
    same(new(X), torch.tensor([7.0, 2.0], dtype=F64), what="output of a new layer")
    same(worked_layer(submission)(X), torch.tensor([8.5, -1.0], dtype=F64), what="output with factors")


@task(1)
@hint("alpha / r = 16 / 4; alpha / sqrt(r) = 16 / 2.")
def test_scaling(submission):
    """The factor in front of BA, plain and rank-stabilised."""
    got = [submission.LoraSpec(4, 16.0, use_rslora=r).scaling for r in (False, True)]
    check(got == [4.0, 8.0], "alpha / r and alpha / sqrt(r).", got=got, want=[4.0, 8.0])
    with expect_error(ValueError, "r"):
        submission.LoraSpec(0, 16.0)


@probe
def adapted_logits(module, model, spec, factors, ids):
    """(names that were replaced, logits with these factors)."""
    import torch

    names = module.inject_lora(model, module.LoraSpec(**spec))
    with torch.no_grad():
        for key, value in factors.items():
            model.get_parameter(key.removeprefix("base_model.model.").removesuffix(".weight")).copy_(value)
        return names, model(input_ids=ids).logits


@task(2)
@hint("Which modules does peft adapt? Every nn.Linear whose name ends in .q_proj or .v_proj.")
def test_like_peft(submission):
    """With the factors of an adapter made by peft, your model has peft's logits."""
    answers = load_file(PEFT / "answers.safetensors")
    factors = load_file(PEFT / "two/adapter_model.safetensors")
    spec = {"r": 4, "alpha": 16.0, "targets": ("q_proj", "v_proj")}
    names, got = submission.run(adapted_logits, submission.run(load_model, str(PEFT)), spec, factors, answers["ids"])
    want = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]
    check(list(names) == want, "Names of the replaced modules.", got=names, want=want)
    same(got, answers["two.logits"], atol=1e-4, rtol=0.0, what="logits")


# --- task 3 -----------------------------------------------------------------------------------------------------------

RECORD = {
    "QUESTION": "does zinc help with fever ?",
    "CONTEXTS": ["ill patients took zinc .", "fever eased in the zinc arm ."],
    "LABELS": ["METHODS", "RESULTS"],
    "final_decision": "yes",
    "LONG_ANSWER": "in conclusion zinc works .",
}


@probe
def load_text(module, text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ori_pqal.json").write_text(text, encoding="utf-8")
        return module.load_pubmedqa(Path(folder) / "ori_pqal.json")


@task(3)
@hint("json.loads gives {pmid: record}; the brief has the other two layouts.")
def test_one_record(submission):
    """A record of ori_pqal.json becomes an example."""
    (got,) = submission.run(load_text, json.dumps({"101": RECORD}))
    fields = [got.pmid, got.question, list(got.contexts), list(got.labels), got.long_answer, got.decision]
    check(
        fields == ["101", *RECORD.values()][:4] + [RECORD["LONG_ANSWER"], "yes"],
        "The fields of the example.",
        got=fields,
    )


@task(3)
@hint("At 24 tokens one word has to go: 'arm .' loses its full stop, the question stays.")
def test_prompt_and_labels(submission):
    """The prompt of the brief at 26, 24 and 22 tokens, and which of its tokens are labelled."""
    tok = submission.run(load_tokenizer, str(TINY))
    (ex,) = submission.run(load_text, json.dumps({"101": RECORD}))
    context = "ill patients took zinc . fever eased in the zinc arm ."
    for length, words in ((26, 12), (24, 10), (22, 8)):
        text = f"context : {' '.join(context.split()[:words])} question : does zinc help with fever ? answer :"
        got = tok.decode(submission.encode_prompt(ex, tok, length))
        print(f"{length} tokens: {got}")
        check(got == f"<s> {text}", f"The prompt in {length} tokens.", got=got, want=f"<s> {text}")
    item = submission.encode_example(ex, tok, 22)
    print("".join("." if label == -100 else "#" for label in item["labels"]))
    check(
        [i for i in item["labels"] if i != -100] == [tok.convert_tokens_to_ids("yes")],
        "Only the answer is labelled.",
        got=item["labels"],
    )
    with expect_error(ValueError, "question"):
        submission.encode_prompt(ex, tok, 12)


@task(3)
@hint("Each row is extended on the right to the longest one.")
def test_collate(submission):
    """Two rows of unequal length become three matrices."""
    items = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    got = submission.collate(items, 1)
    want = {
        "input_ids": [[5, 6, 7], [8, 9, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, -100, 7], [-100, 9, -100]],
    }
    for key, value in want.items():
        same(got[key], torch.tensor(value), what=key)


# --- tasks 4 and 5 ----------------------------------------------------------------------------------------------------


@probe
def short_training(module, model, tokenizer, rows, spec, options):
    """Losses, and whether all weights of the base are what they were."""
    import torch

    examples = [
        module.PubMedQAExample(p, r["QUESTION"], tuple(r["CONTEXTS"]), (), "", r["final_decision"])
        for p, r in rows.items()
    ]
    before = [p.detach().clone() for p in model.parameters()]
    losses = module.finetune(model, tokenizer, examples, module.LoraSpec(**spec), **options)
    after = [p for n, p in model.named_parameters() if "lora_" not in n]
    return losses, all(map(torch.equal, before, after))


@task(4)
@hint("inject, AdamW over what requires grad, and for every list of `batches`: collate, answer_loss, backward, step.")
def test_twenty_steps(submission):
    """Twenty steps lower the loss on medical questions by half, and the base stays as it is."""
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    options = {"steps": 20, "lr": 5e-3, "batch_size": 16, "seed": 0, "max_length": 40}
    losses, kept = submission.run(
        short_training, model, tok, records("medical", 100, seed=1), {"r": 8, "alpha": 16.0}, options
    )
    check(len(losses) == 20, "One loss per step.", got=len(losses), want=20)
    check(sum(losses[-4:]) / 4 < 0.6 * losses[0], "The loss must fall.", got=[losses[0], *losses[-4:]])
    check(kept, "Weights of the base changed.")


@probe
def plain_scores(module, model, prompts, ids):
    """log P of one token after each prompt, prompt by prompt."""
    import torch

    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1)[ids] for p in prompts]
    return torch.stack(rows)


@task(5)
@hint("Row i is read at position len(prompts[i]) - 1.")
def test_two_prompts(submission):
    """Two prompts of unequal length have the scores that they have one by one."""
    model, tok = submission.run(load_model, str(TINY)), submission.run(load_tokenizer, str(TINY))
    prompts = [[2, 4, 7, 30, 8, 5, 7], [2, 4, 7, 30, 31, 32, 33, 34, 8, 5, 7]]
    ids = [int(tok.convert_tokens_to_ids(o)) for o in ("yes", "no", "maybe")]
    want = submission.run(plain_scores, model, prompts, ids)
    same(submission.score_options(model, tok, prompts), want, atol=1e-3, rtol=0.0, what="scores")


@task(5)
@hint("yes: F1 = 2·1/(2·1 + 0 + 1) = 2/3; no: 2·1/(2·1 + 1 + 0) = 2/3; maybe does not occur.")
def test_metrics_example(submission):
    """Two of three right, none of them "maybe"."""
    got = submission.pubmedqa_metrics(["yes", "yes", "no"], ["yes", "no", "no"])
    same(
        [float(got["accuracy"]), float(got["macro_f1"])], [2 / 3, 2 / 3], atol=1e-9, rtol=0.0, what="accuracy, macro-F1"
    )
    check([list(r) for r in got["confusion"]] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]], "Confusion.", got=got["confusion"])
    empty = submission.pubmedqa_metrics([], [])
    check(math.isnan(empty["accuracy"]) and math.isnan(empty["macro_f1"]), "NaN of no questions.", got=empty)


# --- tasks 6 to 8 -----------------------------------------------------------------------------------------------------


@task(6)
@hint("W + 0.5 · (1, -2)ᵀ (1, 1, 0).")
def test_merge_example(submission):
    """The merged weight of the worked example, and the old one back."""
    layer = worked_layer(submission)
    layer.merge()
    want = torch.tensor([[1.5, 0.5, 2.0], [-1.0, 0.0, 0.0]], dtype=F64)
    same(layer.base.weight, want, what="merged weight")
    same(layer(X), torch.tensor([8.5, -1.0], dtype=F64), what="output of the merged layer")
    layer.unmerge()
    same(layer.base.weight, W, atol=0.0, rtol=0.0, what="weight after unmerge")


@probe
def saved(module, model, spec):
    import tempfile
    from pathlib import Path

    from safetensors.torch import load_file

    spec = module.LoraSpec(**spec)
    module.inject_lora(model, spec)
    with tempfile.TemporaryDirectory() as folder:
        module.save_adapter(model, spec, Path(folder))
        names = sorted(load_file(Path(folder) / "adapter_model.safetensors"))
        return sorted(p.name for p in Path(folder).iterdir()), names


@task(7)
@hint("base_model.model. + name of the module + .lora_A.weight")
def test_adapter_listing(submission):
    """An adapter for two layers' q_proj: two files, four tensors, under peft's names."""
    spec = {"r": 2, "alpha": 4.0, "targets": ("q_proj",)}
    files, names = submission.run(saved, submission.run(load_model, str(PEFT)), spec)
    print("\n".join([*files, *names]))
    want = [f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{f}.weight" for i in (0, 1) for f in "AB"]
    check(files == ["adapter_config.json", "adapter_model.safetensors"], "Files of an adapter.", got=files)
    check(names == want, "Tensors in adapter_model.safetensors.", got=names, want=want)


@probe
def command_line(module, base, files, arguments):
    """main in a scratch folder: what it writes."""
    import json
    import os
    import tempfile
    from pathlib import Path

    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        out = folder / "run"
        places = [
            "--base",
            base,
            "--data",
            str(folder / "ori_pqal.json"),
            "--split-dir",
            str(folder),
            "--out",
            str(out),
        ]
        module.main([*places, *arguments])
        read = lambda name: json.loads((out / name).read_text(encoding="utf-8"))
        return read("predictions.json"), read("metrics.json"), read("adapter/adapter_config.json")


def official_files():
    """The official layout with 12 records: two folds of 4 to train on and 2 to develop with, and 6 for testing."""
    rows = records("medical", 12, seed=3)
    keys = list(rows)
    pick = lambda names: {k: rows[k] for k in names}
    blind = {k: {f: v for f, v in rows[k].items() if f != "final_decision"} for k in keys[6:]}
    files = {
        "ori_pqal.json": rows,
        "test_set.json": blind,
        "test_ground_truth.json": {k: rows[k]["final_decision"] for k in keys[6:]},
    }
    for i, dev in enumerate((keys[:2], keys[2:4])):
        files[f"pqal_fold{i}/dev_set.json"] = pick(dev)
        files[f"pqal_fold{i}/train_set.json"] = pick(k for k in keys[:6] if k not in dev)
    return files, keys[6:]


@task(8)
@hint("What main calls is finetune, evaluate and save_adapter: tasks 1 to 5 and 7.")
def test_at_real_scale_on_a_small_one(submission):
    """The command of the brief runs offline on a tiny checkpoint and the official layout, two folds, in bfloat16."""
    files, test = official_files()
    options = (
        "--folds 2 --r 2 --alpha 4 --targets all --steps 3 --lr 0.01 --batch-size 3 --max-length 40 --dtype bfloat16"
    )
    said, report, config = submission.run(command_line, str(TINY), files, options.split())
    check(sorted(said) == sorted(test) and set(said.values()) <= {"yes", "no", "maybe"}, "predictions.json.", got=said)
    check([r["split"] for r in report] == ["pqal_fold0", "pqal_fold1"], "One report per fold.", got=report)
    counted = [sum(map(sum, r["test"]["confusion"])) for r in report]
    check(counted == [6, 6], "Six test questions with a known answer.", got=counted)
    check(
        config["base_model_name_or_path"] == str(TINY) and len(config["target_modules"]) == 7,
        "The adapter.",
        got=config,
    )


@task(8)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Make tensors on the device of what they are computed with; batches go to the device of the factors.")
def test_on_cuda(submission):
    """The same command on a GPU."""
    files, test = official_files()
    options = "--r 2 --alpha 4 --steps 3 --batch-size 3 --max-length 40 --dtype bfloat16 --device cuda"
    said, _, _ = submission.run(command_line, str(TINY), files, options.split())
    check(sorted(said) == sorted(test), "predictions.json.", got=said)
