"""Reads model files strictly, and writes them whole or not at all.

`storage` and `gguf` know the bytes, `quantized` and `dequantize` the quantised weights; `rules` and
`layouts` know the names; `parts` describes each network; `checkpoint` reads and `export` writes.
"""
