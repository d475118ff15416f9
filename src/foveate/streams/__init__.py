"""Unlabelled input as it arrives, and the timeline that perception makes of it."""
