"""Writes vocab.txt (BERT's format) and vocab.json, merges.txt (GPT-2's) from the course's own English and German texts,
and chat/, the second one's tokenizer with control tokens as a folder that AutoTokenizer loads.

    python components/tiny_tokenizers/make.py            # writes the files
    python components/tiny_tokenizers/make.py --check    # remakes them elsewhere and compares

vocab.txt is not trained (the library's WordPiece trainer gives other tokens from run to run): the special tokens, some
[unused] lines as in the published files, every character as c and ##c, then frequent words, beginnings and endings.
The byte-level BPE is trained with tokenizers' trainer, which is reproducible where words carry no affixes.
"""

from __future__ import annotations

import json
import os
import re
import string
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE.parent / "parallel_text" / "parallel.jsonl"
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FILES = ("vocab.txt", "vocab.json", "merges.txt", "chat/tokenizer.json", "chat/tokenizer_config.json")
SPECIALS = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = string.digits + string.ascii_lowercase + string.punctuation + "€–“”’今天气很好东京"


def texts() -> list[str]:
    rows = [json.loads(line) for line in SOURCE.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows if row["lang"] in ("en", "de")]


def frequent(parts: Counter[str], size: int) -> list[str]:
    return sorted(parts, key=lambda part: (-parts[part], part))[:size]


def wordpiece() -> list[str]:
    plain = "".join(
        c for c in unicodedata.normalize("NFD", "\n".join(texts()).lower()) if unicodedata.category(c) != "Mn"
    )
    words = Counter(re.findall(r"[a-z]+", plain))
    words.update({word: 30 for word in ("hello", "world", "new", "token", "hugging", "face", "london", "paris")})
    starts = Counter({word[:n]: c for word, c in words.items() for n in (2, 3) if len(word) > n})
    ends = Counter({word[-n:]: c for word, c in words.items() for n in (2, 3, 4) if len(word) > n + 1})
    learnt = [*frequent(words, 150), *frequent(starts, 40), *("##" + end for end in frequent(ends, 60))]
    return list(dict.fromkeys([*SPECIALS, *CHARACTERS, *("##" + c for c in CHARACTERS if c.isalnum()), *learnt]))


def write(folder: Path) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers.implementations import ByteLevelBPETokenizer

    (folder / "vocab.txt").write_text("\n".join(wordpiece()) + "\n", encoding="utf-8")
    ready = ByteLevelBPETokenizer()
    ready.train_from_iterator(texts(), vocab_size=799, show_progress=False)
    model = json.loads(ready.to_str())["model"]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    vocab["<|endoftext|>"] = len(vocab)  # as in GPT-2's file: the last line
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")

    ready.add_special_tokens(list(CONTROL))
    (folder / "chat").mkdir(exist_ok=True)
    (folder / "chat" / "tokenizer.json").write_text(ready.to_str(), encoding="utf-8")
    end, *others = CONTROL
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end, "pad_token": end,
              "extra_special_tokens": others, "clean_up_tokenization_spaces": False}  # fmt: skip
    (folder / "chat" / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as other:
            write(Path(other))
            for name in FILES:
                if (HERE / name).read_bytes() != (Path(other) / name).read_bytes():
                    raise SystemExit(f"{name} is not what make.py writes")
    else:
        write(HERE)
