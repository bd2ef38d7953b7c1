"""Every number that the README states, re-measured by one command."""
