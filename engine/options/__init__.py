"""Flags, and the frozen options that are settled from them."""
