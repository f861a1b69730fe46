"""Words: what a prompt asks for, what a picture says, and campaigns."""
