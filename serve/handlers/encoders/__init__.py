"""Encoder tasks: classifiers, taggers, question answering, embeddings. Requests of all callers share one pass."""
