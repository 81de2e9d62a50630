"""Wrong readings of the three trainings, as the code they lead to; they run in the namespace of the model answer."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import itertools
import math
from collections import Counter

from llmkata.checks import misconception


def finish(merges, special_tokens):
    """The model of a list of merges."""
    pieces = [*(bytes([b]) for b in range(256)), *(a + b for a, b in merges), *(s.encode() for s in special_tokens)]
    return BPEModel(dict(enumerate(pieces)), merges, tuple(special_tokens))


def recounting(counts, vocab_size, special_tokens, choose):
    """Training by a full recount; choose(pair counts) picks the pair."""
    if vocab_size < 256 + len(special_tokens):
        raise ValueError("vocab_size is too small")
    words = [([bytes([b]) for b in word], n) for word, n in counts.items()]
    merges = []
    while len(merges) < vocab_size - 256 - len(special_tokens):
        pairs = Counter()
        for symbols, n in words:
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        best = choose(pairs)
        merges.append(best)
        words = [
            (merge(symbols, best, best[0] + best[1]) if best[0] in symbols else symbols, n) for symbols, n in words
        ]
    return finish(merges, special_tokens)


@misconception(
    "ties_smallest_pair",
    replaces="train_bpe",
    caught_by="test_train_bpe_exact",
    feedback="Of pairs with equal counts you took the smallest. Ties go to the greatest pair.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return recounting(counts, vocab_size, special_tokens, lambda pairs: min(pairs, key=lambda p: (-pairs[p], p)))


def indexed(counts, vocab_size, special_tokens, neighbours, doubled):
    """Training with pair counts that are adjusted around each merge: with or without the neighbours of the merge, and
    with overlapping occurrences (aaa) taken off once for each merge or once for each position."""
    if vocab_size < 256 + len(special_tokens):
        raise ValueError("vocab_size is too small")
    words = [[[bytes([b]) for b in word], n] for word, n in counts.items()]
    pairs = Counter()
    for symbols, n in words:
        for pair in itertools.pairwise(symbols):
            pairs[pair] += n
    merges = []
    while len(merges) < vocab_size - 256 - len(special_tokens):
        pairs = +pairs
        if not pairs:
            break
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        del pairs[best]
        for word in words:
            symbols, n = word
            new = merge(symbols, best, best[0] + best[1])
            if len(new) == len(symbols):
                continue
            old = Counter(p for p in itertools.pairwise(symbols) if p != best)
            if not neighbours:
                old = Counter()
            if doubled:
                # Each position of the pair takes its neighbours off, also those that no merge used.
                for i, pair in enumerate(itertools.pairwise(symbols)):
                    if pair == best and i + 2 < len(symbols) and (symbols[i + 1], symbols[i + 2]) == best:
                        old[best[0] + best[1], symbols[i + 2]] += 1
            for pair, k in old.items():
                pairs[pair] -= k * n
            for pair in itertools.pairwise(new):
                if neighbours or best[0] + best[1] in pair:
                    pairs[pair] += n
            word[0] = new
    return finish(merges, special_tokens)


@misconception(
    "stale_counts",
    replaces="train_bpe",
    caught_by="test_train_bpe_exact",
    feedback="After a merge you kept the counts of the pairs to its left and right. They changed too: what was (x,"
    " a) is now (x, ab).",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return indexed(counts, vocab_size, special_tokens, neighbours=False, doubled=False)


@misconception(
    "overlap_counted_twice",
    replaces="train_bpe",
    caught_by="test_train_bpe_exact",
    feedback="In `aaa` you changed the counts for two merges of (a, a). Only one is merged: an occurrence is used "
    "once, and the a that is left over forms a pair with aa.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return indexed(counts, vocab_size, special_tokens, neighbours=True, doubled=True)


@misconception(
    "merges_across_pretokens",
    replaces="train_bpe",
    caught_by="test_train_bpe_exact",
    feedback="You counted a pair of the last byte of one pre-token and the first of the next. BPE never merges "
    "across the boundary of a pre-token.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    if vocab_size < 256 + len(special_tokens):
        raise ValueError("vocab_size is too small")
    row = [bytes([b]) for word, n in counts.items() for _ in range(n) for b in word]
    merges = []
    while len(merges) < vocab_size - 256 - len(special_tokens) and len(row) > 1:
        pairs = Counter(itertools.pairwise(row))
        best = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(best)
        row = merge(row, best, best[0] + best[1])
    return finish(merges, special_tokens)


@misconception(
    "unweighted_pairs",
    replaces="train_bpe",
    caught_by="test_train_bpe_exact",
    feedback="You counted each pre-token once. Pairs are weighted by how often the pre-token occurs.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return original(dict.fromkeys(counts, 1), vocab_size, special_tokens)


@misconception(
    "specials_not_longest_first",
    replaces="BPEModel.encode",
    caught_by="test_bpe_encode",
    feedback="Where two special tokens begin at one place you took the one that comes first in the list. The "
    "longer special token must win.",
)
def encode(self, text):
    if not self.special_tokens:
        return original(self, text)
    ids = []
    for i, part in enumerate(regex.split("(" + "|".join(map(regex.escape, self.special_tokens)) + ")", text)):
        if i % 2:
            ids.append(self.ids[part])
        else:
            for match in PRETOKEN.finditer(part):
                ids += self.encode_pretoken(match[0])
    return ids


@misconception(
    "specials_ignored",
    replaces="BPEModel.encode",
    caught_by="test_bpe_encode",
    feedback="You cut special tokens into pieces like any text. They are found first, and each is one id.",
)
def encode(self, text):
    return [i for match in PRETOKEN.finditer(text) for i in self.encode_pretoken(match[0])]


@misconception(
    "greedy_longest_match",
    replaces="BPEModel.encode_pretoken",
    caught_by="test_bpe_encode",
    feedback="You took the longest piece of the vocabulary first. That is WordPiece's rule; BPE replays its merges"
    " in the order learnt.",
)
def encode_pretoken(self, pretoken):
    ids, rest = [], pretoken.encode("utf-8")
    pieces = {piece: i for i, piece in self.vocab.items() if i < 256 + len(self.merges)}
    while rest:
        n = next(n for n in range(len(rest), 0, -1) if rest[:n] in pieces)
        ids.append(pieces[rest[:n]])
        rest = rest[n:]
    return ids


@misconception(
    "decode_each_id",
    replaces="BPEModel.decode",
    caught_by="test_bpe_decode",
    feedback="You decoded the bytes of each id alone. A character may be spread over several ids: join the bytes "
    "first.",
)
def decode(self, ids):
    return "".join(self.vocab[i].decode("utf-8", errors="replace") for i in ids)


@misconception(
    "one_pretoken_back",
    replaces="BPEModel.encode_iterable",
    caught_by="test_encode_iterable",
    feedback="You held back the last pre-token only. `'l` is two pre-tokens until the next l makes it `'ll`, so "
    "the last two can still change.",
)
def encode_iterable(self, chunks):
    specials = self.special_tokens
    found = regex.compile("|".join(map(regex.escape, specials)) if specials else r"(?!)")

    def pending(buffer, done):
        for i in range(done, len(buffer)):
            if any(len(s) > len(buffer) - i and s.startswith(buffer[i:]) for s in specials):
                return i
        return len(buffer)

    buffer = ""
    for chunk in chunks:
        buffer, done = buffer + chunk, 0
        while (match := found.search(buffer, done)) and match.start() < pending(buffer, done):
            yield from self.encode(buffer[done : match.end()])
            done = match.end()
        pretokens = list(PRETOKEN.finditer(buffer[done : pending(buffer, done)]))
        for match in pretokens[:-1]:
            yield from self.encode_pretoken(match[0])
        buffer = buffer[done + (pretokens[-1].start() if pretokens else 0) :]
    yield from self.encode(buffer)


@misconception(
    "chunks_alone",
    replaces="BPEModel.encode_iterable",
    caught_by="test_encode_iterable",
    feedback="You encoded each chunk by itself. A pre-token or a special token may go on in the next chunk.",
)
def encode_iterable(self, chunks):
    for chunk in chunks:
        yield from self.encode(chunk)


@misconception(
    "joined_first",
    replaces="BPEModel.encode_iterable",
    caught_by="test_encode_iterable",
    feedback="You read all chunks before the first id. Yield what no further text can change.",
)
def encode_iterable(self, chunks):
    yield from self.encode("".join(chunks))


def wordpiece_by(counts, vocab_size, unk, score):
    """WordPiece training with another criterion: score(n_ab, n_a, n_b)."""
    words = [([word[0], *("##" + c for c in word[1:])], n) for word, n in counts.items()]
    vocab = [unk, *sorted({symbol for symbols, _ in words for symbol in symbols})]
    while len(vocab) < vocab_size:
        single, pairs = Counter(), Counter()
        for symbols, n in words:
            for symbol in symbols:
                single[symbol] += n
            for pair in itertools.pairwise(symbols):
                pairs[pair] += n
        if not pairs:
            break
        a, b = min(pairs, key=lambda p: (-score(pairs[p], single[p[0]], single[p[1]]), -pairs[p], p))
        vocab.append(a + b[2:])
        words = [(merge(symbols, (a, b), a + b[2:]), n) for symbols, n in words]
    return WordPieceModel({piece: i for i, piece in enumerate(vocab)}, unk)


@misconception(
    "wordpiece_by_frequency",
    replaces="train_wordpiece",
    caught_by="test_wordpiece_training",
    feedback="You merged the most frequent pair. That is BPE's criterion: WordPiece divides by the counts of the "
    "parts.",
)
def train_wordpiece(counts, vocab_size, *, unk="[UNK]"):
    return wordpiece_by(counts, vocab_size, unk, lambda n_ab, n_a, n_b: n_ab)


@misconception(
    "wordpiece_counts_types",
    replaces="train_wordpiece",
    caught_by="test_wordpiece_training",
    feedback="You counted symbols and pairs once for each word of the table. They are weighted by the word's count.",
)
def train_wordpiece(counts, vocab_size, *, unk="[UNK]"):
    return original(dict.fromkeys(counts, 1), vocab_size, unk=unk)


@misconception(
    "wordpiece_partial_unk",
    replaces="WordPieceModel.encode_word",
    caught_by="test_wordpiece_encoding",
    feedback="You wrote [UNK] for the part that has no piece. One unknown part makes the whole word [UNK].",
)
def encode_word(self, word, *, max_chars=100):
    if len(word) > max_chars:
        return [self.unk]
    pieces, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self.vocab), None)
        pieces.append(self.unk if end is None else prefix + word[start:end])
        start = end or start + 1
    return pieces


@misconception(
    "viterbi_greedy",
    replaces="viterbi",
    caught_by="test_viterbi",
    feedback="You took the longest piece at each place. The best segmentation is that of the largest sum, and "
    "needs the best score of every prefix.",
)
def viterbi(word, logp, max_piece, *, skip=None):
    pieces, score, start = [], 0.0, 0
    while start < len(word):
        ends = range(min(len(word), start + max_piece), start, -1)
        end = next((e for e in ends if word[start:e] in logp and word[start:e] != skip), None)
        if end is None:
            return original(word, logp, max_piece, skip=skip)
        pieces.append(word[start:end])
        score += logp[word[start:end]]
        start = end
    return pieces, score


@misconception(
    "viterbi_ties_later_start",
    replaces="viterbi",
    caught_by="test_viterbi",
    feedback="Of two equal scores you kept the later start. Ties keep the earlier start, the longer last piece.",
)
def viterbi(word, logp, max_piece, *, skip=None):
    best, origin = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - max_piece), end):
            piece = word[start:end]
            if piece in logp and piece != skip and best[start] > -math.inf and best[start] + logp[piece] >= best[end]:
                best[end], origin[end] = best[start] + logp[piece], start
    if best[-1] == -math.inf:
        return None, -math.inf
    pieces, end = [], len(word)
    while end:
        pieces.append(word[origin[end] : end])
        end = origin[end]
    return pieces[::-1], best[-1]


@misconception(
    "viterbi_all_substrings",
    replaces="viterbi",
    caught_by="test_viterbi_linear",
    matches="steps",
    feedback="You try every start for every end, n²/2 substrings. No piece is longer than max_piece: look no "
    "further back.",
)
def viterbi(word, logp, max_piece, *, skip=None):
    best, origin = [0.0] + [-math.inf] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(end):
            piece = word[start:end]
            if len(piece) <= max_piece and piece in logp and piece != skip:
                score = best[start] + logp[piece]
                if score > best[end]:
                    best[end], origin[end] = score, start
    if best[-1] == -math.inf:
        return None, -math.inf
    pieces, end = [], len(word)
    while end:
        pieces.append(word[origin[end] : end])
        end = origin[end]
    return pieces[::-1], best[-1]


@misconception(
    "hard_em",
    replaces="forward_backward",
    caught_by="test_forward_backward",
    feedback="You counted the pieces of the best segmentation. Expected counts weigh all segmentations by their "
    "probability.",
)
def forward_backward(word, logp, max_piece):
    log_z, expected = original(word, logp, max_piece)
    return log_z, {p: float(n) for p, n in Counter(viterbi(word, logp, max_piece)[0]).items()} if expected else {}


@misconception(
    "linear_domain",
    replaces="forward_backward",
    caught_by="test_forward_backward",
    feedback="You multiplied probabilities. Their products underflow to 0 (e^-700 twice is too much): work in logs.",
)
def forward_backward(word, logp, max_piece):
    n = len(word)
    spans = [(s, e) for e in range(1, n + 1) for s in range(max(0, e - max_piece), e) if word[s:e] in logp]
    alpha, beta = [1.0] + [0.0] * n, [0.0] * n + [1.0]
    for s, e in spans:
        alpha[e] += alpha[s] * math.exp(logp[word[s:e]])
    for s, e in sorted(spans, reverse=True):
        beta[s] += beta[e] * math.exp(logp[word[s:e]])
    if alpha[n] == 0.0:
        return -math.inf, {}
    expected = Counter()
    for s, e in spans:
        expected[word[s:e]] += alpha[s] * math.exp(logp[word[s:e]]) * beta[e] / alpha[n]
    return math.log(alpha[n]), dict(expected)


@misconception(
    "forward_backward_all_substrings",
    replaces="forward_backward",
    caught_by="test_forward_backward_linear",
    matches="steps",
    feedback="You look at all n²/2 substrings of the word. No piece is longer than max_piece: the work is n · "
    "max_piece.",
)
def forward_backward(word, logp, max_piece):
    for start in range(len(word)):
        for end in range(start + 1, len(word) + 1):
            if end - start > max_piece:
                continue
    return original(word, logp, max_piece)


@misconception(
    "likelihood_of_new",
    replaces="em_step",
    caught_by="test_em_step",
    feedback="You returned the log-likelihood under the new probabilities. It belongs to those that came in.",
)
def em_step(counts, logp, max_piece):
    _, new = original(counts, logp, max_piece)
    return original(counts, new, max_piece)[0], new


@misconception(
    "em_unweighted",
    replaces="em_step",
    caught_by="test_em_step",
    feedback="You counted each word once. Expected counts are weighted by the word's count.",
)
def em_step(counts, logp, max_piece):
    return original(counts, logp, max_piece)[0], original(dict.fromkeys(counts, 1), logp, max_piece)[1]


@misconception(
    "prune_by_probability",
    replaces="prune",
    caught_by="test_prune",
    feedback="You dropped the least probable pieces. A frequent piece may be free to remove if its parts are good:"
    " what counts is the loss.",
)
def prune(counts, logp, keep, max_piece):
    characters = [p for p in logp if len(p) == 1]
    ranked = sorted((-x, p) for p, x in logp.items() if len(p) > 1)
    kept = {*characters, *(p for _, p in ranked[: max(0, keep - len(characters))])}
    return {p: x for p, x in logp.items() if p in kept}


@misconception(
    "characters_pruned",
    replaces="prune",
    caught_by="test_prune",
    feedback="You dropped single characters. Without one, some words have no segmentation: characters always stay.",
)
def prune(counts, logp, keep, max_piece):
    used = Counter()
    for word, n in counts.items():
        for piece in viterbi(word, logp, max_piece)[0]:
            used[piece] += n

    def loss(piece):
        without = viterbi(piece, logp, max_piece, skip=piece)[1]
        # What cannot be spelt otherwise is judged by its probability.
        return used[piece] * (logp[piece] - without) if without > -math.inf and used[piece] else -1.0 / logp[piece]

    kept = set(sorted(logp, key=lambda p: (-loss(p), p))[:keep])
    return {p: x for p, x in logp.items() if p in kept}


@misconception(
    "prune_renormalises",
    replaces="prune",
    caught_by="test_prune",
    feedback="You divided what is left by its sum. prune only drops pieces; the next EM step normalises.",
)
def prune(counts, logp, keep, max_piece):
    kept = original(counts, logp, keep, max_piece)
    log_total = math.log(math.fsum(math.exp(x) for x in kept.values()))
    return {p: x - log_total for p, x in kept.items()}


@misconception(
    "seeds_by_frequency",
    replaces="train_unigram",
    caught_by="test_train_unigram",
    feedback="You chose the most frequent substrings as seeds. Long ones save more: rank by frequency · length.",
)
def train_unigram(counts, vocab_size, *, seed_size=1200, max_piece=6, shrink=0.75, em_iters=2):
    frequency = Counter()
    for word, n in counts.items():
        for s, e in itertools.combinations(range(len(word) + 1), 2):
            if e - s <= max_piece:
                frequency[word[s:e]] += n
    characters = sorted(p for p in frequency if len(p) == 1)
    if vocab_size < len(characters):
        raise ValueError("vocab_size is less than the number of characters")
    longer = sorted((-f, p) for p, f in frequency.items() if len(p) > 1 and f >= 2)
    seeds = characters + [p for _, p in longer[: max(0, seed_size - len(characters))]]
    total = sum(frequency[p] for p in seeds)
    logp, history = {p: math.log(frequency[p] / total) for p in seeds}, []
    while len(logp) > vocab_size:
        for _ in range(em_iters):
            size = len(logp)
            likelihood, logp = em_step(counts, logp, max_piece)
            history.append((size, likelihood))
        logp = prune(counts, logp, max(vocab_size, int(len(logp) * shrink)), max_piece)
    return UnigramModel(logp, max_piece, history)


@misconception(
    "specials_counted",
    replaces="count_pretokens",
    caught_by="test_count_pretokens",
    feedback="You counted pieces of the special tokens. Split each text on them first, and drop them.",
)
def count_pretokens(texts, special_tokens=()):
    return original(texts, ())


@misconception(
    "text_kept",
    replaces="count_pretokens",
    caught_by="test_count_streaming_peak",
    matches="peak_bytes",
    feedback="You collected all pre-tokens, or the whole text, before counting. Hold one text at a time, and the "
    "counts.",
)
def count_pretokens(texts, special_tokens=()):
    parts = [part for text in texts for special, part in split_specials(text, special_tokens) if not special]
    return dict(Counter([match[0].encode("utf-8") for part in parts for match in PRETOKEN.finditer(part)]))


@misconception(
    "all_pairs_recounted",
    replaces="train_bpe",
    # test_marginal_cpu_ratio rejects it too (2.3 times instead of 3.5), but no clock tells a mistake to 5 %.
    caught_by="test_marginal_merge_cost",
    matches="steps",
    feedback="You count all pairs again after each merge. Only the words that hold the pair change: keep an index "
    "of them.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return recounting(counts, vocab_size, special_tokens, lambda pairs: max(zip(pairs.values(), pairs))[1])


@misconception(
    "index_without_use",
    replaces="train_bpe",
    caught_by="test_marginal_merge_cost",
    matches="steps",
    feedback="Each merge still goes through all words. Ask an index for the words that hold the pair, and leave "
    "the others.",
)
def train_bpe(counts, vocab_size, special_tokens=()):
    return recounting(counts, vocab_size, special_tokens, lambda pairs: max(pairs, key=lambda p: (pairs[p], p)))


@misconception(
    "specials_in_the_vocabulary",
    replaces="export_tokenizer_json",
    caught_by="test_export_loads",
    feedback="Your exported file does not know the special tokens: they belong into `added` with their ids.",
)
def export_tokenizer_json(model, path):
    import json

    original(model, path)
    content = json.loads(path.read_text("utf-8"))
    content["added_tokens"] = []
    path.write_text(json.dumps(content), "utf-8")


@misconception(
    "bytes_as_latin1",
    replaces="bytes_to_unicode",
    caught_by="test_export_loads",
    feedback="Your file spells the bytes as Latin-1 characters. Byte-level files write them with "
    "bytes_to_unicode(): a space is Ġ.",
)
def bytes_to_unicode():
    return {b: chr(b) for b in range(256)}
