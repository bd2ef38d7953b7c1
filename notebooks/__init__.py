"""A tour of the project in notebooks, kept as Python files in jupytext's percent format."""
