"""What an engine's steps cost, learned from what is booked: (f, a, b, c) with intervals.

sums      what an engine computed in a stretch of time
rows      a good stretch becomes a row: what was computed, and the energy at each lag
algebra   small symmetric systems, non-negative
gram      sums over rows, forgotten slowly; in groups, for the jackknife
fit       the estimate: lag, identifiability, intervals
lessons   one key's rows, its fit, and the cost model in force
book      every key of a host, a fold as the accountant is
"""
