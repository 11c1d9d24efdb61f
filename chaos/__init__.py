"""The chaos: mixed traffic while processes are killed and halted, applications change, the disk is full, a link is cut.

``python -m chaos.run`` (``make chaos``); what it asserts stands in ``judge``, what it does in ``schedule``.
"""
