"""Models and training state on disk, in the Hugging Face layout."""
