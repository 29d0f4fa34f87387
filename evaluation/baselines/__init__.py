"""Models that Moon is compared with. Importing this package lets `load_for_evaluation` load them."""

from evaluation.baselines import bm25 as bm25
from evaluation.baselines import clip_towers as clip_towers
from evaluation.baselines import dual_tower as dual_tower
from evaluation.baselines import frozen_encoders as frozen_encoders
from evaluation.baselines import gme as gme
from evaluation.baselines import open_clip_towers as open_clip_towers
from evaluation.baselines import qwen3_vl_embedding as qwen3_vl_embedding
from evaluation.baselines import sentence_transformer as sentence_transformer
from evaluation.baselines import vision_language as vision_language
