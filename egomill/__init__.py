"""Egomill: from Ego-Exo4D takes to egocentric video models."""
