"""Captioned images and their sources, the image tokenizer and its codes on disk, and the built-in task of scenes."""
