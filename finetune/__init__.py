"""Labelled data → windows → task head → decoded answers → metrics; one group of modules per task."""
