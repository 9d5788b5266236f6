"""Tables, the stage runner, runs, releases, the tracker: what remembers."""

import os
import warnings

warnings.filterwarnings("ignore", message="lance is not fork-safe")  # Ray's workers are spawned, not forked
os.environ.setdefault("LANCE_LOG", "error")  # that a table is new is no news
