"""Module-II: single cells, their measures, their kinds, and the grade of an image."""
