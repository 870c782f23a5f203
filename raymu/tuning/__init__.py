"""Tuning: a sweep, its samplers and schedulers, and the driver that runs it with Ray Tune."""
