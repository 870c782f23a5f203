"""The table of rows and what is read from it. Knows nothing of training."""
