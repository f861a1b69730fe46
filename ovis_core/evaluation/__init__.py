"""What a picture says: its text is read, compared with what was asked for, and scored."""
