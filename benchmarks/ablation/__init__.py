"""Masks, SBO and single sequences at equal compute."""
