"""The course: ``course.yaml`` as typed, validated structures. Never imports torch."""

from .faults import CourseError, Fault, UnknownExercise
from .load import load_course
from .model import Course, Exercise, Feedback, Hours, Limits, Module, Policy, Task, Weights

__all__ = [
    "Course", "CourseError", "Exercise", "Fault", "Feedback", "Hours", "Limits", "Module", "Policy", "Task",
    "UnknownExercise", "Weights", "load_course",
]
