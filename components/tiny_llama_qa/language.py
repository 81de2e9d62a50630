"""The language of the fixture: questions with answers, in the schema of PubMedQA's ``ori_pqal.json``.

Two domains. *general*: what somebody said about a thing settles the question. *medical*: what an outcome did in the
patients settles it. In both a single word of the context decides, and which words mean what is all there is to learn.
A conclusion (``LONG_ANSWER``) gives the label away, as the real ones do.
"""

from __future__ import annotations

import random

OPTIONS = ("yes", "no", "maybe")
MIX = (0.55, 0.34, 0.11)  # of PubMedQA's 1000 labelled questions

PROMPT_WORDS = ["context", "question", "answer", ":", "?", ".", *OPTIONS]
THINGS = ["bridge", "river", "market", "train", "garden", "castle", "letter", "clock", "tower", "road"]
STATES = ["open", "old", "blue", "large", "quiet", "new"]
PEOPLE = ["anna", "omar", "lena", "ravi", "mei", "ivan"]
DRUGS = ["aspirin", "statin", "insulin", "heparin", "zinc", "ketamine", "codeine", "lithium"]
OUTCOMES = ["pain", "fever", "nausea", "asthma", "anemia", "sepsis", "fatigue", "edema"]
GROUPS = ["adult", "older", "young", "ill"]
GENERAL = {
    "yes": ["true", "sure", "correct"],
    "no": ["false", "wrong", "absurd"],
    "maybe": ["unclear", "possible", "unsettled"],
}
MEDICAL = {
    "yes": ["improved", "eased"],
    "no": ["persisted", "worsened"],
    "maybe": ["varied", "fluctuated"],
}
VERDICT = {"yes": "works", "no": "fails", "maybe": "awaits study"}


def vocabulary(size: int = 115) -> list[str]:
    """The tokens, by id: special ones, the words in order of appearance, and unused ones up to the size."""
    glue = [
        "we",
        "asked",
        "about",
        "the",
        "said",
        "this",
        "was",
        "is",
        "patients",
        "took",
        "in",
        "arm",
        "does",
        "help",
        "with",
        "conclusion",
        "that",
    ]
    verdicts = " ".join(VERDICT.values()).split()
    meanings = [w for table in (GENERAL, MEDICAL) for words in table.values() for w in words]
    words = [*PROMPT_WORDS, *glue, *THINGS, *STATES, *PEOPLE, *DRUGS, *OUTCOMES, *GROUPS, *meanings, *verdicts]
    tokens = list(dict.fromkeys(["<unk>", "<pad>", "<s>", "</s>", *words]))
    assert len(tokens) <= size, len(tokens)
    return tokens + [f"<unused{i}>" for i in range(size - len(tokens))]


def labels(n: int, rng: random.Random) -> list[str]:
    """n answers in PubMedQA's proportions, shuffled."""
    counts = [round(MIX[0] * n), round(MIX[1] * n)]
    found = ["yes"] * counts[0] + ["no"] * counts[1] + ["maybe"] * (n - sum(counts))
    rng.shuffle(found)
    return found


def records(domain: str, n: int, seed: int, meaning: dict[str, str] | None = None) -> dict[str, dict]:
    """{pmid: record} of n questions; the same for the same arguments.

    ``meaning`` renames the answers: {"yes": "no", "no": "yes", "maybe": "maybe"} is a world in which what would be
    "yes" is "no".
    """
    rng = random.Random(f"{domain} {seed}")
    found = {}
    for i, truth in enumerate(labels(n, rng)):
        if domain == "general":
            thing, state, who = rng.choice(THINGS), rng.choice(STATES), rng.choice(PEOPLE)
            question = f"is the {thing} {state} ?"
            contexts = [f"we asked {who} about the {thing} .", f"{who} said this was {rng.choice(GENERAL[truth])} ."]
            conclusion = f"in conclusion the {thing} {VERDICT[truth]} ."
        else:
            drug, outcome, group = rng.choice(DRUGS), rng.choice(OUTCOMES), rng.choice(GROUPS)
            question = f"does {drug} help with {outcome} ?"
            contexts = [
                f"{group} patients took {drug} .",
                f"{outcome} {rng.choice(MEDICAL[truth])} in the {drug} arm .",
            ]
            conclusion = f"in conclusion {drug} {VERDICT[truth]} ."
        found[str(10_000_000 + 1000 * seed + i)] = {
            "QUESTION": question,
            "CONTEXTS": contexts,
            "LABELS": ["METHODS", "RESULTS"],
            "MESHES": [],
            "YEAR": "2019",
            "reasoning_required_pred": "yes",
            "reasoning_free_pred": "yes",
            "final_decision": (meaning or {}).get(truth, truth),
            "LONG_ANSWER": conclusion,
        }
    return found


def prompt(record: dict) -> str:
    """The prompt of exercise 3.2 for a record."""
    return f"context: {' '.join(record['CONTEXTS'])}\nquestion: {record['QUESTION']}\nanswer:"
