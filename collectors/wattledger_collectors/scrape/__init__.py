"""Engines that cannot load a hook, read by their Prometheus pages; see README.md here."""
