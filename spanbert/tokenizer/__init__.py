"""WordPiece tokenization."""
