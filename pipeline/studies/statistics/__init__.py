"""Tests, effect sizes and intervals that all studies use, many columns at once.

Values are ``(n, k)``: k columns, for instance one a method and metric, NaN where there is no value;
``(n,)`` is one column. Every function returns a frame of k rows with a column ``reason``: None, or
why the row's numbers are NaN.
"""
