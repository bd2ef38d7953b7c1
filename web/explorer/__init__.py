"""The explorer: pages that show the model at work."""
