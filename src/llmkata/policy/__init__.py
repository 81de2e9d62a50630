"""The grade from points and times, as course.yaml says: pure functions over plain values, nothing of records or files."""

from .deadlines import Lateness, due, lateness
from .share import Grade, adjusted, grade
from .total import Part, Sum, combine

__all__ = ["Grade", "Lateness", "Part", "Sum", "adjusted", "combine", "due", "grade", "lateness"]
