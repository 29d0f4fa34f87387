"""Convert products, queries and pictures to tensors. Importing this package registers `MoonProcessor` with `AutoProcessor`."""

from transformers import AutoProcessor

from .batch_moon import MoonBatch, Shortened, Skipped
from .cropping_moon import CoreDetector, GroundingDetector, LargestRegionDetector
from .errors_moon import ProductError
from .images_moon import ImageLimits, open_image
from .pixels_moon import crop_core
from .processing_moon import MOON_TOKENS, MoonProcessor
from .prompts_moon import PromptProcessor
from .reasoning_moon import REASONING_KEYS, Reasoning, read_reasoning, write_reasoning

MoonProcessor.register_for_auto_class("AutoProcessor")
# Keyed by model type, because this package does not import the model's configuration class.
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
    "PromptProcessor",
    "Reasoning",
    "Shortened",
    "Skipped",
    "crop_core",
    "open_image",
    "read_reasoning",
    "write_reasoning",
]
