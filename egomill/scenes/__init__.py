"""Procedural rooms with one busy person in them, filmed by four fixed cameras and a head camera with real lens models."""
