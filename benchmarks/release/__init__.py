"""Bundling trained models: scores, provenance, cards."""
