"""Mutants of a model answer: one small change each, of the kind that people make in numerical code."""
