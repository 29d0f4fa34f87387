"""Turn a Qwen3-VL or Qwen2.5-VL checkpoint into a Moon checkpoint that computes exactly what its base computes."""

from __future__ import annotations

import argparse
from pathlib import Path

ORDER = 45


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    from modeling_moon.configuration_moon import PRESETS
    from training.model.upcycle import DTYPES

    parser.add_argument("--base", required=True, help="folder or hub id of a Qwen3-VL or Qwen2.5-VL checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--preset", default="moon1", choices=list(PRESETS))
    parser.add_argument("--dtype", choices=list(DTYPES), help="data type of the weights (default: that of the base)")
    parser.add_argument(
        "--readout", choices=["mean", "emb", "last"], help="default: that of the preset; 'last' for embedding bases"
    )
    parser.add_argument("--embedding-dim", type=int, help="size of the vectors; 0: width of the base (default: 256)")
    parser.add_argument("--moe-layers", type=int, nargs="*", help="layers that become mixtures (default: all)")
    parser.add_argument(
        "--num-experts", type=int, help="experts of a layer, including the two guided ones (default: 4)"
    )
    parser.add_argument(
        "--moon",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="further arguments of MoonConfig, as in a recipe: --moon fusion=false 'matryoshka_dims=[64,128]'",
    )
    parser.add_argument("--max-tokens", type=int, help="token budget of a query or product, pictures included")
    parser.add_argument("--max-image-tokens", type=int, help="token budget of a picture, which is resized to fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-gigabytes", type=float, default=4.0)
    parser.add_argument("--overwrite", action="store_true")


def run(chosen: argparse.Namespace) -> None:
    """Write the checkpoint."""
    from product_data.outputs import require_writable_folder
    from training.model.upcycle import upcycle

    require_writable_folder("--out", chosen.out)
    options = {name: getattr(chosen, name) for name in ("preset", "dtype", "seed", "max_shard_gigabytes", "overwrite")}
    limits = {
        name: value for name in ("max_tokens", "max_image_tokens") if (value := getattr(chosen, name)) is not None
    }
    path = upcycle(chosen.base, chosen.out, limits=limits, **options, **moon_arguments(chosen))
    print(f"wrote {path}")


def moon_arguments(chosen: argparse.Namespace) -> dict[str, object]:
    """Return the arguments of MoonConfig that differ from the preset.

    Raises:
        OptionError: a word of `--moon` lacks "=".
    """
    import yaml

    from product_data.errors import OptionError

    names = ("readout", "embedding_dim", "moe_layers", "num_experts")
    moon = {name: value for name in names if (value := getattr(chosen, name)) is not None}
    if moon.get("embedding_dim") == 0:
        moon["embedding_dim"] = None
    for pair in chosen.moon:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"--moon: found {pair!r}; expected KEY=VALUE")
        moon[key] = yaml.safe_load(value)
    return moon
