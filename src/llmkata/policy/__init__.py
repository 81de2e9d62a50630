"""The grade from points and times, as course.yaml says: pure functions over plain values, nothing of records or files."""

from .deadlines import Lateness, due, lateness
from .hints import hint_cost
from .share import Grade, adjusted, grade, less_hints
from .total import Part, Sum, combine

__all__ = [
    "Grade", "Lateness", "Part", "Sum", "adjusted", "combine", "due", "grade", "hint_cost", "lateness", "less_hints",
]
