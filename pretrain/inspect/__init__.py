"""Looking at masks, and at what the heads predict under them."""
