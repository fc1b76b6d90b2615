"""Lessons: one file each, found by its place; the text is in `notebooks/course`."""
