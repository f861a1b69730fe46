"""Drawing: pictures for people to look at.

fonts           fonts of the system, by the characters that they have, or by language and style
sheet           pictures and labels -> one contact sheet
"""
