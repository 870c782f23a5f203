"""raymu tunes machine-unlearning methods fairly. Start with `raymu --help`."""

import os

__version__ = "0.2.0"

# Before Ray is imported, which reads it once: who joins a cluster needs the token as well.
os.environ.setdefault("RAY_AUTH_MODE", "token")
