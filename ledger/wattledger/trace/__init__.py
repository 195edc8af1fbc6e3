"""The trace format: one JSON object a line, in and out (contract.md, "Files").

A trace is evidence of one host: `read_trace` reads a whole file, `decode` and `encode` turn
single lines into records and back.
"""

from wattledger.trace.decode import TraceHeader, decode
from wattledger.trace.encode import encode
from wattledger.trace.files import Trace, read_trace

__all__ = ["Trace", "TraceHeader", "decode", "encode", "read_trace"]
