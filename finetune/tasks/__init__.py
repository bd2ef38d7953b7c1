"""The tasks that an encoder can be fine-tuned for."""
