"""Ovis-Image Nano: the small model that comes with the nodes, and how it is made.

recipe          the numbers and the stages, and `python3 -m ovis_core.training.nano`
autoencoder     the training loop of the autoencoder
letters         a tokenizer of one token a letter
"""
