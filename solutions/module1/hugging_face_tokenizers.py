"""Text prepared for training with Hugging Face tokenizers: batches, windows, word labels, chats, blocks.

BERT's pipeline: Devlin et al. 2019. Byte-level BPE: Radford et al. 2019 (GPT-2). ChatML: OpenAI 2023.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
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


# --- tokenizers from files --------------------------------------------------------------------------------------------


def build_bert_tokenizer(vocab_txt: Path, *, lowercase: bool = True) -> PreTrainedTokenizerFast:
    """BERT's tokenizer from its vocabulary file: one token a line, the line number (from 0) is the id.

    Lines end at newlines alone (str.splitlines cuts at more characters); a newline at the end of the file adds none.
    BertNormalizer (lowercase as given, its other settings as they are), BertPreTokenizer, WordPiece with unknown token
    [UNK] and at most 100 characters a word, its decoder, and the templates [CLS] A [SEP] and [CLS] A [SEP] B [SEP] with
    type ids 0 and, for B [SEP], 1. The five tokens of BERT_SPECIALS are set as pad, unk, cls, sep and mask token;
    model_input_names are input_ids, token_type_ids and attention_mask (transformers 5 omits the second unless told).

    Raises ValueError naming the token, if one of BERT_SPECIALS is not in the file.
    """
    # BEGIN SOLUTION task 1: normalizer, pre-tokenizer, model, post-processor, decoder
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    lines = vocab_txt.read_bytes().decode().removesuffix("\n").split("\n")
    vocab = {token: i for i, token in enumerate(lines)}
    for token in BERT_SPECIALS:
        if token not in vocab:
            raise ValueError(f"{vocab_txt} has no line {token}")
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    # END SOLUTION


def build_chat_tokenizer(vocab_json: Path, merges_txt: Path) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE from its two files, with the control tokens of a chat.

    vocab.json maps tokens to ids; merges.txt holds one merge "a b" a line, after a first line "#version: ...". No space
    is put before the text, no token is added around it. CHAT_SPECIALS are special tokens, appended to the vocabulary in
    this order where absent; <|endoftext|> is bos, eos and pad token; CHATML is the chat template. With a vocabulary
    that holds all 256 bytes, tok.decode(tok.encode(s)) == s for every string that UTF-8 can encode.
    """
    # BEGIN SOLUTION task 2: byte-level BPE and its special tokens
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = json.loads(vocab_json.read_bytes())
    # The first line is the version; a merge of the token "#" may look like a comment, so nothing else is skipped.
    lines = merges_txt.read_bytes().decode().split("\n")[1:]
    merges = [tuple(line.split(" ")) for line in lines if line]
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # Tokens with a name are special, and appended to the vocabulary where absent, in this order.
    tok = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tok.chat_template = CHATML
    return tok
    # END SOLUTION


