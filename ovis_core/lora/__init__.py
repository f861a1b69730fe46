"""LoRA files of every dialect: read as changes of our layers, and written."""
