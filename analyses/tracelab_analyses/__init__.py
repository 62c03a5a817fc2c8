"""Analyses that ship with tracelab; each file is one analysis."""
