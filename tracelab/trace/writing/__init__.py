"""Rows on their way into a trace: declared, gathered, committed; and going on after a crash."""
