"""Ovis-Image Nano: the small model that comes with the nodes, and how it is made."""
