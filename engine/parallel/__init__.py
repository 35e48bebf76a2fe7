"""Devices, and the processes that torchrun starts."""
