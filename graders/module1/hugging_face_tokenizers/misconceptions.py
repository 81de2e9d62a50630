"""Wrong preparations, each as the code it leads to; they run in the namespace of the model answer."""

# ruff: noqa: F811, F821 (functions of one name, names of the model answer, `original`)

import dataclasses

from llmkata.checks import misconception


class Changed:
    """A tokenizer whose call goes through a function (inner, *args, **options)."""

    def __init__(self, tok, call):
        self._tok, self._call = tok, call

    def __getattr__(self, name):
        return getattr(self._tok, name)

    def __call__(self, *args, **options):
        return self._call(self._tok, *args, **options)


# --- tokenizers from files --------------------------------------------------------------------------------------------


class Lines:
    """A path whose text comes with other newlines."""

    def __init__(self, path, change):
        self._path, self._change = path, change

    def read_bytes(self):
        return self._change(self._path.read_bytes().decode()).encode()


@misconception(
    "vocabulary_by_splitlines",
    replaces="build_bert_tokenizer",
    caught_by="test_bert_pipeline",
    feedback="str.splitlines cuts at more than newlines (U+2028, U+0085 and others), so that ids after such a "
    "token are shifted. Split at newlines alone.",
)
def build_bert_tokenizer(vocab_txt, *, lowercase=True):
    return original(Lines(vocab_txt, lambda text: "\n".join(text.splitlines())), lowercase=lowercase)


@misconception(
    "type_ids_all_zero",
    replaces="build_bert_tokenizer",
    caught_by="test_bert_pipeline",
    feedback="The second sequence of a pair and its [SEP] have type id 0. BERT tells the two apart by type id 1.",
)
def build_bert_tokenizer(vocab_txt, *, lowercase=True):
    from tokenizers import processors

    tok = original(vocab_txt, lowercase=lowercase)
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(t, tok.convert_tokens_to_ids(t)) for t in ("[CLS]", "[SEP]")],
    )
    return tok


@misconception(
    "merges_with_hash_skipped",
    replaces="build_chat_tokenizer",
    caught_by="test_chat_files",
    feedback="You skip every line of merges.txt that begins with #. Only the first line is a comment: `# #` is a "
    "merge.",
)
def build_chat_tokenizer(vocab_json, merges_txt):
    def uncommented(text):
        return "\n".join(["#version", *(line for line in text.split("\n") if not line.startswith("#"))])

    return original(vocab_json, Lines(merges_txt, uncommented))


# --- collate ----------------------------------------------------------------------------------------------------------


@misconception(
    "mask_from_pad_id",
    replaces="collate",
    caught_by="test_collate",
    feedback="Your mask is ids != pad id. Where the pad token is also eos, a real eos is masked out. The mask "
    "comes from the lengths of the rows.",
)
def collate(tok, texts, **options):
    batch = original(tok, texts, **options)
    mask = (batch["input_ids"] != tok.pad_token_id).long()
    return batch | {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0) * mask}


@misconception(
    "positions_count_padding",
    replaces="collate",
    caught_by="test_collate",
    feedback="Your positions count padding on the left. Positions must start at 0 with the first real token.",
)
def collate(tok, texts, **options):
    batch = original(tok, texts, **options)
    mask = batch["attention_mask"]
    return batch | {"position_ids": torch.arange(mask.shape[1]).expand_as(mask) * mask}


@misconception(
    "truncate_after_specials",
    replaces="collate",
    caught_by="test_collate_truncation",
    feedback="You cut off the [SEP]. Truncate the text first, with room for the special tokens, then add them.",
)
def collate(tok, texts, *, max_length, **options):
    def cut(inner, batch, **kw):
        return {k: [row[:max_length] for row in rows] for k, rows in inner(batch, return_attention_mask=True).items()}

    return original(Changed(tok, cut), texts, max_length=max_length, **options)


@misconception(
    "collate_text_by_text",
    replaces="collate",
    caught_by="test_collate_calls",
    matches="calls",
    feedback="You call the tokenizer once per text. One call for the whole list does the same work in Rust, and in "
    "parallel.",
)
def collate(tok, texts, **options):
    def one_by_one(inner, batch, **kw):
        rows = [inner(text, **kw) for text in batch]
        return {key: [row[key] for row in rows] for key in rows[0]}

    return original(Changed(tok, one_by_one), texts, **options)


# --- words and chats --------------------------------------------------------------------------------------------------


@misconception(
    "label_every_subword_B",
    replaces="align_labels",
    caught_by="test_label_alignment",
    feedback="Each subword of an entity's first word carries B-: that reads as several entities. Continuations of "
    "B-X are I-X.",
)
def align_labels(tok, words, labels, label2id, **options):
    # Under names of their own no label begins with B-, so each subword repeats its word's label.
    try:
        return original(tok, words, ["=" + x for x in labels], {"=" + k: v for k, v in label2id.items()}, **options)
    except KeyError as error:
        raise KeyError(error.args[0].removeprefix("=")) from None


