"""The model: a packed batch, the encoder over it, the heads, and the classes that join them."""
