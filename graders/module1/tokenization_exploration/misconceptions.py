"""Wrong readings of tokenization, each as the code it leads to; they run in the namespace of the model answer."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer)

import itertools

from llmkata.checks import misconception


@misconception(
    "substring_merge",
    replaces="merge_pair",
    caught_by="test_merge_pair",
    feedback="Your merge matches inside longer symbols: with the pair (a, b), `xa b` became `xab`. Compare whole symbols.",
)
def merge_pair(symbols, pair):
    return " ".join(symbols).replace(" ".join(pair), "".join(pair)).split()


@misconception(
    "merges_in_list_order_by_replace",
    replaces="bpe_encode",
    caught_by="test_bpe_rank_not_position",
    feedback="You went through the list of merges once. Encoding must take the lowest-ranked adjacent pair at each "
    "moment: a merge can make a pair that was learnt earlier in the list.",
)
def bpe_encode(symbols, rank):
    symbols, last = list(symbols), -1
    while True:
        ranked = [(r, p) for p in itertools.pairwise(symbols) if (r := rank(*p)) is not None and r > last]
        if not ranked:
            return symbols
        last, pair = min(ranked)
        symbols = merge_pair(symbols, pair)


@misconception(
    "greedy_longest_match",
    replaces="BPETokenizer.encode_word",
    caught_by="test_bpe_encode_matches_hf",
    feedback="You took the longest piece of the vocabulary first. That is WordPiece's rule; BPE replays merges.",
)
def encode_word(self, word):
    if not word:
        raise ValueError("empty word")
    vocabulary = {a + b for a, b in self.ranks}
    symbols, pieces = [*word[:-1], word[-1] + self.end_of_word], []
    while symbols:
        n = next((n for n in range(len(symbols), 1, -1) if "".join(symbols[:n]) in vocabulary), 1)
        pieces.append("".join(symbols[:n]))
        symbols = symbols[n:]
    return pieces


def learner(weight, best_of, glue=True):
    """learn_bpe with a weight of a word's pairs, a choice of the best pair, and the marker glued or not."""

    def learn(word_counts, num_merges, *, end_of_word="</w>", min_count=2):
        if "" in word_counts:
            raise ValueError("empty word")
        words = [([*w[:-1], w[-1] + end_of_word], n) for w, n in word_counts.items()]
        merges = []
        for _ in range(num_merges):
            counts = {}
            for symbols, n in words:
                for pair in itertools.pairwise(symbols):
                    counts[pair] = counts.get(pair, 0) + weight(n)
            best = best_of(counts) if counts else None
            if best is None or counts[best] < min_count:
                break
            merges.append(best)
            words = [(merge_pair(symbols, best), n) for symbols, n in words]
        return merges

    return learn


@misconception(
    "unweighted_pairs",
    replaces="learn_bpe",
    caught_by="test_learn_bpe",
    feedback="You counted each word once. Pair counts are weighted by the frequency of the word.",
)
def learn_bpe(word_counts, num_merges, **options):
    return learner(lambda n: 1, lambda c: max(c, key=lambda p: (c[p], p)))(word_counts, num_merges, **options)


@misconception(
    "ties_first_seen",
    replaces="learn_bpe",
    caught_by="test_learn_bpe",
    feedback="Of pairs with equal counts you took the first seen. Ties must be broken by the pair itself (the greatest), "
    "or the merges depend on the order of a dictionary.",
)
def learn_bpe(word_counts, num_merges, **options):
    return learner(lambda n: n, lambda c: max(c, key=c.get))(word_counts, num_merges, **options)


@misconception(
    "no_end_of_word",
    replaces="BPETokenizer.encode_word",
    caught_by="test_decode_inverts_encode",
    feedback="Your words carry no end-of-word marker. Without it `est` inside and at the end of a word become one token, "
    "and decoding loses the spaces.",
)
def encode_word(self, word):
    if not word:
        raise ValueError("empty word")
    return bpe_encode(list(word), lambda a, b: self.ranks.get((a, b)))


