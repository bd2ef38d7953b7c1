"""Masked spans of several tokens: texts with holes in them, and what the MLM and SBO heads expect there."""
