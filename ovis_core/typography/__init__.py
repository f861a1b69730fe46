"""Synthetic typography: pictures of writing with captions that state what is drawn.

settings        the distribution, in a few numbers
wording         what is written; lexicon has the words, and some are held out from training
grounds         what writing lies on; palette has the colours
layout          writing set into an area
captions        what a caption says of a picture
rendering       all of it: a seed and an index -> a picture with its caption
dataset         as a dataset for torch, and `python3 -m ovis_core.typography`
"""
