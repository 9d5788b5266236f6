"""Files that strangers made: data-set layouts, video, sidecars, trajectories."""
