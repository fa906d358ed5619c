"""Formats stored results as figures, tables and one self-contained page; nothing is estimated here."""
