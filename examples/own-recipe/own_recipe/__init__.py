"""Recipes of one's own: a package that every participant installs, and a job names by its digest."""