@misconception(
    "every_subword_labelled",
    replaces="align_labels",
    caught_by="test_label_alignment",
    feedback="You label every subword although label_all is False. Then the first subword alone carries the word's "
    "label; the others are ignored.",
)
def align_labels(tok, words, labels, label2id, *, max_length, label_all=False):
    return original(tok, words, labels, label2id, max_length=max_length, label_all=True)


@misconception(
    "template_string_injection",
    replaces="chat_labels",
    caught_by="test_no_control_token_injection",
    feedback="You tokenize the rendered transcript, or texts in which control tokens still count. A user who types "
    "<|im_end|> has just ended their own turn. Encode each text with split_special_tokens=True, and add "
    "control ids yourself.",
)
def chat_labels(tok, messages, *, max_length=None):
    return original(Changed(tok, lambda inner, text, **kw: inner(text, add_special_tokens=False)), messages,
                    max_length=max_length)  # fmt: skip


@misconception(
    "loss_on_prompt",
    replaces="chat_labels",
    caught_by="test_chat_labels",
    feedback="Your labels are the ids of everything: you train the model to write the user's part. Only the "
    "assistant's content and its <|im_end|> have labels.",
)
def chat_labels(tok, messages, *, max_length=None):
    found = original(tok, messages, max_length=max_length)
    return found | {"labels": list(found["input_ids"])}


@misconception(
    "no_loss_on_end_of_turn",
    replaces="chat_labels",
    caught_by="test_chat_labels",
    feedback="The assistant's <|im_end|> has no label: the model would never learn to stop.",
)
def chat_labels(tok, messages, *, max_length=None):
    found = original(tok, messages, max_length=max_length)
    stop = tok.convert_tokens_to_ids("<|im_end|>")
    return found | {"labels": [IGNORE if i == stop else i for i in found["labels"]]}


@misconception(
    "system_message_dropped_first",
    replaces="chat_labels",
    caught_by="test_chat_truncation",
    feedback="You drop the oldest message whatever its role, so the system message goes first. It is the last to go.",
)
def chat_labels(tok, messages, *, max_length=None):
    found = original(tok, messages)
    while max_length is not None and len(found["input_ids"]) > max_length:
        messages = messages[1:]
        found = original(tok, messages)
    return found


# --- batches under a budget -------------------------------------------------------------------------------------------


@misconception(
    "seed_zero_is_no_seed",
    replaces="token_budget_batches",
    caught_by="test_batches_valid",
    feedback="`if seed:` takes the seed 0 for no seed. Ask for `seed is not None`.",
)
def token_budget_batches(lengths, max_tokens, *, seed=None):
    return original(lengths, max_tokens, seed=seed or None)


@misconception(
    "budget_of_real_tokens",
    replaces="token_budget_batches",
    caught_by="test_batches_valid",
    feedback="You add up the lengths. A padded batch holds len(batch) · max(lengths) tokens, and that is what must "
    "fit.",
)
def token_budget_batches(lengths, max_tokens, *, seed=None):
    original(lengths, max_tokens)
    batches, total = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        if not batches or total + lengths[index] > max_tokens:
            batches.append([])
            total = 0
        batches[-1].append(index)
        total += lengths[index]
    if seed is not None:
        random.Random(seed).shuffle(batches)
    return batches


@misconception(
    "batches_of_one",
    replaces="token_budget_batches",
    caught_by="test_padded_tokens",
    matches="batches",
    feedback="Each of your batches holds a text or two: that wastes no padding, and it wastes the machine. Fill each batch as "
    "far as max_tokens allows.",
)
def token_budget_batches(lengths, max_tokens, *, seed=None):
    original(lengths, max_tokens)
    batches = [[i] for i in range(len(lengths))]
    if seed is not None:
        random.Random(seed).shuffle(batches)
    return batches


@misconception(
    "batches_in_order",
    replaces="token_budget_batches",
    caught_by="test_padded_tokens",
    matches="tokens",
    feedback="You fill batches in the order given: one long text makes a whole batch wide. Sort by length first.",
)
def token_budget_batches(lengths, max_tokens, *, seed=None):
    original(lengths, max_tokens)
    batches, longest = [], 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if not batches or (len(batches[-1]) + 1) * longest > max_tokens:
            batches.append([])
            longest = length
        batches[-1].append(index)
    if seed is not None:
        random.Random(seed).shuffle(batches)
    return batches


# --- question answering -----------------------------------------------------------------------------------------------


