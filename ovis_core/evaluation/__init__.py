"""Evaluation: the text in a picture is read, compared with what was asked for, and scored.

ocr             a picture -> regions of text
text_metrics    expected and recognised texts -> matches and error rates
benchmarks      the text scores of three published benchmarks
legibility      a region -> how much its strokes are those of plain fonts
wrong           the JSON of a verification -> the texts to be set anew
verify          a picture and its expected texts -> a verdict, frames, a ranking
"""
