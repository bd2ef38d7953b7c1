"""What every training stage shares."""
