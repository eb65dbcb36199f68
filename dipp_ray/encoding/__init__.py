"""Prompts to embeddings in parquet, once and for all: `dipp-ray encode`. Who reads them is in data/embeddings.py."""
