"""Thin recipes: `python -m hf_align.recipes.<name>` states choices, the library does the work."""
