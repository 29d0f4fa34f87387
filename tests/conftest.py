"""Tiny random checkpoints, made once a session, and the place of the real product data."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # code of checkpoints is copied there; two processes would write the same files
    os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="moon-modules-")
    atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give, above all on busy cores
ROOT = Path(__file__).resolve().parents[1]
TEXTS = [
    "red running shoes for women with a white sole",
    "brown leather tote bag, gold buckle, autumn",
    "Home > Kitchen > Mugs",
    "colour: blue, navy; material: cotton; style elements: striped; size/specification: M",
    "same in green",
    "Represent the product being sold. Find the product that the user wants.",
]
# Names of the parameters that a base does not have; `trained=True` moves them.
MOON_PARTS = (".experts.", ".router.", ".preference", ".fire.", "fusion.", "detail_mergers.")


# The files that take longest. They go first, so that no core is left alone with one at the end.
SLOW_FILES = (
    "test_train.py",
    "test_grpo_trainer.py",
    "test_streamed_training.py",
    "test_full_disk.py",
    "test_training_techniques.py",
    "test_sharded_training.py",
    "test_contract.py",
    "test_shop.py",
    "test_cold_start.py",
    "test_exact_resumption.py",
    "test_contrastive_trainer.py",
    "test_quickstart.py",
    "test_shipping.py",
    "test_upcycled_equals_base.py",
    "test_ablate.py",
    "test_sharded_one_batch.py",
    "test_two_processes.py",
    "test_one_global_batch.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def project_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real product data is not on this machine (it is not part of the project)")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Trainings of this process use one thread, as those of other processes do: so both add up in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_base("qwen3_vl", tie_word_embeddings=False)`: the folder of a random base in the hub's layout.

    `three_levels=True` gives one of four decoder layers and four vision blocks: a Qwen3-VL whose first three blocks give
    deep-stack features, a Qwen2.5-VL whose last three have full attention.
    """
    from training.model.small_base import make_base

    made: dict[tuple, Path] = {}

    def get(backbone: str = "qwen3_vl", *, three_levels: bool = False, **sizes: object) -> Path:
        key = (backbone, three_levels, *sorted(sizes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("base") / backbone
            sizes = {"vocab_size": 420} | ({"num_layers": 4, "vision_depth": 4} if three_levels else {}) | sizes
            made[key] = make_base(folder, texts=TEXTS * 20, backbone=backbone, **sizes)
            if three_levels:
                _give_three_levels(folder)
        return made[key]

    return get


def _give_three_levels(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    if hasattr(config.vision_config, "deepstack_visual_indexes"):
        config.vision_config.deepstack_visual_indexes = [0, 1, 2]
    else:
        config.vision_config.fullatt_block_indexes = [1, 2, 3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_moon(tiny_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_moon("qwen3_vl", readout="emb")`: the folder of a Moon checkpoint upcycled from a tiny base.

    `trained=True` gives one whose experts and other parts differ, as after training: only there does a vector depend on
    them. `three_levels=True` is the base's, see `tiny_base`.
    """
    import torch

    from modeling_moon import MoonForConditionalGeneration
    from training.model.upcycle import upcycle

    made: dict[tuple, Path] = {}

    def get(
        backbone: str = "qwen3_vl",
        *,
        tie_word_embeddings: bool = True,
        trained: bool = False,
        three_levels: bool = False,
        **moon: object,
    ) -> Path:
        of_base = (tie_word_embeddings, three_levels)
        key = (backbone, *of_base, trained, *sorted((name, str(value)) for name, value in moon.items()))
        if key not in made:
            base = tiny_base(backbone, three_levels=three_levels, tie_word_embeddings=tie_word_embeddings)
            made[key] = upcycle(base, tmp_path_factory.mktemp("moon") / backbone, **({"embedding_dim": 32} | moon))
            if trained:
                model = MoonForConditionalGeneration.from_pretrained(made[key])
                generator = torch.Generator().manual_seed(0)
                for name, parameter in model.named_parameters():
                    if any(part in name for part in MOON_PARTS):
                        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
                model.save_pretrained(made[key])
        return made[key]

    return get
