"""How fast llmkata is, beside what else there is and against the bars it set itself: ``./kata bench NAME``.

A benchmark is a module with four names:

- ``SIZES``: what is measured at full size and with ``--quick``, which is a rehearsal and no measurement;
- ``collect(sizes, harness)``: runs commands, returns samples as plain data;
- ``judge(samples)``: the figures that follow from them, as :class:`~benchmarks.report.Row`, without running anything;
- ``plot(samples, figure)``: draws them, bars included.
"""

#: Name -> what it measures, and how many minutes it takes on two quiet cores.
NAMES = {
    "throughput": ("400 submissions against nbgrader, otter-grader and one pytest process each", 7),
    "overhead": ("what the boundary adds to the cost of the checks themselves", 6),
    "scale": ("2,000 submissions against 200: time, memory, descriptors, processes", 5),
    "latency": ("from save to verdict in kata watch; a cold pytest of one exercise", 2),
    "cluster": ("two shards, or two workers of a cluster, against one", 45),
    "stability": ("equal counts and equal verdicts under other hash seeds and load", 5),
}
