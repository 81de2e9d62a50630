"""Budgets of 1.2 hugging_face_tokenizers: padding, calls of the tokenizer, memory and laziness of packing.

Calls are counted where all of them pass: the library's backend is wrapped, so that tok(...), tok.encode and
tok.backend_tokenizer count alike, and each call reports to the grader.
"""

import json
from pathlib import Path

import numpy as np

from llmkata.checks import check, hint, needs, points, probe, task

FILES = Path(__file__).parents[3] / "components" / "tiny_tokenizers"
BERT_OPTIONS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}
CHAT_OPTIONS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
                "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}  # fmt: skip


def bert_spec(reference):
    lines = (FILES / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [reference.bert(lines).to_str(), BERT_OPTIONS]


def shipped_chat():
    vocab = json.loads((FILES / "vocab.json").read_text(encoding="utf-8"))
    return vocab, (FILES / "merges.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")[1:]


def chat_spec(reference):
    return [reference.chat(*shipped_chat()).to_str(), CHAT_OPTIONS]


@task(6)
@points(6)
@needs("test_batches_valid")
@hint(
    "Rows of one batch should be of nearly the same length.",
    "Sort the indices by length, fill batches greedily, and only then shuffle the batches.",
)
def test_padded_tokens(submission, budget, rng):
    """Batches of 1000 texts of very different lengths are few, and padded to at most 1.25 times the texts' tokens."""
    # Log-normal lengths (µ 3.5, σ 0.8). Sorted and filled greedily: 1.14 to 1.16; in the order given: 3.3 to 3.8.
    lengths = [int(n) for n in np.clip(rng.lognormal(3.5, 0.8, size=1000), 1, 512)]
    batches = submission.token_budget_batches(lengths, 4096, seed=int(rng.integers(99)))
    check(sorted(i for b in batches for i in b) == list(range(1000)), "Not each index once.")
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches if b)
    budget.require("padded tokens", padded, at_most=1.25 * sum(lengths), at_least=sum(lengths), reference=sum(lengths),
                   unit="tokens", trust="handed in")  # fmt: skip
    # Mended in the specification, which batches of one text satisfy: at most twice as many batches as tokens make
    # necessary (about 12 for 45 000 tokens), and one for the end. Sorted and filled greedily: about 14; of one text: 1000.
    least = sum(lengths) / 4096
    budget.require(
        "batches",
        len(batches),
        at_most=2 * least + 1,
        at_least=int(least),
        reference=least,
        unit="batches",
        trust="handed in",
    )


@probe
def counted_calls(module, spec, name, args, options, count):
    """module.name with a tokenizer that reports each encoding call of its backend."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    class Counting:
        def __init__(self, backend):
            object.__setattr__(self, "_backend", backend)

        def __getattr__(self, key):
            value = getattr(self._backend, key)
            if not key.startswith("encode") or not callable(value):
                return value

            def call(*args, **kwargs):
                count()
                return value(*args, **kwargs)

            return call

        def __setattr__(self, key, value):
            setattr(self._backend, key, value)

    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spec[0]), **spec[1])
    tok._tokenizer = Counting(tok._tokenizer)
    if name == "prepare_qa":
        args = [[module.QAExample(**e) for e in args[0]]]
    result = getattr(module, name)(tok, *args, **options)
    return len(list(result))


def calls_of(submission, spec, name, args, options):
    calls = []
    size = submission.run(counted_calls, spec, name, args, options, lambda: calls.append(1))
    check(size > 0, f"{name} gave nothing.")
    return len(calls)


@task(3)
@points(2)
@needs("test_collate_truncation")
@hint("Hand the whole list to the tokenizer: it encodes a batch in one call, in parallel where it may.")
def test_collate_calls(submission, budget, reference, rng):
    """A batch of 12 texts is one call of the tokenizer."""
    # One call for all; a loop over texts: 12.
    texts = [f"hello river {k}" for k in rng.integers(0, 99, size=12)]
    calls = calls_of(submission, bert_spec(reference), "collate", [texts], {"max_length": 16})
    budget.require(
        "tokenizer calls of collate", calls, at_most=1, at_least=1, reference=1, unit="calls", trust="handed in"
    )


@task(7)
@points(3)
@needs("test_qa_windows")
@hint(
    "The lengths of all questions take one call, the windows of all examples another: return_overflowing_tokens=True."
)
def test_qa_calls(submission, budget, reference, rng):
    """Windows of 9 examples take at most two calls of the tokenizer."""
    # Questions, then pairs with overflow: 2. A loop over examples: 9 or 18.
    words = [str(w) for w in rng.choice(["river", "hello", "london"], size=40)]
    examples = [
        {"id": str(k), "question": "what?", "context": " ".join(words), "answer_text": words[0], "answer_start": 0}
        for k in range(9)
    ]
    calls = calls_of(submission, bert_spec(reference), "prepare_qa", [examples], {"max_length": 20, "stride": 4})
    budget.require(
        "tokenizer calls of prepare_qa", calls, at_most=2, at_least=1, reference=2, unit="calls", trust="handed in"
    )


@task(8)
@points(3)
@needs("test_pack")
@hint("Take batch_size documents with itertools.islice and encode them together.")
def test_pack_calls(submission, budget, reference, rng):
    """Packing 50 documents in batches of 8 takes at most 7 calls of the tokenizer."""
    # ceil(50 / 8) = 7; a call a document: 50.
    docs = [f"the river {k}" for k in rng.integers(0, 99, size=50)]
    calls = calls_of(submission, chat_spec(reference), "pack", [docs, 16], {"batch_size": 8})
    budget.require(
        "tokenizer calls of pack", calls, at_most=7, at_least=1, reference=7, unit="calls", trust="handed in"
    )


@probe
def pulled_before_first(module, spec, docs, block_size, batch_size):
    """How many documents were taken when pack returned, and when the first block was there."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(spec[0]), **spec[1])
    taken = []

    def documents():
        for doc in docs:
            taken.append(doc)
            yield doc

    blocks = module.pack(tok, documents(), block_size, batch_size=batch_size)
    before = len(taken)
    next(iter(blocks))
    return before, len(taken)


