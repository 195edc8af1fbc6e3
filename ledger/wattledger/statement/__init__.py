"""Statements: what a window of the ledger says, in energy, tokens and carbon.

Pure but for the `Store` that is asked; each statement is frozen and tells itself by `to_json`.
"""
