"""Batched statistics: arrays in, arrays out, useful without any trace."""
