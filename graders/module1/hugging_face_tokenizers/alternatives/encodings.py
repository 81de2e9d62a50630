"""Raw encodings: the backend of the tokenizer is asked for ids and spans; windows and labels are index arithmetic."""

from __future__ import annotations

import argparse
import json
import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing transformers takes seconds: functions that need it import it themselves
    from transformers import PreTrainedTokenizerFast

IGNORE = -100
"""The label that torch's cross entropy leaves out (ignore_index)."""

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHAT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant")

# Jinja trims the newline after a block, so the newlines of the format stand in expressions of their own.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class QAExample:
    """A question about a context. answer_text stands at character answer_start; "" means unanswerable."""

    id: str
    question: str
    context: str
    answer_text: str
    answer_start: int


@dataclass(frozen=True)
class QAFeature:
    """One window of a context, max_length tokens long; see prepare_qa."""

    example_id: str
    input_ids: list[int]
    token_type_ids: list[int]
    attention_mask: list[int]
    offsets: list[tuple[int, int] | None]
    start_position: int
    end_position: int


@dataclass(frozen=True)
class PackedBlock:
    """block_size tokens of a stream of documents; see pack."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    document_ids: list[int]


def fast(description: dict, **names) -> PreTrainedTokenizerFast:
    """A tokenizer from the contents of a tokenizer.json."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(json.dumps({"version": "1.0", "truncation": None, "padding": None} | description))
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def added(token: str, index: int) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, "special": True} | flags


