"""Five functions for the reader to write, and what they are checked by: `pytest exercises`."""
