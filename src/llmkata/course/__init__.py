"""The course: ``course.yaml`` as typed, validated structures. Never imports torch."""

from .by_hand import Adjustment, ByHand, Comment, Criterion, Freeze, Mark, Pin, Voiding
from .faults import CourseError, Fault, UnknownExercise
from .grading import Extension, ExtraCredit, Grading, Late
from .load import load_course
from .model import Course, Exercise, Feedback, Hints, Hours, Limits, Module, Policy, Task, Weights

__all__ = [
    "Adjustment", "ByHand", "Comment", "Course", "CourseError", "Criterion", "Exercise", "Extension", "ExtraCredit",
    "Fault", "Feedback", "Freeze", "Grading", "Hints", "Hours", "Late", "Limits", "Mark", "Module", "Pin", "Policy",
    "Task", "UnknownExercise", "Voiding", "Weights", "load_course",
]
