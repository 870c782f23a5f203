"""Classifiers: how they are built, looked at and asked."""
