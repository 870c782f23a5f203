"""Nodes and processes of a Ray cluster."""