@misconception(
    "overlap_double_merge",
    replaces="merge_pair",
    caught_by="test_merge_pair",
    feedback="You used one symbol in two merges: `a a a` became `aa aa`. An occurrence may be used once.",
)
def merge_pair(symbols, pair):
    merged, inside = [], False
    for i, symbol in enumerate(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            inside = True
        else:
            if not inside:
                merged.append(symbol)
            inside = False
    return merged


@misconception(
    "align_find_from_zero",
    replaces="align",
    caught_by="test_align_roundtrip",
    feedback="A repeated word got the offsets of its first occurrence. Search on from the end of the last piece.",
)
def align(text, pieces):
    right, tokens = original(text, pieces), []
    for token in right:
        at = text.find(token.text)
        tokens.append(Token(token.text, at, at + len(token.text)))
    return tokens


def rewritten(result, train, test, tokenizers, change):
    """The comparison with fields of each row changed."""
    import dataclasses

    rows = {
        name: dataclasses.replace(row, **change(row, {t.text for x in train for t in tokenizers[name](x)},
                                                [t.text for x in test for t in tokenizers[name](x)]))
        for name, row in result.rows.items()
    }  # fmt: skip
    return Comparison(rows, result.boundary_f1)


@misconception(
    "oov_by_type",
    replaces="compare",
    caught_by="test_compare",
    feedback="Your out-of-vocabulary rate is a share of types. It is over running tokens: a frequent unseen word counts "
    "each time it occurs.",
)
def compare(train, test, tokenizers):
    def change(row, known, found):
        types = set(found)
        return {"oov_rate": len(types - known) / len(types) if types else 0.0}

    return rewritten(original(train, test, tokenizers), train, test, tokenizers, change)


@misconception(
    "fertility_inverted",
    replaces="compare",
    caught_by="test_compare",
    feedback="Your fertility is words per token. Fertility is tokens per word.",
)
def compare(train, test, tokenizers):
    def change(row, known, found):
        return {"fertility": 1 / row.fertility if row.fertility else 0.0}

    return rewritten(original(train, test, tokenizers), train, test, tokenizers, change)


@misconception(
    "asks_for_all_pairs",
    replaces="bpe_encode",
    caught_by="test_rank_lookups",
    matches="calls",
    feedback="Right, but after each merge you ask for the ranks of all pairs again. A merge changes two pairs only: the one "
    "on its left and the one on its right.",
)
def bpe_encode(symbols, rank):
    parts = list(symbols)
    while True:
        ranks = [(r, i) for i in range(len(parts) - 1) if (r := rank(parts[i], parts[i + 1])) is not None]
        if not ranks:
            return parts
        i = min(ranks)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@misconception(
    "scans_for_the_best",
    replaces="bpe_encode",
    caught_by="test_encode_steps",
    matches="steps",
    equivalent_to="asks_for_all_pairs",  # which takes as many steps, and is told from it by its look-ups
    feedback="Right, and you ask for few ranks, but you look through all of them for each merge: n steps for each of n merges. "
    "A heap finds the best pair in log n.",
)
def bpe_encode(symbols, rank):
    parts = list(symbols)
    ranks = [rank(a, b) for a, b in itertools.pairwise(parts)]
    while True:
        best = None
        for i, r in enumerate(ranks):
            if r is not None and (best is None or r < ranks[best]):
                best = i
        if best is None:
            return parts
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        del ranks[best]
        if best > 0:
            ranks[best - 1] = rank(parts[best - 1], parts[best])
        if best < len(ranks):
            ranks[best] = rank(parts[best], parts[best + 1])


@misconception(
    "tokenizes_for_each_figure",
    replaces="compare",
    caught_by="test_tokenizer_calls",
    matches="calls",
    feedback="Right, but you tokenize the test texts again for another figure. Tokenize each text once, and keep the tokens.",
)
def compare(train, test, tokenizers):
    result = original(train, test, tokenizers)
    for tokenize in tokenizers.values():
        for text in test:
            tokenize(text)
    return result
