"""The heart of the daemon, pure: no clock, no I/O, no logging.

metering      counters and gauges become energy, E(t)
timeline      stretches of time, found by the window they touch
evidence      what is remembered of a host, deduplicated
attribution   who caused a device's energy, down to request and phase
paging        one window of evidence becomes a page
idle          idle power, learned from windows in which nobody worked
accountant    the fold over evidence that closes and restates windows
"""
