"""Made-up records that cover every state, and a small course to hold them against."""

from __future__ import annotations

import random
from pathlib import Path

from llmkata.course import Course, Exercise, Feedback, Hours, Limits, Module, Policy, Task, Weights
from llmkata.records import (
    CheckRecord,
    Diagnosis,
    Evidence,
    ExerciseRecord,
    Measure,
    Outcome,
    Provenance,
    Spot,
    State,
    Trust,
)

SELF_ATTENTION, KV_CACHE, MATRIX_CALCULUS = "module2/self_attention", "module6/kv_cache", "module0/matrix_calculus"

HOSTILE_NAMES = [
    "<script>alert(1)</script>",
    "=cmd()",
    "+1+1",
    "-2",
    "@SUM(A1)",
    '"><img src=x onerror=alert(1)>',
    "../../etc/passwd",
    "\x1b[31mred\x1b[0m",
    "\u202etxt.exe",
    "Zoë Müller-Østergård",
    "李小龍",
    "محمد",
    "{{ 7 * 7 }}",
    "a" * 300,
    "[x](javascript:alert(1))",
    "' onmouseover='alert(1)",
    "</title><script>",
    "con",
]
ATTACK = (
    "</pre></style><script>alert('x')</script><img src=x onerror=alert(1)> "
    "\x1b]8;;http://evil\x07click\x1b]8;;\x07 \x1b[2J"
)


def exercise(
    module: int, number: str, slug: str, title: str, tasks: list[tuple[str, str]], weight: float = 1.0
) -> Exercise:
    """An available exercise with (title, tier) tasks; a planned one without."""
    return Exercise(
        root=Path("."),
        module=module,
        number=number,
        slug=slug,
        title=title,
        mission=f"Build {title.lower()} yourself.",
        difficulty=3,
        hours=Hours(2.0, 7.0),
        prerequisites=(),
        weight=weight,
        profile="base",
        grants={},
        components=(),
        status="available" if tasks else "planned",
        tasks=tuple(Task(i, name, tier) for i, (name, tier) in enumerate(tasks, 1)),
        wall=20.0,
    )


def course(hidden: str = "counterexample", core: float = 1.0, stretch: float = 1.0) -> Course:
    """Three available exercises (the last one of double weight) and a planned one."""
    return Course(
        root=Path("."),
        title="Large Language Models: a course you pass by making tests pass",
        policy=Policy("sandbox", "KATA_SEED", Feedback("counterexample", hidden), Weights(core, stretch)),
        limits=Limits(20.0, 5.0, 30.0, 1024, 64, 512),
        modules=(
            Module(
                0,
                "Foundations",
                "",
                (
                    exercise(
                        0,
                        "0.1",
                        "matrix_calculus",
                        "Matrix Calculus",
                        [("Broadcasting rules", "core"), ("Batched products", "core"), ("Peak memory", "stretch")],
                    ),
                ),
            ),
            Module(
                2,
                "Core architectures",
                "",
                (
                    exercise(
                        2,
                        "2.1",
                        "self_attention",
                        "Self-Attention Mechanism",
                        [
                            ("Scaled dot-product attention", "core"),
                            ("The SelfAttention layer", "core"),
                            ("A summary of an attention map", "core"),
                            ("A figure of an attention map", "core"),
                            ("Streaming attention over key blocks", "stretch"),
                            ("Merging partial results", "stretch"),
                        ],
                    ),
                    exercise(2, "2.2", "transformer_encoder", "Transformer Encoder", []),
                ),
            ),
            Module(
                6,
                "Inference",
                "",
                (
                    exercise(
                        6,
                        "6.1",
                        "kv_cache",
                        "KV-Cache Implementation",
                        [
                            ("Append", "core"),
                            ("Cached attention", "core"),
                            ("Generation", "core"),
                            ("Sliding window", "stretch"),
                        ],
                        weight=2.0,
                    ),
                ),
            ),
        ),
    )


