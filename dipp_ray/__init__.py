"""Diff-Instruct++ on Ray: align one-step text-to-image generators with human preferences."""
