"""In which format are weights kept?

`formats` chooses; `gguf` and `low_precision` are the quantised layers; `patchers` change weights, also under
hooks (`hooked_weights`); `quant_check` measures what a format loses.
"""
