"""What a data specification of images begins with. Loads no package, so that names can be checked at once."""

from __future__ import annotations

IMAGE_KINDS = ("scenes", "text-to-image-2m", "images", "captions", "codes")


def are_images(spec: str) -> bool:
    """Whether a data specification names images or captions."""
    return spec.partition(":")[0] in IMAGE_KINDS
