"""Lettering: which texts a prompt asks for, and what will go wrong with them.

copy            the texts of a poster -> a prompt
layout          boxes with texts -> a prompt that says where each stands
quotes          the quotation marks around the texts
kept            two prompts -> which quoted texts were lost or added
places          boxes, or what a picture has wrong -> where texts are set
styles          descriptions of lettering by name; styles.json has those that ship
lint            a prompt -> findings
lint_report     findings -> a line, a report, JSON; messages has its sentences
meter           how many tokens a prompt takes, and what is lost
"""