@misconception(
    "stride_is_step",
    replaces="prepare_qa",
    caught_by="test_qa_windows",
    feedback="You moved each window by stride tokens. In Hugging Face's interface, stride is the overlap, not the "
    "step.",
)
def prepare_qa(tok, examples, *, max_length, stride):
    original(tok, examples, max_length=max_length, stride=stride)
    features = []
    for e in examples:
        room = max_length - 3 - len(tok(e.question, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        features += original(tok, [e], max_length=max_length, stride=room - max(1, stride))
    return features


def with_positions(features, examples, find):
    """Features whose positions are find(example, feature), where it is not None."""
    by_id = {e.id: e for e in examples}
    found = []
    for f in features:
        positions = find(by_id[f.example_id], f) or (f.start_position, f.end_position)
        found.append(dataclasses.replace(f, start_position=positions[0], end_position=positions[1]))
    return found


@misconception(
    "char_as_token_position",
    replaces="prepare_qa",
    caught_by="test_qa_windows",
    feedback="Your positions count characters of the context. Answer starts are characters; positions are token "
    "indices.",
)
def prepare_qa(tok, examples, **options):
    def find(e, f):
        return (e.answer_start, e.answer_start + len(e.answer_text) - 1) if f.start_position else None

    return with_positions(original(tok, examples, **options), examples, find)


@misconception(
    "partial_answer_kept",
    replaces="prepare_qa",
    caught_by="test_qa_window_edges",
    feedback="You keep the part of an answer that a window holds. A window with half the answer must point to [CLS].",
)
def prepare_qa(tok, examples, **options):
    def find(e, f):
        stop = e.answer_start + len(e.answer_text)
        shared = [k for k, s in enumerate(f.offsets) if e.answer_text and s and s[0] < stop and e.answer_start < s[1]]
        return (shared[0], shared[-1]) if shared else None

    return with_positions(original(tok, examples, **options), examples, find)


@misconception(
    "question_offsets_leak",
    replaces="prepare_qa",
    caught_by="test_qa_windows",
    feedback="You searched the offsets of the question too: its characters have the same numbers as those of the "
    "context. Look at tokens of sequence 1 only.",
)
def prepare_qa(tok, examples, **options):
    def find(e, f):
        if not f.start_position:
            return None
        question = tok(e.question, split_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
        spans = [a or b for a, b in zip(f.offsets, [*question, *[None] * len(f.offsets)])]
        stop = e.answer_start + len(e.answer_text)
        shared = [k for k, s in enumerate(spans) if s and s[0] < stop and e.answer_start < s[1]]
        return shared[0], shared[-1]

    return with_positions(original(tok, examples, **options), examples, find)


@misconception(
    "qa_example_by_example",
    replaces="prepare_qa",
    caught_by="test_qa_calls",
    matches="calls",
    feedback="You call the tokenizer for each example. With return_overflowing_tokens one call gives the windows "
    "of them all, and overflow_to_sample_mapping says whose they are.",
)
def prepare_qa(tok, examples, **options):
    return [feature for e in examples for feature in original(tok, [e], **options)]


# --- packing ----------------------------------------------------------------------------------------------------------


@misconception(
    "pack_without_eos",
    replaces="pack",
    caught_by="test_pack",
    feedback="No eos stands between your documents: they run into each other, and the model never sees where a "
    "text ends.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    stream = ([], [], [], [])
    for block in original(tok, docs, 1, batch_size=batch_size):
        if block.input_ids != [tok.eos_token_id]:
            for column, value in zip(stream, dataclasses.astuple(block)):
                column.extend(value)
        if len(stream[0]) == block_size:
            yield PackedBlock(*[list(column) for column in stream])
            for column in stream:
                column.clear()


@misconception(
    "positions_not_reset",
    replaces="pack",
    caught_by="test_pack",
    feedback="Your positions count from the start of the block. They restart with each document, so that it is "
    "read as if it stood alone.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    for block in original(tok, docs, block_size, batch_size=batch_size):
        yield dataclasses.replace(block, position_ids=list(range(block_size)))


@misconception(
    "predicted_from_another_document",
    replaces="pack",
    caught_by="test_pack",
    feedback="The first token of a document keeps its label, so that it is predicted from the document before. It "
    "has none.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    for block in original(tok, docs, block_size, batch_size=batch_size):
        yield dataclasses.replace(block, labels=list(block.input_ids))


@misconception(
    "pack_document_by_document",
    replaces="pack",
    caught_by="test_pack_calls",
    matches="calls",
    feedback="You encode one document at a time. Take batch_size of them, and encode them in one call.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    return original(tok, docs, block_size, batch_size=1)


@misconception(
    "pack_lists_documents",
    replaces="pack",
    caught_by="test_pack_is_lazy",
    matches="documents",
    feedback="You take all documents before you give out the first block. A training set does not fit: take them as "
    "you go, and yield each block as soon as it is full.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    yield from original(tok, list(docs), block_size, batch_size=batch_size)


@misconception(
    "pack_collects_first",
    replaces="pack",
    caught_by="test_pack_peak",
    matches="peak_bytes",
    equivalent_to="pack_lists_documents",  # of documents taken it takes as many
    feedback="You build all blocks before you give out the first: memory grows with the number of documents. Yield "
    "each as soon as it is full.",
)
def pack(tok, docs, block_size, *, batch_size=64):
    yield from list(original(tok, docs, block_size, batch_size=batch_size))
