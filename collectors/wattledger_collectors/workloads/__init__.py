"""Workloads: whose a process is."""
