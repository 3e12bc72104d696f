"""Generators of tiny real data sets in the official layouts. Same arguments, same files."""
