"""Energy to carbon: pure formulas, grid intensity, PUE (accounting.md, section 4)."""
