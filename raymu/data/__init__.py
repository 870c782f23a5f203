"""Datasets, and the splits that a scenario makes of them."""
