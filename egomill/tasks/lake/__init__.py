"""Tables, the stage runner, runs, releases, the tracker: what remembers."""
