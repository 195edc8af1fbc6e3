"""Who caused a device's energy: device -> process -> step -> request and phase.

shares   level 1: a device's energy among the processes that hold it
cost     what one step costs each request and phase (closed-form Shapley value)
steps    level 2: an engine's energy among its steps
whose    whose a request is, and when
phases   a step's energy among its requests and phases, by sums over runs
window   both levels over one window
entries  a device's parts, rounded once into integers, and with their tokens
"""
