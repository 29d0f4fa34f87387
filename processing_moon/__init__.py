"""Products, queries and pictures into tensors. Importing this package registers `MoonProcessor` with `AutoProcessor`."""

from transformers import AutoProcessor

from .batch_moon import MoonBatch, Shortened, Skipped
from .cropping_moon import CoreDetector, GroundingDetector, LargestRegionDetector
from .pixels_moon import crop_core
from .processing_moon import MOON_TOKENS, MoonProcessor
from .product_moon import ImageLimits, ProductError, open_image
from .reasoning_moon import REASONING_KEYS, Reasoning, read_reasoning, write_reasoning

MoonProcessor.register_for_auto_class("AutoProcessor")
# Keyed by model type: this package does not know the model's configuration class.
AutoProcessor.register("moon", MoonProcessor, exist_ok=True)

__all__ = [
    "MOON_TOKENS",
    "REASONING_KEYS",
    "CoreDetector",
    "GroundingDetector",
    "ImageLimits",
    "LargestRegionDetector",
    "MoonBatch",
    "MoonProcessor",
    "ProductError",
    "Reasoning",
    "Shortened",
    "Skipped",
    "crop_core",
    "open_image",
    "read_reasoning",
    "write_reasoning",
]