def load_tokenizer(path_or_id: str, *, local_files_only: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder that save_pretrained wrote, from the cache, or (local_files_only=False) from the hub.

    Raises OSError if it is not there.
    """
    # BEGIN SOLUTION task 1: AutoTokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path_or_id, local_files_only=local_files_only)
    # END SOLUTION


# --- five preparations ------------------------------------------------------------------------------------------------


def collate(
    tok: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int,
    side: Literal["right", "left"] = "right",
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """A padded batch: input_ids, attention_mask, position_ids, and token_type_ids if tok.model_input_names has them.

    All int64 of shape (B, T), also where T is 0. Rows longer than max_length keep their head and the tokens that the
    tokenizer puts at the end ([SEP]). T is the longest row's length, rounded up to pad_to_multiple_of (which may exceed
    max_length); padding stands on the given side. attention_mask: 1 on the row's own tokens, 0 on padding;
    position_ids: 0, 1, 2, ... over the row's own tokens, 0 on padding. Special tokens that are spelt out in a text are
    special: the texts may come from a chat template. The tokenizer is called once.

    Raises ValueError if texts is empty.
    """
    # BEGIN SOLUTION task 3: truncate, pad, mask, count positions
    if not texts:
        raise ValueError("no texts")
    # Padding is ours: the library refuses a max_length that is no multiple of pad_to_multiple_of.
    rows = tok(texts, truncation=True, max_length=max_length)
    columns = {"input_ids": tok.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    width, multiple = max(map(len, rows["input_ids"])), pad_to_multiple_of or 1
    width = -(-width // multiple) * multiple
    tensors = {}
    for key in [key for key in columns if key in rows]:
        tensors[key] = torch.full((len(texts), width), columns[key], dtype=torch.int64)
        for padded, row in zip(tensors[key], rows[key]):
            padded[slice(len(row)) if side == "right" else slice(width - len(row), width)] = torch.tensor(row)
    mask = tensors["attention_mask"]
    # Σ_{j<=i} mask_j counts the real tokens up to and with i, so positions begin at 0 wherever the padding stands.
    tensors["position_ids"] = (mask.cumsum(-1) - 1) * mask
    return tensors
    # END SOLUTION


def prepare_qa(
    tok: PreTrainedTokenizerFast, examples: Sequence[QAExample], *, max_length: int, stride: int
) -> list[QAFeature]:
    """Windows [CLS] question [SEP] piece of context [SEP] over each context, in order, for a BERT tokenizer.

    With `room` = max_length - question tokens - 3, window k holds the context tokens from k · (room - stride) on, at
    most room of them; the last window is the first that reaches the end, so neighbours share exactly stride tokens. An
    empty context gives one window. Each window is padded with [PAD] on the right to max_length (type id 0, mask 0).
    Type id 1 stands on the piece and its [SEP], also where tok.model_input_names has no token_type_ids. offsets[i] is
    the span of token i in the characters of the context, None outside the piece.

    An answer lies inside a window if it does not begin before the window's first context token or end after its last.
    Then start_position and end_position are the indices in input_ids of the first and the last context token that share
    a character with it. Otherwise, and where there is no answer, both are the index of [CLS]. (Graded answers begin and
    end with characters that the tokenizer keeps.) Special tokens spelt out in question or context are text. The
    tokenizer is called at most twice in all.

    Raises ValueError naming the example's id, if the question leaves room <= stride (even where the context is short),
    or answer_text is not at answer_start >= 0 (answer_start is ignored where answer_text is "").
    """
    # BEGIN SOLUTION task 7: check, one call with overflow, answers from characters to tokens
    if not examples:
        return []
    questions = tok([e.question for e in examples], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for e, question in zip(examples, questions):
        if max_length - len(question) - tok.num_special_tokens_to_add(pair=True) <= stride:
            raise ValueError(f"example {e.id}: the question leaves no more than {stride} tokens for the context")
        end = e.answer_start + len(e.answer_text)
        if e.answer_text and (e.answer_start < 0 or e.context[e.answer_start : end] != e.answer_text):
            raise ValueError(f"example {e.id}: the answer is not at character {e.answer_start} of the context")
    batch = tok(
        [e.question for e in examples],
        [e.context for e in examples],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        padding="max_length",
        padding_side="right",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        split_special_tokens=True,
    )
    features = []
    for i, sample in enumerate(batch["overflow_to_sample_mapping"]):
        e, ids = examples[sample], batch["input_ids"][i]
        spans = zip(batch.sequence_ids(i), batch["offset_mapping"][i])
        offsets = [span if sequence == 1 else None for sequence, span in spans]
        start = end = ids.index(tok.cls_token_id)
        context = [k for k, span in enumerate(offsets) if span is not None]
        begin, stop = e.answer_start, e.answer_start + len(e.answer_text)
        shared = [k for k in context if offsets[k][0] < stop and begin < offsets[k][1]]
        if e.answer_text and shared and offsets[context[0]][0] <= begin and stop <= offsets[context[-1]][1]:
            start, end = shared[0], shared[-1]
        types, mask = batch["token_type_ids"][i], batch["attention_mask"][i]
        features.append(QAFeature(e.id, ids, types, mask, offsets, start, end))
    return features
    # END SOLUTION


def align_labels(
    tok: PreTrainedTokenizerFast,
    words: Sequence[str],
    labels: Sequence[str],
    label2id: Mapping[str, int],
    *,
    max_length: int,
    label_all: bool = False,
) -> dict[str, list[int]]:
    """Labels of words put on their subwords: input_ids, attention_mask, labels (more keys are allowed), not padded.

    The first subword of a word carries label2id of the word's label, other subwords and special tokens IGNORE; words
    that normalisation leaves empty have no subword. With label_all the other subwords of a word labelled B-X carry
    label2id["I-X"], those of any other word its own label. Truncation keeps the head and the final special token.
    Special tokens spelt out in a word are text.

    Raises ValueError if words and labels differ in number, KeyError for a label that label2id lacks and that is needed.
    """
    # BEGIN SOLUTION task 4: the first subword of each word
    if len(words) != len(labels):
        raise ValueError(f"{len(words)} words, but {len(labels)} labels")
    batch = tok(
        [words],
        is_split_into_words=True,
        truncation=True,
        max_length=max_length,
        split_special_tokens=True,
    )
    aligned, previous = [], None
    for word in batch.word_ids(0):
        if word is None:
            aligned.append(IGNORE)
        elif word != previous:
            aligned.append(label2id[labels[word]])
        elif label_all:
            label = labels[word]
            aligned.append(label2id["I-" + label[2:] if label.startswith("B-") else label])
        else:
            aligned.append(IGNORE)
        previous = word
    return {"input_ids": batch["input_ids"][0], "attention_mask": batch["attention_mask"][0], "labels": aligned}
    # END SOLUTION


def chat_labels(
    tok: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], *, max_length: int | None = None
) -> dict[str, list[int]]:
    r"""A transcript with loss on the assistant only: input_ids, attention_mask, labels (more keys are allowed).

    A message {"role": ..., "content": ...} becomes the id of <|im_start|>, the ids of role + "\n", those of the
    content, the id of <|im_end|>, the ids of "\n"; each text is encoded on its own, and special tokens spelt out in it
    are text.
    The tokenizer adds nothing of its own (no bos). labels equal input_ids on the content of assistant messages and their
    <|im_end|>, and are IGNORE elsewhere.

    Longer than max_length: whole messages are dropped, the oldest that is not a system message first, until the rest
    fits; when only system messages are left they go too, oldest first. A message is never cut; the result may be empty.

    Raises ValueError naming the role, if a role is not in ROLES.
    """
    # BEGIN SOLUTION task 5: control tokens by id, text by itself
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"role {message['role']!r} is none of {', '.join(ROLES)}")
    start, stop = (tok.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>"))

    def encode(text: str) -> list[int]:
        return tok(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    turns: list[tuple[str, list[int], list[int]]] = []  # role, ids, labels
    for message in messages:
        head, body, tail = [start, *encode(message["role"] + "\n")], [*encode(message["content"]), stop], encode("\n")
        learnt = body if message["role"] == "assistant" else [IGNORE] * len(body)
        turns.append((message["role"], head + body + tail, [IGNORE] * len(head) + learnt + [IGNORE] * len(tail)))
    while max_length is not None and sum(len(ids) for _, ids, _ in turns) > max_length:
        del turns[next((i for i, (role, _, _) in enumerate(turns) if role != "system"), 0)]
    ids = [i for _, turn, _ in turns for i in turn]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [i for *_, turn in turns for i in turn]}
    # END SOLUTION


def pack(
    tok: PreTrainedTokenizerFast, docs: Iterable[str], block_size: int, *, batch_size: int = 64
) -> Iterator[PackedBlock]:
    """Documents in order, each followed by the eos token, concatenated and cut into blocks; the remainder is dropped.

    Nothing else is added to a document (no bos). document_ids count them from 0 over the whole stream (an empty one is
    its eos alone, and counts).
    position_ids restart at 0 with each document and run on where a document goes on in the next block. labels equal
    input_ids except IGNORE on the first token of each document, which would be predicted from another document; the
    first token of a block that begins inside a document keeps its label. Special tokens spelt out in a document are
    text.

    Lazy: at most batch_size documents are taken and encoded at a time, in one call of the tokenizer, and a block is
    given out before documents beyond its own batch are taken. Memory does not grow with the number of documents.
    """
    # BEGIN SOLUTION task 8: encode by the batch, give out full blocks
    stream: tuple[list[int], ...] = ([], [], [], [])  # ids, labels, positions, documents
    remaining, document = iter(docs), 0
    while batch := list(itertools.islice(remaining, batch_size)):
        for text_ids in tok(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            ids = [*text_ids, tok.eos_token_id]
            new = ids, [IGNORE, *ids[1:]], range(len(ids)), [document] * len(ids)
            for column, values in zip(stream, new):
                column.extend(values)
            document += 1
            while len(stream[0]) >= block_size:
                yield PackedBlock(*[column[:block_size] for column in stream])
                for column in stream:
                    del column[:block_size]
    # END SOLUTION


def token_budget_batches(lengths: Sequence[int], max_tokens: int, *, seed: int | None = None) -> list[list[int]]:
    """Batches of indices: each index once, and len(batch) · max(lengths in it) <= max_tokens (its size when padded).

    Batches are to be few and full: the budgets of the brief say how much. Order inside a batch is free. seed shuffles
    the order of the batches (0 is a seed too): the batches are the same for every seed, the order is the same for the
    same seed. None: some fixed order.

    Raises ValueError naming the index of a length above max_tokens.
    """
    # BEGIN SOLUTION task 6: sort, fill greedily, shuffle the batches
    for index, length in enumerate(lengths):
        if length > max_tokens:
            raise ValueError(f"index {index}: length {length} is above {max_tokens} tokens")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        # In descending order a batch's first length is its longest.
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(index)
    if seed is not None:
        random.Random(seed).shuffle(batches)
    return batches
    # END SOLUTION


# --- given: a figure of a stream, the command line --------------------------------------------------------------------


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
