"""One file a protocol; `protocol.py` has the contract."""
