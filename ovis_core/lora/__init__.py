"""Reads and writes LoRA files of every dialect.

`names` knows the dialects and where their layers lie in ours; `read` turns a file into changes of our layers,
and `write` changes into a file.
"""
