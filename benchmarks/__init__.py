"""What wattledger costs, each figure beside its bar. Run with `make bench`."""
