"""The protocols: what is done with an encoder to detect objects, a file each."""
