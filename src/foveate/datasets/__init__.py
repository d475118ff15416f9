"""Labelled data: one file per family, each with its card."""
