"""The library's own arguments as far as they go: return_tensors, pad, char_to_token, word_ids; generators and itertools."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
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


def build_bert_tokenizer(vocab_txt: Path, *, lowercase: bool = True) -> PreTrainedTokenizerFast:
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    tokens = vocab_txt.read_bytes().decode("utf-8").split("\n")
    vocab = dict(zip(tokens[:-1] if tokens[-1] == "" else tokens, itertools.count()))
    for name in BERT_SPECIALS:
        try:
            vocab[name]
        except KeyError:
            raise ValueError(f"no {name} among {len(vocab)} tokens") from None
    ready = BertWordPieceTokenizer(vocab=vocab, lowercase=lowercase)
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), BERT_SPECIALS))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=ready._tokenizer, model_input_names=inputs, **roles)


def build_chat_tokenizer(vocab_json: Path, merges_txt: Path) -> PreTrainedTokenizerFast:
    from tokenizers.implementations import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    with open(vocab_json, encoding="utf-8") as file:
        vocab = json.load(file)
    with open(merges_txt, encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in itertools.islice(file, 1, None) if line.strip()]
    ready = ByteLevelBPETokenizer(vocab=vocab, merges=merges, add_prefix_space=False)
    ready.add_special_tokens(list(CHAT_SPECIALS))
    tok = PreTrainedTokenizerFast(
        tokenizer_object=ready._tokenizer, chat_template=CHATML, clean_up_tokenization_spaces=False
    )
    end, *others = CHAT_SPECIALS
    tok.add_special_tokens({"bos_token": end, "eos_token": end, "pad_token": end, "extra_special_tokens": others})
    return tok


def load_tokenizer(path_or_id: str, *, local_files_only: bool = True) -> PreTrainedTokenizerFast:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(path_or_id, local_files_only=local_files_only)


def collate(
    tok: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int,
    side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    if not texts:
        raise ValueError("a batch needs a text")
    rows = tok([*texts], truncation=True, max_length=max_length)
    padded = tok.pad(rows, padding=True, padding_side=side, pad_to_multiple_of=pad_to_multiple_of, verbose=False)
    batch = {key: torch.from_numpy(np.array(values, dtype=np.int64)) for key, values in padded.items()}
    counted = torch.cumsum(batch["attention_mask"], dim=1) - 1
    batch["position_ids"] = counted.masked_fill(batch["attention_mask"] == 0, 0)
    return batch


def prepare_qa(
    tok: PreTrainedTokenizerFast, examples: Sequence[QAExample], *, max_length: int, stride: int
) -> list[QAFeature]:
    if len(examples) == 0:
        return []
    questions, contexts = [e.question for e in examples], [e.context for e in examples]
    sizes = tok(questions, split_special_tokens=True, return_length=True)["length"]
    for e, size in zip(examples, sizes):
        if max_length - size - 1 <= stride:
            raise ValueError(f"no room for the context of {e.id}")
        at, text = e.answer_start, e.answer_text
        if text != "" and (at < 0 or e.context.find(text, at, at + len(text)) != at):
            raise ValueError(f"the answer of {e.id} is elsewhere")
    options = {
        "max_length": max_length,
        "stride": stride,
        "padding": "max_length",
        "truncation": "only_second",
        "padding_side": "right",
    }
    found = tok(questions, contexts, split_special_tokens=True, return_overflowing_tokens=True, return_offsets_mapping=True,
                return_token_type_ids=True, **options)  # fmt: skip

    def positions(k: int, e: QAExample, offsets: list) -> tuple[int, int]:
        inside = [j for j, span in enumerate(offsets) if span]
        a, b = e.answer_start, e.answer_start + len(e.answer_text)
        if not (e.answer_text and inside) or offsets[inside[0]][0] > a or offsets[inside[-1]][1] < b:
            return 0, 0
        # char_to_token is None between tokens; answers begin and end with characters that are kept.
        return found.char_to_token(k, a, 1), found.char_to_token(k, b - 1, 1)

    features = []
    for k, sample in enumerate(found["overflow_to_sample_mapping"]):
        spans = found["offset_mapping"][k]
        offsets = [spans[j] if s == 1 else None for j, s in enumerate(found.sequence_ids(k))]
        e = examples[sample]
        columns = (found[key][k] for key in ("input_ids", "token_type_ids", "attention_mask"))
        features.append(QAFeature(e.id, *columns, offsets, *positions(k, e, offsets)))
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
        raise ValueError(f"{len(labels)} labels for {len(words)} words")
    encoded = tok(
        [[*words]], is_split_into_words=True, truncation=True, max_length=max_length, split_special_tokens=True
    )
    result = {key: values[0] for key, values in encoded.items()}
    result["labels"] = []
    for word, group in itertools.groupby(encoded.word_ids(0)):
        size = len(list(group))
        if word is None:
            result["labels"] += [IGNORE] * size
            continue
        rest = labels[word].replace("B-", "I-", 1) if labels[word].startswith("B-") else labels[word]
        result["labels"].append(label2id[labels[word]])
        if size > 1:
            result["labels"] += [label2id[rest] if label_all else IGNORE] * (size - 1)
    return result


def turn(tok: PreTrainedTokenizerFast, role: str, content: str) -> list[tuple[int, int]]:
    """(id, label) of the tokens of one message."""
    if role not in ROLES:
        raise ValueError(f"no such role: {role!r}")

    def text(part: str) -> list[int]:
        return tok.encode(part, add_special_tokens=False, split_special_tokens=True)

    quiet = [tok.convert_tokens_to_ids("<|im_start|>"), *text(f"{role}\n")]
    loud = [*text(content), tok.convert_tokens_to_ids("<|im_end|>")]
    return [*((i, IGNORE) for i in quiet), *((i, i if role == "assistant" else IGNORE) for i in loud),
            *((i, IGNORE) for i in text("\n"))]  # fmt: skip


def chat_labels(
    tok: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], *, max_length: int | None = None
) -> dict[str, list[int]]:
    turns = {k: turn(tok, m["role"], m["content"]) for k, m in enumerate(messages)}
    for k in sorted(turns, key=lambda k: (messages[k]["role"] == "system", k)):
        if max_length is None or sum(map(len, turns.values())) <= max_length:
            break
        turns.pop(k)
    ids, labels = [], []
    for i, label in itertools.chain(*turns.values()):
        ids.append(i)
        labels.append(label)
    return {"labels": labels, "input_ids": ids, "attention_mask": [1] * len(ids)}


def tokens_of(
    tok: PreTrainedTokenizerFast, docs: Iterable[str], batch_size: int
) -> Iterator[tuple[int, int, int, int]]:
    """Token by token: id, label, position, document."""
    source = iter(docs)
    numbers = itertools.count()
    for batch in iter(lambda: [*itertools.islice(source, batch_size)], []):
        encoded = tok(batch, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
        for ids, number in zip(encoded["input_ids"], numbers):
            label = IGNORE
            for position, token in enumerate(itertools.chain(ids, [tok.eos_token_id])):
                yield token, token if position else label, position, number


def pack(
    tok: PreTrainedTokenizerFast, docs: Iterable[str], block_size: int, *, batch_size: int = 64
) -> Iterator[PackedBlock]:
    stream = tokens_of(tok, docs, batch_size)
    while len(block := list(itertools.islice(stream, block_size))) == block_size:
        yield PackedBlock(*([token[k] for token in block] for k in range(4)))


def token_budget_batches(lengths: Sequence[int], max_tokens: int, *, seed: int | None = None) -> list[list[int]]:
    sizes = np.asarray(lengths, dtype=np.int64)
    if (sizes > max_tokens).any():
        raise ValueError(f"too long: index {int(np.argmax(sizes > max_tokens))}")
    order = np.argsort(sizes, kind="stable")[::-1].tolist()
    batches = []
    while order:
        rows = max_tokens // max(1, int(sizes[order[0]]))
        batches.append(order[:rows])
        order = order[rows:]
    if seed is not None:
        batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
    return batches


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
