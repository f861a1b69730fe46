"""Model files: bytes and names on disk, read strictly and written whole.

`storage` and `gguf` know the bytes, `quantized` and `dequantize` the smaller weights; `rules` and `layouts`
know the names; `parts` holds what is said of each network; `checkpoint` reads and `export` writes.
"""
