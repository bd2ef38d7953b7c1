"""Extractive question answering (§5)."""
