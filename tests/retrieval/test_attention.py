"""Attention is chosen by name; what cannot run here is refused, with what it needs, before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from records import PRODUCTS

from moon3.__main__ import main
from product_data.errors import OptionError
from retrieval import attention
from retrieval.attention import attention_of, is_flash, set_attention
from retrieval.encode import encode, load_for_evaluation

HALF = torch.bfloat16


def installed(monkeypatch: pytest.MonkeyPatch, *, kernels: bool = False, flash: bool = False) -> None:
    monkeypatch.setattr(attention, "is_kernels_available", lambda: kernels)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: flash)
    monkeypatch.setattr(attention, "_is_installed", lambda package: flash and package == "flash_attn")


def test_auto_takes_what_is_installed_and_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, kernels=True)
    assert attention_of("auto", True, HALF) == "sdpa"
    installed(monkeypatch, flash=True)
    assert attention_of("auto", True, HALF) == "flash_attention_2"
    assert attention_of("auto", True, torch.float32) == attention_of("auto", False, HALF) == "sdpa"


def test_a_name_stays_itself_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert [attention_of(name, False, torch.float32) for name in ("eager", "sdpa")] == ["eager", "sdpa"]
    installed(monkeypatch, flash=True)
    assert attention_of("flash_attention_2", True, HALF) == "flash_attention_2"
    installed(monkeypatch, kernels=True)
    for name in ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"):
        assert attention_of(name, True, HALF) == name
    assert not is_flash("sdpa")


@pytest.mark.parametrize(
    ("name", "on_gpu", "dtype", "message"),
    [
        ("flash_attention_2", False, HALF, "'flash_attention_2': found a CPU; expected a CUDA GPU, or sdpa or eager"),
        ("kernels-community/flash-attn2", False, HALF, "found a CPU"),
        ("flash_attention_2", True, torch.float32, "found float32; expected bfloat16 or float16"),
        ("flash_attention_2", True, HALF, r"expected the package flash_attn or kernels: pip install 'moon3\[flash\]'"),
        ("kernels-community/flash-attn2", True, HALF, "found no such package; expected the package kernels: "),
    ],
)
def test_flash_attention_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, name: str, on_gpu: bool, dtype: torch.dtype, message: str
) -> None:
    installed(monkeypatch)
    with pytest.raises(OptionError, match=message):
        attention_of(name, on_gpu, dtype)


def test_an_evaluation_chooses_it_and_writes_it_down(
    tiny_moon: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--model", str(tiny_moon()), "--benchmark", "catalogue", "--catalogue-products", "40"]
    command += ["--only", "retrieval", "--device", "cpu", "--output", str(tmp_path / "results.json")]
    assert main([*command, "--attn-implementation", "eager", "--dtype", "bfloat16"]) == 0
    facts = json.loads((tmp_path / "results.json").read_text())["provenance"]
    assert (facts["attn_implementation"], facts["dtype"]) == ("eager", "bfloat16")
    assert main([*command, "--attn-implementation", "flash_attention_2"]) == 2
    assert "found a CPU; expected a CUDA GPU" in capsys.readouterr().err
    assert main([*command, "--attn-implementation", "telepathy"]) == 2
    assert "attn_implementation 'telepathy': " in capsys.readouterr().err


def test_a_model_without_attention_stays_as_it_is() -> None:
    model, _ = load_for_evaluation("bm25", device="cpu")
    assert set_attention(model, "eager", False) is None


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="flash attention needs a CUDA GPU, which is not on this machine"
)
@pytest.mark.parametrize("packed_by", ["flash_attention_2"])
def test_flash_attention_gives_the_vectors_of_sdpa(tiny_moon: Callable[..., Path], packed_by: str) -> None:
    try:
        attention_of(packed_by, True, HALF)
    except OptionError as error:
        pytest.skip(str(error))
    model, processor = load_for_evaluation(tiny_moon(trained=True), device="cuda", dtype=HALF)
    vectors = {}
    for name in ("sdpa", packed_by):
        assert set_attention(model, name, True) == name
        vectors[name] = torch.as_tensor(encode(model, processor, PRODUCTS, batch_size=4).vectors)
    torch.testing.assert_close(vectors[packed_by], vectors["sdpa"], rtol=0, atol=0.03)
