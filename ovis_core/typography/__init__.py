"""Synthetic typography: pictures of writing with captions that state what is drawn."""
