"""Training: pictures and captions -> weights.

data             pictures -> normalized latents, in buckets of one size
flow, trainer    latents, token ids -> MMDiT and text encoder
state, report    what a run keeps, and what it leaves to look at
nano             all of it: a small model from nothing
"""
