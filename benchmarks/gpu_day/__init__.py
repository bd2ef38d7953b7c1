"""A machine with one GPU and no network, for half an hour: what to bring, what to run, what to take home."""
