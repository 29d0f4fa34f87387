"""Which tokens of a prompt with a reasoning the model itself has to write.

Shape suffixes: B rows, T tokens of a row.
"""

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be learned, as transformers and PyTorch have it."""


def reasoning_labels(input_ids_BT: Tensor, think_start: int, think_end: int, emb: int) -> Tensor:
    """Return the tokens behind the last `<think>` of each row up to and with `</think>`, and `IGNORED` elsewhere.

    A label stands at its own token's place: the state before it has to predict it. `<emb>` is no label, because it is put
    behind `</think>` and never written. Only a `</think>` that `<emb>` follows directly closes a reasoning, so that a chat
    template's own empty `<think></think>` is none. Our design (precedent: LREM, arXiv 2510.14321, whose cross-entropy is
    taken on the reasoning alone).

    Args:
        input_ids_BT: ids of prompts; padding on either side.
        think_start, think_end, emb: ids of `<think>`, `</think>` and `<emb>`.

    Shapes:
        (B, T) int64 → (B, T) int64; a row without a reasoning has no label.

    Relations:
        `training.batches.collate.PairCollator` calls it on what `MoonProcessor` wrote, in whose texts these tokens are escaped.
    """
    place_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    start_B1 = torch.where(input_ids_BT == think_start, place_T, -1).amax(dim=1, keepdim=True)
    closes_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    closes_BT[:, :-1] = (input_ids_BT[:, :-1] == think_end) & (input_ids_BT[:, 1:] == emb)
    end_B1 = torch.where(closes_BT, place_T, -1).amax(dim=1, keepdim=True)
    written_BT = (start_B1 >= 0) & (place_T > start_B1) & (place_T <= end_B1)
    return torch.where(written_BT, input_ids_BT, IGNORED)
