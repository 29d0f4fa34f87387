"""Make variants of products for training: pictures on other grounds and enriched titles, as in MOON2.0 (arXiv 2511.12449)."""
