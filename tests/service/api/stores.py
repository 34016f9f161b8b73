"""Which stores a test of the API needs."""

import pytest

on_sqlite = pytest.mark.parametrize("store_kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
"""What is decided before a store is asked, or above what any store says, is asked of the second one in `make soak`."""
