"""Training: pictures and captions become weights.

data            pictures -> normalized latents, in buckets of one size
flow            latents and a velocity -> the rectified-flow loss
trainer         the loop of the MMDiT and its text encoder
state           what a run carries from step to step and saves
report          the log, the curve and the samples of a run
nano            all of it: a small model, trained from nothing
"""
