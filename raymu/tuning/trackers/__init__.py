"""Experiment trackers that follow a sweep."""
