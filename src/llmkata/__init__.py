"""llmkata: a test-driven, auto-graded course on large language models, and the framework that grades it."""

__version__ = "0.1.0"
