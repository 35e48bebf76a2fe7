"""Counting on the CPU, compiled by numba."""
