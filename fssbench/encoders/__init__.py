"""Frozen vision encoders and their weights."""
