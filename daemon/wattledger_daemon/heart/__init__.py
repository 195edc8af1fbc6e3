"""The heart of the daemon, pure: no clock, no I/O, no logging.

metering      counters and gauges become energy, E(t)
timeline      stretches of time, found by the window they touch
columns       an engine's steps as they are told, without an object for each token
runs          the same as they are kept: a request in many steps is one row
engine_steps  one engine's steps, deduplicated, in blocks
passes        which steps are one forward pass
owners        whose requests are that have an owner of their own
token_devices the device that carries an engine's tokens
evidence      what is remembered of a host, deduplicated
attribution   who caused a device's energy, down to request and phase
paging        one window of evidence becomes a page
ends          requests that finished in a window
idle          idle power, learned from windows in which nobody worked
accountant    the fold over evidence that closes and restates windows
"""
