"""Generators with exact labels; every sample says that it is simulated."""
