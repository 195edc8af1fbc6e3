"""What the daemon tells others as it books: Prometheus pulls it, OTLP pushes it.

Both are off by default: no library of theirs is imported unless the config asks for it.
"""
