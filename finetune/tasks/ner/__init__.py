"""Named entities: a tag for each word."""
