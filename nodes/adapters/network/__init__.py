"""How does one forward run here?"""
