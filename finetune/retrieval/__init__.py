"""Answers from a person's own documents: read, cut into passages, found by BM25, read by the model."""
