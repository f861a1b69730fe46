"""Model files: bytes and names on disk, read strictly and written whole."""
