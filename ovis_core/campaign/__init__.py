"""Campaigns: a table becomes many pictures.

rows            a table in CSV, TSV or JSON -> its rows
plan            rows and templates -> what each picture needs
"""
