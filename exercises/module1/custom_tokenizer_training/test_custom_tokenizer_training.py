"""Visible checks of 1.3 custom_tokenizer_training. They earn no points; what they ask for is in README.md."""

import json
import math
from fractions import Fraction

from llmkata.checks import check, hint, needs, probe, same, task

LOW = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
MERGES = [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"), (b"n", b"e")]
PIECES = {"a": math.log(0.3), "b": math.log(0.2), "c": math.log(0.2), "ab": math.log(0.2), "bc": math.log(0.1)}


@probe
def bpe_round_trip(module, text):
    """(ids, decoded text, ids of the chunks of three characters) of a model of the worked example."""
    model = module.train_bpe({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}, 263, ["<|end|>"])
    chunks = [text[i : i + 3] for i in range(0, len(text), 3)]
    ids = list(model.encode(text))
    try:
        streamed = list(model.encode_iterable(iter(chunks)))
    except NotImplementedError:
        streamed = None
    return ids, model.decode(ids), streamed


@probe
def file_of(module):
    """The exported file of the worked example, as text."""
    import tempfile
    from pathlib import Path

    model = module.train_bpe({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}, 263, ["<|end|>"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        module.export_tokenizer_json(model, path)
        return path.read_text(encoding="utf-8")


@probe
def in_transformers(module, content, text):
    """Ids of a text in transformers, and the shape of the logits of a tiny GPT-2 on them; the file comes as text."""
    import tempfile
    from pathlib import Path

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(content, encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="<|end|>")
    batch = tokenizer([text], return_tensors="pt")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=263, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    return batch["input_ids"][0].tolist(), list(logits.shape)


@probe
def command_line(module, runs):
    """What the command line writes for a generated text of 200 kB, for each list of options."""
    import contextlib
    import io
    import tempfile
    from pathlib import Path

    files = []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "text.txt", Path(folder) / "tokenizer.json"
        words = [a + b + c for a in ("lo", "ne", "wi", "ti") for b in ("", "we", "de", "ra") for c in ("st", "r", "ly")]
        lines = [" ".join(words[(i * k) % len(words)] for k in range(1, 21)) + "\n" for i in range(2100)]
        source.write_text("".join(lines), encoding="utf-8")
        for options in runs:
            with contextlib.redirect_stdout(io.StringIO()):
                module.main(["--input", str(source), "--output", str(target), *options])
            files.append(target.read_text(encoding="utf-8"))
    return files


@task(1)
@hint("' quick' keeps its space; of two spaces the second belongs to the word; <|end|> is dropped.")
def test_pretokens_by_hand(submission):
    """The pre-tokens of a short text, counted by hand."""
    got = submission.count_pretokens(["a quick  fox's<|end|>den", "a quick!"], ["<|end|>"])
    want = {b"a": 2, b" quick": 2, b" ": 1, b" fox": 1, b"'s": 1, b"den": 1, b"!": 1}
    check(got == want, "The counts", got=got, want=want)


@task(2)
@hint("(s, t) and (e, s) both count 9, and (s, t) is the greater pair.")
def test_first_merges(submission):
    """The first six merges of the worked example."""
    model = submission.train_bpe(LOW, 262)
    got = [tuple(pair) for pair in model.merges]
    check(got == MERGES, "The merges", got=got, want=MERGES)
    check(len(model.vocab) == 262 and model.vocab[261] == b"ne", "The ids 256 to 261 are the merges.", got=model.vocab)


@task(3)
@hint("newest: n e w est -> n e west (the merge number 4), then ne west: ids 261 and 260.")
def test_ids_by_hand(submission):
    """The ids of a text with a special token, and the text again."""
    ids, text, _ = submission.run(bpe_round_trip, "newest<|end|>low é")
    want = [261, 260, 262, 259, 32, 195, 169]
    check(ids == want, "The ids of newest<|end|>low é", got=ids, want=want)
    check(text == "newest<|end|>low é", "The decoded text", got=text)


@task(4)
@hint("(u, ##n) occurs 4 times, u 4 times and ##n 6 times: 4 / 24.")
def test_one_score(submission):
    """The score of a pair by hand, and the first merge that it leads to."""
    check(submission.pair_score(4, 4, 6) == Fraction(1, 6), "pair_score(4, 4, 6) is 1/6.")
    # ##x ##y: 1 / (1 · 1) beats all others, although the pair occurs once.
    got = list(submission.train_wordpiece({"un": 4, "on": 2, "oxy": 1}, 7).vocab)
    want = ["[UNK]", "##n", "##x", "##y", "o", "u", "##xy"]
    check(got == want, "The vocabulary", got=got, want=want)
    model = submission.WordPieceModel({"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3})
    check(list(model.encode_word("unaffable")) == ["un", "##aff", "##able"], "unaffable")
    check(list(model.encode_word("unaffably")) == ["[UNK]"], "unaffably has a part without a piece.")


@task(5)
@hint("a b c: 0.012, ab c: 0.04, a bc: 0.03.")
def test_best_segmentation(submission):
    """The best segmentation of abc under five pieces is ab, c, with probability 0.04."""
    pieces, score = submission.viterbi("abc", PIECES, 2)
    check(list(pieces) == ["ab", "c"], "The pieces of abc", got=pieces)
    same(score, math.log(0.04), atol=1e-12, rtol=0.0, what="its log-probability")
    pieces, _ = submission.viterbi("abc", PIECES, 2, skip="ab")
    check(list(pieces) == ["a", "bc"], "The pieces of abc without ab", got=pieces)


@task(6)
@hint("Z = 0.012 + 0.04 + 0.03 = 0.082; c is used in the first two segmentations: 0.052 / 0.082.")
def test_expected_counts_by_hand(submission):
    """Likelihood and expected counts of abc under five pieces, by hand."""
    log_z, expected = submission.forward_backward("abc", PIECES, 2)
    same(log_z, math.log(0.082), atol=1e-12, rtol=0.0, what="log Z")
    want = {"a": 0.042 / 0.082, "b": 0.012 / 0.082, "c": 0.052 / 0.082, "ab": 0.04 / 0.082, "bc": 0.03 / 0.082}
    same(expected, want, atol=1e-12, rtol=0.0, what="expected counts")
    likelihood, new = submission.em_step({"abc": 2}, PIECES, 2)
    same(likelihood, 2 * math.log(0.082), atol=1e-12, rtol=0.0, what="log-likelihood of two abc")
    same(sum(map(math.exp, new.values())), 1.0, atol=1e-12, rtol=0.0, what="the sum of the new probabilities")


@task(7)
@hint("ab is used twice and costs 2 (log 0.2 - log 0.06); bc is not used and costs nothing.")
def test_prune_by_hand(submission):
    """Of the two longer pieces the one that the best segmentations use stays; the characters stay anyway."""
    got = submission.prune({"abc": 2}, PIECES, 4, 2)
    check(got == {p: x for p, x in PIECES.items() if p != "bc"}, "What stays of five pieces", got=got)
    model = submission.train_unigram({"abc": 20, "abd": 10, "cab": 7}, 5, max_piece=3)
    check({"a", "b", "c", "d"} <= set(model.logp) and len(model.logp) <= 5, "The model of three words", got=model.logp)


@task(8)
@needs("test_first_merges")
@hint("The number that this prints is the cost of one merge, in steps a symbol: under 8 earns the points.")
def test_marginal_cost(submission, budget):
    """A further merge costs at most 8 interpreter steps for each symbol of the table."""
    counts = {bytes([97 + i % 7, 97 + j % 5, 97 + k, 97 + (i + j) % 9, 97 + i]): 1 + (7 * i + j) % 13
              for i in range(8) for j in range(5) for k in range(4)}  # fmt: skip
    few, many = (budget.steps(lambda s, size=size: s.train_bpe(counts, size)) for size in (266, 286))
    cost = (many - few) / 20 / sum(map(len, counts))
    budget.require("steps of a merge, a symbol", cost, at_most=8, reference=4.5, unit="steps", trust="self-reported")


@task(9)
@hint("A special token may be cut by a chunk: hold back what could be its beginning.")
def test_chunks(submission):
    """Chunks of three characters give the ids of the whole text."""
    ids, _, streamed = submission.run(bpe_round_trip, "newest<|end|>low, we'll see  <|en")
    check(streamed == ids, "The ids of the chunks", got=streamed, want=ids)


@task(10)
@hint("The docstring shows the model part of each file; tokenizer_json puts it in its frame.")
def test_hugging_face_loads_it(submission):
    """The exported file loads in tokenizers and transformers, gives the ids by hand, and feeds a tiny GPT-2."""
    from tokenizers import Tokenizer

    content, text = submission.run(file_of), "newest<|end|>low é"
    want = [261, 260, 262, 259, 32, 195, 169]
    check(Tokenizer.from_str(content).encode(text).ids == want, "The ids that the file gives", want=want)
    ids, shape = submission.run(in_transformers, content, text)
    check(ids == want, "The ids in transformers", got=ids, want=want)
    check(shape == [1, 7, 263], "The logits of a tiny GPT-2", got=shape)


@task(10)
@needs("test_hugging_face_loads_it")
@hint("main is given; it calls your functions on a file, line by line.")
def test_command_line(submission):
    """The command line trains each of the three on 200 kB, and BPE with Hugging Face's trainer too."""
    from tokenizers import Tokenizer

    runs = [["--algo", kind, "--vocab-size", "300"] for kind in ("bpe", "wordpiece", "unigram")]
    runs.append([*runs[0], "--trainer", "hf"])
    for options, text in zip(runs, submission.run(command_line, runs), strict=True):
        kind = {"bpe": "BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}[options[1]]
        check(json.loads(text)["model"]["type"] == kind, f"The kind of model in the file of {options}")
        tokens = Tokenizer.from_str(text).encode("lowest newest").tokens
        spelt = "".join(tokens).replace("##", "").replace("Ġ", "")
        check(spelt == "lowestnewest", f"The tokens that the file of {options} gives", got=tokens)
