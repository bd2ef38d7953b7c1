"""What is hidden of a sequence, as a pure function of (seed, epoch, index)."""
