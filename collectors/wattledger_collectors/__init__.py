"""Collectors: sensors that read energy, hooks that tell tokens, and who a process is.

Importing this package loads nothing but the standard library, so that an engine may do it.
"""
