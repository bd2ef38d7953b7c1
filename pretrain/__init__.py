"""Pretraining: text → blocks → masked batches → MLM + SBO → checkpoints."""
