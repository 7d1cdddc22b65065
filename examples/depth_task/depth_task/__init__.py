"""Depth of every pixel by a linear head on a frozen encoder, on generated images."""
