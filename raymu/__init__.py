"""raymu tunes machine-unlearning methods fairly. Start with `raymu --help`."""

__version__ = "0.1.0"
