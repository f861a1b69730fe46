"""Connects the core's lettering, evaluation and campaigns to ComfyUI's folders, images and graphs.

lettering       a prompt's texts, with the linked CLIP's tokenizer and the user's styles
verify          reading pictures, ranking them, and drawing until the text is right
typeset         texts set in type, with ComfyUI's boxes and font folders
campaign        tables of the input folder, labelled sheets
"""
