"""Square images and the pixels of their patches."""

from torch import Tensor


def unpatchify(values: Tensor, patch_size: int, grid_size: int) -> Tensor:
    """Images from the pixels of their patches; inverse of :func:`patchify`.

    Args:
        values: Pixels of each patch row by row, the channel running fastest, shape (B, G * G, P * P * channels).
        patch_size: Pixels P along a patch.
        grid_size: Patches G along an image.

    Returns:
        Images, shape (B, channels, G * P, G * P).
    """
    pixels = values.unflatten(1, (grid_size, grid_size)).unflatten(3, (patch_size, patch_size, -1))
    images: Tensor = pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return images


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels of the patches of square images (B, channels, H, H) as :func:`unpatchify` takes them."""
    patches = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # (B, channels, G, P, G, P)
    values: Tensor = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return values
