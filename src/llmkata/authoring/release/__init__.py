"""The learner's repository: what goes into it, the proof that nothing hidden does, and how an older one is updated."""
