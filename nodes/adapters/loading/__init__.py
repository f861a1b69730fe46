"""Which file becomes what?"""
