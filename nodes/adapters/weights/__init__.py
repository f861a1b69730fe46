"""In which format are weights kept?"""
