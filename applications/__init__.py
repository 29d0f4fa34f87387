"""Use product vectors in applications, and relate their quality to what they bring there (MOON Embedding, arXiv 2511.11305)."""
