"""The course: ``course.yaml`` as typed, validated structures. Never imports torch."""

from .faults import CourseError, Fault, UnknownExercise
from .grading import Extension, ExtraCredit, Grading, Late
from .load import load_course
from .model import Course, Exercise, Feedback, Hours, Limits, Module, Policy, Task, Weights

__all__ = [
    "Course", "CourseError", "Exercise", "Extension", "ExtraCredit", "Fault", "Feedback", "Grading", "Hours", "Late",
    "Limits", "Module", "Policy", "Task", "UnknownExercise", "Weights", "load_course",
]
