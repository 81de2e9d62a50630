"""Oracle of 1.2: raw encodings of `tokenizers`, index arithmetic and flat lists; transformers is not imported.

Tokenizers are those that the library ships ready-made. Texts in which special tokens are spelt out are encoded with
encode_special_tokens, which is the library's name for "special tokens in the text are text".
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer

IGNORE = -100
CHAT_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def bert(lines: list[str], lowercase: bool = True) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(lines)}
    ready = BertWordPieceTokenizer(vocab=vocab, lowercase=lowercase)
    ready.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    return Tokenizer.from_str(ready.to_str())


def chat(vocab: dict[str, int], merges: list[str]) -> Tokenizer:
    ready = ByteLevelBPETokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], add_prefix_space=False)
    ready.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in CHAT_SPECIALS])
    return Tokenizer.from_str(ready.to_str())


def text_only(tok: Tokenizer, text: str | list[str]):
    """The encoding of a text (or of words) without added tokens, special tokens in it read as text."""
    tok.encode_special_tokens = True
    encoding = tok.encode(text, is_pretokenized=isinstance(text, list), add_special_tokens=False)
    tok.encode_special_tokens = False
    return encoding


def batch(rows: list[list[int]], pad: int, side: str, multiple: int | None) -> dict[str, list[list[int]]]:
    """Rows of ids -> the padded lists."""
    width = max(map(len, rows))
    while multiple and width % multiple:
        width += 1
    out = {"input_ids": [], "attention_mask": [], "position_ids": [], "token_type_ids": []}
    for row in rows:
        n, gap = len(row), width - len(row)
        for key, values, fill in (
            ("input_ids", row, pad),
            ("attention_mask", [1] * n, 0),
            ("position_ids", list(range(n)), 0),
            ("token_type_ids", [0] * n, 0),
        ):
            out[key].append([fill] * gap + values if side == "left" else values + [fill] * gap)
    return out


def head(tok: Tokenizer, text: str, max_length: int, framed: bool) -> list[int]:
    """Ids of one row of collate: special tokens in the text are special, [CLS] and [SEP] around it if framed."""
    ids = tok.encode(text, add_special_tokens=False).ids
    if not framed:
        return ids[:max_length]
    return [tok.token_to_id("[CLS]"), *ids[: max_length - 2], tok.token_to_id("[SEP]")]


def windows(tok: Tokenizer, example: dict, max_length: int, stride: int) -> list[dict]:
    cls, sep, pad = (tok.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]"))
    question, context = text_only(tok, example["question"]).ids, text_only(tok, example["context"])
    room = max_length - len(question) - 3
    begin = example["answer_start"]
    end = begin + len(example["answer_text"])
    features, at = [], 0
    while True:
        ids, spans = context.ids[at : at + room], context.offsets[at : at + room]
        before, gap = len(question) + 2, room - len(ids)
        first = last = 0
        if begin < end and spans and spans[0][0] <= begin and end <= spans[-1][1]:
            touched = [k for k, (i, j) in enumerate(spans) if set(range(i, j)) & set(range(begin, end))]
            first, last = before + touched[0], before + touched[-1]
        features.append({
            "example_id": example["id"],
            "input_ids": [cls, *question, sep, *ids, sep] + [pad] * gap,
            "token_type_ids": [0] * before + [1] * (len(ids) + 1) + [0] * gap,
            "attention_mask": [1] * (max_length - gap) + [0] * gap,
            "offsets": [None] * before + [list(span) for span in spans] + [None] * (1 + gap),
            "start_position": first,
            "end_position": last,
        })  # fmt: skip
        if at + room >= len(context.ids):
            return features
        at += room - stride


def word_labels(tok: Tokenizer, words, labels, label2id, max_length: int, label_all: bool) -> dict[str, list[int]]:
    ids, out = [], []
    for word, label in zip(words, labels):
        for k, i in enumerate(text_only(tok, [word]).ids):
            ids.append(i)
            inner = ("I" + label[1:] if label[0] == "B" else label) if label_all else None
            out.append(label2id[label] if k == 0 else IGNORE if inner is None else label2id[inner])
    keep = max_length - 2
    ids = [tok.token_to_id("[CLS]"), *ids[:keep], tok.token_to_id("[SEP]")]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORE, *out[:keep], IGNORE]}


def transcript(tok: Tokenizer, messages, max_length: int | None) -> dict[str, list[int]]:
    _, start, stop = (tok.token_to_id(t) for t in CHAT_SPECIALS)
    turns = []
    for m in messages:
        parts = [[start], text_only(tok, m["role"] + "\n").ids, text_only(tok, m["content"]).ids, [stop],
                 text_only(tok, "\n").ids]  # fmt: skip
        turns.append(
            (m["role"], [(i, m["role"] == "assistant" and k in (2, 3)) for k, part in enumerate(parts) for i in part])
        )
    for system in (False, True):
        for turn in [t for t in turns if (t[0] == "system") == system]:
            if max_length is not None and sum(len(ids) for _, ids in turns) > max_length:
                turns = [t for t in turns if t is not turn]
    flat = [pair for _, ids in turns for pair in ids]
    return {"input_ids": [i for i, _ in flat], "attention_mask": [1] * len(flat),
            "labels": [i if learnt else IGNORE for i, learnt in flat]}  # fmt: skip


def blocks(tok: Tokenizer, docs: list[str], block_size: int) -> list[dict]:
    eos = tok.token_to_id("<|endoftext|>")
    stream = []
    for d, doc in enumerate(docs):
        for p, i in enumerate([*text_only(tok, doc).ids, eos]):
            stream.append((i, i if p else IGNORE, p, d))
    full = len(stream) // block_size
    keys = ("input_ids", "labels", "position_ids", "document_ids")
    return [dict(zip(keys, map(list, zip(*stream[k * block_size : (k + 1) * block_size])))) for k in range(full)]
