"""Where does a LoRA belong?

`lora` serves our own nodes, `aliases` ComfyUI's; `patches` turns the core's changes into ComfyUI's
patches, and back.
"""
