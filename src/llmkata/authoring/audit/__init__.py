"""The graders are graded: ``kata audit``.

A :class:`~llmkata.authoring.audit.trial.Trial` is one run of an exercise's checks on one source: the model answer, an
alternative, the stub, a known mistake, a mutant. Each bar (a module of this package) says which trials it needs and
judges their results; the pool runs them all in forks of one warm process and keeps every result by content.
"""
