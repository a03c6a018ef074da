"""Drafters: one file per method; `base.py` says what each of them offers."""
