"""Captions and pictures drawn from them, and a judge of pictures: the embedded text-to-image task."""
