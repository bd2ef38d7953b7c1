"""From text to the batches of a training step."""
