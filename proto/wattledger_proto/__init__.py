"""The wire: protocol buffers and their committed stubs, nothing else."""
