"""Masking, training steps and gradient synchronisation."""
