"""From a release to a registered adapter: the order of samples, the loop, adapters, the gate, sizes."""
