"""Captions and images drawn from them, and a judge of images: the embedded text-to-image task."""