def build_bert_tokenizer(vocab_txt: Path, *, lowercase: bool = True) -> PreTrainedTokenizerFast:
    with open(vocab_txt, encoding="utf-8") as file:
        vocab = {line.rstrip("\n"): number for number, line in enumerate(file)}
    missing = [token for token in BERT_SPECIALS if token not in vocab]
    if missing:
        raise ValueError("not in the vocabulary: " + " ".join(missing))

    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    first = [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    description = {
        "added_tokens": [added(t, i) for i, t in sorted((vocab[t], t) for t in BERT_SPECIALS)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": first, "pair": first + second,
                           "special_tokens": {t: {"id": t, "ids": [vocab[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    }  # fmt: skip
    names = {t.strip("[]").lower() + "_token": t for t in BERT_SPECIALS}
    return fast(description, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names)


def build_chat_tokenizer(vocab_json: Path, merges_txt: Path) -> PreTrainedTokenizerFast:
    vocab = json.loads(Path(vocab_json).read_bytes())
    _, _, rest = Path(merges_txt).read_bytes().decode().partition("\n")
    ids = dict(vocab)
    for token in CHAT_SPECIALS:
        ids.setdefault(token, len(ids))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    description = {
        "added_tokens": [added(t, i) for i, t in sorted((ids[t], t) for t in CHAT_SPECIALS)],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [m.split(" ") for m in rest.split("\n") if m],
                  "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
    }  # fmt: skip
    end = CHAT_SPECIALS[0]
    return fast(description, bos_token=end, eos_token=end, pad_token=end, chat_template=CHATML,
                extra_special_tokens=list(CHAT_SPECIALS[1:]))  # fmt: skip


def load_tokenizer(path_or_id: str, *, local_files_only: bool = True) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer as Auto

    return Auto.from_pretrained(path_or_id, local_files_only=local_files_only)


def encode_all(
    tok: PreTrainedTokenizerFast, inputs: list, *, text: bool = True, words: bool = False, frame: bool = False
):
    """Encodings of all inputs in one call, without limits; text: control tokens spelt out in them are text."""
    backend = tok.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = text
    return backend.encode_batch(inputs, is_pretokenized=words, add_special_tokens=frame)


def collate(
    tok: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int,
    side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    if not len(texts):
        raise ValueError("nothing to collate")
    encodings = encode_all(tok, list(texts), text=False, frame=True)
    closing = 0 if tok.sep_token_id is None else 1
    frames = [list(e.ids) for e in encodings]
    for ids in frames:
        del ids[max_length - closing : len(ids) - closing]
    width = max(len(ids) for ids in frames)
    if pad_to_multiple_of:
        width += -width % pad_to_multiple_of
    out = {key: torch.zeros((len(frames), width), dtype=torch.long) for key in ("attention_mask", "position_ids")}
    out["input_ids"] = torch.full((len(frames), width), tok.pad_token_id, dtype=torch.long)
    for k, ids in enumerate(frames):
        at = width - len(ids) if side == "left" else 0
        out["input_ids"][k, at : at + len(ids)] = torch.tensor(ids, dtype=torch.long)
        out["attention_mask"][k, at : at + len(ids)] = 1
        out["position_ids"][k, at : at + len(ids)] = torch.arange(len(ids))
    if "token_type_ids" in tok.model_input_names:
        out["token_type_ids"] = torch.zeros_like(out["input_ids"])
    return out


def prepare_qa(
    tok: PreTrainedTokenizerFast, examples: Sequence[QAExample], *, max_length: int, stride: int
) -> list[QAFeature]:
    encodings = encode_all(tok, [text for e in examples for text in (e.question, e.context)])
    features = []
    for example, question, context in zip(examples, encodings[::2], encodings[1::2]):
        room = max_length - 3 - len(question.ids)
        if room <= stride:
            raise ValueError(f"{example.id}: question too long")
        span = None
        if example.answer_text:
            span = range(example.answer_start, example.answer_start + len(example.answer_text))
            if span.start < 0 or not example.context.startswith(example.answer_text, span.start):
                raise ValueError(f"{example.id}: no such answer at {span.start}")
        lead = [tok.cls_token_id, *question.ids, tok.sep_token_id]
        first, n = 0, len(context.ids)
        while True:
            last = min(n, first + room)
            ids = lead + context.ids[first:last] + [tok.sep_token_id]
            gap = max_length - len(ids)
            positions = (0, 0)
            if (
                span
                and last > first
                and context.offsets[first][0] <= span.start
                and span.stop <= context.offsets[last - 1][1]
            ):
                hit = [
                    k
                    for k in range(first, last)
                    if max(span.start, context.offsets[k][0]) < min(span.stop, context.offsets[k][1])
                ]
                positions = (hit[0] - first + len(lead), hit[-1] - first + len(lead)) if hit else (0, 0)
            offsets = [None] * len(lead) + context.offsets[first:last] + [None] * (gap + 1)
            types = [0] * len(lead) + [1] * (len(ids) - len(lead)) + [0] * gap
            ids += [tok.pad_token_id] * gap
            features.append(
                QAFeature(example.id, ids, types, [1] * (max_length - gap) + [0] * gap, offsets, *positions)
            )
            if last == n:
                break
            first += room - stride
    return features


def align_labels(
    tok: PreTrainedTokenizerFast,
    words: Sequence[str],
    labels: Sequence[str],
    label2id: Mapping[str, int],
    *,
    max_length: int,
    label_all: bool = False,
) -> dict[str, list[int]]:
    if len(words) != len(labels):
        raise ValueError("words and labels differ in number")
    (encoding,) = encode_all(tok, [list(words)], words=True)
    ids, row = encoding.ids, encoding.word_ids
    numbers = []
    for k, word in enumerate(row[: max_length - 2]):
        label = labels[word]
        begins = k == 0 or row[k - 1] != word
        if not begins and label_all and label[:2] == "B-":
            label = "I-" + label[2:]
        numbers.append(label2id[label] if begins or label_all else IGNORE)
    ids = [tok.cls_token_id, *ids[: max_length - 2], tok.sep_token_id]
    return {"input_ids": ids, "labels": [IGNORE, *numbers, IGNORE], "attention_mask": [1] * len(ids), "words": row}


def chat_labels(
    tok: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], *, max_length: int | None = None
) -> dict[str, list[int]]:
    known = dict.fromkeys(ROLES)
    for m in messages:
        if m["role"] not in known:
            raise ValueError("unknown role " + repr(m["role"]))
    parts = [text for m in messages for text in (m["role"] + "\n", m["content"], "\n")]
    encoded = [e.ids for e in encode_all(tok, parts)] if parts else []
    start, stop = tok.convert_tokens_to_ids(list(CHAT_SPECIALS[1:]))
    rows = [[start, *head, *body, stop, *end] for head, body, end in zip(encoded[::3], encoded[1::3], encoded[2::3])]
    keep = list(range(len(rows)))
    order = [k for k in keep if messages[k]["role"] != "system"] + [k for k in keep if messages[k]["role"] == "system"]
    excess = sum(map(len, rows)) - (max_length if max_length is not None else float("inf"))
    for k in order:
        if excess <= 0:
            break
        keep.remove(k)
        excess -= len(rows[k])
    ids, labels = [], []
    for k in keep:
        ids += rows[k]
        learnt = range(1 + len(encoded[3 * k]), len(rows[k]) - len(encoded[3 * k + 2]))
        assistant = messages[k]["role"] == "assistant"
        labels += [i if assistant and at in learnt else IGNORE for at, i in enumerate(rows[k])]
    return {"input_ids": ids, "labels": labels, "attention_mask": [1 for _ in ids]}


def pack(
    tok: PreTrainedTokenizerFast, docs: Iterable[str], block_size: int, *, batch_size: int = 64
) -> Iterator[PackedBlock]:
    waiting: deque[tuple[int, int, int, int]] = deque()

    def feed(batch: list[str], first: int) -> Iterator[PackedBlock]:
        for number, encoding in enumerate(encode_all(tok, batch), first):
            for position, token in enumerate([*encoding.ids, tok.eos_token_id]):
                waiting.append((token, token if position else IGNORE, position, number))
                if len(waiting) == block_size:
                    yield PackedBlock(*map(list, zip(*waiting)))
                    waiting.clear()

    batch: list[str] = []
    seen = 0
    for doc in docs:
        batch.append(doc)
        seen += 1
        if len(batch) == batch_size:
            yield from feed(batch, seen - len(batch))
            batch = []
    if batch:
        yield from feed(batch, seen - len(batch))


def token_budget_batches(lengths: Sequence[int], max_tokens: int, *, seed: int | None = None) -> list[list[int]]:
    order = sorted((length, index) for index, length in enumerate(lengths))
    if order and order[-1][0] > max_tokens:
        raise ValueError(f"text {order[-1][1]} has {order[-1][0]} tokens, the limit is {max_tokens}")
    batches = [[]]
    for length, index in order:
        if batches[-1] and (len(batches[-1]) + 1) * length > max_tokens:
            batches.append([])
        batches[-1].append(index)
    batches = [batch for batch in batches if batch]
    return batches if seed is None else random.Random(seed).sample(batches, len(batches))


def label_share(blocks: Iterable[PackedBlock]) -> float:
    """The share of the tokens of a stream of blocks that have a label (0.0 without tokens); keeps no block."""
    labelled = total = 0
    for block in blocks:
        labelled += sum(label != IGNORE for label in block.labels)
        total += len(block.labels)
    return labelled / total if total else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Show how a tokenizer of the hub, of the cache or of a folder cuts texts, and the batch they make."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tokenizer", help="folder or name, such as bert-base-uncased")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--download", action="store_true", help="let the hub be asked for what is not here")
    parser.add_argument("--max-length", type=int, default=128)
    options = parser.parse_args(argv)
    tok = load_tokenizer(options.tokenizer, local_files_only=not options.download)
    if tok.pad_token is None:
        tok.pad_token = tok.eos_token  # GPT-2 has none; the mask tells padding from real tokens
    for text in options.texts:
        print(tok.tokenize(text))
    for key, rows in collate(tok, options.texts, max_length=options.max_length).items():
        print(f"{key:15} {rows.tolist()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
