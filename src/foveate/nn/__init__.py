"""Backbones, blocks and model files that several rooms share."""
