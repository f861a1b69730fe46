"""Tables to pictures: rows, and what is made of each."""
