"""OpenCV, or one line that says why not: its usual package needs graphics libraries that servers often lack."""

from mae_transfer.errors import UserError

try:
    import cv2
except ImportError as error:
    raise UserError(
        f"OpenCV cannot be loaded ({error}); without graphics libraries: pip uninstall -y opencv-python "
        "&& pip install --force-reinstall opencv-python-headless"
    ) from error

__all__ = ["cv2"]
