"""course.yaml: what is read from it, what is refused and with which words, and how exercises are found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmkata.course import CourseError, Task, UnknownExercise, load_course

ROOT = Path(__file__).resolve().parents[2]

TOY = """\
schema: llmkata/course/v1
title: Toy
policy:
  isolation: sandbox
  seed_env: KATA_SEED
  feedback: {visible: counterexample, hidden: hint}
  weights: {core: 1, stretch: 0.5}
limits: {wall: 20, call: 5, cpu: 30, memory: 1024, output: 64, submission: 1024}
modules:
  - number: 0
    title: First
    objective: Begin.
    exercises:
      - number: "0.1"
        slug: counting
        title: Counting
        mission: Count.
        difficulty: 1
        hours: {core: 1, total: 2}
        status: planned
      - number: "0.2"
        slug: adding
        title: Adding
        mission: Add.
        difficulty: 2
        hours: {core: 0.5, total: 0.5}
        prerequisites: [counting]
        weight: 2.5
        profile: transformers
        grants: {threads: 4, exec: python, loopback: true, env: {A_B: "1"}, memory: 512, wall: 90}
        components: [texts]
        status: available
        tasks:
          - {number: 1, tier: core, title: One}
          - {number: 2, tier: stretch, title: Two}
"""


def write(folder: Path, text: str = TOY, *, files: bool = True) -> Path:
    """A course with the files that its available exercise needs; answers its root."""
    (folder / "course.yaml").write_text(text, encoding="utf-8")
    if files:
        for name in ("exercises/module0/adding/README.md", "exercises/module0/adding/adding.py",
                     "exercises/module0/adding/test_adding.py", "solutions/module0/adding.py",
                     "reference/module0/adding.py", "graders/module0/adding/test_correctness.py",
                     "components/texts/a.txt"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


@pytest.fixture
def toy(tmp_path):
    return load_course(write(tmp_path))


def edited(old: str, new: str) -> str:
    assert TOY.count(old) == 1, f"{old!r} stands {TOY.count(old)} times in the toy course"
    return TOY.replace(old, new)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


# What is read


def test_values_and_defaults(toy, tmp_path):
    counting, adding = toy.exercises
    assert (toy.title, toy.policy.isolation, toy.policy.seed_env) == ("Toy", "sandbox", "KATA_SEED")
    assert (toy.policy.feedback.hidden, toy.policy.weights.stretch, toy.limits.memory) == ("hint", 0.5, 1024)
    assert (toy.modules[0].title, toy.modules[0].objective) == ("First", "Begin.")
    assert (adding.id, adding.number, adding.module, adding.weight) == ("module0/adding", "0.2", 0, 2.5)
    assert (adding.hours.core, adding.hours.total, adding.prerequisites) == (0.5, 0.5, ("counting",))
    assert adding.grants == {"threads": 4, "exec": "python", "loopback": True, "env": {"A_B": "1"},
                             "memory": 512, "wall": 90.0}
    assert (adding.profile, adding.components, adding.wall) == ("transformers", ("texts",), 90.0)
    assert (counting.weight, counting.profile, counting.grants, counting.tasks) == (1.0, "base", {}, ())
    assert counting.wall == 20.0
    assert adding.tasks == (Task(1, "One", "core"), Task(2, "Two", "stretch"))
    assert toy.available == (adding,)
    assert adding.task(2).tier == "stretch"
    for missing in (0, 3):
        with pytest.raises(KeyError, match=f"no task {missing}"):
            adding.task(missing)
    assert adding.stub == tmp_path / "exercises/module0/adding/adding.py"
    assert adding.brief == tmp_path / "exercises/module0/adding/README.md"
    assert adding.visible_checks == tmp_path / "exercises/module0/adding/test_adding.py"
    assert adding.feedback == tmp_path / "exercises/module0/adding/feedback.json"
    assert adding.solution == tmp_path / "solutions/module0/adding.py"
    assert adding.reference == tmp_path / "reference/module0/adding.py"
    assert adding.graders_dir == tmp_path / "graders/module0/adding"


def test_a_relative_root_is_made_whole(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    course = load_course(Path(tmp_path.name))
    assert course.exercises[0].solution.is_absolute()


def test_structures_are_frozen(toy):
    with pytest.raises(AttributeError):
        toy.exercises[0].title = "Other"


def test_without_the_c_loader_the_same_is_read(toy, tmp_path, monkeypatch):
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert load_course(tmp_path) == toy


# What is refused: (edit, words of the fault, text of the line it must name, field)

FAULTS = {
    "unknown key": ('difficulty: 1', 'dificulty: 1',
        ['unknown key "dificulty"', 'did you mean "difficulty"?'], "dificulty", "modules[0].exercises[0]"),
    "unknown key at the top": ("title: Toy", "title: Toy\ncolour: red", ['unknown key "colour"'], "colour", ""),
    "missing key": ("        mission: Count.\n", "",
        ['missing key "mission"'], 'number: "0.1"', "modules[0].exercises[0]"),
    "string for a number": ("difficulty: 1", "difficulty: easy",
        ["must be an integer, is a string"], "difficulty: easy", "modules[0].exercises[0].difficulty"),
    "unquoted number": ('number: "0.1"', "number: 0.1",
        ["must be a string, is a number", 'put it in quotes: "0.1"'], "number: 0.1", "modules[0].exercises[0].number"),
    "list for a mapping": ("{core: 1, total: 2}", "[1, 2]",
        ["must be a mapping, is a list"], "[1, 2]", "modules[0].exercises[0].hours"),
    "scalar for a list": ("[counting]", "counting",
        ["must be a list, is a string"], "prerequisites", "modules[0].exercises[1].prerequisites"),
    "number for true or false": ("loopback: true", "loopback: 3",
        ["must be true or false, is an integer"], "loopback", "modules[0].exercises[1].grants.loopback"),
    "empty string": ("mission: Count.", 'mission: " "',
        ["must not be empty"], "mission: \" \"", "modules[0].exercises[0].mission"),
    "nothing": ("mission: Count.", "mission:",
        ["must be a string, is empty"], "mission:\n", "modules[0].exercises[0].mission"),
    "too difficult": ("difficulty: 1", "difficulty: 6",
        ["must be at most 5, is 6"], "difficulty: 6", "modules[0].exercises[0].difficulty"),
    "no time": ("{core: 1, total: 2}", "{core: 0, total: 2}",
        ["must be above 0"], "core: 0,", "modules[0].exercises[0].hours.core"),
    "not a number": ("{core: 1, total: 2}", "{core: .nan, total: 2}",
        ["must be at least 0, is nan"], ".nan", "modules[0].exercises[0].hours.core"),
    "core above total": ("{core: 1, total: 2}", "{core: 3, total: 2}",
        ["core must not exceed total"], "core: 3", "modules[0].exercises[0].hours"),
    "negative weight": ("stretch: 0.5", "stretch: -1",
        ["must be at least 0, is -1"], "stretch: -1", "policy.weights.stretch"),
    "unknown status": ("status: planned", "status: planed",
        ['"planed" is not one of its values', 'did you mean "planned"?'], "planed", "modules[0].exercises[0].status"),
    "unknown profile": ("profile: transformers", "profile: jax",
        ["known: base, optim, matplotlib, transformers"], "jax", "modules[0].exercises[1].profile"),
    "unknown feedback": ("hidden: hint", "hidden: hints",
        ['did you mean "hint"?'], "hidden: hints", "policy.feedback.hidden"),
    "unknown schema": ("course/v1", "course/v9", ['"llmkata/course/v9" is not one of its values'], "v9", "schema"),
    "repeated key": ("title: Toy", "title: Toy\ntitle: Again",
        ['key "title" stands here twice (first in line 2)'], "title: Again", ""),
    "duplicate slug": ("slug: counting", "slug: adding",
        ["duplicate slug adding (first in line 15)"], "slug: adding\n        title: Adding",
        "modules[0].exercises[1].slug"),
    "duplicate number": ('"0.2"', '"0.1"',
        ["duplicate number 0.1 (first in line 14)"], '"0.1"\n        slug: adding', "modules[0].exercises[1].number"),
    "number of another module": ('"0.2"', '"1.2"',
        ['"1.2" stands in module 0'], '"1.2"', "modules[0].exercises[1].number"),
    "malformed number": ('"0.2"', '"0.02"',
        ['must read "module.position"'], '"0.02"', "modules[0].exercises[1].number"),
    "slug that is no module name": ("slug: counting", "slug: Count-ing",
        ["Python module name"], "Count-ing", "modules[0].exercises[0].slug"),
    "slug that is a keyword": ("slug: counting", "slug: lambda",
        ["Python module name"], "slug: lambda", "modules[0].exercises[0].slug"),
    "unknown prerequisite": ("[counting]", "[countin]",
        ['no exercise has the slug "countin"', 'did you mean "counting"?'], "[countin]",
        "modules[0].exercises[1].prerequisites[0]"),
    "prerequisite of itself": ("[counting]", "[adding]",
        ["in a circle: adding -> adding"], "[adding]", "modules[0].exercises[1].prerequisites[0]"),
    "circle": ("mission: Count.", "mission: Count.\n        prerequisites: [adding]",
        ["in a circle: counting -> adding -> counting"], "prerequisites: [counting]",
        "modules[0].exercises[1].prerequisites[0]"),
    "unknown grant": ("threads: 4", "thread: 4",
        ['unknown grant "thread"', 'did you mean "threads"?'], "thread: 4", "modules[0].exercises[1].grants"),
    "malformed grant": ("exec: python", "exec: bash",
        ['"bash" is not one of its values'], "exec: bash", "modules[0].exercises[1].grants.exec"),
    "malformed environment": ('A_B: "1"', 'A-B: "1"',
        ['"A-B" is no name of an environment variable'], "A-B", "modules[0].exercises[1].grants.env"),
    "gap in the tasks": ("number: 2, tier: stretch", "number: 3, tier: stretch",
        ["2 is due, is 3"], "number: 3", "modules[0].exercises[1].tasks[1].number"),
    "core after stretch": ("{number: 1, tier: core, title: One}",
        "{number: 1, tier: stretch, title: One}\n          - {number: 2, tier: core, title: X}",
        ["must not come after a stretch task"], "title: X", "modules[0].exercises[1].tasks[1].tier"),
    "available without core": ("number: 1, tier: core", "number: 1, tier: stretch",
        ["needs at least one core task"], "status: available", "modules[0].exercises[1].tasks"),
    "broken YAML": ("feedback: {visible", "feedback: {{visible", ["not YAML"], "weights", ""),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_names_file_line_and_field(tmp_path, case):
    old, new, words, place, field = FAULTS[case]
    text = edited(old, new)
    with pytest.raises(CourseError) as caught:
        load_course(write(tmp_path, text))
    fitting = [fault for fault in caught.value.faults if all(word in fault.message for word in words)]
    assert len(fitting) == 1, str(caught.value)
    fault = fitting[0]
    assert fault.file == str(tmp_path / "course.yaml")
    assert fault.field == field
    assert fault.line == line_of(text, place), str(fault)
    assert str(fault) in str(caught.value)
    assert str(fault).startswith(f"{fault.file}:{fault.line}: ")


@pytest.mark.parametrize("name", [
    "exercises/module0/adding/README.md", "exercises/module0/adding/test_adding.py", "solutions/module0/adding.py",
    "reference/module0/adding.py", "graders/module0/adding/test_correctness.py",
])
def test_missing_file_of_an_available_exercise(tmp_path, name):
    root = write(tmp_path)
    (root / name).unlink()
    with pytest.raises(CourseError) as caught:
        load_course(root)
    [fault] = caught.value.faults
    assert name in fault.message and fault.line == line_of(TOY, "status: available")
    assert fault.field == "modules[0].exercises[1].status"


def test_missing_component_of_an_available_exercise(tmp_path):
    with pytest.raises(CourseError, match="missing folder components/text"):
        load_course(write(tmp_path, edited("[texts]", "[text]")))


def test_planned_exercises_need_no_files(tmp_path):
    text = edited("status: available", "status: planned")
    assert load_course(write(tmp_path, text, files=False)).available == ()


def test_a_learner_may_delete_their_own_file(tmp_path):
    root = write(tmp_path)
    (root / "exercises/module0/adding/adding.py").unlink()
    assert len(load_course(root).available) == 1


def test_released_repository_needs_no_graders(tmp_path):
    root = write(tmp_path)
    for name in ("solutions", "reference", "graders"):
        shutil.rmtree(root / name)
    assert len(load_course(root).available) == 1


def test_all_faults_are_told_at_once_in_order(tmp_path):
    text = edited("difficulty: 1", "difficulty: x").replace("[counting]", "[nothing]")
    text = text.replace("title: Toy", "titel: Toy")
    with pytest.raises(CourseError) as caught:
        load_course(write(tmp_path, text))
    lines = [fault.line for fault in caught.value.faults]
    assert len(lines) == 4 and lines == sorted(lines)  # titel: unknown, and title missing
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is empty"), (b"\xff\xfe\x00t", "is not UTF-8"), (b"- a list\n", "must be a mapping, is a list"),
    (b"a: 1\n---\nb: 2\n", "not YAML"), (b"title: [*unknown]\n", "not YAML"), (b"a: \x07\n", "is not UTF-8"),
])
def test_no_course_at_all(tmp_path, content, words):
    (tmp_path / "course.yaml").write_bytes(content)
    with pytest.raises(CourseError, match=words) as caught:
        load_course(tmp_path)
    assert caught.value.faults[0].line >= 1


def test_no_file(tmp_path):
    with pytest.raises(CourseError, match="no such file; a course is a folder with a course.yaml"):
        load_course(tmp_path)


@given(st.data())
def test_damaged_courses_are_refused_with_a_place_or_read(tmp_path_factory, data):
    """Whatever happens to the file, it is read or it is a CourseError: never another exception."""
    start = data.draw(st.integers(0, len(TOY)))
    length = data.draw(st.integers(0, 60))
    insert = data.draw(st.sampled_from(
        ["", "&a ", "*a", "!!python/object:os.system ", "[", "}", ": ", "- ", "1", "null", "\t", "? "]))
    folder = write(tmp_path_factory.mktemp("damaged"), TOY[:start] + insert + TOY[start + length:])
    try:
        load_course(folder)
    except CourseError as error:
        assert error.faults and all(fault.line >= 1 for fault in error.faults)


def test_values_that_contain_themselves_are_refused(tmp_path):
    with pytest.raises(CourseError):
        load_course(write(tmp_path, edited("[counting]", "&loop [*loop]")))


# Finding exercises


@pytest.mark.parametrize("name", [
    "module0/adding", "0.2", "adding", "exercises/module0/adding", "exercises/module0/adding/",
    "./exercises/module0/adding/adding.py", "exercises/module0/adding/test_adding.py",
    "/a/clone/exercises/module0/adding",
    "exercises\\module0\\adding\\adding.py", "solutions/module0/adding.py",
    "adding.py", " adding ", Path("module0/adding"),
])
def test_lookup(toy, name):
    assert toy.exercise(name).id == "module0/adding"


@pytest.mark.parametrize(("name", "suggestion"), [
    ("addding", "module0/adding"), ("module0/ading", "module0/adding"), ("Counting", "module0/counting"),
    ("count", "module0/counting"),
])
def test_unknown_exercise_suggests(toy, name, suggestion):
    with pytest.raises(UnknownExercise, match="did you mean") as caught:
        toy.exercise(name)
    assert caught.value.suggestions[0] == suggestion
    assert suggestion in str(caught.value) and f'"{name}"' in str(caught.value)


@pytest.mark.parametrize("name", ["zzzz", "", ".", "/", "9.9", "module7"])
def test_unknown_exercise_without_a_near_one(toy, name):
    with pytest.raises(UnknownExercise, match="kata start") as caught:
        toy.exercise(name)
    assert caught.value.suggestions == ()
    assert isinstance(caught.value, CourseError)


# The course of this project


@pytest.fixture(scope="module")
def course():
    return load_course(ROOT)


def test_a_narrowed_course_keeps_its_exercises_but_counts_few(course):
    narrow = course.narrowed({"module2/self_attention"})
    assert [e.id for e in narrow.available] == ["module2/self_attention"]
    assert [e.id for e in narrow.exercises] == [e.id for e in course.exercises]


def test_fourteen_modules_and_fifty_three_exercises(course):
    assert [module.number for module in course.modules] == list(range(14))
    assert [len(module.exercises) for module in course.modules] == [3, 5, 5, 5, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3]
    for module in course.modules:
        positions = range(1, len(module.exercises) + 1)
        assert [exercise.number for exercise in module.exercises] == [f"{module.number}.{n}" for n in positions]


def test_core_tiers_stay_small(course):
    """A learner's first tier is three hours at most, and comes before what builds on it."""
    for exercise in course.exercises:
        assert exercise.hours.core <= 3 and exercise.hours.total <= 8, exercise.id


def test_course_is_imported_and_read_without_torch():
    code = ("import sys; from llmkata.course import load_course; load_course(sys.argv[1]); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))")
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], check=False).returncode == 0
