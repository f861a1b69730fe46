"""What the commands of dev.py stand on: a ComfyUI with its Python, and a server of it."""
