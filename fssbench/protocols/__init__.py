"""Folds, episode manifests and the samplers that make them."""
