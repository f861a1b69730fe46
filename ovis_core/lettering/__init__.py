"""Words that come out right: what a prompt asks for in letters, and what is seen of it in the picture."""
