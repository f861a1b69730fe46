"""Drawing: pictures for people to look at, and type set into pictures.

fonts           fonts of the system, by the characters that they have, or by language and style
sheet           pictures and labels -> one contact sheet
setting         text -> lines of type at the size that fits, and their coverage
placing         coverage -> its place in a picture, turned or warped
ground          a picture -> what is behind its lettering, and the lettering's colour
typeset         texts with places -> what is laid over a picture
contrast        how well colours are told apart
"""
