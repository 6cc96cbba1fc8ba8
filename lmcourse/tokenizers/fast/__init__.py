"""Compiled with numba: loaded only when they are wanted."""
