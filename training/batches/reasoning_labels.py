"""Label the tokens of the reasoning that the model learns to write.

Shape suffixes: B rows, T tokens of a row.
"""

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that does not enter the cross-entropy, as in transformers and PyTorch."""


def reasoning_labels(input_ids_BT: Tensor, think_start: int, think_end: int, emb: int) -> Tensor:
    """Return the tokens after the last `<think>` of each row, up to and including `</think>`, and `IGNORED` elsewhere.

    Labels are not shifted: each label is at the position of its own token, which the model predicts from the previous
    position. `<emb>` is not a label, because it is appended after `</think>` and never generated. Only a `</think>`
    directly before `<emb>` closes the reasoning, so an empty `<think></think>` of a chat template does not count. Our
    design (precedent: LREM, arXiv 2510.14321, computes the cross-entropy on the reasoning only).

    Args:
        input_ids_BT: ids of prompts, with padding on either side.
        think_start, think_end, emb: ids of `<think>`, `</think>` and `<emb>`.

    Shapes:
        (B, T) int64 → (B, T) int64; a row without reasoning has no labels.

    Relations:
        `training.batches.collate.PairCollator` calls it for prompts of `MoonProcessor`, which escapes these tokens in
        texts.
    """
    place_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    start_B1 = torch.where(input_ids_BT == think_start, place_T, -1).amax(dim=1, keepdim=True)
    closes_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    closes_BT[:, :-1] = (input_ids_BT[:, :-1] == think_end) & (input_ids_BT[:, 1:] == emb)
    end_B1 = torch.where(closes_BT, place_T, -1).amax(dim=1, keepdim=True)
    written_BT = (start_B1 >= 0) & (place_T > start_B1) & (place_T <= end_B1)
    return torch.where(written_BT, input_ids_BT, IGNORED)