@task(8)
@points(3)
@needs("test_pack")
@hint("A generator takes documents when it needs them: yield blocks inside the loop, as soon as they are full.")
def test_pack_is_lazy(submission, budget, reference, rng):
    """The first block is given out before documents beyond the ones it needs, and their batch, are taken."""
    spec = chat_spec(reference)
    for docs, block, batch in ((["the river"] * 60, 4, 5), ([""] * 60, 12, 4), (["water"] * 60, 1, 1)):
        before, taken = submission.run(pulled_before_first, spec, docs, block, batch)
        check(before == 0, "Documents are taken before a block is asked for.", got=before)
        # At least one token a document: block documents hold a block, rounded up to whole batches. Listing first: 60.
        budget.require(
            f"documents taken for a block of {block}, {batch} at a time", taken, at_most=2 * batch + block, at_least=1,
            unit="documents", trust="handed in",
        )


@task(8)
@points(4)
@needs("test_pack", "test_saved_and_reloaded")
@hint("Keep only what does not fill a block yet; a list of all ids grows with the stream.")
def test_pack_peak(submission, budget, reference, rng):
    """Memory of packing four times as many documents stays the same."""
    # Buffers hold a batch of 16 documents of about 60 tokens: 1000 tokens in 4 columns, some 200 kB at any length.
    # Collecting 400 documents: 24 000 tokens in 4 columns, and the numbers themselves: 2.3 MB. The 200 kB of slack are
    # for tuples that CPython parks on a free list (mended in the specification, which had the ratio alone).
    words = [
        str(w) for w in rng.permutation(["river", "hello", "London", "water", "people", "under", "quiet", "bridge"])
    ]
    shares, peaks = [], []

    def consume(s, docs):
        tok = s.load_tokenizer(str(FILES / "chat"))
        shares.append(float(s.label_share(s.pack(tok, docs, 64, batch_size=16))))

    for n in (16, 100, 400):  # the first run of all pays for what the library sets up once
        docs = [" ".join(words[(k + j) % 8] for j in range(40)) for k in range(n)]
        peaks.append(float(peak := budget.peak_bytes(lambda s, docs=docs: consume(s, docs))))
        labels = [i for b in reference.blocks(reference.chat(*shipped_chat()), docs, 64) for i in b["labels"]]
        want = sum(i != -100 for i in labels) / len(labels)
        check(abs(shares[-1] - want) < 1e-9, "label_share is given: leave it as it is.", got=shares[-1], want=want)
    budget.require(
        "peak of packing 400 documents", peak, at_most=1.25 * peaks[1] + 200_000, reference=peaks[1], unit="bytes"
    )
