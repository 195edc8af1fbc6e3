"""Sensors: one file per source of energy or of use."""