PROVENANCE = Provenance(
    grader_hash="3f2a9c41d07be58810aa",
    seed=20260304,
    transport="worker",
    layers=["close_range", "landlock", "seccomp", "netns", "rlimit"],
    versions={"llmkata": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.1"},
    machine="x86-64, 2 cores",
)


def check(
    name: str,
    task: int,
    outcome: Outcome = Outcome.passed,
    points: float = 5.0,
    *,
    tier: str = "core",
    file: str = "test_correctness.py",
    **fields,
) -> CheckRecord:
    """A check that earns its points iff it passed, with a cause iff it did not."""
    passed = outcome is Outcome.passed
    fields.setdefault("title", name.removeprefix("test_").replace("_", " ").capitalize() + ".")
    if not passed:
        fields.setdefault("cause", "The output differs from the reference by up to 0.31; 2e-12 is allowed.")
    return CheckRecord(
        id=f"{file}::{name}",
        task=task,
        tier=tier,
        max_points=points,
        points=points if passed else 0.0,
        outcome=outcome,
        **fields,
    )


def scaled_by_d() -> CheckRecord:
    """A failed check with everything a failure can hold."""
    return check(
        "test_attention_matches_reference",
        1,
        Outcome.failed,
        6.0,
        title="`attention` gives the output of the definition, for every shape, mask and scale.",
        cause="The output differs from the reference by up to 0.31 where 2e-12 is allowed.",
        evidence=Evidence(
            summary="The output differs in 11 of 12 elements.",
            call="attention(q (2, 3, 4) float64, k (2, 3, 4) float64, v (2, 3, 2) float64, is_causal=True)",
            expected="shape (2, 3, 2), float64\n[[ 0.4121, -1.0230],\n [ 0.1176, -0.5521],\n [-0.2219,  0.0911]]",
            got="shape (2, 3, 2), float64\n[[ 0.4121, -1.0230],\n [ 0.2034, -0.3107],\n [ 0.0871,  0.1458]]",
            index="(0, 2, 0)",
            frames=[
                "self_attention.py:88 in forward: out, w = attention(q, k, v)",
                "self_attention.py:41 in attention: scores = q @ k.transpose(-2, -1) / q.shape[-1]",
            ],
        ),
        diagnosis=Diagnosis(
            "scale_by_d",
            "Your output is exactly what you get by scaling with `d` instead of `sqrt(d)`: "
            "the softmax gets too flat as heads grow wider.",
        ),
        hints=[
            "What is the variance of a dot product of two vectors of `d` independent unit normals?",
            "Divide the scores by the standard deviation, not by the variance.",
            "`scores = q @ k.mT / math.sqrt(d)`",
        ],
        staff_output="debug: q.shape = (2, 3, 4)\n" * 3,
        seconds=0.12,
    )


def flops_over() -> CheckRecord:
    """A budget missed by a factor, and one kept."""
    return check(
        "test_flops",
        2,
        Outcome.failed,
        5.0,
        file="test_budgets.py",
        kind="budget",
        title="Attention costs its two matrix products and no more.",
        cause="Measured 2.1 MFLOP where at most 1.06 MFLOP is allowed.",
        measures=[
            Measure(
                "FLOPs of `attention`",
                2.1e6,
                "FLOP",
                at_most=1.06e6,
                reference=1.05e6,
                ok=False,
                spots=[Spot("aten.bmm", 1.05e6, 41), Spot("aten.bmm", 1.05e6, 47)],
            ),
            Measure("Peak memory", 196608, "bytes", at_most=262144, reference=131072, trust=Trust.outside),
        ],
        hints=["How often is `q @ k.mT` computed?"],
    )


def growth_check(outcome: Outcome = Outcome.passed) -> CheckRecord:
    """Growth over four sizes; quadratic where it fails."""
    ok = outcome is Outcome.passed
    power = 1.02 if ok else 2.01
    return check(
        "test_decode_growth",
        5,
        outcome,
        6.0,
        tier="stretch",
        file="test_budgets.py",
        kind="budget",
        title="Work per token does not grow with what is already cached.",
        measures=[
            Measure(
                "Growth of FLOPs with length",
                power,
                "exponent",
                at_most=1.25,
                reference=1.0,
                ok=ok,
                series=[(n, 3000.0 * (n / 64) ** power) for n in (64, 128, 256, 512)],
            ),
            Measure(
                "Bytes moved by one step", 8.4e6 if not ok else 6.1e4, "bytes", at_most=65536, reference=49152, ok=ok
            ),
            Measure("Interpreter steps", 5120, "steps", at_most=6000, trust=Trust.self_reported),
            Measure("Speed against the loop", 3.1 if ok else 0.8, "×", at_least=2.0, ok=ok, trust=Trust.outside),
            Measure("GEMM calls", 16, "calls", at_most=16, trust=Trust.handed_in),
        ],
    )


def attention_checks(rng: random.Random, chance: float) -> list[CheckRecord]:
    """The checks of 2.1 where each passes with that chance; a failing first one is diagnosed half of the time."""

    def roll() -> Outcome:
        return Outcome.passed if rng.random() < chance else Outcome.failed

    first = scaled_by_d() if roll() is Outcome.failed else check("test_attention_matches_reference", 1, points=6.0)
    flops = rng.choice([0.9, 1.0, 1.04, 1.055, 2.1]) * 1e6
    ok = flops <= 1.06e6
    return [
        check("test_shapes", 1, points=0, visibility="visible", file="test_self_attention.py"),
        first,
        check("test_weights_are_distributions", 1, roll(), 3.0),
        check("test_layer_matches_reference", 2, roll(), 7.0),
        check(
            "test_flops",
            2,
            Outcome.passed if ok else Outcome.failed,
            5.0,
            kind="budget",
            file="test_budgets.py",
            measures=[Measure("FLOPs of `attention`", flops, "FLOP", at_most=1.06e6, reference=1.05e6, ok=ok)],
        ),
        check("test_summary", 3, roll(), 6.0),
        check("test_figure", 4, roll(), 4.0),
        growth_check(roll()),
        check("test_merge_is_a_monoid", 6, roll(), 6.0, tier="stretch"),
    ]


def record(learner: str, exercise: str = SELF_ATTENTION, state: State = State.graded, **fields) -> ExerciseRecord:
    """A record with the usual surroundings."""
    fields.setdefault("graded_at", "2026-03-04T11:22:33+01:00")
    fields.setdefault("submitted_at", "2026-03-03T23:58:00+01:00")
    fields.setdefault("provenance", PROVENANCE)
    fields.setdefault("files", [f"{exercise}.py"] if state is not State.missing else [])
    return ExerciseRecord(learner=learner, exercise=exercise, state=state, **fields)


def mastered(learner: str, exercise: str = MATRIX_CALCULUS) -> ExerciseRecord:
    """Every check passed."""
    return record(
        learner,
        exercise,
        checks=[
            check("test_broadcast", 1),
            check("test_batched", 2, points=10),
            check(
                "test_peak_bytes",
                3,
                points=5,
                tier="stretch",
                file="test_budgets.py",
                kind="budget",
                measures=[Measure("Peak memory", 65536, "bytes", at_most=131072, reference=65536, trust=Trust.outside)],
            ),
        ],
    )


def in_progress(learner: str) -> ExerciseRecord:
    """2.1 half done: a diagnosed mistake, a missed budget, a check a gate kept from being judged, remarks."""
    return record(
        learner,
        checks=[
            check("test_shapes", 1, points=0, visibility="visible", file="test_self_attention.py"),
            scaled_by_d(),
            check("test_weights_are_distributions", 1, points=3),
            check("test_layer_matches_reference", 2, points=7),
            flops_over(),
            check("test_summary", 3, points=6),
            check("test_figure", 4, points=4, visibility="visible", file="test_self_attention.py"),
            growth_check(Outcome.failed),
            check(
                "test_merge_is_a_monoid",
                6,
                Outcome.not_judged,
                6,
                tier="stretch",
                cause="Not judged: it needs test_streaming, which failed.",
            ),
        ],
        notes=["Notebook: dropped 2 magic lines (`%matplotlib inline`, `!pip install einops`)."],
        ignored=["conftest.py", "__pycache__/"],
    )


def unreadable(learner: str, exercise: str = KV_CACHE) -> ExerciseRecord:
    """A syntax error."""
    return record(
        learner,
        exercise,
        State.unreadable,
        cause="The file has a syntax error in line 41: '(' was never closed.",
        evidence=Evidence("'(' was never closed", frames=["kv_cache.py:41: scores = (q @ k"]),
    )


def hostile(learner: str) -> ExerciseRecord:
    """Every text of the record is an attack."""
    failed = CheckRecord(
        id=f"test_x.py::test_{ATTACK}",
        title=ATTACK,
        task=1,
        tier="core",
        max_points=5,
        points=0,
        outcome=Outcome.failed,
        cause=ATTACK,
        evidence=Evidence(ATTACK, ATTACK, ATTACK, ATTACK, ATTACK, [ATTACK]),
        diagnosis=Diagnosis(ATTACK, ATTACK),
        hints=[ATTACK, ATTACK],
        measures=[Measure(ATTACK, 3, ATTACK, at_most=2, ok=False, spots=[Spot(ATTACK, 1, 2)])],
        staff_output=ATTACK,
        flags=[ATTACK],
    )
    return record(
        learner,
        checks=[failed],
        cause=ATTACK,
        notes=[ATTACK],
        ignored=[ATTACK],
        files=[ATTACK],
        provenance=Provenance(ATTACK, 1, ATTACK, [ATTACK], {ATTACK: ATTACK}, ATTACK),
    )


def showcase(learner: str = "Zoë Müller-Østergård") -> list[ExerciseRecord]:
    """One learner with a mastered, a half-done and an unreadable exercise."""
    return [mastered(learner), in_progress(learner), unreadable(learner)]


def class_of(n: int, seed: int = 0) -> list[ExerciseRecord]:
    """A class of n with every state in it."""
    rng = random.Random(seed)
    first = [
        "Ada",
        "Grace",
        "Alan",
        "Edsger",
        "Barbara",
        "Donald",
        "Frances",
        "Tony",
        "Radia",
        "Ken",
        "Margaret",
        "Niklaus",
    ]
    last = ["Okafor", "Lindqvist", "Tanaka", "Moreau", "Silva", "Novak", "Haddad", "Kowalski", "Nguyen", "Byrne"]
    records = []
    for i in range(n):
        learner = (
            f"{rng.choice(first)} {rng.choice(last)} {i + 1}"
            if n > 40
            else f"{first[i % 12]} {last[(i * 7 + i // 12) % 10]}"
        )
        skill = rng.random()
        records.append(
            rng.choices(
                [
                    mastered(learner),
                    record(learner, MATRIX_CALCULUS, State.not_started),
                    record(learner, MATRIX_CALCULUS, State.missing),
                ],
                [6, 1, 1],
            )[0]
        )
        records.append(record(learner, checks=attention_checks(rng, 0.35 + 0.65 * skill)))
        if i % 7 == 3:
            records[-1].checks[1].flags.append("The output is bitwise equal to the reference: too good to be true.")
        records.append(
            rng.choices(
                [
                    unreadable(learner),
                    record(learner, KV_CACHE, State.missing, cause="No file kv_cache.py was handed in."),
                    record(learner, KV_CACHE, State.not_started),
                    mastered(learner, KV_CACHE),
                    record(
                        learner,
                        KV_CACHE,
                        State.infrastructure,
                        cause="The grading child was killed: out of memory on the host.",
                    ),
                ],
                [1, 2, 3, 3, 1],
            )[0]
        )
    return records
