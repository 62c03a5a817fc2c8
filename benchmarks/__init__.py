"""Benchmarks. A package of its own: Opacus installs another one of this name."""
