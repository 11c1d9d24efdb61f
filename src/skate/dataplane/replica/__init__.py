"""The callee's end of a call: accept, invoke user code, answer."""
