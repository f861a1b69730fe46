"""Training: pictures and captions -> weights.

typography (settings, wording, rendering, captions)   seed, index -> picture and caption
letters                                               prompt -> tokens, one a letter, for small encoders
cache                                                 pictures -> normalized latents, in buckets of one size
autoencoder                                           pictures -> an autoencoder
flow, trainer                                         latents, token ids -> MMDiT and text encoder
state, report                                         what a run keeps, and what it leaves to look at
nano                                                  all of it: a small model from nothing
"""
